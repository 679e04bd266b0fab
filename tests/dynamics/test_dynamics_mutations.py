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


def first(edit: Callable[[Any], None]) -> Change:
    """Change these networks before they are trained."""
    def change(init: Callable[..., None]) -> Callable[..., None]:
        def start(self: Any, *arguments: Any) -> None:
            init(self, *arguments)
            with torch.no_grad():
                edit(self)

        return start

    return change


def unbiased(self: ocs.LinearNetworks) -> None:
    """No constant inputs for a hidden bias."""
    self.x[:, :, 8] = 0


def swapped(weights: Callable[..., Any]) -> Callable[..., Any]:
    """Students whose delta has the wrong sign."""
    return lambda self, settings: weights(dataclasses.replace(self, delta=-self.delta), settings)


def square(losses: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Square loss in place of the logistic loss."""
    return lambda self, outputs: ((outputs - self.y) ** 2 / 2).mean(1)


def still(after_step: Callable[..., None]) -> Callable[..., None]:
    return lambda self, step: None


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
LATE = {"exponents": (), "rhos": (0.45,), "variances": (2.8,), "samples": (5,), "sample_steps": 10}
LINEAR = {"deltas": (-1.0, 1.0), "steps": 1200, "grid_deltas": (0.0,), "test_points": 100, "early": 5, "late": 10,
          "student_steps": 10}
FLOW = {"steps": 40, "every": 10, "untrained": 50}
ONLINE = {"runs": 2, "time": 3.0, "early": 1.0, "switch": 2.0, "map_points": 3, "map_time": 2.0, "map_runs": 1,
          "map_switches": (10.0, 11.0)}
COARSE = {"sweep_similarities": 11, "similarities": 11, "sweep_time": 1.0, "time": 1.0, "dormancies": (0.01,)}
WARM = {"lottery_time": 1.0, "lottery_widths": (4,), "runs": 2, "hard": (), "test": 16}
MUTATIONS = {
    "bias_free: half the rate": Mutation("bias_free", bias_free.ReluNetworks, "forward", half, FEW, (
        "length of the linear map", "loss over time", "depth 3, block start: length", "logistic loss: linear map")),
    "bias_free: square loss": Mutation("bias_free", bias_free.ReluNetworks, "losses", square, FEW, (
        "logistic loss: linear map",)),
    "bias_free: no biases": Mutation("bias_free", bias_free.ReluNetworks, "__init__", first(
        lambda self: self.bias.zero_()), FEW, ("breaks, biases",)),
    "ocs: half the rate": Mutation("ocs", ocs.LinearNetworks, "forward", half, {}, (
        "answers over time", "hidden bias: half-time of the OCS")),
    "ocs: no hidden bias": Mutation("ocs", ocs.LinearNetworks, "__init__", first(unbiased), {}, (
        "answers over time", "hidden bias: speed-up", "hidden bias, random weights: least distance",
        "hidden bias, random weights: true-negative", "hidden bias, random weights: dip")),
    "ocs: no output bias": Mutation("ocs", ocs.LinearNetworks, "__init__", first(lambda self: self.gate.zero_()), {}, (
        "answers over time", "output bias: growth", "output bias, random weights: least distance",
        "output bias, random weights: true-negative", "output bias, random weights: dip")),
    "gating: no Oja's rule": Mutation("gating", gated.GatedNetworks, "after_step", still, SHORT, (
        "Oja alone, A: weight from A", "Oja alone, B: both", "Oja alone: correlation", "Oja and SGD, blocked: corr")),
    "gating: half the rate of Oja's rule": Mutation("gating", gated.GatedNetworks, "__init__", first(
        lambda self: self.hebb.div_(2)), SHORT, (
        "Oja alone, A: weight from A", "Oja alone, A: steps to 1/sqrt(2)", "Oja alone, B: both")),
    "unimodal: half the rate": Mutation("unimodal", fusion.FusionNetworks, "forward", half, LATE, (
        "late fusion: the same, each seed", "depth 3, balanced start: t_A", "ReLU: t_A over theory with its start")),
    "unimodal: fused early": Mutation("unimodal", fusion, "mixes", fused, LATE, (
        "late fusion: t_B / t_A over theory", "late fusion: misattribution", "ReLU: t_B over theory with its start",
        "depth 3, random weights: t_B / t_A over that of L_f - 1")),
    "rich: half the rate": Mutation("rich", rich.LinearNetworks, "forward", half, LINEAR, (
        "neuron: a and w over time", "neuron: kernel distance over time", "neuron: half-rise", "wide, isotropic")),
    "rich: one layer at half the rate": Mutation("rich", rich.LinearNetworks, "__init__", first(
        lambda self: self.rate_a.div_(2)), LINEAR, ("neuron: delta over time", "neuron: a and w over time")),
    "rich: delta of the wrong sign": Mutation("rich", rich.Student, "weights", swapped, LINEAR | {
        "early": 100, "late": 500, "student_steps": 500}, (
        "student: kernel distance at step 100, upstream over downstream", "student: test error at step 100, balanced",
        "student: test error at step 500, downstream over upstream", "student: way of the weights")),
    "geometry: half the rate": Mutation("geometry", geometry.Mlps, "forward", half, FLOW, (
        "small steps, frozen hidden layer: loss",)),
    "geometry: all frozen": Mutation("geometry", geometry.Mlps, "__init__", first(
        lambda self: self.moves.zero_()), FLOW, ("small steps: square of each", "small steps, rich: departure")),
    "geometry: none frozen": Mutation("geometry", geometry.Mlps, "__init__", first(
        lambda self: self.moves.fill_(1)), FLOW, ("small steps, frozen hidden layer: loss",)),
    "teacher_student: half the rate": Mutation("teacher_student", teacher_student.Students, "forward", half, ONLINE, (
        "plain: errors", "replay: errors", "noise: errors", "V = 0: errors", "overlaps of the student", "heads over")),
    "teacher_student: no consolidation": Mutation("teacher_student", teacher_student.Students, "after_step", still,
                                                  ONLINE, ("consolidation: errors", "simulated: forgetting with node")),
    "maslow: half the rate": Mutation("maslow", maslow.Students, "forward", half, COARSE, (
        "SGD, N = 200, none: forgetting", "SGD, N = 200, none: error of task 2")),
    "maslow: no remedies": Mutation("maslow", maslow.Students, "__init__", first(
        lambda self: (self.pinned.zero_(), self.replay.zero_())), COARSE, (
        "SGD, N = 200, nodes, rho 0.1: forgetting", "SGD, N = 200, uniform, rho 1: forgetting")),
    "curricula: half the rate": Mutation("curricula", curricula.Students, "forward", half, WARM, (
        "M over time", "v over time")),
    "curricula: twice the noise": Mutation("curricula", curricula.Students, "__init__", first(
        lambda self: self.noise.mul_(2)), WARM, ("M over time", "v over time")),
    "rich_applied: other starts": Mutation("rich_applied", rich_applied.Mlps, "__init__", first(
        lambda self: self.weights[0][-1].mul_(2)), {"grammar_steps": 10}, ("grammar: first answers at every alpha",)),
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
