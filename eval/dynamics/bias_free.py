"""Bias-free two-layer ReLU networks learn like linear networks.

Without biases, f(x) = W2 s(W1 x) with s(z) = max(z, slope z) has an odd part that is linear in x. On symmetric data
(every x has its -x, and y is odd) a network of any width therefore fits no better than linear regression, and from a
small balanced start it learns exactly as a linear network does, at (1 + slope)/2 of the speed and with
sqrt(2/(1 + slope)) times its weights, for square and for logistic loss (Zhang, Saxe, Latham,
openreview.net/forum?id=Ucpfdn66k2). Deep networks do so from a block start. Biases, asymmetric data, and a third
layer from a random start break the equivalence.

The theory is in theory/bias_free.py. The paper's own figure settings were not available: data, target, sizes, rates
and initial scales are [stand-in]. The symmetry condition is from memory. Leaves out the speaker.

Shapes: S networks, n points (the second half is minus the first), D inputs, H hidden units, M times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.common import rng

from .probe import Claim, Networks, bar_if, only_if, overlay, simulate
from .settings.bias_free import TINY as TINY
from .settings.bias_free import Settings
from .settings.bias_free import check as check
from .theory.bias_free import logistic_map, parts, regression, scale, strength, strength_error

# ---- setting ---------------------------------------------------------------------------------------------


MANY = 60  # hidden units: the bars for random weights are for networks that have both kinds of units, + and -


def direction(settings: Settings, seed: int) -> Float[np.ndarray, "D"]:
    """The unit vector w of a seed."""
    w = rng("bias_free", "w", seed).standard_normal(settings.dimensions)
    return w / np.linalg.norm(w)


def symmetric_data(settings: Settings, seed: int) -> tuple[Float[np.ndarray, "n D"], Float[np.ndarray, "n"]]:
    """Points and their negatives with unit second moments, and an odd target that is not linear."""
    x = rng("bias_free", "x", seed).standard_normal((settings.points, settings.dimensions))
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    x = x @ (vectors / np.sqrt(values)) @ vectors.T
    along = np.concatenate([x, -x]) @ direction(settings, seed)
    return np.concatenate([x, -x]), along + settings.wiggle * np.sin(2 * along)


def asymmetric_data(settings: Settings, seed: int) -> tuple[Float[np.ndarray, "n D"], Float[np.ndarray, "n"]]:
    """Shifted Gaussian points and an even target."""
    x = rng("bias_free", "x", seed).standard_normal((2 * settings.points, settings.dimensions)) + settings.shift
    return x, np.abs(x @ direction(settings, seed))


# ---- simulation ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """One network of a batch; a linear one has slope 1. `rate` multiplies its learning rate."""

    kind: str
    seed: int
    weights: list[np.ndarray]  # (in, out) each
    slope: float = 0.0
    rate: float = 1.0
    logistic: bool = False
    bias: bool = False
    asymmetric: bool = False

    def partner(self) -> Net:
        """The equivalent linear network of the theory, with a learning rate that matches the speeds."""
        ratio = scale(self.slope)
        return Net(f"{self.kind}, linear", self.seed, [w / ratio for w in self.weights], 1.0, (1 + self.slope) / 2,
                   self.logistic, self.bias, self.asymmetric)


class ReluNetworks(Networks):
    """Leaky ReLU networks of one shape (narrower ones padded with zero units, which stay zero), full batch."""

    x: Tensor
    y: Tensor
    slope: Tensor
    rate: Tensor
    logistic: Tensor
    bias: Tensor

    def __init__(self, settings: Settings, nets: list[Net]):
        super().__init__()
        self.nets = nets
        layers = zip(*(padded(net.weights, nets[0].weights) for net in nets), strict=True)
        self.weights = nn.ParameterList(torch.from_numpy(np.stack(layer)) for layer in layers)
        self.biases = nn.ParameterList(torch.zeros(len(nets), 1, w.shape[2], dtype=w.dtype) for w in self.weights)
        data = [(asymmetric_data if net.asymmetric else symmetric_data)(settings, net.seed) for net in nets]
        self.register_buffer("x", torch.from_numpy(np.stack([x for x, _ in data])))
        self.register_buffer("y", torch.from_numpy(np.stack([y for _, y in data])))
        for key in ("slope", "rate", "logistic", "bias"):
            self.register_buffer(key, torch.tensor([[[float(getattr(net, key))]] for net in nets], dtype=torch.float64))

    def outputs(self) -> Float[Tensor, "S n"]:
        h = self.x
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if i:
                h = torch.where(h > 0, h, self.slope * h)
            h = h @ weight + self.bias * bias
        return h[..., 0]

    def losses(self, outputs: Float[Tensor, "S n"]) -> Float[Tensor, "S"]:
        """Half the squared error, or the logistic loss of the target's sign."""
        square, logistic = (outputs - self.y) ** 2 / 2, F.softplus(-self.y.sign() * outputs)
        return torch.where(self.logistic[:, 0] > 0, logistic, square).mean(1)

    def forward(self, step: int) -> Float[Tensor, "S"]:
        return self.rate[:, 0, 0] * self.losses(self.outputs())

    def measure(self) -> dict[str, Tensor]:
        outputs = self.outputs()
        return {"outputs": outputs, "loss": self.losses(outputs),
                "weights": torch.cat([weight.flatten(1) for weight in self.weights], 1)}


def padded(weights: list[np.ndarray], like: list[np.ndarray]) -> list[np.ndarray]:
    return [np.pad(w, [(0, big - small) for small, big in zip(w.shape, wide.shape, strict=True)])
            for w, wide in zip(weights, like, strict=True)]


def aligned(unit: Float[np.ndarray, "D"], hidden: int, norm: float, seed: int) -> list[np.ndarray]:
    """W1 = a r', W2 = a of length `norm`, with as much of a on positive as on negative units."""
    a = rng("bias_free", "a", seed).uniform(0.5, 1.5, (2, hidden // 2))
    a = norm * (a / np.linalg.norm(a, axis=1, keepdims=True) * [[1], [-1]]).flatten() / np.sqrt(2)
    return [np.outer(unit, a), a[:, None]]


def blocks(unit: Float[np.ndarray, "D"], half: int, depth: int, start: float, both: bool) -> list[np.ndarray]:
    """Rank-one layers in two non-negative blocks, for r x > 0 and for r x < 0, whose product has length `start` each.

    With `both` false only the first block: the start of the equivalent linear network.
    """
    v, p = np.full(half, half ** -0.5), start ** (1 / depth)
    gate = np.diag([1.0, float(both)])
    return [p * np.kron(np.array([1.0, -both]), np.outer(unit, v)),
            *[p * np.kron(gate, np.outer(v, v)) for _ in range(depth - 2)],
            p * np.kron(np.array([[1.0], [-both]]), v[:, None])]


def gaussian(widths: list[int], spread: Sequence[float], *key: int | str) -> list[np.ndarray]:
    """Random weights; `spread` is the standard deviation of each layer."""
    return [std * rng("bias_free", "weights", i, *key).standard_normal(shape)
            for i, (std, shape) in enumerate(zip(spread, zip(widths, widths[1:], strict=False), strict=True))]


def aligned_nets(settings: Settings, seeds: int) -> list[Net]:
    """Two layers: along the target (for the closed form) and along another direction, and the partner of each."""
    nets = []
    for seed in range(seeds):
        beta, _ = regression(*symmetric_data(settings, seed))
        for slope in settings.slopes:
            for kind in ("along", "square", "logistic"):
                along = kind == "along"
                unit = beta / np.linalg.norm(beta) if along else direction(settings, seed + 1000)
                start = settings.start if along else settings.other_start
                nets.append(Net(kind, seed, aligned(unit, settings.hidden, start, seed), slope,
                                logistic=kind == "logistic"))
    return nets + [net.partner() for net in nets]


def deep_nets(settings: Settings, depth: int, seeds: int) -> list[Net]:
    """A ReLU network of two blocks along the target, and the equivalent linear chain with half its learning rate."""
    betas = [regression(*symmetric_data(settings, seed))[0] for seed in range(seeds)]
    return [Net("deep" if both else "deep, linear", seed,
                blocks(beta / np.linalg.norm(beta), settings.hidden // 2, depth, settings.deep_start, both),
                0.0 if both else 1.0, 1.0 if both else 0.5)
            for both in (True, False) for seed, beta in enumerate(betas)]


def curvature(net: Net, x: Float[np.ndarray, "n D"], points: int = 256) -> float:
    """The largest eigenvalue of the tangent kernel of a network over the number of points, on some of them: its loss
    falls in a step of gradient descent if the rate is below 2 over this."""
    h = x[::-(-len(x) // points)]
    inputs, gates = [h], []
    for weight in net.weights[:-1]:
        z = h @ weight
        gates.append(np.where(z > 0, 1.0, net.slope))
        h = gates[-1] * z
        inputs.append(h)
    back, kernel = np.ones((len(h), 1)), np.zeros((len(h), len(h)))
    for h, weight, gate in zip(inputs[::-1], net.weights[::-1], [*gates[::-1], None], strict=True):
        kernel += (h @ h.T) * (back @ back.T)
        back = back if gate is None else gate * (back @ weight.T)
    return float(np.linalg.eigvalsh(kernel)[-1] / len(kernel))


def steady(settings: Settings, net: Net, steepest: float) -> Net:
    """The network at a rate at which steps do not diverge: random_lr, or 1 over the curvature if that is less."""
    return dataclasses.replace(net, rate=net.rate / max(1.0, settings.random_lr * steepest))


def random_nets(settings: Settings, seeds: int) -> list[Net]:
    """Two layers, random weights: small ones of every width and their partners, with biases, and on asymmetric data;
    and of ordinary size, whose even part is not small. The last two take shorter steps where they would diverge."""
    widest, nets = max(settings.widths), []
    for seed in range(seeds):
        weights = {h: gaussian([settings.dimensions, h, 1], [settings.init] * 2, h, seed) for h in settings.widths}
        nets.append(Net("bias", seed, weights[widest], bias=True))
        fans = settings.dimensions, widest
        ordinary = gaussian([*fans, 1], [settings.gain / n ** 0.5 for n in fans], "ordinary", seed)
        x = symmetric_data(settings, seed)[0]
        nets += [steady(settings, net, curvature(net, x))
                 for net in (Net("ordinary", seed, ordinary, slope) for slope in settings.slopes)]
        pairs = [Net(f"H {h}", seed, weights[h]) for h in settings.widths]
        pairs = [*pairs, *(net.partner() for net in pairs)]
        x, y = asymmetric_data(settings, seed)
        both = Net("asymmetric", seed, weights[widest], asymmetric=True)
        steepest = 2 * np.linalg.norm(regression(x, y)[0]) * np.linalg.eigvalsh(x.T @ x / len(x))[-1]  # when learned
        nets += pairs + [steady(settings, net, float(steepest)) for net in (both, both.partner())]
    return nets


def three_layer_nets(settings: Settings, seeds: int) -> list[Net]:
    """Three layers, no biases, random weights of ordinary size, in shorter steps where they would diverge."""
    widths = [settings.dimensions, max(settings.widths), max(settings.widths), 1]
    nets = [Net("three layers", seed, gaussian(widths, [settings.gain / n ** 0.5 for n in widths[:-1]], "three", seed))
            for seed in range(seeds)]
    return [steady(settings, net, curvature(net, symmetric_data(settings, net.seed)[0])) for net in nets]


class Trajectories:
    """Outputs, losses and weights of one batch of networks over time."""

    def __init__(self, settings: Settings, nets: list[Net], folder: Path, lr: float, steps: int):
        self.nets, networks = nets, ReluNetworks(settings, nets)
        record = simulate(networks, folder, steps, lr, settings.every)
        self.times, self.outputs, self.loss = record["step"] * lr, record["outputs"], record["loss"]
        self.weights = record["weights"]
        self.x, self.y = networks.x.cpu().numpy(), networks.y.cpu().numpy()
        self.final = [w.detach().cpu().numpy() for w in networks.weights]

    def of(self, kind: str, slope: float | None = None) -> list[int]:
        """The networks of a kind, seed by seed."""
        return [i for i, net in enumerate(self.nets) if net.kind == kind and slope in (None, net.slope)]

    def length(self, i: int) -> Float[np.ndarray, "M"]:
        """The length along the target of the linear map that network `i` computes; inputs are whitened."""
        beta = regression(self.x[i], self.y[i])[0]
        return self.outputs[:, i] @ self.x[i] @ beta / np.linalg.norm(beta) / len(self.y[i])


# ---- claims ----------------------------------------------------------------------------------------------


def aligned_claims(settings: Settings, run: Trajectories) -> list[Claim]:
    """Two layers, balanced start: exact equivalence and the closed form."""
    half = len(run.nets) // 2  # the partner of network i is network half + i
    ratio = np.array([scale(net.slope) for net in run.nets[:half]])[:, None]
    claims = []
    for name, wanted in ("square", False), ("logistic", True):
        index = [i for i, net in enumerate(run.nets[:half]) if net.logistic == wanted]
        partner = (ratio * run.weights[:, half:])[:, index]
        claims.append(Claim(f"{name} loss: weights over time, slopes {settings.slopes}", partner,
                            run.weights[:, index], 1e-10, source="sqrt(2/(1+slope)) W_linear((1+slope) t/2)"))
    along = [i for i in run.of("along") if i < half]
    targets = np.array([np.linalg.norm(regression(run.x[i], run.y[i])[0]) for i in along])
    slopes = [run.nets[i].slope for i in along]
    theory = np.stack([strength(run.times, float(b), (1 + slope) / 2 * settings.start ** 2, slope)
                       for b, slope in zip(targets, slopes, strict=True)], 1) / targets
    floors = np.array([regression(run.x[i], run.y[i])[1] for i in along])
    loss = floors + targets ** 2 * (1 - theory) ** 2 / 2
    lengths = np.stack([run.length(i) for i in along], 1) / targets
    late = max(strength_error(run.times, float(b), (1 + slope) / 2 * settings.start ** 2, settings.lr, slope) / b
               for b, slope in zip(targets, slopes, strict=True))
    logistic = [i for i in run.of("logistic") if i < half]
    maps = np.einsum("msn,snd->msd", run.outputs[:, logistic], run.x[logistic]) / run.x.shape[1]  # inputs are whitened
    flows = [np.stack([logistic_map(run.times, direction(settings, net.seed + 1000), settings.other_start, run.x[i],
                                    run.y[i], net.slope, step) for i, net in ((i, run.nets[i]) for i in logistic)], 1)
             for step in (0.0, settings.lr)]
    largest = np.abs(flows[0]).max()
    claims.append(Claim("logistic loss: linear map over time, over its largest entry", flows[0] / largest,
                        maps / largest, 1.25 * float(np.abs(flows[1] - flows[0]).max() / largest) + 1e-3,
                        source="p' = q g, q' = p g at (1+slope)/2 of the speed; tolerance: finite steps"))
    return claims + [Claim("length of the linear map over time, over the target's", theory, lengths, 1.25 * late + 1e-3,
                           source="w = B/(1 + (B/w0 - 1) exp(-(1+slope) B t)); tolerance: finite steps"),
                     Claim("loss over time, over the first", loss / loss[0], run.loss[:, along] / loss[0],
                           2.5 * late + 1e-3, source="floor + (B - w)^2/2; tolerance: finite steps")]


def deep_claims(settings: Settings, depth: int, run: Trajectories) -> list[Claim]:
    """Block start: half the linear speed at every depth."""
    deep, chain = run.of("deep"), run.of("deep, linear")
    targets = np.array([np.linalg.norm(regression(run.x[i], run.y[i])[0]) for i in deep])
    theory = np.stack([strength(run.times, float(b), settings.deep_start, depth=depth) for b in targets], 1) / targets
    lengths = np.stack([run.length(i) for i in deep], 1) / targets
    late = max(strength_error(run.times, float(b), settings.deep_start, settings.lr, depth=depth) / b for b in targets)
    return [Claim(f"depth {depth}, block start: answers over time", run.outputs[:, chain], run.outputs[:, deep], 1e-10,
                  source="the linear chain at t/2"),
            Claim(f"depth {depth}, block start: length over time, over the target's", theory, lengths,
                  1.25 * late + 1e-3, source="w' = L/2 w^(2-2/L) (B - w); tolerance: finite steps")]


def random_claims(settings: Settings, run: Trajectories, three: Trajectories) -> list[Claim]:
    """Random weights: the odd and even part, the lowest loss, and cases without equivalence."""
    small = [i for h in settings.widths for i in run.of(f"H {h}", 0.0)]
    free = run.of("ordinary") + small
    split = [parts(run.final[0][i], run.final[1][i], run.x[i], run.nets[i].slope) for i in free]
    mirrored = np.roll(run.outputs[-1], settings.points, axis=1)
    odd, even = (run.outputs[-1] - mirrored) / 2, (run.outputs[-1] + mirrored) / 2
    relative = run.loss / np.array([regression(x, y)[1] for x, y in zip(run.x, run.y, strict=True)])
    claims = [
        Claim("odd part of the answers", np.stack([one for one, _ in split]), odd[free], 1e-10,
              source="(1+slope)/2 W2 W1 x"),
        Claim("even part of the answers", np.stack([one for _, one in split]), even[free], 1e-10,
              source="(1-slope)/2 W2 |W1 x|"),
        Claim("loss over that of linear regression, at any time", 1.0, relative[:, free], 1e-9, "at_least",
              "loss floor")]
    end = settings.random_lr * settings.random_steps
    sizes = {i: min(grown) for i in small if min(grown := growing(run, i)) > 0}  # of networks with units of both signs
    learned = max((float((6.5 - np.log(size)) / np.linalg.norm(regression(run.x[i], run.y[i])[0]))
                   for i, size in sizes.items()), default=0.0)
    both = list(sizes)
    late = f"random weights learn by time {learned:.3g}, and this run ends at {end:.3g}; more random_steps"
    unlearned = settings.init ** 2 * max(settings.widths) * settings.dimensions  # |W1|^2 at the start; 2 B at the end
    values = np.linalg.svd(run.final[0][both], compute_uv=False)
    claims += only_if(bool(sizes) and end >= learned, late if sizes else "all units of each network have one sign", [
        Claim("small weights: the same, at the end", 1.01, relative[-1, both], kind="at_most", source="our bar"),
        Claim("small weights: energy of the even part at the end", 1e-6, (even[both] ** 2).mean(1), kind="at_most",
              source="our bar"),
        Claim("small weights: stable rank of W1 at the end", 1.0, (values ** 2).sum(1) / (values ** 2).max(1),
              1e-5 + unlearned, kind="at_most", source="the start's size; our bar")])
    few = f"the bars are for widths of {MANY} or more"
    for h in settings.widths:
        name = f"small weights, H = {h}: loss less that of the linear network at t/2, over the first"
        widest, text = h == max(settings.widths), "set by the imbalance of + and - units"
        claims += bar_if(h >= MANY, few, [Claim(name, 0.03, deviation(run, f"H {h}"), kind="at_most",
                                                source=f"our bar; {text}")]) if widest else [
            Claim(name, 0.0, deviation(run, f"H {h}"), kind="report", source=text)]
    three_floors = np.array([regression(x, y)[1] for x, y in zip(three.x, three.y, strict=True)])
    return claims + only_if(end >= learned, late, bar_if(max(settings.widths) >= MANY, few, [
        Claim("breaks, biases: last loss over that of linear regression", 0.3,
              relative[-1, run.of("bias")], kind="at_most", source="our bar"),
        Claim("breaks, three layers: last loss over that of linear regression", 0.5, three.loss[-1] / three_floors,
              kind="at_most", source="our bar"),
        Claim("breaks, asymmetric data: loss less that of the linear network at t/2, over the first", 0.1,
              deviation(run, "asymmetric"), kind="at_least", source="our bar")]))


def growing(run: Trajectories, i: int) -> list[float]:
    """The strengths at the start that units of either sign grow from, in a network of small weights.

    A unit of weights w, a grows by p = (w b + a)/2 along the target's direction b, at the speed of the target's length;
    those of p > 0 learn where b x > 0, the others where it is negative."""
    first, last = run.nets[i].weights
    beta = regression(run.x[i], run.y[i])[0]
    p = (beta @ first / np.linalg.norm(beta) + last[:, 0]) / 2
    return [float((sign * p).clip(0) @ (sign * p).clip(0)) for sign in (1, -1)]


def deviation(run: Trajectories, kind: str) -> Float[np.ndarray, "seeds"]:
    """The largest difference between the losses of a network and its partner, over the first loss."""
    mine, partner = run.loss[:, run.of(kind)], run.loss[:, run.of(f"{kind}, linear")]
    return np.abs(mine - partner).max(0) / mine[0]


# ---- figure ----------------------------------------------------------------------------------------------


def draw(settings: Settings, two: Trajectories, deep: dict[int, Trajectories], free: Trajectories,
         three: Trajectories) -> Figure:
    """Closed form, equivalence, depth; random weights, the floor, asymmetric data. Seed 0."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    (closed, logistic, depths), (widths, floor, asymmetric) = figure.subplots(2, 3)
    for slope in settings.slopes:
        i = two.of("along", slope)[0]
        b = float(np.linalg.norm(regression(two.x[i], two.y[i])[0]))
        overlay(closed, two.times, two.length(i), strength(two.times, b, (1 + slope) / 2 * settings.start ** 2, slope),
                f"slope {slope:g}")
        i = two.of("logistic", slope)[0]
        overlay(logistic, two.times, two.loss[:, i], two.loss[:, i + len(two.nets) // 2], f"slope {slope:g}")
    closed.set(title="length of the linear map; dashed: closed form", xlabel="time")
    logistic.set(title="logistic loss; dashed: linear network, own time", xlabel="time")
    for depth, run in deep.items():
        i = run.of("deep")[0]
        b = float(np.linalg.norm(regression(run.x[i], run.y[i])[0]))
        theory = strength(run.times, b, settings.deep_start, depth=depth)
        overlay(depths, run.times, run.length(i), theory, f"depth {depth}")
    depths.set(title="deep ReLU, block start; dashed: half-speed ODE", xlabel="time")
    for h in settings.widths:
        for number, i in enumerate(free.of(f"H {h}", 0.0)):
            partner = free.of(f"H {h}, linear")[number]
            overlay(widths, free.times, free.loss[:, i], free.loss[:, partner], f"H = {h}" if number == 0 else "",
                    "tab:blue" if h == max(settings.widths) else "tab:orange")
    widths.set(title="random weights; dashed: linear network at t/2", xlabel="time", ylabel="loss")
    x, y = free.x[free.of("bias")[0]], free.y[free.of("bias")[0]]
    for run, kind in (free, f"H {max(settings.widths)}"), (free, "bias"), (three, "three layers"):
        overlay(floor, run.times, run.loss[:, run.of(kind)[0]], label=kind)
    floor.axhline(regression(x, y)[1], color="black", linewidth=1.0, linestyle="--", label="linear regression")
    floor.set(title="the floor, and what goes below it", xlabel="time", yscale="log")
    i, partner = free.of("asymmetric")[0], free.of("asymmetric, linear")[0]
    overlay(asymmetric, free.times, free.loss[:, i], free.loss[:, partner], "ReLU")
    asymmetric.set(title="asymmetric data; dashed: linear network at t/2", xlabel="time")
    for axis in figure.axes:
        if axis.lines:
            axis.legend(fontsize=8)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Claim], Figure]:
    """The probe: aligned, deep, random, and three-layer networks."""
    two = Trajectories(settings, aligned_nets(settings, seeds), folder / "aligned", settings.lr, settings.steps)
    deep = {depth: Trajectories(settings, deep_nets(settings, depth, seeds), folder / f"depth{depth}", settings.lr,
                                settings.steps) for depth in settings.depths}
    free = Trajectories(settings, random_nets(settings, seeds), folder / "random", settings.random_lr,
                        settings.random_steps)
    three = Trajectories(settings, three_layer_nets(settings, seeds), folder / "three_layers", settings.random_lr,
                         settings.random_steps)
    claims = aligned_claims(settings, two)
    for depth, one in deep.items():
        claims += deep_claims(settings, depth, one)
    return claims + random_claims(settings, free, three), draw(settings, two, deep, free, three)
