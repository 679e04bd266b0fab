"""Claims bite: for each mutation of a simulation, the claims that must notice it.

A mutation replaces one method of a simulation in a run of the probe at its TINY settings, some of them smaller; the
claims hold without it (test_dynamics.py). A slow test runs every mutation with the whole of these settings, and holds
the claims that none of them breaks against the list in docs/dynamics.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dixit.common import DixitError
from eval.dynamics import bias_free, curricula, gating, geometry, maslow, ocs, rich, rich_applied, teacher_student
from eval.dynamics.find import find_probe, probe_names
from eval.dynamics.networks import fusion, gated
from eval.dynamics.theory import maslow as maslow_theory
from eval.dynamics.theory.teacher_student import Overlaps

PAGE = Path(__file__).resolve().parents[2] / "docs/dynamics.md"
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


def plain_units(sluggish: Callable[..., Any]) -> Callable[..., Any]:
    """Task units that are not sluggish."""
    return lambda units, alpha: units


def slower(integrate: Callable[..., Any]) -> Callable[..., Any]:
    """Order parameters at half the rate."""
    return lambda start, task, times, dt, eta, *rest, **more: integrate(start, task, times, dt, eta / 2, *rest, **more)


def first_task(integrate: Callable[..., Any]) -> Callable[..., Any]:
    """Order parameters that go on learning the first task."""
    return lambda start, task, *rest, **more: integrate(start, 0, *rest, **more)


def nearer(integrate: Callable[..., Any]) -> Callable[..., Any]:
    """Order parameters of units and teachers that are nearer to each other."""
    def closer(start: Overlaps, *rest: Any, **more: Any) -> Any:
        return integrate(dataclasses.replace(start, gram=0.9 * start.gram + 0.1), *rest, **more)

    return closer


def unheeded(learn: Callable[..., Any]) -> Callable[..., Any]:
    """Order parameters without any remedy."""
    none = (maslow_theory.NONE,)
    return lambda start, eta, time, dt, remedies=none: learn(start, eta, time, dt, none * len(remedies))


def biased(self: bias_free.ReluNetworks) -> None:
    """Biases in every network."""
    self.bias.fill_(1)
    for bias in self.biases:
        bias.add_(0.3)


def slow(name: str) -> Change:
    """Half the gradient of these weights."""
    return first(lambda self: getattr(self, name).register_hook(lambda gradient: gradient / 2))


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A method, what takes its place, smaller settings, and the beginnings of the claims that must fail; none if only
    the slow test runs it."""

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
    "bias_free: biases everywhere": Mutation("bias_free", bias_free.ReluNetworks, "__init__", first(biased), {}, ()),
    "bias_free: linear networks": Mutation("bias_free", bias_free.ReluNetworks, "__init__", first(
        lambda self: self.slope.fill_(1)), {}, ()),
    "curricula: hardly trained": Mutation("curricula", curricula.Students, "forward", lambda forward: (
        lambda self, step: forward(self, step) / 50), {}, ()),
    "gating: units that are not sluggish": Mutation("gating", gated, "sluggish", plain_units, {}, ()),
    "gating: units of the theory that are not sluggish": Mutation("gating", gating, "sluggish", plain_units, SHORT, (
        "sluggish units: correlation",)),
    "gating: gradient descent at a thirtieth": Mutation("gating", gated.GatedNetworks, "__init__", first(
        lambda self: self.rate.div_(30)), {}, ()),
    "gating: task units say nothing": Mutation("gating", gated.GatedNetworks, "__init__", first(
        lambda self: (self.units.zero_(), self.test_units.zero_())), {}, ()),
    "gating: always interleaved": Mutation("gating", gated, "order", lambda order: (
        lambda curriculum, *rest: order("interleaved", *rest)), {}, ()),
    "geometry: one scale, the smallest": Mutation("geometry", geometry, "input_scales", lambda scales: (
        lambda settings, scale: scales(settings, 0)), {}, ()),
    "geometry: one scale, the largest": Mutation("geometry", geometry, "input_scales", lambda scales: (
        lambda settings, scale: scales(settings, len(settings.input_stds) - 1)), {}, ()),
    "geometry: scales the other way round": Mutation("geometry", geometry, "input_scales", lambda scales: (
        lambda settings, scale: scales(settings, len(settings.input_stds) - 1 - scale)), {}, ()),
    "geometry: readout at half the rate": Mutation("geometry", geometry.Mlps, "__init__", slow("last"), FLOW, (
        "small steps: square of each readout weight",)),
    "maslow: order parameters at half the rate": Mutation("maslow", maslow_theory, "integrate", slower, {}, ()),
    "maslow: growth at half the rate": Mutation("maslow", maslow, "integrate", slower, COARSE, (
        "rate at which an idle unit grows", "rate at which the new head")),
    "maslow: the first task again": Mutation("maslow", maslow_theory, "integrate", first_task, {}, ()),
    "maslow: all nearer": Mutation("maslow", maslow_theory, "integrate", nearer, {}, ()),
    "maslow: no remedies in the theory": Mutation("maslow", maslow, "learn_second", unheeded, {}, ()),
    "ocs: constant inputs everywhere": Mutation("ocs", ocs.LinearNetworks, "__init__", first(
        lambda self: self.x[:, :, 8].fill_(1)), {}, ()),
    "rich: students' readouts at half the rate": Mutation("rich", rich.Students, "__init__", slow("a"), LINEAR | {
        "student_steps": 500, "early": 100, "late": 500}, ("student: delta of every neuron",)),
    "teacher_student: order parameters at half the rate": Mutation("teacher_student", teacher_student, "integrate",
                                                                   slower, {}, ()),
    "teacher_student: the first task again": Mutation("teacher_student", teacher_student, "integrate", first_task, {},
                                                      ()),
    "teacher_student: all nearer": Mutation("teacher_student", teacher_student, "integrate", nearer, {}, ()),
    "unimodal: fused late": Mutation("unimodal", fusion, "mixes", lambda mixes: (
        lambda depth, at: mixes(depth, depth)), {}, ()),
    "rich_applied: other starts": Mutation("rich_applied", rich_applied.Mlps, "__init__", first(
        lambda self: self.weights[0][-1].mul_(2)), {"grammar_steps": 10}, ("grammar: first answers at every alpha",)),
}


@pytest.mark.parametrize("name", [name for name, one in MUTATIONS.items() if one.noticed])
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


def unbroken() -> dict[str, list[str]]:
    """probe -> the beginnings of the claims that docs/dynamics.md lists as broken by no mutation."""
    section = PAGE.read_text().split("## Claims that no mutation breaks")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| ")][1:]
    found: dict[str, list[str]] = {}
    for probe, claims in rows:
        found.setdefault(probe.strip(), []).extend(re.findall(r"\*(.+?)\*", claims))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("probe", probe_names())
def test_the_claims_that_no_mutation_breaks_are_listed(tmp_path, monkeypatch, probe):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    module = find_probe(probe)
    left = {claim.name for claim in module.run(module.TINY, 2, tmp_path)[0] if claim.kind not in ("report", "skip")}
    for one in MUTATIONS.values():
        if one.probe == probe:
            with monkeypatch.context() as patch, contextlib.suppress(DixitError):  # one diverges
                patch.setattr(one.owner, one.method, one.change(getattr(one.owner, one.method)))
                left -= {claim.name for claim in module.run(module.TINY, 2, tmp_path)[0] if not claim.holds}
    listed = unbroken().get(probe, [])
    assert [name for name in left if not any(name.startswith(start) for start in listed)] == []
    assert [start for start in listed if not any(name.startswith(start) for name in left)] == []
