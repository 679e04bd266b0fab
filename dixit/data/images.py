"""Load images with captions from seven kinds of source as a `datasets.Dataset`, made once and kept in the cache.

Columns: `image` (square RGB, padded with white), `captions` (at least one), `concept` (a class or object,
"" for scenes) and `record` (JSON of a scene's attributes, "" elsewhere).

The sources are in known.py and clipart.py (sets known by name), folder.py and hub.py. Leaves out augmentation,
streaming, video, and data sets' own loading scripts: no code from a data set is run.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from dixit.common import (
    DixitError,
    current_salt,
    did_you_mean,
    expand_home,
    first_line,
    locked,
    read_json,
    rng,
    scratch,
    sha256,
    write_json,
)
from dixit.config import Config, DataConfig
from dixit.data import scenes
from dixit.data.assets import cache_dir
from dixit.data.clipart import clipart_set
from dixit.data.decode import open_image
from dixit.data.folder import folder_set, split_folders
from dixit.data.hub import hub_set
from dixit.data.known import cifar10_set, emoji_set, scene_set, stamp_set
from dixit.data.sources import EVALUATION_SETS, SPLITS, Source, content_hash, examples, warn

__all__ = ["fingerprint", "load", "open_data", "open_image", "pixels"]

VERSION = 2  # part of every fingerprint; raise it when a change of the code gives other rows for the same input
NAMES = ("scenes", "emoji", "clipart", "cifar10", "stamps", "folder", "hub")
FEATURES = datasets.Features({
    "image": datasets.Image(mode="RGB"), "captions": datasets.List(datasets.Value("string")),
    "concept": datasets.Value("string"), "record": datasets.Value("string"),
})


class EmptySplit(DixitError):
    """Raised where a hash of names has put no image into a split."""


def load(data: DataConfig, split: str, training: bool = False) -> datasets.Dataset:
    """Load one split, from the cache after the first time. Names joined by "+" are concatenated.

    Set `training` if a model will be trained on the rows. Raises DixitError on bad input, and if `training` is set
    for a transfer or test set.
    """
    if data.captions and "folder" not in data.name.split("+"):
        raise DixitError(f"data.captions is for data.name folder, not {data.name}; leave it out")
    if "+" in data.name:
        parts = [load(replace(data, name=name), split, training) for name in data.name.split("+")]
        return datasets.concatenate_datasets(parts)
    _check(data, split, training)
    source = _source(data, split)
    for note in source.notes:
        warn(note)
    count = source.count
    if not count:
        raise EmptySplit(f"split {split} of {data.path or data.name} is empty (a hash of names makes the splits where "
                         "none are given); add images, or sort them into folders train, validation and test")
    # A subset is drawn at random, the same one each time, and kept in order.
    limit = getattr(data, split) or count
    order = list(range(count))
    if limit < count:
        order = sorted(rng("subset", data.seed, split).permutation(count)[:limit].tolist())
    digest = content_hash(VERSION, data.name, split, data.seed, data.image_size, limit, data.image_column,
                          data.caption_column, source.content, *(["skip"] if data.broken == "skip" else []),
                          *([current_salt()] if current_salt() else []))[:16]
    folder = cache_dir() / "data" / f"{data.name}-{split}-{digest}"
    if not _is_intact(folder):
        with locked(folder.with_suffix(".lock")):  # a second process waits for the first one
            if not _is_intact(folder):
                if folder.is_dir():
                    print(f"warning: {folder} is damaged; making it again", file=sys.stderr)
                    shutil.rmtree(folder)
                _materialise(folder, digest, f"{data.name} {split}", order, source, data.broken == "skip")
    if (folder / "broken.json").is_file():
        broken = read_json(folder / "broken.json")
        warn(f"{data.path or data.name}, split {split}: {len(broken)} of {len(order)} images cannot be read and are "
             f"left out: {examples(broken)}")
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow and datasets raise many kinds
        raise DixitError(f"{folder} is damaged ({first_line(error)}); delete it and run again") from None


def _source(data: DataConfig, split: str) -> Source:
    if data.name == "scenes":
        return scene_set(data, split)
    if data.name == "emoji":
        return emoji_set(data, split)
    if data.name == "clipart":
        return clipart_set(data, split)
    if data.name == "cifar10":
        return cifar10_set(data, split)
    if data.name == "stamps":
        return stamp_set(data)
    return folder_set(data, split) if data.name == "folder" else hub_set(data, split)


def fingerprint(dataset: datasets.Dataset) -> str:
    """A key for cached features: equal for equal rows in every process, different after any change."""
    return dataset._fingerprint


def pixels(dataset: datasets.Dataset, indices: Sequence[int] | None = None) -> UInt8[Tensor, "B 3 H W"]:
    """The decoded images of the rows at `indices` (default: all)."""
    rows = dataset[:] if indices is None else dataset[[int(i) for i in indices]]
    return torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]])).permute(0, 3, 1, 2)


def _check(data: DataConfig, split: str, training: bool) -> None:
    def choose(what: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise DixitError(f"unknown {what} '{value}'; {did_you_mean(value, allowed)}")

    choose("data", data.name, NAMES)
    if data.name == "stamps" and training:
        raise DixitError("stamps are the unseen transfer set and never trained on; train on other data")
    splits = {"scenes": scenes.SPLITS, "stamps": ("test",)}.get(data.name, SPLITS)
    choose(f"split of {data.name}", split, splits)
    if training and split in ("test", "combos"):
        raise DixitError(f"split {split} is for evaluation and never trained on; train on train")
    if not 16 <= data.image_size <= 1024:
        raise DixitError(f"data.image_size is {data.image_size}; choose 16 to 1024 pixels")
    if getattr(data, split) < (data.name == "scenes"):
        raise DixitError(f"data.{split} is {getattr(data, split)}; choose a positive number of images")


def _is_intact(folder: Path) -> bool:
    """Whether a cached data set is complete and unchanged; those of earlier versions have no hashes to check."""
    hashes = folder / "sha256.json"
    try:
        return folder.is_dir() and (not hashes.is_file() or
                                    all(sha256(folder / name) == value for name, value in read_json(hashes).items()))
    except (DixitError, OSError, AttributeError):
        return False


def _materialise(folder: Path, digest: str, title: str, order: Sequence[int], source: Source, skip: bool) -> None:
    """Write the rows to a scratch folder and rename it to `folder` when it is complete; two processes may race.

    With `skip`, rows whose image cannot be read are left out, and broken.json lists why.
    """
    broken: list[str] = []

    def rows():
        for i in tqdm(order, desc=title, unit="image"):
            try:
                yield source.row(i)
            except DixitError as error:
                if not skip:
                    raise
                broken.append(str(error))
        if len(broken) == len(order):
            raise DixitError(f"none of the {len(order)} images can be read, e.g. {broken[0]}")

    noisy = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # tqdm's above knows the total
    try:
        with scratch(folder.parent) as place:
            dataset = datasets.Dataset.from_generator(rows, FEATURES, str(place / "build"), fingerprint=digest)
            dataset.save_to_disk(str(place / "rows"))
            if broken:
                write_json(place / "rows" / "broken.json", broken)
            write_json(place / "rows" / "sha256.json", {p.name: sha256(p) for p in (place / "rows").iterdir()})
            os.rename(place / "rows", folder)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DixitError):
            raise error.__cause__ from None
        raise DixitError(f"cannot make {folder}: {first_line(error.__cause__ or error)}") from error
    except OSError as error:
        if not folder.is_dir():  # else another process was first, with the same rows
            raise DixitError(f"cannot write {folder}: {error.strerror or error}; free some space or set "
                             "DIXIT_CACHE to another folder") from None
    finally:
        if not noisy:
            datasets.enable_progress_bars()


# --- data that a run was not trained on ---


def open_data(name: str, config: Config) -> datasets.Dataset:
    """Load up to eval.images images (0 = all) of stamps, emoji, clipart, cifar10, combos or folder:PATH.

    A folder without subfolders train, validation and test is loaded completely, unless the run was trained on it.
    Raises DixitError for another name, or fewer than two images.
    """
    kind, _, path = name.partition(":")
    images = config.eval.images
    data = DataConfig(name=kind, path=path, seed=config.data.seed, image_size=config.data.image_size, train=images,
                      validation=images, test=images, broken=config.data.broken, splits=config.data.splits)
    if name == "combos":
        dataset = load(config.data, "combos")
    elif name in EVALUATION_SETS:
        dataset = load(data, "test")
    elif kind != "folder":
        raise DixitError(f"--data {name}: choose of {', '.join(EVALUATION_SETS)}, or folder:PATH")
    else:
        root = expand_home(path)
        trained_on = config.data.name == "folder" and root.resolve() == expand_home(config.data.path).resolve()
        by_hand = root.is_dir() and bool(split_folders(root, data.splits))
        dataset = load(data, "test") if trained_on or by_hand else _whole(data)
    if len(dataset) < 2:
        raise DixitError(f"--data {name} has only {len(dataset)} image; a pool needs at least two")
    if 0 < images < len(dataset):
        chosen = rng("transfer subset", data.seed).permutation(len(dataset))[:images]
        dataset = dataset.select(sorted(chosen.tolist()))
    return dataset


def _whole(data: DataConfig) -> datasets.Dataset:
    """All splits of a folder without subfolders; in a small folder some splits are empty."""
    parts, empty = [], None
    for split in SPLITS:
        try:
            parts.append(load(data, split))
        except EmptySplit as error:
            empty = error
    if not parts and empty:
        raise empty
    return datasets.concatenate_datasets(parts)
