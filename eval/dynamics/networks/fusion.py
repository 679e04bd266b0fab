"""Networks of two modalities that are fused at a layer L_f, and the tasks that they learn.

Linear and ReLU networks on pairs of scalars, XOR beside a Gaussian, and few samples of many inputs; ReLU networks on
two views of MNIST digits. Modalities are separate streams up to layer L_f, which sums them (Zhang, Latham, Saxe, ICML
2024, arXiv 2312.00935). See the probe unimodal for what is [stand-in].

Shapes: S networks, 2 modalities, n points, D inputs of one modality, H hidden, K outputs, F readings, L layers, P
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.common import rng

from ..probe import Networks, crossing, simulate
from ..theory.unimodal import covariance, half_times, log_sizes
from .images import image_set

# ---- tasks -----------------------------------------------------------------------------------------------


def split_modalities(points: Float[np.ndarray, "n both"]) -> Float[np.ndarray, "2 n D"]:
    """Split points into modalities: the first half of the columns is A, the second B."""
    return np.ascontiguousarray(points.reshape(len(points), 2, -1).transpose(1, 0, 2))


def equivalent_points(x: Float[np.ndarray, "n D"], y: Float[np.ndarray, "n"], count: int,
              ) -> tuple[Float[np.ndarray, "count D"], Float[np.ndarray, "count"]]:
    """`count` >= min(n, D) points with the moments x x and x y of the data, equivalent for a linear network."""
    q, r = np.linalg.qr(x)
    rest = count - len(r)
    scale = np.sqrt(count / len(x))
    return scale * np.pad(r, ((0, rest), (0, 0))), scale * np.pad(q.T @ y, (0, rest))


def linear_data(sigma: Float[np.ndarray, "D D"], w: Float[np.ndarray, "D"]) -> dict[str, np.ndarray]:
    """D points with exactly these second moments, y = w x; the weights of the linear map are read off."""
    x = np.sqrt(len(w)) * np.linalg.cholesky(sigma).T
    units = np.eye(len(w))
    return {"x": split_modalities(x), "y": x @ w, "record_points": split_modalities(units), "features": units}


def symmetric_data(ratio: float, rho: float, seed: int, pairs: int = 32) -> dict[str, np.ndarray]:
    """Gaussian points and their negatives with exact second moments, y = x_A + x_B; the two slopes are read off.

    A second input of each modality is 0, so that these networks fit into one batch with those of the XOR task.
    """
    x = rng("unimodal", "points", seed).standard_normal((pairs, 2))
    x = np.linalg.solve(np.linalg.cholesky(x.T @ x / pairs), x.T).T @ np.linalg.cholesky(covariance(ratio, rho)).T
    x = np.concatenate([x, -x])
    wide = split_modalities(np.stack([x[:, 0], 0 * x[:, 0], x[:, 1], 0 * x[:, 1]], 1))
    return {"x": wide, "y": x.sum(1), "record_points": wide, "features": x}


def xor_data(variance: float, values: int = 16) -> dict[str, np.ndarray]:
    """A is {-1, 1}^2, B takes Gaussian quantiles, every pair once; y = XOR(A) + B; the weight of each in
    the output is read off."""
    quantiles = norm.ppf((np.arange(values) + 0.5) / values)
    quantiles *= np.sqrt(variance) / quantiles.std()
    a = np.repeat([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], values, axis=0)
    b = np.tile(quantiles, 4)
    parts = np.stack([-a.prod(1), b], 1)
    points = split_modalities(np.stack([*a.T, b, 0 * b], 1))
    return {"x": points, "y": parts.sum(1), "record_points": points, "features": parts}



# ---- networks --------------------------------------------------------------------------------------------


def mixes(depth: int, fusion: int) -> Float[np.ndarray, "L 2 2"]:
    """The mixing of the streams of A and B after each layer: none before L_f, their sum at L_f, the sum only after
    it."""
    return np.stack([np.eye(2)] * (fusion - 1) + [np.ones((2, 2))] + [np.array([[1.0, 0], [1, 0]])] * (depth - fusion))


def network_output(x: Float[Tensor, "*S 2 n D"], weights: list[Tensor], mix: Float[Tensor, "S L 2 2"], relu: bool,
           ) -> Float[Tensor, "S n K"]:
    """Outputs of networks whose layers are (S, 2, in, out); after the fusion only those of A are used."""
    h = x
    for i, weight in enumerate(weights):
        z = (h.relu() if i and relu else h) @ weight
        h = (mix[:, i] @ z.flatten(2)).unflatten(2, z.shape[2:])
    return h[:, 0]


def gaussian(widths: list[int], spread: list[float], *key: int | str) -> list[np.ndarray]:
    """Random weights (2, in, out); `spread` is the standard deviation of each layer."""
    return [std * rng("unimodal", "weights", i, *key).standard_normal((2, *shape))
            for i, (std, shape) in enumerate(zip(spread, zip(widths, widths[1:], strict=False), strict=True))]


def balanced(hidden: int, depth: int, start: float, fusion: int, seed: int) -> list[np.ndarray]:
    """A balanced start: aligned rank-one layers of norm `start`, and of norm sqrt(2) start after the fusion."""
    widths = [1, *[hidden] * (depth - 1), 1]
    units = [rng("unimodal", "unit", i, seed).standard_normal((2, width)) for i, width in enumerate(widths)]
    units[0][:] = units[-1][:] = 1.0
    for i, unit in enumerate(units):
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        if i >= fusion:
            unit[1] = unit[0]
    norms = [start * (1 if i < fusion else np.sqrt(2)) for i in range(depth)]
    return [size * left[:, :, None] * right[:, None]
            for size, left, right in zip(norms, units, units[1:], strict=False)]


@dataclass(frozen=True)
class Net:
    """One network of a batch, its training data, and the points and features of its record."""

    kind: str
    seed: int
    fusion: int
    weights: list[np.ndarray]  # (2, in, out) each
    x: np.ndarray  # (2, n, D)
    y: np.ndarray  # (n,)
    record_points: np.ndarray  # (2, m, D): points of the record
    features: np.ndarray  # (m, F): the outputs at `record_points` are regressed on them
    ends: tuple[float, float]  # times at which the two halves of the steps end
    case: tuple[float, ...] = ()  # the parameters of its task

    @property
    def task(self) -> tuple[np.ndarray, np.ndarray]:
        """Covariance and target weights of a task of two scalars, from `case` = (r, rho, w_A)."""
        ratio, rho, w = self.case
        return covariance(ratio, rho), np.array([w, 1.0])

    def half_times(self, relu: bool = False) -> Float[np.ndarray, "2"]:
        """`half_times` of two layers, late fusion and a task of two scalars, from the size of these weights."""
        sigma, w = self.task
        return (1 + relu) * half_times(sigma, w, log_sizes(self.weights, relu))


class FusionNetworks(Networks):
    """Networks of one shape, one output, half the mean square as the loss, full batch."""

    x: Tensor
    y: Tensor
    record_points: Tensor
    reader: Tensor
    mix: Tensor
    rate: Tensor

    def __init__(self, nets: list[Net], steps: int, relu: bool):
        super().__init__()
        self.steps, self.relu = steps, relu
        layers = zip(*(net.weights for net in nets), strict=True)
        self.weights = nn.ParameterList(torch.from_numpy(np.stack(layer)) for layer in layers)
        rates = [[net.ends[0], net.ends[1] - net.ends[0]] for net in nets]
        stacks: dict[str, list[np.ndarray]] = {"x": [net.x for net in nets], "y": [net.y for net in nets],
                                               "record_points": [net.record_points for net in nets],
                                               "reader": [np.linalg.pinv(net.features) for net in nets],
                                               "mix": [mixes(len(net.weights), net.fusion) for net in nets],
                                               "rate": list(np.array(rates) * 2 / steps)}
        for name, values in stacks.items():
            self.register_buffer(name, torch.from_numpy(np.stack(values)))

    def losses(self) -> Float[Tensor, "S"]:
        outputs = network_output(self.x, list(self.weights), self.mix, self.relu)[..., 0]
        return ((outputs - self.y) ** 2).mean(1) / 2

    def forward(self, step: int) -> Float[Tensor, "S"]:
        return self.rate[:, int(2 * step >= self.steps)] * self.losses()

    def measure(self) -> dict[str, Tensor]:
        outputs = network_output(self.record_points, list(self.weights), self.mix, self.relu)
        return {"read": (self.reader @ outputs)[..., 0], "loss": self.losses()}



# ---- two views of digits ---------------------------------------------------------------------------------

DIGIT_DEPTH = 4
PIXELS = 196


def views(images: Float[np.ndarray, "n P"], draw: np.random.Generator) -> Float[np.ndarray, "2 n P"]:
    """Two views of each image; clear in A only (80 %), in B only (16 %), in both (4 %); elsewhere faint and noisy.

    These are the shares in the paper's code, which draws both independently.
    """
    a, both = draw.random((len(images), 1)) < 0.8, draw.random((len(images), 1)) < 0.2
    faint = 0.1 * images + draw.normal(0, 0.15, images.shape)
    return np.stack([np.where(a | both, images, faint), np.where(a, faint, images)])


class DigitNetworks(Networks):
    """ReLU networks of four layers on two views of a digit, every L_f, cross-entropy, SGD on batches; float32."""

    mix: Tensor

    def __init__(self, fusions: Sequence[int], seeds: int, per_class: int, hidden: int, batch: int):
        super().__init__()
        self.batch = batch
        self.names = [(fusion, seed) for fusion in fusions for seed in range(seeds)]
        images, labels = image_set("mnist", per_class)
        small = images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, PIXELS)
        held_out = np.arange(len(labels)) % per_class >= per_class * 9 // 10
        small = (small - 0.1307) / 0.3081
        self.images, self.labels = small[~held_out], labels[~held_out]
        clear, blank = small[held_out], np.zeros_like(small[held_out])
        self.alone = [torch.from_numpy(np.stack(pair)) for pair in ((clear, blank), (blank, clear))]
        self.truth = torch.from_numpy(labels[held_out])
        widths = [PIXELS, *[hidden] * (DIGIT_DEPTH - 1), 8]
        made = []
        for fusion, seed in self.names:
            fans = [n * (2 if i + 1 == fusion else 1) for i, n in enumerate(widths[:-1])]
            made.append(gaussian(widths, [1 / np.sqrt(3 * fan) for fan in fans], "digits", fusion, seed))
        self.weights = nn.ParameterList(torch.from_numpy(np.stack(layer)).float() for layer in zip(*made, strict=True))
        mix = np.stack([mixes(DIGIT_DEPTH, fusion) for fusion, _ in self.names])
        self.register_buffer("mix", torch.from_numpy(mix).float())

    def logits(self, x: Float[Tensor, "2 n P"]) -> Float[Tensor, "S n 8"]:
        return network_output(x.to(self.mix.device), list(self.weights), self.mix, True)

    def forward(self, step: int) -> Float[Tensor, "S"]:
        draw = rng("unimodal", "batch", step)
        rows = draw.choice(len(self.labels), self.batch, replace=False)
        logits = self.logits(torch.from_numpy(views(self.images[rows], draw)).float())
        truth = torch.from_numpy(self.labels[rows]).to(logits.device).expand(len(logits), -1)
        return F.cross_entropy(logits.transpose(1, 2), truth, reduction="none").mean(1)

    def measure(self) -> dict[str, Tensor]:
        """Accuracy on held-out images that are clear in one modality and absent from the other."""
        truth = self.truth.to(self.mix.device)
        return {"alone": torch.stack([(self.logits(x).argmax(2) == truth).double().mean(1) for x in self.alone], 1)}


class Digits:
    """Accuracy with A alone and B alone over training."""

    def __init__(self, networks: DigitNetworks, folder: Path, steps: int, lr: float, every: int):
        record = simulate(networks, folder, steps, lr, every)
        shape = len({fusion for fusion, _ in networks.names}), -1, 2
        self.steps = record["step"].astype(float)
        self.alone = record["alone"].reshape(len(self.steps), *shape)  # (M, fusions, seeds, 2)

    def lag(self) -> Float[np.ndarray, "fusions seeds"]:
        """Step at which B alone reaches accuracy 1/2 over that of A alone."""
        times = np.array([[[crossing(self.steps, curve, 0.5) for curve in seed.T] for seed in fusion]
                          for fusion in self.alone.transpose(1, 2, 0, 3)])
        return times[..., 1] / times[..., 0]

    def gap(self) -> Float[np.ndarray, "fusions seeds"]:
        """Accuracy with A alone minus that with B alone, mean over training."""
        return (self.alone[..., 0] - self.alone[..., 1]).mean(0)
