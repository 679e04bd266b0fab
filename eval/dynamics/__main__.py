"""Learning dynamics, theory over simulation: `python -m eval.dynamics NAME [--seeds K] [--set key=value ...]`.

    python -m eval.dynamics                       the probes there are
    python -m eval.dynamics NAME | all            run: a table, FOLDER/NAME/results.json, NAME.png and NAME.svg
    python -m eval.dynamics NAME --on speaker     measure the same on the real speaker: FOLDER/speaker/NAME/...
    python -m eval.dynamics report [FOLDER ...]   keep finished runs in eval/results/dynamics; write eval/DYNAMICS.md
                                                  (a folder NAME_ANYTHING is kept beside NAME, not in its place)

Many processes share the networks: `accelerate launch -m eval.dynamics NAME --seeds 64`.
Exit code 1 if a claim fails, 2 on bad input. A probe is any module of this package with `Settings` and `run`
(see probe.py), a measurement on the speaker any module of eval.dynamics.speaker (see measure.py); none is listed
here. Findings on the speaker pass or fail nothing. Leaves out what a probe does.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import pkgutil
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from accelerate import PartialState

import eval.dynamics as package
import eval.dynamics.speaker as speaker_package
from dixit.common import (
    DixitError,
    atomic_path,
    atomic_write_text,
    command_line,
    git_commit,
    peak_memory_gb,
    read_json,
    run_main,
    write_json,
)
from dixit.config import build, read_tree, to_dict
from eval.dynamics.probe import save_figure, table
from eval.dynamics.speaker import measure

EVAL = Path(__file__).resolve().parents[1]


def probe_names(on: str = "") -> list[str]:
    """The modules of this package, or of eval.dynamics.speaker, but for the frame."""
    path = speaker_package.__path__ if on else package.__path__
    frame = ("__main__", "probe", "measure")
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.ispkg and m.name not in frame)


def find_probe(name: str, on: str = "") -> ModuleType:
    """The probe of that name. Raises DixitError, with the nearest name, if there is none."""
    names = probe_names(on)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise DixitError(f"there is no probe '{name}'{' on the speaker' if on else ''}; did you mean '{near}'? "
                         f"(of {', '.join(names)}; or all, report)")
    return importlib.import_module(f"eval.dynamics.{on + '.' if on else ''}{name}")


def run_probe(name: str, seeds: int, folder: Path, config: Path | None = None, overrides: tuple[str, ...] = (),
              on: str = "") -> dict[str, Any]:
    """Run one probe, or a measurement on the speaker, and write results and figures into `folder`; returns the
    results, with "claims" or "findings"."""
    probe = find_probe(name, on)
    settings = build(probe.Settings, read_tree(config, overrides))
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


def report(runs: list[Path], place: Path = EVAL) -> None:
    """Take finished runs over into PLACE/results/dynamics (those on the speaker into its folder speaker) and write
    PLACE/DYNAMICS.md from all that is there. A run whose folder is called NAME_ANYTHING is a variant of probe NAME."""
    kept = place / "results" / "dynamics"
    for run in runs:
        results = read_json(run / "results.json")
        probe = results["probe"]
        to = kept / "speaker" if "findings" in results else kept
        name = run.name if run.name.startswith(f"{probe}_") else probe
        write_json(to / f"{name}.json", results)
        with atomic_path(to / f"{name}.png") as temporary:
            shutil.copyfile(run / f"{probe}.png", temporary)
    text = ("# Learning dynamics\n\nTheory over simulation, from one run each; written by `python -m eval.dynamics "
            "report` from\n`eval/results/dynamics`. Of curves and of several seeds the worst entry is shown. A section "
            "\"On the speaker\" measures\nthe same on the real one, where no theory passes or fails.\n")
    for name in sorted({path.stem for path in [*kept.glob("*.json"), *kept.glob("speaker/*.json")]}):
        text += f"\n## {name}\n"
        for on, alt in ("", "simulation broad and pale, theory dashed"), ("speaker", "on the speaker"):
            path = kept / on / f"{name}.json"
            if path.is_file():
                results = read_json(path)
                about = (f"A variant of {results['probe']}." if name != results["probe"]
                         else (find_probe(name, on).__doc__ or "").strip())
                shown = measure.table(results["findings"]) if on else table(results["claims"])
                text += (f"{_title(on)}\n{about}\n\n{_how(results)}\n\n{shown}\n\n"
                         f"![{name}: {alt}]({path.relative_to(place).with_suffix('.png').as_posix()})\n")
    atomic_write_text(place / "DYNAMICS.md", text)
    print(f"written to {place / 'DYNAMICS.md'}")


def _title(on: str) -> str:
    return "\n### On the speaker\n" if on else ""


def _how(results: dict[str, Any]) -> str:
    """How a probe was run."""
    settings = ", ".join(f"{k} {v}" for k, v in results["settings"].items())
    return (f"`{results['command']}` ({len(results['seeds'])} seeds, "
            f"{results['wall_seconds']} s wall, {results['cpu_seconds']} s CPU, commit {results['commit']})\n\n"
            f"Settings: {settings}.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="a probe, all, or report")
    parser.add_argument("run", nargs="*", type=Path, help="report: folders of finished runs")
    parser.add_argument("--on", choices=["speaker"], default="", help="measure on the real speaker, no theory")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--config", type=Path, help="a YAML file of settings, e.g. configs/dynamics/ocs_paper.yaml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--out", type=Path, default=Path("runs/dynamics"), help="where results go: OUT/NAME")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name in probe_names(arguments.on):
            print(f"{name:14} {(find_probe(name, arguments.on).__doc__ or '').splitlines()[0]}")
        return 0
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
    PartialState().destroy_process_group()
    return int(not all(claim["holds"] for result in results for claim in result.get("claims", [])))


if __name__ == "__main__":
    run_main(main)
