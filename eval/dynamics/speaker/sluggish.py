"""Sluggish audience codes with interleaved audiences: a sweep of the lag, in the game.

With Hebbian gating; game and measures are those of continual.py. A code of lag=0.1 is an exponential moving average
with weight 0.1 for the current round, so that it mixes up interleaved audiences; in blocks it does no harm (condition
`hebbian_gate+sluggish` of continual.py). This is how Flesch et al. (2023) explain why people learn interleaved tasks
worse. Bar declared before the runs: .05 of gap, mean of both audiences, against a code without lag. Sizes and rates are
[stand-in].
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
