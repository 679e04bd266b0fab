"""The first warm start: the loss falls, prefix vectors stay apart, and only the adapter is trained."""

from __future__ import annotations

import json

import numpy as np
import torch

from dixit.config import load_config
from dixit.models.speaker import Speaker
from dixit.training.runs import patch_batch


def test_words_are_learned_without_the_llm(home, train, tmp_path):
    out = tmp_path / "words"
    task = train(home.caption_config, out, "task=words", "train.steps=120", "train.batch=32", "train.lr=1e-2")
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])
    assert all(p.grad is None for p in task.speaker.llm.parameters())


def test_targets_weigh_rare_words_and_skip_those_in_every_caption(home, train, tmp_path):
    task = train(home.caption_config, tmp_path / "words", "task=words", "train.steps=1")
    captions = list(task.data["captions"])
    targets = task.target(captions)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(captions)))
    for own, row in zip(captions, targets, strict=True):
        said = {task.column[token] for token in task.tokens(own)}
        assert set(row.nonzero().flatten().tolist()) <= said and all(row[c] > 0 for c in said if task.weight[c] > 0)
    assert task.weight.min() >= 0 and task.weight.argmin() != task.weight.argmax()


def test_prefix_vectors_of_a_new_adapter_are_not_all_alike(home, train, tmp_path):
    config = load_config(home.caption_config)
    task = train(home.caption_config, tmp_path / "words", "task=words", "train.steps=1")
    speaker = Speaker(config.speaker, *task.store.shape[1:])
    with torch.no_grad():
        prefix = speaker.trained(patch_batch(task.store, np.arange(4), speaker.device))
    alike = torch.nn.functional.cosine_similarity(prefix[:, 0], prefix[:, 1], dim=-1)
    assert alike.abs().max() < 0.9
