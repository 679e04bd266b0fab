"""A first-order expansion of the speaker in the output of its gated units, and trainings of units on that expansion.

The speaker is replaced by the exact inputs of units behind the last block and the exact gradient, through the LLM, of
the preference d for the first of two messages (similarity.py defines d and how audiences reward it).

Leaves out the choice of trainings and their measures (similarity.py).

Shapes: n images, A audiences, K prefix tokens, W width of the adapter, H units, P components, S trainings, b rounds.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dixit.common import rng
from dixit.training import continual
from dixit.training.runs import patch_batch

from ..probe import Networks
from .continual import ContinualGame
from .measure import FromTrained, final_states

# ---- setting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings(FromTrained):
    game: str = "configs/continual.yaml"
    levels: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # of similarity
    draws: int = 4  # of directions and first weights, for each seed
    images: int = 256
    held: int = 40
    components: int = 4
    units: int = 8
    block: int = 300  # steps for each audience
    every: int = 30
    batch: int = 32
    lr: float = 0.2
    small: float = 0.03  # length of a unit's first effect, in and out
    large: float = 1.0  # out, in the control
    gate_units: int = 32  # as the speaker's
    gate_lr: float = 0.5
    gating: float = 0.3  # rate of Oja's rule
    sluggish: tuple[float, ...] = (0.1, 0.3)  # share of the new in a context that lags
    candidates: int = 10


@dataclass(frozen=True)
class Plan:
    """One training."""

    draw: int = 0
    similarity: float = 0.0
    start: str = "units"  # as the speaker's | "small" weights | "large" heads
    private: bool = False  # heads
    order: str = "blocked"
    gated: bool = False
    centred: bool = True
    sluggish: float = 1.0

    def directions(self, seed: int, count: int, components: int) -> Float[np.ndarray, "A P"]:
        """One direction for each audience: the second at a cosine to the first, a third at right angles to both."""
        axes = np.linalg.qr(rng("directions", seed, self.draw).standard_normal((components, components)))[0][:count]
        axes[1] = self.similarity * axes[0] + np.sqrt(1 - self.similarity ** 2) * axes[1]
        return axes


# ---- the speaker, and its first order --------------------------------------------------------------------


@dataclass
class Expansion:
    """Preference d of images, to first order in the vectors that units behind the last block add to the K vectors
    there.
    """

    inputs: Float[Tensor, "n K W"]  # what units see
    slopes: Float[Tensor, "n K W"]
    bias: Float[Tensor, "n"]

    @property
    def scale(self) -> float:
        """The largest change of d by a vector of length 1 added to all K: root mean square over images."""
        return float(self.slopes.sum(1).square().sum(1).mean().sqrt())


def nameable_scenes(dataset: Dataset, count: int) -> tuple[list[int], list[dict[str, Any]]]:
    """The first `count` scenes of one object whose colour can follow "A", by index; and their records."""
    records = [json.loads(record) for record in dataset["record"]]
    rows = [i for i, record in enumerate(records) if record["objects"][0]["colour"][0] not in "aeiou"][:count]
    return rows, [records[i] for i in rows]


def preference(task: ContinualGame, adapter: nn.Module, patches: Float[Tensor, "n P Dv"], records: list[dict[str, Any]],
               context: Float[Tensor, "n A"]) -> Float[Tensor, "n"]:
    """d by the LLM: half the logit of the object's colour after "A" minus that of its shape."""
    texts = [f"A {record['objects'][0][kind]}" for record in records for kind in ("colour", "shape")]
    tokens = task.speaker.encode(texts)[0]
    states = final_states(task.speaker, adapter(patches, context), tokens[::2, :1])[:, -1]
    head = task.speaker.llm.get_output_embeddings().weight[tokens[:, 1]].unflatten(0, (-1, 2)).float()
    return ((head[:, 0] - head[:, 1]) * states.float()).sum(1) / 2


def expand(task: ContinualGame, adapter: Any, store: np.ndarray, records: list[dict[str, Any]]) -> Expansion:
    """The first-order expansion of an adapter whose units add nothing yet."""
    seen: list[Tensor] = []
    added: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(nn.functional.layer_norm(inputs[0].detach(), inputs[0].shape[-1:]))
        added.append(torch.zeros_like(output, requires_grad=True))
        return added[-1]

    slopes: list[Tensor] = []
    bias: list[Tensor] = []
    handle = adapter.gated_units[-1].register_forward_hook(hook)
    for rows in torch.arange(len(records)).split(32):
        patches = patch_batch(store, rows.numpy(), task.speaker.device)
        codes = torch.zeros(len(rows), len(task.audience.pairs))
        d = preference(task, adapter, patches, [records[i] for i in rows], codes)
        slopes += torch.autograd.grad(d.sum(), added[-1])
        bias.append(d.detach())
    handle.remove()
    return Expansion(torch.cat(seen), torch.cat(slopes), torch.cat(bias))


def features(first: Float[Tensor, "n K W"], second: Float[Tensor, "m K W"],
             count: int) -> tuple[Float[Tensor, "n P"], Float[Tensor, "m P"]]:
    """The leading principal components of images' mean inputs, scaled to variance 1 over the first images."""
    means, others = first.mean(1), second.mean(1)
    axes = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:count]
    spread = ((means - means.mean(0)) @ axes.T).std(0)
    return (means - means.mean(0)) @ axes.T / spread, (others - means.mean(0)) @ axes.T / spread


def estimate_similarity(data: Expansion, one: Float[Tensor, "n"], other: Float[Tensor, "n"]) -> dict[str, float]:
    """The similarity of two audiences before training, from their rewards for the first message of each image."""
    def cosine(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum() / (a.norm() * b.norm()))

    maps, covariances = [], []
    for wanted in one, other:
        g = (wanted - data.bias)[:, None, None] * data.slopes
        maps.append(torch.einsum("nkv,nkw->vw", g, data.inputs - data.inputs.mean(0)))  # out of units x into them
        covariances.append(torch.einsum("nkv,nkw->vw", g, g))
    return {"gradient": cosine(*maps), "features": cosine(*(g.T @ g for g in maps)),
            "readout": cosine(*(g @ g.T for g in maps)), "covariance": cosine(*covariances)}


# ---- simulation ------------------------------------------------------------------------------------------


class FirstOrder(Networks):
    """S trainings of units on an `Expansion`, on one audience after another."""

    audience: Int[Tensor, "S steps b"]  # of each round
    context: Float[Tensor, "S steps b A"]
    directions: Float[Tensor, "S A P"]
    names: Float[Tensor, "S A A"]
    cells: Float[Tensor, "S 25 n"]
    private: Bool[Tensor, "S"]
    rate: Float[Tensor, "S"]  # of Oja's rule

    def __init__(self, data: Expansion, held: Expansion, plans: list[Plan], settings: Settings, seed: int, count: int):
        super().__init__()
        self.data, self.validation = data, held
        self.features, self.held_features = features(data.inputs, held.inputs, settings.components)
        self.settings, self.seed, self.count, self.scale = settings, seed, count, data.scale
        self.centre = data.inputs.mean(0)
        self.spread = float((data.inputs - self.centre).square().sum(2).mean().sqrt())
        starts = [self._start(plan) for plan in plans]
        self.inputs, self.outputs, self.gate, self.shift = (nn.Parameter(torch.stack(p))
                                                            for p in zip(*starts, strict=True))
        rounds = [self._rounds(plan) for plan in plans]
        directions = [torch.from_numpy(p.directions(seed, count, settings.components)).float() for p in plans]
        names = [continual.audience_codes(np.arange(count), count, plan.centred) * (not plan.private) for plan in plans]
        buffers = {"audience": [r[0] for r in rounds], "context": [r[1] for r in rounds], "directions": directions,
                   "names": names, "cells": [self._cells(plan) for plan in plans],
                   "private": [torch.tensor(plan.private) for plan in plans],
                   "rate": [torch.tensor(settings.gating * plan.gated) for plan in plans]}
        for name, values in buffers.items():
            self.register_buffer(name, torch.stack(values))
        self.switched: Any = None  # all of this, after the first audience

    def _start(self, plan: Plan) -> tuple[Float[Tensor, "W H"], Float[Tensor, "A H W"], Float[Tensor, "H A"],
                                          Float[Tensor, "H"]]:
        """Weights into units, out of them and from the audience code, and shifts. Plans of a draw start equal up to
        scale.
        With the start "units" the shift is the weights times the mean input."""
        width, units, r = self.data.inputs.shape[2], self.settings.units, rng("units", self.seed, plan.draw)
        into, out, gate, shift = (torch.from_numpy(r.standard_normal(shape)).float() for shape in (
            (width, units), (self.count, units, width), (units, self.count), units))
        small = self.settings.small
        if plan.start == "units":
            return into / (3 * width) ** 0.5, 0 * out, 0.1 * gate, shift / 3 ** 0.5 / self.spread
        head = self.settings.large if plan.start == "large" else small
        return small * into, head * out / width ** 0.5, 0.01 * gate, 0 * shift

    def _rounds(self, plan: Plan) -> tuple[Int[Tensor, "steps b"], Float[Tensor, "steps b A"]]:
        """The audience of each round, and its context."""
        b, steps = self.settings.batch, self.count * self.settings.block
        rounds = np.repeat(np.arange(steps) // self.settings.block, b)
        if plan.order == "interleaved":
            rounds = rng("rounds", self.seed, plan.draw).integers(self.count, size=steps * b)
        named = continual.audience_codes(rounds, self.count, plan.centred) * (not plan.private)
        named = continual.sluggish(named, plan.sluggish) if plan.sluggish < 1 else named
        return torch.from_numpy(rounds).view(steps, b), named.view(steps, b, -1)

    def _cells(self, plan: Plan) -> Float[Tensor, "25 n"]:
        """Means over the images of 5 x 5 levels: fifths by the first feature, and each by the second."""
        first, second = (self.features.numpy() @ replace(plan, similarity=0.0).directions(
            self.seed, 2, self.settings.components).T).T
        means = np.zeros((25, len(first)))
        for i, fifth in enumerate(np.array_split(first.argsort(), 5)):
            for j, cell in enumerate(np.array_split(fifth[second[fifth].argsort()], 5)):
                means[5 * i + j, cell] = 1 / len(cell)
        return torch.from_numpy(means).float()

    def active(self, inputs: Float[Tensor, "n K W"], context: Float[Tensor, "S n A"]) -> Float[Tensor, "S n K H"]:
        into = torch.einsum("nkw,swh->snkh", (inputs - self.centre) / self.spread, self.inputs)
        drive = torch.einsum("sna,sha->snh", context / self.spread, self.gate)
        return (into + self.shift[:, None, None] + drive[:, :, None]).relu()

    def heads_effect(self, slopes: Float[Tensor, "n K W"], audience: Int[Tensor, "S"]) -> Float[Tensor, "S n K H"]:
        """The contribution of a unit's activation to d, through the head for an audience."""
        heads = self.outputs[torch.arange(len(audience)), audience * self.private]
        return torch.einsum("nkw,shw->snkh", slopes / self.scale, heads)

    def forward(self, step: int) -> Float[Tensor, "S"]:
        count = min(self.settings.batch, len(self.features))
        rows = torch.from_numpy(rng("rows", self.seed, step).choice(len(self.features), count, replace=False))
        audience = self.audience[:, step, :count]  # (S, b); of private heads it is one
        wanted = torch.einsum("bp,sbp->sb", self.features[rows],
                              self.directions[torch.arange(len(audience))[:, None], audience])
        active = self.active(self.data.inputs[rows], self.context[:, step, :count])
        d = self.data.bias[rows] + (active * self.heads_effect(self.data.slopes[rows], audience[:, 0])).sum((2, 3))
        return (d - wanted).square().mean(1) / 2

    def after_step(self, step: int) -> None:
        """Oja's rule; and a copy of the state when the second audience starts."""
        for gate, context, rate in zip(self.gate, self.context[:, step], self.rate, strict=True):
            if rate:
                continual.oja(gate, context / self.spread, float(rate))
        if step + 1 == self.settings.block:
            self.switched = copy.deepcopy(self)

    def measure(self) -> dict[str, Tensor]:
        """Scores of all audiences on held-out images, units' shares, and units' mean states in the cells."""
        found: dict[str, list[Tensor]] = {"score": [], "share": [], "states": []}
        for j in range(self.count):
            audience, name = torch.full((len(self.names),), j), self.names[:, j, None]
            wanted = torch.einsum("np,sp->sn", self.held_features, self.directions[:, j])
            active = self.active(self.validation.inputs, name.expand(-1, len(self.validation.bias), -1))
            effect = active * self.heads_effect(self.validation.slopes, audience)
            d = self.validation.bias + effect.sum((2, 3))
            found["score"].append(1 - (d - wanted).square().mean(1) / (self.validation.bias - wanted).square().mean(1))
            used = effect.sum(2).square().mean(1)  # (S, H)
            found["share"].append(used / used.sum(1, keepdim=True).clamp(min=1e-30))
            states = self.active(self.data.inputs, name.expand(-1, len(self.features), -1)).mean(2)
            found["states"].append(self.cells @ states)
        return {name: torch.stack(values, 1) for name, values in found.items()}

    @torch.no_grad()
    def speaker_score(self, task: ContinualGame, base: Any, which: int, audience: int,
                      patches: Float[Tensor, "n P Dv"], records: list[dict[str, Any]]) -> float:
        """The score of one training for an audience, by the real speaker with the units behind its last block."""
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen = nn.functional.layer_norm(inputs[0], inputs[0].shape[-1:])
            context = self.names[:, audience, None].expand(-1, len(seen), -1)
            heads = self.outputs[which, audience * self.private[which]] / self.scale
            return self.active(seen, context)[which] @ heads

        handle = base.gated_units[-1].register_forward_hook(add)
        d = preference(task, base, patches, records, torch.zeros(len(records), self.count))
        handle.remove()
        wanted = self.held_features @ self.directions[which, audience]
        return float(1 - (d - wanted).square().mean() / (self.validation.bias - wanted).square().mean())
