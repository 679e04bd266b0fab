"""Early learning of the optimal constant solution (OCS).

Networks first learn to give the mean label for every input, and only then to tell inputs apart: always with biases,
and without them as far as inputs are correlated (Rubruck et al., arXiv 2406.17467). Deep linear networks on a
hierarchical task are compared with exact solutions (theory/ocs.py); small CNNs are trained on hierarchies of MNIST
digits and CIFAR-10 photos.

The signature: true-negative rates dip to 1 - p_l, p_l being the base rate of the labels of level l, and recover.
The paper reports such a dip for human learners too; only its direction is checked, there are no human data here.

The paper's own figure settings were not available: the tree, sizes, rates, initial scales, the classes and their
trees, and the CNNs are [stand-in]. Leaves out the cross-entropy version and the speaker.

Shapes: S networks, N items, K labels (14: 2 + 4 + 8), A modes (8), M times.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure, FigureBase
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.common import rng

from .networks.images import image_set
from .probe import Claim, Networks, bar_if, crossing, only_if, overlay, reached, simulate, skipped
from .settings.ocs import TINY as TINY
from .settings.ocs import Settings, all_rhos
from .settings.ocs import check as check
from .theory.ocs import (
    BASE_RATES,
    condition_inputs,
    constant_growth,
    exact_outputs,
    half_time,
    labels,
    mode_constants,
    mode_strengths,
    ocs_distance,
    singular_values,
    step_error,
    strengths,
    tree_modes,
    true_negatives,
)

# ---- setting ---------------------------------------------------------------------------------------------


LEVEL_NAMES = ("top", "middle", "bottom")


def at_minimum(distance: Float[np.ndarray, "M S"], values: Float[np.ndarray, "M S L"]) -> Float[np.ndarray, "S L"]:
    """The values of each network when it is nearest to the OCS."""
    return np.take_along_axis(values, distance.argmin(0)[None, :, None], axis=0)[0]


# ---- simulation: linear ----------------------------------------------------------------------------------


def conditions(settings: Settings) -> list[str]:
    """The conditions that networks of one depth are trained in."""
    return ["hidden bias", "output bias"] + [f"rho {rho:g}" for rho in all_rhos(settings)]


class LinearNetworks(Networks):
    """Deep linear networks on the tree: one aligned and one per seed with random weights, of every condition.

    Aligned: the modes are the theory's and start at one strength. Random: Gaussian weights, biases 0.
    """

    x: Tensor
    y: Tensor
    gate: Tensor

    def __init__(self, settings: Settings, depth: int, seeds: int):
        super().__init__()
        self.names = [(c, seed) for c in conditions(settings) for seed in (None, *range(seeds))]
        widths = [9, *[settings.hidden] * (depth - 1), 14]
        made = [self.aligned(c, widths, settings.mode_init) if seed is None else
                self.random(c, widths, settings, seed) for c, seed in self.names]
        self.weights = nn.ParameterList(torch.from_numpy(np.stack(layer)) for layer in zip(*made, strict=True))
        self.bias = nn.Parameter(torch.zeros(len(made), 14, dtype=torch.float64))
        gate = np.array([[float(c == "output bias")] for c, _ in self.names])
        self.register_buffer("gate", torch.from_numpy(gate))
        self.register_buffer("x", torch.from_numpy(np.stack([condition_inputs(c) for c, _ in self.names])))
        self.register_buffer("y", torch.from_numpy(labels()).repeat(len(made), 1, 1))

    @staticmethod
    def aligned(condition: str, widths: list[int], start: float) -> list[np.ndarray]:
        x, modes = condition_inputs(condition), tree_modes()
        q, depth = start ** (1 / (len(widths) - 1)), len(widths) - 1
        layers = [np.zeros(shape) for shape in zip(widths, widths[1:], strict=False)]
        right = modes @ x
        layers[0][:, :8] = q * (right / np.linalg.norm(right, axis=1, keepdims=True)).T
        for layer in layers[1:depth - 1]:
            layer[:8, :8] = q * np.eye(8)
        layers[-1][:8] = q * modes @ labels() / singular_values()[:, None]
        return layers

    @staticmethod
    def random(condition: str, widths: list[int], settings: Settings, seed: int) -> list[np.ndarray]:
        depth = len(widths) - 1
        layers = [rng("ocs", seed, depth, i).standard_normal(shape)
                  * (settings.init if depth == 2 else settings.deep_init / np.sqrt(shape[0]))
                  for i, shape in enumerate(zip(widths, widths[1:], strict=False))]
        layers[0][8] = 0.0  # the hidden bias
        return layers

    def outputs(self) -> Float[Tensor, "S 8 14"]:
        h = self.x
        for weight in self.weights:
            h = h @ weight
        return h + (self.gate * self.bias)[:, None]

    def forward(self, step: int) -> Float[Tensor, "S"]:
        return ((self.outputs() - self.y) ** 2).sum((1, 2)) / 16

    def measure(self) -> dict[str, Tensor]:
        return {"outputs": self.outputs(), "bias": self.bias}


# ---- simulation: images ----------------------------------------------------------------------------------

IMAGE_CONDITIONS = ("bias", "no bias", "no bias, centred")


class ConvNetworks(Networks):
    """CNNs of two convolutions (stride 2, ReLU) and a readout, squared error, SGD on random batches; float32.

    Networks are groups of channels of one grouped convolution. Centred inputs have the mean image subtracted.
    """

    first: Tensor
    second: Tensor
    last: Tensor
    gate: Tensor
    centred: Tensor

    def __init__(self, settings: Settings, name: str, seeds: int):
        super().__init__()
        self.settings = settings
        self.names = [(c, seed) for c in IMAGE_CONDITIONS for seed in range(seeds)]
        images, self.leaves = image_set(name, settings.per_class)
        self.truth = labels()[self.leaves]
        self.images, self.y = torch.from_numpy(images), torch.from_numpy(self.truth).float()
        c, s = settings.channels, len(self.names)
        side = -(-images.shape[-1] // 4)
        shapes = {"first": (c, images.shape[1], 3, 3), "second": (2 * c, c, 3, 3), "last": (2 * c * side ** 2, 14)}
        fans = {"first": 9 * images.shape[1], "second": 9 * c, "last": 2 * c * side ** 2}
        for part, shape in shapes.items():
            drawn = np.stack([rng("ocs", name, part, seed).standard_normal(shape) for _, seed in self.names])
            weight = settings.gain / np.sqrt(fans[part]) * drawn
            self.register_parameter(part, nn.Parameter(torch.from_numpy(weight).float()))
        self.biases = nn.ParameterList(torch.zeros(s, n) for n in (c, 2 * c, 14))
        self.register_buffer("gate", torch.tensor([[float(n == "bias")] for n, _ in self.names]))
        self.register_buffer("centred", torch.tensor([[float("centred" in n)] for n, _ in self.names]))

    def outputs(self, rows: Int[np.ndarray, "b"]) -> Float[Tensor, "S b 14"]:
        s, device = len(self.gate), self.gate.device
        b1, b2, b3 = ((self.gate * bias) for bias in self.biases)
        x = torch.cat([self.images[rows], self.images.mean(0, keepdim=True)]).to(device)
        h = F.conv2d(x, self.first.flatten(0, 1), None, 2, 1).unflatten(1, (s, -1))  # all networks see one image
        h = (h[:-1] - self.centred[:, :, None, None] * h[-1:] + b1[:, :, None, None]).relu()
        h = F.conv2d(h.flatten(1, 2), self.second.flatten(0, 1), b2.flatten(), 2, 1, groups=s).relu()
        return h.unflatten(1, (s, -1)).flatten(2).transpose(0, 1) @ self.last + b3[:, None]

    def forward(self, step: int) -> Float[Tensor, "S"]:
        rows = rng("ocs batch", step).choice(len(self.y), self.settings.batch, replace=False)
        return ((self.outputs(rows) - self.y[rows].to(self.gate.device)) ** 2).sum(2).mean(1) / 2

    def measure(self) -> dict[str, Tensor]:
        pieces = np.array_split(np.arange(len(self.y)), -(-len(self.y) // 128))
        return {"outputs": torch.cat([self.outputs(rows) for rows in pieces], 1)}


# ---- claims ----------------------------------------------------------------------------------------------

DERIVED = "derived, exact under gradient flow"


class Trajectories:
    """The outputs of one `LinearNetworks` over time, by condition."""

    def __init__(self, networks: LinearNetworks, record: dict[str, np.ndarray], lr: float, depth: int):
        self.times, self.depth, self.bias = record["step"] * lr, depth, record["bias"]
        self.outputs, self.names = record["outputs"], networks.names
        self.distance = ocs_distance(self.outputs)  # (M, S)
        self.rates = true_negatives(self.outputs, labels())  # (M, S, 3)

    def aligned(self, condition: str) -> int:
        return self.names.index((condition, None))

    def random(self, condition: str) -> list[int]:
        return [i for i, (c, seed) in enumerate(self.names) if c == condition and seed is not None]

    def nearest(self, condition: str) -> Float[np.ndarray, "seeds"]:
        """The smallest distance to the OCS of each network with random weights."""
        return self.distance[:, self.random(condition)].min(0)


def linear_claims(settings: Settings, runs: dict[int, Trajectories]) -> list[Claim]:
    """Linear networks against the exact solution, and the signatures of the OCS."""
    names, lr, start = conditions(settings), settings.lr, settings.mode_init
    claims = [Claim(f"answers over time, aligned, all conditions, depth {depth}",
                    np.stack([exact_outputs(run.times, c, start, depth) for c in names]),
                    np.stack([run.outputs[:, run.aligned(c)] for c in names]),
                    1e-4 + 1.25 * max(step_error(run.times, c, start, depth, lr if depth == 2 else settings.deep_lr)
                                      for c in names), source=f"{DERIVED}; tolerance: 1.25 x that of finite steps")
              for depth, run in runs.items()]
    two, end = runs[2], lr * settings.steps

    def growth(condition: str) -> Float[np.ndarray, "A"]:
        """Growth of the logit of each mode, which is a line in time, up to the second record."""
        s, d = mode_constants(condition_inputs(condition))
        share = mode_strengths(two.outputs[:2, two.aligned(condition)], condition) * d / s
        return np.diff(np.log(share / (1 - share)), axis=0)[0]

    grown = {c: growth(c) for c in names}
    biased = mode_strengths(two.outputs[:, two.aligned("hidden bias")], "hidden bias")
    s, d = mode_constants(condition_inputs("hidden bias"))
    shares = np.clip(biased * d / s, 1e-12, 1 - 1e-12)  # their logit is a line in time
    halves = np.array([crossing(two.times, np.log(shares / (1 - shares))[:, a], 0.0) for a in (0, 1)])
    theory = np.array([half_time(s[a], d[a], start) for a in (0, 1)])
    late = 0.75 * lr * np.log(np.sqrt(s[:2] / d[:2] / start / 2) / 2) + 0.002 * theory  # see theory/steps.py
    claims += only_if(reached(halves), f"not learned by time {end:g}", [
        Claim("hidden bias: half-time of the OCS", theory[0], halves[0], float(late[0]),
              source="ln(s/(d a0) - 1)/2s; tolerance: finite steps"),
        Claim("hidden bias: half-time of the top split over the OCS's", theory[1] / theory[0], halves[1] / halves[0],
              float((late / theory).sum() * theory[1] / theory[0]), source="the same")])
    claims += [
        Claim("hidden bias: speed-up of the constant mode over the top split", 3.0, grown["hidden bias"][0]
              / grown["hidden bias"][1], 3 * lr + 1e-3, source="sqrt(1 + N)")]
    rhos = np.array(all_rhos(settings))
    speed = np.sqrt((1 - rhos + 8 * rhos) / (1 - rhos))
    ratio = np.array([grown[f"rho {rho:g}"][0] / grown[f"rho {rho:g}"][1] for rho in rhos])
    claims.append(Claim("no bias: speed-up of the constant mode over the top split, over theory, each rho",
                        np.ones(len(rhos)), ratio / speed, lr + 1e-3, source="sqrt((1 - rho + N rho)/(1 - rho))"))
    i = two.aligned("output bias")
    beta = two.bias[:, i] @ labels().mean(0) / np.linalg.norm(labels().mean(0))
    a = np.sqrt(8) * ((two.outputs[:, i].mean(1) @ labels().mean(0)) / np.linalg.norm(labels().mean(0)) - beta)
    factor = constant_growth(start)
    claims += only_if(end >= 7, f"the bias is still learned at time {end:g}", [
        Claim("output bias: growth of the weights' constant mode", factor, a[-1] / a[0], (lr / 2 + 1e-3) * factor,
              source="exp(2 ‖y‖/sqrt N) less the start's share, conserved")])
    claims += [
        Claim("output bias: drift of ln a - 2 beta/sqrt N", 0.0, np.log(a / a[0]) - 2 * beta / np.sqrt(8), lr / 2,
              source="conserved by gradient flow")]
    learned = 1.5 * half_time(s[1], d[1], min(start, settings.hidden * settings.init ** 2 / 2))
    random: list[Claim] = []
    for c in ("hidden bias", "output bias"):
        index = two.random(c)
        at_ocs = at_minimum(two.distance[:, index], two.rates[:, index])
        random += [Claim(f"{c}, random weights: least distance to the OCS", 0.01, two.nearest(c), kind="at_most",
                         source="our bar"),
                   Claim(f"{c}, random weights: true-negative rates there", BASE_RATES, at_ocs, 0.02, source="1 - p_l"),
                   dip(f"{c}, random weights", two.rates[:, index, 0])]
    none = two.random("rho 0")
    nearest = np.array([two.nearest(f"rho {rho:g}").mean() for rho in rhos])
    random += [Claim("no bias, random weights: least distance to the OCS", 0.3, two.nearest("rho 0"), kind="at_least",
                     source="our bar"),
               Claim("no bias, random weights: least top true-negative rate", 0.9, two.rates[:, none, 0].min(0),
                     kind="at_least", source="our bar")]
    falls = "no bias: least distance over that of the next smaller rho"
    random.append(Claim(falls, 1.0, nearest[1:] / nearest[:-1], kind="at_most", source="falls with rho")
                  if len(rhos) > 1 else skipped(falls, "needs a rho above 0"))
    claims += only_if(end >= learned, f"random weights learn the top split by time {learned:.3g}, and this run ends at "
                                      f"{end:.3g}; more steps", random)
    end = settings.deep_lr * settings.deep_steps
    for depth, run in runs.items():
        if depth > 2:
            none_nearest = run.nearest("rho 0")
            claims += only_if(end >= 7, f"the bias is still learned at time {end:g}", [
                Claim(f"output bias, random weights, depth {depth}: least distance over that without bias", 0.5,
                      run.nearest("output bias") / none_nearest, kind="at_most", source="our bar")])
            claims += [Claim(f"hidden bias, random weights, depth {depth}: least distance over that without bias",
                             0.0, run.nearest("hidden bias") / none_nearest, kind="report",
                             source="the start is not small")]
    return claims


def dip(name: str, top: Float[np.ndarray, "M S"]) -> Claim:
    """Top-level true-negative rates fall, then recover, as is also reported for human learners.

    Measured is the fall below the first and the last rate, whichever is smaller.
    """
    return Claim(f"{name}: dip of top true-negative rates", 0.3, np.minimum(top[0], top[-1]) - top.min(0),
                 kind="at_least", source="our bar; in humans the direction is reported, no data here")


def image_claims(name: str, networks: ConvNetworks, outputs: Float[np.ndarray, "M S N 14"]) -> list[Claim]:
    """The same signatures in CNNs."""
    distance, rates = ocs_distance(outputs), true_negatives(outputs, networks.truth)
    index = {c: [i for i, (n, _) in enumerate(networks.names) if n == c] for c in IMAGE_CONDITIONS}
    biased, nearest = index["bias"], distance.min(0)
    claims = [Claim(f"{name} CNN, bias: least distance to the OCS", 0.05, nearest[biased], kind="at_most",
                    source="our bar"),
              Claim(f"{name} CNN, bias: true-negative rates there", BASE_RATES,
                    at_minimum(distance[:, biased], rates[:, biased]), 0.03, source="1 - p_l; our tolerance"),
              dip(f"{name} CNN, bias", rates[:, biased, 0])]
    for c in IMAGE_CONDITIONS[1:]:
        claims += [Claim(f"{name} CNN, {c}: least distance over that with bias", 2.0,
                         nearest[index[c]] / nearest[biased], kind="at_least", source="our bar"),
                   dataclasses.replace(dip(f"{name} CNN, {c}", rates[:, index[c], 0]), kind="report",
                                       source="their features are correlated; how far, theory does not say")]
    return claims


# ---- figure ----------------------------------------------------------------------------------------------


def draw_linear(figure: FigureBase, settings: Settings, runs: dict[int, Trajectories]) -> None:
    """Upper row: mode strengths, distance to the OCS, true-negative rates, and the sweep over rho."""
    left, middle, right, sweep = figure.subplots(1, 4)
    two, start = runs[2], settings.mode_init
    s, d = mode_constants(condition_inputs("hidden bias"))
    simulated = mode_strengths(two.outputs[:, two.aligned("hidden bias")], "hidden bias")
    theory = strengths(two.times, s, d, start)
    for a, name in (0, "constant"), (1, "top"), (2, "middle"), (4, "bottom"):
        overlay(left, two.times, simulated[:, a] * d[a] / s[a], theory[:, a] * d[a] / s[a], name)
    left.set(title="hidden bias: modes, aligned", xlabel="time", ylabel="strength / final")
    for c in ("hidden bias", "output bias", "rho 0"):
        overlay(middle, two.times, two.distance[:, two.aligned(c)], ocs_distance(exact_outputs(two.times, c, start)),
                "no bias" if c == "rho 0" else c)
    middle.set(title="distance to the OCS, aligned", xlabel="time", xlim=(0, 40), yscale="log")
    colours = ("tab:blue", "tab:orange", "tab:green")
    for c, style in ("hidden bias", "-"), ("rho 0", ":"):
        for level, colour in enumerate(colours):
            right.plot(two.times, two.rates[:, two.random(c)[0], level], style, color=colour,
                       label=f"{LEVEL_NAMES[level]}, {'no bias' if c == 'rho 0' else c}")
    for rate, colour in zip(BASE_RATES, colours, strict=True):
        right.axhline(rate, color=colour, linewidth=0.8, linestyle="--")
    right.set(title="true-negative rates, random weights", xlabel="time", xlim=(0, 40))
    rhos = all_rhos(settings)
    dense = np.linspace(0, rhos[-1], 50)
    sweep.plot(dense, [ocs_distance(exact_outputs(two.times, f"rho {rho}", start)).min() for rho in dense], "k--",
               linewidth=1.0, label="theory, aligned")
    sweep.plot(rhos, [two.distance[:, two.aligned(f"rho {r:g}")].min() for r in rhos], "o", alpha=0.6, label="aligned")
    for seed in range(len(two.random("rho 0"))):
        sweep.plot(rhos, [two.nearest(f"rho {r:g}")[seed] for r in rhos], "x", color="tab:red",
                   label="random weights" if seed == 0 else None)
    sweep.set(title="no bias: least distance to the OCS", xlabel="input correlation rho", yscale="log")
    for axis in (left, middle, right, sweep):
        axis.legend(fontsize=7)


def draw_deep_and_images(figure: FigureBase, settings: Settings, runs: dict[int, Trajectories],
                         images: dict[str, tuple[ConvNetworks, np.ndarray, np.ndarray]]) -> None:
    """Lower row: depth; and for each image set true-negative rates and the distance to the OCS."""
    axes = np.atleast_1d(figure.subplots(1, 1 + len(images) + bool(images)))
    for depth, run in runs.items():
        overlay(axes[0], run.times, run.distance[:, run.aligned("output bias")],
                ocs_distance(exact_outputs(run.times, "output bias", settings.mode_init, depth)), f"depth {depth}")
    axes[0].set(title="output bias: distance to the OCS, aligned", xlabel="time", yscale="log")
    for axis, (name, (networks, step, outputs)) in zip(axes[1:], images.items(), strict=False):
        rates = true_negatives(outputs, networks.truth)
        index = [i for i, (c, _) in enumerate(networks.names) if c == "bias"]
        for level, (rate, colour) in enumerate(zip(BASE_RATES, ("tab:blue", "tab:orange", "tab:green"), strict=True)):
            axis.plot(step[1:], rates[1:, index, level], color=colour, alpha=0.6)
            axis.axhline(rate, color=colour, linewidth=0.8, linestyle="--", label=f"1 - p, {LEVEL_NAMES[level]}")
        axis.set(title=f"{name} CNN with bias: true-negative rates", xlabel="step", xscale="log")
        for c, colour in zip(IMAGE_CONDITIONS, ("tab:blue", "tab:red", "tab:purple"), strict=True):
            index = [i for i, (n, _) in enumerate(networks.names) if n == c]
            axes[-1].plot(step[1:], ocs_distance(outputs)[1:, index[0]], "-" if name == "mnist" else ":", color=colour,
                          label=f"{name}, {c}")
    if images:
        axes[-1].set(title="CNNs: distance to the OCS", xlabel="step", xscale="log", yscale="log")
    for axis in axes:
        axis.legend(fontsize=7)


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Claim], Figure]:
    """The probe: linear networks of every depth, then CNNs on images."""
    runs = {}
    for depth in sorted({2, *settings.depths}):
        networks, lr = LinearNetworks(settings, depth, seeds), settings.lr if depth == 2 else settings.deep_lr
        steps = settings.steps if depth == 2 else settings.deep_steps
        runs[depth] = Trajectories(networks, simulate(networks, folder / f"depth{depth}", steps, lr, settings.every),
                                   lr, depth)
    claims, images = linear_claims(settings, runs), {}
    for name in settings.images:
        cnns = ConvNetworks(settings, name, seeds)
        record = simulate(cnns, folder / name, settings.image_steps, settings.image_lr, settings.image_every)
        images[name] = cnns, record["step"], record["outputs"].astype(float)
        time = settings.image_steps * settings.image_lr
        claims += bar_if(time >= 100, f"the bars are for 100 units of time, and this training ends at {time:g}",
                         image_claims(name, cnns, images[name][2]))
    figure = Figure(figsize=(18, 8.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False).flat
    draw_linear(upper, settings, runs)
    draw_deep_and_images(lower, settings, runs, images)
    return claims, figure
