"""Rewards of several listeners in a training: normalised for each, figures of each, a baseline for each audience."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from dixit.common import DixitError, read_json
from dixit.config import Config, ListenerConfig, PolicyConfig, load_config
from dixit.models.listeners import Listener
from dixit.training import loop
from dixit.training.baselines import EVERYONE, Baselines, audience_names
from dixit.training.checkpoints import trained_weights
from dixit.training.game_task import GameTask

SAMPLED = ("listeners=[{name: colour, clip: EYE}, {name: blur, clip: EYE, perception: blur, weight: 0.5}, "
           "{name: grey, clip: EYE, perception: grey, weight: -1}]")


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in rows]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(trained_weights(run))


def same_weights(one: Path, other: Path) -> bool:
    return all(torch.equal(value, weights(other)[key]) for key, value in weights(one).items())


# --- a baseline for each audience -------------------------------------------------------------------------------


def baselines(decay: float = 0.5) -> Baselines:
    AcceleratorState._reset_state()
    config = Config(listeners=(ListenerConfig("a"), ListenerConfig("b")),
                    policy=PolicyConfig(algorithm="reinforce", baseline="audience", baseline_decay=decay))
    return Baselines(config, Accelerator(cpu=True))


def test_audiences_are_named_by_their_listeners_and_weights():
    drawn = torch.tensor([[1.0, 0.0, 0.1], [-1.0, -0.25, 0.0]])
    assert audience_names(drawn, ["red", "blue"]) == ["red 1, blue -1", "blue -0.25", "red 0.1"]


def test_running_means_of_two_audiences_by_hand():
    kept = baselines()
    rounds = torch.tensor([[1.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    first = kept.advance(torch.tensor([[1.0, 3.0], [10.0, 20.0], [3.0, 5.0]]), rounds, slice(0, 3))
    assert first.tolist() == [3.0, 15.0, 3.0]  # an audience that is new starts from its own mean
    assert kept.means == {"a 1": 3.0, "b -1": 15.0}
    second = kept.advance(torch.tensor([[5.0, 7.0]]), rounds[:, :1], slice(0, 1))
    assert second.tolist() == [3.0] and kept.means == {"a 1": 4.5, "b -1": 15.0}  # who was not met keeps its mean
    kept.advance(torch.tensor([[math.nan, 7.0], [1.0, 1.0]]), rounds[:, :2], slice(0, 2))
    assert kept.means == {"a 1": 4.5, "b -1": 15.0}


def test_a_baseline_for_each_audience_in_a_training(home, train, tmp_path):
    words = ("policy.algorithm=reinforce", "game.audience=shuffled", "train.batch=8")
    task = train(home.game_config, tmp_path / "own", *words, "policy.baseline=audience")
    assert task.baselines.means.keys() == {"colour 1, grey -1", "colour -1, grey 1"}
    state = read_json(trained_weights(tmp_path / "own").with_name("state.json"))["task"]
    assert state["audience_baselines"] == task.baselines.means and state["baseline"] is None
    train(home.game_config, tmp_path / "all", *words)
    assert not same_weights(tmp_path / "own", tmp_path / "all")


def test_of_one_audience_both_kinds_of_baseline_are_equal(home, train, tmp_path):
    tasks = [train(home.game_config, tmp_path / kind, "policy.algorithm=reinforce", f"policy.baseline={kind}")
             for kind in ("all", "audience")]
    assert lines(tmp_path / "all") == lines(tmp_path / "audience")
    assert same_weights(tmp_path / "all", tmp_path / "audience")
    assert tasks[0].baselines.means[EVERYONE] == tasks[1].baselines.means["colour 1, grey -1"]


def test_a_checkpoint_of_an_earlier_version_has_one_baseline(home, train, tmp_path):
    task = train(home.game_config, tmp_path / "run", "policy.algorithm=reinforce")
    old = {"baseline": 0.25, "text_maps": [None, None]}
    task.load_state_dict(old)
    assert task.baselines.means == {EVERYONE: 0.25} and task.state_dict() == old | {
        "audience_baselines": {}, "models": task.models}
    task.load_state_dict(old | {"baseline": None})
    assert not task.baselines.means


# --- each listener's reward in the log ---------------------------------------------------------------------------


def test_the_log_has_the_rewards_of_each_listener(home, train, tmp_path):
    train(home.game_config, tmp_path / "run", "game.reward=sub_prob", "policy.samples=3")
    for row in lines(tmp_path / "run"):
        assert row["reward/colour"] - row["reward/grey"] == pytest.approx(row["reward"], abs=1e-5)
        assert 0 < row["reward/colour"] < 1 and row["reward_std/colour"] > 0
        assert 0 <= row["frac_reward_zero_std/grey"] < 1 and "reward_nan/grey" not in row


def test_a_listener_without_words_has_no_spread(home, train, tmp_path):
    train(home.game_config, tmp_path / "run", "listeners.1.vocabulary=[zebra]", "game.reward=sub_prob")
    for row in lines(tmp_path / "run"):
        assert row["reward/grey"] == pytest.approx(1 / 4) and row["reward_std/grey"] == 0  # chance of 4 candidates
        assert row["frac_reward_zero_std/grey"] == 1
        assert row["reward_std/colour"] == pytest.approx(row["reward_std"], abs=1e-6)


def test_a_listener_s_figures_are_of_its_own_rounds(home, train, tmp_path):
    """Sampled audiences: the mean over all images is that of the rounds in which it takes part, or it is left out."""
    task = train(home.game_config, tmp_path / "run", SAMPLED.replace("EYE", str(home.clip)), "heldout=[]",
                 "game.audience=sampled", "train.steps=1")
    drawn = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [-1.0] * 4])
    terms = torch.tensor([[[1.0, 3.0], [9.0, 9.0]], [[5.0, 6.0]] * 2, [[0.0, 2.0], [4.0, 4.0]]])
    found = task.listener_figures(terms, drawn, slice(0, 2))  # another process has the other two rounds
    assert {key.split("/")[1] for key in found} == {"colour", "grey"}
    assert found["reward/colour"] == 2 / 2 / 0.5  # a mean over two images, of a listener that hears half of all
    assert found["reward/grey"] == (1 + 4) / 2 and found["frac_reward_zero_std/grey"] == 1 / 2
    assert found["reward_std/grey"] == pytest.approx(2**0.5 / 2)


# --- normalised rewards ------------------------------------------------------------------------------------------


def test_normalised_rewards_follow_the_weights_alone(home, train, tmp_path):
    """The sum of two listeners, each with mean 0 and spread 1 among an image's captions."""
    train(home.game_config, tmp_path / "run", "game.normalise=listener", "policy.samples=4", "game.reward=sub_logp")
    train(home.game_config, tmp_path / "one", "game.normalise=listener", "policy.samples=4", "listeners.1.weight=0")
    for row, one in zip(lines(tmp_path / "run"), lines(tmp_path / "one"), strict=True):
        assert row["reward"] == pytest.approx(0, abs=1e-4) and row["term/listeners"] == pytest.approx(0, abs=1e-4)
        assert row["reward/colour"] < -0.1 and row["reward_nan/colour"] == row["reward_nan/grey"] == 0
        assert one["reward_std"] == pytest.approx(1 - one["frac_reward_zero_std"], abs=1e-2)


class Sometimes:
    """A listener that returns NaN for captions with any of some words."""

    def __init__(self, listener: Listener, said: tuple[str, ...]):
        self.listener, self.said = listener, said

    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        broken = torch.tensor([any(word in text for word in self.said) for text in texts])
        return self.listener.score(texts, candidates).masked_fill(broken[:, None], math.nan)


@pytest.fixture
def train_with(home):
    """Train a game whose listener 2 returns NaN for captions with any of some words."""
    def run(folder: Path, *overrides: str, said: tuple[str, ...]) -> GameTask:
        config = load_config(home.game_config, [f"out={folder}", *overrides])
        AcceleratorState._reset_state()
        accelerator = loop.make_accelerator(config)
        task = GameTask(config, accelerator)
        for listeners in (task.listeners, task.validation_listeners):
            listeners[1] = Sometimes(listeners[1], said)
        loop.train(config, task, accelerator)
        return task
    return run


def test_a_listener_of_nan_does_not_stop_the_others(home, train, train_with, tmp_path):
    words = ("game.normalise=listener", "policy.samples=3", "game.pools=2")
    train_with(tmp_path / "nan", *words, said=("",))  # every caption
    train(home.game_config, tmp_path / "without", *words, "listeners.1.weight=0")
    assert same_weights(tmp_path / "nan", tmp_path / "without")
    for row in lines(tmp_path / "nan"):
        assert row["reward_nan/grey"] == 4 * 3 and row["reward_nan/colour"] == 0  # of 4 images with 3 captions
        assert row["accuracy/grey"] == 0 and all(math.isfinite(x) for x in row.values() if isinstance(x, float))


def test_nan_for_some_captions_is_counted_and_the_training_goes_on(train_with, tmp_path):
    task = train_with(tmp_path / "run", "game.normalise=listener", "policy.samples=3", said=("red", "star"))
    counts = [row["reward_nan/grey"] for row in lines(tmp_path / "run")]
    assert all(count == round(count) for count in counts) and 0 < sum(counts) < 4 * 4 * 3
    assert all(p.isfinite().all() for p in task.trained.parameters())


def test_without_normalised_rewards_nan_ends_the_training(train_with, tmp_path):
    with pytest.raises(DixitError, match="listener 2 returned NaN"):
        train_with(tmp_path / "run", said=("",))


# --- DPO ---------------------------------------------------------------------------------------------------------


def test_dpo_starts_undecided_and_learns_the_preference(home, train, tmp_path):
    train(home.game_config, tmp_path / "run", "policy.algorithm=dpo", "policy.beta=0.5", "policy.samples=4",
          "train.steps=30", "game.reward=sub_prob", "listeners.1.weight=0")
    rows = lines(tmp_path / "run")
    undecided = math.log(2) * (1 - rows[0]["frac_reward_zero_std"])  # the speaker is still its own reference
    assert rows[0]["loss"] == pytest.approx(undecided, abs=1e-4) and rows[0]["grad_norm"] > 0
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[-10:]) > sum(rewards[:10])
