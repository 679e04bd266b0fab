"""Settings of the probe maslow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dixit.data.assets import asset

from ..networks.mixtures import ImageSettings
from ..ranges import Within, refuse


@dataclass(frozen=True)
class Settings(ImageSettings):
    """All [stand-in], but for the first of the pairs. Time is steps / N."""

    dormant: Annotated[float, Within("[0.001, 0.1]")] = 0.05  # size of the idle unit: |w_2|/sqrt(N) and its new head
    eta: Annotated[float, Within("[0.1, 1]")] = 0.5
    time: Annotated[float, Within("[1, 1000]")] = 150.0
    dt: Annotated[float, Within("[0.01, 2]")] = 0.5
    similarities: Annotated[int, Within("[11, 201]")] = 21  # V from 0 to 1
    dormancies: Annotated[tuple[float, ...], Within("[1e-8, 0.3]", "[1, 30]")] = (
        1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.2)
    sweep_eta: Annotated[float, Within("[0.1, 0.5]")] = 0.3
    sweep_time: Annotated[float, Within("[1, 2000]")] = 200.0
    sweep_dt: Annotated[float, Within("[0.01, 5]")] = 2.0
    sweep_similarities: Annotated[int, Within("[11, 201]")] = 41
    inputs: Annotated[int, Within("[50, 10000]")] = 200  # of students trained by SGD
    sgd_eta: Annotated[float, Within("[0.1, 1.5]")] = 1.0
    sgd_time: Annotated[float, Within("[1, 100]")] = 20.0
    sgd_similarities: Annotated[tuple[float, ...], Within("[0, 1]", "[1, 30]")] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    # Classes of task 1 and of what it is mixed with: the paper's and three more; and those with the least |V| at m = 0.
    pairs: Annotated[tuple[tuple[int, int, int, int], ...], Within("[0, 9]", "[0, 100]")] = (
        (0, 5, 2, 7), (1, 8, 3, 5), (6, 9, 0, 4), (2, 3, 7, 8))
    unlike: Annotated[tuple[tuple[int, int, int, int], ...], Within("[0, 9]", "[0, 100]")] = (
        (0, 4, 6, 7), (0, 2, 5, 7), (3, 7, 5, 9))
    official_pairs: Annotated[int, Within("[0, 100]")] = 1  # how many of `pairs` in the official manner
    runs: Annotated[int, Within("[4, 1000]")] = 4  # per seed; the peak is chosen on half of them


TINY = Settings(sweep_dt=4.0, sgd_time=16.0, sgd_similarities=(0.0, 0.5, 1.0), pairs=(), unlike=())


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together, and if the images are missing."""
    s, pairs = settings, (*settings.pairs, *settings.unlike)
    for name, step, most in (("dt", max(s.eta, s.sgd_eta / 2) * s.dt, 0.5),
                             ("sweep_dt", s.sweep_eta * s.sweep_dt, 1.25)):
        refuse(step > most, name, getattr(s, name),
               f"steps of the ODE are too long; choose at most {getattr(s, name) * most / step:.3g}")
    for name in ("pairs", "unlike"):
        chosen = getattr(settings, name)
        refuse(any(len(set(pair)) < 4 for pair in chosen), name, chosen, "choose four different classes each")
    refuse(len(set(pairs)) < len(pairs), "pairs", pairs, "name each pair once, here or among unlike")
    refuse(settings.mixtures[-1] != 1, "mixtures", settings.mixtures, "end with 1, which is task 1")
    if pairs:
        asset("fashion-mnist")
