"""Speakers for many audiences of pictures: requests, picks that name an attribute, training, and the evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from towers import make_pictures, make_towers

from dixit.common import DixitError
from dixit.config import DataConfig, KnowledgeConfig, ListenerConfig, load_config
from dixit.data.images import load
from dixit.data.wordnet import wordnet
from dixit.models.clip import load_clip, save_clip
from dixit.training import audiences
from dixit.training.made_captions import MadeCaptions
from dixit.training.requests import (
    PICTURE_ATTRIBUTES,
    RequestedPictures,
    mentioned,
    request,
    request_for,
    requested_caption,
)
from dixit.training.runs import load_run, make_listeners
from eval.audiences import measure_gaps, summarise

CLIP = "lite0-pictures"
LISTENERS = [{"name": "animals", "clip": CLIP, "knows": {"eyes": "animal"}},
             {"name": "rest", "clip": CLIP, "knows": {"eyes": "not animal"}},
             {"name": "colours", "clip": CLIP, "domain": "colour", "knows": {"names": "none"}}]


@pytest.fixture(scope="module")
def built(tmp_path_factory, train):
    """(root, config of the pictures): red dogs and blue violins, and a CLIP that has a class for each."""
    wordnet()  # read from the real cache
    root = tmp_path_factory.mktemp("audiences")
    pictures = make_pictures(root / "pictures")
    (root / "clip.yaml").write_text(json.dumps({
        "task": "clip", "clip": {"name": CLIP, "names": True},
        "data": {"name": "scenes", "image_size": 64, "train": 24, "validation": 12}, "extra_data": [pictures],
        "train": {"steps": 2, "batch": 8, "eval_every": 2, "save_every": 2}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(root / "cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        make_towers(root / "cache")
        save_clip(train(root / "clip.yaml", root / "run").clip, CLIP)
    return root, pictures


@pytest.fixture
def here(built, monkeypatch):
    monkeypatch.setenv("DIXIT_CACHE", str(built[0] / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return built


def pictures_of(config: dict, split: str = "train") -> tuple[RequestedPictures, MadeCaptions]:
    clip, dataset = load_clip(CLIP), load(DataConfig(**config), split)
    made = MadeCaptions(clip, dataset, list)
    return RequestedPictures(clip, dataset, made), made


@pytest.mark.parametrize(("asked", "kind", "text"), [
    (("animal",), "animal", "A dog."), (("animal", "name"), "animal", "A dalmatian."),
    (("animal", "colour"), "animal", "A white and black dog."), (("animal",), "food", "A white and black thing."),
    (("food", "other", "name", "colour"), "animal", "A white and black thing."),
    ((), "other", "A white and black thing.")])
def test_a_caption_obeys_its_request(asked, kind, text):
    assert requested_caption(request(asked), kind, "dalmatian", "dog", ["white", "black"]) == text
    names = text.endswith(("dog.", "dalmatian."))
    assert mentioned(text) == (names, "dalmatian" in text, "white" in text)


def test_drawn_captions_obey_requests_and_are_reproducible(here):
    pictures, made = pictures_of(here[1])
    index = np.arange(6)  # red dogs
    names, captions, requests = pictures.draw(index, 0, 3)
    again = pictures.draw(index, 0, 3)
    assert torch.equal(names, again[0]) and (captions, requests) == again[1:]
    assert pictures.draw(index, 0, 4)[1] != captions
    assert not names.isnan().any() and names.shape == made.draw(index, 0)[0].shape
    for own, wanted in zip(captions, requests, strict=True):
        assert set(own) == set(wanted)
        for text, signs in wanted.items():
            asked = dict(zip(PICTURE_ATTRIBUTES, signs, strict=True))
            if text.endswith(" thing."):
                assert min(asked[kind] for kind in ("animal", "food", "other")) < 0
                assert "red" in text and mentioned(text) == (False, False, True)
            else:
                assert max(asked[kind] for kind in ("animal", "food", "other")) > 0
                assert asked["colour"] < 0 or text.lower().removeprefix("a ").startswith("red ")


def test_requests_that_a_speaker_is_examined_with(here):
    pictures, _ = pictures_of(here[1])
    index = np.arange(4)  # dogs
    wanted = pictures.to_obey(index)
    assert [pictures.obeying(i, w) for i, w in zip(index.tolist(), wanted, strict=True)] == [
        "A dog.", "A dog.", "A red dog.", "A red thing."]
    assert wanted[3] == request(("food", "other"))
    assert pictures.obeys("A red cat.", 2, wanted[2]) and not pictures.obeys("A cat.", 2, wanted[2])
    assert pictures.obeys("A blue thing.", 3, wanted[3]) and not pictures.obeys("A cat.", 3, wanted[3])


def test_picks_name_an_attribute_of_pictures_that_have_it(here):
    clip, dataset = load_clip(CLIP), load(DataConfig(**here[1]), "train")
    found = {named.attribute: named for named in audiences.name_attributes(clip, dataset)}
    assert tuple(found) == PICTURE_ATTRIBUTES and 2 * len(found) == audiences.WIDTH
    assert sorted(found["animal"].images) == list(range(8)) and sorted(found["other"].images) == list(range(8, 16))
    assert not len(found["food"].images) and not len(found["name"].images)  # "dog" and "violin" are everyday words
    assert found["animal"].captions[0] == "A dog." and found["animal"].captions[8] == "A blue thing."
    assert found["colour"].captions[0] == "A red thing." and len(found["colour"].images) == 16
    assert request_for("name") == request(("animal", "food", "other", "name"))


def test_profiles_tell_domains_and_words_apart(here):
    clip, dataset = load_clip(CLIP), load(DataConfig(**here[1]), "train")
    listeners = make_listeners((
        ListenerConfig("all", clip=CLIP), ListenerConfig("none", clip=CLIP, knows=KnowledgeConfig(names="none")),
        ListenerConfig("animals", clip=CLIP, knows=KnowledgeConfig(names="animal"))), dataset)
    hits = audiences.hits_by_attribute(listeners, clip, dataset, 4, "t")
    assert hits.shape == (3, 5, 16) and torch.equal(hits, audiences.hits_by_attribute(listeners, clip, dataset, 4, "t"))
    place = {attribute: i for i, attribute in enumerate(PICTURE_ATTRIBUTES)}
    assert torch.equal(hits[0, place["animal"]], hits[2, place["animal"]])  # both know the word
    assert torch.equal(hits[1, place["other"]], hits[2, place["other"]])  # both do not
    assert torch.equal(hits[1, place["colour"]], hits[2, place["colour"]])
    profile = audiences.profiles(hits, 2, [64, 64], "t")
    assert not profile[:, :, [place["food"], place["name"]]].abs().gt(1e-6).any()  # no picture has them


def test_scenes_and_pictures_together_have_no_attributes(here, tiny):
    clip = load_clip(CLIP)
    scene = load(DataConfig(image_size=64, validation=12), "validation")
    picture = load(DataConfig(**here[1]), "validation")
    from datasets import concatenate_datasets
    for eyes, dataset in (clip, concatenate_datasets([scene, picture.cast(scene.features)])), (
            load_clip(str(tiny.clip)), picture):
        with pytest.raises(DixitError, match="audiences are known by picks on scenes, or on pictures"):
            audiences.name_attributes(eyes, dataset)


def test_made_captions_with_requests_are_of_pictures_only(tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({
        "task": "caption", "data": {"name": "scenes+clipart", "made_captions": True},
        "speaker": {"audience_width": 10}}))
    with pytest.raises(DixitError, match="take scenes out of data.name"):
        load_config(tmp_path / "run.yaml")


def test_a_speaker_for_many_audiences_of_pictures(here, train, tiny, tmp_path):
    """Warm start on requests, the game, and the evaluation."""
    pictures = here[1]
    common = {"data": pictures, "clip": {"name": CLIP}, "eval": {"images": 16, "batch": 8},
              "train": {"steps": 2, "batch": 4, "eval_every": 2, "save_every": 2, "warmup": 0}}
    speaker = {"llm": str(tiny.llm), "prefix": 3, "width": 32, "layers": 1, "heads": 2, "max_tokens": 8,
               "audience_width": 10}
    caption = common | {"task": "caption", "speaker": speaker, "data": pictures | {"made_captions": True}}
    (tmp_path / "caption.yaml").write_text(json.dumps(caption))
    start = train(tmp_path / "caption.yaml", tmp_path / "base")
    assert "eval/obeys" in (tmp_path / "base" / "log.jsonl").read_text()
    assert not start.speaker.trained.audience.weight.any()
    game = common | {"task": "game", "speaker": speaker | {"init": str(tmp_path / "base")}, "listeners": LISTENERS,
                     "audiences": [["animals", "rest"], ["colours", "animals"]], "unseen": [["rest", "animals"]],
                     "picks": [0, 16], "game": {"candidates": 4}, "policy": {"samples": 2}}
    (tmp_path / "game.yaml").write_text(json.dumps(game))
    task = train(tmp_path / "game.yaml", tmp_path / "run")
    base = dict(task.base.named_parameters())
    moved = {name for name, p in task.speaker.trained.named_parameters() if not torch.equal(p, base[name])}
    assert moved <= {"audience.weight", "audience.bias"}
    assert task.audience.hits.shape == (3, 5, 16)
    run = load_run(tmp_path / "run")
    gaps, said = measure_gaps(run, load(run.config.data, "test"), load(run.config.data, "validation"), [])
    assert gaps["training"].keys() == {"base", "0 picks", "16 picks", "ceiling"}
    assert all(values.shape == (3, 16) for values in gaps["training"].values())
    # whichever attribute the picks single out: the thing's name, or the colour of its pixels
    assert all(text in ("A dog.", "A violin.") or text.endswith(" thing.")
               for text in said["ceiling"]["animals / rest"])
    assert "unseen: 16 picks minus 0 picks" in summarise(run.config, gaps)["training"]["claims"]
