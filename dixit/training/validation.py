"""How a game's speaker does on the validation split while it trains.

Leaves out the evaluation on the test split (eval/).

Shapes: n validation images, C candidates, L listeners, P patches, c audience width, K prefix tokens, D LLM width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dixit.models.listeners import Listener, score_all
from dixit.models.speaker import Speaker
from dixit.training import game

BATCH = 64  # images captioned at once


@torch.no_grad()
def game_figures(speaker: Speaker, base: nn.Module, patches: Float[Tensor, "n P Dv"],
                 audience: Float[Tensor, "n c"] | None, listeners: list[Listener],
                 candidates: Int[Tensor, "n C"], weights: Float[Tensor, "L n"],
                 allow_nan: bool) -> tuple[dict[str, Any], Float[Tensor, "L n"], Float[Tensor, "n"]]:
    """Figures of the greedy captions of validation images, then the hits and the gap of each image.

    Figures: the gap, and the gap that one constant caption would make (`gap_constant`) with the fraction of images
    that get the most common caption; how far the prefixes have moved from the base speaker's geometry
    (`kernel_distance`, 1 - CKA) and their effective dimension; and four captions. With
    `allow_nan` a listener that returns NaN misses the target, else DixitError is raised.
    """
    texts: list[str] = []
    states = []
    for part in torch.arange(len(patches)).split(BATCH):
        inputs = None if audience is None else audience[part]
        prefix = speaker.trained(patches[part], inputs)
        texts += speaker.decode(*speaker.sample(prefix)[:2])
        states.append(torch.stack([base(patches[part], inputs), prefix]).flatten(2).cpu().double())
    hits = game.hits(score_all(listeners, texts, candidates, allow_nan))
    gaps = game.gap(hits, weights)
    constant, fraction = game.most_common_caption(texts)
    constant_hits = game.hits(score_all(listeners, [constant] * len(texts), candidates, allow_nan))
    first, now = map(game.centred_kernel, torch.cat(states, 1))
    figures = {"gap": float(gaps.mean()), "gap_constant": float(game.gap(constant_hits, weights).mean()),
               "commonest_caption": fraction, "kernel_distance": game.kernel_distance(first, now),
               "prefix_dimensions": game.participation_ratio(now), "captions": texts[:4]}
    return figures, hits, gaps
