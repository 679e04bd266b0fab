"""Data: scenes are functions of (seed, split, index), hostile files are named, splits keep their promises."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dixit.common import DixitError, salted
from dixit.config import DataConfig
from dixit.data.assets import cache_dir
from dixit.data.decode import open_image
from dixit.data.images import fingerprint, load, pixels
from dixit.data.known import HUE_NAMES, content_words, head_noun, main_colours
from dixit.data.scenes import HELD_OUT_PAIRS

SMALL = DataConfig(image_size=32, train=12, validation=6, test=6, combos=6)
REAL_CACHE = cache_dir()  # before any test moves it


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def with_assets(cache: Path, *names: str) -> None:
    """Let the moved cache see assets that were fetched before; skip where they were not."""
    (cache / "assets").mkdir(parents=True)
    for name in names:
        if not (REAL_CACHE / "assets" / name / "DONE.json").is_file():
            pytest.skip(f"asset {name} is not fetched: python -m dixit.data.assets {name}")
        (cache / "assets" / name).symlink_to((REAL_CACHE / "assets" / name).resolve())


def folder_of(tmp_path: Path, **images: Image.Image) -> Path:
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return folder


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


def test_scenes_are_functions_of_seed_split_and_index(tmp_path, monkeypatch):
    first = load(SMALL, "train", training=True)
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "another"))
    second = load(SMALL, "train")
    longer = load(DataConfig(image_size=32, train=14), "train")
    assert first[:] == second[:] and fingerprint(first) == fingerprint(second)
    assert longer[:12]["record"] == first[:]["record"] and fingerprint(longer) != fingerprint(first)
    assert (pixels(first) == pixels(longer, range(12))).all()
    assert pixels(first).shape == (12, 3, 32, 32) and all(first["captions"])
    assert load(DataConfig(seed=1, image_size=32, train=12), "train")[:]["record"] != first[:]["record"]


def test_splits_of_scenes_are_disjoint_and_combos_held_out():
    images = [image.tobytes() for split in ("train", "validation", "test", "combos")
              for image in load(SMALL, split)["image"]]
    assert len(set(images)) == 12 + 6 + 6 + 6

    def pairs(split: str) -> set:
        objects = [o for record in load(SMALL, split)["record"] for o in json.loads(record)["objects"]]
        return {(o["colour"], o["shape"]) for o in objects}

    assert pairs("combos") <= HELD_OUT_PAIRS
    assert not (pairs("train") | pairs("validation") | pairs("test")) & HELD_OUT_PAIRS


def test_fingerprint_follows_rows():
    data = load(SMALL, "train")
    first, again, other = (fingerprint(data.select(rows)) for rows in ([1, 5], [1, 5], [1, 6]))
    assert first == again != other


@pytest.mark.parametrize("config, split, training, parts", [
    (DataConfig(name="scene"), "train", False, ["did you mean 'scenes'"]),
    (DataConfig(), "val", False, ["did you mean 'validation'"]),
    (DataConfig(name="stamps"), "test", True, ["stamps", "never trained on"]),
    (DataConfig(name="stamps"), "train", False, ["stamps", "choose one of test"]),
    (DataConfig(), "combos", True, ["combos", "never trained on"]),
    (DataConfig(train=0), "train", False, ["data.train is 0"]),
    (DataConfig(image_size=4), "train", False, ["data.image_size is 4"]),
    (DataConfig(name="folder", path="/no/such"), "train", False, ["/no/such", "not a folder"]),
    (DataConfig(name="folder", path="~nobody-here/x"), "train", False, ["no home folder ~nobody-here; write"]),
    (DataConfig(name="hub", path="~nobody-here/x"), "train", False, ["no home folder ~nobody-here"]),
    (DataConfig(name="emoji"), "train", False, ["emoji", "dixit.data.assets"]),
])
def test_bad_requests_are_one_line(config, split, training, parts):
    with pytest.raises(DixitError) as error:
        load(config, split, training)
    one_line(error, *parts)


def test_open_image_takes_every_kind_of_picture(tmp_path):
    red = Image.new("RGB", (40, 20), (250, 0, 0))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg")
    red.convert("P").save(tmp_path / "palette.png")
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (40, 20), (0, 0, 250))])
    red.save(tmp_path / "LOUD.TIFF")
    for name in ("cmyk.jpg", "palette.png", "moving.gif", "LOUD.TIFF"):
        image = open_image(tmp_path / name, 32)
        assert image.mode == "RGB" and image.size == (32, 32)
        red_, green, blue = image.getpixel((16, 16))
        assert red_ > 200 and green < 40 and blue < 40, name
        assert image.getpixel((16, 1)) == (255, 255, 255)  # 2:1 is padded, not stretched
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png", 16).getpixel((8, 8)) == (127, 127, 127)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png", 16).getpixel((8, 8)) == (255, 255, 255)
    Image.new("RGB", (3000, 1)).save(tmp_path / "thin.png")
    assert open_image(tmp_path / "thin.png", 16).size == (16, 16)


def test_open_image_turns_photographs_upright(tmp_path):
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (0, 0, 64, 32))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    image.save(tmp_path / "turned.jpg", exif=exif)
    turned = open_image(tmp_path / "turned.jpg", 64)
    assert turned.getpixel((32, 8))[0] > 200 and turned.getpixel((32, 56))[0] < 50


def test_open_image_names_what_it_refuses(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "gif", "webp"):
        Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(content[:len(content) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("I am not a picture")
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.png").mkdir()
    Image.new("1", (8000, 8000)).save(tmp_path / "bomb.png")
    Image.new("1", (20000, 10000)).save(tmp_path / "huge.png")
    for name, reason in {"cut.png": "readable", "cut.jpg": "truncated", "cut.gif": "readable",
                         "cut.webp": "readable", "empty.png": "empty", "text.png": "not one of",
                         "program.png": "not one of", "folder.png": "readable",
                         "bomb.png": "50 million", "huge.png": "50 million",
                         "absent.png": "does not exist"}.items():
        with pytest.raises(DixitError) as error:
            open_image(tmp_path / name, 32)
        one_line(error, str(tmp_path / name), reason)


def test_folder_captions_come_from_text_or_name_and_changes_are_seen(tmp_path):
    red, blue = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue"))
    folder = folder_of(tmp_path, red_ball_02=red, b=blue)
    (folder / "b.txt").write_text("a blue square\n\n  blue  \n")
    (folder / "._b.png").write_bytes(b"left by a Mac")
    config = DataConfig(name="folder", path=str(folder.parent), image_size=16)
    data = load(config, "train", training=True)
    assert data["captions"][:] == [["a blue square", "blue"], ["red ball"]]
    assert fingerprint(load(config, "train")) == fingerprint(data)
    (folder / "b.txt").write_text("another text")
    changed = load(config, "train")
    assert changed[0]["captions"] == ["another text"] and fingerprint(changed) != fingerprint(data)
    Image.new("RGB", (9, 9), "lime").save(folder / "b.png")
    os.utime(folder / "b.png", ns=(1, 1))
    assert pixels(load(config, "train"), [0])[0, :, 8, 8].tolist() == [0, 255, 0]
    with pytest.raises(DixitError) as error:
        load(config, "validation")
    one_line(error, "no images in", "validation")


def test_folder_with_metadata_and_with_a_damaged_file(tmp_path, cache):
    red, blue = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue"))
    folder = folder_of(tmp_path, test_a=red, b=blue)  # a name with "test" in it says nothing about its split
    texts = {"test_a.png": "a red square", "b.png": "a blue one"}
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f, "text": t})
                                                     for f, t in texts.items()))
    config = DataConfig(name="folder", path=str(folder.parent), image_size=16)
    assert load(config, "train")["captions"][:] == [["a blue one"], ["a red square"]]
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:40])
    with pytest.raises(DixitError) as error:
        load(config, "train")
    one_line(error, str(folder / "b.png"))
    (folder / "metadata.jsonl").write_text("{not json")
    with pytest.raises(DixitError) as error:
        load(config, "train")
    one_line(error, "metadata.jsonl")
    assert not list((cache / "data").glob(".tmp-*"))  # failures leave nothing behind


def test_folder_is_split_by_name_and_may_be_empty(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    config = DataConfig(name="folder", path=str(folder), image_size=16, train=0)
    with pytest.raises(DixitError) as error:
        load(config, "train")
    one_line(error, "no images in", str(folder))
    for i in range(40):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{'abcdefghij'[i % 10] * (1 + i // 10)}.png")
    names = [name for split in ("train", "validation", "test") for name in load(config, split)["concept"]]
    assert len(names) == len(set(names)) == 40
    few = load(DataConfig(name="folder", path=str(folder), image_size=16, train=5), "train")
    assert len(few) == 5


def test_hub_reads_local_folders_and_runs_no_code(tmp_path, monkeypatch):
    rows = {"picture": [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(30)],
            "words": [f"number {i}" for i in range(30)]}
    features = datasets.Features(picture=datasets.Image(), words=datasets.Value("string"))
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "saved"))
    config = DataConfig(name="hub", path=str(tmp_path / "saved"), image_size=16, image_column="picture",
                        caption_column="words")
    counts = [len(load(config, split)) for split in ("train", "validation", "test")]
    assert sum(counts) == 30 and counts[0] > 15
    with pytest.raises(DixitError) as error:
        load(DataConfig(name="hub", path=str(tmp_path / "saved")), "train")
    one_line(error, "no column 'image'", "picture, words")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for path in (str(script), str(tmp_path / "absent"), "nobody/nothing-here"):
        with pytest.raises(DixitError) as error:
            load(DataConfig(name="hub", path=path), "train")
        one_line(error, path)
    assert not (tmp_path / "ran").exists()


def test_emoji_splits_keep_stamp_concepts_unseen(cache):
    with_assets(cache, "emoji", "stamps")
    stamps = load(DataConfig(name="stamps", image_size=16, test=0), "test")
    splits = [load(DataConfig(name="emoji", image_size=16, train=0, validation=0, test=0), split)
              for split in ("train", "validation", "test")]
    train, validation, test = (set(split["concept"]) for split in splits)
    assert not train & validation and not (train | validation) & test
    shown = set().union(*(content_words(concept) for concept in stamps["concept"]))
    captions = [text for split in splits[:2] for texts in split["captions"] for text in texts]
    taught = set().union(*map(content_words, captions))
    colours = {name for _, name in HUE_NAMES} | {"brown", "grey", "black", "white"}  # a colour is no concept
    assert len(train) > 500 and not (taught - content_words("an emoji of something") - colours) & shown


def test_main_colours():
    def painted(*parts: tuple[str, float]) -> list[str]:
        image, top = Image.new("RGB", (40, 40), "white"), 0
        for colour, share in parts:
            image.paste(colour, (0, top, 40, top := top + round(40 * share)))
        return main_colours(image)

    assert painted(("red", 0.4)) == ["red"]
    assert painted(("blue", 0.2), ("#00b030", 0.5)) == ["green", "blue"]
    assert painted(("#6b4423", 0.5), ("red", 0.05)) == ["brown"]
    assert painted(("#808080", 0.5)) == ["grey"] and painted(("black", 0.5)) == ["black"]
    assert painted() == ["white"]


def test_a_salt_draws_another_subset_and_keeps_it_apart(cache):
    with_assets(cache, "cifar10")
    config = DataConfig(name="cifar10", image_size=32, train=20, validation=10, test=10)

    def shown() -> list[bytes]:
        return [image.tobytes() for image in load(config, "test")["image"]]

    with salted("x"):
        first = shown()
    plain = shown()
    with salted("y"):
        assert shown() not in (first, plain)
    assert first != plain and shown() == plain
    with salted("x"):
        assert shown() == first


def test_cifar10_has_its_official_test_set(cache):
    with_assets(cache, "cifar10")
    config = DataConfig(name="cifar10", image_size=32, train=20, validation=10, test=50)
    data = load(config, "test")
    raw = np.load(cache / "assets" / "cifar10" / "test_images.npy", mmap_mode="r")
    known = {image.tobytes() for image in raw}
    assert all(image.tobytes() in known for image in data["image"])
    assert all(row["concept"] in row["captions"][1] for row in data)
    assert len(load(config, "validation")) == 10


def test_head_noun():
    for caption, noun in {"A great blue heron.": "heron", "A pair of blue jeans with patches.": "jeans",
                          "Eat your bread!": "bread", "A peahen (a female peafowl).": "peahen"}.items():
        assert head_noun(caption) == noun
