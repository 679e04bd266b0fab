"""REINFORCE's baseline: a running mean of rewards over all rounds, or one for each audience (`policy.baseline`).

Where each round draws its listeners, some audiences are harder to serve than others. One mean for all then tells the
speaker which audience it met rather than how well it spoke.

Shapes: B images of this process, N captions per image, R rounds of the global batch, L listeners.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from dixit.config import Config
from dixit.training.loop import local_weight

EVERYONE = "all"  # the audience of all rounds under `policy.baseline: all`; no audience_names name is like it


def audience_names(weights: Float[Tensor, "L R"], listeners: list[str]) -> list[str]:
    """Each round's audience: the listeners that take part in it, with their weights, e.g. "colour 1, grey -1"."""
    return [", ".join(f"{name} {w:g}" for name, w in zip(listeners, column, strict=True) if w)
            for column in weights.T.tolist()]


class Baselines:
    """`means`: each audience's running mean so far."""

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.means: dict[str, float] = {}

    def advance(self, reward: Float[Tensor, "B N"], weights: Float[Tensor, "L R"], mine: slice) -> Float[Tensor, "B"]:
        """The baseline of each of this process's rounds (`mine` of all), of the steps before this one; then takes this
        step's rewards into the means.

        An audience that is met for the first time starts from its mean in this step. The means are the same on all
        processes. A step with rewards that are not finite leaves them as they were.
        """
        size, rounds = weights.shape[1], self._rounds(weights)
        met = sorted(set(rounds))
        own = [torch.tensor([name == audience for name in rounds[mine]]).to(reward) for audience in met]
        sums = torch.stack([(reward * rows[:, None]).mean() for rows in own])
        share = local_weight(size, len(reward), self.accelerator.num_processes)
        sums = self.accelerator.reduce(sums * share, reduction="mean")
        now = {audience: value * size / rounds.count(audience)
               for audience, value in zip(met, sums.tolist(), strict=True)}
        before = now | self.means
        if all(map(math.isfinite, now.values())):
            decay = self.config.policy.baseline_decay
            self.means |= {audience: decay * before[audience] + (1 - decay) * mean for audience, mean in now.items()}
        return torch.tensor([before[audience] for audience in rounds[mine]], dtype=reward.dtype, device=reward.device)

    def so_far(self, weights: Float[Tensor, "L R"]) -> Float[Tensor, "R"]:
        """The mean of each round's audience so far, NaN where it has not been met."""
        return torch.tensor([self.means.get(audience, math.nan) for audience in self._rounds(weights)])

    def _rounds(self, weights: Float[Tensor, "L R"]) -> list[str]:
        """The audience of each round, as in `means`."""
        if self.config.policy.baseline == "audience":
            return audience_names(weights, [listener.name for listener in self.config.listeners])
        return [EVERYONE] * weights.shape[1]
