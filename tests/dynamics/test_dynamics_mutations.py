"""Claims bite: for each mutation of a simulation, the claims that must notice it.

A mutation replaces one method of a simulation in a run of the probe at its TINY settings, some of them smaller; the
claims hold without it (test_dynamics.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.dynamics import bias_free, curricula, geometry, maslow, ocs, rich, rich_applied, teacher_student
from eval.dynamics.find import find_probe, probe_names
from eval.dynamics.networks import fusion, gated

Change = Callable[[Callable[..., Any]], Callable[..., Any]]


def half(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half the learning rate."""
    return lambda self, step: forward(self, step) / 2


def without(name: str, rows: Callable[[Any], Any] = lambda self: slice(None)) -> Change:
    """Zeros in a buffer of these networks, from the start on."""
    def change(init: Callable[..., None]) -> Callable[..., None]:
        def start(self: Any, *arguments: Any) -> None:
            init(self, *arguments)
            getattr(self, name)[rows(self)] = 0

        return start

    return change


def unbiased(self: ocs.LinearNetworks) -> tuple[Tensor, slice, int]:
    """The constant inputs of networks with a hidden bias."""
    return torch.tensor([condition == "hidden bias" for condition, _ in self.names]), slice(None), 8


def square(losses: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Square loss in place of the logistic loss."""
    return lambda self, outputs: ((outputs - self.y) ** 2 / 2).mean(1)


def still(after_step: Callable[..., None]) -> Callable[..., None]:
    return lambda self, step: None


def undecayed(after_step: Callable[..., None]) -> Callable[..., None]:
    """Oja's rule without its decay, which is Hebb's."""
    def grow(self: gated.GatedNetworks, step: int) -> None:
        mask, w = self.mask[:, self.start:], self.first[:, self.start:]
        x = self.inputs(step)[:, :, self.start:].transpose(1, 2) * mask
        w += self.hebb * (x.transpose(1, 2) @ w) * x

    return grow


def fused(mixes: Callable[..., Any]) -> Callable[..., Any]:
    """Every network fused at its first layer."""
    return lambda depth, at: mixes(depth, 1)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A method, what takes its place, smaller settings, and the beginnings of the claims that must fail."""

    probe: str
    owner: Any
    method: str
    change: Change
    settings: dict[str, Any]
    noticed: tuple[str, ...]


FEW = {"widths": (60,), "slopes": (0.0,), "hidden": 4, "points": 20, "steps": 400}
SHORT = {"long": 100, "short": 4, "runs": 1, "alphas": (0.57,)}
MUTATIONS = {
    "bias_free: half the rate": Mutation("bias_free", bias_free.ReluNetworks, "forward", half, FEW, (
        "length of the linear map", "loss over time", "depth 3, block start: length", "logistic loss: linear map")),
    "bias_free: square loss": Mutation("bias_free", bias_free.ReluNetworks, "losses", square, FEW, (
        "logistic loss: linear map",)),
    "bias_free: no biases": Mutation("bias_free", bias_free.ReluNetworks, "__init__", without("bias"), FEW, (
        "breaks, biases",)),
    "ocs: half the rate": Mutation("ocs", ocs.LinearNetworks, "forward", half, {}, (
        "answers over time", "hidden bias: half-time of the OCS")),
    "ocs: no hidden bias": Mutation("ocs", ocs.LinearNetworks, "__init__", without("x", unbiased), {}, (
        "answers over time", "hidden bias: speed-up", "hidden bias, random weights: least distance",
        "hidden bias, random weights: true-negative", "hidden bias, random weights: dip")),
    "ocs: no output bias": Mutation("ocs", ocs.LinearNetworks, "__init__", without("gate"), {}, (
        "answers over time", "output bias: growth", "output bias, random weights: least distance",
        "output bias, random weights: true-negative", "output bias, random weights: dip")),
    "gating: no Oja's rule": Mutation("gating", gated.GatedNetworks, "after_step", still, SHORT, (
        "Oja alone, A: weight from A", "Oja alone, B: both", "Oja alone: correlation", "Oja and SGD, blocked: corr")),
    "gating: no decay": Mutation("gating", gated.GatedNetworks, "after_step", undecayed, SHORT, (
        "Oja alone, A: weight from A", "Oja alone, B: both", "Oja alone, blocked: weights")),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_of_the_simulation_is_noticed(tmp_path, monkeypatch, name):
    one = MUTATIONS[name]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    probe = find_probe(one.probe)
    monkeypatch.setattr(one.owner, one.method, one.change(getattr(one.owner, one.method)))
    claims, _ = probe.run(dataclasses.replace(probe.TINY, **one.settings), 1, tmp_path)
    failed = [claim.name for claim in claims if not claim.holds]
    assert [start for start in one.noticed if not any(claim.startswith(start) for claim in failed)] == [], failed


def test_every_probe_has_a_mutation():
    assert {one.probe for one in MUTATIONS.values()} == set(probe_names())
