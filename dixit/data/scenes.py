"""Render synthetic scenes of 1 to 3 objects with independent attributes, with a record of them and captions.

Every image is a pure function of (seed, split, index). Colours are equiluminant by design: each object's grey
value (ITU-R BT.601 luma) is drawn independently of its hue, so that a hue word does not help a greyscale listener.
In return hues are paler or darker than usual ("yellow" is close to olive, "red" to salmon).

A grammar writes captions from any subset of the attributes. Leaves out occlusion, relations between objects, and
photographs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from dixit.common import rng, sentence, words
from dixit.config import ATTRIBUTES

SPLITS = ("train", "validation", "test", "combos")

# Hue name -> fully saturated sRGB in [0, 1]; `shade` adjusts it to a given luma.
HUES = {
    "red": (0.95, 0.10, 0.10), "orange": (1.00, 0.50, 0.00), "yellow": (0.95, 0.90, 0.00),
    "green": (0.05, 0.70, 0.15), "cyan": (0.00, 0.80, 0.80), "blue": (0.10, 0.25, 1.00),
    "purple": (0.50, 0.10, 0.95), "pink": (1.00, 0.15, 0.70),
}
COLOURS = tuple(HUES)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "big")
TEXTURES = ("plain", "striped", "dotted")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
BACKGROUNDS = ("plain", "striped", "speckled")
TONES = ("light", "dark")
COUNTS = ("one", "two", "three")
OBJECT_LUMA = (0.45, 0.65)  # the same for every hue, and apart from both background tones

# The words for each attribute and for the number of objects.
WORD_CLASSES = {
    "colour": frozenset(COLOURS),
    "shape": frozenset(w for s in SHAPES for w in (s, s + "s", s + "es")),
    "position": frozenset(ROWS + COLUMNS),
    "size": frozenset(SIZES),
    "texture": frozenset({"striped", "dotted", "plain", "speckled"}),
    "count": frozenset(COUNTS),
}

# (colour, shape) pairs that occur in the `combos` split only.
HELD_OUT_PAIRS = frozenset((COLOURS[i], SHAPES[i % len(SHAPES)]) for i in range(len(COLOURS)))


def position(cell: list[int] | tuple[int, int]) -> str:
    """The words for a (row, column) cell of the 3x3 grid."""
    row, column = ROWS[cell[0]], COLUMNS[cell[1]]
    return "centre" if (row, column) == ("middle", "centre") else f"{row} {column}"


def sample_record(seed: int, split: str, index: int) -> dict:
    """Draw a scene's attributes: {"background": {...}, "objects": [{shape, colour, size, texture, cell, luma}, ...]}.

    Scenes of `combos` have pairs of HELD_OUT_PAIRS only, those of other splits none. Objects are in reading order.
    """
    r = rng("scene", seed, split, index)
    count = int(r.choice([1, 2, 3], p=[0.2, 0.4, 0.4]))
    cells = sorted(r.choice(9, size=count, replace=False).tolist())
    objects: list[dict] = []
    for cell in cells:
        while True:
            colour, shape = str(r.choice(COLOURS)), str(r.choice(SHAPES))
            if ((colour, shape) in HELD_OUT_PAIRS) == (split == "combos"):
                break
        objects.append({
            "shape": shape, "colour": colour, "size": str(r.choice(SIZES)), "texture": str(r.choice(TEXTURES)),
            "cell": [cell // 3, cell % 3], "luma": float(r.uniform(*OBJECT_LUMA)),
        })
    return {"background": {"tone": str(r.choice(TONES)), "texture": str(r.choice(BACKGROUNDS))},
            "objects": objects}


def shade(colour: str, luma: float) -> tuple[int, int, int]:
    """The 8-bit sRGB value of a hue at a BT.601 luma in [0, 1]: mixed with white or scaled towards black."""
    base = np.array(HUES[colour])
    full = float(base @ (0.299, 0.587, 0.114))
    rgb = base * (luma / full) if luma <= full else base + (1 - base) * (luma - full) / (1 - full)
    red, green, blue = (int(round(255 * float(c))) for c in rgb)
    return red, green, blue


def _polygon(shape: str, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corner points of a shape around (x, y)."""
    if shape == "cross":
        arm = 0.34
        corners = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1), (-arm, 1),
                   (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
        cos, sin = math.cos(turn), math.sin(turn)
        return [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in corners]
    if shape == "star":
        angles, radii = [math.pi * k / 5 for k in range(10)], [1.15, 0.5] * 5
    else:
        sides = {"triangle": 3, "square": 4}[shape]
        angles = [2 * math.pi * (k + 0.5 * (sides == 4)) / sides for k in range(sides)]
        radii = [1.2] * sides
    return [(x + radius * m * math.sin(a + turn), y - radius * m * math.cos(a + turn))
            for a, m in zip(angles, radii, strict=True)]


def _texture(kind: str, size: int, period: float, r: np.random.Generator) -> Image.Image:
    """An 8-bit mask of the darker parts of a texture."""
    ys, xs = np.mgrid[0:size, 0:size]
    if kind == "striped":
        angle = r.uniform(0, math.pi)
        mask = np.sin(2 * math.pi * (xs * math.cos(angle) + ys * math.sin(angle)) / period) > 0.2
    elif kind == "dotted":
        mask = (np.mod(xs, period) - period / 2) ** 2 + (np.mod(ys, period) - period / 2) ** 2 < (period / 3.4) ** 2
    elif kind == "speckled":
        coarse = r.random((size // 4, size // 4)) < 0.15
        mask = np.kron(coarse, np.ones((4, 4), bool))
    else:
        mask = np.zeros((size, size), bool)
    return Image.fromarray(mask.astype(np.uint8) * 255)


def draw(seed: int, split: str, index: int, size: int) -> tuple[Image.Image, dict]:
    """Render scene `index` of a split: an RGB image of size x size pixels, and its record."""
    record = sample_record(seed, split, index)
    r = rng("pixels", seed, split, index)
    side = 2 * size  # drawn at twice the size, then downsampled
    background = record["background"]
    level = r.uniform(0.86, 0.95) if background["tone"] == "light" else r.uniform(0.12, 0.2)
    grey = int(255 * level)
    other = grey - 22 if background["tone"] == "light" else grey + 22
    canvas = Image.new("RGB", (side, side), (grey,) * 3)
    canvas.paste((other,) * 3, mask=_texture(background["texture"], side, side / 8, r))
    for item in record["objects"]:
        radius = side * (0.08 if item["size"] == "small" else 0.14) * r.uniform(0.92, 1.08)
        row, column = item["cell"]
        x = side * (2 * column + 1) / 6 + r.uniform(-0.02, 0.02) * side
        y = side * (2 * row + 1) / 6 + r.uniform(-0.02, 0.02) * side
        mask = Image.new("L", (side, side), 0)
        pen = ImageDraw.Draw(mask)
        turn = r.uniform(-0.25, 0.25)
        if item["shape"] in ("circle", "ring"):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
            if item["shape"] == "ring":
                hole = radius * 0.55
                pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        else:
            pen.polygon(_polygon(item["shape"], x, y, radius, turn), fill=255)
        light, dark = shade(item["colour"], item["luma"] + 0.04), shade(item["colour"], item["luma"] - 0.12)
        if item["texture"] == "plain":
            light = dark = shade(item["colour"], item["luma"])
        body = Image.new("RGB", (side, side), light)
        body.paste(dark, mask=_texture(item["texture"], side, side / 22, r))
        canvas.paste(body, mask=mask)
    return canvas.reduce(2), record


def _sentence(parts: list[str]) -> str:
    """Join phrases into a sentence: the LLM's perplexity of a bare list is ten times as high."""
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return sentence(text)


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def phrase(item: dict, attributes: frozenset[str] | set[str], noun: str = "shape") -> str:
    """A noun phrase that names just these attributes of an object, e.g. "a big red circle at the top left"."""
    words = [item[a] for a in ("size", "colour", "texture") if a in attributes and item[a] != "plain"]
    words.append(item["shape"] if "shape" in attributes else noun)
    where = f" at the {position(item['cell'])}" if "position" in attributes else ""
    return _article(" ".join(words)) + where


REGIONS: dict[str, Callable[[int, int], bool]] = {  # whether a (row, column) cell of the grid is in the region
    "left": lambda row, column: column == 0, "right": lambda row, column: column == 2,
    "middle": lambda row, column: row == 1, "outer": lambda row, column: (row, column) != (1, 1),
}


def oracle_caption(record: dict, attributes: set[str] | frozenset[str]) -> str:
    """A caption that names exactly these attributes of every object.

    For a colour and a greyscale listener the oracle names {"colour"}, which listener 1 alone can see. A region among
    the attributes, e.g. {"colour", "shape", "left"}, restricts the caption to the objects in it, if there are any.
    """
    regions = [REGIONS[a] for a in sorted(attributes) if a in REGIONS]
    inside = [item for item in record["objects"] if all(region(*item["cell"]) for region in regions)]
    return _sentence([phrase(item, attributes) for item in inside or record["objects"]])


def scene_words(record: dict) -> Counter[str]:
    """Every word of the scenes' vocabulary that is true of a scene, with the number of objects it is true of."""
    true = Counter([COUNTS[len(record["objects"]) - 1], record["background"]["texture"]])
    for item in record["objects"]:
        true.update([*(item[k] for k in ("colour", "shape", "size", "texture")), item["shape"] + "s",
                     item["shape"] + "es", *position(item["cell"]).split()])
    return true


def full_caption(record: dict) -> str:
    """The ground-truth caption: size, colour, shape and position of every object."""
    return oracle_caption(record, frozenset({"size", "colour", "shape", "position"}))


def _caption(record: dict, r: np.random.Generator) -> str:
    objects, background = record["objects"], record["background"]
    if r.random() < 0.05:
        texture = "" if background["texture"] == "plain" else background["texture"] + " "
        shapes = f"{COUNTS[len(objects) - 1]} shape{'s' * (len(objects) > 1)}"
        return _sentence([f"{shapes} on a {background['tone']} {texture}background"])
    # A uniform random subset of attributes; fewer where there are more objects, so that captions stay short.
    most = {1: 4, 2: 3, 3: 2}[len(objects)]
    chosen = set(r.choice(ATTRIBUTES, size=int(r.integers(1, most + 1)), replace=False).tolist())
    noun = str(r.choice(["shape", "thing"]))
    return _sentence([phrase(item, chosen, noun) for item in objects])


def mentioned_attributes(caption: str) -> tuple[float, ...]:
    """For each of ATTRIBUTES, 1 if a caption has a word for it, else -1."""
    mentioned = set(words(caption))
    return tuple(1.0 if mentioned & WORD_CLASSES[a] else -1.0 for a in ATTRIBUTES)


def captions(record: dict, n: int, r: np.random.Generator) -> list[str]:
    """`n` captions of a scene, each naming a random subset of its attributes in a random wording."""
    return [_caption(record, r) for _ in range(n)]
