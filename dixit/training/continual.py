"""Continual learning: audiences met one after another, and remedies that keep a speaker from forgetting earlier ones.

`continual.order: blocked` gives each of `audiences` an equal share of the steps. The remedies work on the adapter's
gated units (`speaker.gated_units`, models/adapter.py), the only parameters that are trained then:

    replay                   a fraction of the rounds is for an earlier audience
    ewc_nodes                elastic weight consolidation by unit: moving a unit that earlier audiences use costs
    hebbian_gate             Oja's rule, after each step, on the weights from the audience's code to the units: units
                             that are active for one audience become silent for another (Flesch et al. 2023)
    hebbian_gate+sluggish    the same, with a code that lags behind the rounds

Leaves out the game (game_task.py) and its forgetting matrix (eval/dynamics/speaker/continual.py).

Shapes: A audiences, R rounds in order, H units, c audience width, K prefix tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dixit.common import rng
from dixit.config import Config
from dixit.models.adapter import GatedUnits, anchor_name
from dixit.models.speaker import Speaker
from dixit.training.game import batch_indices
from dixit.training.runs import patch_batch

LENGTH = 2.0  # of an audience's code: a unit that it inhibits with weight 1 is silent
LAG = 1e-6  # rounds whose weight in a sluggish code is below this are left out


def block_index(config: Config, step: int) -> int:
    """The audience of a step, where audiences are met one after another."""
    return min(step * len(config.audiences) // config.train.steps, len(config.audiences) - 1)


def audience_indices(config: Config, step: int) -> Int[np.ndarray, "R"]:
    """The audience of each round of a global batch, a pure function of (seed, step)."""
    size, settings = config.train.batch, config.continual
    r = rng("audiences", config.seed, step)
    if settings.order == "interleaved":
        return r.integers(len(config.audiences), size=size)
    now = block_index(config, step)
    drawn = np.full(size, now)
    if settings.remedy == "replay" and now:
        earlier = r.random(size) < settings.replay
        drawn[earlier] = r.integers(now, size=earlier.sum())
    return drawn


def audience_codes(audience: Int[np.ndarray, "R"], count: int, centred: bool = True) -> Float[Tensor, "R c"]:
    """A code of c = count numbers and length LENGTH for the audience of each round.

    One-hot, and `centred` minus the mean over audiences: without that no gate forms (Flesch et al. 2023).
    """
    codes = torch.eye(count) - (1 / count if centred else 0)
    return (LENGTH * codes / codes.norm(dim=1, keepdim=True))[torch.from_numpy(np.asarray(audience))]


def sluggish(codes: Float[Tensor, "R c"], alpha: float) -> Float[Tensor, "R c"]:
    """s_t = alpha c_t + (1 - alpha) s_(t-1), from s_0 = c_0 (Flesch et al. 2023)."""
    lagged = [codes[0]]
    for now in codes[1:]:
        lagged.append(alpha * now + (1 - alpha) * lagged[-1])
    return torch.stack(lagged)


def audience_codes_at(config: Config, step: int) -> Float[Tensor, "R c"]:
    """The code of each round's audience, lagging if so configured; a pure function of (seed, step)."""
    settings, count = config.continual, len(config.audiences)
    if not settings.remedy.endswith("sluggish") or settings.sluggish == 1:
        return audience_codes(audience_indices(config, step), count, settings.centred)
    back = math.ceil(math.log(LAG) / math.log(1 - settings.sluggish) / config.train.batch)
    past = np.concatenate([audience_indices(config, s) for s in range(max(0, step - back), step + 1)])
    return sluggish(audience_codes(past, count, settings.centred), settings.sluggish)[-config.train.batch:]


@torch.no_grad()
def oja(gate: Float[Tensor, "H c"], codes: Float[Tensor, "R c"], rate: float) -> None:
    """Oja's rule, in place: dW = rate * mean over rounds of (y e' - y^2 W), with y = W e for code e.

    The rows of W become +-(the codes' first principal component), of length 1. It needs rate * |e|^2 < 1. That makes
    two groups of units, one for each of two audiences; a third audience shares the units of the first.
    """
    y = codes.to(gate) @ gate.T  # (R, H)
    gate += rate * (y.T @ codes.to(gate) / len(y) - (y ** 2).mean(0)[:, None] * gate)


def unit_importance(speaker: Speaker, adapter: nn.Module, patches: Float[Tensor, "B P Dv"],
                    codes: Float[Tensor, "B c"], draws: Float[Tensor, "B T"]) -> list[Float[Tensor, "H"]]:
    """How much captions depend on each unit: the mean over images of (sum over K of a * d log p / d a)^2.

    a is the unit's activation and p the speaker's probability of the caption it samples for an image, so this is the
    Fisher information of a factor on the unit; no reward enters. One vector for each layer of units.
    """
    active: list[Tensor] = []
    hooks = [units.relu.register_forward_hook(lambda _, __, a: active.append(a)) for units in gated_units_of(adapter)]
    prefix = adapter(patches, codes)
    for hook in hooks:
        hook.remove()
    tokens, mask, _ = speaker.sample(prefix.detach(), draws)
    gradients = torch.autograd.grad(speaker.logprobs(prefix, tokens, mask).sum(), active)
    return [((a.detach() * gradient).sum(1) ** 2).mean(0) for a, gradient in zip(active, gradients, strict=True)]


def consolidate(units: GatedUnits, importance: Float[Tensor, "H"]) -> None:
    """Add to the units' importances (with mean 1 for each audience), and set the anchors to the present weights."""
    with torch.no_grad():
        units.importance += importance / importance.mean().clamp(min=1e-12)
        for name, parameter in units.named_parameters():
            getattr(units, anchor_name(name)).copy_(parameter)


def ewc_penalty(units: GatedUnits) -> Tensor:
    """1/2 sum over units of importance * |weights - anchors|^2, over all weights into and out of the unit."""
    moved = {name: (p - getattr(units, anchor_name(name))) ** 2 for name, p in units.named_parameters()}
    into = moved["inputs.weight"].sum(1) + moved["inputs.bias"] + moved["gate.weight"].sum(1)
    return (units.importance * (into + moved["outputs.weight"].sum(0))).sum() / 2


def gated_units_of(module: nn.Module) -> list[GatedUnits]:
    """The layers of gated units in an adapter, first block first."""
    return [part for part in module.modules() if isinstance(part, GatedUnits)]


class Remedy:
    """What `continual.remedy` does to the speaker's gated units during training; replay is in `audience_indices`."""

    def __init__(self, config: Config, speaker: Speaker):
        self.config, self.speaker = config, speaker
        self.adapter = speaker.trained  # before it is wrapped for several processes
        self.units = gated_units_of(self.adapter)

    def before_step(self, step: int, store: np.ndarray, inputs: Callable[[int], Tensor | None]) -> None:
        """ewc_nodes, at the first step of a new audience: consolidate the units that captions for the last one use.

        `store` holds the patch features of the training images, `inputs(step)` gives the audience input of a step.
        """
        config = self.config
        if (config.continual.remedy != "ewc_nodes" or not step
                or block_index(config, step) == block_index(config, step - 1)):
            return
        index = batch_indices(config.seed, step - 1, config.train.batch, len(store))
        draws = rng("importance", config.seed, step).random((len(index), config.speaker.max_tokens))
        device, codes = self.speaker.device, inputs(step - 1)
        assert codes is not None
        found = unit_importance(self.speaker, self.adapter, patch_batch(store, index, device), codes,
                                torch.from_numpy(draws.astype(np.float32)).to(device))
        for units, importance in zip(self.units, found, strict=True):
            consolidate(units, importance)

    def penalties(self) -> list[Tensor]:
        """ewc_nodes: the terms that are added to the loss; none for the other remedies."""
        if self.config.continual.remedy != "ewc_nodes":
            return []
        return [self.config.continual.ewc_strength * ewc_penalty(units) for units in self.units]

    def after_step(self, step: int, inputs: Callable[[int], Tensor | None]) -> None:
        """hebbian_gate: Oja's rule on the codes of the step's rounds, `inputs(step)`, the same on all processes."""
        if self.config.continual.remedy.startswith("hebbian_gate"):
            codes = inputs(step)
            assert codes is not None
            for units in self.units:
                oja(units.gate.weight, codes, self.config.continual.hebbian_rate)
