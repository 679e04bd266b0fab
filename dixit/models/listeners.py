"""Listeners: they read a caption and score candidate images.

Anything with one method `score` is a listener. Leaves out how scores become a reward (game.py).

Shapes: S captions, C candidates, E embedding width, n images of the dataset.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Protocol, runtime_checkable

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dixit.common import DixitError, first_line, words
from dixit.config import ListenerConfig
from dixit.data.scenes import WORD_CLASSES, scene_words
from dixit.models.clip import Clip, load_clip
from dixit.models.features import image_embeddings


@runtime_checkable
class Listener(Protocol):
    """Scores candidates, given as places in the dataset the listener looks at."""

    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        """Logits over each caption's candidates; softmax gives its belief."""


# What a German listener reads, in the words its CLIP knows. Two are the same in both languages.
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
    """Which words of a caption a listener understands, and as what."""

    def __init__(self, config: ListenerConfig):
        if config.domain and config.domain not in WORD_CLASSES:
            raise DixitError(f"unknown listener domain '{config.domain}'; choose one of {', '.join(WORD_CLASSES)}")
        every: frozenset[str] = frozenset().union(*WORD_CLASSES.values())
        self.known = frozenset(config.vocabulary) or None
        self.foreign = every - WORD_CLASSES[config.domain] if config.domain else frozenset()
        self.lexicon = GERMAN if config.language == "german" else None
        self.perfect = self.known is None and not self.foreign and self.lexicon is None

    def apply(self, text: str) -> str:
        """The caption without the words this listener does not know, in English."""
        if self.perfect:
            return text
        said = words(text)
        if self.lexicon is not None:
            said = [self.lexicon[w] for w in said if w in self.lexicon]
        return " ".join(w for w in said if (self.known is None or w in self.known) and w not in self.foreign)


class ClipListener:
    """A CLIP that sees through a perception and may know only some words.

    Its image embeddings of the dataset are computed once. A caption of which it knows no word gives equal
    logits. What it learns, if it learns at all, is a linear map of what it hears, `ear`.
    """

    def __init__(self, clip: Clip, images: Float[Tensor, "n E"], config: ListenerConfig):
        self.clip, self.word_filter = clip, WordFilter(config)
        self.images = images.to(clip.device)
        self.learning_rate = config.learning_rate
        self.text_map: Float[Tensor, "E E"] | None = None
        if config.learning_rate:
            self.text_map = torch.eye(images.shape[1], device=clip.device)

    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        heard = [self.word_filter.apply(text) for text in texts]
        embedded = self.clip.embed_texts(heard)  # (S, E)
        if self.text_map is not None:
            embedded = F.normalize(embedded @ self.text_map, dim=-1)
        images = self.images[candidates.to(self.images.device)]  # (S, C, E)
        logits = self.clip.scale * torch.einsum("se,sce->sc", embedded, images)
        silent = torch.tensor([not words(t) for t in heard], device=logits.device)
        return logits.masked_fill(silent[:, None], 0.0)

    @torch.enable_grad()
    def slope(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "E E"]:
        """The gradient of its mean -log p(target) with respect to `ear`; the target is at place 0."""
        assert self.text_map is not None
        self.text_map.requires_grad_(True)
        loss = -self.score(texts, candidates).log_softmax(-1)[:, 0].mean()
        slope, = torch.autograd.grad(loss, self.text_map)
        self.text_map.requires_grad_(False)
        return slope


class AttributeListener:
    """Text only: it reads each scene's record. A word scores 1 each time that it is said and there is one more thing
    it is true of, and -1 each time that there is none: of one red circle, "a red ring and a red cross" says red once
    truly and once falsely. Words outside the scenes' vocabulary say nothing."""

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
        heard = [Counter(words(self.word_filter.apply(text))) for text in texts]
        said = torch.tensor([[float(one[word]) for word in self.words] for one in heard], device=self.truth.device)
        true = torch.minimum(said[:, None], self.truth[candidates.to(self.truth.device)])  # (S, C, words)
        return self.SCALE * (2 * true - said[:, None]).sum(-1)


def make_listeners(configs: tuple[ListenerConfig, ...], dataset: Dataset,
                   device: str | torch.device = "cpu") -> list[Listener]:
    """Listeners that look at `dataset`; those with the same CLIP share it and its text passes."""
    clips: dict[tuple[str, str], Clip] = {}
    made: list[Listener] = []
    for c in configs:
        if c.kind == "attributes":
            made.append(AttributeListener(dataset, c, device))
            continue
        key = (c.clip, c.pretrained)
        if key not in clips:
            clips[key] = load_clip(c.clip, c.pretrained, device)
        made.append(ClipListener(clips[key], image_embeddings(clips[key], dataset, c.perception), c))
    return made


def score_all(listeners: list, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "L S C"]:
    """Every listener's logits. Raises DixitError if one fails or returns NaN."""
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
    if torch.isnan(logits).any():
        place = int(torch.isnan(logits).flatten(1).any(1).nonzero()[0])
        raise DixitError(f"listener {place + 1} returned NaN scores; check its model and its images")
    return logits
