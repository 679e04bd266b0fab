"""The image sets known by name, but for clip art: scenes, emoji, cifar10 and stamps.

The hash of an emoji's label decides its split; an emoji whose label or keywords share a word with the concept or
file name of any stamp is in `test` only. So loading emoji needs the stamps too, and no training set names a stamp's
concept. CIFAR-10 has no such rule: its classes occur among the stamps. Emoji flags are in no split, because captions
cannot tell them apart.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dixit.common import rng
from dixit.config import DataConfig
from dixit.data import scenes
from dixit.data.assets import asset
from dixit.data.decode import fit, open_image
from dixit.data.sources import Source, content_hash, make_row, split_of

SCENE_CAPTIONS = 8
# Words in captions and file names of stamps that name no object.
STOP_WORDS = set(re.findall(r"\w+", """
    ahead and baby big black blue brown closed dead eating flying full golden green have home large left
    little new now old open part pink red silver small stand white yellow you"""))


def scene_set(data: DataConfig, split: str) -> Source:
    def row(i: int) -> dict:
        image, record = scenes.draw(data.seed, split, i, data.image_size)
        texts = scenes.captions(record, SCENE_CAPTIONS, rng("captions", data.seed, split, i))
        return make_row(image, texts, record=record)

    # The hash of a few scenes changes with the renderer, so that changed code makes new rows without a new VERSION.
    probe = [row(i) for i in range(4)]
    content = content_hash([hashlib.sha256(p["image"]["bytes"]).hexdigest() + p["record"] for p in probe],
                    [p["captions"] for p in probe])
    return Source(getattr(data, split), content, row)


def labels_in(folder: Path) -> list[dict]:
    return json.loads((folder / "labels.json").read_text(encoding="utf-8"))


def content_words(text: str) -> set[str]:
    """Content words, for comparing concepts: letters only, without a plural 's'."""
    return {word.rstrip("s") for word in re.findall(r"[a-z]{3,}", text.lower())} - STOP_WORDS


def head_noun(caption: str) -> str:
    """The head noun of a caption, e.g. "heron" for "A great blue heron." A heuristic, not a parser."""
    text = re.split(r"[.,;:!?(–—]", caption.lower().lstrip("–— "))[0]
    text = re.sub(r"\b(pair|baby|bunch|piece|slice|glass|cup) of\b", "", text).strip()
    text = re.split(r" (?:with|in|at|for|on|of|to|from|worn|covered|inside|is|are|has|that|used)\b", text)[0]
    return (re.findall(r"[^\W\d_]+", text) or [""])[-1]


def _stem(item: dict) -> str:
    """The file name of a stamp without folders, digits and punctuation."""
    stem = Path(item["file"]).stem.removeprefix(item["category"].replace("/", "-"))
    return " ".join(re.findall(r"[^\W\d_]+", stem))


def stamp_set(data: DataConfig) -> Source:
    folder = asset("stamps")
    items = labels_in(folder)

    def row(i: int) -> dict:
        caption, noun = items[i]["caption"], head_noun(items[i]["caption"])
        concept = noun if content_words(noun) else _stem(items[i])
        return make_row(open_image(folder / items[i]["file"], data.image_size), [caption], concept)

    return Source(len(items), content_hash(items), row)


def stamp_words() -> set[str]:
    """The content words of the concepts and file names of all stamps: no training set may name them."""
    stamps = labels_in(asset("stamps"))
    return set().union(*(content_words(head_noun(s["caption"])) | content_words(_stem(s)) for s in stamps))


HUE_NAMES = ((15, "red"), (38, "orange"), (68, "yellow"), (165, "green"), (195, "cyan"), (255, "blue"), (290, "purple"),
             (345, "pink"), (360, "red"))  # (upper bound of the hue in degrees, name)

COLOUR_NAMES = frozenset({name for _, name in HUE_NAMES} | {"brown", "black", "grey", "white"})


def main_colours(image: Image.Image) -> list[str]:
    """One or two names for the colours of an RGB image, the commonest first; white, black or grey if it has none.

    Computed from hue, saturation and value at 32 x 32 pixels. Dark or dull orange counts as brown, white as background.
    """
    scale = 360 / 255, 1 / 255, 1 / 255  # to degrees and to [0, 1]
    hue, saturation, value = (np.asarray(image.resize((32, 32)).convert("HSV")) * scale).reshape(-1, 3).T
    index = np.searchsorted([limit for limit, _ in HUE_NAMES], hue)
    names = np.array([name for _, name in HUE_NAMES] + ["red"], dtype=object)[index]
    names[(hue > 8) & (hue < 45) & ((value < 0.7) | (saturation < 0.5))] = "brown"
    coloured = (saturation > 0.25) & (value > 0.2)
    colours, counts = np.unique(names[coloured].astype(str), return_counts=True)
    if coloured.mean() < 0.06:
        plain = {"black": (value < 0.3).mean(), "grey": ((value >= 0.3) & (value < 0.85)).mean()}
        name, share = max(plain.items(), key=lambda item: item[1])
        return [name] if share > 0.1 else ["white"]
    order = (-counts).argsort(kind="stable")[:2]
    return [str(colours[i]) for i in order if counts[i] > 0.25 * counts[order[0]]]


def row_colours(row: dict[str, Any]) -> list[str]:
    """The main colours of a dataset's image."""
    return main_colours(Image.fromarray(np.asarray(row["image"])))


def emoji_splits() -> dict[str, str]:
    """The split of every emoji but flags, by its label."""
    shared = stamp_words()

    def split_of_item(item: dict) -> str:
        words = content_words(" ".join([item["label"], *item["keywords"]]))
        return "test" if words & shared else split_of(item["label"])

    return {item["label"]: split_of_item(item) for item in labels_in(asset("emoji")) if item["group"] != "flags"}


def emoji_set(data: DataConfig, split: str) -> Source:
    folder = asset("emoji")
    splits = emoji_splits()
    items = [item for item in labels_in(folder) if splits.get(item["label"]) == split and item["group"] != "flags"]

    def row(i: int) -> dict:
        label, keywords = items[i]["label"], items[i]["keywords"]
        image = open_image(folder / items[i]["file"], data.image_size)
        colours = " and ".join(main_colours(image))
        texts = [label, f"an emoji of {label}", f"something {colours}"]
        if len(keywords) > 1:
            texts.append(", ".join(keywords[:4]))
        return make_row(image, texts, label)

    return Source(len(items), content_hash(items), row)


def cifar10_set(data: DataConfig, split: str) -> Source:
    folder = asset("cifar10")
    classes = json.loads((folder / "DONE.json").read_text(encoding="utf-8"))["classes"]
    part = "test" if split == "test" else "train"
    images, labels = (np.load(folder / f"{part}_{kind}.npy", mmap_mode="r") for kind in ("images", "labels"))
    start, stop = {"train": (0, -5000), "validation": (-5000, None), "test": (0, None)}[split]
    images, labels = images[start:stop], labels[start:stop]

    def row(i: int) -> dict:
        name = classes[int(labels[i])]
        thing = ("an " if name[0] in "aeiou" else "a ") + name
        image = Image.fromarray(np.array(images[i]))
        colours = " and ".join(main_colours(image))
        texts = [thing, f"a photo of {thing}", f"something {colours}", f"a {colours} picture of {thing}"]
        return make_row(fit(image, data.image_size), texts, name)

    return Source(len(labels), content_hash(classes, hashlib.sha256(labels.tobytes()).hexdigest()), row)
