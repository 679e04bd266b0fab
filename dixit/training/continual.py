"""Audiences met one after another, and what keeps a speaker from forgetting the earlier ones.

`continual.order: blocked` gives each of `audiences` an equal share of the steps. The remedies work on the adapter's
audience units (`speaker.gated_units`, speaker.Units), all that is trained then:

    replay                   a share of the rounds is for an earlier audience
    ewc_nodes                units that earlier audiences use are held where they were, each by its importance
    hebbian_gate             Oja's rule, after each step, on the weights from the context to the units: units that are
                             active for one audience become silent for another (Flesch et al. 2023)
    hebbian_gate+sluggish    the same, with a context that lags behind the rounds

Leaves out the game (game_task.py) and its forgetting matrix (eval/dynamics/speaker/continual.py).

Shapes: A audiences, R rounds in order, H units, c context width, K prefix tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dixit.common import rng
from dixit.config import Config
from dixit.models.speaker import Speaker, Units, anchor_name

LENGTH = 2.0  # of a context that names an audience: a unit that it inhibits with weight 1 is silent
LAG = 1e-6  # what the context remembers less of than this, it is not asked for


def block(config: Config, step: int) -> int:
    """Which audience a step is for, where they are met one after another."""
    return min(step * len(config.audiences) // config.train.steps, len(config.audiences) - 1)


def rounds(config: Config, step: int) -> Int[np.ndarray, "R"]:
    """The audience of each round of a global batch, a pure function of (seed, step)."""
    size, settings = config.train.batch, config.continual
    r = rng("audiences", config.seed, step)
    if settings.order == "interleaved":
        return r.integers(len(config.audiences), size=size)
    now = block(config, step)
    drawn = np.full(size, now)
    if settings.remedy == "replay" and now:
        earlier = r.random(size) < settings.replay
        drawn[earlier] = r.integers(now, size=earlier.sum())
    return drawn


def names(audience: Int[np.ndarray, "R"], count: int, centred: bool = True) -> Float[Tensor, "R c"]:
    """A vector for each round that names its audience, of c = count numbers and length LENGTH.

    One-hot, and `centred` less its mean over audiences: without that no gate forms (Flesch et al. 2023).
    """
    named = torch.eye(count) - (1 / count if centred else 0)
    return (LENGTH * named / named.norm(dim=1, keepdim=True))[torch.from_numpy(np.asarray(audience))]


def sluggish(context: Float[Tensor, "R c"], alpha: float) -> Float[Tensor, "R c"]:
    """s_t = alpha c_t + (1 - alpha) s_(t-1), from s_0 = c_0 (Flesch et al. 2023)."""
    lagged = [context[0]]
    for now in context[1:]:
        lagged.append(alpha * now + (1 - alpha) * lagged[-1])
    return torch.stack(lagged)


def audience_codes_at(config: Config, step: int) -> Float[Tensor, "R c"]:
    """What a speaker that is told its audience's name hears in each round, a pure function of (seed, step)."""
    settings, count = config.continual, len(config.audiences)
    if not settings.remedy.endswith("sluggish") or settings.sluggish == 1:
        return names(rounds(config, step), count, settings.centred)
    back = math.ceil(math.log(LAG) / math.log(1 - settings.sluggish) / config.train.batch)
    past = np.concatenate([rounds(config, s) for s in range(max(0, step - back), step + 1)])
    return sluggish(names(past, count, settings.centred), settings.sluggish)[-config.train.batch:]


@torch.no_grad()
def oja(gate: Float[Tensor, "H c"], context: Float[Tensor, "R c"], rate: float) -> None:
    """Oja's rule, in place: dW = rate * mean over rounds of (y e' - y^2 W), with y = W e for context e.

    Rows become +-(the contexts' first principal component), of length 1. It needs rate * |e|^2 < 1. That makes two
    groups of units, one for each of two audiences; a third audience takes the units of the first.
    """
    y = context.to(gate) @ gate.T  # (R, H)
    gate += rate * (y.T @ context.to(gate) / len(y) - (y ** 2).mean(0)[:, None] * gate)


def importance(speaker: Speaker, adapter: nn.Module, patches: Float[Tensor, "B P Dv"], context: Float[Tensor, "B c"],
               draws: Float[Tensor, "B T"]) -> list[Float[Tensor, "H"]]:
    """How much what is said depends on each unit: the mean over images of (sum over K of a * d log p / d a)^2.

    a is the unit's activation and p the speaker's own chance of the caption it draws for an image, so this is the
    Fisher information of a factor on the unit; no reward enters. One vector for each layer of units.
    """
    active: list[Tensor] = []
    hooks = [units.relu.register_forward_hook(lambda _, __, a: active.append(a)) for units in gated_units_of(adapter)]
    prefix = adapter(patches, context)
    for hook in hooks:
        hook.remove()
    tokens, mask, _ = speaker.sample(prefix.detach(), draws)
    slopes = torch.autograd.grad(speaker.logprobs(prefix, tokens, mask).sum(), active)
    return [((a.detach() * slope).sum(1) ** 2).mean(0) for a, slope in zip(active, slopes, strict=True)]


def hold(units: Units, found: Float[Tensor, "H"]) -> None:
    """Add to the units' importances (their mean is 1 for each audience), and hold them where they are now."""
    with torch.no_grad():
        units.importance += found / found.mean().clamp(min=1e-12)
        for name, parameter in units.named_parameters():
            getattr(units, anchor_name(name)).copy_(parameter)


def ewc_penalty(units: Units) -> Tensor:
    """1/2 sum over units of importance * |weights - held weights|^2, over all weights into and out of the unit."""
    moved = {name: (p - getattr(units, anchor_name(name))) ** 2 for name, p in units.named_parameters()}
    into = moved["inputs.weight"].sum(1) + moved["inputs.bias"] + moved["gate.weight"].sum(1)
    return (units.importance * (into + moved["outputs.weight"].sum(0))).sum() / 2


def gated_units_of(module: nn.Module) -> list[Units]:
    """The layers of audience units in an adapter, first block first."""
    return [part for part in module.modules() if isinstance(part, Units)]
