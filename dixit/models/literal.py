"""Listeners that are captioners: the likelier one of them would say the caption of a candidate, the more it believes
in that candidate.

Its logits are log p(caption | candidate). With equal priors their softmax over the candidates is, by Bayes' rule, the
belief of a listener who takes the speaker for a literal one, as in rational speech acts (Frank and Goodman 2012; with
learned captioners Andreas and Klein 2016).

An image runs through the captioner once; its key-value cache is kept. The captions that are scored with an image run
after it together, and what they begin with in common runs once where the decoder can branch.

Leaves out opening runs (training/runs.py) and vision-language models (vlm.py).

Shapes: S captions, C candidates, n images of the dataset, B images that run together, P patches, Dv patch width,
D LLM width, t tokens, p paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dixit.common import sentence, words
from dixit.config import ListenerConfig
from dixit.models.decoder import Decoder, Tree
from dixit.models.head import Head
from dixit.models.listeners import WordFilter
from dixit.models.speaker import Speaker

IMAGES = 16  # that run at once; always so many, for the last digits of an image's cache depend on the number
BLOCK = 256  # images whose captions are scored before those of the next ones, at most
NODES = 64  # tokens of several captions in one row, at most: attention grows with their square
TOKENS, GPU_TOKENS = 512, 16384  # that run at once, on a CPU and on a GPU, at most
CACHE_BYTES = 2**30  # each: of the caches that a listener keeps, where those of further images are made again when
# needed, of those of a block, and of those that run at once
Tokens = tuple[int, ...]  # of a caption, the end token included


@runtime_checkable
class Captioner(Protocol):
    """A model of captions of the images of a dataset."""

    decoder: Decoder
    head: Head
    device: torch.device

    def prefill(self, images: Sequence[int]) -> tuple[Any, Float[Tensor, "B D"]]:
        """Run all that stands before the captions of these images: their cache and the last hidden states."""

    def token_rows(self, texts: list[str]) -> list[list[int]]:
        """The tokens of captions, the end token included."""


class SpeakerCaptioner:
    """A speaker of this project, and the patch features of the images it sees."""

    def __init__(self, speaker: Speaker, patches: Float[np.ndarray, "n P Dv"]):
        self.speaker, self.patches = speaker, patches
        self.decoder, self.head, self.device = speaker.decoder, speaker.head, speaker.device

    def prefill(self, images: Sequence[int]) -> tuple[Any, Float[Tensor, "B D"]]:
        some = torch.from_numpy(np.asarray(self.patches[list(images)], dtype=np.float32))
        return self.speaker.prefill(self.speaker.trained(some.to(self.device)))

    def token_rows(self, texts: list[str]) -> list[list[int]]:
        return self.speaker.token_rows(texts)


class Branches:
    """Captions as a tree of tokens. Each token that another one follows runs through the LLM once; each that follows
    another or the image is predicted once, though several captions may have it."""

    def __init__(self) -> None:
        self.captions: list[int] = []  # their places
        self.tokens: list[int] = []
        self.depth: list[int] = []
        self.parents: list[int] = []  # the token before; -1: the image
        self.predicted: list[tuple[int, int]] = []  # (the token before, token)
        self.paths: list[list[int]] = []  # of each caption: its predicted tokens
        self.places: dict[Tokens, int] = {(): -1}
        self.edges: dict[Tokens, int] = {}

    def add(self, place: int, caption: Tokens) -> None:
        """Add a caption, which has a place among all captions."""
        path = []
        for t, token in enumerate(caption):
            before, here = caption[:t], caption[:t + 1]
            if here not in self.edges:
                self.edges[here] = len(self.predicted)
                self.predicted.append((self.places[before], token))
            path.append(self.edges[here])
            if t + 1 < len(caption) and here not in self.places:
                self.places[here] = len(self.tokens)
                self.tokens.append(token)
                self.depth.append(t)
                self.parents.append(self.places[before])
        self.captions.append(place)
        self.paths.append(path)

    def sees(self) -> np.ndarray:
        """(t, t): whether a token comes after another on its branch, or is it."""
        seen = np.eye(len(self.tokens), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i] |= seen[parent]
        return seen


def branches(places: Sequence[int], captions: Sequence[Tokens], most: int) -> list[Branches]:
    """Trees that hold the captions at these places, in their order. A tree has at most so many tokens, or one caption.
    """
    trees: list[Branches] = []
    for place in places:
        if not trees or len(trees[-1].tokens) + len(captions[place]) > most:
            trees.append(Branches())
        trees[-1].add(place, captions[place])
    return trees


class LiteralListener:
    """Its logits are log p(caption | candidate) by a captioner, in nats, divided by the number of tokens if
    `length_normalised`.

    If it understands some words only, the captioner reads a sentence of these; a caption without any gets equal logits.
    """

    def __init__(self, captioner: Captioner, config: ListenerConfig):
        self.captioner, self.length_normalised = captioner, config.length_normalised
        self.word_filter = WordFilter(config)
        self.kept: dict[int, tuple[Any, Float[Tensor, "1 D"]]] = {}  # by image: cache and last hidden state
        self.free = CACHE_BYTES
        self.bytes = 0  # of one image's cache; known when the first ones have run

    @torch.no_grad()
    def score(self, texts: list[str], candidates: Int[Tensor, "S C"]) -> Float[Tensor, "S C"]:
        read = [self.read(text) for text in texts]
        rows = self.captioner.token_rows(read) if read else []
        captions = sorted({tuple(row) for row, text in zip(rows, read, strict=True) if text})
        place = {caption: i for i, caption in enumerate(captions)}
        own = [place[tuple(row)] if text else -1 for row, text in zip(rows, read, strict=True)]
        asked: dict[int, set[int]] = {}  # image -> the captions that are scored with it
        for i, images in zip(own, candidates.tolist(), strict=True):
            for image in images if i >= 0 else ():
                asked.setdefault(image, set()).add(i)
        everyone = sorted(asked)
        found: dict[tuple[int, int], float] = {}
        if everyone and not self.bytes:
            self._prefilled(everyone[:IMAGES])  # as many as run at once in any case
        block = min(BLOCK, self._room())
        for start in range(0, len(everyone), block):
            some = everyone[start:start + block]
            found |= self._logp({image: tuple(sorted(asked[image])) for image in some}, captions)
        logits = [found[image, i] if i >= 0 else 0.0
                  for i, images in zip(own, candidates.tolist(), strict=True) for image in images]
        return torch.tensor(logits, device=self.captioner.device).reshape(candidates.shape)

    def _room(self) -> int:
        """The number of images whose caches have CACHE_BYTES together, at least one."""
        return max(CACHE_BYTES // max(self.bytes, 1), 1)

    def read(self, text: str) -> str:
        """The caption as the captioner reads it; empty if there is no word that the listener understands."""
        understood = self.word_filter.apply(text)
        if not words(understood):
            return ""
        return text if self.word_filter.keeps_all else sentence(understood)

    def _logp(self, asked: dict[int, tuple[int, ...]], captions: list[Tokens]) -> dict[tuple[int, int], float]:
        """The logit of each image with each caption that is asked for, by (image, place of the caption)."""
        images, decoder = list(asked), self.captioner.decoder
        cache, first = self._caches(images)
        trees = {places: branches(places, captions, NODES if decoder.branches else 0)
                 for places in set(asked.values())}
        work = [(row, tree) for row, places in enumerate(asked.values()) for tree in trees[places]]
        work.sort(key=lambda item: len(item[1].tokens))  # little padding
        most = TOKENS if self.captioner.device.type == "cpu" else GPU_TOKENS
        found: dict[tuple[int, int], float] = {}
        while work:
            count = max(min(most // max(len(work[-1][1].tokens), 1), self._room()), 1)  # the longest ones first
            batch, work = work[-count:], work[:-count]
            values = iter(self._run(cache, first, batch))
            found.update({(images[row], place): next(values) for row, tree in batch for place in tree.captions})
        return found

    def _run(self, cache: Any, first: Float[Tensor, "B D"], batch: list[tuple[int, Branches]]) -> list[float]:
        """The logits of the captions of some trees, each after the image of a row of the cache."""
        decoder, device = self.captioner.decoder, self.captioner.device
        width = max(len(tree.tokens) for _, tree in batch)
        rows = torch.tensor([row for row, _ in batch], device=device)
        hidden = first[rows, None]
        if width:
            tokens, depth = np.zeros((2, len(batch), width), dtype=np.int64)
            sees = np.tile(np.eye(width, dtype=bool), (len(batch), 1, 1))
            for i, (_, tree) in enumerate(batch):
                size = len(tree.tokens)
                tokens[i, :size], depth[i, :size] = tree.tokens, tree.depth
                sees[i, :size, :size] = tree.sees()
            shape = Tree(*(torch.from_numpy(x).to(device) for x in (depth, sees))) if decoder.branches else None
            body = decoder.extend(decoder.select(cache, rows, room=width), torch.from_numpy(tokens).to(device), shape)
            hidden = torch.cat([hidden, body], 1)
        before = [i * (width + 1) + 1 + parent for i, (_, tree) in enumerate(batch) for parent, _ in tree.predicted]
        token = [token for _, tree in batch for _, token in tree.predicted]
        picked = self.captioner.head.token_logp(hidden.flatten(0, 1)[torch.tensor(before, device=device)],
                                                torch.tensor(token, device=device))
        start, paths = 0, []
        for _, tree in batch:
            paths += [[start + edge for edge in path] for path in tree.paths]
            start += len(tree.predicted)
        longest = max(map(len, paths))
        index = torch.tensor([path + [start] * (longest - len(path)) for path in paths], device=device)
        total = F.pad(picked, (0, 1))[index].sum(1)
        if self.length_normalised:
            total /= torch.tensor([float(len(path)) for path in paths], device=device)
        return total.tolist()

    def _caches(self, images: list[int]) -> tuple[Any, Float[Tensor, "B D"]]:
        """Cache and last hidden states of some images."""
        found = self._prefilled(images)
        return (self.captioner.decoder.join([found[i][0] for i in images]),
                torch.cat([found[i][1] for i in images]))

    def _prefilled(self, images: list[int]) -> dict[int, tuple[Any, Float[Tensor, "1 D"]]]:
        """Cache and last hidden state of each image; new ones are run, and kept while there is room."""
        decoder = self.captioner.decoder
        found = {image: self.kept[image] for image in images if image in self.kept}
        new = [image for image in images if image not in found]
        for start in range(0, len(new), IMAGES):
            some = new[start:start + IMAGES]
            cache, hidden = self.captioner.prefill(some + some[-1:] * (IMAGES - len(some)))
            for i, image in enumerate(some):
                one = decoder.select(cache, torch.tensor([i], device=hidden.device))
                found[image] = one, hidden[i:i + 1]
                self.bytes = decoder.size(one)
                if self.bytes <= self.free:
                    self.free -= self.bytes
                    self.kept[image] = found[image]
        return found
