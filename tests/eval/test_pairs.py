"""The table of pairs, from cells to page, and the speakers that need no training."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dixit.common import DixitError, read_json
from dixit.config import Config, SpeakerConfig, load_config, settings_hash
from dixit.training.candidates import draw_candidates
from dixit.training.runs import load_run, make_listeners
from eval import commands, pairs
from eval.baselines import best_of, contrastive, mean_reward, untrained_speakers
from eval.evaluate import dataset_of, generate_captions, measure
from eval.metrics import holm
from eval.pages import corrected, results_page, summary
from eval.pairs import (
    CellResult,
    ceilings,
    keep,
    overrides_of,
    path_of,
    reason_to_run,
    run_cell,
    variant_name,
)
from eval.tables import RESULTS, Cell, Row, find, find_cell, look_up, over_seeds, read_cells, read_rows


def result(seed: int, base: float, trained: float, se: float = 0.02, pair: str = "p") -> CellResult:
    def figure(mean: float) -> dict:
        return {"mean": mean, "se": se, "n": 100}
    cell = Cell("pairs", pair, str(seed), f"scripts/run_pairs p --seeds {seed}", "0123456789ab", "abc", "def", 2.5,
                "60 steps, 100 images")
    return CellResult(cell,
                      {"base": {"training/gap": figure(base), "faithful/words": figure(0.8),
                                "training/accuracy/one": figure(0.5), "bleu_4": 0.2},
                       "trained": {"training/gap": figure(trained), "faithful/words": figure(0.72),
                                   "training/gap_over_base": figure(trained - base),
                                   "heldout/gap_over_base": figure((trained - base) / 2),
                                   "training/accuracy/one": figure(0.7)},
                       "oracle": {"training/gap": figure(base + 0.04)}},
                      {"seed": str(seed), "gained": [["red", 4.0]], "lost": [["<big>", -3.0]],
                       "rounds": [{"base": {"caption": "a", "found_by": []},
                                   "trained": {"caption": f"red {seed}", "found_by": ["one"]}}]})


def rows_of(cells: list[CellResult], folder: Path) -> list[Row]:
    for one in cells:
        keep(one, folder)
    return read_rows(folder / "pairs.csv")


def test_the_error_over_seeds_keeps_that_of_the_shared_images(tmp_path):
    rows = rows_of([result(0, 0.1, 0.3), result(1, 0.1, 0.5)], tmp_path)
    found = over_seeds(rows, "trained", "training/gap")
    assert found["mean"] == pytest.approx(0.4)
    assert found["se"] == pytest.approx(math.hypot(0.1, 0.02))  # between seeds .1, from the images .02
    assert over_seeds(rows, "oracle", "heldout/gap") is None
    assert over_seeds(rows, "oracle", "training/gap")["se"] == pytest.approx(0.02)  # one row for both seeds
    assert over_seeds(find(rows, speaker="base")[:-1], "base", "training/accuracy/one") is None  # not of every seed


def test_significance_learnability_and_what_held_out_listeners_keep(tmp_path):
    steady = summary(rows_of([result(0, 0.1, 0.3), result(1, 0.1, 0.3)], tmp_path / "steady"))
    torn = summary(rows_of([result(0, 0.1, 0.0), result(1, 0.1, 0.4)], tmp_path / "torn"))
    assert steady["seeds"] == 2 and steady["significant"] and not torn["significant"]
    assert steady["kept"]["mean"] == pytest.approx(0.5) and torn["kept"] is None
    assert steady["kept"]["se"] == pytest.approx(math.hypot(0.02, 0.5 * 0.02) / 0.2)  # changes .2 ± .02 and .1 ± .02
    assert steady["words"] == pytest.approx(0.9) and steady["phrases"] is None
    assert steady["learnable"] is False  # the oracle gains .04 only
    assert steady["oracle_heldout_change"] is None
    with_heldout = result(0, 0.1, 0.3)
    with_heldout.figures["base"]["heldout/gap"] = {"mean": 0.3, "se": 0.02}
    with_heldout.figures["oracle"]["heldout/gap"] = {"mean": 0.45, "se": 0.02}
    found = summary(rows_of([with_heldout], tmp_path / "heldout"))
    assert found["oracle_heldout_change"] == pytest.approx(0.15)


def test_p_values_are_corrected_for_the_number_of_pairs():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R's p.adjust(method="holm")
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == []
    changes = [{"mean": 1.96, "se": 1.0}, {"mean": -3.0, "se": 1.0}, None, {"mean": 1.0, "se": 0.0}]
    p = corrected([{"change": change} for change in changes])
    assert p[:2] == pytest.approx([0.05, 0.0054], abs=1e-4) and p[2:] == [None, None]


def test_the_page_comes_from_the_tables_alone(tmp_path):
    rows = rows_of([result(1, 0.1, 0.3), result(0, 0.1, 0.3), result(0, 0.1, 0.2, pair="p+game.kl_cost=1")], tmp_path)
    page = results_page(tmp_path)
    row = ("| p | 2 | +0.10 ± 0.02 | +0.30 ± 0.02 | +0.14 ± 0.02 | +0.20 ± 0.02 | yes | <0.001 | +0.10 ± 0.02 "
           "| 50 ± 11 % |  | no | 0.90 |  |")
    assert row in page
    assert "red +4.0" in page and "nobody" in page and "seeds 0, 1; 60 steps, 100 images" in page
    assert "trained “red 0” → one" in page and "red 1" not in page  # examples of the first seed, whichever was last
    assert results_page(tmp_path / "absent").count("\n| ") == 1  # the head of an empty table
    assert find(rows, speaker="oracle", seed="") and not find(rows, speaker="oracle", seed="0")
    assert not find(rows, figure="bleu_4")
    assert read_json(tmp_path / "examples.json").keys() == {"p"}  # none of a variant


def test_the_page_in_the_repository_is_that_of_its_tables():
    assert (RESULTS.parent / "RESULTS.md").read_text(encoding="utf-8") == results_page()


def test_every_kept_cell_of_a_pair_is_of_todays_config():
    """The hash in cells.csv is that of the pair's YAML file with the changes that the cell's command names."""
    for cell in (cell for cell in read_cells() if cell.experiment == "pairs" and cell.seed):
        pair, *changes = cell.condition.split("+")
        config = load_config(path_of(pair), overrides_of(int(cell.seed), False, changes))
        assert cell.config_hash == settings_hash(config), cell


def test_a_cell_is_made_anew_only_if_its_config_changes(home, tmp_path, monkeypatch):
    path = tmp_path / "p.yaml"
    shutil.copy(home.game_config, path)

    def reason(baselines: bool = False) -> str:
        return reason_to_run("p", 0, settings_hash(load_config(path, overrides_of(0, False, []))), baselines, tmp_path)

    assert reason() == "not made yet"
    one = result(0, 0.1, 0.3)
    digest = settings_hash(load_config(path, overrides_of(0, False, [])))
    keep(dataclasses.replace(one, cell=dataclasses.replace(one.cell, config_hash=digest)), tmp_path)
    assert reason() == ""
    assert reason(baselines=True) == "made without --baselines at abc"
    monkeypatch.setattr("dixit.config.Config", dataclasses.make_dataclass(  # a new key with a default
        "Config", [("novelty", float, 0.5)], bases=(Config,), frozen=True))
    assert reason() == ""
    monkeypatch.undo()
    path.write_text(path.read_text().replace("oracle:\n- colour", "oracle:\n- shape"))
    assert reason() == "its config has changed since abc"


def test_the_command_says_which_cell_is_made_anew_and_skips_the_others(home, game_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "pairs").mkdir()
    path = Path(shutil.copy(home.game_config, tmp_path / "pairs" / "p.yaml"))
    runs = tmp_path / "runs"
    shutil.copytree(game_run, runs / "p_0")
    monkeypatch.setattr(pairs, "configs_folder", lambda: tmp_path)
    monkeypatch.setattr(pairs, "PAIRS", ["p"])
    monkeypatch.setattr("sys.argv", ["run_pairs", "p", "--seeds", "0", "--quick", "--runs", str(runs)])
    one = result(0, 0.1, 0.3)
    digest = settings_hash(load_config(path, overrides_of(0, True, [])))
    keep(dataclasses.replace(one, cell=dataclasses.replace(one.cell, config_hash=digest)), runs / "results")
    commands.pairs()
    assert "seed 0:" not in capsys.readouterr().out and "| p | 1 |" in (runs / "RESULTS.md").read_text()
    path.write_text(path.read_text().replace("oracle:\n- colour", "oracle:\n- shape"))
    with pytest.raises(DixitError, match="was trained with another"):  # the run of the old config is still there
        commands.pairs()
    assert "p, seed 0: its config has changed since abc" in capsys.readouterr().out


def test_the_hash_of_settings():
    config = Config()
    assert len(settings_hash(config)) == 12 and int(settings_hash(config), 16) >= 0
    same = dataclasses.replace(config, name="other", out="there", speaker=SpeakerConfig(init="runs/base"),
                               train=dataclasses.replace(config.train, timeout=1, log_max_mb=1))
    assert settings_hash(same) == settings_hash(config)
    for key, value in (("seed", 1), ("oracle", ("colour",)), ("train", dataclasses.replace(config.train, lr=1.0))):
        assert settings_hash(dataclasses.replace(config, **{key: value})) != settings_hash(config)


def test_a_cell_of_a_trained_run(home, train, game_run, caption_run, tmp_path):
    shutil.copytree(game_run, tmp_path / "game_0")
    found = run_cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[], baselines=False)
    again = run_cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[], baselines=False)
    assert found.figures == again.figures and found.examples == again.examples
    run = load_run(game_run)
    dataset = dataset_of(run.config, "test", 24)
    fresh, _ = measure(run, dataset, generate_captions(run, dataset))
    assert found.figures["base"]["training/gap"] == fresh["base"]["training/gap"]
    change = found.figures["trained"]["training/gap_over_base"]["mean"]
    gaps = [found.figures[speaker]["training/gap"]["mean"] for speaker in ("trained", "base")]
    assert change == pytest.approx(gaps[0] - gaps[1], abs=1e-6)
    assert len(found.examples["rounds"]) == 3 and {"base", "trained", "oracle"} <= found.examples["rounds"][0].keys()
    assert found.cell.command == "scripts/run_pairs game --seeds 0" and found.cell.note == "4 steps, 24 images"
    assert "faithful/words" in found.figures["oracle"] and "best of 8" not in found.figures

    changed = "game.kl_cost=0.1"
    assert variant_name("game", [changed]) == f"game+{changed}"
    shutil.copytree(game_run, tmp_path / f"game+{changed}_0")
    with pytest.raises(DixitError, match="was trained with another game than this cell names"):
        run_cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[changed], baselines=True)
    shutil.rmtree(tmp_path / f"game+{changed}_0")
    train(home.game_config, tmp_path / f"game+{changed}_0", changed, f"speaker.init={caption_run}")
    other = run_cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[changed], baselines=True)
    assert other.figures["best of 8"]["training/gap"]["n"] == 24
    assert other.cell.command == f"scripts/run_pairs game --seeds 0 --baselines --set {changed}"
    for one in found, other:
        keep(one, tmp_path)
    for condition, digest, baselines, wanted in (
            ("game", found.cell.config_hash, False, ""), (f"game+{changed}", other.cell.config_hash, True, ""),
            ("game", found.cell.config_hash, True, "made without --baselines"),
            ("game", other.cell.config_hash, False, "its config has changed since")):
        assert reason_to_run(condition, 0, digest, baselines, tmp_path).startswith(wanted)
        assert bool(reason_to_run(condition, 0, digest, baselines, tmp_path)) == bool(wanted)
    gap = look_up("pairs", "game", "0", "trained", "training/gap", folder=tmp_path)
    assert gap == pytest.approx(gaps[0], abs=1e-5)
    assert find_cell("pairs", "game", "0", tmp_path) == found.cell


def test_captions_are_generated_once_for_the_same_speaker_and_images(home, train, game_run, tmp_path):
    folder = home.cache / "captions"
    run = load_run(game_run)
    dataset = dataset_of(run.config, "test", 24)
    first = generate_captions(run, dataset)
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = generate_captions(load_run(game_run), dataset)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == kept
    assert again["trained"]["texts"] == first["trained"]["texts"]
    assert torch.equal(again["trained"]["kl"], first["trained"]["kl"]) and first["base"]["kl"].abs().max() < 1e-4
    with torch.no_grad():
        next(run.speaker.trained.parameters()).add_(0.1)
    generate_captions(run, dataset)  # another speaker's, the same base speaker's
    assert len(set(folder.iterdir()) - set(kept)) == 1


def test_a_speaker_can_be_tried_on_a_strength_between_those_it_was_trained_against():
    config = load_config(path_of("sharp_vs_two_blurs"))
    trained, heldout = ([step.blur for c in group if c.weight < 0 for step in c.perception]
                        for group in (config.listeners, config.heldout))
    assert len(trained) == 2 and all(min(trained) < strength < max(trained) for strength in heldout) and heldout


def test_recipes_of_perception_are_among_the_pairs():
    used = {key for pair in pairs.ON_SCENES for c in load_config(path_of(pair)).listeners
            if not isinstance(c.perception, str) for step in c.perception for key in step.given}
    assert {"blur", "jpeg", "noise", "rotate_hue", "colour_blind", "cataract"} <= used


def test_an_unknown_pair_is_named(command):
    done = command("-m", "eval.pairs", "colour_vs_gray")
    assert done.returncode == 2 and "unknown pair 'colour_vs_gray'" in done.stderr and "Traceback" not in done.stderr


def test_more_samples_are_judged_better_and_one_is_the_first(home, game_run):
    run = load_run(game_run)
    dataset = dataset_of(run.config, "test", 12)
    listeners = make_listeners(run.config.listeners, dataset)
    everyone = np.arange(12)
    pools = draw_candidates(np.repeat(everyone, 3), everyone, 4, "t").unflatten(0, (-1, 3))
    with torch.no_grad():
        prefix = run.base(torch.randn(12, *_patches(run), generator=torch.Generator().manual_seed(0)))
        rewards = [float(mean_reward(run.config, listeners, best_of(run, prefix, listeners, pools, n, 0), pools).mean())
                   for n in (1, 16)]
        assert rewards[1] > rewards[0]
        greedy = run.speaker.decode(*run.speaker.sample(prefix)[:2])
        assert contrastive(run, prefix, listeners, pools, 3, 0.0) == greedy  # without listeners: plain decoding
        steered = contrastive(run, prefix, listeners, pools, 3, 1e4)
    rewards = [float(mean_reward(run.config, listeners, texts, pools).mean()) for texts in (steered, greedy)]
    assert rewards[0] > rewards[1]


def _patches(run) -> tuple[int, int]:
    return run.eyes.patches(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "colour").shape[1:]


def test_baselines_speak_for_every_image(home, game_run):
    run = load_run(game_run)
    dataset = dataset_of(run.config, "test", 10)
    captions = untrained_speakers(run, dataset, samples=2, tokens_tried=2)
    assert set(captions) == {"best of 2", "contrastive decoding"}
    assert all(len(row["texts"]) == 10 for row in captions.values())
    assert captions == untrained_speakers(run, dataset, samples=2, tokens_tried=2)


def test_ceilings_are_those_of_the_evaluation(home, game_run, tmp_path):
    """The trained speaker of a run as base: its gap and the oracle's are those that its own cell gives."""
    shutil.copytree(game_run, tmp_path / "game_0")
    figures = run_cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[], baselines=False).figures
    ceilings(game_run, [game_run / "config.yaml"], tmp_path / "results")
    name = load_run(game_run).config.name
    for ours, theirs in ("base", "trained"), ("oracle", "oracle"), ("ground truth", "ground truth"):
        for group in ("training", "heldout"):
            found = look_up("ceilings", name, "0", ours, f"{group}/gap", folder=tmp_path / "results")
            assert found == pytest.approx(figures[theirs][f"{group}/gap"]["mean"], abs=1e-5)
    page = results_page(tmp_path / "results")
    assert "## Ceilings" in page and " | colour |" in page  # what the oracle names
