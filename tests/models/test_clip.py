"""The locked-tower CLIP, trained on towers with random weights, and the caches of what a CLIP computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file
from towers import make_towers

from dixit.common import DixitError
from dixit.config import DataConfig, ListenerConfig, load_config
from dixit.data import scenes
from dixit.data.images import load, pixels
from dixit.models.clip import build_locked, clip_dir, load_clip, save_clip
from dixit.models.features import _cached, image_embeddings, patch_features, prefetch
from dixit.models.listeners import ClipListener, score_all
from dixit.training.candidates import draw_candidates
from eval import clip_quality


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train):
    """(cache, the finished task) of three steps of training heads."""
    root = tmp_path_factory.mktemp("towers")
    config = root / "clip.yaml"
    config.write_text(json.dumps({
        "task": "clip", "clip": {"name": "lite0", "width": 16}, "seed": 0,
        "data": {"name": "scenes", "image_size": 64, "train": 24, "validation": 12},
        "train": {"steps": 4, "batch": 8, "log_every": 1, "eval_every": 4, "save_every": 2}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(root / "cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        make_towers(root / "cache")
        fresh = build_locked("lite0", 16)
        before = {k: v.clone() for k, v in fresh.model.state_dict().items()}
        task = train(config, root / "run")
        save_clip(task.clip, "lite0")
    return root, task, before, config


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.setenv("DIXIT_CACHE", str(trained[0] / "cache"))
    return trained


def test_only_the_heads_are_trained(here):
    root, task, before, _ = here
    after = task.clip.model.state_dict()
    towers = [k for k in after if k.startswith(("visual.trunk.", "text.transformer."))]
    assert len(towers) > 100 and all(torch.equal(after[k], before[k]) for k in towers)
    heads = set(load_file(sorted((root / "run" / "checkpoints").iterdir())[-1] / "model.safetensors"))
    assert {h.split(".")[0] for h in heads} == {"image", "text", "scale"}
    assert len(heads) + len(towers) == len(after)
    log = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 4 and all(np.isfinite(row["loss"]) for row in log)
    assert {"eval/r1_of_10/scenes_colour", "eval/r1_of_10/scenes_grey"} <= set(log[-1])


def test_a_saved_clip_opens_as_it_was(here):
    _, task, _, config = here
    clip = load_clip("lite0")
    images = pixels(load(load_config(config).data, "validation"), range(3))
    texts = ["a big red circle", "blue", "a ring at the top left"]
    assert torch.equal(clip.embed_texts(texts), task.clip.embed_texts(texts))
    assert torch.equal(clip.embed_images(images, "grey"), task.clip.embed_images(images, "grey"))
    assert clip.scale == task.clip.scale and not any(p.requires_grad for p in clip.model.parameters())
    assert clip.key.startswith("clip-lite0-") and clip_dir("lite0").is_dir()


def test_a_causal_text_tower_trimmed_to_the_longest_caption_says_the_same(tiny):
    clip = load_clip(str(tiny.clip))
    texts = ["a red circle", "a", "two big green squares at the top left, and more words than fit in it " * 3]
    for some in (texts[:2], texts):
        with torch.no_grad():
            plain = clip.model.encode_text(clip.tokenizer(some), normalize=True)
        torch.testing.assert_close(clip.embed_texts(some), plain, atol=1e-6, rtol=0)


def test_equal_captions_are_encoded_once_for_all_listeners_that_read_them(tiny):
    clip, images = load_clip(str(tiny.clip)), torch.nn.functional.normalize(torch.randn(6, 32), dim=1)
    listeners = [ClipListener(clip, images.roll(i, 0), ListenerConfig(f"l{i}", domain=domain))
                 for i, domain in enumerate(("", "shape", ""))]  # two read all words, the one between them only shapes
    texts = ["a red circle", "a blue star", "a red circle", "a green circle", "a blue star"]
    candidates = torch.arange(6).expand(5, -1)
    plain = []
    for listener in listeners:
        filtered = [listener.word_filter.apply(text) for text in texts]
        with torch.no_grad():
            words = torch.cat([clip.model.encode_text(clip.tokenizer([text]), normalize=True) for text in filtered])
        plain.append(clip.scale * words @ listener.images.T)
    encoded: list[int] = []
    hook = clip.model.token_embedding.register_forward_hook(lambda *call: encoded.append(len(call[2])))
    clip.text_cache.clear()
    scores = score_all(listeners, texts, candidates)
    hook.remove()
    assert encoded == [3, 2]  # three captions; "a circle" and "a star"
    torch.testing.assert_close(scores, torch.stack(plain), atol=1e-5, rtol=0)


def test_reading_ahead_changes_no_row(tmp_path):
    rows = np.arange(5 * 3000, dtype=np.float16).reshape(5, 3000)
    np.save(tmp_path / "rows.npy", rows)
    store, wanted = np.load(tmp_path / "rows.npy", mmap_mode="r"), np.array([4, 0, 4])
    for some in (store, rows):  # what is in memory already is left alone
        prefetch(some, wanted)
        assert np.array_equal(some[wanted], rows[wanted])


def test_cached_embeddings_are_those_of_the_images(here):
    _, _, _, config = here
    clip, dataset = load_clip("lite0"), load(load_config(config).data, "validation")
    for perception in ("colour", "grey"):
        direct = clip.embed_images(pixels(dataset), perception)
        cached = image_embeddings(clip, dataset, perception)
        torch.testing.assert_close(direct.norm(dim=1), torch.ones(len(dataset)))
        torch.testing.assert_close(cached, direct, atol=2e-3, rtol=0)  # patches are kept in float16
        assert torch.equal(cached, image_embeddings(clip, dataset, perception))
    assert not torch.allclose(image_embeddings(clip, dataset, "colour"), cached, atol=2e-3)


def test_cached_patches_are_those_of_the_images_in_any_batches(here):
    _, _, _, config = here
    clip, dataset = load_clip("lite0"), load(load_config(config).data, "validation")
    whole = patch_features(clip, dataset, "blur", batch=5)
    direct = clip.patches(pixels(dataset, range(4)), "blur")
    assert whole.shape == (12, 64, direct.shape[2]) and whole.dtype == np.float16
    torch.testing.assert_close(torch.from_numpy(whole[:4].astype(np.float32)), direct, atol=0.02, rtol=0.01)


def test_a_cache_that_was_cut_off_goes_on_where_it_stopped(tmp_path, capfd):
    asked: list[int] = []

    def compute(start: int, stop: int, last: int = 1000) -> np.ndarray:
        if start >= last:
            raise KeyboardInterrupt
        asked.append(start)
        return np.arange(start, stop, dtype=np.float32)[:, None] * np.float32([1, 2])

    path = tmp_path / "numbers.npy"
    with pytest.raises(KeyboardInterrupt):
        _cached(path, 103, lambda a, b: compute(a, b, last=60), "numbers", 5)
    assert not path.exists() and asked == list(range(0, 60, 5))
    asked.clear()
    made = _cached(path, 103, compute, "numbers", 5)
    assert asked == list(range(60, 103, 5))  # what was done is not done again
    assert np.array_equal(made, np.arange(103, dtype=np.float32)[:, None] * [1, 2])
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".npy", ".sha256"]
    assert capfd.readouterr().err.count("numbers: 0.0 MB for 103 rows, kept in") == 2  # before most is computed


def test_a_grey_listener_cannot_tell_two_hues_of_one_grey_value(here):
    clip = load_clip("lite0")
    flat = torch.tensor([[200, 50, 50], [94, 94, 94]]).byte()[:, :, None, None].expand(2, 3, 64, 64)
    red, grey = clip.embed_images(flat.contiguous(), "grey")  # 0.299 * 200 + 0.701 * 50 = 94.85
    seen = clip.embed_images(flat.contiguous(), "colour")
    assert float(red @ grey) > 0.999 > float(seen[0] @ seen[1])


def test_a_clip_with_a_word_added_to_its_tower_has_a_folder_of_its_own(here):
    before = (clip_dir("lite0") / "open_clip_model.safetensors").read_bytes()
    other = build_locked("lite0-mine", 16)
    save_clip(other, "lite0-mine")
    assert load_clip("lite0-mine").key.startswith("clip-lite0-mine-")
    assert (clip_dir("lite0") / "open_clip_model.safetensors").read_bytes() == before
    config = load_config(here[3]).data
    shared = [patch_features(load_clip(name), load(config, "validation"), "colour") for name in ("lite0", "lite0-mine")]
    assert shared[0].filename == shared[1].filename  # the tower is the same, and so are its patches


def test_heads_are_trained_on_what_a_chain_sees(here, train):
    root, _, before, config = here
    run = root / "chain"
    task = train(config, run, "clip.perceptions=[colour, [{blur: 2}, {jpeg: 20}]]", "train.steps=2")
    row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    figures = {key.removeprefix("eval/r1_of_10/") for key in row if key.startswith("eval/r1_of_10/")}
    assert figures == {"scenes_colour", "scenes_blur 2 + jpeg 20"}
    after = task.clip.model.state_dict()
    assert any(not torch.equal(after[k], before[k]) for k in after if k.startswith("visual.head."))


def test_the_small_tower_is_trained_from_pixels_with_its_heads(here, train):
    root, _, _, config = here
    run = root / "cnn"
    task = train(config, run, "clip.name=cnn")
    after = load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors")
    assert {k.split(".")[0] for k in after} == {"image", "text", "scale", "trunk"}
    before, same, other = (build_locked("cnn", 16, seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(before[k], same[k]) for k in before)
    assert not any(torch.equal(before[k], other[k]) for k in before if "layers" in k and before[k].ndim == 4)
    now = task.clip.model.state_dict()
    trunk = [k for k in now if k.startswith("visual.trunk.")]
    assert trunk and not any(torch.equal(now[k], before[k]) for k in trunk if "weight" in k and now[k].ndim == 4)
    assert all(torch.equal(now[k], before[k]) for k in now if k.startswith("text.transformer."))
    save_clip(task.clip, "cnn")
    clip, dataset = load_clip("cnn"), load(load_config(config).data, "validation")
    for perception in ("colour", "grey"):
        direct = clip.embed_images(pixels(dataset), perception)
        torch.testing.assert_close(image_embeddings(clip, dataset, perception), direct, atol=5e-3, rtol=0)
    assert patch_features(clip, dataset, "colour").shape[1:] == (64, 256)


def test_the_quality_of_a_clip_is_what_a_count_of_its_picks_says(home):
    clip, data = load_clip(str(home.clip)), DataConfig(**DATA)
    shapes = [f"a {shape}" for shape in scenes.SHAPES]
    labels = torch.arange(len(shapes)).flip(0)
    assert clip_quality.classify(clip, clip.embed_texts(shapes)[labels], shapes, labels)["mean"] == 1.0

    dataset = load(data, "test")
    records, images = [json.loads(r) for r in dataset["record"]], image_embeddings(clip, dataset, "colour")
    found = clip_quality.attributes(clip, data)
    alone = [i for i, r in enumerate(records) if len(r["objects"]) == 1]
    assert set(found) == {"colour", "shape", "size", "position", "count"} and 0 < len(alone) < len(records)
    words = clip.embed_texts(shapes)
    right = [scenes.SHAPES[int((words @ images[i]).argmax())] == records[i]["objects"][0]["shape"] for i in alone]
    assert found["shape"]["n"] == len(alone) and found["shape"]["mean"] == pytest.approx(np.mean(right))
    assert found["count"]["n"] == len(records)

    everyone, said = np.arange(len(dataset)), clip.embed_texts([row[0] for row in dataset["captions"]])
    pools = draw_candidates(everyone, everyone, 10, "clip_quality")
    best = [int((images[pool] @ said[i]).argmax()) == 0 for i, pool in enumerate(pools)]
    assert clip_quality.recall_among_ten(clip, data, "colour")["mean"] == pytest.approx(np.mean(best))


def test_missing_and_unknown_clips_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path))
    with pytest.raises(DixitError, match="not built yet.*clip.name=lite1"):
        load_clip("lite1")
    with pytest.raises(DixitError, match="not built yet.*dixit train clip_cnn clip.name=cnn-b"):
        load_clip("cnn-b")
    with pytest.raises(DixitError, match="unknown tower 'lite9'.*lite0"):
        build_locked("lite9")
    for name, tag in (("no-such-clip", "openai"), (str(tmp_path), "")):
        with pytest.raises(DixitError) as caught:
            load_clip(name, tag)
        assert name in str(caught.value) and "\n" not in str(caught.value)
