"""The table of pairs, from cells to page, and the speakers that need no training."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from dixit.common import DixitError, read_json
from dixit.models.listeners import make_listeners
from dixit.training.candidates import draw_candidates
from dixit.training.runs import load_run
from eval.baselines import best_of, contrastive, judge, untrained_speakers
from eval.evaluate import dataset_of, measure, speak
from eval.pairs import ceilings, cell, finished, known, over_seeds, results_page, summary, variant


def made(seed: int, base: float, trained: float, se: float = 0.02) -> dict:
    def figure(mean: float) -> dict:
        return {"mean": mean, "se": se, "n": 100}
    return {"pair": "p", "seed": seed, "steps": 60, "images": 100, "gained": [["red", 4.0, 1, 9]],
            "lost": [["<big>", -3.0, 9, 1]], "rounds": [{"image": 0, "base": {"says": "a", "found_by": []},
                                                       "trained": {"says": "red", "found_by": ["one"]}}],
            "figures": {"base": {"training/gap": figure(base), "faithful/words": figure(0.8),
                                 "training/accuracy/one": figure(0.5)},
                        "trained": {"training/gap": figure(trained), "faithful/words": figure(0.72),
                                    "training/gap_over_base": figure(trained - base),
                                    "heldout/gap_over_base": figure((trained - base) / 2),
                                    "training/accuracy/one": figure(0.7)},
                        "oracle": {"training/gap": figure(base + 0.04)}}}


def test_the_error_over_seeds_keeps_that_of_the_shared_images():
    cells = [made(0, 0.1, 0.3), made(1, 0.1, 0.5)]
    found = over_seeds(cells, "trained", "training/gap")
    assert found["mean"] == pytest.approx(0.4)
    assert found["se"] == pytest.approx(math.hypot(0.1, 0.02))  # between seeds .1, from the images .02
    assert over_seeds(cells, "oracle", "heldout/gap") is None


def test_significance_learnability_and_what_held_out_listeners_keep():
    steady = summary("p", [made(0, 0.1, 0.3), made(1, 0.1, 0.3)])
    torn = summary("p", [made(0, 0.1, 0.0), made(1, 0.1, 0.4)])
    assert steady["significant"] and not torn["significant"]
    assert steady["kept"]["mean"] == pytest.approx(0.5) and torn["kept"] is None
    assert steady["kept"]["se"] == pytest.approx(math.hypot(0.02, 0.5 * 0.02) / 0.2)  # changes .2 ± .02 and .1 ± .02
    assert steady["words"] == pytest.approx(0.9) and steady["phrases"] is None
    assert steady["learnable"] is False  # the oracle gains .04 only
    assert steady["oracle held"] is None
    heard = made(0, 0.1, 0.3)
    heard["figures"]["base"]["heldout/gap"] = {"mean": 0.3, "se": 0.02}
    heard["figures"]["oracle"]["heldout/gap"] = {"mean": 0.45, "se": 0.02}
    assert summary("p", [heard])["oracle held"] == pytest.approx(0.15)


def test_the_page_comes_from_the_cells_alone(tmp_path):
    for seed in (0, 1):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"seed_{seed}.json").write_text(json.dumps(made(seed, 0.1, 0.3)))
    page = results_page(tmp_path)
    row = ("| p | 2 | +0.10 ± 0.02 | +0.30 ± 0.02 | +0.14 ± 0.02 | +0.20 ± 0.02 | yes | +0.10 ± 0.02 | 50 ± 11 % "
           "|  | no | 0.90 |  |")
    assert row in page
    assert "red +4.0" in page and "trained “red” → one" in page and "nobody" in page
    assert results_page(tmp_path / "absent").count("\n| ") == 1  # the head of an empty table


def test_a_cell_of_a_trained_run(home, train, game_run, caption_run, tmp_path):
    shutil.copytree(game_run, tmp_path / "game_0")
    found = cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[], baselines=False)
    again = cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[], baselines=False)
    assert found["figures"] == again["figures"]
    run = load_run(game_run)
    fresh, _ = measure(run, dataset_of(run, run.config.data, "test", 24), speak(run, dataset_of(
        run, run.config.data, "test", 24)))  # the base speaker's captions are kept, and are what it says
    assert found["figures"]["base"]["training/gap"] == fresh["base"]["training/gap"]
    change = found["figures"]["trained"]["training/gap_over_base"]["mean"]
    gaps = [found["figures"][speaker]["training/gap"]["mean"] for speaker in ("trained", "base")]
    assert change == pytest.approx(gaps[0] - gaps[1], abs=1e-6)
    assert len(found["rounds"]) == 3 and {"base", "trained", "oracle"} <= found["rounds"][0].keys()
    assert found["command"] == "scripts/run_pairs game --seeds 0"
    assert "faithful/words" in found["figures"]["oracle"] and "best of 8" not in found["figures"]

    changed = "game.kl_cost=0.1"
    assert variant("game", [changed]) == f"game+{changed}"
    shutil.copytree(game_run, tmp_path / f"game+{changed}_0")
    with pytest.raises(DixitError, match="was trained with another game than this cell names"):
        cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[changed], baselines=True)
    shutil.rmtree(tmp_path / f"game+{changed}_0")
    train(home.game_config, tmp_path / f"game+{changed}_0", changed, f"speaker.init={caption_run}")
    other = cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[changed], baselines=True)
    assert other["figures"]["best of 8"]["training/gap"]["n"] == 24
    assert other["command"] == f"scripts/run_pairs game --seeds 0 --baselines --set {changed}"
    for file, made in ("one.json", found), ("two.json", other):
        (tmp_path / file).write_text(json.dumps(made))
    assert [finished(tmp_path / file, baselines=True) for file in ("one.json", "two.json", "none.json")] == [
        False, True, False]
    assert finished(tmp_path / "one.json", baselines=False)


def test_the_base_speakers_captions_are_made_anew_for_another_base(home, train, game_run, caption_run, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(caption_run, base)
    train(home.game_config, tmp_path / "game_0", f"speaker.init={base}")
    run = load_run(tmp_path / "game_0")
    dataset = dataset_of(run, run.config.data, "test", 24)
    kept = tmp_path / "said.json"
    first = known(kept, run, dataset)
    kept.write_text(json.dumps(read_json(kept) | {"texts": ["kept"]}))
    assert known(kept, run, dataset) == ["kept"]
    (base / "train.json").write_text(json.dumps(read_json(base / "train.json") | {"wall_seconds": 1e6}))
    assert known(kept, run, dataset) == first


def test_an_unknown_pair_is_named(command):
    done = command("-m", "eval.pairs", "colour_vs_gray")
    assert done.returncode == 2 and "unknown pair 'colour_vs_gray'" in done.stderr and "Traceback" not in done.stderr


def test_more_samples_are_judged_better_and_one_is_the_first(home, game_run):
    run = load_run(game_run)
    dataset = dataset_of(run, run.config.data, "test", 12)
    listeners = make_listeners(run.config.listeners, dataset)
    everyone = np.arange(12)
    pools = draw_candidates(np.repeat(everyone, 3), everyone, 4, "t").unflatten(0, (-1, 3))
    with torch.no_grad():
        prefix = run.base(torch.randn(12, *_patches(run), generator=torch.Generator().manual_seed(0)))
        rewards = [float(judge(run, listeners, best_of(run, prefix, listeners, pools, n, 0), pools).mean())
                   for n in (1, 16)]
        assert rewards[1] > rewards[0]
        greedy = run.speaker.decode(*run.speaker.sample(prefix)[:2])
        assert contrastive(run, prefix, listeners, pools, 3, 0.0) == greedy  # without listeners: plain decoding
        steered = contrastive(run, prefix, listeners, pools, 3, 1e4)
    assert float(judge(run, listeners, steered, pools).mean()) > float(judge(run, listeners, greedy, pools).mean())


def _patches(run) -> tuple[int, int]:
    return run.clip.patches(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "colour").shape[1:]


def test_baselines_speak_for_every_image(home, game_run):
    run = load_run(game_run)
    dataset = dataset_of(run, run.config.data, "test", 10)
    said = untrained_speakers(run, dataset, samples=2, tokens_tried=2)
    assert set(said) == {"best of 2", "contrastive decoding"}
    assert all(len(row["texts"]) == 10 for row in said.values())
    assert said == untrained_speakers(run, dataset, samples=2, tokens_tried=2)


def test_ceilings_are_those_of_the_evaluation(home, game_run, tmp_path):
    """The trained speaker of a run as base: its gap and the oracle's are those that its own cell gives."""
    shutil.copytree(game_run, tmp_path / "game_0")
    figures = cell(home.game_config, 0, tmp_path, threads=1, quick=False, changes=[], baselines=False)["figures"]
    found = ceilings(game_run, [game_run / "config.yaml"])
    (row,) = found["pairs"].values()
    for ours, theirs in ("base", "trained"), ("oracle", "oracle"), ("ground truth", "ground truth"):
        for group in ("training", "heldout"):
            assert row[f"{ours}/{group}"] == figures[theirs][f"{group}/gap"]
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "ceilings.json").write_text(json.dumps(found))
    assert "## Ceilings" in results_page(tmp_path / "cells")
