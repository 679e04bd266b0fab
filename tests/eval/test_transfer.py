"""Transfer: intervals that cover what they should, pools that are what they are called, pairing, and the command."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dixit.common import DixitError, rng, run_main, words, write_json
from dixit.config import ListenerConfig
from dixit.data.images import fingerprint, load, open_data
from dixit.models.listeners import score_all
from dixit.training import game
from dixit.training.runs import load_run, make_listeners
from eval import commands, metrics, transfer
from eval.tables import find, look_up, read_cells, read_rows


def test_bootstrap_intervals_cover_the_true_mean():
    values = torch.from_numpy(rng("coverage").normal(3.0, 2.0, size=(1000, 80)))
    low, high = metrics.bootstrap(values, seed=1)
    assert 0.92 < float(((low < 3) & (3 < high)).double().mean()) < 0.97
    # Two standard errors to each side, 1.96 to be exact.
    width = 2 * 1.96 * values.std(1) / math.sqrt(80)
    torch.testing.assert_close((high - low).mean(), width.mean(), rtol=0.03, atol=0)


def test_bootstrap_is_fixed_by_its_seed_and_resamples_rows_alike():
    base = torch.from_numpy(rng("base").random((1, 60)))
    first = metrics.bootstrap(torch.cat([base, base + 0.25, torch.full((1, 60), 0.5)]), seed=4)
    assert torch.equal(first, metrics.bootstrap(torch.cat([base, base + 0.25, torch.full((1, 60), 0.5)]), seed=4))
    assert not torch.equal(first[:, :1], metrics.bootstrap(base, seed=5))
    torch.testing.assert_close(first[:, 1] - first[:, 0], torch.full((2,), 0.25, dtype=torch.float64))
    assert first[:, 2].tolist() == [0.5, 0.5]


def circle(n: int) -> torch.Tensor:
    angle = torch.linspace(0, 2 * math.pi, n + 1)[:n]
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_pools_hold_the_target_and_hard_ones_its_neighbours():
    drawn = transfer.draw_pools(circle(40), pools=3, seed=0)
    assert list(drawn) == [f"{kind}/{size}" for size in (2, 4, 10, 32) for kind in ("random", "hard")]
    for key, pools in drawn.items():
        size = int(key.split("/")[1])
        assert pools.shape == (40, 3, size) and (pools[:, :, 0] == torch.arange(40)[:, None]).all()
        assert all(len(set(pool)) == size for pool in pools.flatten(0, 1).tolist())
        assert not torch.equal(pools[:, 0], pools[:, 1])
        assert torch.equal(pools, transfer.draw_pools(circle(40), pools=3, seed=0)[key])
    apart = (drawn["hard/10"] - torch.arange(40)[:, None, None]).abs()
    assert int(torch.minimum(apart, 40 - apart).max()) == 9  # the 18 nearest are 9 to each side


class Blurred:
    """Hears a number and sees where the image stands on a circle, both with an error."""

    def score(self, texts: list[str], candidates: torch.Tensor) -> torch.Tensor:
        places = torch.tensor([float(text) for text in texts]) + torch.from_numpy(rng("error").normal(0, 3, len(texts)))
        apart = (candidates - places[:, None]).abs()
        return -torch.minimum(apart, 60 - apart)


def test_hard_pools_are_harder_and_large_ones_too():
    drawn = transfer.draw_pools(circle(60), pools=4, seed=0)
    found = {key: float(value.mean()) for key, value in
             transfer.accuracies([Blurred()], [str(i) for i in range(60)], drawn).items()}
    for size in (2, 4, 10):
        assert found[f"hard/{size}"] < found[f"random/{size}"] - 0.1
    values = [found[f"random/{size}"] for size in (2, 4, 10, 32)]
    assert values == sorted(values, reverse=True)


def test_accuracies_are_those_of_scoring_each_pool(game_run, home):
    """Also with more captions than are scored at a time, and one that says nothing."""
    run = load_run(game_run)
    dataset = load(dataclasses.replace(run.config.data, test=60), "test")
    listeners = make_listeners(run.config.listeners, dataset)
    texts = [row[0] for row in dataset["captions"]]
    texts[55] = ""
    drawn = transfer.draw_pools(listeners[0].images, pools=2, seed=3)
    found = transfer.accuracies(listeners, texts, drawn)
    for key, pools in drawn.items():
        one_by_one = torch.stack([game.hits(score_all(listeners, texts, pools[:, i])) for i in range(2)]).mean(0)
        torch.testing.assert_close(found[key], one_by_one, atol=1e-6, rtol=0)
        assert found[key][:, 55].tolist() == pytest.approx([1 / pools.shape[2]] * 2)


def test_the_same_captions_differ_by_exactly_nothing(game_run, home):
    run = load_run(game_run)
    dataset = load(run.config.data, "test")
    right = [row[0] for row in dataset["captions"]]
    said = {"base": right, "trained": right, "a baseline": right[::-1]}
    groups = {"training": run.config.listeners, "heldout": run.config.heldout}
    rows = transfer.measure([said, said | {"in one run only": right}], dataset, groups, pools=2, seed=0)
    assert {speaker for _, speaker, _ in rows} == set(said)
    assert all(values.shape == (2, 24) for values in rows.values())
    figures = transfer.summarise(rows, seed=0)["random/10"]
    for group in groups:
        same = figures["base"][f"{group}/trained_minus_this"]
        assert (same["mean"], same["low"], same["high"], same["significant"]) == (0, 0, 0, False)
        row = figures["a baseline"]
        gap = row[f"{group}/accuracy/colour"]["mean"] - row[f"{group}/accuracy/grey"]["mean"]
        assert row[f"{group}/gap"]["mean"] == pytest.approx(gap, abs=1e-6)
        assert row[f"{group}/trained_minus_this"]["mean"] == pytest.approx(
            figures["trained"][f"{group}/gap"]["mean"] - gap, abs=1e-6)


def test_a_listener_alone_has_its_accuracy_for_a_gap(tiny, home, game_run):
    dataset = load(load_run(game_run).config.data, "test")
    groups = {"training": (ListenerConfig(name="only", clip=str(tiny.clip)),)}
    rows = transfer.measure([{"trained": [row[0] for row in dataset["captions"]]}], dataset, groups, pools=1, seed=0)
    assert torch.equal(rows["hard/4", "trained", "training/gap"], rows["hard/4", "trained", "training/accuracy/only"])


def test_an_image_counts_once_however_many_runs():
    """The interval is over images; the spread over runs stands beside it."""
    values = torch.from_numpy(rng("images").random((1, 50))).float()
    shift = torch.tensor([[-0.1], [0.0], [0.1]])
    rows = {("random/10", "base", "training/trained_minus_this"): values + shift}
    found = transfer.summarise(rows, seed=0)["random/10"]["base"]["training/trained_minus_this"]
    low, high = metrics.bootstrap(values, seed=0)[:, 0].tolist()
    assert found["n"] == 50 and found["significant"]
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert found["runs"] == pytest.approx([float(values.mean()) + float(s) for s in shift], abs=1e-6)
    assert found["runs_se"] == pytest.approx(0.1 / math.sqrt(3), abs=1e-6)
    assert "runs" not in transfer.summarise({key: v[:1] for key, v in rows.items()}, 0)["random/10"]["base"][
        "training/trained_minus_this"]


def test_categories_of_five_images_or_more_get_a_row():
    values = torch.tensor([[1.0] * 5 + [0.0] * 6 + [0.5] * 4 + [0.7] * 9])
    rows = {("random/10", "base", "training/gap"): values, ("hard/10", "base", "training/gap"): values,
            ("random/10", "oracle", "training/gap"): values, ("random/10", "base", "training/accuracy/grey"): values}
    found = transfer.by_category(rows, ["fish"] * 5 + ["birds"] * 6 + ["few"] * 4 + [""] * 9, seed=0)
    assert list(found) == ["birds", "fish"] and found["birds"]["images"] == 6
    assert found["fish"]["base"] == {"training/gap": {"mean": 1, "low": 1, "high": 1, "n": 5}}
    assert found["birds"]["base"]["training/gap"]["mean"] == 0 and list(found["fish"]) == ["images", "base"]


def make_asset(cache: Path, name: str, labels: list[dict]) -> None:
    folder = cache / "assets" / name
    (folder / "images").mkdir(parents=True)
    for i, item in enumerate(labels):
        Image.new("RGB", (16, 16), (20 * i, 90, 200)).save(folder / item["file"])
    write_json(folder / "labels.json", labels)
    write_json(folder / "DONE.json", {})


def test_stamps_have_folders_emoji_groups_for_categories(game_run, home, tmp_path, monkeypatch):
    config = load_run(game_run, ["eval.images=2"]).config
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path))
    make_asset(tmp_path, "stamps", [
        {"file": "images/a.png", "caption": "A heron.", "category": "animals/birds"},
        {"file": "images/b.png", "caption": "A pear.", "category": "food/fruit"},
        {"file": "images/c.png", "caption": "A frog.", "category": "animals"}])
    make_asset(tmp_path, "emoji", [
        {"file": "images/a.png", "label": "frog face", "keywords": [], "group": "animals & nature"},
        {"file": "images/b.png", "label": "green pear", "keywords": [], "group": "food & drink"}])
    whole = dataclasses.replace(config, eval=dataclasses.replace(config.eval, images=0))
    stamps = open_data("stamps", whole)
    assert transfer.categories("stamps", stamps) == ["animals", "food", "animals"]
    assert len(open_data("stamps", config)) == 2
    emoji = open_data("emoji", config)  # both in test, for they share a word with a stamp
    assert transfer.categories("emoji", emoji) == ["animals & nature", "food & drink"]


def photos(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        noise = rng("photo", i).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{'cat' if i % 2 else 'red dog'}_{i}.png")
    return folder


def test_a_folder_is_taken_whole_unless_it_was_trained_on(game_run, home, tmp_path):
    config = load_run(game_run).config
    assert len(open_data(f"folder:{photos(tmp_path / 'few', 3)}", config)) == 3  # some splits are empty
    folder = photos(tmp_path / "flat", 30)
    dataset = open_data(f"folder:{folder}", config)
    again = open_data(f"folder:{folder}", config)
    assert len(dataset) == 24 == config.eval.images and len(set(dataset["concept"])) == 2
    assert fingerprint(dataset) == fingerprint(again)
    own = dataclasses.replace(config, data=dataclasses.replace(config.data, name="folder", path=str(folder)))
    assert 2 <= len(open_data(f"folder:{folder}", own)) < 12
    photos(folder / "test", 5)
    assert len(open_data(f"folder:{folder}", config)) == 5
    (folder / "test" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DixitError, match="bad.png is not a readable image"):
        open_data(f"folder:{folder}", config)
    (tmp_path / "few" / "hollow.png").touch()
    with pytest.raises(DixitError, match="the file is empty"):  # and not the split
        open_data(f"folder:{tmp_path / 'few'}", config)


@pytest.mark.parametrize("data, message", [
    ("stampz", "choose of stamps"), ("folder:/no/such", "not a folder"), ("folder", "not a folder"),
    ("folder:{empty}", "no images in"), ("folder:{single}", "has only 1 image")])
def test_bad_data_is_one_line(data, message, game_run, home, tmp_path):
    (tmp_path / "empty").mkdir()
    photos(tmp_path / "single", 1)
    with pytest.raises(DixitError, match=message) as error:
        open_data(data.format(empty=tmp_path / "empty", single=tmp_path / "single"),
                           load_run(game_run).config)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def done(game_run, command, tmp_path_factory) -> tuple[Path, str]:
    """The command on two runs that differ in their seed."""
    root = tmp_path_factory.mktemp("transfer")
    first, second = (Path(shutil.copytree(game_run, root / name)) for name in ("first", "second"))
    text = (second / "config.yaml").read_text()
    assert "\nseed: 0\n" in text
    (second / "config.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: 1\n"))
    found = command("-m", "eval.transfer", first, second, "--pools", 2, "--baselines", "--data", "combos",
                    f"folder:{photos(root / 'photos', 13)}", "eval.images=12")
    assert found.returncode == 0, found.stderr
    return first, found.stdout


def test_the_command_writes_every_set_size_speaker_and_group(done):
    run, printed = done
    result = json.loads((run / "transfer.json").read_text())
    assert result["command"].endswith("eval.images=12") and result["commit"] and result["wall_seconds"] > 0
    figures, asking = result["figures"], {"best of 8", "contrastive decoding"}
    assert figures["pools_per_image"] == 2 and [r["seed"] for r in figures["runs"]] == [0, 1]
    (combos, there), (name, folder) = figures["data"].items()
    assert combos == "combos" and there["images"] == 8 and folder["images"] == 12 and name.startswith("folder:")
    assert set(there["pools"]) == {f"{kind}/{size}" for kind in ("random", "hard") for size in (2, 4)}
    assert set(there["skipped"]) == {"10", "32", "100"} and "pools of 10 skipped" in printed
    assert set(folder["pools"]) == {f"{kind}/{size}" for kind in ("random", "hard") for size in (2, 4, 10)}
    assert set(there["pools"]["hard/4"]) == {"base", "trained", "ground truth", "oracle", *asking}
    assert set(folder["pools"]["hard/10"]) == {"base", "trained", "ground truth", *asking}
    for result in (there, folder):
        for row in (row for speakers in result["pools"].values() for row in speakers.values()):
            for figure in row.values():
                assert figure["low"] <= figure["mean"] + 1e-9 and figure["mean"] <= figure["high"] + 1e-9
                assert figure["n"] == result["images"] and len(figure["runs"]) == 2 and figure["runs_se"] >= 0
            for group in ("training", "heldout"):
                gap = row[f"{group}/accuracy/colour"]["mean"] - row[f"{group}/accuracy/grey"]["mean"]
                assert row[f"{group}/gap"]["mean"] == pytest.approx(gap, abs=1e-6)
    assert sum(row["images"] for row in folder["categories"].values()) == 12 and not there["categories"]
    assert set(folder["categories"]["cat"]) == {"images", "base", "trained"}
    assert (run / "transfer.png").read_bytes().startswith(b"\x89PNG")
    captions = json.loads((run / "transfer_captions.json").read_text())
    assert [len(one["trained"]) for one in captions[name]] == [12, 12]
    assert {words(text)[0] for text in captions[name][0]["ground truth"]} == {"cat", "red"}


def test_figures_are_kept_over_runs_and_of_each_run(done, tmp_path):
    result = json.loads((done[0] / "transfer.json").read_text())
    transfer.keep("mine", result, tmp_path)
    name, folder = list(result["figures"]["data"].items())[1]

    def found(seed: str, speaker: str, figure: str, field: str = "mean") -> float:
        return look_up("transfer", "mine", seed, speaker, f"{name}/{figure}", field, tmp_path)

    gap = folder["pools"]["hard/4"]["base"]["heldout/trained_minus_this"]
    for field, value in (("mean", gap["mean"]), ("low", gap["low"]), ("high", gap["high"]), ("se", gap["runs_se"])):
        assert found("0 1", "base", "hard/4/heldout/trained_minus_this", field) == pytest.approx(value, abs=1e-5)
    ten = folder["pools"]["random/10"]
    assert found("0 1", "ground truth", "random/10/training/accuracy/grey") == pytest.approx(
        ten["ground truth"]["training/accuracy/grey"]["mean"], abs=1e-5)
    assert found("1", "trained", "random/10/training/gap") == pytest.approx(
        ten["trained"]["training/gap"]["runs"][1], abs=1e-5)
    rows = read_rows(tmp_path / "transfer.csv")
    assert not [row for row in rows if "/accuracy/" in row.figure and "random/10" not in row.figure]
    assert not find(rows, speaker="ground truth", figure=f"{name}/hard/4/training/gap")
    cells = read_cells(tmp_path)
    assert [cell.seed for cell in cells] == ["0", "0 1", "1"] and cells[0].config_hash != cells[2].config_hash
    assert all(cell.command == result["command"] and cell.commit == result["commit"] for cell in cells)


def test_the_command_keeps_figures_and_picture(game_run, home, tmp_path, monkeypatch):
    run = shutil.copytree(game_run, tmp_path / "run")
    monkeypatch.setattr(transfer, "keep", functools.partial(transfer.keep, folder=tmp_path / "results"))
    monkeypatch.setattr(transfer, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["transfer", str(run), "--pools", "1", "--data", "combos", "--keep", "mine"])
    commands.transfer()
    result = json.loads((run / "transfer.json").read_text())["figures"]["data"]["combos"]["pools"]
    found = look_up("transfer", "mine", "0", "trained", "combos/hard/4/training/gap", "low", tmp_path / "results")
    assert found == pytest.approx(result["hard/4"]["trained"]["training/gap"]["low"], abs=1e-5)
    assert (tmp_path / "results" / "transfer" / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_the_printed_table_has_ten_candidates_and_intervals(done):
    lines = [line for line in done[1].splitlines() if line.startswith("|")]
    assert lines[0].startswith("| data | candidates | speaker | training/accuracy/colour |")
    assert "| training/trained minus this |" in lines[0] and "heldout/gap" in lines[0]
    rows = [line.split(" | ") for line in lines[2:]]
    who = ("base", "trained", "ground truth", "best of 8", "contrastive decoding")
    assert [row[1:3] for row in rows] == [[kind, speaker] for kind in ("random", "hard") for speaker in who]
    assert all("[" in row[3] and row[0].startswith("| folder:") for row in rows)


@pytest.mark.parametrize("arguments, message", [(["run", "--pools", "0"], "at least 1"),
                                                (["eval.images=3"], "no run named"), (["no/run"], "is not a run")])
def test_a_wrong_command_ends_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["transfer", *arguments])
    with pytest.raises(SystemExit) as end:
        run_main(commands.transfer)
    printed = capsys.readouterr().err
    assert end.value.code == 2 and message in printed and printed.startswith("error: ") and printed.count("\n") == 1


def test_runs_must_be_seeds_of_one_game(game_run, caption_run, home):
    first, blur = load_run(game_run), load_run(game_run, ["seed=1", "listeners.1.perception=blur"])
    transfer._check([first, load_run(game_run, ["seed=1"])])
    for runs, message in (([first, blur], "other listeners or data"), ([first, first], "same seed"),
                          ([load_run(caption_run)], "has no listeners")):
        with pytest.raises(DixitError, match=message):
            transfer._check(runs)
