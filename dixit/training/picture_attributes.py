"""What a caption can name of a picture, as the attributes by which an audience of pictures is known.

A scene has its attributes in its record. A picture shows one thing, so its attributes are which kinds of things are
named at all, whether by a name of their own or by the everyday word, and whether with their colours. A request is a
number for each attribute, above 0 where it is wanted: ("animal", "other") names animals and other things by their
everyday words, and says of food what colours it has. Listeners that differ in what they know (animals or food), in
their words (experts or novices) and in colours are then told apart by picks, and what serves one of them best is a
request.

Leaves out broad kinds (an animal) and the words of scenes.

Shapes: n classes of a CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence

from dixit.common import words
from dixit.config import KnowledgeConfig, ListenerConfig
from dixit.data.known import COLOUR_NAMES
from dixit.data.names import is_basic, noun_of, phrase
from dixit.models.clip import Clip
from dixit.models.listeners import known_classes

KINDS = ("animal", "food", "other")  # of things, by WordNet; other: neither
PICTURE_ATTRIBUTES = (*KINDS, "name", "colour")  # name: the thing's own name instead of the everyday word
REQUESTED = (0.7, 0.7, 0.7, 0.5, 0.4)  # fraction of the requests in training that want each attribute


def request(attributes: Sequence[str]) -> tuple[float, ...]:
    """The request for these attributes and no others."""
    return tuple(1.0 if a in attributes else -1.0 for a in PICTURE_ATTRIBUTES)


def request_for(attribute: str) -> tuple[float, ...]:
    """The request for one attribute. A name of its own is wanted of every kind of things, colours alone of none."""
    return request({"name": (*KINDS, "name"), "colour": ("colour",)}.get(attribute, (attribute,)))


def requested_caption(wanted: Sequence[float], kind: int, name: str, word: str, colours: list[str]) -> str:
    """A caption that does what a request says, of a thing of a kind with a name of its own and an everyday word.

    Where things of this kind are not to be named, it says what colours the picture has.
    """
    asked = {attribute for attribute, value in zip(PICTURE_ATTRIBUTES, wanted, strict=True) if value > 0}
    said, noun = " and ".join(colours), name if "name" in asked else word
    if KINDS[kind] not in asked:
        text = f"something {said}"
    else:
        text = phrase(f"{said} {noun}" if "colour" in asked else noun)
    return text[0].upper() + text[1:] + "."


def mentioned(caption: str) -> tuple[bool, bool, bool]:
    """Whether a caption names a thing, whether by a name that is no everyday word, and whether a colour."""
    noun = noun_of(caption)
    return bool(noun), bool(noun) and not is_basic(noun), not COLOUR_NAMES.isdisjoint(words(caption))


def class_kinds(clip: Clip) -> list[int]:
    """Which of KINDS each class of a CLIP that names things is of."""
    animal, food = (known_classes(clip, ListenerConfig(kind, knows=KnowledgeConfig(eyes=kind))) for kind in KINDS[:2])
    assert animal is not None and food is not None
    return [0 if a else 1 if f else 2 for a, f in zip(animal.tolist(), food.tolist(), strict=True)]
