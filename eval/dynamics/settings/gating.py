"""Settings of the probe gating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..ranges import Within, refuse


@dataclass(frozen=True)
class Settings:
    """The paper's values, except for the trees. Learning rates are those of each `Condition`."""

    runs: Annotated[int, Within("[1, 1000]")] = 4  # networks of each seed and condition
    hidden: Annotated[int, Within("[50, 1000]")] = 100
    init: Annotated[float, Within("[0.005, 0.02]")] = 0.01  # standard deviation of first weights
    bias: Annotated[float, Within("[0.05, 0.2]")] = 0.1  # of hidden units, not trained
    long: Annotated[int, Within("[4, 2000]")] = 200  # passes over the stimuli of each task; a multiple of 4
    short: Annotated[int, Within("[4, 100]")] = 8  # people had 8
    # of sluggish task units, short; `fitted` is among them
    alphas: Annotated[tuple[float, ...], Within("[0.05, 1]", "[1, 50]")] = (
        0.05, 0.15, 0.3, 0.41, 0.57, 0.8)
    long_alphas: Annotated[tuple[float, ...], Within("[0.05, 1]", "[1, 50]")] = (0.05, 0.15, 0.3, 0.6)
    fitted: Annotated[float, Within("(0, 1]")] = 0.57  # the alpha that the authors fitted to people
    tree_runs: Annotated[int, Within("[0, 1000]")] = 1  # networks of each seed and condition on trees; 0: no trees
    trees: Annotated[int, Within("[1, 1000]")] = 50  # passes over each task, each with its own 25 trees
    tree_tests: Annotated[int, Within("[1, 100]")] = 4  # other sets of 25 trees
    tree_reward: Annotated[float, Within("[5, 50]")] = 25.0  # of one level


TINY = Settings(runs=3, long=100, alphas=(0.05, 0.57, 0.8), long_alphas=(0.05,), tree_runs=0)


def check(settings: Settings) -> None:
    """Raises DixitError for settings that do not go together."""
    s = settings
    refuse(s.fitted not in s.alphas, "fitted", s.fitted, f"choose one of alphas, {list(s.alphas)}")
    for name, alphas in (("alphas", s.alphas), ("long_alphas", s.long_alphas)):
        refuse(len({f"{alpha:g}" for alpha in alphas}) < len(alphas), name, alphas, "two are alike to six digits")
    refuse(s.long % 4 != 0, "long", s.long, "four records are made: choose a multiple of 4")
