"""One table from several runs: `python -m eval.seeds NAME RUN [RUN ...]` writes eval/results/NAME.json and .md.

Means over runs (seeds) with standard errors over runs; each run must have been through eval.evaluate.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dixit.common import DixitError, atomic_write_text, read_json, run_main, write_json
from eval.evaluate import table
from eval.metrics import mean_and_error


def combine(results: list[dict[str, Any]]) -> dict[str, dict]:
    """speaker -> figure -> mean and standard error over runs."""
    speakers = [s for s in results[0]["figures"] if all(s in r["figures"] for r in results)]
    return {s: {k: mean_and_error([r["figures"][s][k]["mean"] if isinstance(v, dict) else r["figures"][s][k]
                                   for r in results])
                for k, v in results[0]["figures"][s].items()} for s in speakers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="what to call the table")
    parser.add_argument("run", nargs="+", type=Path, help="runs that differ in their seed only")
    arguments = parser.parse_args()
    results = [read_json(run / "results.json") for run in arguments.run]
    seeds = [r["seeds"]["run"] for r in results]
    if len(set(seeds)) < len(seeds):
        raise DixitError(f"two of these runs have the same seed {seeds}; train each with its own seed=...")
    figures = combine(results)
    runs = [{k: r[k] for k in ("command", "config_hash", "commit", "seeds", "wall_seconds", "peak_memory_gb",
                               "training")} for r in results]
    folder = Path(__file__).parent / "results"
    write_json(folder / f"{arguments.name}.json", {"runs": runs, "figures": figures})
    note = f"Mean ± standard error over {len(runs)} runs, seeds {', '.join(map(str, seeds))}."
    atomic_write_text(folder / f"{arguments.name}.md", f"# {arguments.name}\n\n{note}\n\n{table(figures)}\n")
    print(table(figures))


if __name__ == "__main__":
    run_main(main)
