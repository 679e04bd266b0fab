"""Curricula in the game: do easy distractors first help the speaker, and narrow adapters more than wide ones?

One listener, rewards only, scenes of one object. Difficulty is the CLIP similarity of distractors: easy ones are drawn
at random, hard ones from the target's nearest neighbours. Arms, with the same images and draws: easy first (half the
steps easy, then half hard), the mix (the same steps in random order), hard only. Order and data are two things: hard
only has never seen easy rounds, so only the mix tells what order does; it is the null. The probe's own result with
two-layer networks is that easy data help small networks more and that the order of the same data does not; here a null
is a legitimate outcome too.

A residual bottleneck of the given width is trained behind the trained adapter `init`, which is frozen: a new narrow
adapter would have to learn captioning first. It starts at 0, so that every width starts as the same speaker. (A first
attempt with whole adapters of width 16 and 64 and short warm starts began the game at chance, so that arms could not be
compared.) Measured: the listener's probability of the target given greedy captions, with hard distractors and held-out
images.

Widths, budget, rates and bars are [stand-in], declared before the runs. Leaves out hard distractors first.

Shapes: n seeds, B images, K prefix vectors, D LLM width, M pools, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor, nn

from dixit.common import rng, seed_of
from dixit.config import Config
from dixit.models.adapter import Adapter
from dixit.models.listeners import score_all
from dixit.training import game
from dixit.training.candidates import draw_hard_candidates, nearest_images
from dixit.training.game_task import GameTask
from dixit.training.runs import patch_batch
from dixit.training.task import Task

from .measure import (
    Finding,
    FromTrained,
    accelerator,
    configure,
    keep_single_object_scenes,
    new_adapter,
    run_training,
    with_config,
)

# ---- setting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings(FromTrained):
    """One step is 4 images x 4 messages."""

    game: str = "configs/pairs/colour_vs_grey.yaml"
    widths: tuple[int, ...] = (4, 64)  # of the bottleneck
    tokens: int = 12
    steps: int = 20
    batch: int = 4
    messages: int = 4
    lr: float = 1e-3
    candidates: int = 6
    rounds: int = 40  # held-out images


TINY = Settings(widths=(2, 8), tokens=6, steps=4, batch=4, messages=2, candidates=3, rounds=6)

ARMS = ("easy first", "mix", "hard only")


def hard_steps(arm: str, count: int, seed: int) -> Bool[np.ndarray, "steps"]:
    """Which steps of an arm have hard distractors; the first two arms have as many of them."""
    late = np.arange(count) >= count // 2
    if arm == "hard only":
        return np.ones(count, bool)
    return late if arm == "easy first" else rng("mix", seed).permutation(late)


# ---- simulation ------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """A frozen adapter followed by a trained residual layer of hidden units, 0 at the start."""

    def __init__(self, adapter: Adapter, width: int, *key: int | str):
        super().__init__()
        self.adapter = adapter.requires_grad_(False)
        size = adapter.offsets.shape[1]
        draw = torch.Generator().manual_seed(seed_of("bottleneck", width, *key))
        self.first = nn.Parameter(torch.randn(size, width, generator=draw) / size ** 0.5)
        self.second = nn.Parameter(torch.zeros(width, size))

    def forward(self, patches: Float[Tensor, "B P Dv"], context: None = None) -> Float[Tensor, "B K D"]:
        prefix = self.adapter(patches) / self.adapter.scale
        return self.adapter.scale * (prefix + (prefix @ self.first).relu() @ self.second)


class CurriculumGame(GameTask):
    """The game on scenes of one object; `hard` says which steps draw distractors from the nearest neighbours.

    Observed with hard distractors: "p", the listener's mean probability of the target, and "hits".
    """

    said = Task.said  # nothing: curves are looked at, not captions

    hard: Bool[np.ndarray, "steps"]

    def prepare(self, settings: Settings) -> None:
        """Keep the scenes of one object, and draw the hard validation pools."""
        count = settings.candidates
        keep_single_object_scenes(self)
        eyes: list[Any] = [self.listeners[0], self.validation_listeners[0]]
        self.near, far = (nearest_images(eye.images.cpu(), min(4 * (count - 1), len(eye.images) - 1)) for eye in eyes)
        self.rounds = np.arange(min(settings.rounds, len(self.validation)))
        self.pools = draw_hard_candidates(self.rounds, far, count, "observe")

    def candidates(self, step: int, index: Int[np.ndarray, "B"]) -> Int[Tensor, "B M C"]:
        self.sampler.neighbours = self.near if self.hard[step] else None
        return super().candidates(step, index)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        patches = patch_batch(self.validation_store, self.rounds, self.speaker.device)
        texts = [captions[0] for captions in self.speaker.caption(patches)]
        logits = score_all(self.validation_listeners, texts, self.pools)
        return {"p": float(game.target_logp(logits).exp()[0].mean()), "hits": float(game.hits(logits)[0].mean())}


# ---- findings --------------------------------------------------------------------------------------------

Ends = dict[tuple[int, str], Float[np.ndarray, "n"]]  # (width, arm) -> p at the end; arm "start": before the game


def findings(ends: Ends) -> list[Finding]:
    """Verdicts at every width, and whether the benefit shrinks from the narrowest to the widest."""
    widths = sorted({width for width, _ in ends})
    found = []
    for width in widths:
        first, mix, hard = (ends[width, arm] for arm in ARMS)
        found += [
            Finding(f"width {width}: p of the target before the game", ends[width, "start"]),
            Finding(f"width {width}: gain of the mix", mix - ends[width, "start"]),
            Finding(f"width {width}: order, p after easy first (null: the mix)", first, mix, 0.02,
                    "order the distractors from easy to hard", "do not order distractors: a mix does as well"),
            Finding(f"width {width}: data, p after easy first (null: hard only)", first, hard, 0.02,
                    "let easy distractors be among the hard ones",
                    "easy distractors are not needed: train on hard ones"),
            Finding(f"width {width}: spread of p over seeds after the mix", np.full(len(mix), mix.std(ddof=1))
                    if len(mix) > 1 else np.zeros(1)),
        ]
    benefit = {width: ends[width, ARMS[0]] - ends[width, ARMS[1]] for width in widths}
    found.append(Finding(
        f"benefit of order, width {widths[0]} (null: that at width {widths[-1]})", benefit[widths[0]],
        benefit[widths[-1]], 0.02, "a wider adapter does what a curriculum does: widen it instead",
        "the benefit of order, if any, does not shrink with width"))
    return found


# ---- figure ----------------------------------------------------------------------------------------------


def draw(settings: Settings, ends: Ends) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, width in enumerate(settings.widths):
        for j, arm in enumerate(("start", *ARMS)):
            values = ends[width, arm]
            left.plot(np.full(len(values), j + 0.15 * i), values, "o", color=f"C{i}", alpha=0.4)
            left.plot([j + 0.15 * i - 0.1, j + 0.15 * i + 0.1], [values.mean()] * 2, color=f"C{i}",
                      label=f"width {width}" if not j else None)
        for j, arm in enumerate(ARMS[1:]):
            benefit = ends[width, ARMS[0]] - ends[width, arm]
            error = benefit.std(ddof=1) / len(benefit) ** 0.5 if len(benefit) > 1 else 0
            right.errorbar([i + 0.15 * j], [benefit.mean()], yerr=[error], fmt="o", color=f"C{j + 2}", capsize=3,
                           label=f"easy first less {arm}" if not i else None)
    left.set_xticks(range(4), ["start", *ARMS])
    left.set(title="p of the target, hard distractors, held-out images")
    right.set_xticks(range(len(settings.widths)), [str(width) for width in settings.widths])
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="paired differences, mean and standard error", xlabel="width of the bottleneck")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement: the game in three orders, for every width and seed."""
    def config_of(name: str, seed: int) -> Config:
        return configure(settings.game, seed, folder / name, "listeners.1.weight=0.0", tokens=settings.tokens,
                         batch=settings.batch, samples=settings.messages, candidates=settings.candidates,
                         lr=settings.lr, warmup=2, steps=settings.steps, every=settings.steps)

    task = CurriculumGame(config_of("start", 0), accelerator(folder))
    task.prepare(settings)
    ends: dict[tuple[int, str], list[float]] = {}
    for width in settings.widths:
        for seed in range(seeds):
            for arm in ARMS:
                config = config_of(f"{arm}_{width}_{seed}", seed)
                adapter = new_adapter(task, config, settings.init_of(seed))
                one = with_config(task, config, Bottleneck(adapter, width, seed))
                one.hard = hard_steps(arm, settings.steps, seed)
                record = run_training(one, config)
                ends.setdefault((width, arm), []).append(record[-1]["p"])
                if arm == ARMS[0]:
                    ends.setdefault((width, "start"), []).append(record[0]["p"])
    values = {key: np.array(value) for key, value in ends.items()}
    return findings(values), draw(settings, values)
