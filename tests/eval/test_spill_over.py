"""Abilities that the game does not reward, before and after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dixit.models.features import patch_features
from dixit.training.runs import load_run, patch_batch
from eval.drift import panel
from eval.evaluate import dataset_of, generate_captions
from eval.spill_over import named, spill_over, written_loss


def test_the_loss_is_that_of_the_written_captions(home, game_run):
    run = load_run(game_run)
    dataset = dataset_of(run.config, "test", 10)
    loss = written_loss(run, run.base, dataset)
    ids = run.speaker.tokenizer(dataset["captions"][3][0], add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[*ids[: run.config.speaker.max_tokens - 1], run.speaker.eos]])
    with torch.no_grad():
        prefix = run.base(patch_batch(patch_features(run.eyes, dataset, "colour"), np.array([3]), run.speaker.device))
        embed = run.speaker.llm.get_input_embeddings()
        start = embed(torch.tensor([[run.speaker.start]]))
        logits = run.speaker.llm(inputs_embeds=torch.cat([start, prefix, embed(tokens)], 1)).logits
    expected = torch.nn.functional.cross_entropy(logits[0, prefix.shape[1]:-1], tokens[0])
    assert loss[3] == pytest.approx(float(expected), abs=1e-4) and len(loss) == 10


def test_the_change_is_paired_and_computed_once(home, game_run):
    run = load_run(game_run)
    dataset = dataset_of(run.config, "test", 24)
    captions = generate_captions(run, dataset)
    figures = spill_over(run, dataset, captions)
    before, after = (np.mean(written_loss(run, module, dataset)) for module in (run.base, run.speaker.trained))
    assert figures["base"]["written_loss"]["mean"] == pytest.approx(before, abs=1e-6)
    change = figures["trained"]["written_loss_over_base"]
    assert change["mean"] == pytest.approx(after - before, abs=1e-5)
    assert "named" not in figures["base"]  # scenes have no concept
    folder = home.cache / "captions"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*-written.json")}
    assert panel(run, dataset, captions)[0]["speakers"]["trained"].items() >= figures["trained"].items()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*-written.json")} == kept and kept


def test_who_names_nothing_has_named_nothing_truly():
    texts = ["A hound.", "A cat.", "Something red.", "Anything."]
    assert named(texts, ["dog", "dog", "dog", "xyzzy"]).tolist() == [1, 0, 0]
