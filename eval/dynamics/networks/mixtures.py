"""Networks that learn to tell two classes of Fashion-MNIST, then mixtures of them with two other classes.

Mixtures m x1 + (1 - m) x2 are whitened. Networks of one hidden layer learn them with new heads that start small
("dormant") or not ("undormant"), or as in the code of Lee et al., arXiv 2205.09029 ("official": sigmoids, biases,
PyTorch's start, labels 0 and 1). The settings are [stand-in]: see the probe maslow.

Shapes: S networks (runs x mixtures), K units, n images, d pixels, r runs, m mixtures, t steps, b images a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.common import rng
from dixit.data.assets import asset

from ..probe import Networks, simulate
from ..ranges import Within
from ..theory.teacher_student import reuse, usage


@dataclass(frozen=True)
class ImageSettings:
    """Settings of networks on mixtures of images, all [stand-in]."""

    # The last is 1, which is task 1.
    mixtures: Annotated[tuple[float, ...], Within("[0, 1]", "[3, 30]")] = (
        0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    units: Annotated[int, Within("[2, 200]")] = 8
    shrink: Annotated[int, Within("[1, 4]")] = 2
    per_class: Annotated[int, Within("[50, 6000]")] = 1000
    test_per_class: Annotated[int, Within("[20, 1000]")] = 500
    ridge: Annotated[float, Within("[1e-6, 0.1]")] = 1e-3  # of whitening, over the mean variance
    weight_rate: Annotated[float, Within("[0.01, 0.5]")] = 0.3
    head_rate: Annotated[float, Within("[0.01, 3]")] = 1.5
    image_time: Annotated[float, Within("[1, 10000]")] = 100.0
    batch: Annotated[int, Within("[1, 100]")] = 16
    new_heads: Annotated[float, Within("[0.0001, 0.1]")] = 1e-2  # deviation of dormant heads; of undormant ones 1
    official_lr: Annotated[float, Within("[0.0001, 0.5]")] = 0.2
    official_batch: Annotated[int, Within("[1, 100]")] = 32
    official_steps: Annotated[int, Within("[1, 10000000]")] = 3000


@dataclass(frozen=True)
class Manner:
    """How networks on images are initialised and trained."""

    name: str
    official: bool = False
    coordinates: bool = False  # whitened images in PCA coordinates, else turned back (ZCA)


DORMANT, UNDORMANT = Manner("dormant"), Manner("undormant")
OFFICIAL, OFFICIAL_PCA = Manner("official", official=True), Manner("official, PCA", official=True, coordinates=True)

# ---- data ------------------------------------------------------------------------------------------------


def pictures(settings: ImageSettings, pair: tuple[int, ...], split: str, count: int, run: int
             ) -> Float[np.ndarray, "2 2 c d"]:
    """Images of the two classes of task 1 and of the two that they are mixed with, `count` of each, shuffled by run."""
    folder, draw = asset("fashion-mnist"), rng("maslow", "images", split, run, *pair)
    kinds, images = np.load(folder / f"{split}_labels.npy"), np.load(folder / f"{split}_images.npy", mmap_mode="r")
    rows = np.stack([draw.permutation(np.flatnonzero(kinds == kind))[:count] for kind in pair])
    small = F.avg_pool2d(torch.from_numpy(images[rows][..., 0] / np.float32(255)), settings.shrink)
    return small.reshape(2, 2, count, -1).numpy()


def whitening(x: Float[np.ndarray, "n d"], ridge: float, coordinates: bool
              ) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """The mean and a whitening matrix, regularised by `ridge` times the mean variance.

    In PCA coordinates, or turned back to pixels (ZCA).
    """
    values, vectors = np.linalg.eigh(np.cov(x.T.astype(float), bias=True))
    scaled = vectors / np.sqrt(np.maximum(values, 0) + ridge * values.mean())
    return x.mean(0), (scaled if coordinates else scaled @ vectors.T).astype(np.float32)


@dataclass(frozen=True)
class Mixtures:
    """Whitened images of task 2, for every run and mixture; the last is task 1. The second half is class 1."""

    train: Float[np.ndarray, "r m n d"]
    test: Float[np.ndarray, "r m n2 d"]

    def similarity(self) -> Float[np.ndarray, "r m"]:
        """V of images: the cosine of the least-squares readouts, E[x y] of white x, of task 2 and task 1."""
        half = self.train.shape[2] // 2
        readout = self.train[:, :, half:].mean(2, dtype=float) - self.train[:, :, :half].mean(2, dtype=float)
        readout = readout / np.linalg.norm(readout, axis=2, keepdims=True)
        return (readout * readout[:, -1:]).sum(2)


def mixtures(settings: ImageSettings, pair: tuple[int, ...], runs: int, coordinates: bool) -> Mixtures:
    """Mixtures m x1 + (1 - m) x2 of images, each whitened by its own training images."""
    results: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for run in range(runs):
        splits = [pictures(settings, pair, "train", settings.per_class, run),
                  pictures(settings, pair, "test", settings.test_per_class, run)]
        for m in settings.mixtures:
            mixed = [np.concatenate(list(m * one + (1 - m) * other)) for one, other in splits]
            mean, matrix = whitening(mixed[0], settings.ridge, coordinates)
            for place, x in zip(results, mixed, strict=True):
                place.append((x - mean) @ matrix)
    return Mixtures(*(np.stack(part).reshape(runs, len(settings.mixtures), *part[0].shape) for part in results))


# ---- networks --------------------------------------------------------------------------------------------

PARTS = "weight", "bias", "head", "offset"
Parts = dict[str, np.ndarray]  # of S networks


class ImageNetworks(Networks):
    """Networks of one hidden layer and one output, half the squared error, SGD on shuffled epochs; float32.

    Dormant and undormant: erf, no biases, W x/sqrt(d), targets -1 and 1, and heads in units such that W learns at
    `weight_rate`/sqrt(d) and heads at `head_rate`/d an image. Official: sigmoids, biases, W x, targets 0 and 1.
    """

    place: Tensor
    order: Tensor

    def __init__(self, settings: ImageSettings, official: bool, start: Parts, x: Float[np.ndarray, "P n d"],
                 place: Int[np.ndarray, "S"], rows: Int[np.ndarray, "r t b"], order: Int[np.ndarray, "S"]):
        """`place` and `order` are the index of the images and of the shuffled rows of each network."""
        super().__init__()
        self.official, d = official, x.shape[2]
        self.weight, self.bias, self.head, self.offset = (
            nn.Parameter(torch.from_numpy(start[name].astype(np.float32))) for name in PARTS)
        self.register_buffer("place", torch.from_numpy(place))
        self.register_buffer("order", torch.from_numpy(order))
        self.x, self.rows = torch.from_numpy(x), torch.from_numpy(rows)
        self.scale, self.head_scale = 1.0, 1.0
        if not official:
            self.scale, self.head_scale = d ** -0.5, (settings.head_rate / settings.weight_rate / d) ** 0.5

    def outputs(self, x: Float[Tensor, "S b d"], weight: Tensor, bias: Tensor, head: Tensor, offset: Tensor
                ) -> Float[Tensor, "S b"]:
        fields = weight @ x.mT * self.scale + self.official * bias[:, :, None]
        units = fields.sigmoid() if self.official else torch.erf(fields / 2 ** 0.5)
        return (head[:, :, None] * units).sum(1) * self.head_scale + self.official * offset[:, None]

    def targets(self, second: Tensor) -> Tensor:
        """The targets of images that are (1) or are not (0) of class 1."""
        return second.float() if self.official else 2.0 * second - 1

    def forward(self, step: int) -> Float[Tensor, "S"]:
        here, n = self.place.device, self.x.shape[1]
        self.x, self.rows = self.x.to(here), self.rows.to(here)
        rows = self.rows[self.order, step].long()
        x = self.x.flatten(0, 1).index_select(0, (rows + n * self.place[:, None]).flatten())  # faster than x[p, rows]
        outputs = self.outputs(x.view(*rows.shape, -1), *(getattr(self, name) for name in PARTS))
        return ((outputs - self.targets(rows >= n // 2)) ** 2).mean(1) / 2

    def measure(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in PARTS}

    def evaluate(self, parts: Parts, x: Float[np.ndarray, "S n d"]
              ) -> tuple[Float[np.ndarray, "S"], Float[np.ndarray, "S"]]:
        """Half the mean squared error and the accuracy of given weights."""
        second = torch.arange(x.shape[1]) >= x.shape[1] // 2
        outputs = self.outputs(torch.from_numpy(x), *(torch.from_numpy(parts[name]) for name in PARTS))
        target, middle = self.targets(second), self.targets(torch.tensor([False, True])).mean()
        error, right = (outputs - target) ** 2 / 2, (outputs > middle) == second
        return error.double().mean(1).numpy(), right.double().mean(1).numpy()

    def gram(self, parts: Parts) -> Float[np.ndarray, "S K K"]:
        weight = parts["weight"] * self.scale
        return weight @ weight.swapaxes(1, 2)

    def fisher(self, parts: Parts, x: Float[np.ndarray, "S n d"]) -> Float[np.ndarray, "S K d"]:
        """d times the Fisher information of the output about each weight."""
        fields = x @ parts["weight"].swapaxes(1, 2) * self.scale + self.official * parts["bias"][:, None]
        fire = expit(fields)
        slope = fire * (1 - fire) if self.official else np.sqrt(2 / np.pi) * np.exp(-fields ** 2 / 2)
        scale = self.head_scale ** 2 * self.scale ** 2 * x.shape[2] / x.shape[1]
        return scale * parts["head"][..., None] ** 2 * ((slope ** 2).swapaxes(1, 2) @ x ** 2)


def initialise(settings: ImageSettings, manner: Manner, d: int, runs: int, *key: int | str) -> Parts:
    """Weights and a head. Dormant heads have the standard deviation `new_heads`; see ImageNetworks for their units."""
    draws, k = [rng("maslow", "weights", run, *key) for run in range(runs)], settings.units
    shapes = {"weight": (k, d), "bias": (k,), "head": (k,), "offset": ()}
    if manner.official:  # uniform up to 1/sqrt(fan-in), as PyTorch has it
        fan_in = {"weight": d, "bias": d, "head": k, "offset": k}
        return {name: np.stack([one.uniform(-1, 1, shape) for one in draws]) / fan_in[name] ** 0.5
                for name, shape in shapes.items()}
    spread = (settings.new_heads if manner is DORMANT else 1.0) / (settings.head_rate / settings.weight_rate / d) ** 0.5
    start = {name: np.stack([one.standard_normal(shape) for one in draws]) for name, shape in shapes.items()}
    return start | {"bias": 0 * start["bias"], "head": spread * start["head"], "offset": 0 * start["offset"]}


def epochs(n: int, steps: int, batch: int, *key: int | str) -> Int[np.ndarray, "t b"]:
    """The image indices of every batch: n images, reshuffled for every pass."""
    draw = rng("maslow", "epochs", *key)
    rows = [draw.permutation(n).astype(np.int16) for _ in range(-(-steps * batch // n))]
    return np.concatenate(rows)[:steps * batch].reshape(steps, batch)


# ---- learning one task after the other ---------------------------------------------------------------------


@dataclass(frozen=True)
class Forgetting:
    """Errors, accuracies and use of units of networks on images, on test images: (r, m), or (r,) at the switch."""

    forgotten: np.ndarray  # error of task 1, at the end less at the switch
    forgotten_accuracy: np.ndarray
    error: np.ndarray  # of task 2 at the end
    accuracy: np.ndarray
    first_error: np.ndarray  # of task 1 at the switch
    first_accuracy: np.ndarray
    shares: np.ndarray  # (r, m, 2, K): of units in task 1 at the switch and in task 2 at the end
    fisher: np.ndarray  # (r, K, d): information about each weight on task 1, at the switch, times d
    similarity: np.ndarray  # V

    @property
    def reuse(self) -> Float[np.ndarray, "r m"]:
        """Overlap of the shares of units in task 1 at the switch and in task 2 at the end."""
        return np.asarray(reuse(self.shares))


def train_on_images(settings: ImageSettings, manners: Sequence[Manner], data: Mixtures, folder: Path,
                    ) -> list[Forgetting]:
    """Train on task 1 once a run, then from there on task 2 of every mixture; all manners are official, or none is."""
    (runs, many, n, d), official, kinds = data.train.shape, manners[0].official, len(manners)
    if official:
        batch, steps, lr = settings.official_batch, settings.official_steps, 2 * settings.official_lr  # of (f - y)^2
    else:
        batch, lr = settings.batch, settings.weight_rate * settings.batch
        steps = round(settings.image_time * d / batch)

    def train_networks(task: int, start: list[Parts], x: np.ndarray) -> tuple[ImageNetworks, list[Parts]]:
        each = len(x) // runs
        rows = np.stack([epochs(n, steps, batch, run, task) for run in range(runs)])
        place, order = np.tile(np.arange(len(x)), kinds), np.tile(np.repeat(np.arange(runs), each), kinds)
        parts = {name: np.concatenate([one[name] for one in start]) for name in PARTS}
        networks = ImageNetworks(settings, official, parts, x, place, rows, order)
        record = simulate(networks, folder / f"task{task}", steps, lr, steps)
        return networks, [{name: record[name][-1][i * len(x):(i + 1) * len(x)] for name in PARTS} for i in range(kinds)]

    def repeated(parts: Parts) -> Parts:
        return {name: np.repeat(value, many, 0) for name, value in parts.items()}

    first, second = (
        [initialise(settings, manner, d, runs, task) for manner in manners] for task in ("first", "second"))
    networks, learned = train_networks(1, first, data.train[:, -1])
    new = [head | {name: one[name] for name in ("weight", "bias")} for head, one in zip(second, learned, strict=True)]
    networks, final = train_networks(2, [repeated(one) for one in new], data.train.reshape(-1, n, d))
    first_task, second_task = data.test[:, -1], data.test.reshape(runs * many, -1, d)
    results = []
    for before, after in zip(learned, final, strict=True):
        first_error, first_accuracy = networks.evaluate(before, first_task)
        old = repeated({name: before[name] for name in ("head", "offset")})
        late_error, late_accuracy, error, accuracy = (
            part.reshape(runs, many) for part in (*networks.evaluate(after | old, np.repeat(first_task, many, 0)),
                                                  *networks.evaluate(after, second_task)))
        shares = np.stack([usage(networks.gram(one), np.stack([one["head"]] * 2, 1))[:, 0]
                           for one in (repeated(before), after)], 1)
        results.append(Forgetting(late_error - first_error[:, None], first_accuracy[:, None] - late_accuracy, error,
                                accuracy, first_error, first_accuracy, shares.reshape(runs, many, 2, -1).astype(float),
                                networks.fisher(before, first_task), data.similarity()))
    return results
