"""Settings of the probe curricula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dixit.data.assets import asset

from ..ranges import OneOf, Within, refuse


@dataclass(frozen=True)
class Settings:
    """All [stand-in]. On the mixture time is steps / d: both layers learn at the rate 1 / d."""

    dimensions: Annotated[tuple[int, ...], Within("[32, 100000]", "[1, 10]")] = (64, 256, 1024)  # ODE against SGD
    hidden: Annotated[int, Within("[1, 16]")] = 4
    noise: Annotated[float, Within("[0.1, 0.5]")] = 0.3
    overlap: Annotated[float, Within("[0.1, 0.7]")] = 0.5  # of a warm start: size of every w mu
    time: Annotated[float, Within("[0.1, 20]")] = 10.0
    ode_runs: Annotated[int, Within("[1, 1000]")] = 8  # per seed, from one start
    points: Annotated[int, Within("[256, 1048576]")] = 4096  # for the averages of the ODE; a power of 2
    dimension: Annotated[int, Within("[16, 10000]")] = 64  # lottery and curricula
    runs: Annotated[int, Within("[2, 10000]")] = 48  # per seed, each from its own start
    lottery_widths: Annotated[tuple[int, ...], Within("[4, 1000]", "[1, 20]")] = (4, 6, 8, 12, 16)
    lottery_noises: Annotated[tuple[float, ...], Within("[0.001, 1]", "[1, 10]")] = (0.02, 0.1)
    lottery_time: Annotated[float, Within("[1, 10000]")] = 100.0
    widths: Annotated[tuple[int, ...], Within("[1, 1000]", "[1, 20]")] = (4, 8, 32)
    easy: Annotated[float, Within("[0, 1]")] = 0.1
    # Settings of the curricula: noise of hard samples, time.
    hard: Annotated[tuple[tuple[float, float], ...], Within("(0, 1000]", "[0, 30]")] = (
        (0.5, 20.0), (0.7, 10.0), (0.7, 20.0), (0.7, 40.0), (1.0, 20.0))
    test: Annotated[int, Within("[16, 100000]")] = 256  # samples of each cluster
    images: Annotated[tuple[str, ...], OneOf(("mnist", "cifar10"))] = ("mnist", "cifar10")
    per_class: Annotated[int, Within("[5, 5000]")] = 1250  # images; eight classes; a fifth of them are for testing
    image_runs: Annotated[int, Within("[2, 1000]")] = 8  # per seed
    image_widths: Annotated[tuple[int, ...], Within("[1, 2000]", "[1, 20]")] = (4, 16, 64)
    image_noise: Annotated[float, Within("(0, 10]")] = 1.0  # of hard images, in deviations of a pixel
    image_lr: Annotated[float, Within("[0.0001, 0.2]")] = 0.05
    batch: Annotated[int, Within("[1, 10000]")] = 16
    image_steps: Annotated[int, Within("[2, 1000000]")] = 1000


TINY = Settings(dimensions=(128,), time=5.0, ode_runs=64, dimension=32, runs=64, lottery_widths=(4, 8),
                lottery_noises=(0.02,), widths=(4, 8), hard=((0.7, 10.0),), test=64, images=())


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together, and if images are missing."""
    s = settings
    refuse(s.points & (s.points - 1) != 0, "points", s.points, "choose a power of 2, which Sobol points need")
    refuse(len(set(s.hard)) < len(s.hard) or any(time * s.dimension < 4 for _, time in s.hard), "hard", s.hard,
           f"name each once, with times of at least 4 / dimension = {4 / s.dimension:g}")
    for name in s.images:
        asset(name)
