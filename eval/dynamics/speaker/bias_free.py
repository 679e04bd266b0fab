"""Bias-free ReLU adapters on CLIP features: how far from linear are they in the speaker?

The adapter is a two-layer network f on the mean patch z of an image, centred and scaled; the prefix is a fixed random
one plus f(z). On symmetric data a bias-free ReLU network learns as a linear one of half the rate and 1/sqrt(2) of the
weights does (probe bias_free), and the even part of what it learns goes to 0. The target for images is not odd in z:
what all captions share is even, and with z centred a linear map cannot express it. So a departure is expected. It is
measured by the even share E = |f(z) + f(-z)|^2 / (|f(z) + f(-z)|^2 + |f(z) - f(-z)|^2) on held-out images, and the loss
of the ReLU network less that of its linear partner, at the same steps on the same batches, by plain gradient descent
from matched small weights. The training is the first warm start of the speaker (words), the adapter-only one: through
the frozen LLM plain gradient descent from small weights needs thousands of steps (tried: prefix gradients are so steep
that stable rates leave small weights where they are). Arms: ReLU, its linear partner, ReLU with biases. The null: the
same two networks and features, trained by half the squared error on an odd target, the largest linear mode of the
words' own gradient, at z and -z alike.

All sizes, rates and bars are [stand-in]. The exact bars are the probe's own; here none is exact. Leaves out the default
attention adapter, which has norms and biases throughout, and captions.

Shapes: n seeds, N images, Z features, H hidden units, K prefix vectors, D LLM width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from dixit.common import seed_of
from dixit.config import Config
from dixit.training import game
from dixit.training.runs import patch_batch
from dixit.training.task import Task

from .measure import Finding, ShortWords, accelerator, configure, curve, losses, plot_seeds, run_training, with_config

# ---- setting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """No LLM runs in the loop."""

    words: str = "configs/words_scenes.yaml"
    prefix: int = 4
    hidden: int = 64
    std: float = 0.01  # standard deviation of both layers; f is in units of the LLM's embeddings
    batch: int = 64
    steps: int = 600
    every: int = 50
    lr: float = 20.0
    images: int = 64  # of the null's target, and held out
    null_steps: int = 400
    null_lr: float = 0.05


TINY = Settings(prefix=2, hidden=16, batch=4, steps=4, every=2, images=12, null_steps=200, null_lr=0.3)

ARMS = ("ReLU", "linear", "biases")

# ---- quantities ------------------------------------------------------------------------------------------


def even_share(plus: Float[np.ndarray, "*N"], minus: Float[np.ndarray, "*N"]) -> float:
    """E of f(z) and f(-z): 0 for an odd map, 1 for an even one, 1/2 for random weights."""
    even, odd = ((plus + minus) ** 2).sum(), ((plus - minus) ** 2).sum()
    return float(even / (even + odd))


def departure(relu: Float[np.ndarray, "steps"], linear: Float[np.ndarray, "steps"], window: int = 1) -> float:
    """The largest |difference| of two loss curves, smoothed over `window` steps, over the fall of the lower one."""
    kernel = np.ones(window) / window
    a, b = np.convolve(relu, kernel, "valid"), np.convolve(linear, kernel, "valid")
    return float(np.abs(a - b).max() / (max(a[0], b[0]) - min(a.min(), b.min())))


def leading_mode(target: Float[Tensor, "N E"], z: Float[Tensor, "N Z"]) -> Float[Tensor, "Z E"]:
    """The map of rank one of the largest singular value of E[z target']; its values on z have length 1 on average."""
    left, _, right = torch.linalg.svd(z.T @ target / len(z), full_matrices=False)
    mode = left[:, :1] @ right[:1]
    return mode / (z @ mode).square().sum(1).mean().sqrt()


# ---- simulation ------------------------------------------------------------------------------------------


class MlpAdapter(nn.Module):
    """z -> first -> ReLU (or nothing) -> second, added to a fixed prefix. `rate` multiplies its learning rate."""

    rate: float

    centre: Tensor
    offsets: Tensor

    def __init__(self, settings: Settings, centre: Float[Tensor, "Z"], spread: float, width: int, scale: float,
                 seed: int, linear: bool, biases: bool):
        super().__init__()
        outputs, draw = settings.prefix * width, torch.Generator().manual_seed(seed_of("mlp adapter", seed))
        shrink = 0.5 ** 0.5 if linear else 1.0
        self.first = nn.Parameter(shrink * settings.std * torch.randn(len(centre), settings.hidden, generator=draw))
        self.second = nn.Parameter(shrink * settings.std * torch.randn(settings.hidden, outputs, generator=draw))
        self.biases = nn.ParameterList([torch.zeros(settings.hidden), torch.zeros(outputs)] if biases else [])
        self.register_buffer("offsets", torch.randn(settings.prefix, width, generator=draw))
        self.register_buffer("centre", centre.clone())
        self.spread, self.scale, self.linear, self.rate = spread, scale, linear, 0.5 if linear else 1.0

    def features(self, patches: Float[Tensor, "B P Z"]) -> Float[Tensor, "B Z"]:
        return (patches.mean(1) - self.centre) / self.spread

    def map(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B E"]:
        """f, the part that is learned; E = K D."""
        h = z @ self.first + (self.biases[0] if len(self.biases) else 0)
        return (h if self.linear else h.relu()) @ self.second + (self.biases[1] if len(self.biases) else 0)

    def prefix(self, f: Float[Tensor, "B E"]) -> Float[Tensor, "B K D"]:
        return self.scale * (self.offsets + f.unflatten(1, self.offsets.shape))

    def forward(self, patches: Float[Tensor, "B P Z"]) -> Float[Tensor, "B K D"]:
        return self.prefix(self.map(self.features(patches)))


class MlpWords(ShortWords):
    """The words of scenes of one object with an MLP adapter; observes E."""

    def prepare(self, settings: Settings) -> None:
        mean = torch.from_numpy(np.asarray(self.store, np.float32).mean(1))
        self.centre = mean.mean(0)
        self.spread = float((mean - self.centre).square().sum(1).mean().sqrt())  # so that |z| is about 1
        self.held_z = (torch.from_numpy(np.asarray(self.validation_store[:settings.images], np.float32)).mean(1)
                       - self.centre) / self.spread

    def adapter(self, settings: Settings, seed: int, arm: str) -> MlpAdapter:
        embedding = self.speaker.llm.get_input_embeddings().weight
        return MlpAdapter(settings, self.centre, self.spread, embedding.shape[1], float(embedding.float().std()), seed,
                          arm == "linear", arm == "biases")

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        loss, figures = super().loss(step, part)
        return scale_gradient(loss, self.trained), figures

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        return even_shares(self.trained, self.held_z)

    def odd_target(self, settings: Settings, seed: int) -> tuple[Tensor, Tensor]:
        """(z, target) of some training images: the leading linear mode of minus the gradient of their loss in f, at
        f = 0."""
        adapter = self.adapter(settings, seed, "ReLU")
        index = game.batch_indices(seed, 0, min(settings.images, len(self.data)), len(self.data))
        patches = patch_batch(self.store, index, self.speaker.device)
        z = adapter.features(patches)
        f = torch.zeros(len(z), adapter.second.shape[1], requires_grad=True)
        one = with_config(self, self.config, FixedOutput(adapter, f))
        slope, = torch.autograd.grad(one._loss(patches, self.captions.draw(index)[1]).sum(), f)
        return z, z @ leading_mode(-slope, z)


class FixedOutput(nn.Module):
    """An adapter with a fixed f, independent of the image."""

    def __init__(self, adapter: MlpAdapter, f: Float[Tensor, "B E"]):
        super().__init__()
        self.adapter, self.f = adapter, f

    def forward(self, patches: Float[Tensor, "B P Z"]) -> Float[Tensor, "B K D"]:
        return self.adapter.prefix(self.f)


class OddRegression(Task):
    """The null: the same network on z and -z with an odd target, half the mean squared error; observes E."""

    def __init__(self, trained: MlpAdapter, z: Float[Tensor, "N Z"], target: Float[Tensor, "N E"]):
        self.trained: nn.Module = trained
        self.z, self.target = torch.cat([z, -z]), torch.cat([target, -target])

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        adapter: Any = self.trained
        return scale_gradient((adapter.map(self.z) - self.target).square().sum(1).mean() / 2, adapter), {}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        return even_shares(self.trained, self.z)


def scale_gradient(loss: Tensor, adapter: Any) -> Tensor:
    """The loss with the same value and `rate` times its gradient, which scales the adapter's learning rate."""
    return loss.detach() + adapter.rate * (loss - loss.detach())


def even_shares(adapter: Any, z: Float[Tensor, "N Z"]) -> dict[str, float]:
    return {"E": even_share(adapter.map(z).double().cpu().numpy(), adapter.map(-z).double().cpu().numpy())}


# ---- findings --------------------------------------------------------------------------------------------

Runs = dict[str, dict[str, Float[np.ndarray, "n _times"]]]  # arm -> "E", "step", "loss" (n, steps)


def findings(words: Runs, null: Runs, window: int = 10) -> list[Finding]:
    """Verdicts. Losses of words are smoothed over `window` steps: batches differ, though not between arms."""
    window = min(window, words["ReLU"]["loss"].shape[1])
    relu, linear, biases = (words[arm]["loss"] for arm in ARMS)
    away = [departure(a, b, window) for a, b in zip(relu, linear, strict=True)]
    nothing = [departure(a, b) for a, b in zip(null["ReLU"]["loss"], null["linear"]["loss"], strict=True)]
    fall = relu[:, :window].mean(1) - np.minimum(relu, biases)[:, -window:].mean(1)
    return [
        Finding("even share of a bias-free ReLU adapter at the end (null: odd target)", words["ReLU"]["E"][:, -1],
                null["ReLU"]["E"][:, -1], 0.1,
                "what all images share sits in the even part, which no linear map has: what theory says of bias-free "
                "networks does not carry over to an adapter", "no even part is left: the adapter may be linear"),
        Finding("the same at the start", words["ReLU"]["E"][:, 0]),
        Finding("the same at the end, with biases", words["biases"]["E"][:, -1]),
        Finding("ReLU at t against linear at t/2: largest difference of losses, over the fall (null: odd target)",
                away, nothing, 0.1,
                "the ReLU earns its keep: it is no slow linear map",
                "within this budget the ReLU learns as a linear adapter of half the rate: take a linear one, or train "
                "longer"),
        Finding("fall of the loss that biases add, as a share of the whole (null: none)",
                (relu[:, -window:].mean(1) - biases[:, -window:].mean(1)) / fall, 0.0, 0.05,
                "keep the biases of an adapter: without them it is slower to learn what all images share",
                "biases of the adapter may go"),
        Finding("loss at the end, nats per image: ReLU", relu[:, -window:].mean(1)),
        Finding("loss at the end, nats per image: linear at t/2", linear[:, -window:].mean(1)),
        Finding("loss at the end, nats per image: ReLU with biases", biases[:, -window:].mean(1)),
        Finding("null: loss at the end over the first", null["ReLU"]["loss"][:, -1] / null["ReLU"]["loss"][:, 0]),
    ]


# ---- figure ----------------------------------------------------------------------------------------------


def draw(words: Runs, null: Runs) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axis, runs, title in (left, words, "words, nats"), (middle, null, "odd target, half the squared error"):
        for i, (arm, one) in enumerate(runs.items()):
            plot_seeds(axis, np.arange(one["loss"].shape[1]), one["loss"], "linear at t/2" if arm == "linear" else arm,
                       f"C{i}")
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=8)
    for label, runs in ("words", words), ("odd target", null):
        for arm, one in runs.items():
            if arm != "linear":
                right.plot(one["step"][0] / one["step"][0, -1], one["E"].mean(0), marker="o", markersize=3,
                           label=f"{label}, {arm}")
    right.set(title="even share E", xlabel="time over the last", ylim=(-0.03, 1.03))
    right.legend(fontsize=8)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement: three arms on words and two on the odd target, for each seed."""
    def config_of(name: str, seed: int, steps: int, every: int, lr: float) -> Config:
        return configure(settings.words, seed, folder / name, f"speaker.prefix={settings.prefix}",
                         "train.optimizer=sgd", "train.clip_norm=0.0", batch=settings.batch, lr=lr, warmup=0,
                         steps=steps, every=every)

    task = MlpWords(config_of("start", 0, 1, 1, 0.0), accelerator(folder))
    task.prepare(settings)
    arms = {"words": ARMS, "null": ARMS[:2]}
    records: dict[str, dict[str, list]] = {kind: {arm: [] for arm in arms[kind]} for kind in arms}
    curves: dict[str, dict[str, list]] = {kind: {arm: [] for arm in arms[kind]} for kind in arms}
    for seed in range(seeds):
        z, target = task.odd_target(settings, seed)
        for kind in arms:
            for arm in arms[kind]:
                adapter, name = task.adapter(settings, seed, arm), f"{kind}_{arm}_{seed}"
                if kind == "words":
                    config = config_of(name, seed, settings.steps, settings.every, settings.lr)
                    one: Any = with_config(task, config, adapter)
                else:
                    config = config_of(name, seed, settings.null_steps, settings.null_steps // 8, settings.null_lr)
                    one = OddRegression(adapter, z, target)
                records[kind][arm].append(run_training(one, config))
                curves[kind][arm].append(losses(config.folder))
    words, null = ({arm: {"step": curve(rows, "step"), "E": curve(rows, "E"), "loss": np.stack(curves[kind][arm])}
                    for arm, rows in records[kind].items()} for kind in arms)
    return findings(words, null), draw(words, null)
