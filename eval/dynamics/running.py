"""Run probes and measurements, and write their results and pages.

Leaves out the command line (__main__.py), which imports this module after the arguments have been parsed.
"""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

from accelerate import PartialState

from dixit.common import DixitError, atomic_write_text, command_line, git_commit, peak_memory_gb, salted, write_json
from dixit.config import build, read_tree, refuse_doubled, to_dict
from dixit.training.launcher import keep_process_group

from .find import find_probe, probe_names
from .pages import keep, pages
from .probe import save_figure, table
from .ranges import check_settings
from .speaker import measure

ROOT = Path(__file__).resolve().parents[2]


def run_probe(name: str, seeds: int, folder: Path, config: Path | None = None, overrides: tuple[str, ...] = (),
              on: str = "", salt: str = "") -> dict[str, Any]:
    """Run one probe, or a measurement on the speaker, and write results and figures into `folder`; returns the
    results, with "claims" or "findings". With a salt every random draw of a probe is another one."""
    probe = find_probe(name, on)
    settings = checked(probe, read_tree(config, overrides))
    if seeds < 1:
        raise DixitError(f"--seeds {seeds} must be at least 1")
    if salt and on:
        raise DixitError("--salt is for probes; measurements on the speaker begin with its trained runs")
    began, began_cpu = time.perf_counter(), time.process_time()
    with salted(salt):
        rows, figure = probe.run(settings, seeds, folder)
    kind, text = ("findings", measure.table) if on else ("claims", table)
    results = {
        "probe": name, "command": command_line(), "commit": git_commit(),
        "seeds": list(range(seeds)), "salt": salt, "wall_seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - began_cpu, 1), "peak_memory_gb": round(peak_memory_gb(), 2),
        "processes": PartialState().num_processes, "settings": to_dict(settings),
        kind: [row.row() for row in rows]}
    if PartialState().is_main_process:
        write_json(folder / "results.json", results)
        print(f"\n{name}: {seeds} seeds, {results['wall_seconds']} s\n\n{text(results[kind])}\n", flush=True)
        save_figure(figure, folder / name)
        print(f"written to {folder}", flush=True)
    return results


def checked(probe: ModuleType, tree: dict[str, Any]) -> Any:
    """The settings of a probe; raises DixitError if they are out of range or do not go together."""
    settings = build(probe.Settings, tree)
    check_settings(settings)
    if hasattr(probe, "check"):
        probe.check(settings)
    return settings


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
    for name in names if arguments.name == "all" else ():
        checked(find_probe(name, arguments.on), {})  # what is missing is told before anything is computed
    results = [run_probe(name, arguments.seeds, arguments.out / arguments.on / name, arguments.config,
                         tuple(arguments.set), arguments.on, arguments.salt) for name in names]
    keep_process_group()
    PartialState().destroy_process_group()
    return int(not all(claim["holds"] for result in results for claim in result.get("claims", [])))
