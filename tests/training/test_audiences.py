"""Speakers for many audiences: observed picks, training with an audience input, and the evaluation."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from dixit.common import DixitError
from dixit.data import scenes
from dixit.data.images import load
from dixit.training import audiences, game
from dixit.training.checkpoints import trained_weights
from dixit.training.runs import load_run
from eval.audiences import audiences_of, measure_gaps, summarise, table

LISTENERS = ("listeners=[{name: colours, clip: EYE, domain: colour}, {name: shapes, clip: EYE, domain: shape}, "
             "{name: all, clip: EYE}]")
OVERRIDES = ("heldout=[]", "speaker.audience_width=10", "audiences=[[colours, shapes], [all, colours]]",
             "unseen=[[shapes, colours]]", "picks=[0, 16]")


@pytest.fixture(scope="module")
def attributes_run(tiny, train, tmp_path_factory):
    """A caption run whose adapter got the captions' attributes as an input."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train(tiny.caption_config, tmp_path_factory.mktemp("attributes"), "speaker.audience_width=10")
    yield tmp_path_factory.getbasetemp() / "attributes0"


def overrides(home, base) -> list[str]:
    return [LISTENERS.replace("EYE", str(home.clip)), *OVERRIDES, f"speaker.init={base}"]


def test_picks_tell_of_a_listener_what_it_does():
    hits = torch.zeros(2, 5, 40)
    hits[0, 1] = 1.0  # the first knows the second attribute, always; the second listener knows nothing
    hits[1, :, ::2] = 0.2
    nothing = audiences.profiles(hits, 3, [0, 0, 0], "t")
    assert torch.equal(nothing, torch.zeros(3, 2, 5))
    many = audiences.profiles(hits, 2, [20000, 20000], "t")
    expected = hits.mean(2) - audiences.PRIOR
    assert (many - expected).abs().max() < 0.01
    few = audiences.profiles(hits, 200, [4] * 200, "t")
    assert torch.equal(few, audiences.profiles(hits, 200, [4] * 200, "t"))
    # Of four picks none, one, ... name the attribute: hits and picks are then equal, so the values are known.
    values = {round((k + 0.6) / (k + 2) - 0.3, 5) for k in range(5)}
    assert {round(v, 5) for v in few[:, 0, 1].tolist()} <= values
    error = (few.mean(0) - expected).abs().sum()
    assert error < (nothing.mean(0) - expected).abs().sum()


def test_rounds_are_weighed_and_described_by_their_own_audience():
    pairs = audiences.listener_indices((("b", "a"), ("c", "b")), ["a", "b", "c"])
    assert pairs == [(1, 0), (2, 1)]
    weights = audiences.round_weights(pairs, 3)
    assert weights.T.tolist() == [[-1, 1, 0], [0, -1, 1]]
    profile = torch.arange(30.0).reshape(2, 3, 5)
    context = audiences.audience_vectors(profile, pairs)
    assert context.shape == (2, audiences.WIDTH)
    assert torch.equal(context[1], audiences.SCALE * torch.cat([profile[1, 2], profile[1, 1]]))
    hits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert game.gap(hits, weights).tolist() == [1.0, 1.0]  # who does not listen does not count


def test_captions_teach_attributes_and_leave_the_audience_to_the_game(home, train, caption_run, tmp_path):
    task = train(home.caption_config, tmp_path / "attributes", "speaker.audience_width=10",
                 f"speaker.init={caption_run}", "train.eval_every=4")
    adapter = task.speaker.trained
    start = load_file(trained_weights(caption_run))
    assert not torch.equal(adapter.queries, start["queries"]) and not adapter.audience.weight.any()
    patches = torch.randn(2, *task.store.shape[1:])
    with torch.no_grad():
        asked, other = (adapter(patches, attributes=torch.full((2, 5), t)) for t in (1.0, -1.0))
        assert not torch.allclose(asked, other)
        assert torch.equal(adapter(patches), adapter(patches, attributes=torch.zeros(2, 5)))
    assert "eval/obeys" in (tmp_path / "attributes" / "log.jsonl").read_text()
    assert scenes.mentioned_attributes("A big red circle at the top left.") == (1, 1, -1, 1, 1)
    assert scenes.mentioned_attributes("A striped thing and a plain shape.") == (-1, -1, 1, -1, -1)


def test_training_for_many_audiences(home, train, attributes_run, tmp_path):
    task = train(home.game_config, tmp_path / "run", *overrides(home, attributes_run))
    adapter, base = task.speaker.trained, dict(task.base.named_parameters())
    moved = {name for name, p in adapter.named_parameters() if not torch.equal(p, base[name])}
    assert moved == {"audience.weight", "audience.bias"} and adapter.audience.weight.shape == (5, 10)
    assert not task.base.audience.weight.any()  # the base speaker knows of no audience
    for step in range(6):
        pairs, weights = task.audience.round_pairs(step), task.audience.weights(step)
        assert torch.equal(weights, audiences.round_weights(pairs, 3)) and set(pairs) <= {(0, 1), (2, 0)}
        inputs = task.audience_inputs(step)
        assert inputs.shape == (4, 10) and torch.equal(inputs, task.audience_inputs(step))
    # A second training, resumed halfway, ends equal.
    words = [*overrides(home, attributes_run), "train.schedule=constant"]
    train(home.game_config, tmp_path / "halves", *words, "train.steps=2")
    again = train(home.game_config, tmp_path / "halves", *words)
    whole = train(home.game_config, tmp_path / "whole", *words)
    assert all(torch.equal(a, b) for a, b in zip(again.speaker.trained.parameters(),
                                                 whole.speaker.trained.parameters(), strict=True))


def test_the_evaluation_for_many_audiences(home, train, caption_run, attributes_run, tmp_path):
    train(home.game_config, tmp_path / "run", *overrides(home, attributes_run))
    train(home.game_config, tmp_path / "one", *overrides(home, caption_run), "speaker.audience_width=0",
          "audiences=[[all, colours]]", "unseen=[]")
    train(home.game_config, tmp_path / "deaf", *overrides(home, caption_run), "speaker.audience_width=0")
    train(home.game_config, tmp_path / "pair", "heldout=[]",  # a pair of configs/pairs has names of its own
          f"listeners=[{{name: x, clip: {home.clip}, domain: shape, weight: -1.0}}, {{name: y, clip: {home.clip}}}]")
    run, one, deaf, pair = (load_run(tmp_path / name) for name in ("run", "one", "deaf", "pair"))
    assert audiences_of(pair.config, run.config) == (("all", "shapes"),)
    assert audiences_of(one.config, run.config) == (("all", "colours"),)
    dataset, validation = load(run.config.data, "test").select(range(10)), load(run.config.data, "validation")
    gaps, said = measure_gaps(run, dataset, validation, [one, deaf])
    gap = gaps["training"]
    assert gap.keys() == {"base", "0 picks", "16 picks", "ceiling", "specialist", "uninformed"}
    assert all(values.shape == (3, 10) for values in gap.values())
    assert gap["specialist"].isnan().any(1).tolist() == [True, False, True]
    assert len({tuple(texts) for texts in said["0 picks"].values()}) == 1  # who knows nothing says the same to all
    assert said["base"]["all / colours"] == said["base"]["shapes / colours"]
    assert all(text.split()[-1].rstrip(".") in ("shape", "square", "circle", "star", "ring", "cross", "triangle")
               for text in said["ceiling"]["shapes / colours"])
    found = summarise(run.config, gaps)["training"]
    assert found["claims"]["unseen: 16 picks minus 0 picks"]["images"] == 10
    assert "64 picks over specialists" not in found["claims"]
    assert "specialist" not in found["gap"]["colours / shapes"] and "| all / colours |" in table(found)


def test_an_audience_input_needs_audiences(home, train, tmp_path):
    with pytest.raises(DixitError, match="speaker.audience_width needs audiences"):
        train(home.game_config, tmp_path / "run", "speaker.audience_width=10")
    with pytest.raises(DixitError, match="speaker.audience_width must be 10"):
        train(home.game_config, tmp_path / "run", LISTENERS.replace("EYE", str(home.clip)), *OVERRIDES,
              "speaker.audience_width=3")
