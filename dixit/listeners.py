"""Listeners: they read a caption and score candidate images.

Anything with one method `score` is a listener. Leaves out how scores become a reward (game.py).

Shapes: S captions, C candidates, E embedding width, n images of the dataset.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from dixit.clip import Clip, image_embeddings, load_clip
from dixit.common import DixitError, words
from dixit.config import ListenerConfig
from dixit.scenes import WORD_CLASSES


@runtime_checkable
class Listener(Protocol):
    """Scores candidates, given as places in the dataset the listener looks at."""

    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        """Logits over each caption's candidates; softmax gives its belief."""


class ClipListener:
    """A CLIP that sees through a perception and may know only some words.

    Its image embeddings of the dataset are computed once. A caption of which it knows no word gives equal
    logits.
    """

    def __init__(self, clip: Clip, images: Float[Tensor, "n E"], vocabulary: tuple[str, ...] = (),
                 domain: str = ""):
        if domain and domain not in WORD_CLASSES:
            raise DixitError(f"unknown listener domain '{domain}'; choose one of {', '.join(WORD_CLASSES)}")
        self.clip = clip
        self.images = images.to(clip.device)
        every = frozenset().union(*WORD_CLASSES.values())
        self.known = frozenset(vocabulary) or None
        self.foreign = every - WORD_CLASSES[domain] if domain else frozenset()

    def understood(self, text: str) -> str:
        """The caption without the words this listener does not know."""
        return " ".join(w for w in words(text) if (self.known is None or w in self.known) and w not in self.foreign)

    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        heard = texts if self.known is None and not self.foreign else [self.understood(t) for t in texts]
        embedded = self.clip.embed_texts(heard)  # (S, E)
        images = self.images[candidates.to(self.images.device)]  # (S, C, E)
        logits = self.clip.scale * torch.einsum("se,sce->sc", embedded, images)
        silent = torch.tensor([not words(t) for t in heard], device=logits.device)
        return logits.masked_fill(silent[:, None], 0.0)


def make_listeners(configs: tuple[ListenerConfig, ...], dataset: Dataset,
                   device: str | torch.device = "cpu") -> list[ClipListener]:
    """Listeners that look at `dataset`; those with the same CLIP share it and its text passes."""
    clips: dict[tuple[str, str], Clip] = {}
    made = []
    for c in configs:
        key = (c.clip, c.pretrained)
        if key not in clips:
            clips[key] = load_clip(c.clip, c.pretrained, device)
        images = image_embeddings(clips[key], dataset, c.perception)
        made.append(ClipListener(clips[key], images, c.vocabulary, c.domain))
    return made


def score_all(listeners: list, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "L S C"]:
    """Every listener's logits. Raises DixitError if one returns NaN."""
    logits = torch.stack([listener.score(texts, candidates) for listener in listeners])
    if torch.isnan(logits).any():
        place = int(torch.isnan(logits).flatten(1).any(1).nonzero()[0])
        raise DixitError(f"listener {place + 1} returned NaN scores; check its model and its images")
    return logits
