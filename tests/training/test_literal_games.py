"""Games whose listeners are captioners and vision-language models, beside CLIPs: every reward, exact resume, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dixit.common import DixitError, words
from dixit.config import load_config
from dixit.config_checks import CHOICES
from dixit.data.scenes import WORD_CLASSES
from dixit.models.listeners import ClipListener
from dixit.models.literal import LiteralListener
from dixit.training.checkpoints import trained_weights
from dixit.training.warm_start import word_loss
from tests.vlms import make_vlm


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> Path:
    return make_vlm("idefics3", tmp_path_factory.mktemp("vlm"))


def mixed(caption_run: Path, clip: Path, vlm: Path | None = None) -> str:
    third = f", {{name: answers, kind: vlm, model: {vlm}, weight: -0.5}}" if vlm else ""
    return (f"listeners=[{{name: sees, clip: {clip}, weight: 1}}, {{name: reads, kind: captioner, perception: grey, "
            f"model: {caption_run}, weight: -1}}{third}]")


@pytest.mark.parametrize("reward", CHOICES["game.reward"])
def test_captioners_and_clips_play_under_every_reward(home, caption_run, vlm, train, tmp_path, reward):
    task = train(home.game_config, tmp_path / "run", mixed(caption_run, home.clip, vlm), f"speaker.init={caption_run}",
                 f"game.reward={reward}", "train.steps=1", "heldout=[]", "data.validation=8")
    assert [type(listener) for listener in task.listeners] == [ClipListener, LiteralListener, LiteralListener]
    assert task.speaker.llm is task.listeners[1].captioner.speaker.llm  # held once
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert torch.tensor([row["loss"], row["reward"], row["reward/reads"], row["accuracy/answers"]]).isfinite().all()


def test_a_resumed_game_with_a_captioner_equals_the_uninterrupted_one(home, caption_run, train, tmp_path):
    settings = [mixed(caption_run, home.clip), f"speaker.init={caption_run}", "heldout=[]", "game.normalise=listener"]
    train(home.game_config, tmp_path / "whole", *settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step_000004")  # stopped after two of four steps
    train(home.game_config, tmp_path / "halves", *settings)
    whole, halves = (load_file(trained_weights(tmp_path / name)) for name in ("whole", "halves"))
    assert len(list((tmp_path / "halves" / "checkpoints").iterdir())) == 2
    assert [key for key in whole if not torch.equal(whole[key], halves[key])] == []


def test_a_game_is_not_resumed_with_a_captioner_that_has_trained_on(home, caption_run, train, tmp_path):
    captioner = Path(shutil.copytree(caption_run, tmp_path / "captioner"))
    settings = [mixed(captioner, home.clip), f"speaker.init={caption_run}", "heldout=[]", "data.validation=8"]
    task = train(home.game_config, tmp_path / "run", *settings, "train.steps=1")
    assert task.listeners[1].captioner.speaker is task.validation_listeners[1].captioner.speaker  # opened once
    train(home.game_config, tmp_path / "run", *settings, "train.steps=2")
    train(captioner / "config.yaml", captioner, f"train.steps={2 * load_config(captioner / 'config.yaml').train.steps}")
    with pytest.raises(DixitError, match=f"the listeners' model {captioner} has other weights than this game"):
        train(home.game_config, tmp_path / "run", *settings, "train.steps=3")


def test_a_game_is_not_resumed_with_a_vision_language_model_of_other_weights(home, caption_run, vlm, train, tmp_path):
    folder = Path(shutil.copytree(vlm, tmp_path / "vlm"))
    settings = [mixed(caption_run, home.clip, folder), f"speaker.init={caption_run}", "heldout=[]", "data.validation=8"]
    train(home.game_config, tmp_path / "run", *settings, "train.steps=1")
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in sorted(weights) if key.endswith("q_proj.weight"))
    save_file(weights | {name: weights[name] * 1.01}, path, {"format": "pt"})
    with pytest.raises(DixitError, match=f"the listeners' model {folder} has other weights than this game"):
        train(home.game_config, tmp_path / "run", *settings, "train.steps=2")


def test_listeners_compute_in_their_own_precision_whatever_the_training_does(home, caption_run, vlm, train, tmp_path):
    listeners = mixed(caption_run, home.clip, vlm).replace("weight: 1}", "weight: 1, learning_rate: 0.1}")
    task = train(home.game_config, tmp_path / "run", listeners, f"speaker.init={caption_run}", "train.steps=1",
                 "heldout=[]", "data.validation=8", "train.mixed_precision=bf16")
    texts, candidates = ["A red circle.", "A star."], torch.arange(8).reshape(2, 1, 4)
    clip, learned = task.listeners[0], []
    start = clip.text_map.clone()
    for lowered in True, False:
        clip.text_map.copy_(start)
        clip.clip.text_cache.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered), torch.no_grad():
            logits = task.reward(task.listeners, texts, torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1), None,
                                 candidates, torch.ones(3, 2))[2]
            task.update_listeners(texts, candidates)
        learned.append((logits, clip.text_map.clone()))
    assert torch.equal(learned[0][0], learned[1][0]) and torch.equal(learned[0][1], learned[1][1])
    assert not torch.equal(start, learned[0][1])


def test_a_missing_heldout_captioner_is_told_before_the_training(home, caption_run, train, tmp_path):
    with pytest.raises(DixitError, match=r"listener 1 \(late\): .*nowhere is not a run"):
        train(home.game_config, tmp_path / "run",
              f"heldout=[{{name: late, kind: captioner, model: {tmp_path}/nowhere}}]")


def test_a_run_cannot_listen_to_itself(home, caption_run, train, tmp_path):
    with pytest.raises(DixitError, match=r"listeners\[1\].model .* is this run itself"):
        train(home.game_config, caption_run, mixed(caption_run, home.clip))


def test_words_that_are_certain_have_a_finite_gradient_in_bfloat16():
    """With few words to learn, their probabilities soon round to 1 in bfloat16, where log(1 - p) has no gradient."""
    logits = torch.zeros(2, 3, 5)
    logits[:, :2, 0], logits[:, 2, 1] = 12.0, 4.0
    target = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0.5, 0, 0.5, 0]])
    found = []
    for dtype in torch.float32, torch.bfloat16:
        x = logits.to(dtype).requires_grad_()
        loss = word_loss(x, target)
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), x)))
    (loss, slope), (other, other_slope) = found
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(other_slope.float(), slope, atol=0.01, rtol=0.01)
    p = logits.double().softmax(-1)  # by the formula, where nothing is rounded
    exact = -(target * (1 - (1 - p).prod(1)).log()).sum(1)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-6)


def test_a_captioner_is_taught_the_words_of_some_attributes(home, train, tmp_path):
    task = train(home.caption_config, tmp_path / "run", "data.attributes=[colour]", "train.steps=1")
    _, captions = task.captions.draw(np.arange(len(task.data)))
    said = {word for own in captions for text in own for word in words(text)}
    assert said <= {"a", "an", "and", "shape", *WORD_CLASSES["colour"]} and len(said & WORD_CLASSES["colour"]) > 5
