"""Settings of the probe ocs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dixit.data.assets import asset

from ..ranges import OneOf, Within, refuse


@dataclass(frozen=True)
class Settings:
    """All [stand-in]. Time is lr * step and the loss has a factor 1/2N, which sets its unit."""

    hidden: Annotated[int, Within("[8, 1000]")] = 32  # at least the tree's eight modes
    # correlation of inputs without bias; 0 is always there
    rhos: Annotated[tuple[float, ...], Within("[0, 0.9]", "[0, 20]")] = (0.0, 0.1, 0.3, 0.6)
    depths: Annotated[tuple[int, ...], Within("[2, 6]", "[0, 5]")] = (2, 3, 4)  # weight matrices; 2 is always there
    lr: Annotated[float, Within("[0.0001, 0.05]")] = 0.02
    steps: Annotated[int, Within("[1, 1000000]")] = 6000  # depth 2
    deep_lr: Annotated[float, Within("[0.0001, 0.05]")] = 0.01
    deep_steps: Annotated[int, Within("[1, 1000000]")] = 8000
    every: Annotated[int, Within("[1, 10000]")] = 20  # steps between records; at most one unit of time
    mode_init: Annotated[float, Within("[1e-6, 0.01]")] = 1e-3  # of each mode of an aligned network
    init: Annotated[float, Within("[1e-5, 0.003]")] = 1e-3  # standard deviation of random weights, depth 2
    deep_init: Annotated[float, Within("[0.1, 0.6]")] = 0.5  # the same times sqrt(fan-in), deeper
    images: Annotated[tuple[str, ...], OneOf(("mnist", "cifar10"))] = ("mnist", "cifar10")
    per_class: Annotated[int, Within("[4, 5000]")] = 32  # images; eight classes
    batch: Annotated[int, Within("[1, 40000]")] = 32  # at most all images
    channels: Annotated[int, Within("[1, 256]")] = 8
    gain: Annotated[float, Within("[0.01, 0.2]")] = 0.1  # standard deviation of a CNN's weights times sqrt(fan-in)
    image_lr: Annotated[float, Within("[0.001, 0.2]")] = 0.1
    image_steps: Annotated[int, Within("[1, 1000000]")] = 1500
    image_every: Annotated[int, Within("[1, 10000]")] = 10


TINY = Settings(hidden=16, rhos=(0.0, 0.3), depths=(2,), steps=2000, images=())


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together, and if images are missing."""
    s = settings
    refuse(s.every * max(s.lr, s.deep_lr) > 1, "every", s.every,
           f"records are more than one unit of time apart; choose at most {int(1 / max(s.lr, s.deep_lr))}")
    refuse(bool(s.images) and s.batch > 8 * s.per_class, "batch", s.batch,
           f"choose at most the number of images, 8 per_class = {8 * s.per_class}")
    for name in s.images:
        asset(name)


def all_rhos(settings: Settings) -> list[float]:
    """The correlations of inputs, with 0 among them."""
    return sorted({0.0, *settings.rhos})
