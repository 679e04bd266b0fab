"""Summarise several runs of the default experiment: `python -m eval.seeds CONDITION RUN [RUN ...]`.

Writes to eval/results/default.csv the figures of each run (seed) and, for several, the mean over runs with its standard
error and the claims of listener subtraction; prints both. Each run must have been evaluated by eval.evaluate before.
`scripts/run_pairs --page-only` then includes them in eval/RESULTS.md.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.seeds)

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from dixit.common import DixitError, command_line, git_commit, read_json

from .evaluate import table
from .metrics import mean_and_error
from .tables import RESULTS, Cell, put, rows_of

KEPT = re.compile(r"(training|heldout)/(accuracy/.+|gap|gap_over_base|reward)|recall@1|perplexity|length|most_repeated"
                  r"|says/.+|kl_to_base")  # of the figures of eval.evaluate
# claim -> the bound that the mean over seeds must meet
BOUNDS = {"share of the oracle's gap": (">=", 0.70),
          "gap above the base speaker's": (">=", 0.20),
          "first listener's accuracy above the base speaker's": (">=", -0.10),
          "held-out gain over training gain": (">=", 0.50),
          "perplexity over the base speaker's": ("<=", 2.0),
          "share of images with the commonest caption": ("<=", 0.20)}


def mean_of(figure: dict[str, float] | float | int) -> float:
    """The mean of a figure with an error, or the figure itself."""
    return float(figure["mean"] if isinstance(figure, dict) else figure)


def combine(results: list[dict[str, Any]]) -> dict[str, dict]:
    """speaker -> figure -> mean and standard error over runs."""
    speakers = [s for s in results[0]["figures"] if all(s in r["figures"] for r in results)]
    return {s: {k: mean_and_error([mean_of(r["figures"][s][k]) for r in results]) for k in results[0]["figures"][s]}
            for s in speakers}


def claims(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """claim -> mean and standard error over runs; BOUNDS has the bounds.

    Empty unless every run has a base speaker, an oracle and held-out listeners.
    """
    found: dict[str, list[float]] = {claim: [] for claim in BOUNDS}
    for figures in (r["figures"] for r in results):
        if not {"base", "trained", "oracle"} <= figures.keys() or "heldout/gap" not in figures["trained"]:
            return {}
        base, trained, oracle = ({k: mean_of(v) for k, v in figures[name].items()}
                                 for name in ("base", "trained", "oracle"))
        first = next(k for k in trained if k.startswith("training/accuracy/"))
        gain = trained["training/gap"] - base["training/gap"]
        for claim, value in zip(BOUNDS, (
                trained["training/gap"] / oracle["training/gap"], gain, trained[first] - base[first],
                (trained["heldout/gap"] - base["heldout/gap"]) / gain, trained["perplexity"] / base["perplexity"],
                trained["most_repeated"]), strict=True):
            found[claim].append(value)
    return {claim: mean_and_error(values) for claim, values in found.items()}


def holds(claim: str, mean: float) -> bool:
    """Whether a mean meets the bound of a claim."""
    sign, bound = BOUNDS[claim]
    return mean >= bound if sign == ">=" else mean <= bound


def claims_table(measured: dict[str, dict[str, float]]) -> str:
    """A Markdown table: a row per claim."""
    lines = ["| claim | measured | bound | holds |", "|---|---|---|---|"]
    lines += [f"| {claim} | {figure['mean']:.2f} ± {figure['se']:.2f} | {BOUNDS[claim][0]} {BOUNDS[claim][1]:g} | "
              f"{'yes' if holds(claim, figure['mean']) else 'no'} |" for claim, figure in measured.items()]
    return "\n".join(lines)


def keep(condition: str, results: list[dict[str, Any]], folder: Path = RESULTS) -> None:
    """Write the runs' results.json to the table of the default experiment: each run, then the mean over runs."""
    def selected(figures: dict[str, Any]) -> dict[str, Any]:
        return {name: figure for name, figure in figures.items() if KEPT.fullmatch(name)}

    seeds = [str(r["seeds"]["run"]) for r in results]
    for seed, r in zip(seeds, results, strict=True):
        training = r["training"] or {}
        note = f"trained in {training['wall_seconds']} s by `{training['command']}`" if training else ""
        cell = Cell("default", condition, seed, r["command"], r["config_hash"], r["commit"],
                    training.get("commit", ""), r["wall_seconds"], note)
        put(cell, [row for speaker, figures in r["figures"].items()
                   for row in rows_of(cell, speaker, selected(figures))],
            folder)
    if len(results) > 1:
        cell = Cell("default", condition, " ".join(seeds), command_line(), "", git_commit())
        put(cell, [row for speaker, figures in combine(results).items()
                   for row in rows_of(cell, speaker, selected(figures))] + rows_of(cell, "", claims(results)), folder)


def main(arguments: Namespace) -> None:
    results = [read_json(run / "results.json") for run in arguments.run]
    seeds = [r["seeds"]["run"] for r in results]
    if len(set(seeds)) < len(seeds):
        raise DixitError(f"two of these runs have the same seed {seeds}; train each with its own seed=...")
    keep(arguments.condition, results)
    measured = claims(results)
    print(f"mean ± standard error over {len(results)} runs, seeds {', '.join(map(str, seeds))}\n\n"
          f"{table(combine(results))}\n")
    if measured:
        print(claims_table(measured))
    print(f"\nkept in {RESULTS / 'default.csv'}; scripts/run_pairs --page-only shows it in eval/RESULTS.md")
