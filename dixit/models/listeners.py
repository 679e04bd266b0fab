"""Listeners: they read a caption and score candidate images.

Any object with one method `score` is a listener. Leaves out how scores become a reward (training/game.py).

Shapes: S captions, C candidates, E embedding width, n images of the dataset.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Protocol, runtime_checkable

import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dixit.common import DixitError, first_line, words
from dixit.config import ListenerConfig
from dixit.data.known import COLOUR_NAMES
from dixit.data.names import NameFilter, noun_of, things_of
from dixit.data.scenes import WORD_CLASSES, scene_words
from dixit.models.clip import Clip
from dixit.models.named import IMAGENET


@runtime_checkable
class Listener(Protocol):
    """Scores candidate images, given as indices into the dataset that the listener sees."""

    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        """Logits over each caption's candidates; their softmax is the listener's belief."""


# German words in the words that the CLIP of a German listener knows. Two are the same in both languages.
GERMAN = {
    "rot": "red", "rote": "red", "roter": "red", "rotes": "red", "orange": "orange", "gelb": "yellow",
    "gelbe": "yellow", "gelber": "yellow", "gelbes": "yellow", "grün": "green", "grüne": "green", "grüner": "green",
    "grünes": "green", "türkis": "cyan", "blau": "blue", "blaue": "blue", "blauer": "blue", "blaues": "blue",
    "lila": "purple", "rosa": "pink", "kreis": "circle", "quadrat": "square", "dreieck": "triangle", "stern": "star",
    "kreuz": "cross", "ring": "ring", "klein": "small", "kleine": "small", "kleiner": "small", "kleines": "small",
    "groß": "big", "große": "big", "großer": "big", "großes": "big", "gestreift": "striped", "gepunktet": "dotted",
    "oben": "top", "unten": "bottom", "links": "left", "rechts": "right", "mitte": "centre", "ein": "one",
    "eine": "one", "zwei": "two", "drei": "three", "und": "and", "form": "shape", "formen": "shapes",
}


class WordFilter:
    """Reduces a caption to the words that a listener understands: its vocabulary, domain, names and language."""

    def __init__(self, config: ListenerConfig):
        classes = {**WORD_CLASSES, "colour": WORD_CLASSES["colour"] | COLOUR_NAMES, "thing": frozenset()}
        if config.domain and config.domain not in classes:
            raise DixitError(f"unknown listener domain '{config.domain}'; choose one of {', '.join(classes)}")
        every: frozenset[str] = frozenset().union(*classes.values())
        self.vocabulary = frozenset(config.vocabulary) or None
        self.excluded = every - classes[config.domain] if config.domain else frozenset()
        self.lexicon = GERMAN if config.language == "german" else None
        knows = config.knows
        self.names = NameFilter(knows.words, knows.names) if knows.words != "expert" or knows.names else None
        self.keeps_all = self.vocabulary is None and not self.excluded and self.lexicon is None and self.names is None

    def apply(self, text: str) -> str:
        """The caption without the words this listener does not know, in English."""
        if self.keeps_all:
            return text
        found = words(text)
        if self.lexicon is not None:
            found = [self.lexicon[w] for w in found if w in self.lexicon]
        if self.names is not None:
            found = self.names.keep(found)
        return " ".join(w for w in found if (self.vocabulary is None or w in self.vocabulary)
                        and w not in self.excluded)


class ClipListener:
    """A CLIP that sees images through a perception and may understand only some words.

    Its image embeddings of the dataset are computed once. A caption without a word that it understands gets equal
    logits. With a learning rate it adapts a linear map of its text embeddings, `text_map`.
    """

    def __init__(self, clip: Clip, images: Float[Tensor, "n E"], config: ListenerConfig):
        self.clip, self.word_filter = clip, WordFilter(config)
        self.images = images.to(clip.device)
        self.learning_rate = config.learning_rate
        self.text_map: Float[Tensor, "E E"] | None = None
        if config.learning_rate:
            self.text_map = torch.eye(images.shape[1], device=clip.device)

    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        filtered = [self.word_filter.apply(text) for text in texts]
        embedded = self.clip.embed_texts(filtered)  # (S, E)
        if self.text_map is not None:
            embedded = F.normalize(embedded @ self.text_map, dim=-1)
        images = self.images[candidates.to(self.images.device)]  # (S, C, E)
        logits = self.clip.scale * torch.einsum("se,sce->sc", embedded, images)
        empty = torch.tensor([not words(t) for t in filtered], device=logits.device)
        return logits.masked_fill(empty[:, None], 0.0)

    @torch.enable_grad()
    def text_map_gradient(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "E E"]:
        """The gradient of the mean -log p(target) with respect to `text_map`; the target is candidate 0."""
        assert self.text_map is not None
        self.text_map.requires_grad_(True)
        loss = -self.score(texts, candidates).log_softmax(-1)[:, 0].mean()
        gradient, = torch.autograd.grad(loss, self.text_map)
        self.text_map.requires_grad_(False)
        return gradient


class AttributeListener:
    """Reads each scene's record instead of its pixels.

    Each occurrence of a word scores 1 if the scene has one more object of which it is true, else -1: of a scene with
    one red circle, "a red ring and a red cross" uses red once truly and once falsely. Words outside the scenes'
    vocabulary score 0.
    """

    SCALE = 3.0  # logits per word

    def __init__(self, dataset: Dataset, config: ListenerConfig, device: str | torch.device = "cpu"):
        if not all(dataset["record"]):
            raise DixitError(f"listener '{config.name}' reads scene records, and these images have none; "
                             "use kind: clip, or data.name: scenes")
        self.word_filter = WordFilter(config)
        self.words = sorted(frozenset().union(*WORD_CLASSES.values()))
        true = [scene_words(json.loads(record)) for record in dataset["record"]]
        self.truth = torch.tensor([[float(one[word]) for word in self.words] for one in true], device=device)

    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        counts = [Counter(words(self.word_filter.apply(text))) for text in texts]
        used = torch.tensor([[float(one[word]) for word in self.words] for one in counts], device=self.truth.device)
        true = torch.minimum(used[:, None], self.truth[candidates.to(self.truth.device)])  # (S, C, words)
        return self.SCALE * (2 * true - used[:, None]).sum(-1)


def known_classes(clip: Clip, config: ListenerConfig) -> Bool[Tensor, "n_classes"] | None:
    """Which of its CLIP's classes a listener's eyes can tell apart; None for all. Raises DixitError if the CLIP has no
    classes, or the listener would know none."""
    if not config.knows.eyes:
        return None
    if clip.named is None:
        raise DixitError(f"listener {config.name}: knows.eyes needs a CLIP that names things, and {clip.name} does "
                         "not; take one that was trained with clip.names, e.g. lite0-pictures")
    known, others = things_of(config.knows.eyes), NameFilter("expert", config.knows.eyes)
    mask = torch.tensor([i in known if i < IMAGENET else others.known(noun_of(label))
                         for i, label in enumerate(clip.classes)])
    if not mask.any():
        raise DixitError(f"listener {config.name}: knows.eyes '{config.knows.eyes}' leaves it no class; choose another "
                         "kind")
    return mask


def score_all(listeners: list, texts: list[str], candidates: Int[Tensor, "S C"],
              allow_nan: bool = False) -> Float[Tensor, "L S C"]:
    """The logits of every listener. Raises DixitError if one fails, or returns NaN that is not allowed."""
    scores = []
    for place, listener in enumerate(listeners, 1):
        try:
            scores.append(listener.score(texts, candidates))
        except DixitError:
            raise
        except Exception as error:  # a listener may be anyone's code
            raise DixitError(f"listener {place} failed ({type(error).__name__}: {first_line(error)}); mend it or take "
                             "it out of the config, then run the same command again") from error
    logits = torch.stack(scores)
    if not allow_nan and torch.isnan(logits).any():
        place = int(torch.isnan(logits).flatten(1).any(1).nonzero()[0])
        raise DixitError(f"listener {place + 1} returned NaN scores; check its model and its images")
    return logits
