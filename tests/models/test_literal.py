"""Listeners that are captioners: their logits are the speaker's own log-probabilities, however they are batched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dixit.common import DixitError
from dixit.config import DataConfig, KnowledgeConfig, ListenerConfig
from dixit.data.images import load
from dixit.models import literal
from dixit.models.decoder import HfDecoder
from dixit.models.features import patch_features
from dixit.models.listeners import score_all
from dixit.models.literal import LiteralListener, branches
from dixit.training.runs import load_run, make_listeners

TEXTS = ["A red circle.", "A red circle and a big ring.", "A red ring.", "A small cross at the top left.",
         "A red circle.", "Two", "", "A big striped star."]


@pytest.fixture(scope="module")
def dataset(tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        return load(DataConfig(name="scenes", image_size=32, train=64, validation=24, test=24, combos=8), "validation")


@pytest.fixture
def config(caption_run: Path) -> ListenerConfig:
    return ListenerConfig("reader", kind="captioner", model=str(caption_run))


def draw_candidates(images: int = 24, count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, images, (len(TEXTS), count)))


def plain_logp(run, dataset, text: str, image: int, perception="colour") -> float:
    """One caption after one image, by the speaker itself."""
    patches = torch.from_numpy(np.array(patch_features(run.eyes, dataset, perception)[[image]], dtype=np.float32))
    tokens, mask = run.speaker.encode([text])
    with torch.no_grad():
        return float(run.speaker.logprobs(run.speaker.trained(patches), tokens, mask).sum())


@pytest.mark.parametrize("general", [False, True], ids=["llama", "hf"])
def test_logits_are_the_speakers_own_log_probabilities(home, caption_run, config, dataset, general):
    listener, = make_listeners((config,), dataset)
    assert isinstance(listener, LiteralListener)
    run = load_run(caption_run)
    if general:
        speaker = listener.captioner.speaker
        speaker.decoder = listener.captioner.decoder = HfDecoder(speaker.llm)
    candidates = draw_candidates()
    logits = score_all([listener], TEXTS, candidates)[0]
    for i, text in enumerate(TEXTS):
        wanted = [plain_logp(run, dataset, text, int(c)) if text else 0.0 for c in candidates[i]]
        torch.testing.assert_close(logits[i], torch.tensor(wanted), atol=1e-4, rtol=1e-5)
    assert logits[0].std() > 0.01  # the images matter
    normalised, = make_listeners((dataclasses.replace(config, length_normalised=True),), dataset)
    lengths = torch.tensor([float(len(row)) for row in run.speaker.token_rows(TEXTS)])
    torch.testing.assert_close(normalised.score(TEXTS, candidates), logits / lengths[:, None], atol=1e-5, rtol=1e-5)


def test_what_is_run_together_changes_nothing(home, config, dataset, monkeypatch):
    candidates = draw_candidates()
    plain, = make_listeners((config,), dataset)
    logits = plain.score(TEXTS, candidates)
    for name, value in ("BLOCK", 3), ("NODES", 1), ("TOKENS", 1), ("CACHE_BYTES", 20_000):
        with monkeypatch.context() as patch:
            patch.setattr(literal, name, value)
            other, = make_listeners((config,), dataset)
            torch.testing.assert_close(other.score(TEXTS, candidates), logits, atol=1e-5, rtol=1e-5)
            if name == "CACHE_BYTES":
                assert 0 < len(other.kept) < len(plain.kept)


def test_memory_is_bounded(home, config, dataset, monkeypatch):
    """Rows that run together, and images of a block, are as many as their caches have room."""
    listener, = make_listeners((config,), dataset)
    logits = listener.score(TEXTS, draw_candidates())
    monkeypatch.setattr(literal, "CACHE_BYTES", 3 * listener.bytes + 1)
    other, = make_listeners((config,), dataset)
    decoder, sizes = other.captioner.decoder, []
    for name in "select", "join":
        made = getattr(decoder, name)
        monkeypatch.setattr(decoder, name, lambda *args, made=made, **room: sizes.append(
            len((cache := made(*args, **room)).keys_values[0, 0])) or cache)
    torch.testing.assert_close(other.score(TEXTS, draw_candidates()), logits, atol=1e-5, rtol=1e-5)
    assert max(sizes) == 3 and len(other.kept) == 3


def test_a_resumed_run_scores_the_same(home, config, dataset):
    """What the listener has seen before does not move the last digit: a resumed run has not seen it."""
    before, after = (make_listeners((config,), dataset)[0] for _ in range(2))
    before.score(TEXTS, draw_candidates(count=3))
    candidates = draw_candidates(count=6).flip(1)
    assert torch.equal(before.score(TEXTS, candidates), after.score(TEXTS, candidates))


def test_captions_share_what_they_begin_with():
    captions = [(1, 2, 3, 0), (1, 2, 0), (1, 4, 0), (5, 0)]
    tree, = branches(range(4), captions, 64)
    assert tree.tokens == [1, 2, 3, 4, 5] and tree.depth == [0, 1, 2, 1, 0] and tree.parents == [-1, 0, 1, 0, -1]
    assert tree.sees()[2].tolist() == [True, True, True, False, False]
    assert [[tree.predicted[e][1] for e in path] for path in tree.paths] == [list(c) for c in captions]
    assert len(tree.predicted) == 9  # of 12 tokens
    assert [t.captions for t in branches(range(4), captions, 4)] == [[0], [1], [2, 3]]
    assert [t.captions for t in branches(range(4), captions, 0)] == [[0], [1], [2], [3]]


def test_it_sees_by_its_perception_and_reads_the_words_it_knows(home, caption_run, config, dataset):
    candidates, run = draw_candidates(), load_run(caption_run)
    grey, deaf, basic, german = make_listeners((
        dataclasses.replace(config, perception="grey"), dataclasses.replace(config, domain="shape"),
        dataclasses.replace(config, knows=KnowledgeConfig(names="none")),
        dataclasses.replace(config, language="german")), dataset)
    wanted = plain_logp(run, dataset, TEXTS[0], int(candidates[0, 0]), "grey")
    assert float(grey.score(TEXTS, candidates)[0, 0]) == pytest.approx(wanted, abs=1e-4)
    assert deaf.read("A red circle at the top left.") == "A circle at the."
    torch.testing.assert_close(deaf.score(["A red circle."], candidates[:1]),
                               deaf.score(["A circle."], candidates[:1]))
    assert basic.read("A red circle.") == TEXTS[0]  # shapes are no things
    assert german.read("Ein roter Kreis.") == "One red circle."
    assert german.score(["wunderbar"], candidates[:1]).tolist() == [[0.0] * 5]


def test_runs_that_cannot_listen_are_refused(home, tmp_path, config, dataset, caption_run):
    import shutil

    import yaml

    def opened(folder: Path) -> None:
        make_listeners((dataclasses.replace(config, model=str(folder)),), dataset)

    with pytest.raises(DixitError, match=r"listener 1 \(reader\): .*missing is not a run"):
        opened(tmp_path / "missing")
    run = Path(shutil.copytree(caption_run, tmp_path / "run"))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"task": "clip"}))
    with pytest.raises(DixitError, match=r"listener 1 \(reader\): .* task clip and has no speaker"):
        opened(run)
    other = settings | {"data": settings["data"], "clip": settings["clip"] | {"name": "lite0-none"}}
    (run / "config.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(DixitError, match=r"listener 1 \(reader\): the CLIP 'lite0-none' is not built"):
        opened(run)
    # a CLIP with another number of patches than the run's adapter was trained with
    import json

    clip = Path(shutil.copytree(settings["clip"]["name"], tmp_path / "eye"))
    about = json.loads((clip / "open_clip_config.json").read_text())
    about["model_cfg"]["vision_cfg"]["patch_size"] = 16
    (clip / "open_clip_config.json").write_text(json.dumps(about))
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model(f"local-dir:{clip}", load_weights=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, clip / "open_clip_model.safetensors")
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"clip": settings["clip"] | {"name": str(clip)}}))
    with pytest.raises(DixitError, match=r"listener 1 \(reader\): .*another architecture"):
        opened(run)
    shutil.rmtree(run / "checkpoints")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(DixitError, match=r"listener 1 \(reader\): .*no checkpoint"):
        opened(run)
