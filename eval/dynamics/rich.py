"""Get rich quick: the imbalance of layers decides whether, and when, a network learns features.

delta = eta_w a^2 - eta_a |w|^2 is conserved by gradient flow. In one linear neuron f = a w'x it decides how far the
tangent kernel moves, when, and which of many solutions is found: delta > 0 (upstream: the first layer learns faster) is
lazy, delta < 0 (downstream) lazy first and rich late, delta = 0 (balanced) rich. In ReLU networks of small weights
upstream is the fast way to be rich (Kunin et al. 2024, github.com/allanraventos/getrichquick).

The neuron is solved by one closed form for every delta (theory/rich.py), which is compared with gradient descent at
three step sizes, extrapolated to step size zero. Starts, targets and deltas of the neuron and the teacher, student,
rates and scales are the paper's. [stand-in]: the random starts in D dimensions, the unequal rates, the wide networks,
the deltas of the implicit bias, the coarse grid, and that the teacher's readouts have both signs: with readouts of one
sign (one draw in four) the order of students collapses. Kernel distances are those of the kernels themselves: in the
paper's public notebook `kernel_distance` has a0^2 where the norm of K_t needs a_t^2; the resulting error is reported.

Leaves out the paper's two-dimensional students (1e6 steps), its late times (1e5 steps), and the speaker. The paper's
CNNs, grammars and transformers are in rich_applied.py.

Shapes: M times, D inputs, C outputs, H hidden, n points, S networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from dixit.common import rng

from .probe import Claim, Networks, bar_if, only_if, overlay, simulate, skipped
from .settings.rich import TINY as TINY
from .settings.rich import Settings
from .settings.rich import check as check
from .theory.rich import (
    half_rise,
    implicit_bias,
    kernel_distance,
    least_potential,
    neuron,
    start,
    wide_map,
    wide_start,
)

SHARE = 0.05  # of what the extrapolation to step size zero adds: our tolerance for what it leaves

# ---- simulation: linear networks -------------------------------------------------------------------------

SIZES = (1, 2, 4)  # step sizes of one network, in units of lr
AT_ZERO = (8 / 3, -2.0, 1 / 3)  # extrapolates to step size 0 by the parabola through three step sizes
LINE = (2.0, -1.0, 0.0)  # the same by the line through two; the parabola is off by a small part of their difference


@dataclass(frozen=True)
class Net:
    """f(x) = A'W x of at most D inputs, H hidden units and C outputs; a neuron has H = C = 1."""

    kind: str
    seed: int
    delta: float
    x: Float[np.ndarray, "n D"]
    target: Float[np.ndarray, "D C"]  # y = x target
    beta0: Float[np.ndarray, "D C"]
    paces: tuple[float, float] = (1.0, 1.0)  # eta_a, eta_w
    speed: float = 1.0  # multiplies both

    def weights(self) -> tuple[Float[np.ndarray, "H C"], Float[np.ndarray, "H D"]]:
        if self.kind == "wide":
            return wide_start(self.beta0, self.delta)
        a, w = start(self.beta0[:, 0], self.delta, self.paces)
        return np.array([[a]]), w[None]


def scale_gradient(weight: Tensor, rate: Tensor) -> Tensor:
    """The same weight with its gradient multiplied by `rate`, which gives it its own learning rate."""
    return weight.detach() + rate * (weight - weight.detach())


class LinearNetworks(Networks):
    """Every net at the step sizes SIZES, full batch, smaller ones padded with zeros, which stay zero; float64."""

    x: Tensor
    y: Tensor
    rate_a: Tensor
    rate_w: Tensor

    def __init__(self, nets: list[Net]):
        super().__init__()
        sized = [(net, size) for size in SIZES for net in nets]
        parts = {"a": [net.weights()[0] for net, _ in sized], "w": [net.weights()[1] for net, _ in sized],
                 "x": [net.x for net, _ in sized], "y": [net.x @ net.target for net, _ in sized]}
        stacked = {name: torch.from_numpy(padded(arrays)) for name, arrays in parts.items()}
        self.a, self.w = nn.Parameter(stacked["a"]), nn.Parameter(stacked["w"])
        self.register_buffer("x", stacked["x"])
        self.register_buffer("y", stacked["y"])
        for layer, name in enumerate(("rate_a", "rate_w")):
            rates = [net.speed * net.paces[layer] * size for net, size in sized]
            self.register_buffer(name, torch.tensor(rates, dtype=torch.float64)[:, None, None])

    def forward(self, step: int) -> Float[Tensor, "S"]:
        a, w = scale_gradient(self.a, self.rate_a), scale_gradient(self.w, self.rate_w)
        return ((self.x @ w.mT @ a - self.y) ** 2).sum((1, 2)) / 2

    def measure(self) -> dict[str, Tensor]:
        return {"a": self.a, "w": self.w}


def padded(arrays: list[np.ndarray]) -> Float[np.ndarray, "S n m"]:
    """Matrices, padded with zeros to the size of the largest."""
    out = np.zeros((len(arrays), *np.max([array.shape for array in arrays], axis=0)))
    for place, array in zip(out, arrays, strict=True):
        place[:array.shape[0], :array.shape[1]] = array
    return out


def column(*values: float | int) -> Float[np.ndarray, "D 1"]:
    return np.array(values, float)[:, None]


def paper_nets(settings: Settings) -> list[Net]:
    """The paper's starts: (-1, 0) for the target (0, 1); three of them for (.5, .5); one input and two weights."""
    nets = [Net("paper", 0, delta, np.eye(2), column(0, 1), column(-1, 0)) for delta in settings.deltas]
    for beta0 in column(0, -1), column(1, -1) / np.sqrt(2), column(1, 1) / np.sqrt(2):
        nets += [Net("corner", 0, delta, np.eye(2), column(0.5, 0.5), beta0) for delta in settings.corner_deltas]
    x = np.array([[0.5, 1.0]])
    beta0 = 0.5 * (0.6 * column(1, -0.5) + 0.4 * column(0.5, 1))
    return nets + [Net("bias", 0, delta, x, 1.1 * x.T / (x @ x.T), beta0, speed=settings.bias_speed)
                   for delta in settings.deltas]


def random_nets(settings: Settings, seeds: int) -> list[Net]:
    """Whitened inputs in a random basis, with equal and unequal rates; fewer inputs than weights; wide networks."""
    nets, d = [], settings.dimensions
    for seed in range(seeds):
        draw = rng("rich", "neuron", seed)
        x = np.linalg.qr(draw.standard_normal((d, d)))[0]
        target, beta0 = draw.standard_normal((2, d, 1)) / np.sqrt(d)
        few = x[:-1] if d < 4 else x[:-2]
        toward = beta0 * np.sign((few @ beta0).T @ (few @ target))  # so that a keeps its sign
        for delta in settings.deltas:
            nets += [Net("random", seed, delta, x, target, beta0),
                     Net("unequal rates", seed, delta, x, target, beta0, settings.paces),
                     Net("random bias", seed, delta, few, target, toward, speed=settings.bias_speed)]
        draw, shape = rng("rich", "wide", seed), (settings.wide, settings.wide)
        target, beta0 = draw.standard_normal(shape), 0.3 * draw.standard_normal(shape)
        nets += [Net("wide", seed, delta, np.eye(settings.wide), target, beta0) for delta in settings.wide_deltas]
    return nets


class Trajectories:
    """The weights of the linear networks over time, extrapolated to step size zero."""

    def __init__(self, settings: Settings, nets: list[Net], folder: Path):
        self.nets = nets
        record = simulate(LinearNetworks(nets), folder, settings.steps, settings.lr, settings.every)
        largest = max(SIZES)
        count = (len(record["step"]) - 1) // largest + 1  # the records of the smallest steps, every fourth
        self.times = settings.lr * record["step"][::largest][:count]
        sized = {name: [part[::largest // size][:count] for size, part in zip(
            SIZES, np.split(record[name], len(SIZES), 1), strict=True)] for name in ("a", "w")}
        self.a, self.w = (np.tensordot(AT_ZERO, sized[name], 1) for name in ("a", "w"))
        self.rough = [np.tensordot(LINE, sized[name], 1) for name in ("a", "w")]

    def tolerance(self, index: list[int]) -> float:
        """1e-6, or the share SHARE of what the extrapolation adds to a and w of these networks, if that is more."""
        pairs = zip((self.a, self.w), self.rough, strict=True)
        return max(1e-6, SHARE * max(float(np.abs(fine - coarse)[:, index].max()) for fine, coarse in pairs))

    def converged(self, i: int) -> bool:
        """Whether the solution of network `i` fits all points at the end."""
        net = self.nets[i]
        return bool(np.abs(net.x @ (self.map(i)[-1] - net.target)).max() < 1e-7)

    def of(self, *kinds: str) -> list[int]:
        return [i for i, net in enumerate(self.nets) if net.kind in kinds]

    def neuron(self, i: int) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M D"]]:
        """a and w of network `i`."""
        return self.a[:, i, 0, 0], self.w[:, i, 0, :self.nets[i].x.shape[1]]

    def theory(self, i: int) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M D"]]:
        """The closed form of network `i`."""
        net = self.nets[i]
        a, w = net.weights()
        return neuron(self.times, a[0, 0], w[0], net.target[:, 0], net.paces)

    def map(self, i: int) -> Float[np.ndarray, "M D C"]:
        """beta over time."""
        net = self.nets[i]
        return (self.w[:, i].mT @ self.a[:, i])[:, :net.x.shape[1], :net.target.shape[1]]

    def kernel_distance(self, i: int) -> Float[np.ndarray, "M"]:
        """From the kernels themselves: the Jacobian (df/da, df/dw) = (x w, a x) at every point."""
        a, w = self.neuron(i)
        x = self.nets[i].x
        jacobian = np.concatenate([(w @ x.T)[:, :, None], a[:, None, None] * x], axis=2)  # (M, n, 1 + D)
        return distances(jacobian @ jacobian.mT)


def distances(kernels: Float[np.ndarray, "M n n"]) -> Float[np.ndarray, "M"]:
    """1 - cosine between the first kernel and each."""
    norms = np.sqrt((kernels ** 2).sum((1, 2)))
    return 1 - (kernels * kernels[0]).sum((1, 2)) / (norms * norms[0])


# ---- simulation: teacher and student ---------------------------------------------------------------------


def unit_rows(draw: np.random.Generator, *shape: int) -> Float[np.ndarray, "n D"]:
    rows = draw.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def teacher_data(settings: Settings, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test points on the unit sphere and a ReLU teacher's outputs (weight rows of length 1, readouts +-1
    of both signs)."""
    draw = rng("rich", "teacher", seed)
    w, signs = unit_rows(draw, settings.teacher, settings.inputs), np.sign(draw.standard_normal(settings.teacher))
    signs[0] *= -1 if np.all(signs == signs[0]) else 1
    x, test = unit_rows(draw, settings.points, settings.inputs), unit_rows(draw, settings.test_points, settings.inputs)
    return x, np.maximum(x @ w.T, 0) @ signs, test, np.maximum(test @ w.T, 0) @ signs


@dataclass(frozen=True)
class Student:
    """A two-layer ReLU network whose every neuron has |a| |w| = tau^2 and a^2 - |w|^2 = delta."""

    tau: float
    delta: float
    seed: int

    def weights(self, settings: Settings) -> tuple[Float[np.ndarray, "H"], Float[np.ndarray, "H D"]]:
        """The second half of the neurons is the first with the sign of a reversed, so that the first output is 0."""
        draw, half = rng("rich", "student", self.seed), settings.hidden // 2
        w, signs = unit_rows(draw, half, settings.inputs), np.sign(draw.standard_normal(half))
        size, _ = start(np.array([self.tau ** 2]), self.delta)
        return size * np.concatenate([signs, -signs]), self.tau ** 2 / size * np.concatenate([w, w])


class Students(Networks):
    """Full-batch mean squared error with the rate lr / tau^2 of each; float32."""

    x: Tensor
    y: Tensor
    tau: Tensor

    def __init__(self, settings: Settings, students: list[Student]):
        super().__init__()
        a, w = (np.stack(parts) for parts in zip(*(s.weights(settings) for s in students), strict=True))
        self.a, self.w = (nn.Parameter(torch.from_numpy(part).float()) for part in (a, w))
        data = [teacher_data(settings, student.seed)[:2] for student in students]
        for name, values in (("x", np.stack([x for x, _ in data])), ("y", np.stack([y for _, y in data])),
                             ("tau", np.array([student.tau for student in students]))):
            self.register_buffer(name, torch.from_numpy(values).float())

    def forward(self, step: int) -> Float[Tensor, "S"]:
        outputs = ((self.x @ self.w.mT).relu() @ self.a[:, :, None])[:, :, 0]
        return ((outputs - self.y) ** 2).mean(1) / self.tau ** 2

    def measure(self) -> dict[str, Tensor]:
        return {"a": self.a, "w": self.w}


class StudentTrajectories:
    """Kernel distances, activation patterns, test errors and weights of students over time, float64: arrays (M, S)."""

    def __init__(self, settings: Settings, students: list[Student], folder: Path, steps: int):
        self.students = students
        record = simulate(Students(settings, students), folder, steps, settings.student_lr, settings.early)
        self.step, shape = record["step"], record["a"].shape[:2]
        self.kernel, self.hamming, self.test, self.moved = (np.zeros(shape) for _ in range(4))
        self.delta = record["a"].astype(float) ** 2 - (record["w"].astype(float) ** 2).sum(3)  # (M, S, H)
        for i, student in enumerate(students):
            x, _, test, truth = teacher_data(settings, student.seed)
            a, w = record["a"][:, i].astype(float), record["w"][:, i].astype(float)
            active = x @ w.mT > 0  # (M, n, H)
            self.hamming[:, i] = (active != active[0]).mean((1, 2))
            first = relu_kernel(x, a[0], w[0])
            for m in range(len(a)):  # one kernel at a time: they are large
                self.kernel[m, i] = distances(np.stack([first, relu_kernel(x, a[m], w[m])]))[1]
                outputs = np.maximum(test @ w[m].T, 0) @ a[m]
                self.test[m, i] = ((outputs - truth) ** 2).mean() / (truth ** 2).mean()
            self.moved[:, i] = np.sqrt(((a - a[0]) ** 2).sum(1) + ((w - w[0]) ** 2).sum((1, 2)))

    def of(self, delta: float, tau: float) -> list[int]:
        """The students of a cell, seed by seed."""
        return [i for i, student in enumerate(self.students) if (student.delta, student.tau) == (delta, tau)]


def relu_kernel(x: Float[np.ndarray, "n D"], a: Float[np.ndarray, "H"], w: Float[np.ndarray, "H D"],
                ) -> Float[np.ndarray, "n n"]:
    """The tangent kernel of both layers: relu relu' + (x x') times (gates of either, with a^2)."""
    before = x @ w.T
    hidden, gates = np.maximum(before, 0), (before > 0) * a
    return hidden @ hidden.T + (x @ x.T) * (gates @ gates.T)


# ---- claims ----------------------------------------------------------------------------------------------

# Two gaps are smaller than 3 in reference measurements with these sizes, so their bars are ours.
EVEN_BAR = {"kernel distance": (3.0, "gaps of 3"),
            "activation patterns changed": (2.0, "our bar: about 2.8 is expected")}


def linear_claims(settings: Settings, run: Trajectories) -> list[Claim]:
    """One neuron: conserved quantity, closed form, kernel distance, implicit bias; then wide networks."""
    neurons, kept = run.of("paper", "corner", "random", "unequal rates"), []
    for i in neurons:
        (a, w), (eta_a, eta_w) = run.neuron(i), run.nets[i].paces
        kept.append(eta_w * a ** 2 - eta_a * (w ** 2).sum(1))
    claims = [Claim("neuron: delta over time", np.array([run.nets[i].delta for i in neurons]), np.stack(kept, 1),
                    run.tolerance(neurons), source="eta_w a^2 - eta_a |w|^2 is conserved")]
    names = {"paper": "the paper's start", "corner": "the paper's starts, target (.5, .5)",
             "random": f"random starts, {settings.dimensions} inputs",
             "unequal rates": f"the same, rates {settings.paces}"}
    for kind, name in names.items():
        pairs = [(np.column_stack(run.theory(i)), np.column_stack(run.neuron(i))) for i in run.of(kind)]
        theory, measured = (np.concatenate(arrays, 1) for arrays in zip(*pairs, strict=True))
        claims.append(Claim(f"neuron: a and w over time, {name}", theory, measured, run.tolerance(run.of(kind)),
                            source="one closed form for every delta"))
    for kinds, name in (("paper",), "the paper's start"), (("random", "unequal rates"), "random starts"):
        theory = np.stack([kernel_distance(*run.theory(i), len(run.nets[i].x)) for i in run.of(*kinds)], 1)
        measured = np.stack([run.kernel_distance(i) for i in run.of(*kinds)], 1)
        claims.append(Claim(f"neuron: kernel distance over time, {name}", theory, measured,
                            run.tolerance(run.of(*kinds)),
                            source="S of the closed form; measured from the kernels themselves"))
    paper = run.of("paper")
    lowest = min(paper, key=lambda i: run.nets[i].delta)
    known, found = kernel_distance(*run.theory(lowest), 2), run.kernel_distance(lowest)
    name = f"neuron: half-rise of the kernel distance, delta {run.nets[lowest].delta:g}"
    claims.append(Claim(name, half_rise(run.times, known), half_rise(run.times, found), 1e-3,
                        source="S of the closed form: lazy first, rich late")
                  if min(known[-1], found[-1]) > 1e-6 else skipped(name, "its kernel has not moved; more steps"))
    wrong = [np.abs(kernel_distance(*run.neuron(i), 2, notebook=True) - run.kernel_distance(i)).max() for i in paper]
    claims.append(Claim("neuron: error of the public notebook's kernel distance, each delta", 0.0, np.array(wrong),
                        kind="report", source="a0^2 for a_t^2 in the norm of K_t"))
    return claims + bias_claims(run) + [wide_claim(run)]


def bias_claims(run: Trajectories) -> list[Claim]:
    """The solutions that networks with more weights than points find."""
    claims = []
    for kind, name in ("bias", "the paper's start"), ("random bias", "random starts"):
        index = [i for i in run.of(kind) if run.converged(i)]
        nets, count = [run.nets[i] for i in index], len(run.of(kind))
        for solve, way, source in (
                (implicit_bias, "closed form", "the unseen part of w never moves"),
                (least_potential, "least potential", "theorem 3.1: argmin Psi_delta - psi_delta beta0'beta/|beta0|")):
            title = f"implicit bias: the solution found, {name}, {way}"
            if not nets:
                claims.append(skipped(title, f"none of {count} networks has converged; more steps"))
                continue
            ends = np.concatenate([run.map(i)[-1, :, 0] for i in index])
            theory = np.concatenate([solve(n.x, (n.x @ n.target)[:, 0], n.beta0[:, 0], n.delta) for n in nets])
            claims.append(Claim(title, theory, ends, 10 * run.tolerance(index),
                                source=f"{source}; {len(nets)} of {count} networks have converged"))
    return claims


def wide_claim(run: Trajectories) -> Claim:
    """Wide networks with an isotropic imbalance of both signs."""
    wide = run.of("wide")
    theory = [wide_map(run.times, run.nets[i].beta0, run.nets[i].target, run.nets[i].delta) for i in wide]
    return Claim("wide, isotropic: the linear map over time", np.stack(theory, 1),
                 np.stack([run.map(i) for i in wide], 1), run.tolerance(wide),
                 source="beta' = P A'A + W'W P, A'A and W'W from beta")


def student_claims(settings: Settings, run: StudentTrajectories) -> list[Claim]:
    """The order of feature learning and of test errors, seed by seed."""
    small = settings.tau <= 0.15 and settings.student_deltas[0] <= -0.5 and settings.student_deltas[2] >= 0.5
    pace = settings.student_lr / 0.5 * settings.hidden / 50 * 100 / settings.inputs  # wide is fast
    slow = 0.3 <= settings.early * pace <= 1.5 and settings.late >= 5 * settings.early
    down, even, up = (run.of(delta, settings.tau) for delta in settings.student_deltas)
    early, late = 1, settings.late // settings.early
    rate = settings.student_lr / 5e-3 * (0.1 / settings.tau) ** 2  # of the steps
    size = (rate * 100 / settings.inputs) ** 2 * settings.teacher / 3  # of a step, squared
    claims = [Claim("student: delta of every neuron over time", np.broadcast_to(run.delta[0], run.delta.shape),
                    run.delta, 1e-3 * max(1.0, size), source="a^2 - |w|^2 is conserved by gradient flow")]
    for name, values in ("kernel distance", run.kernel), ("activation patterns changed", run.hamming):
        moved = bool((values[early, [*down, *even]] > 0).all())
        claims += only_if(moved, f"some networks have not moved at step {settings.early}", [
            Claim(f"student: {name} at step {settings.early}, {names}", bar,
                  values[early, one] / np.maximum(values[early, other], 1e-12), kind="at_least", source=source)
            for names, one, other, bar, source in (
                ("upstream over downstream", up, down, 3.0, "gaps of 3"),
                ("balanced over downstream", even, down, 3.0, "gaps of 3"),
                ("upstream over balanced", up, even, *EVEN_BAR[name]))])
    test = run.test
    claims += [
        Claim(f"student: test error at step {settings.early}, balanced over upstream", 3.0,
              test[early, even] / test[early, up], kind="at_least", source="gaps of 3"),
        Claim(f"student: test error at step {settings.early}, downstream over balanced", 0.0,
              test[early, down] / test[early, even], kind="report", source="neither has learned much yet"),
        Claim(f"student: test error at step {settings.late}, downstream over upstream", 3.0,
              test[late, down] / test[late, up], kind="at_least", source="gaps of 3"),
        Claim(f"student: test error at step {settings.late}, balanced over upstream", 3.0,
              test[late, even] / test[late, up], kind="at_least", source="gaps of 3"),
        Claim(f"student: test error at step {settings.late}, downstream over balanced", 2.0,
              test[late, down] / test[late, even], kind="at_least", source="our bar: about 2.8 is expected"),
        Claim(f"student: way of the weights at step {settings.late}, upstream over downstream", 1.0,
              run.moved[late, up] / run.moved[late, down], kind="at_most", source="rich with less movement")]
    bars = ("the bars are for tau up to 0.15, deltas of 0.5 and more, early near step 100 at the paper's rate, width, "
            "and late at 5 times early or more")
    return claims[:1] + bar_if(small and slow, bars, claims[1:])


# ---- figure ----------------------------------------------------------------------------------------------


def draw(settings: Settings, run: Trajectories, students: StudentTrajectories, grid: StudentTrajectories) -> Figure:
    """Paths, kernel distance, implicit bias; wide networks, students over steps, the grid. Seed 0."""
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    (paths, kernels, bias), (wide, learning, cells) = figure.subplots(2, 3)
    for i in run.of("paper"):
        beta, (a, w) = run.map(i)[:, :, 0], run.theory(i)
        overlay(paths, beta[:, 0], beta[:, 1], label=f"delta {run.nets[i].delta:g}")
        paths.plot(a * w[:, 0], a * w[:, 1], "k--", linewidth=1.0)
        overlay(kernels, run.times, run.kernel_distance(i), kernel_distance(a, w, 2), f"delta {run.nets[i].delta:g}")
        kernels.plot(run.times, kernel_distance(a, w, 2, notebook=True), "k:", linewidth=0.7)
    paths.set(title="one neuron: a w from (-1, 0) to (0, 1); dashed: closed form", xlabel="first", ylabel="second")
    kernels.set(title="its kernel distance; dotted: public notebook's formula", xlabel="time")
    draw_bias(bias, run)
    for i in run.of("wide"):
        net = run.nets[i]
        if net.seed == 0:
            theory = wide_map(run.times, net.beta0, net.target, net.delta)
            far = np.linalg.norm(run.map(i) - net.target, axis=(1, 2))
            overlay(wide, run.times, far, np.linalg.norm(theory - net.target, axis=(1, 2)), f"delta {net.delta:g}")
    wide.set(title="wide, isotropic: distance to the target; dashed: ODE of the map", xlabel="time", yscale="log",
             ylim=(1e-6, None))
    for delta, name, colour in zip(settings.student_deltas, ("downstream", "balanced", "upstream"),
                                   ("tab:blue", "tab:grey", "tab:red"), strict=True):
        index = students.of(delta, settings.tau)
        for values, style, what in ((students.kernel, "-", "kernel distance"), (students.hamming, ":", "patterns"),
                                    (students.test, "--", "test error")):
            learning.plot(students.step[1:], values[1:, index].mean(1), style, color=colour, label=f"{name}: {what}")
    learning.set(title=f"ReLU students, tau {settings.tau:g}, mean over seeds", xlabel="step", yscale="log")
    values = np.array([[grid.kernel[1, grid.of(delta, tau)].mean() for delta in settings.grid_deltas]
                       for tau in settings.grid_taus])
    image = cells.imshow(np.maximum(values, 1e-12), origin="lower", aspect="auto", norm="log")
    cells.set_xticks(range(len(settings.grid_deltas)), [f"{delta:g}" for delta in settings.grid_deltas])
    cells.set_yticks(range(len(settings.grid_taus)), [f"{tau:g}" for tau in settings.grid_taus])
    cells.set(title=f"students: kernel distance at step {settings.early}", xlabel="delta", ylabel="tau")
    figure.colorbar(image, ax=cells)
    for axis in (paths, kernels, bias, wide, learning):
        axis.legend(fontsize=7)
    for axis in figure.axes:
        axis.title.set_fontsize(10)
    return figure


def draw_bias(axis: Axes, run: Trajectories) -> None:
    """Plot the solution that is found, on the line of solutions, against delta."""
    index = run.of("bias")
    net = run.nets[index[0]]
    y, dense = (net.x @ net.target)[:, 0], np.linspace(min(run.nets[i].delta for i in index),
                                                       max(run.nets[i].delta for i in index), 60)
    theory = np.array([implicit_bias(net.x, y, net.beta0[:, 0], delta) for delta in dense])
    for component, name in enumerate(("first", "second")):
        axis.plot(dense, theory[:, component], "k--", linewidth=1.0)
        axis.plot([run.nets[i].delta for i in index], [run.map(i)[-1, component, 0] for i in index], "o", alpha=0.6,
                  label=f"{name} coefficient")
    axis.set(title="one point, two weights: the solution found; dashed: theory", xlabel="delta")


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Claim], Figure]:
    """The probe: all linear networks in one batch, then students in time and on the grid."""
    linear = Trajectories(settings, paper_nets(settings) + random_nets(settings, seeds), folder / "linear")
    trained = [Student(settings.tau, delta, seed) for delta in settings.student_deltas for seed in range(seeds)]
    students = StudentTrajectories(settings, trained, folder / "students", settings.student_steps)
    cells = [Student(tau, delta, seed) for tau in settings.grid_taus for delta in settings.grid_deltas
             for seed in range(seeds)]
    grid = StudentTrajectories(settings, cells, folder / "grid", settings.early)
    return linear_claims(settings, linear) + student_claims(settings, students), draw(settings, linear, students, grid)
