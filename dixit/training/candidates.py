"""Candidate images of the reference game: a target and its distractors, drawn as pure functions of (seed, step).

Leaves out the listeners that score them (models/listeners.py) and the reward (game.py).

Shapes: B images, M pools of C candidates each, n images of the dataset, E embedding width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from dixit.common import DixitError, rng
from dixit.config import Config
from dixit.models.listeners import ClipListener, Listener


def draw_candidates(targets: Int[np.ndarray, "B"], pool: Int[np.ndarray, "n"], candidates: int,
                    *key: int | str) -> Int[Tensor, "B C"]:
    """Each target, then C-1 different distractors drawn from `pool` without the target. Pure in `key`.

    Raises DixitError if the pool is too small.
    """
    if len(pool) < candidates:
        raise DixitError(f"game.candidates {candidates} needs at least as many images, but there are only "
                         f"{len(pool)}; lower game.candidates or add images")
    r = rng("candidates", *key)
    rows = []
    for target in targets:
        chosen = r.choice(pool, size=candidates, replace=False)
        chosen = chosen[chosen != target][: candidates - 1]
        rows.append(np.concatenate([[target], chosen]))
    return torch.from_numpy(np.stack(rows))


def draw_hard_candidates(targets: Int[np.ndarray, "B"], neighbours: Int[np.ndarray, "n m"], candidates: int,
              *key: int | str) -> Int[Tensor, "B C"]:
    """Like draw_candidates, from each target's own nearest neighbours (itself not among them)."""
    r = rng("candidates", *key)
    return torch.from_numpy(np.stack([
        np.concatenate([[t], r.choice(neighbours[t], size=candidates - 1, replace=False)]) for t in targets]))


def nearest_images(embeddings: Float[Tensor, "n E"], count: int) -> Int[np.ndarray, "n m"]:
    """The `count` nearest other images of each image by cosine of unit embeddings."""
    parts = []
    for start in range(0, len(embeddings), 512):
        similarity = embeddings[start:start + 512] @ embeddings.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -math.inf
        parts.append(similarity.topk(min(count, len(embeddings) - 1), dim=1).indices)
    return torch.cat(parts).numpy()


class CandidateSampler:
    """Draws `game.pools` pools of `game.candidates` images for each target, as `game.distractors` says.

    In a dataset of several sets ("scenes+emoji") the distractors of a scene are scenes and those of another image are
    not: otherwise one word for the set would be enough. Raises DixitError if hard distractors are configured and the
    first listener has no image embeddings.
    """

    def __init__(self, config: Config, dataset: Dataset, listeners: list[Listener]):
        self.config, self.size = config, len(dataset)
        self.scene = np.array([bool(r) for r in dataset["record"]]) if "+" in config.data.name else None
        self.neighbours: Int[np.ndarray, "n m"] | None = None
        if config.game.distractors == "hard":
            if not isinstance(listeners[0], ClipListener):
                raise DixitError("config: game.distractors hard needs listeners[0] of kind clip, to say what is near")
            self.neighbours = nearest_images(listeners[0].images.cpu(), 4 * (config.game.candidates - 1))

    def draw(self, step: int, index: Int[np.ndarray, "B"]) -> Int[Tensor, "B M C"]:
        """The candidates of each image of a global batch, the target first."""
        c, m, key = self.config.game.candidates, self.config.game.pools, (self.config.seed, step)
        targets = np.repeat(index, m)
        if self.neighbours is not None:
            drawn = draw_hard_candidates(targets, self.neighbours, c, *key)
        elif self.config.game.distractors == "in_batch":
            drawn = draw_candidates(targets, index, c, *key)
        elif self.scene is None:
            drawn = draw_candidates(targets, np.arange(self.size), c, *key)
        else:
            drawn = torch.empty(len(targets), c, dtype=torch.long)
            for scene in True, False:
                mine = self.scene[targets] == scene
                if mine.any():
                    drawn[mine] = draw_candidates(targets[mine], np.flatnonzero(self.scene == scene), c, *key,
                                                  "scenes" if scene else "others")
        return drawn.unflatten(0, (-1, m))
