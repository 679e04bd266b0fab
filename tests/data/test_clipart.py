"""Clip art: subjects of file names, splits by concept that keep stamps unseen, and the asset's preparation."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from archives import make_deb, tar_bytes
from PIL import Image

from dixit.config import DataConfig
from dixit.data.assets import cache_dir
from dixit.data.clipart import MOST, drawings, name_and_concept
from dixit.data.clipart_names import subject
from dixit.data.images import load
from dixit.data.known import content_words, emoji_splits, stamp_words
from dixit.data.prepare import prepare_clipart

SPLITS = ("train", "validation", "test")
REAL_CACHE = cache_dir()  # before any test moves it
SUBJECTS = {
    "big_truck_01": "big truck", "birthday_cake": "birthday cake", "burrito_bw_ganson": "burrito",
    "duck_yellow_ii_kurt_cagl_": "duck yellow ii", "tigre01_architetto_franc_01": "tiger",
    "cavallo_architetto_franc_03": "horse", "wine_glass_christian_h._": "wine glass", "pie_apple_bw": "apple pie",
    "cone_soft_vanilla": "ice cream cone", "glace_01_bw_jean-victor__01": "ice cream", "contour_elephant": "elephant",
    "b_w_tiger_susan_park_01": "tiger", "dog_on_leash_gerald_g._02": "dog on leash", "sheep-md-v0.1": "sheep",
    "owl_on_branch_ganson": "owl on branch", "abeille_tanguy_jacq_01": "bee", "mug_toh_yen_cheng_01": "mug",
    "cat_scrathing_post_benji_01": "cat scrathing post", "apple_with_worm_dan_gerh_01": "apple with worm",
    "an_apple_01": "apple", "foglie_rosse": "leaves", "mucca": "cow", "uccello_profilo_01_archi_01": "bird",
    "bouquet_of_flowers_01": "bouquet of flowers", "stappler": "stapler", "mag3": "magnifying glass",
    "old_truck_indana_model__01": "old truck indana model", "tents_2": "tents", "balloon-red-aj": "red balloon",
    "french_horn_ganson": "french horn", "cacuts_01": "cactus", "01": ""}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that sees the fetched assets; skips where one is missing."""
    folder = tmp_path / "cache"
    (folder / "assets").mkdir(parents=True)
    for name in ("clipart", "emoji", "stamps", "wordnet"):
        if not (REAL_CACHE / "assets" / name / "DONE.json").is_file():
            pytest.skip(f"asset {name} is not fetched: python -m dixit.data.assets {name}")
        (folder / "assets" / name).symlink_to((REAL_CACHE / "assets" / name).resolve())
    monkeypatch.setenv("DIXIT_CACHE", str(folder))
    return folder


@pytest.mark.parametrize(("stem", "name"), SUBJECTS.items())
def test_the_subject_of_a_file_name(stem: str, name: str) -> None:
    assert subject(stem) == name


def test_a_subject_is_cut_after_its_first_noun_phrase(cache: Path) -> None:
    for text, name, concept in (("big truck", "big truck", "truck"), ("hot dog", "hot dog", "hot dog"),
                                ("birthday cake", "birthday cake", "cake"), ("owl on branch", "owl on branch", "owl"),
                                ("old truck indana model", "old truck", "truck"), ("orange", "orange", "orange"),
                                ("grapes", "grapes", "grape"), ("recznik wiper", "", ""), ("no entry", "", "")):
        assert name_and_concept(text) == (name, concept)


def test_splits_are_disjoint_and_keep_stamps_unseen(cache: Path) -> None:
    rows = {split: drawings(split) for split in SPLITS}
    concepts = {split: {item["concept"] for item in rows[split]} for split in SPLITS}
    assert not concepts["train"] & concepts["validation"]
    assert not (concepts["train"] | concepts["validation"]) & concepts["test"]
    assert len(rows["train"]) > 400 and len(concepts["train"]) > 150
    named = set().union(*(content_words(item["name"]) for split in SPLITS[:2] for item in rows[split]))
    assert not named & stamp_words()
    for split in SPLITS:
        counts = [sum(item["concept"] == concept for item in rows[split]) for concept in concepts[split]]
        assert max(counts) <= MOST
    emoji = emoji_splits()
    stamps = stamp_words()
    assert all(emoji.get(concept, split) == split for split in SPLITS for concept in concepts[split]
               if not content_words(concept) & stamps)


def test_captions_hold_the_name(cache: Path) -> None:
    data = load(DataConfig(name="clipart", image_size=32, train=30, validation=10), "train", training=True)
    assert len(data) == 30 and data[0]["image"].size == (32, 32)
    for row, item in zip(load(DataConfig(name="clipart", image_size=32, validation=0), "validation"),
                         drawings("validation"), strict=True):
        name, drawing, colours, both = row["captions"]
        assert row["concept"] == item["concept"] and name.endswith(item["name"]) and both.endswith(item["name"])
        assert drawing == f"a drawing of {name}" and colours.startswith("something ")


def test_prepare_clipart(tmp_path: Path) -> None:
    def png(colour: str, size: tuple[int, int] = (900, 600), box: tuple[int, ...] = (0, 0, 450, 600)) -> bytes:
        image = Image.new("RGBA", size, (0, 0, 0, 0))
        image.paste(colour, box)  # the rest is transparent
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()

    root = "./usr/share/openclipart/png/"
    empty = png("white", box=(0, 0, 10, 10))
    members = {"food/fruit/apple_01.png": png("red"), "plants/apple_02.png": png("red"),
               "shapes/stars/star_1.png": png("blue"), "tools/simbol_hammer.png": png("blue"),
               "tools/hammer_nicu_buculei_01.png": empty, "tools/_01.png": png("green"),
               "tools/saw_peterm_.png": empty[:16] + (10**4).to_bytes(4, "big") * 2 + empty[24:],
               "animals/mammals/gatto_nero_architetto_fr_01.png": png("black", (40, 20), (0, 0, 20, 20))}
    archive = make_deb(tmp_path / "a.deb", "data.tar.xz", tar_bytes({root + k: v for k, v in members.items()}, "w:xz"))
    (tmp_path / "out").mkdir()
    facts = prepare_clipart([archive], tmp_path / "out")
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [(item["name"], item["category"], item["sub"]) for item in labels] == [
        ("cat", "animals", "mammals"), ("apple", "food", "fruit")]
    sizes = [Image.open(tmp_path / "out" / item["file"]).size for item in labels]
    assert sizes == [(20, 20), (240, 320)] and len(os.listdir(tmp_path / "out" / "images")) == 2
    assert facts["images"] == 2 and facts["left_out"] == {
        "signs, flags, icons, cards": 2, "twice there": 1, "without a subject": 1, "over 50 megapixels": 1, "empty": 1}
