"""Scenes and perceptions: grey tells nothing about colour, captions are true, each perception hides what it says."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dixit.common import DixitError, rng, words
from dixit.data import scenes
from dixit.models.perception import PERCEPTIONS, perceive

LUMA = np.array([0.299, 0.587, 0.114])


def records(split: str, n: int) -> list[dict]:
    return [scenes.sample_record(0, split, i) for i in range(n)]


# --- what a greyscale viewer can know ---------------------------------------------------------------------------


@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_every_hue_reaches_every_grey_value(colour):
    for luma in np.linspace(scenes.OBJECT_LUMA[0] - 0.12, scenes.OBJECT_LUMA[1] + 0.04, 9):
        rgb = np.array(scenes.shade(colour, float(luma)))
        assert (rgb >= 0).all() and (rgb <= 255).all()
        assert rgb @ LUMA / 255 == pytest.approx(luma, abs=0.5 / 255)  # rounding to 8 bits


def test_colours_of_one_grey_value_are_apart():
    for luma in (0.45, 0.65):
        shades = np.array([scenes.shade(c, luma) for c in scenes.COLOURS], dtype=float)
        apart = np.abs(shades[:, None] - shades[None]).sum(2) + 999 * np.eye(len(shades))
        assert apart.min() > 40


def test_grey_value_is_drawn_independently_of_colour_and_shape():
    items = [item for record in records("train", 3000) for item in record["objects"]]
    every = np.array([item["luma"] for item in items])
    for attribute in ("colour", "shape", "size", "texture"):
        for value in {item[attribute] for item in items}:
            mine = np.array([item["luma"] for item in items if item[attribute] == value])
            assert abs(mine.mean() - every.mean()) < 5 * every.std() / len(mine) ** 0.5, value


def test_rendered_grey_value_does_not_tell_the_colour():
    """Mean luma of the object's own pixels over many pictures, colour by colour, within five standard errors."""
    found: dict[str, list[float]] = {c: [] for c in scenes.COLOURS}
    for i in range(1500):
        record = scenes.sample_record(1, "train", i)
        if len(record["objects"]) != 1 or record["objects"][0]["texture"] != "plain":
            continue
        item = record["objects"][0]
        picture = np.asarray(scenes.draw(1, "train", i, 48)[0], dtype=float)
        colourful = np.ptp(picture, axis=2) > 12  # backgrounds have no hue
        inside = colourful & (np.abs(picture - scenes.shade(item["colour"], item["luma"])).sum(2) < 6)
        if inside.sum() >= 5:
            found[item["colour"]].append(float((picture[inside] @ LUMA).mean() / 255))
    every = np.concatenate([np.array(v) for v in found.values()])
    assert len(every) > 50
    for colour, values in found.items():
        assert len(values) >= 5, colour
        assert abs(np.mean(values) - every.mean()) < 5 * every.std() / len(values) ** 0.5, colour


# --- records and splits -----------------------------------------------------------------------------------------


def test_held_out_pairs_are_in_combos_only():
    for split in scenes.SPLITS:
        pairs = {(o["colour"], o["shape"]) for record in records(split, 400) for o in record["objects"]}
        assert pairs <= scenes.HELD_OUT_PAIRS if split == "combos" else not pairs & scenes.HELD_OUT_PAIRS
    seen = [o for record in records("train", 1000) for o in record["objects"]]
    assert {o["colour"] for o in seen} == set(scenes.COLOURS) and {o["shape"] for o in seen} == set(scenes.SHAPES)


def test_scenes_are_pure_and_splits_differ():
    assert scenes.sample_record(3, "test", 5) == scenes.sample_record(3, "test", 5)
    assert scenes.draw(3, "test", 5, 40)[0].tobytes() == scenes.draw(3, "test", 5, 40)[0].tobytes()
    assert len({str(scenes.sample_record(s, split, 5)) for s in (3, 4) for split in ("train", "test")}) == 4


@given(st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_objects_have_cells_of_their_own_in_reading_order(index):
    objects = scenes.sample_record(0, "train", index)["objects"]
    cells = [tuple(o["cell"]) for o in objects]
    assert 1 <= len(cells) <= 3 and cells == sorted(set(cells))
    for item in objects:
        assert item["size"] in scenes.SIZES and item["texture"] in scenes.TEXTURES
        assert scenes.OBJECT_LUMA[0] <= item["luma"] <= scenes.OBJECT_LUMA[1]


@pytest.mark.parametrize("size", [16, 33, 128])
def test_pictures_have_the_asked_size(size):
    image, record = scenes.draw(0, "train", 0, size)
    assert image.size == (size, size) and image.mode == "RGB" and record == scenes.sample_record(0, "train", 0)


def test_the_picture_shows_the_object_where_the_record_says():
    checked = 0
    for i in range(120):
        record = scenes.sample_record(2, "train", i)
        picture = np.asarray(scenes.draw(2, "train", i, 96)[0], dtype=int)
        for item in record["objects"]:
            if item["shape"] == "ring":  # hollow in the middle
                continue
            row, column = item["cell"]
            middle = picture[row * 32 + 13: row * 32 + 19, column * 32 + 13: column * 32 + 19]
            assert (np.ptp(middle, axis=2) > 12).mean() > 0.5, (i, item)
            checked += 1
        free = {(r, c) for r in range(3) for c in range(3)} - {tuple(o["cell"]) for o in record["objects"]}
        for row, column in free:
            middle = picture[row * 32 + 13: row * 32 + 19, column * 32 + 13: column * 32 + 19]
            assert (np.ptp(middle, axis=2) == 0).all()
    assert checked > 100


# --- captions ---------------------------------------------------------------------------------------------------

COUNTED = re.compile(r"(one|two|three) shapes? on a (light|dark) (?:(striped|speckled) )?background")
PHRASE = re.compile(r"(?:an? )?(?:(small|big) ?)?(?:(" + "|".join(scenes.COLOURS) + r") ?)?(?:(striped|dotted) ?)?"
                    r"(?:(" + "|".join(scenes.SHAPES) + r"|shapes?|things?))?(?: at the ((?:top|middle|bottom) (?:left|"
                    r"centre|right)|centre))?")


def check_true(text: str, record: dict) -> None:
    """Every phrase of a caption is read back and must agree with the object it stands for."""
    objects, background = record["objects"], record["background"]
    assert text[0].isupper() and text.endswith("."), text
    text = text[0].lower() + text[1:-1]
    if counted := COUNTED.fullmatch(text):
        number, tone, texture = counted.groups()
        assert scenes.COUNTS.index(number) + 1 == len(objects) and tone == background["tone"]
        assert (texture or "plain") == background["texture"]
        return
    phrases = re.split(r", | and ", text)
    assert len(phrases) == len(objects), text
    for said, item in zip(phrases, objects, strict=True):
        match = PHRASE.fullmatch(said)
        assert match and said, text
        size, colour, texture, noun, place = match.groups()
        assert size in (None, item["size"]) and colour in (None, item["colour"]), (text, item)
        assert texture in (None, item["texture"]) and place in (None, scenes.position(item["cell"])), (text, item)
        assert noun in (None, "shape", "shapes", "thing", item["shape"]), (text, item)


@pytest.mark.parametrize("split", ["train", "combos"])
def test_captions_only_say_what_is_true(split):
    kinds = set()
    for i, record in enumerate(records(split, 300)):
        for text in scenes.captions(record, 8, rng("test", i)):
            check_true(text, record)
            kinds.add(text.endswith("background."))
    assert kinds == {True, False}


def test_the_check_of_captions_would_see_a_lie():
    record = {"background": {"tone": "light", "texture": "plain"}, "objects": [
        {"shape": "circle", "colour": "red", "size": "big", "texture": "plain", "cell": [0, 0], "luma": 0.5}]}
    for truth in ("A big red circle at the top left.", "Red.", "A red shape.", "One shape on a light background."):
        check_true(truth, record)
    for lie in ("Blue.", "A small thing.", "A red circle at the top right.", "Two shapes on a light background.",
                "A red shape", "Red and blue.", "A striped circle.", "One shape on a dark background."):
        with pytest.raises(AssertionError):
            check_true(lie, record)


def test_written_captions_by_hand():
    objects = [{"shape": "circle", "colour": "orange", "size": "big", "texture": "plain", "cell": [1, 1], "luma": 0.5},
               {"shape": "star", "colour": "red", "size": "small", "texture": "striped", "cell": [2, 0], "luma": 0.5}]
    record = {"background": {"tone": "light", "texture": "plain"}, "objects": objects}
    assert scenes.full_caption(record) == "A big orange circle at the centre and a small red star at the bottom left."
    assert scenes.oracle_caption(record, {"colour"}) == "An orange shape and a red shape."
    assert scenes.oracle_caption(record, {"colour", "texture"}) == "An orange shape and a red striped shape."
    assert scenes.oracle_caption(record, {"shape"}) == "A circle and a star."
    assert [scenes.position([r, c]) for r, c in ((0, 1), (1, 0), (1, 1))] == ["top centre", "middle left", "centre"]


def test_word_classes_are_apart_and_complete():
    classes = list(scenes.WORD_CLASSES.values())
    assert sum(map(len, classes)) == len(frozenset().union(*classes))
    function_words = {"a", "an", "and", "at", "the", "on", "shape", "shapes", "thing", "background", "light", "dark"}
    said = {w for i, r in enumerate(records("train", 500)) for t in scenes.captions(r, 8, rng("words", i))
            for w in words(t)}
    assert said <= function_words.union(*classes)
    assert set(scenes.COLOURS) <= said and set(scenes.SHAPES) <= said


# --- perceptions ------------------------------------------------------------------------------------------------

PIXELS = torch.rand(2, 3, 48, 36, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PERCEPTIONS)
def test_perceptions_keep_shape_and_range_and_leave_their_input(name):
    given_pixels = PIXELS.clone()
    seen = perceive(given_pixels, name)
    assert seen.shape == PIXELS.shape and seen.dtype == PIXELS.dtype
    assert seen.min() >= -1e-6 and seen.max() <= 1 + 1e-6 and torch.equal(given_pixels, PIXELS)


@pytest.mark.parametrize("name", [n for n in PERCEPTIONS if n not in ("blur", "low_resolution", "channel_swapped")])
def test_looking_twice_shows_no_more(name):
    once = perceive(PIXELS, name)
    torch.testing.assert_close(perceive(once, name), once, atol=1e-5, rtol=0)


def test_grey_is_luma_in_all_channels():
    seen = perceive(PIXELS, "grey")
    torch.testing.assert_close(seen[:, 0], 0.299 * PIXELS[:, 0] + 0.587 * PIXELS[:, 1] + 0.114 * PIXELS[:, 2])
    assert torch.equal(seen[:, 0], seen[:, 1]) and torch.equal(seen[:, 0], seen[:, 2])


def test_what_is_hidden_is_grey_and_the_rest_untouched():
    seen = {name: perceive(PIXELS, name) for name in PERCEPTIONS}
    assert torch.equal(seen["colour"], PIXELS)
    assert torch.equal(seen["left_half"][..., :18], PIXELS[..., :18]) and (seen["left_half"][..., 18:] == 0.5).all()
    assert torch.equal(seen["right_half"][..., 18:], PIXELS[..., 18:]) and (seen["right_half"][..., :18] == 0.5).all()
    assert torch.equal(seen["centre_crop"][..., 12:36, 9:27], PIXELS[..., 12:36, 9:27])
    assert (seen["centre_crop"] == 0.5).all(1).sum() == 2 * (48 * 36 - 24 * 18)
    assert (seen["occluded"][:, :, 16:32] == 0.5).all() and torch.equal(seen["occluded"][:, :, :16], PIXELS[:, :, :16])
    assert torch.equal(seen["channel_swapped"], PIXELS[:, [2, 1, 0]])
    assert torch.equal(perceive(seen["channel_swapped"], "channel_swapped"), PIXELS)


def test_blur_and_low_resolution_keep_the_mean_and_lose_detail():
    flat = torch.full((1, 3, 48, 48), 0.3)
    for name in ("blur", "low_resolution"):
        torch.testing.assert_close(perceive(flat, name), flat, atol=1e-5, rtol=0)
        seen = perceive(PIXELS, name)
        assert abs(float(seen.mean() - PIXELS.mean())) < 0.01
        assert seen.std() < 0.5 * PIXELS.std()
    blocks = perceive(PIXELS, "low_resolution")
    assert torch.equal(blocks[..., :8, :9], blocks[..., :1, :1].expand(2, 3, 8, 9))


def test_an_unknown_perception_lists_the_known_ones():
    with pytest.raises(DixitError, match="unknown perception 'gray'.*grey"):
        perceive(PIXELS, "gray")
