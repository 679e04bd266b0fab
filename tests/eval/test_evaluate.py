"""Evaluation: metrics against numbers worked out by hand, and a whole evaluation of a tiny run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from dixit.common import DixitError
from dixit.training.runs import load_run
from eval import evaluate, metrics, seeds
from eval.tables import find, find_cell, look_up, read_rows


def test_mean_and_standard_error_by_hand():
    # Mean 2.5; variance (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5/3; error sqrt(5/3 / 4).
    assert metrics.mean_and_error([1.0, 2.0, 3.0, 4.0]) == {"mean": 2.5, "se": pytest.approx(math.sqrt(5 / 12)), "n": 4}
    assert metrics.mean_and_error(torch.tensor([7.0])) == {"mean": 7.0, "se": 0.0, "n": 1}


def test_distinct_by_hand():
    texts = ["a red circle", "A red star."]
    assert metrics.distinct(texts, 1) == pytest.approx(4 / 6)
    assert metrics.distinct(texts, 2) == pytest.approx(3 / 4)  # a-red twice, red-circle, red-star
    assert metrics.distinct(["one", ""], 2) == 0.0


def test_vocabulary_and_most_repeated_by_hand():
    texts = ["red", "Red, blue", "red"]
    assert metrics.vocabulary(texts) == 2
    assert metrics.most_repeated(texts) == pytest.approx(2 / 3) and metrics.most_repeated([]) == 0.0


def test_word_class_rates_by_hand():
    rates = metrics.word_class_rates(["a red circle", "top left, redder", "Blue"])
    assert rates["colour"].tolist() == [1, 0, 1] and rates["shape"].tolist() == [1, 0, 0]
    assert rates["position"].tolist() == [0, 1, 0] and rates["texture"].tolist() == [0, 0, 0]


def test_recall_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.7, 0.7, 0.7]])
    assert metrics.recall_at(similarity, 1).tolist() == [1, 0, 0]  # a tie counts against the caption
    assert metrics.recall_at(similarity, 2).tolist() == [1, 1, 0]
    assert metrics.recall_at(similarity, 3).tolist() == [1, 1, 1]


def figure_rows(gap: float, first: float, heldout: float, perplexity: float) -> dict:
    def cell(x: float) -> dict:
        return {"mean": x, "se": 0.1, "n": 9}
    return {"training/gap": cell(gap), "training/accuracy/colour": cell(first), "heldout/gap": cell(heldout),
            "perplexity": cell(perplexity), "most_repeated": 0.1}


def test_claims_over_seeds_by_hand():
    runs = [{"figures": {"base": figure_rows(0.1, 0.6, 0.1, 50.0), "oracle": figure_rows(0.5, 0.8, 0.5, 50.0),
                         "trained": figure_rows(gap, 0.55, 0.2, 120.0)}} for gap in (0.4, 0.5)]
    found = seeds.claims(runs)
    assert found["share of the oracle's gap"]["mean"] == pytest.approx(0.9)
    assert found["share of the oracle's gap"]["se"] == pytest.approx(0.1)  # 0.8 and 1.0
    assert found["gap above the base speaker's"]["mean"] == pytest.approx(0.35)
    assert found["first listener's accuracy above the base speaker's"]["mean"] == pytest.approx(-0.05)
    assert found["held-out gain over training gain"]["mean"] == pytest.approx((0.1 / 0.3 + 0.1 / 0.4) / 2)
    assert [seeds.holds(claim, figure["mean"]) for claim, figure in found.items()] == [True, True, True, False, False,
                                                                                       True]
    assert "| gap above the base speaker's | 0.35 ± 0.05 | >= 0.2 | yes |" in seeds.claims_table(found)
    assert seeds.claims([{"figures": {"trained": figure_rows(0.1, 0.5, 0.1, 1.0)}}]) == {}
    assert seeds.combine(runs)["trained"]["training/gap"]["mean"] == pytest.approx(0.45)


@pytest.fixture(scope="module")
def results(game_run: Path, command, tmp_path_factory) -> Path:
    """A copy of the tiny game, evaluated by the command."""
    run = Path(shutil.copytree(game_run, tmp_path_factory.mktemp("evaluated") / "run"))
    done = command("-m", "eval.evaluate", run, "eval.images=20")
    assert done.returncode == 0, done.stderr
    assert "| trained |" in done.stdout and "±" in done.stdout
    return run


def test_results_say_how_they_came_about(results):
    found = json.loads((results / "results.json").read_text())
    assert "eval.evaluate" in found["command"] or "evaluate.py" in found["command"]
    assert found["command"].endswith("eval.images=20")
    assert len(found["config_hash"]) == 12 and found["commit"] and found["seeds"] == {"run": 0, "eval": 1234}
    assert found["wall_seconds"] > 0 and 0.05 < found["peak_memory_gb"] < 50


def test_every_speaker_has_every_figure_with_its_error(results):
    figures = json.loads((results / "results.json").read_text())["figures"]
    assert {"base", "trained", "ground truth", "oracle"} <= set(figures)
    wanted = [f"{group}/{kind}" for group in ("training", "heldout")
              for kind in ("accuracy/colour", "accuracy/grey", "logp/colour", "logp/grey", "gap", "reward")]
    for name, row in figures.items():
        for key in [*wanted, "recall@1", "recall@5", "length", "perplexity", "says/colour", "says/shape"]:
            assert math.isfinite(row[key]["mean"]) and row[key]["se"] >= 0 and row[key]["n"] == 20, (name, key)
        for key in ("distinct_1", "distinct_2", "most_repeated"):
            assert 0 <= row[key] <= 1
        for group in ("training", "heldout"):
            gap = row[f"{group}/accuracy/colour"]["mean"] - row[f"{group}/accuracy/grey"]["mean"]
            assert row[f"{group}/gap"]["mean"] == pytest.approx(gap, abs=1e-6)
            reward = row[f"{group}/logp/colour"]["mean"] - row[f"{group}/logp/grey"]["mean"]
            assert row[f"{group}/reward"]["mean"] == pytest.approx(reward, abs=1e-4)
    assert abs(figures["base"]["kl_to_base"]["mean"]) < 1e-5 < abs(figures["trained"]["kl_to_base"]["mean"])
    assert figures["oracle"]["says/colour"]["mean"] == 1 and figures["oracle"]["says/shape"]["mean"] == 0
    assert figures["ground truth"]["says/shape"]["mean"] == 1


def test_captions_and_picks_fit_the_figures(results):
    found = json.loads((results / "results.json").read_text())["figures"]
    picks = json.loads((results / "results_captions.json").read_text())
    assert all(row[0] == i and len(set(row)) == 4 for i, row in enumerate(picks["pools"])) and len(picks["pools"]) == 20
    for name in found:
        texts, pick = picks[name]["texts"], torch.tensor(picks[name]["pick"])
        assert len(texts) == 20 and pick.shape == (2, 20)
        silent = torch.tensor([not t for t in texts])  # nothing said: all four candidates tie
        right = torch.where(silent, 1 / 4, (pick == 0).double()).mean(1).tolist()
        for value, listener in zip(right, ("colour", "grey"), strict=True):
            assert found[name][f"training/accuracy/{listener}"]["mean"] == pytest.approx(value)
        target = torch.tensor(picks[name]["p_target"]).double().log().mean(1)
        assert float(target[0]) == pytest.approx(found[name]["training/logp/colour"]["mean"], abs=1e-4)


def test_the_same_seed_gives_the_same_figures(results, home):
    run = load_run(results)
    dataset = evaluate.dataset_of(run.config, "test", 20)
    figures, picks = evaluate.measure(run, dataset, evaluate.generate_captions(run, dataset))
    stored = json.loads((results / "results.json").read_text())["figures"]
    for name, row in figures.items():
        for key, value in row.items():
            old = stored[name][key]
            assert (value["mean"] if isinstance(value, dict) else value) == pytest.approx(
                old["mean"] if isinstance(value, dict) else old, abs=1e-6), (name, key)
    assert picks == json.loads((results / "results_captions.json").read_text())


def test_perplexity_is_that_of_the_llm_alone(game_run, home):
    """A caption's log-probability behind the start token, by the textbook path."""
    speaker = load_run(game_run).speaker
    tokens, mask = speaker.encode(["a big red circle", "blue"])
    found = speaker.perplexity_logp(tokens, mask)
    behind = torch.cat([torch.full((2, 1), speaker.start), tokens], 1)
    with torch.no_grad():
        logp = speaker.llm(input_ids=behind).logits[:, :-1].log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
    torch.testing.assert_close(found, logp * mask, atol=1e-5, rtol=0)


def test_too_few_images_for_a_pool_are_refused(game_run, home):
    run = load_run(game_run)
    with pytest.raises(DixitError, match="fewer than game.candidates 4"):
        evaluate.dataset_of(run.config, "test", 3)


def test_combos_can_be_evaluated(game_run, home):
    run = load_run(game_run)
    dataset = evaluate.dataset_of(run.config, "combos", 8)
    figures, _ = evaluate.measure(run, dataset, evaluate.generate_captions(run, dataset))
    assert figures["trained"]["training/gap"]["n"] == 8


def test_the_table_has_a_row_for_every_speaker():
    rows = {"base": {"training/accuracy/colour": {"mean": 0.5, "se": 0.125}, "most_repeated": 0.25},
            "oracle": {"training/accuracy/colour": {"mean": 1.0, "se": 0.0}}}
    lines = evaluate.table(rows).splitlines()
    assert lines[0] == "| speaker | training/accuracy/colour | most_repeated |"
    assert lines[2:] == ["| base | 0.50 ± 0.12 | 0.25 |", "| oracle | 1.00 ± 0.00 |  |"]


def test_runs_are_kept_each_and_together(results, tmp_path):
    """Two seeds of the default experiment: the rows of each run and the mean over both."""
    one = json.loads((results / "results.json").read_text())
    two = json.loads(json.dumps(one))
    two["seeds"]["run"] = 1
    two["figures"]["trained"]["training/gap"]["mean"] += 0.2
    seeds.keep("colour_vs_grey", [one, two], tmp_path)
    gap = one["figures"]["trained"]["training/gap"]["mean"]
    for seed, mean in (("0", gap), ("1", gap + 0.2), ("0 1", gap + 0.1)):
        assert look_up("default", "colour_vs_grey", seed, "trained", "training/gap", folder=tmp_path) == pytest.approx(
            mean, abs=1e-5)
    assert look_up("default", "colour_vs_grey", "0 1", "trained", "training/gap", "se", tmp_path) == pytest.approx(0.1)
    cell = find_cell("default", "colour_vs_grey", "0", tmp_path)
    assert cell.command == one["command"] and cell.config_hash == one["config_hash"]
    assert cell.training_commit == one["training"]["commit"] and one["training"]["command"] in cell.note
    assert not find(read_rows(tmp_path / "default.csv"), figure="distinct_1")
