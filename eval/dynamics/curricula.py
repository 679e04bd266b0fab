"""Curricula against overparameterisation: whether easy samples first help narrow networks more than wide ones.

A two-layer ReLU network learns an XOR-like Gaussian mixture by online SGD; in high dimension a few order parameters
obey ODEs (Mannelli, Ivashynka, Saxe, Saglietti, ICML 2024, arXiv 2406.01589, "Tilting the odds at the lottery"). Where
noise is small it succeeds if its start already has a unit for each of the four clusters: a lottery that wide networks
win more often. The ODEs and the probability are in theory/curricula.py.

The abstract claims that "a high degree of overparameterisation - while simplifying the problem - can limit the benefit
from curricula"; a summary of the paper reports the same for corrupted MNIST and CIFAR-10. That effect has no bar here.
Four orders of samples are compared over paired runs, width by width, with standard error and sign: easy samples first,
the same number of easy and hard ones shuffled (mix), hard ones only, and hard ones first. The difference to the mix is
the effect of order alone; a network that sees hard samples only has seen other data.
Found with 3 seeds, in 21 cells of setting and width (settings share starts, so cells are not independent): easy first
beats hard only in 16 and loses in 2; it beats the mix in 3 and loses in 9. Its lead over hard only is greater at the
narrowest width than at the widest in 3 of 7 settings, smaller in 2; its lead over the mix in none, smaller in 2. So
easy data help, narrow networks more in some settings only; that the easy-first order helps narrow networks more is not
found here.

Only the abstract was available: the curricula, noise levels, widths, rates, times, which start is warm, the images'
labels and their corruption (pixel noise) are [stand-in]. Rate and noise of the images were chosen from the mix alone,
with seed 0. The equations are derived; their form is that of Ben Arous, Gheissari, Jagannath 2022, from memory. Leaves
out the ODE from starts without overlap, where the time of escape is random in every dimension, weight decay, and the
speaker.

Shapes: S runs (of all seeds), A arms (orders of samples), G widths side by side in U units, K units of one network,
b samples a step, d dimensions, M times, n points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.common import rng

from .networks.images import image_set
from .probe import Claim, Networks, bar_if, overlay, simulate, skipped
from .settings.curricula import TINY as TINY
from .settings.curricula import Settings
from .settings.curricula import check as check
from .theory.curricula import clusters, covered, lottery, normal_points, order_parameters

# ---- setting ---------------------------------------------------------------------------------------------


ARMS = ("easy first", "mix", "hard only", "hard first")


def noise_levels(easy: float, hard: float, steps: int, *key: int | str) -> Float[np.ndarray, "A steps"]:
    """The noise of each step in each arm; the first, second and fourth have the same levels in another order."""
    late = np.arange(steps) >= steps // 2
    is_hard = np.stack([late, rng("curricula", "mix", *key).permutation(late), np.ones(steps, bool), late[::-1]])
    return np.where(is_hard, np.float32(hard), np.float32(easy))


# ---- simulation ------------------------------------------------------------------------------------------

BLOCK = 32  # steps whose samples are drawn at once


@dataclass(frozen=True)
class Data:
    """Inputs and labels that samples are drawn from, before noise is added. A mixture has four inputs."""

    name: str
    inputs: Float[np.ndarray, "n d"]
    labels: Float[np.ndarray, "n"]
    test_inputs: Float[np.ndarray, "n2 d"]  # with their noise
    test_labels: Float[np.ndarray, "n2"]


def mixture(d: int, noise: float, test: int) -> Data:
    """The XOR-like mixture; `noise` and `test` samples of each cluster are for testing."""
    centres, labels = (part.astype(np.float32) for part in clusters(d))
    inputs = np.tile(centres, (test, 1))
    z = rng("curricula", "test", d).standard_normal(inputs.shape, np.float32)
    return Data("mixture", centres, labels, inputs + np.float32(noise) * z, np.tile(labels, test))


def images(name: str, settings: Settings) -> Data:
    """Images of 14 x 14 (MNIST) or 8 x 8 (CIFAR-10), less their mean and in units of a pixel's standard deviation.

    The label is an XOR of the two upper levels of the tree of classes of networks/images.py: MNIST 0, 1, 6, 7 against
    2, 3, 4, 5; CIFAR-10 planes, ships, deer, horses against cars, trucks, cats, dogs [stand-in].
    """
    pixels, leaves = image_set(name, settings.per_class)
    small = F.avg_pool2d(torch.from_numpy(pixels), {"mnist": 2, "cifar10": 4}[name]).flatten(1).numpy()
    labels = ((1 - 2 * (leaves // 4)) * (1 - 2 * (leaves // 2 % 2))).astype(np.float32)
    number = np.concatenate([np.arange(n) for n in np.bincount(leaves)])  # within its class
    testing = number >= settings.per_class - settings.per_class // 5
    small = small - small[~testing].mean(0)
    small = small / small[~testing].std()
    clean = small[testing]
    z = rng("curricula", "test", name).standard_normal(clean.shape, np.float32)
    return Data(name, small[~testing], labels[~testing], clean + np.float32(settings.image_noise) * z, labels[testing])


class Students(Networks):
    """Two-layer ReLU networks without biases and with logistic loss; float32.

    A run has independent networks of all widths and arms: those of one width share their start, and those of one run
    share inputs and noise, multiplied by the noise level of the arm.
    """

    index: Tensor
    noise: Tensor

    def __init__(self, data: Data, seeds: int, start: tuple[np.ndarray, np.ndarray], widths: Sequence[int],
                 noise: Float[np.ndarray, "S A steps"], batch: int = 1):
        """`start`: input weights (S, d, U) and readout (S, U) of all arms, unit by unit, width after width."""
        super().__init__()
        weight, readout = (torch.from_numpy(part.astype(np.float32)) for part in start)
        arms = noise.shape[1]
        self.weight = nn.Parameter(weight[:, None].repeat(1, arms, 1, 1))
        self.readout = nn.Parameter(readout[:, None].repeat(1, arms, 1))
        self.register_buffer("noise", torch.from_numpy(noise))
        self.register_buffer("index", torch.arange(len(noise)))
        self.groups = torch.block_diag(*(torch.ones(k, 1) for k in widths))  # (U, G)
        self.data, self.seeds, self.batch, self.runs, self.block = data, seeds, batch, len(noise), -1
        self.inputs, self.labels, self.test_inputs, self.test_labels = (
            torch.from_numpy(a) for a in (data.inputs, data.labels, data.test_inputs, data.test_labels))

    def draw(self, block: int) -> None:
        """Draw the input and the noise of every run for each step of a block: a function of (seed, step)."""
        shape = BLOCK, self.runs // self.seeds, self.batch
        draws = [rng("curricula", self.data.name, "samples", seed, block) for seed in range(self.seeds)]
        rows = [one.integers(len(self.inputs), size=shape) for one in draws]
        z = [one.standard_normal((*shape, self.inputs.shape[1]), np.float32) for one in draws]
        self.rows, self.z = (torch.from_numpy(np.concatenate(parts, 1)) for parts in (rows, z))
        self.block = block

    def samples(self, step: int) -> tuple[Float[Tensor, "S b d"], Float[Tensor, "S b d"], Float[Tensor, "S b"]]:
        """Inputs, unit noise and labels of the runs of this process."""
        if step // BLOCK != self.block:
            self.draw(step // BLOCK)
        mine, here = self.index.cpu(), self.index.device
        rows = self.rows[step % BLOCK][mine]
        return self.inputs[rows].to(here), self.z[step % BLOCK][mine].to(here), self.labels[rows].to(here)

    def outputs(self, x: Float[Tensor, "S A b d"]) -> Float[Tensor, "S A b G"]:
        return ((x @ self.weight).relu() * self.readout[:, :, None]) @ self.groups.to(x.device)

    def forward(self, step: int) -> Float[Tensor, "S"]:
        inputs, z, y = self.samples(step)
        x = inputs[:, None] + self.noise[:, :, step, None, None] * z[:, None]
        return F.softplus(-y[:, None, :, None] * self.outputs(x)).mean(2).sum((1, 2))

    def accuracy(self) -> Float[Tensor, "S A G"]:
        """The share of the test samples that each network classifies correctly."""
        here, rates = self.index.device, []
        x, y, groups = (part.to(here) for part in (self.test_inputs, self.test_labels[:, None], self.groups))
        for weight, readout in zip(self.weight, self.readout, strict=True):  # run by run, for memory
            h = (x @ weight.movedim(0, 1).flatten(1)).relu().unflatten(1, readout.shape)
            rates.append(((h * readout) @ groups * y[:, None] > 0).float().mean(0))
        return torch.stack(rates)

    def measure(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "readout": self.readout, "accuracy": self.accuracy()}


def cold_start(name: str, seeds: int, runs: int, d: int, scales: Float[np.ndarray, "U"],
               ) -> tuple[Float[np.ndarray, "S d U"], Float[np.ndarray, "S U"]]:
    """Gaussian weights: W of variance 1 / d, v of standard deviations `scales`."""
    draws = [rng("curricula", name, "weights", seed) for seed in range(seeds)]
    weight = np.concatenate([one.standard_normal((runs, d, len(scales))) for one in draws])
    return weight / np.sqrt(d), np.concatenate([one.standard_normal((runs, len(scales))) for one in draws]) * scales


def warm_start(settings: Settings, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M, Q, v) of a seed: overlaps of one size and random signs, rows of W of length 1, v normal."""
    draw, k = rng("curricula", "warm", seed), settings.hidden
    m = settings.overlap * draw.choice([-1.0, 1.0], (k, 2))
    return m, m @ m.T + (1 - 2 * settings.overlap ** 2) * np.eye(k), draw.standard_normal(k)


class Flow:
    """SGD from the warm starts in d dimensions, and the ODE from the same starts."""

    def __init__(self, settings: Settings, d: int, seeds: int, folder: Path):
        k, runs, steps = settings.hidden, settings.ode_runs, round(settings.time * d)
        starts = [warm_start(settings, seed) for seed in range(seeds)]
        weight = np.zeros((seeds, d, k))
        for seed, (m, _, _) in enumerate(starts):  # rows of the rest of W are orthogonal; nothing depends on which
            weight[seed, :2], weight[seed, 2:2 + k] = m.T, np.sqrt(1 - 2 * settings.overlap ** 2) * np.eye(k)
        begin = weight.repeat(runs, 0), np.stack([v for _, _, v in starts]).repeat(runs, 0)
        noise = np.full((seeds * runs, 1, steps), settings.noise, np.float32)
        students = Students(mixture(d, settings.noise, settings.test), seeds, begin, [k], noise)
        record = simulate(students, folder, steps, 1 / d, max(1, steps // 40))
        self.d, self.times = d, record["step"] / d
        weight = record["weight"][:, :, 0].astype(float)
        # M, Q and v over time, (M, seeds, runs, ...); the theory's are (M, seeds, ...)
        self.simulated = [part.reshape(len(self.times), seeds, runs, *part.shape[2:]) for part in (
            weight[:, :, :2].swapaxes(-1, -2), weight.swapaxes(-1, -2) @ weight, record["readout"][:, :, 0])]
        points = normal_points(settings.points, k)
        flows = [order_parameters(self.times, *start, settings.noise, points) for start in starts]
        self.theory = [np.stack(part, 1) for part in zip(*flows, strict=True)]

    def error(self, part: int) -> float:
        """Root mean square, over runs, of the largest error over time and entries."""
        off = np.abs(self.simulated[part] - self.theory[part][:, :, None])
        return float(np.sqrt((off.max(axis=(0, *range(3, off.ndim))) ** 2).mean()))


def run_lottery(settings: Settings, seeds: int, folder: Path) -> dict[str, np.ndarray]:
    """Networks of all lottery widths, an arm for each noise. Returns the record before and after."""
    d, widths = settings.dimension, settings.lottery_widths
    steps = round(settings.lottery_time * d)
    levels = np.array(settings.lottery_noises, np.float32)[:, None].repeat(steps, 1)
    start = cold_start("mixture", seeds, settings.runs, d, np.ones(sum(widths)))
    students = Students(mixture(d, min(settings.lottery_noises), settings.test), seeds, start, widths,
                        levels[None].repeat(seeds * settings.runs, 0))
    return simulate(students, folder, steps, 1 / d, steps)


def order_on_mixture(settings: Settings, seeds: int, hard: float, time: float, folder: Path,
                     ) -> Float[np.ndarray, "S A G"]:
    """The accuracy on hard samples after each arm."""
    d, runs, steps = settings.dimension, settings.runs, 2 * round(time * settings.dimension / 2)
    levels = [noise_levels(settings.easy, hard, steps, seed, run) for seed in range(seeds) for run in range(runs)]
    start = cold_start("mixture", seeds, runs, d, np.ones(sum(settings.widths)))
    students = Students(mixture(d, hard, settings.test), seeds, start, settings.widths, np.stack(levels))
    return simulate(students, folder, steps, 1 / d, steps)["accuracy"][-1].astype(float)


def order_on_images(settings: Settings, seeds: int, name: str, folder: Path) -> Float[np.ndarray, "S A G"]:
    """As `order_on_mixture` for images, with small batches and readouts of variance 1 / K."""
    data, runs, widths, steps = images(name, settings), settings.image_runs, settings.image_widths, settings.image_steps
    levels = [noise_levels(0.0, settings.image_noise, steps, seed, run) for seed in range(seeds) for run in range(runs)]
    start = cold_start(name, seeds, runs, data.inputs.shape[1], np.concatenate([np.full(k, k ** -0.5) for k in widths]))
    students = Students(data, seeds, start, widths, np.stack(levels), settings.batch)
    return simulate(students, folder, steps, settings.image_lr, steps)["accuracy"][-1].astype(float)


# ---- claims ----------------------------------------------------------------------------------------------

PARTS = ("M", "Q", "v")
PAIRS = (("easy first", "mix"), ("easy first", "hard only"), ("hard first", "mix"))


def flow_claims(settings: Settings, flows: list[Flow]) -> list[Claim]:
    """The order-parameter ODE against SGD."""
    ds, last = [flow.d for flow in flows], flows[-1]
    claims = [Claim(f"{name}, SGD less ODE: rms over runs of the largest error, times sqrt d, d = {ds}", 2.0,
                    np.array([flow.error(part) * flow.d ** 0.5 for flow in flows]), kind="at_most",
                    source="our bar; fluctuations of order 1/sqrt d") for part, name in enumerate(PARTS)]
    for part, name in enumerate(PARTS):
        theory, scale = last.theory[part], np.abs(last.theory[part]).max()
        loose = max(0.01, 0.02 * (8192 / last.d / last.simulated[part].shape[2]) ** 0.5)
        claims.append(Claim(f"{name} over time, mean of runs, over its largest, d = {last.d}", theory / scale,
                            last.simulated[part].mean(2) / scale, loose,
                            source="order-parameter ODE; our tolerance ~ (d runs)^-1/2"))
    tried = settings.hidden <= 4 and settings.noise <= 0.3 and settings.time <= 10 and last.d >= 100
    return bar_if(tried, "the bars are for hidden up to 4, noise up to 0.3, time up to 10, and 100 dimensions or more",
                  claims)


def lottery_claims(settings: Settings, record: dict[str, np.ndarray]) -> list[Claim]:
    """The share of networks that succeed, against the formula of the lottery."""
    widths, noises = settings.lottery_widths, settings.lottery_noises
    theory, won = lottery(widths), record["accuracy"][-1] > 0.9
    rates = won.mean(0)  # (A, G)
    deviation = np.sqrt(theory * (1 - theory) / len(won)).max()
    formula = f"K = {list(widths)}: " + ", ".join(f"{p:.3f}" for p in theory)
    grows = f"noise {noises[0]:g}: success, growth from one width to the next"
    early = settings.lottery_time < 100 or noises[0] > 0.05 or settings.dimension < 32
    claims = bar_if(not early, "the law is for small noise, long times and many dimensions", [
        Claim(f"noise {noises[0]:g}: share of networks with accuracy over 0.9, K = {list(widths)}", theory, rates[0],
              0.02 + 2.5 * deviation, source=f"1 - 4 (3/4)^K + 6 (1/2)^K - 4 (1/4)^K; tolerance: 0.02 and 2.5 s.e., "
                                             f"{deviation:.3f} in {len(won)} networks"),
        Claim(grows, 0.0, np.diff(rates[0]), 3.5 * deviation, kind="at_least",
              source="wide networks hold more tickets; tolerance: 2.5 s.e. of a difference")
        if len(widths) > 1 else skipped(grows, "needs two lottery_widths")])
    ends = np.cumsum(widths)
    cells = [covered(record["weight"][0][:, 0, :2, end - k:end].swapaxes(1, 2), record["readout"][0][:, 0, end - k:end])
             for k, end in zip(widths, ends, strict=True)]
    for arm, noise in enumerate(noises):
        known = (won[:, arm] == np.stack(cells, 1)).mean(0)
        claims.append(Claim(f"noise {noise:g}: networks whose start tells their fate, share by K", 0.0, known,
                            kind="report", source=f"K = {list(widths)}: " + ", ".join(f"{p:.3f}" for p in known)))
        if arm:
            claims.append(Claim(f"noise {noise:g}: success less the formula, by K", 0.0, rates[arm] - theory,
                                kind="report", source=f"a small-noise law; {formula}; measured "
                                                      + ", ".join(f"{p:.3f}" for p in rates[arm])))
    return claims


def effect(rates: Float[np.ndarray, "S A G"], pair: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy in one arm minus that in another, paired by run: mean and standard error over runs, (G + 1,).

    The last entry is the narrowest width's difference minus the widest's.
    """
    one, other = (rates[:, ARMS.index(arm)] for arm in pair)
    difference = one - other
    difference = np.concatenate([difference, difference[:, :1] - difference[:, -1:]], 1)
    return difference.mean(0), difference.std(0, ddof=1) / np.sqrt(len(difference))


def with_sign(mean: float, error: float) -> str:
    """An effect with its standard error and sign; 0 if it is within two of them."""
    sign = "0" if abs(mean) <= 2 * error else "+" if mean > 0 else "-"
    return f"{mean:+.4f} ± {error:.4f} ({sign})"


def effect_claims(name: str, widths: Sequence[int], rates: Float[np.ndarray, "S A G"]) -> list[Claim]:
    """The effect of order, width by width; no bar."""
    claims, names = [], [*(f"K {k}" for k in widths), "narrowest less widest"]
    for pair in PAIRS:
        mean, error = effect(rates, pair)
        found = "; ".join(f"{k}: {with_sign(*one)}" for k, *one in zip(names, mean, error, strict=True))
        base = ", ".join(f"{rate:.3f}" for rate in rates[:, ARMS.index(pair[1])].mean(0))
        claims.append(Claim(f"{name}: accuracy, {pair[0]} less {pair[1]}, by width", 0.0, mean[:-1], kind="report",
                            source=f"{found}; {pair[1]} itself: {base}"))
    return claims


def tally(results: dict[str, tuple[Sequence[int], np.ndarray]]) -> list[Claim]:
    """The number of cells (setting and width) with an effect beyond two standard errors; and where it falls with width.
    """
    if not results:
        return [skipped("all settings: cells with an effect of order", "needs hard, or images")]
    claims = []
    for one, other in PAIRS:
        found = [effect(rates, (one, other)) for _, rates in results.values()]
        ups, downs = (np.concatenate([sign * mean > 2 * error for mean, error in found]) for sign in (1, -1))
        last = np.concatenate([np.arange(len(mean)) == len(mean) - 1 for mean, _ in found])
        claims.append(Claim(f"all settings: cells where {one} beats {other} by over 2 s.e.", 0.0,
                            float(ups[~last].sum()), kind="report",
                            source=f"of {(~last).sum()}; the reverse in {downs[~last].sum()}"))
        if one == "easy first":
            claims.append(Claim(f"all settings: those where {one} less {other} is greater at the narrowest width than "
                                "at the widest, by over 2 s.e.", 0.0, float(ups[last].sum()), kind="report",
                                source=f"abstract: overparameterisation limits the benefit; of {last.sum()}; the "
                                       f"reverse in {downs[last].sum()}"))
    return claims


# ---- figure ----------------------------------------------------------------------------------------------


def draw_flows(errors: Axes, parameters: Axes, flows: list[Flow]) -> None:
    """Order parameters of single runs and of the ODE, and the error of runs by dimension."""
    last = flows[-1]
    for part, name, colour in (0, "M", "tab:blue"), (2, "v", "tab:orange"):
        for i, unit in enumerate(np.ndindex(last.theory[part].shape[2:])):
            overlay(parameters, last.times, last.simulated[part][:, 0, 0, *unit], last.theory[part][:, 0, *unit],
                    name if i == 0 else "", colour)
    parameters.set(title=f"warm start, one run, d = {last.d}; dashed: ODE", xlabel="time")
    ds = np.array([flow.d for flow in flows])
    for part, name in enumerate(PARTS):
        off = np.array([flow.error(part) for flow in flows])
        errors.loglog(ds, off, "o", alpha=0.6, label=name)
        errors.loglog(ds, off[0] * (ds[0] / ds) ** 0.5, "k--", linewidth=1.0)
    errors.set(title="SGD less ODE, largest over time; dashed: 1/sqrt d", xlabel="d")
    errors.set_xticks(ds, [str(d) for d in ds])
    errors.set_xticks([], minor=True)


def draw_lottery(axis: Axes, settings: Settings, record: dict[str, np.ndarray]) -> None:
    """The share of networks that succeed by width, and the formula."""
    widths, dense = settings.lottery_widths, np.linspace(3, max(settings.lottery_widths), 100)
    won = record["accuracy"][-1] > 0.9
    for arm, noise in enumerate(settings.lottery_noises):
        rate = won[:, arm].mean(0)
        axis.errorbar(widths, rate, 2 * np.sqrt(rate * (1 - rate) / len(won)), fmt="o", alpha=0.6,
                      label=f"noise {noise:g}")
    axis.plot(dense, lottery(dense), "k--", linewidth=1.0)
    axis.set(title="accuracy over 0.9: share, ± 2 s.e.; dashed: lottery", xlabel="K")


def draw_effects(axis: Axes, pair: tuple[str, str], results: dict[str, tuple[Sequence[int], np.ndarray]]) -> None:
    """The effect of order by width."""
    for i, (name, (widths, rates)) in enumerate(results.items()):
        mean, error = (part[:-1] for part in effect(rates, pair))
        shifted = np.array(widths) * 1.03 ** (i - len(results) / 2)  # so that bars do not hide each other
        axis.errorbar(shifted, mean, 2 * error, fmt="o-", alpha=0.6, capsize=2, label=name)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(title=f"accuracy, {pair[0]} less {pair[1]}, ± 2 s.e.", xlabel="K", xscale="log")
    ticks = sorted({k for widths, _ in results.values() for k in widths})
    axis.set_xticks(ticks, [str(k) for k in ticks])
    axis.set_xticks([], minor=True)


def draw(settings: Settings, flows: list[Flow], record: dict[str, np.ndarray],
         results: dict[str, tuple[Sequence[int], np.ndarray]]) -> Figure:
    """Theory above; below, accuracy in each arm of the first setting, and the differences between arms."""
    figure = Figure(figsize=(18, 8.5), layout="constrained")
    (parameters, errors, tickets), lower = figure.subplots(2, 3)
    draw_flows(errors, parameters, flows)
    draw_lottery(tickets, settings, record)
    for axis, pair in zip(lower, PAIRS, strict=True):
        draw_effects(axis, pair, results)
    for axis in (parameters, errors, tickets, *lower[:bool(results)]):
        axis.legend(fontsize=7)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Claim], Figure]:
    """The probe: ODE against SGD, the lottery, and orders of samples on the mixture and on images."""
    flows = [Flow(settings, d, seeds, folder / f"d{d}") for d in settings.dimensions]
    record = run_lottery(settings, seeds, folder / "lottery")
    results: dict[str, tuple[Sequence[int], np.ndarray]] = {}
    for hard, time in settings.hard:
        results[f"mixture, noise {hard:g}, T {time:g}"] = settings.widths, order_on_mixture(
            settings, seeds, hard, time, folder / f"mixture_{hard:g}_{time:g}")
    for name in settings.images:
        results[name] = settings.image_widths, order_on_images(settings, seeds, name, folder / name)
    claims = flow_claims(settings, flows) + lottery_claims(settings, record)
    for name, (widths, rates) in results.items():
        claims += effect_claims(name, widths, rates)
    return claims + tally(results), draw(settings, flows, record, results)
