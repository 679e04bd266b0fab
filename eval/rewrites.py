"""Rewrites of captions, to see what of the gap they leave: some keep the meaning, some lose a part of it.

undoubled, reordered, reworded    keep it: no repeated words, other order of phrases, synonyms; rewritten is all three
back_translated                   into German and back by the German listeners' word list: a word that it has comes back
                                  as itself, the others are lost
shuffled, halved                  the words without their order, and the first half of them

Leaves out paraphrases by the LLM (eval/paraphrase.py). A caption's rewrite is a function of the caption.
"""

from __future__ import annotations

import re

from dixit.common import rng, sentence, words
from dixit.data import scenes
from dixit.models.listeners import GERMAN

DOUBLED = re.compile(r"\b(\w+)(?:\s+\1\b)+", re.IGNORECASE)
# Words of the same meaning: rewrites swap them, claims read both.
SYNONYMS = {"shape": "thing", "shapes": "things", "object": "item", "objects": "items", "big": "large",
            "small": "little", "circle": "disc", "circles": "discs", "purple": "violet", "striped": "stripy",
            "dotted": "spotted"}
PLACES = {"top": "upper", "bottom": "lower"}  # only beside a column: "at the top" has no such twin
PLAIN = ({other: word for word, other in (SYNONYMS | PLACES).items()} | {"center": "centre", "discs": "circle"}
         | {shape + end: shape for shape in scenes.SHAPES for end in ("s", "es")})
KINDS = {word: kind for kind, members in scenes.WORD_CLASSES.items() for word in members}
DETERMINERS = ("a", "an", "the", *scenes.COUNTS)

PLACE = re.compile(r"\b(at|in) the (?:(top|bottom|upper|lower|middle) )?(left|centre|center|right)\b", re.IGNORECASE)
SWAPS = SYNONYMS | {other: word for word, other in SYNONYMS.items()}
ROW_SWAPS = PLACES | {other: word for word, other in PLACES.items()}


def undouble(text: str) -> str:
    """Remove directly repeated words: "a green green thing" becomes "a green thing"."""
    return DOUBLED.sub(r"\1", text)


def reorder(text: str) -> str:
    """Reverse the order of a caption's noun phrases; unchanged unless every part is a complete noun phrase."""
    parts = [p for p in re.split(r"\s*[,;.]\s*(?:and\s+)?|\s+and\s+", text.strip()) if p]
    for part in parts:
        tokens = words(re.split(r"\s(?:at|in|on|with|of)\s", part)[0])
        kind = KINDS.get(PLAIN.get(tokens[-1], tokens[-1]), "shape") if tokens else ""  # an unknown word is a noun
        # "a red" of "a red and blue circle" is no phrase that could move.
        if len(tokens) < 2 or tokens[0] not in DETERMINERS or kind != "shape":
            return text
    return scenes._sentence([p[0].lower() + p[1:] for p in reversed(parts)]) if len(parts) > 1 else text


def reword(text: str) -> str:
    """Replace words by synonyms: shape and thing, big and large, at the top left and in the upper left ..."""
    def place(match: re.Match) -> str:
        preposition, row, column = match.groups()
        other = {"at": "in", "in": "at"}[preposition.lower()]
        return " ".join([other, "the", *([ROW_SWAPS.get(row.lower(), row)] if row else []), column])

    def swap(match: re.Match) -> str:
        new = SWAPS.get(match[0].lower(), match[0])
        return new.capitalize() if match[0][0].isupper() else new

    return re.sub(r"[A-Za-z]+", swap, PLACE.sub(place, text))


IN_GERMAN = frozenset(GERMAN.values())


def _said(found: list[str]) -> str:
    return sentence(" ".join(found)) if found else ""


def back_translate(text: str) -> str:
    """The words that have a German one in the word list; the others are lost."""
    return _said([word for word in words(text) if word in IN_GERMAN])


def shuffle(text: str) -> str:
    """The words in an order that is drawn, a function of the caption."""
    found = words(text)
    return _said([found[i] for i in rng("shuffled words", text).permutation(len(found))])


def halve(text: str) -> str:
    """The first half of the words, at least one."""
    found = words(text)
    return _said(found[:(len(found) + 1) // 2])


KEEPING = {"undoubled": undouble, "reordered": reorder, "reworded": reword,
           "rewritten": lambda text: reword(reorder(undouble(text)))}
REWRITES = {**KEEPING, "back_translated": back_translate, "shuffled": shuffle, "halved": halve}
