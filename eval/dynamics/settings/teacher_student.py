"""Settings of the probe teacher_student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..ranges import Within, refuse


@dataclass(frozen=True)
class Settings:
    """Time is steps/N. Rates and starts as in the public code, or within its range."""

    size: Annotated[int, Within("[100, 100000]")] = 1000  # N
    eta: Annotated[float, Within("[0.2, 1.5]")] = 1.0
    similarities: Annotated[int, Within("[11, 201]")] = 11  # values of V from 0 to 1
    runs: Annotated[int, Within("[2, 1000]")] = 24  # students of the ODE, each from its own draw at size N
    switch: Annotated[float, Within("[1, 2000]")] = 100.0
    time: Annotated[float, Within("[1, 2000]")] = 200.0  # after the switch; above early
    early: Annotated[float, Within("[1, 100]")] = 10.0  # when forgetting is early
    dt: Annotated[float, Within("[0.01, 0.4]")] = 0.2
    # when forgetting with an idle node is looked at
    idle: Annotated[tuple[float, ...], Within("[1, 2000]", "[2, 20]")] = (5.0, 20.0, 100.0, 400.0)
    map_points: Annotated[int, Within("[3, 30]")] = 6  # feature similarities, and as many readout similarities
    map_runs: Annotated[int, Within("[1, 100]")] = 8
    map_eta: Annotated[float, Within("[0.2, 1]")] = 0.6
    # units still alike, and each with its own feature
    map_switches: Annotated[tuple[float, float], Within("[10, 5000]")] = (100.0, 800.0)
    map_time: Annotated[float, Within("[1, 2000]")] = 200.0  # above early
    simulated_init: Annotated[float, Within("[0.05, 0.3]")] = 0.1
    simulated_switch: Annotated[float, Within("[1, 1000]")] = 20.0
    simulated_time: Annotated[float, Within("[1, 1000]")] = 20.0
    simulated_similarity: Annotated[float, Within("[0.3, 0.7]")] = 0.5  # V, but for two arms
    every: Annotated[int, Within("[1, 100000]")] = 500  # steps between records


TINY = Settings(size=250, runs=16, time=60.0, dt=0.4, idle=(5.0, 20.0), map_points=4, map_runs=4,
                map_switches=(50.0, 600.0), map_time=60.0, simulated_switch=12.0, simulated_time=12.0, every=125)


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together."""
    s = settings
    for name in ("time", "map_time"):
        refuse(getattr(s, name) <= s.early, name, getattr(s, name), f"choose more than early = {s.early:g}")
    refuse(s.eta * s.dt > 0.4, "dt", s.dt, f"steps of the ODE are too long; choose at most {0.4 / s.eta:.3g}")
    refuse(s.every > s.size * min(s.simulated_switch, s.simulated_time), "every", s.every,
           f"choose at most the steps of a task, {int(s.size * min(s.simulated_switch, s.simulated_time))}")
