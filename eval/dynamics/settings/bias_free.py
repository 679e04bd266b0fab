"""Settings of the probe bias_free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..ranges import Within, refuse


@dataclass(frozen=True)
class Settings:
    """All [stand-in]. Time is lr * step."""

    dimensions: Annotated[int, Within("[2, 20]")] = 5
    points: Annotated[int, Within("[8, 10000]")] = 100  # and their negatives; at least 4 a dimension
    wiggle: Annotated[float, Within("[0.2, 0.5]")] = 0.3  # y = w x + wiggle sin(2 w x)
    slopes: Annotated[tuple[float, ...], Within("[0, 0.9]", "[1, 20]")] = (0.0, 0.2, 0.5)  # of leaky ReLU; 0 is ReLU
    hidden: Annotated[int, Within("[2, 1000]")] = 20  # of aligned networks
    start: Annotated[float, Within("[0.001, 0.3]")] = 1e-2  # norm of each layer of an aligned network along the target
    other_start: Annotated[float, Within("[0.001, 1]")] = 0.3  # the same along another direction
    lr: Annotated[float, Within("[0.0001, 0.05]")] = 0.01
    steps: Annotated[int, Within("[1, 1000000]")] = 2000
    every: Annotated[int, Within("[1, 10000]")] = 10  # steps between records
    depths: Annotated[tuple[int, ...], Within("[3, 6]", "[0, 4]")] = (3, 4)
    deep_start: Annotated[float, Within("[0.001, 0.3]")] = 1e-2  # w of an aligned deep network
    widths: Annotated[tuple[int, ...], Within("[2, 2000]", "[1, 20]")] = (20, 100)  # of networks with random weights
    init: Annotated[float, Within("[1e-6, 0.002]")] = 1e-4  # standard deviation of their weights
    random_lr: Annotated[float, Within("[0.0001, 0.1]")] = 0.05
    random_steps: Annotated[int, Within("[1, 1000000]")] = 800
    # of weights of ordinary size and of three layers: standard deviation times sqrt(fan-in)
    gain: Annotated[float, Within("[0.2, 1]")] = 0.5
    shift: Annotated[float, Within("[0.5, 1.5]")] = 0.7  # mean of the asymmetric inputs, whose target is |w x|


TINY = Settings(points=40, slopes=(0.0, 0.5), hidden=8, start=0.1, steps=800, depths=(3,), deep_start=0.05,
                widths=(8, 60), init=1e-3, random_steps=500)


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together."""
    s = settings
    refuse(s.points < 4 * s.dimensions, "points", s.points, f"choose at least 4 dimensions = {4 * s.dimensions}")
    spacing = s.every * max(s.lr, s.random_lr)
    refuse(spacing > 2, "every", s.every, f"records are more than two units of time apart; choose at most "
                                          f"{int(2 / max(s.lr, s.random_lr))}")
