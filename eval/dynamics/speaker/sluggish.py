"""What a context that lags behind the rounds does where audiences are interleaved: a sweep of the lag, in the game.

With Hebbian gating, as in continual.py, whose game and measures these are. A context of lag=0.1 is new by a tenth in
each round, so that it mixes up audiences that take turns; in blocks it does no harm (there `hebbian_gate+sluggish`).
Flesch et al. (2023) explain so why people learn worse where tasks are interleaved. Bar declared before the runs: .05 of
gap, mean of both audiences, against a fresh context. Sizes and rates are [stand-in].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from . import continual
from .measure import Finding


@dataclass(frozen=True)
class Settings(continual.Settings):
    """As the game of continual.py."""

    conditions: tuple[str, ...] = ("hebbian_gate interleaved", *(
        f"hebbian_gate+sluggish interleaved lag={share}" for share in (0.3, 0.1, 0.03)))


TINY = Settings(**vars(continual.TINY) | {
    "conditions": ("hebbian_gate interleaved", "hebbian_gate+sluggish interleaved lag=0.1")})


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement: every lag, seed by seed."""
    return continual.run(settings, seeds, folder)
