"""What every source of images gives, and what sources share: rows, hashes, splits by hash, warnings."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

EVALUATION_SETS = ("stamps", "emoji", "clipart", "cifar10", "combos")  # names that open_data takes, besides folder:PATH
SPLITS = ("train", "validation", "test")
# Names that folders and files of captions give to splits.
SPLIT_NAMES = {"train": ("train", "training", "restval"), "validation": ("validation", "valid", "val", "dev"),
               "test": ("test", "testing")}


@dataclass(frozen=True)
class Source:
    """The rows of one split, before any is made."""

    count: int  # rows
    content: str  # a hash of all that decides what the rows hold
    row: Callable[[int], dict]  # returns row i; raises DixitError if its image cannot be read
    notes: tuple[str, ...] = ()  # what the user should know, e.g. how many images have no caption


def make_row(image: Image.Image, captions: list[str], concept: str = "", record: dict | None = None) -> dict:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)  # lossless and fast to decode
    return {"image": {"bytes": stream.getvalue(), "path": None}, "captions": captions, "concept": concept,
            "record": json.dumps(record) if record else ""}


def content_hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def split_of(name: str) -> str:
    """The split of a name by its hash (80 % train, 10 % validation, 10 % test); new names do not move others."""
    share = int(content_hash(name)[:8], 16) % 10
    return "test" if share == 9 else "validation" if share == 8 else "train"


@functools.cache
def warn(text: str) -> None:
    """Print a warning on stderr, once in a process, and by the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr)


def examples(names: Sequence[object]) -> str:
    """The first three names, for a message."""
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
