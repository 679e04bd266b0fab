"""Shared parts of all probes of learning dynamics: claims and their table, simulations, and figures.

A probe is one module of this package with a frozen dataclass `Settings`, an instance `TINY` of it that runs in seconds
(for tests), and `run(settings, seeds, folder) -> (claims, figure)`; its sections are setting, simulation, claims,
figure. Its closed forms and differential equations are in theory/NAME.py. Networks and data sets that several probes
share, or that are too long for the probe's module, are in networks/.
Simulations run in the project's training loop (dixit/training/loop.py), many networks at once: seeds and conditions are
a leading dimension S of every parameter, and under `accelerate launch` each process trains a share of them.

Leaves out the command line (__main__.py) and resuming: a probe is short and always starts from the beginning.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call

from dixit.common import atomic_path
from dixit.config import Config, TrainConfig
from dixit.training.loop import train
from dixit.training.task import Task

# ---- claims ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """The predicted and the measured value of a quantity, and the tolerance between them.

    `theory` and `measured` are numbers, or arrays that broadcast (a curve, one value per seed): the worst entry
    decides. With `at_least` and `at_most`, `theory` is a bound that may be missed by the tolerance. With `report` there
    is no bar: a measurement without a theory (pass 0). With `skip` there is no measurement: the reason is in `source`.
    """

    name: str
    theory: float | np.ndarray
    measured: float | np.ndarray
    tolerance: float = 0.0  # absolute
    kind: Literal["close", "at_least", "at_most", "report", "skip"] = "close"
    source: str = ""  # of the theory and of the tolerance

    @property
    def deviation(self) -> np.ndarray:
        """The deviation of each entry; negative if it meets a bound."""
        difference = np.asarray(np.asarray(self.measured, float) - self.theory)
        return np.asarray({"at_least": -difference, "at_most": difference}.get(self.kind, np.abs(difference)))

    @property
    def holds(self) -> bool:
        """Whether every entry is within the tolerance; NaN is not."""
        return self.kind in ("report", "skip") or bool(np.all(self.deviation <= self.tolerance))

    @property
    def sharp(self) -> bool:
        """Whether the verdict would flip if the theory were off by 5 %, up or down."""
        return self.holds and not any(self.perturbed(factor).holds for factor in (0.95, 1.05))

    def perturbed(self, factor: float) -> Claim:
        """The same measurement compared with `factor` times the theory."""
        return dataclasses.replace(self, theory=np.asarray(self.theory) * factor)

    def row(self) -> dict[str, Any]:
        """Plain values for results.json: theory and measured at the worst entry; none if it is skipped."""
        if self.kind == "skip":
            return {"claim": self.name, "kind": self.kind, "theory": None, "measured": None, "deviation": None,
                    "tolerance": self.tolerance, "entries": 1, "holds": True, "sharp": False, "source": self.source}
        worst = np.argmax(self.deviation)  # the first NaN, if there is one
        theory, measured = (float(values.flat[worst]) for values in np.broadcast_arrays(self.theory, self.measured))
        return {"claim": self.name, "kind": self.kind, "theory": _finite(theory), "measured": _finite(measured),
                "deviation": _finite(float(self.deviation.flat[worst])), "tolerance": self.tolerance,
                "entries": self.deviation.size, "holds": self.holds, "sharp": self.sharp, "source": self.source}


def bar_if(condition: bool, why_not: str, claims: list[Claim]) -> list[Claim]:
    """The claims if the condition is met; otherwise what they measured, without a bar, and why."""
    return claims if condition else [
        claim if claim.kind in ("report", "skip") else
        dataclasses.replace(claim, kind="report", theory=0.0, tolerance=0.0, source=f"no bar: {why_not}")
        for claim in claims]


def only_if(condition: bool, why_not: str, claims: list[Claim]) -> list[Claim]:
    """The claims if the condition is met; otherwise their names, as skipped, and why."""
    return claims if condition else [skipped(claim.name, why_not) for claim in claims]


def skipped(name: str, reason: str) -> Claim:
    """A claim that these settings do not allow to be measured."""
    return Claim(name, 0.0, 0.0, kind="skip", source=f"skipped: {reason}")


def reached(values: np.ndarray | float) -> bool:
    """Whether all of these times or ratios are numbers: NaN stands for what did not happen in the run."""
    return bool(np.isfinite(values).all())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table of `Claim.row()`s. Of curves and seeds the worst entry is shown."""
    signs = {"close": "", "at_least": "≥ ", "at_most": "≤ ", "report": "", "skip": ""}
    lines = ["| claim | theory | measured | off by | tolerance | holds | source |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        theory, measured, off = ("NaN" if row[k] is None else f"{row[k]:.4g}"
                                 for k in ("theory", "measured", "deviation"))
        cells = [row["claim"] + (f" (worst of {row['entries']})" if row["entries"] > 1 else ""),
                 signs[row["kind"]] + theory, measured, off, f"{row['tolerance']:.2g}",
                 "yes" if row["holds"] else "**no**", row["source"]]
        if row["kind"] != "close":
            cells[3] = cells[4] = ""
        if row["kind"] == "report":
            cells[1], cells[5] = "", "no bar"
        if row["kind"] == "skip":
            cells[1:6] = "", "", "", "", "skipped"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


# ---- simulation ------------------------------------------------------------------------------------------


class Networks(nn.Module, ABC):
    """S independent networks that are trained at once: every parameter and buffer has S as its first dimension.

    Data that all of them share (e.g. images) are plain attributes. No operation may mix values of two networks.
    """

    @abstractmethod
    def forward(self, step: int) -> Float[Tensor, "S"]:
        """The loss of each network at this step; random draws are functions of (seed, step)."""

    @abstractmethod
    def measure(self) -> dict[str, Tensor]:
        """The quantities to record of each network: name -> (S, ...)."""

    def after_step(self, step: int) -> None:  # noqa: B027  most networks change by gradient descent alone
        """Change weights by another rule after each gradient step; called on every process, for all S networks."""


class _LocalNetworks(nn.Module):
    """Computes the losses of the networks of this process."""

    def __init__(self, networks: Networks):
        super().__init__()
        self.networks = networks

    def forward(self, step: int, local: slice) -> Tensor:
        state = dict(self.networks.named_parameters()) | dict(self.networks.named_buffers())
        return functional_call(self.networks, {name: value[local] for name, value in state.items()}, (step,))


class Simulation(Task):
    """Trains all networks on the sum of their losses, which gives each its own gradient, and records quantities."""

    def __init__(self, networks: Networks, steps: int, every: int, accelerator: Accelerator):
        self.trained: nn.Module = _LocalNetworks(networks)
        self.networks, self.steps, self.every = networks, steps, every
        count, self.world = len(next(networks.parameters())), accelerator.num_processes
        cuts = [count * i // self.world for i in range(self.world + 1)]
        self.local = slice(cuts[accelerator.process_index], cuts[accelerator.process_index + 1])
        self.times: list[int] = []
        self.record: dict[str, list[np.ndarray]] = {}

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        if step % self.every == 0:
            self.measure(step)
        losses = self.trained(step, self.local) if self.world > 1 else self.networks(step)
        return losses.sum() * self.world, {}  # the loop takes the mean over processes

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.networks.after_step(step)

    def validate(self, step: int) -> dict[str, float]:
        self.measure(step)
        return {}

    @torch.no_grad()
    def measure(self, step: int) -> None:
        self.times.append(step)
        for name, values in self.networks.measure().items():
            self.record.setdefault(name, []).append(values.cpu().numpy().copy())


class _PersistentAccelerator(Accelerator):
    """An accelerator that several trainings share: the loop ends the process group after each training otherwise."""

    def end_training(self) -> None:
        pass


def simulate(networks: Networks, folder: Path, steps: int, lr: float, every: int = 1) -> dict[str, np.ndarray]:
    """Train by plain gradient descent; time is t = lr * step.

    Returns "step" (times,) and, for each name that `networks.measure()` gives, (times, S, ...): before the steps
    0, every, 2 every, ... and after the last. The log is left in `folder`; an earlier simulation there is removed.
    """
    config = Config(name=folder.name, out=str(folder), train=TrainConfig(
        steps=steps, optimizer="sgd", lr=lr, schedule="constant", warmup=0, weight_decay=0.0, clip_norm=0.0,
        log_every=max(1, steps // 100), eval_every=steps, save_every=steps))
    accelerator = _PersistentAccelerator(project_dir=str(folder))
    if accelerator.is_main_process:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "log.jsonl").unlink(missing_ok=True)
        (folder / "train.json").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    task = Simulation(networks, steps, every, accelerator)
    train(config, task, accelerator)
    return {"step": np.array(task.times), **{name: np.stack(values) for name, values in task.record.items()}}


def crossing(times: Float[np.ndarray, "M"], values: Float[np.ndarray, "M"], level: float) -> float:
    """The time at which rising values first reach a level, by linear interpolation; NaN if never."""
    above = np.flatnonzero(values >= level)
    if not len(above) or above[0] == 0:
        return float("nan")
    i = above[0]
    return float(np.interp(level, values[i - 1:i + 1], times[i - 1:i + 1]))


# ---- figures ---------------------------------------------------------------------------------------------


def overlay(axis: Axes, times: np.ndarray, simulated: np.ndarray, theory: np.ndarray | None = None, label: str = "",
            colour: str | None = None) -> None:
    """Plot a simulation as a broad pale line and the theory as a thin dashed black line over it."""
    axis.plot(times, simulated, linewidth=3.5, alpha=0.55, label=label, color=colour)
    if theory is not None:
        axis.plot(times, theory, linewidth=1.0, linestyle="--", color="black")


def save_figure(figure: Figure, path: Path) -> None:
    """Write PATH.png and PATH.svg, each atomically."""
    for suffix, metadata in ("png", {}), ("svg", {"Date": None}):
        with atomic_path(path.with_name(f"{path.name}.{suffix}")) as temporary:
            figure.savefig(temporary, format=suffix, dpi=110, metadata=metadata)

