"""Audiences: which listeners take part in each round, and what the speaker is given about them.

By default every listener takes part in every round with its configured weight. `game.audience` samples or shuffles
them, and `config.audiences` names pairs: one listener that should find the target, one that should not. A speaker for
named pairs may get them as an input, either as a code (continual.py) or as observed picks: somebody named one attribute
of an image, and the listener picked among C candidates. N picks of a listener become its `profile`, and the profiles of
both listeners, side by side, are the adapter's audience input. Captions have taught the adapter to name requested
attributes (warm_start.CaptionTask); the game trains the map from audience input to attributes, and nothing else.

Attributes of scenes are their objects' ("A red shape and a blue shape." names colour), read from records. Those of
pictures are those of requests (requests.py), read from the classes of the speaker's CLIP and from pixels. Picks that
name a kind of things are of pictures of that kind, so that experts of a domain differ in their profiles, and so do
those that know few names or no colours.

Leaves out a learned encoder of picks.

Shapes: L listeners, A attributes, n images with a named attribute, R rounds, B rounds of a batch, C candidates,
c audience width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from dixit.common import DixitError, rng
from dixit.config import ATTRIBUTES, Config
from dixit.data.scenes import oracle_caption
from dixit.models.features import Eyes, VlmEyes
from dixit.models.listeners import Listener, score_all
from dixit.training import continual, game
from dixit.training.candidates import draw_candidates
from dixit.training.made_captions import MadeCaptions
from dixit.training.requests import KINDS, PICTURE_ATTRIBUTES, RequestedPictures, mentioned, request_for

PRIOR = 0.3  # expected accuracy of a listener without observations
STRENGTH = 2.0  # number of picks that the prior is worth
NAMED = 300  # images whose attributes are named
SCALE = 4.0  # of the audience input, so that its largest values are near 1 or 2
WIDTH = 2 * len(ATTRIBUTES)  # of the audience input


@dataclass(frozen=True)
class Named:
    """One attribute, named of every image of a dataset."""

    attribute: str
    captions: list[str]  # one for each image
    images: Int[np.ndarray, "m"]  # those that have the attribute


def name_attributes(eyes: Eyes, dataset: Dataset) -> list[Named]:
    """Captions that name one attribute and nothing else: of scenes from their records, of pictures by a CLIP.

    Raises DixitError if the images are neither all scenes nor all pictures, or the eyes are no CLIP that names things.
    """
    records, everyone = list(dataset["record"]), np.arange(len(dataset))
    if all(records):
        scenes = [json.loads(record) for record in records]
        return [Named(a, [oracle_caption(scene, {a}) for scene in scenes], everyone) for a in ATTRIBUTES]
    if any(records) or isinstance(eyes, VlmEyes) or eyes.named is None:
        raise DixitError("audiences are known by picks on scenes, or on pictures by a CLIP that names things; use "
                         "data.name: scenes, or a data.name without scenes and a clip.name that was trained with "
                         "clip.names")
    pictures = RequestedPictures(eyes, dataset, MadeCaptions(eyes, dataset, list))
    kinds = np.array([pictures.kinds[likeliest] for likeliest in pictures.likeliest])
    found = []
    for attribute in PICTURE_ATTRIBUTES:
        captions = [pictures.obeying(i, request_for(attribute)) for i in range(len(dataset))]
        has = np.ones(len(dataset), dtype=bool)
        if attribute in KINDS:
            has = kinds == attribute
        elif attribute == "name":
            has = np.array([mentioned(caption)[1] for caption in captions])
        found.append(Named(attribute, captions, rng("named", attribute).permutation(everyone[has])))
    return found


def hits_by_attribute(listeners: list[Listener], eyes: Eyes, dataset: Dataset, candidates: int,
                      *key: int | str) -> Float[Tensor, "L A n"]:
    """How often each listener finds images when only one of their attributes is named, on one pool per image.

    An attribute that no image has gets PRIOR, so that picks tell nothing about it.
    """
    count = min(NAMED, len(dataset))
    columns = []
    for named in name_attributes(eyes, dataset):
        if not len(named.images):
            columns.append(torch.full((len(listeners), count), PRIOR))
            continue
        images = np.resize(named.images, count)  # repeated if there are fewer, with other distractors
        pools = draw_candidates(images, np.arange(len(dataset)), candidates, "named", named.attribute, *key)
        captions = [named.captions[i] for i in images]
        columns.append(game.hits(score_all(listeners, captions, pools)).cpu())
    return torch.stack(columns, dim=1)


def profiles(hits: Float[Tensor, "L A n"], rounds: int, picks: list[int], *key: int | str) -> Float[Tensor, "R L A"]:
    """Estimate each listener from N observed picks: its accuracy for each named attribute, posterior minus prior.

    Round r draws N = picks[r] picks of each listener, attributes and images at random. The posterior is the mean of a
    Beta distribution, (hits + PRIOR * STRENGTH) / (picks + STRENGTH); without picks it equals the prior, and the
    profile is 0.
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


def listener_indices(audiences: tuple[tuple[str, str], ...], names: list[str]) -> list[tuple[int, int]]:
    """Each audience as indices into the list of listener names."""
    return [(names.index(a), names.index(b)) for a, b in audiences]


def audience_vectors(profile: Float[Tensor, "R L A"], pairs: list[tuple[int, int]]) -> Float[Tensor, "R c"]:
    """The audience input of each round: the profile of the listener that should find the target, then the other's."""
    rounds = torch.arange(len(pairs))
    plus, minus = torch.tensor(pairs).T
    return SCALE * torch.cat([profile[rounds, plus], profile[rounds, minus]], dim=1)


def round_weights(pairs: list[tuple[int, int]], listeners: int) -> Float[Tensor, "L R"]:
    """Listener weights of each round: 1 for the first of the pair, -1 for the second, 0 for all others."""
    signed = torch.zeros(listeners, len(pairs))
    for i, (plus, minus) in enumerate(pairs):
        signed[plus, i], signed[minus, i] = 1.0, -1.0
    return signed


class Audience:
    """The listeners of each round and the adapter's audience input, as pure functions of (seed, step).

    `listeners` see the training images `data`, `validation_listeners` the images `validation`; `eyes`: the speaker's.
    """

    def __init__(self, config: Config, eyes: Eyes, listeners: list[Listener], data: Dataset,
                 validation_listeners: list[Listener], validation: Dataset, device: str | torch.device):
        self.config, self.device = config, device
        self.listener_weights = torch.tensor([c.weight for c in config.listeners], device=device)
        self.pairs = listener_indices(config.audiences, [c.name for c in config.listeners])
        self.hits = self.validation_hits = None  # picks to be observed
        if config.speaker.audience_width and not config.speaker.gated_units:
            key = config.game.candidates, config.seed
            self.hits = hits_by_attribute(listeners, eyes, data, *key)
            self.validation_hits = hits_by_attribute(validation_listeners, eyes, validation, *key)

    def round_pairs(self, step: int) -> list[tuple[int, int]]:
        """The named pair of each round of a global batch."""
        return [self.pairs[i] for i in continual.audience_indices(self.config, step)]

    def weights(self, step: int) -> Float[Tensor, "L B"]:
        """Each listener's weight in each round of a global batch."""
        rounds, listeners = self.config.train.batch, len(self.listener_weights)
        if self.pairs:
            return round_weights(self.round_pairs(step), listeners).to(self.device)
        if self.config.game.audience == "all":
            return self.listener_weights[:, None].expand(-1, rounds)
        draw = game.sampled_audience if self.config.game.audience == "sampled" else game.shuffled_audience
        return draw(self.listener_weights.cpu(), rounds, self.config.seed, step).to(self.device)

    def inputs(self, step: int) -> Float[Tensor, "B c"] | None:
        """The adapter's audience input of each round of a global batch; None if it has none."""
        if self.config.speaker.gated_units:
            return continual.audience_codes_at(self.config, step).to(self.device)
        if self.hits is None:
            return None
        config, pairs = self.config, self.round_pairs(step)
        picks = rng("number of picks", config.seed, step).choice(config.picks, size=len(pairs)).tolist()
        return audience_vectors(profiles(self.hits, len(pairs), picks, config.seed, step), pairs).to(self.device)

    def on_validation(self, count: int) -> tuple[Float[Tensor, "L n"], Float[Tensor, "n c"] | None]:
        """Weights and audience inputs of `count` validation rounds: named pairs in turn, with the most picks."""
        if not self.pairs:
            return self.listener_weights[:, None].expand(-1, count), None
        index = np.arange(count) % len(self.pairs)
        pairs = [self.pairs[i] for i in index]
        weights = round_weights(pairs, len(self.listener_weights)).to(self.device)
        if self.config.speaker.gated_units:
            codes = continual.audience_codes(index, len(self.pairs), self.config.continual.centred)
            return weights, codes.to(self.device)
        if self.validation_hits is None:
            return weights, None
        profile = profiles(self.validation_hits, count, [max(self.config.picks)] * count, "observe")
        return weights, audience_vectors(profile, pairs).to(self.device)
