"""One table from several runs: `python -m eval.seeds NAME RUN [RUN ...]` writes eval/results/NAME.json and .md.

Means over runs (seeds) with standard errors over runs, and what they say about the claims of listener subtraction.
Each run must have been through eval.evaluate.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dixit.common import DixitError, atomic_write_text, read_json, run_main, write_json
from eval.evaluate import table
from eval.metrics import mean_and_error


def mean_of(figure: dict[str, float] | float) -> float:
    """The mean of a figure with an error, or the figure itself."""
    return figure["mean"] if isinstance(figure, dict) else figure


def combine(results: list[dict[str, Any]]) -> dict[str, dict]:
    """speaker -> figure -> mean and standard error over runs."""
    speakers = [s for s in results[0]["figures"] if all(s in r["figures"] for r in results)]
    return {s: {k: mean_and_error([mean_of(r["figures"][s][k]) for r in results]) for k in results[0]["figures"][s]}
            for s in speakers}


def claims(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """claim -> mean and standard error over runs, the bound, and whether the mean keeps it.

    Only where every run has a base speaker, an oracle and held-out listeners.
    """
    found: dict[tuple[str, str, float], list[float]] = {}
    for figures in (r["figures"] for r in results):
        if not {"base", "trained", "oracle"} <= figures.keys() or "heldout/gap" not in figures["trained"]:
            return {}
        base, trained, oracle = ({k: mean_of(v) for k, v in figures[name].items()}
                                 for name in ("base", "trained", "oracle"))
        first = next(k for k in trained if k.startswith("training/accuracy/"))
        gain = trained["training/gap"] - base["training/gap"]
        for key, value in {
            ("share of the oracle's gap", ">=", 0.70): trained["training/gap"] / oracle["training/gap"],
            ("gap above the base speaker's", ">=", 0.20): gain,
            (f"{first} above the base speaker's", ">=", -0.10): trained[first] - base[first],
            ("held-out gain over training gain", ">=", 0.50): (trained["heldout/gap"] - base["heldout/gap"]) / gain,
            ("perplexity over the base speaker's", "<=", 2.0): trained["perplexity"] / base["perplexity"],
            ("share of images with the commonest caption", "<=", 0.20): trained["most_repeated"],
        }.items():
            found.setdefault(key, []).append(value)
    rows: dict[str, dict[str, Any]] = {}
    for (claim, sign, bound), values in found.items():
        figure = mean_and_error(values)
        holds = figure["mean"] >= bound if sign == ">=" else figure["mean"] <= bound
        rows[claim] = {**figure, "bound": f"{sign} {bound:g}", "holds": holds}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="what to call the table")
    parser.add_argument("run", nargs="+", type=Path, help="runs that differ in their seed only")
    arguments = parser.parse_args()
    results = [read_json(run / "results.json") for run in arguments.run]
    seeds = [r["seeds"]["run"] for r in results]
    if len(set(seeds)) < len(seeds):
        raise DixitError(f"two of these runs have the same seed {seeds}; train each with its own seed=...")
    figures, verdicts = combine(results), claims(results)
    runs = [{k: r[k] for k in ("command", "config_hash", "commit", "seeds", "wall_seconds", "peak_memory_gb",
                               "training")} for r in results]
    note = f"Mean ± standard error over {len(runs)} runs, seeds {', '.join(map(str, seeds))}."
    text = f"# {arguments.name}\n\n{note}\n\n{table(figures)}\n"
    if verdicts:
        text += "\n| claim | measured | bound | holds |\n|---|---|---|---|\n" + "".join(
            f"| {claim} | {v['mean']:.2f} ± {v['se']:.2f} | {v['bound']} | {'yes' if v['holds'] else 'no'} |\n"
            for claim, v in verdicts.items())
    folder = Path(__file__).parent / "results"
    write_json(folder / f"{arguments.name}.json", {"runs": runs, "claims": verdicts, "figures": figures})
    atomic_write_text(folder / f"{arguments.name}.md", text)
    print(text)


if __name__ == "__main__":
    run_main(main)
