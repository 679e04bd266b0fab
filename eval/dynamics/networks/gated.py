"""Networks with two task units whose weights may learn by Oja's rule, and the stimuli and trials of two tasks.

Blobs, networks, rates and lengths are those of the public code of Flesch, Nagy, Saxe, Summerfield, PLoS Computational
Biology 2023. The trees are drawn here [stand-in]: see the probe gating. Items are those of eval/geometry.py: 25 stimuli
in task A, then in B.

Shapes: S networks, T steps, n items, H hidden units, D pixels, E = D + 2 inputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor, nn

from dixit.common import rng

from ...psychophysics import REWARD
from ..probe import Networks
from ..theory.gating import sluggish


@dataclass(frozen=True)
class Condition:
    """How a network is trained. `scale` is the value c of an active task unit."""

    name: str
    curriculum: Literal["blocked", "interleaved"]
    lr: float
    scale: float
    gate: Literal["none", "manual", "context", "all"] = "none"  # which first weights Oja's rule changes
    hebb: float = 0.0  # its rate
    centred: bool = False
    alpha: float = 1.0  # of sluggish task units; 1 is not sluggish

    def sluggish(self, alpha: float) -> Condition:
        return dataclasses.replace(self, name=f"{self.name}, alpha {alpha:g}", alpha=alpha)


# ---- stimuli and trials ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stimuli:
    """Sets of 25 stimuli, (a, b) in the order of eval/geometry.py.

    `reward` is that of one level, `layers` the number of hidden layers of networks trained on them.
    """

    images: Float[np.ndarray, "n D"]
    tests: Float[np.ndarray, "m D"]
    reward: float = 1.0
    layers: int = 1


def blobs() -> Stimuli:
    """Gaussian bumps of variance 0.08 at 5 x 5 places, seen on 5 x 5 pixels, with a largest pixel of 1."""
    pixels, means = np.linspace(0, 1, 5), np.linspace(0.2, 0.8, 5)
    bump = np.exp(-(pixels - means[:, None]) ** 2 / (2 * 0.08))
    images = np.einsum("ax,by->abxy", bump, bump).reshape(25, 25)
    images /= images.max(1, keepdims=True)
    return Stimuli(images, images)


def tree(branchiness: int, leafiness: int, *key: int | str, size: int = 18, zoom: int = 4) -> Image.Image:
    """Draw a tree: `branchiness` sets how often it forks, `leafiness` the number of leaves per branch."""
    draw, wide = rng("gating", "tree", branchiness, leafiness, *key), size * zoom
    canvas = Image.new("RGB", (wide, wide), (170, 200, 230))
    pen, leaves = ImageDraw.Draw(canvas), []
    grow = [(wide / 2, wide * 0.98, np.pi / 2, wide * 0.28, 0)]
    while grow:
        x, y, angle, length, depth = grow.pop()
        dx, dy = length * np.cos(angle), -length * np.sin(angle)
        pen.line([x, y, x + dx, y + dy], fill=(80, 45, 15), width=max(1, 4 - depth))
        if depth:
            leaves += [(x + s * dx, y + s * dy) for s in draw.uniform(size=draw.binomial(3, leafiness / 4))]
        if depth < 4:
            grow += [(x + dx, y + dy, angle + turn + draw.uniform(-0.3, 0.3), length * draw.uniform(0.7, 0.85),
                      depth + 1) for turn in (0, 0.7, -0.7) if turn == 0 or draw.uniform() < 0.25 + 0.14 * branchiness]
    for x, y in leaves:
        pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=(int(draw.integers(20, 70)), int(draw.integers(100, 180)), 30))
    return canvas.resize((size, size), Image.Resampling.BOX)


def trees(sets: int, tests: int, reward: float) -> Stimuli:
    """A set of trees for each pass, and test sets: task A is branchiness, task B leafiness."""
    training, testing = (np.stack([np.asarray(tree(b, leaf, part, number), float).ravel() / 255
                                   for number in range(count) for b in range(5) for leaf in range(5)])
                         for part, count in (("train", sets), ("test", tests)))
    return Stimuli(training, testing, reward, layers=2)


def order(curriculum: str, passes: int, run: int) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]:
    """Items 0..49 in the order in which they are seen, each pass shuffled, and the pass that each belongs to."""
    draw = rng("gating", "order", curriculum, passes, run)
    if curriculum == "interleaved":
        return np.concatenate([draw.permutation(50) for _ in range(passes)]), np.repeat(np.arange(passes), 50)
    items = [25 * task + draw.permutation(25) for task in (0, 1) for _ in range(passes)]
    return np.concatenate(items), np.tile(np.repeat(np.arange(passes), 25), 2)


def task_units(condition: Condition, task: Int[np.ndarray, "T"], test: bool = False) -> Float[np.ndarray, "T 2"]:
    """The activity of two task units: c (1, 0) in A and c (0, 1) in B, less c/2 if centred.

    In training only: blocked and centred, the unit of B is silent in A; sluggish units are the EMA of this, see
    `sluggish`.
    """
    units = condition.scale * (np.stack([task == 0, task == 1], 1) - condition.centred / 2)
    if test:
        return units
    if condition.centred and condition.curriculum == "blocked":
        units[task == 0, 1] = 0.0
    return sluggish(units, condition.alpha)


# ---- networks --------------------------------------------------------------------------------------------


class GatedNetworks(Networks):
    """ReLU networks with two task units and one output y; the reward is won with probability sigmoid(y); one item a
    step.

    Plain gradient descent at each network's own rate, then Oja's rule on first weights for the same item, float32.
    """

    bias: Tensor
    image: Tensor
    units: Tensor
    reward: Tensor
    centre: Tensor
    test_units: Tensor
    rate: Tensor
    hebb: Tensor
    mask: Tensor

    def __init__(self, nets: list[tuple[Condition, int]], stimuli: Stimuli, passes: int, hidden: int, init: float,
                 bias: float):
        super().__init__()
        self.images, self.tests = (torch.from_numpy(x).float() for x in (stimuli.images, stimuli.tests))
        pixels, h = stimuli.images.shape[1], hidden
        weights: dict[str, list[np.ndarray]] = {"first": [], "last": []}
        buffers: dict[str, list[np.ndarray]] = {name: [] for name in ("image", "units", "reward", "test_units")}
        middle = []
        for condition, run in nets:
            draw, manual = rng("gating", "weights", run), condition.gate == "manual"
            first, last = init * draw.standard_normal((pixels + 2, h)), draw.standard_normal((h, 1))
            if manual:
                first[-2:] = (-1.0) ** np.add.outer([1, 0], np.arange(h))
            weights["first"].append(first)
            weights["last"].append(last * (init if manual or stimuli.layers > 1 else h ** -0.5))
            middle.append([init * draw.standard_normal((h, h)) for _ in range(stimuli.layers - 1)])
            items, number = order(condition.curriculum, passes, run)
            buffers["image"].append(items % 25 + 25 * (number % (len(self.images) // 25)))
            buffers["units"].append(task_units(condition, items // 25))
            buffers["reward"].append(stimuli.reward * REWARD[items])
            buffers["test_units"].append(task_units(condition, np.arange(2), test=True))
        self.steps = passes * 50
        self.first, self.last = (nn.Parameter(torch.from_numpy(np.stack(w)).float()) for w in weights.values())
        self.middle = nn.ParameterList(torch.from_numpy(np.stack(w)).float() for w in zip(*middle, strict=True))
        self.offset = nn.Parameter(torch.zeros(len(nets), 1, 1))
        conditions = [condition for condition, _ in nets]
        buffers |= {"centre": [stimuli.images.mean(0) * c.centred for c in conditions],
                 "rate": [np.array(c.lr) for c in conditions], "hebb": [np.array([[c.hebb]]) for c in conditions],
                 "bias": [np.array([[bias * (c.gate != "manual")]]) for c in conditions],
                 "mask": [np.array([[float(c.gate != "context")]] * pixels + [[1.0]] * 2) for c in conditions]}
        for name, values in buffers.items():
            both = torch.from_numpy(np.stack(values))
            self.register_buffer(name, both if name == "image" else both.float(), persistent=False)
        self.start = 0 if any(c.gate == "all" for c in conditions) else pixels  # the first row that Oja's rule changes

    def inputs(self, step: int) -> Float[Tensor, "S 1 E"]:
        x = self.images.to(self.first.device)[self.image[:, step]] - self.centre
        return torch.cat([x, self.units[:, step]], 1)[:, None]

    def test_inputs(self) -> Float[Tensor, "S n E"]:
        """All test stimuli in A, then all in B."""
        x = (self.tests.to(self.first.device) - self.centre[:, None]).repeat(1, 2, 1)
        return torch.cat([x, self.test_units.repeat_interleave(len(self.tests), 1)], 2)

    def hidden(self, x: Float[Tensor, "S n E"]) -> Float[Tensor, "S n H"]:
        """The first layer, which task units project to."""
        return torch.relu(x @ self.first + self.bias)

    def outputs(self, x: Float[Tensor, "S n E"]) -> Float[Tensor, "S n"]:
        h = self.hidden(x)
        for weight in self.middle:
            h = torch.relu(h @ weight + self.bias)
        return (h @ self.last + self.offset)[..., 0]

    def forward(self, step: int) -> Float[Tensor, "S"]:
        return -self.rate * self.outputs(self.inputs(step)).sigmoid()[:, 0] * self.reward[:, step]

    def after_step(self, step: int) -> None:
        """Oja's rule: w += hebb y (x - y w), y = w x before bias and ReLU."""
        mask, w = self.mask[:, self.start:], self.first[:, self.start:]
        x = self.inputs(step)[:, :, self.start:].transpose(1, 2) * mask
        y = x.transpose(1, 2) @ w
        w += self.hebb * y * (x - mask * y * w)

    def measure(self) -> dict[str, Tensor]:
        return {"outputs": self.outputs(self.test_inputs()), "context": self.first[:, -2:]}
