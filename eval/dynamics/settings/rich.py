"""Settings of the probe rich."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..ranges import Within, refuse


@dataclass(frozen=True)
class Settings:
    """Time is lr * step of the smallest step size; the loss of linear networks is half the summed square."""

    deltas: Annotated[tuple[float, ...], Within("[-6, 6]", "[1, 30]")] = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
    # target (.5, .5), three starts
    corner_deltas: Annotated[tuple[float, ...], Within("[-6, 6]", "[1, 30]")] = (-2.0, -1.0, -0.2, 0.02, 0.2, 1.0, 2.0)
    dimensions: Annotated[int, Within("[2, 10]")] = 5  # of the random starts [stand-in]
    # eta_a, eta_w of unequal layers [stand-in]
    paces: Annotated[tuple[float, float], Within("[0.2, 3]", rising=False)] = (0.3, 2.0)
    bias_speed: Annotated[float, Within("[1, 8]")] = 4.0  # rate of the networks with many solutions, over lr
    wide: Annotated[int, Within("[1, 6]")] = 3  # inputs, hidden units and outputs of wide networks [stand-in]
    wide_deltas: Annotated[tuple[float, ...], Within("[-4, 4]", "[1, 30]")] = (-2.0, -0.5, 0.0, 0.5, 2.0)  # [stand-in]
    lr: Annotated[float, Within("[0.0001, 0.002]")] = 1e-3
    steps: Annotated[int, Within("[4, 1000000]")] = 20000  # a multiple of 4 every
    every: Annotated[int, Within("[1, 1000]")] = 40  # steps between records
    inputs: Annotated[int, Within("[20, 1000]")] = 100  # teacher and student
    hidden: Annotated[int, Within("[10, 1000]")] = 50  # an even number
    teacher: Annotated[int, Within("[2, 20]")] = 3  # units; with one, or with readouts of one sign, the order collapses
    points: Annotated[int, Within("[100, 10000]")] = 1000
    test_points: Annotated[int, Within("[100, 100000]")] = 10000
    tau: Annotated[float, Within("[0.05, 2]")] = 0.1
    # downstream, balanced, upstream
    student_deltas: Annotated[tuple[float, float, float], Within("[-2, 2]")] = (-1.0, 0.0, 1.0)
    student_lr: Annotated[float, Within("[0.0005, 0.01]")] = 5e-3  # over tau^2
    early: Annotated[int, Within("[1, 100000]")] = 100  # the step of the comparison of features; the grid's last one
    late: Annotated[int, Within("[1, 1000000]")] = 1000  # the step of that of test errors; a multiple of early
    student_steps: Annotated[int, Within("[1, 1000000]")] = 1000  # at least late; the paper goes to 1e5
    # [stand-in]; the paper has 17 from 0.1 to 2, and 17 deltas
    grid_taus: Annotated[tuple[float, ...], Within("[0.05, 3]", "[1, 30]")] = (0.1, 0.21, 0.45, 0.94, 2.0)
    grid_deltas: Annotated[tuple[float, ...], Within("[-2, 2]", "[1, 30]")] = (-1.0, -0.5, 0.0, 0.5, 1.0)  # [stand-in]


TINY = Settings(deltas=(-1.0, 0.0, 2.0), corner_deltas=(-0.2, 0.02), dimensions=3, bias_speed=8.0, wide=2,
                wide_deltas=(-0.5, 0.0, 2.0), steps=4000, hidden=20, test_points=1000, late=500,
                student_steps=500, grid_taus=(0.1,), grid_deltas=(-1.0, 1.0))


# Rate times curvature; steps diverge at 2. The tangent kernel of hidden units, each on for half of the inputs, is about
# (a^2 + |w|^2)/4 = sqrt(delta^2 + 4 tau^4)/4 of the inputs' own, whose largest second moment is about
# (1 + sqrt(inputs/points))^2 / inputs (Marchenko and Pastur); the loss has no factor 1/2.
MOST = 1.6


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together."""
    s = settings
    refuse(s.steps % (4 * s.every) != 0, "steps", s.steps,
           f"three step sizes are compared: choose a multiple of 4 every = {4 * s.every}")
    refuse(s.hidden % 2 == 1, "hidden", s.hidden, "the second half mirrors the first: choose an even number")
    refuse(s.late % s.early != 0 or s.late == s.early, "late", s.late,
           f"choose a multiple of early = {s.early}, {2 * s.early} or more")
    refuse(s.late > s.student_steps, "student_steps", s.student_steps, f"choose at least late = {s.late}")
    widest = max(s.hidden * np.hypot(delta / tau ** 2, 2) for tau, delta in
                 [*((s.tau, d) for d in s.student_deltas), *((t, d) for t in s.grid_taus for d in s.grid_deltas)])
    steps = s.student_lr * widest / 2 * (1 + np.sqrt(s.inputs / s.points)) ** 2 / s.inputs
    refuse(bool(steps > MOST), "student_lr", s.student_lr,
           f"steps of students of this width, tau and delta are unstable; at most {s.student_lr * MOST / steps:.3g}")
    down, even, up = s.student_deltas
    refuse(not down < even < up or even != 0, "student_deltas", s.student_deltas,
           "choose one below 0, 0, and one above 0")
