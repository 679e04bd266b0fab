"""Run probes and measurements, and write their results and pages.

Leaves out the command line (__main__.py), which imports this module after the arguments have been parsed.
"""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState

from dixit.common import DixitError, atomic_write_text, command_line, git_commit, peak_memory_gb, write_json
from dixit.config import build, read_tree, refuse_doubled, to_dict
from dixit.config_checks import is_inside
from dixit.training.launcher import keep_process_group

from .find import find_probe, probe_names
from .pages import keep, pages
from .probe import save_figure, table
from .speaker import measure

ROOT = Path(__file__).resolve().parents[2]


def run_probe(name: str, seeds: int, folder: Path, config: Path | None = None, overrides: tuple[str, ...] = (),
              on: str = "") -> dict[str, Any]:
    """Run one probe, or a measurement on the speaker, and write results and figures into `folder`; returns the
    results, with "claims" or "findings"."""
    probe = find_probe(name, on)
    settings = build(probe.Settings, read_tree(config, overrides))
    check_settings(settings)
    if seeds < 1:
        raise DixitError(f"--seeds {seeds} must be at least 1")
    began, began_cpu = time.perf_counter(), time.process_time()
    rows, figure = probe.run(settings, seeds, folder)
    kind, text = ("findings", measure.table) if on else ("claims", table)
    results = {
        "probe": name, "command": command_line(), "commit": git_commit(),
        "seeds": list(range(seeds)), "wall_seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - began_cpu, 1), "peak_memory_gb": round(peak_memory_gb(), 2),
        "processes": PartialState().num_processes, "settings": to_dict(settings),
        kind: [row.row() for row in rows]}
    if PartialState().is_main_process:
        write_json(folder / "results.json", results)
        save_figure(figure, folder / name)
        print(f"\n{name}: {seeds} seeds, {results['wall_seconds']} s\n\n{text(results[kind])}\n\n"
              f"written to {folder}", flush=True)
    return results


def check_settings(settings: Any) -> None:
    """Raises DixitError for a number that has not the sign of its default, which no probe is made for."""
    for field in fields(settings):
        value, default = (x if isinstance(x, tuple) else (x,) for x in (getattr(settings, field.name), field.default))
        numbers = [x for x in default if isinstance(x, int | float) and not isinstance(x, bool)]
        if not numbers or min(numbers) < 0:
            continue
        whole = all(isinstance(x, int) for x in numbers)
        interval = "[1, 1000000000]" if whole and min(numbers) > 0 else "[0, 1000000000]"
        for x in value:
            if not is_inside(x, interval):
                raise DixitError(f"config: {field.name} is {x}; choose a number in {interval}")


def report(runs: list[Path], root: Path = ROOT) -> None:
    """Add finished runs to the tables of ROOT/eval/results, and generate all pages from these tables."""
    for run in runs:
        keep(run, root)
    for path, text in pages(root).items():
        atomic_write_text(root / path, text)
        print(f"written to {root / path}")


def main(arguments: Namespace) -> int:
    """Do what the command line asks for; returns the exit code."""
    if arguments.name is None:
        for name in probe_names(arguments.on):
            print(f"{name:16}{(find_probe(name, arguments.on).__doc__ or '').splitlines()[0]}")
        return 0
    refuse_doubled(arguments.set)
    if arguments.name == "report":
        report(arguments.run)
        return 0
    if arguments.run:
        raise DixitError(f"'{arguments.run[0]}' is not understood; settings are changed by --set key=value")
    if arguments.name == "all" and (arguments.config or arguments.set):
        raise DixitError("--config and --set are for one probe, not for all")
    names = probe_names(arguments.on) if arguments.name == "all" else [arguments.name]
    results = [run_probe(name, arguments.seeds, arguments.out / arguments.on / name, arguments.config,
                         tuple(arguments.set), arguments.on) for name in names]
    keep_process_group()
    PartialState().destroy_process_group()
    return int(not all(claim["holds"] for result in results for claim in result.get("claims", [])))
