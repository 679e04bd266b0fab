"""Games on pictures: the oracle speaker, the figures of captions, cells of pairs and transfer, on random towers."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from towers import make_pictures, make_towers

from dixit.common import DixitError, read_json
from dixit.config import DataConfig, load_config
from dixit.data.images import load
from dixit.data.wordnet import wordnet
from dixit.models.clip import build_locked, save_clip
from dixit.training.candidates import draw_candidates
from dixit.training.runs import load_run, make_listeners
from eval import commands, forms, oracle, transfer
from eval.baselines import POOLS, mean_reward
from eval.drift import panel
from eval.evaluate import dataset_of, game_figures, generate_captions, measure
from eval.pages import OF_PICTURES, results_page
from eval.pairs import keep, run_cell
from eval.tables import look_up, put, read_cells

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def game(tmp_path_factory, tiny, train):
    """(root, config file, run) of a game on plain red and blue pictures: who knows colours against who knows things."""
    wordnet()  # read from the real cache
    root = tmp_path_factory.mktemp("oracle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(root / "cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        make_towers(root / "cache")
        save_clip(build_locked("lite0-pictures", names=True), "lite0-pictures")
        common = {
            "data": make_pictures(root / "pictures", 4), "clip": {"name": "lite0-pictures"},
            "speaker": {"llm": str(tiny.llm), "prefix": 3, "width": 32, "layers": 1, "heads": 2, "max_tokens": 6},
            "train": {"steps": 2, "batch": 4, "eval_every": 2, "save_every": 2, "weight_decay": 0.0},
            "eval": {"images": 8}}
        colours = {"name": "colours", "clip": "lite0-pictures", "domain": "colour", "knows": {"names": "none"}}
        things = {"name": "things", "clip": "lite0-pictures", "domain": "thing", "weight": -1.0}
        base, config = root / "base.yaml", root / "configs" / "pictures" / "red.yaml"
        config.parent.mkdir(parents=True)
        base.write_text(json.dumps(common | {"task": "caption"}))
        config.write_text(json.dumps(common | {
            "task": "game", "listeners": [colours, things], "oracle_clip": "lite0-pictures",
            "game": {"candidates": 4, "reward": "sub_prob"}, "policy": {"samples": 2}}))
        train(base, root / "base")
        train(config, root / "runs" / "red_0", f"speaker.init={root / 'base'}")
    return root, config, root / "runs" / "red_0"


@pytest.fixture
def here(game, monkeypatch):
    monkeypatch.setenv("DIXIT_CACHE", str(game[0] / "cache"))
    return game


def test_candidates_name_classes_at_three_levels_with_the_colours_of_the_pixels(here):
    config = load_config(here[1])
    dataset = load(config.data, "test")
    for row, concept in zip(oracle.candidate_captions(config, dataset, CPU), dataset["concept"], strict=True):
        colour = {"dog": "red", "violin": "blue"}[concept]
        assert row[-1] == f"A {colour} thing." and len(row) == len(set(row)) and 5 <= len(row) <= 19
        assert all(text[0].isupper() and text.endswith(".") for text in row)
        plain, coloured = row[:-1:2], row[1:-1:2]
        assert not any(colour in text.lower().split() for text in plain)
        assert all(colour in text.lower().split() for text in coloured)


def test_the_oracle_takes_the_caption_with_the_highest_reward(here, monkeypatch):
    config = load_config(here[1])
    dataset = load(config.data, "test")
    chosen = oracle.picture_oracle(config, dataset, CPU)
    rows, everyone = oracle.candidate_captions(config, dataset, CPU), np.arange(len(dataset))
    listeners = make_listeners(config.listeners, dataset)
    pools = draw_candidates(np.repeat(everyone, POOLS), everyone, 4, "oracle", config.eval.seed).unflatten(
        0, (-1, POOLS))
    for i, (text, row) in enumerate(zip(chosen, rows, strict=True)):
        assert text in row
        paid = mean_reward(config, listeners, row, pools[i:i + 1])
        assert float(paid[row.index(text)]) == pytest.approx(float(paid.max()), abs=1e-5)
    monkeypatch.setattr(oracle, "BATCH", 3)
    again = oracle.picture_oracle(config, dataset, CPU)
    paid, same = mean_reward(config, listeners, chosen, pools), mean_reward(config, listeners, again, pools)
    torch.testing.assert_close(paid, same, atol=1e-5, rtol=0)


def test_forms_are_one_rule_for_all_pictures(here):
    config = load_config(here[1])
    dataset = load(config.data, "test")
    captions, kinds = forms.captions_by_form(config, dataset)
    assert set(captions) == {*forms.LEVELS, *(f"colours, {level}" for level in forms.LEVELS), "colours"}
    for i, row in enumerate(oracle.candidate_captions(config, dataset, CPU)):
        assert captions["colours"][i] == row[-1] and captions["kind"][i] == oracle.caption_of(kinds[i])
        assert {texts[i] for texts in captions.values()} <= set(row)  # the oracle chooses among these and more
    logits = forms.scores_of(config, dataset, config.listeners, captions)["colours"]
    evaluated, _ = measure(load_run(here[2]), dataset, {"colours": {"texts": captions["colours"]}})
    figures = game_figures("training", config.listeners, logits, config)
    assert figures == {key: evaluated["colours"][key] for key in figures}  # on the same pools


def test_the_best_form_is_that_of_the_highest_mean_reward_of_all_pictures_or_of_a_kind():
    kinds = ["animal"] * 10 + ["food"] * 10 + ["tool"] * 2
    rewards = {"name": np.array([1.0] * 10 + [-3.0] * 10 + [9.0] * 2), "colours": np.zeros(22),
               "kind": np.array([0.5] * 10 + [-0.1] * 10 + [0.0] * 2)}
    assert forms.choose(rewards, kinds) == ("kind", {"animal": "name", "food": "colours"})  # too few tools


def test_the_figures_of_forms_are_kept(here, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["forms", str(here[1]), "--keep", "red"])
    monkeypatch.setattr(forms, "put", lambda cell, rows: put(cell, rows, tmp_path))
    commands.forms()
    assert "| oracle |" in capsys.readouterr().out
    (cell,) = read_cells(tmp_path)
    best = cell.note.split(";")[0].removeprefix("best form: ")
    for figure in ("training/gap", "training/reward"):
        shown = [look_up("forms", "red", "", form, figure, folder=tmp_path) for form in (forms.BEST, best)]
        assert shown[0] == shown[1]
    monkeypatch.setattr(sys, "argv", ["forms", str(here[1]), "oracle_clip="])
    with pytest.raises(DixitError, match="has no oracle_clip"):
        commands.forms()


def test_the_oracle_needs_a_clip_that_names_things(here, tiny):
    config = load_config(here[1], [f"oracle_clip={tiny.clip}"])
    with pytest.raises(DixitError, match="does not name things"):
        oracle.picture_oracle(config, load(config.data, "test"), CPU)


def test_the_drift_panel_has_the_oracle_and_what_captions_of_pictures_are_made_of(here):
    run = load_run(here[2])
    dataset = dataset_of(run.config, "test", 8)
    captions = generate_captions(run, dataset)
    figures, picks = panel(run, dataset, captions)
    assert set(figures["speakers"]) == {"base", "trained", "ground truth", "oracle"}
    assert picks["oracle"]["texts"] == oracle.picture_oracle(run.config, dataset, CPU)
    truth = figures["speakers"]["ground truth"]  # the classes' names
    assert truth["true_name"]["mean"] == truth["says/name"]["mean"] == truth["english"]["mean"] == 1
    assert truth["file_name"]["mean"] == truth["says/colour"]["mean"] == 0 and "invented_colour" not in truth
    assert figures["speakers"]["oracle"]["english"]["mean"] == 1 and "faithful/words" not in truth


def test_a_cell_of_pictures_keeps_these_figures_and_is_on_the_page(here, tmp_path, monkeypatch):
    root, config, _ = here
    cell = run_cell(config, 0, root / "runs", threads=1, quick=False, changes=[], baselines=False)
    keep(cell, tmp_path)
    assert "oracle" in cell.examples["rounds"][0]
    for speaker in ("trained", "ground truth", "oracle"):
        shown = cell.figures[speaker]["says/name"]["mean"]
        assert look_up("pairs", "red", "0", speaker, "says/name", folder=tmp_path) == pytest.approx(shown, abs=1e-5)
    monkeypatch.setattr("eval.pages.configs_folder", lambda: root / "configs")
    page = results_page(tmp_path)
    assert "## Pictures" in page and "(`configs/pictures/red.yaml`)" in page
    assert "\n| says/name |" in page and "\n| invented_colour |" not in page
    assert OF_PICTURES[0] == "says/name"


def test_transfer_has_the_oracle_also_with_fewer_images_than_candidates(here, tmp_path, monkeypatch, capsys):
    few = make_pictures(tmp_path / "few", 1)  # two images in each split
    assert len(load(DataConfig(**few), "test")) == 2
    monkeypatch.setattr(sys, "argv", ["transfer", str(here[2]), "--data", f"folder:{few['path']}", "--pools", "2",
                                      "--out", str(tmp_path / "out")])
    (tmp_path / "out").mkdir()
    commands.transfer()
    (result,) = read_json(tmp_path / "out" / "transfer.json")["figures"]["data"].values()
    assert set(result["pools"]) == {"random/2", "hard/2"}
    assert set(result["pools"]["hard/2"]) == {"base", "trained", "ground truth", "oracle"}
    truth = result["captions"]["ground truth"]
    assert truth["true_name"]["mean"] == 1 and truth["true_name"]["n"] == 2  # the classes' names
    assert "true_name" in capsys.readouterr().out.split("\n\n")[-2]


def test_what_captions_of_several_runs_are_made_of_is_averaged_over_the_runs(here, tmp_path):
    dataset = load(DataConfig(**make_pictures(tmp_path / "few", 1)), "test")
    right = [row["concept"] for row in dataset]
    runs = [{"base": right, "trained": right}, {"base": right, "trained": ["A teapot."] * 2, "other": right}]
    found = transfer.wording(runs, dataset)
    assert set(found) == {"base", "trained"}
    assert found["trained"]["true_name"] == {"mean": 0.5, "se": 0.5, "n": 2, "runs": [1.0, 0.0]}
    assert found["base"]["true_name"]["mean"] == 1 and found["base"]["true_name"]["se"] == 0
