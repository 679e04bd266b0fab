"""A CLIP whose image tower names what it sees, on towers with random weights: training, caches, knowledge, speaker."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from towers import WIDTH, make_pictures, make_towers

from dixit.common import DixitError
from dixit.config import DataConfig, KnowledgeConfig, ListenerConfig, SpeakerConfig, load_config
from dixit.data.images import load, pixels
from dixit.data.wordnet import wordnet
from dixit.models.adapter import Adapter
from dixit.models.clip import build_locked, load_clip, save_clip
from dixit.models.features import class_features, image_embeddings, patch_features
from dixit.models.listeners import known_classes
from dixit.models.named import (
    ATTRIBUTE_WIDTH,
    FURTHER_SHARE,
    IMAGENET,
    TEMPERATURE,
    Classes,
    image_rows,
    imagenet_synsets,
)
from dixit.training.class_rows import train_rows
from dixit.training.made_captions import MadeCaptions, with_names
from dixit.training.runs import make_listeners


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train):
    """(root, config of the pictures, the CLIP before training, the CLIP as it was trained)."""
    wordnet()  # read from the real cache
    root = tmp_path_factory.mktemp("named")
    pictures = make_pictures(root / "pictures")
    config = root / "clip.yaml"
    config.write_text(json.dumps({
        "task": "clip", "clip": {"name": "lite0-pictures", "names": True}, "seed": 0,
        "data": {"name": "scenes", "image_size": 64, "train": 24, "validation": 12}, "extra_data": [pictures],
        "train": {"steps": 4, "batch": 8, "log_every": 1, "eval_every": 4, "save_every": 2, "weight_decay": 0.0}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(root / "cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        make_towers(root / "cache")
        fresh = build_locked("lite0-pictures", names=True)
        task = train(config, root / "run")
        save_clip(task.clip, "lite0-pictures")
    return root, pictures, fresh, task.clip


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.setenv("DIXIT_CACHE", str(trained[0] / "cache"))
    return trained


def test_training_changes_the_attribute_heads_and_adds_classes_only(here):
    _, _, fresh, clip = here
    before, after = fresh.model.state_dict(), clip.model.state_dict()
    assert clip.classes[IMAGENET:] == ("dog", "violin") and clip.classes[:2] == ("n01440764", "n01443537")
    head = "text.proj.attributes.0.weight"
    assert not torch.equal(after[head], before[head])
    features = torch.randn(3, WIDTH)
    assert torch.equal(clip.model.text.proj(features)[:, :WIDTH], features)  # names are embedded by the text tower
    for key, value in before.items():
        kept = key.startswith(("visual.trunk.fine", "visual.trunk.conv_head", "visual.trunk.bn2", "text.transformer"))
        if kept:
            assert torch.equal(after[key], value), key
        elif key.startswith("visual.trunk.classes"):
            assert torch.equal(after[key][:IMAGENET], value) and len(after[key]) == IMAGENET + 2


def test_opened_it_equals_the_trained_one_and_caches_equal_direct_passes(here):
    _, pictures, _, clip = here
    opened, dataset = load_clip("lite0-pictures"), load(DataConfig(**pictures), "validation")
    images = pixels(dataset)
    assert opened.classes == clip.classes
    torch.testing.assert_close(opened.embed_images(images, "grey"), clip.embed_images(images, "grey"))
    direct = opened.embed_images(images, "colour")
    torch.testing.assert_close(image_embeddings(opened, dataset, "colour"), direct, atol=5e-3, rtol=0)
    patches = opened.patches(images, "colour")
    cached = torch.from_numpy(np.array(patch_features(opened, dataset, "colour"))).float()
    assert patches.shape[1] == 65
    torch.testing.assert_close(cached, patches, atol=2e-2, rtol=2e-2)
    width = direct.shape[1]
    row = F.normalize(patches[:, -1, :width], dim=1)  # the last row is the image embedding
    torch.testing.assert_close(row, direct, atol=1e-4, rtol=0)
    assert not patches[:, -1, width:].any()


def test_the_class_of_a_concept_wins_its_training_pictures(here):
    _, pictures, _, clip = here
    dataset = load(DataConfig(**pictures), "train")
    classes, features = clip.named.classes, torch.from_numpy(np.array(class_features(clip, dataset, "colour"))).float()
    best = F.linear(features, classes.weight, classes.bias).argmax(1).tolist()
    assert [clip.classes[i] for i in best] == list(dataset["concept"])


def test_knowledge_hides_classes_and_names(here):
    _, pictures, _, _ = here
    dataset, clip = load(DataConfig(**pictures), "validation"), load_clip("lite0-pictures")
    animals = ListenerConfig("animals", clip="lite0-pictures", knows=KnowledgeConfig(eyes="animal"))
    mask = known_classes(clip, animals)
    assert mask is not None and mask[:398].all() and not mask[398:IMAGENET].any()
    assert mask[IMAGENET:].tolist() == [True, False]
    rest = known_classes(clip, ListenerConfig("rest", knows=KnowledgeConfig(eyes="not animal")))
    assert rest is not None and torch.equal(rest, ~mask)
    listeners = make_listeners((animals, ListenerConfig("all", clip="lite0-pictures"), ListenerConfig(
        "layman", clip="lite0-pictures", knows=KnowledgeConfig(words="basic", names="animal"))), dataset)
    assert not torch.allclose(listeners[0].images, listeners[1].images)
    candidates = torch.arange(4)[None]
    scores = listeners[2].score(["A violin."], candidates)
    assert torch.equal(scores, listeners[2].score(["A"], candidates))  # it does not know the word
    for eyes, words in (("vilin", "names no kind"), ("none", "leaves it no class")):
        with pytest.raises(DixitError, match=words):
            known_classes(clip, ListenerConfig("odd", knows=KnowledgeConfig(eyes=eyes)))


def test_classes_of_any_number_can_be_loaded():
    torch.manual_seed(0)
    small, large = Classes(4, 3), Classes(4, 3)
    large.add(torch.randn(2, 4), torch.randn(2), F.normalize(torch.randn(2, 3), dim=1))
    small.load_state_dict(large.state_dict())
    features = torch.randn(5, 4)
    torch.testing.assert_close(small(features), large(features))
    only = torch.zeros(IMAGENET + 2, dtype=torch.bool)
    only[-1] = True
    torch.testing.assert_close(small(features, only), large.prototypes[-1:].expand(5, -1))


def test_further_classes_have_a_limited_share_of_the_probability():
    torch.manual_seed(0)
    classes = Classes(4, 3)
    classes.weight.normal_()
    classes.add(5 * torch.randn(2, 4), torch.tensor([9.0, 1.0]), F.normalize(torch.randn(2, 3), dim=1))
    features = torch.randn(5, 4)
    p, free = classes.posterior(features), (F.linear(features, classes.weight, classes.bias) / TEMPERATURE).softmax(1)
    torch.testing.assert_close(p.sum(1), torch.ones(5))
    wanted = free[:, IMAGENET:].sum(1).clamp(max=FURTHER_SHARE)
    assert (wanted == FURTHER_SHARE).any() and (wanted < FURTHER_SHARE).any()
    torch.testing.assert_close(p[:, IMAGENET:].sum(1), wanted)
    share = free[:, IMAGENET:].sum(1, keepdim=True)
    torch.testing.assert_close(p[:, IMAGENET:] / wanted[:, None], free[:, IMAGENET:] / share)
    further = torch.arange(IMAGENET + 2) >= IMAGENET
    torch.testing.assert_close(classes.posterior(features, further)[:, IMAGENET:].sum(1), torch.ones(5))


def test_rare_classes_are_drawn_more_often_than_they_come(here):
    torch.manual_seed(0)
    labels = torch.tensor([0] * 95 + [1] * 5)
    features = torch.randn(2, 16)[labels] + 1.5 * torch.randn(100, 16)
    rows, bias = train_rows(features, labels, torch.zeros(3, 16), torch.zeros(3), seed=0)
    assert (F.linear(features, rows, bias).argmax(1)[95:] == 1).float().mean() >= 0.8


def test_new_rows_win_their_images_and_leave_others(here):
    torch.manual_seed(0)
    weight = torch.randn(5, 16)
    old = torch.arange(40) % 5
    features = torch.cat([3 * weight[old] + torch.randn(40, 16), 4 * torch.eye(2, 16)[torch.arange(20) % 2] - 2])
    rows, bias = train_rows(features[40:], torch.arange(20) % 2, weight, torch.zeros(5), seed=0)
    logits = features @ torch.cat([weight, rows]).T + torch.cat([torch.zeros(5), bias])
    assert torch.equal(logits[40:].argmax(1), 5 + torch.arange(20) % 2)
    assert (logits[:40].argmax(1) == old).float().mean() > 0.9


def test_made_captions_name_the_made_class_and_the_colours(here):
    _, pictures, _, _ = here
    clip, dataset = load_clip("lite0-pictures"), load(DataConfig(**pictures), "train")
    made = MadeCaptions(clip, dataset, list)
    index = np.arange(8)
    rows, captions = made.draw(index, 0, 3)
    again, same = made.draw(index, 0, 3)
    assert torch.equal(rows, again) and captions == same and made.draw(index, 0, 4)[1] != captions
    text = " ".join(c for row in captions for c in row)
    assert "red" in text and "blue" not in text  # the first eight pictures are red
    assert all(c[0].isupper() and c.endswith(".") for row in captions for c in row)
    patches = clip.patches(pixels(dataset, range(8)), "colour")
    changed = with_names(patches, rows)
    assert torch.equal(changed[:, :-1], patches[:, :-1]) and not torch.allclose(changed[:, -1], patches[:, -1])


@pytest.mark.parametrize("width", [64, 300, 512])
def test_an_image_embedding_is_read_as_rows_of_any_width(width):
    """Rows hold the embedding in order, names replaced in them stay in place, and the adapter reads them all."""
    embedding = F.normalize(torch.randn(2, 384 + ATTRIBUTE_WIDTH), dim=1)
    rows = image_rows(embedding, width)
    assert rows.shape == (2, -(-640 // width), width)
    torch.testing.assert_close(rows.flatten(1)[:, :640], embedding * 640 ** 0.5)
    patches, names = torch.cat([torch.randn(2, 9, width), rows], dim=1), torch.randn(2, 384)
    names[1] = torch.nan
    changed = with_names(patches, names)
    flat = changed[:, 9:].flatten(1)
    torch.testing.assert_close(flat[0, :384], names[0] * 640 ** 0.5)
    assert torch.equal(changed[1], patches[1]) and torch.equal(flat[0, 384:], rows.flatten(1)[0, 384:])
    adapter = Adapter(SpeakerConfig(prefix=3, width=32, heads=2), patches.shape[1], width, 16, 1.0, row_width=640)
    other = torch.cat([patches[:, :9], (rows.flatten(1) + F.one_hot(torch.tensor(639), rows[0].numel())).view(
        rows.shape)], dim=1)
    assert adapter.positions.shape[0] == 9 and not torch.allclose(adapter(patches), adapter(other))


def test_scenes_keep_their_names_and_captions(here):
    clip, dataset = load_clip("lite0-pictures"), load(DataConfig(image_size=64, validation=12), "validation")
    made = MadeCaptions(clip, dataset, list)
    rows, captions = made.draw(np.arange(4), 0)
    assert rows.isnan().all() and captions == [dataset[i]["captions"] for i in range(4)]
    patches = clip.patches(pixels(dataset, range(4)), "colour")
    assert torch.equal(with_names(patches, rows), patches)


def test_a_speaker_is_warm_started_on_made_captions(here, train, tiny, tmp_path, monkeypatch):
    """Both warm starts run, and other names change what the adapter gives."""
    _, pictures, _, _ = here
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    common = {"data": pictures | {"made_captions": True}, "clip": {"name": "lite0-pictures"},
              "speaker": {"llm": str(tiny.llm), "prefix": 3, "width": 32, "layers": 1, "heads": 2, "max_tokens": 8},
              "train": {"steps": 2, "batch": 4, "log_every": 1, "eval_every": 2, "save_every": 2}}
    (tmp_path / "words.yaml").write_text(json.dumps(common | {"task": "words"}))
    words = train(tmp_path / "words.yaml", tmp_path / "words")
    assert {"red", "green"} <= {words.speaker.tokenizer.decode(token).strip() for token in words.column}
    start = common["speaker"] | {"init": str(tmp_path / "words")}
    (tmp_path / "caption.yaml").write_text(json.dumps(common | {"task": "caption", "speaker": start}))
    task = train(tmp_path / "caption.yaml", tmp_path / "base")
    patches = torch.from_numpy(np.asarray(task.store[:2], dtype=np.float32))
    other = with_names(patches, torch.randn(2, WIDTH))
    assert not torch.allclose(task.speaker.trained(patches), task.speaker.trained(other))
    rows = [json.loads(line) for line in (tmp_path / "base" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_made_captions_need_a_clip_that_names_things(tmp_path):
    with pytest.raises(DixitError, match="clip.names"):
        build_locked("cnn", names=True)
    (tmp_path / "run.yaml").write_text("listeners: [{name: a, kind: attributes, knows: {words: basic}}]")
    with pytest.raises(DixitError, match="knows is for listeners of kind clip"):
        load_config(tmp_path / "run.yaml")
    assert len(imagenet_synsets()) == IMAGENET
