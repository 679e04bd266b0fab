"""What captions of pictures are made of: names of things, colours, English words. Functions on texts and images.

Leaves out how often listeners find the pictures (eval/evaluate.py, eval/naming.py).
"""

from __future__ import annotations

import functools
import re
from typing import Any

from datasets import Dataset

from dixit.common import words
from dixit.data.known import COLOUR_NAMES, row_colours
from dixit.data.names import noun_of
from dixit.data.wordnet import wordnet

from .metrics import mean_and_error

COLOURLESS = frozenset({"black", "white", "grey"})


def is_english(caption: str) -> bool:
    """Whether a caption is made of English words and numbers only."""
    found = re.findall(r"[^\W_]+", caption)
    return bool(found) and all(word.isdecimal() or wordnet().is_english(word.lower()) for word in found)


def is_file_name(caption: str) -> bool:
    """Whether a caption holds a word as in file names, e.g. IMG_0001: letters with digits or an underscore."""
    return bool(re.search(r"\w_|_\w|[^\W\d_]\d|\d[^\W\d_]", caption))


@functools.cache
def names_truly(caption: str, concept: str) -> bool | None:
    """Whether the thing that a caption names is the concept, a synonym, a hypernym or a hyponym of it; None if it names
    nothing, or the concept is no noun."""
    named, wanted = noun_of(caption), noun_of(concept) or concept
    return wordnet().related(named, wanted) if named and wordnet().senses(wanted) else None


def keeps_name(before: list[str], after: list[str]) -> list[float]:
    """For each caption that names a thing, whether its rewrite names the same one by the rule of `names_truly`."""
    return [float(bool(names_truly(new, noun_of(old)))) for old, new in zip(before, after, strict=True) if noun_of(old)]


def without_colours(dataset: Dataset) -> list[bool]:
    """For each picture, whether its pixels have no colour but black, white and grey."""
    return [set(row_colours(row)) <= COLOURLESS for row in dataset]


def caption_figures(texts: list[str], concepts: list[str], plain: list[bool]) -> dict[str, Any]:
    """Shares of captions: that name a thing (says/name), of these a true one (true_name); that name a colour
    (says/colour); of pictures without colours, those given one (invented_colour); that are English (english), and that
    look like file names (file_name). `plain` is `without_colours` of the pictures."""
    true = [names_truly(text, concept) for text, concept in zip(texts, concepts, strict=True)]
    hues = [bool(set(words(text)) & (COLOUR_NAMES - COLOURLESS)) for text in texts]
    shares: dict[str, list[bool]] = {
        "says/name": [bool(noun_of(text)) for text in texts], "true_name": [t for t in true if t is not None],
        "says/colour": [bool(set(words(text)) & COLOUR_NAMES) for text in texts],
        "invented_colour": [hue for hue, none in zip(hues, plain, strict=True) if none],
        "english": [is_english(text) for text in texts], "file_name": [is_file_name(text) for text in texts]}
    return {name: mean_and_error([float(v) for v in values]) for name, values in shares.items() if values}
