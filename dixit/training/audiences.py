"""Many audiences: whom a round is for, and what the speaker saw those listeners do before.

An audience is two listeners: one that should find the target, one that should not. A speaker for many audiences knows
a listener by its observed picks: somebody named one attribute of a scene's objects ("A red shape and a blue shape."),
and the listener picked among C candidates. N picks become a `profile`, and the profiles of both listeners, side by
side, are the speaker's context (Adapter.context). Captions have taught the adapter to name what is asked for (its
topics, warm_start.CaptionTask); the game trains the map from contexts to topics, and nothing else.

Leaves out an encoder of picks that is learned: attributes are those of the scenes, so picks need scene records.

Shapes: L listeners, A attributes, n images that were named, R rounds, C candidates.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from dixit.common import DixitError, rng
from dixit.config import ATTRIBUTES
from dixit.data.scenes import oracle_caption
from dixit.models.listeners import score_all
from dixit.training import game

PRIOR = 0.3  # accuracy that is expected of a listener of which nothing is known
STRENGTH = 2.0  # picks that the prior is worth
NAMED = 300  # images whose attributes are named
SCALE = 4.0  # of a context: its largest values are then near 1 or 2
WIDTH = 2 * len(ATTRIBUTES)  # of a context


def hits_by_attribute(listeners: list, dataset: Dataset, candidates: int, *key: int | str) -> Float[Tensor, "L A n"]:
    """How often each listener finds each image when just one attribute of it is named, on a pool of its own.

    Raises DixitError if the images have no records.
    """
    count = min(NAMED, len(dataset))
    if not all(dataset["record"][:count]):
        raise DixitError("audiences are known by picks on scenes, and these images have no records; use data.name: "
                         "scenes")
    records = [json.loads(record) for record in dataset["record"][:count]]
    rows = []
    for attribute in ATTRIBUTES:
        pools = game.draw_candidates(np.arange(count), np.arange(len(dataset)), candidates, "named", attribute, *key)
        rows.append(game.hits(score_all(listeners, [oracle_caption(r, {attribute}) for r in records], pools)).cpu())
    return torch.stack(rows, dim=1)


def profiles(hits: Float[Tensor, "L A n"], rounds: int, picks: list[int], *key: int | str) -> Float[Tensor, "R L A"]:
    """What N observed picks tell of every listener: its accuracy for each named attribute, posterior minus prior.

    Round r draws N = picks[r] picks of each listener, attributes and images at random. The posterior is a Beta's mean,
    (hits + PRIOR * STRENGTH) / (picks + STRENGTH); it is the prior, and the profile 0, where nothing was seen.
    """
    listeners, attributes, count = hits.shape
    found = torch.zeros(rounds, listeners, attributes)
    seen = torch.zeros(rounds, listeners, attributes)
    r = rng("picks", *key)
    for i in range(rounds):
        named = torch.from_numpy(r.integers(attributes, size=(listeners, picks[i])))
        image = torch.from_numpy(r.integers(count, size=(listeners, picks[i])))
        who = torch.arange(listeners)[:, None].expand_as(named)
        for total, values in (seen[i], torch.ones(named.shape)), (found[i], hits[who, named, image]):
            total.index_put_((who, named), values, accumulate=True)
    return (found + PRIOR * STRENGTH) / (seen + STRENGTH) - PRIOR


def places(audiences: tuple[tuple[str, str], ...], names: list[str]) -> list[tuple[int, int]]:
    """Each audience as places of its listeners in the list `names`. Raises DixitError for an unknown name."""
    for pair in audiences:
        for name in pair:
            if name not in names:
                raise DixitError(f"config: audience {list(pair)} names '{name}', which is no listener; "
                                 f"choose of {', '.join(names)}")
    return [(names.index(a), names.index(b)) for a, b in audiences]


def contexts(profile: Float[Tensor, "R L A"], pairs: list[tuple[int, int]]) -> Float[Tensor, "R c"]:
    """The context of each round: the profile of the listener to be understood by, then of the other."""
    rounds = torch.arange(len(pairs))
    plus, minus = torch.tensor(pairs).T
    return SCALE * torch.cat([profile[rounds, plus], profile[rounds, minus]], dim=1)


def weights(pairs: list[tuple[int, int]], listeners: int) -> Float[Tensor, "L R"]:
    """Weights of each round: 1 for the listener to be understood by, -1 for the other, 0 for all who do not listen."""
    signed = torch.zeros(listeners, len(pairs))
    for i, (plus, minus) in enumerate(pairs):
        signed[plus, i], signed[minus, i] = 1.0, -1.0
    return signed
