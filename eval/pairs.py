"""Train and evaluate the listener pairs of configs/pairs and configs/pictures: `scripts/run_pairs [PAIR ...]`.

A cell is one pair and one seed: the base speaker of that seed (trained once for all pairs), the game, and the
evaluation on the test split with the drift panel. Its figures are written to eval/results/pairs.csv, its command,
config hash and commits to eval/results/cells.csv, example captions to eval/results/examples.json, and eval/RESULTS.md
is generated from these tables after each cell. A cell is run again only if its config has changed; an interrupted one
continues from its checkpoint.

    scripts/run_pairs colour_vs_grey --baselines                          also the baselines that need no training
    scripts/run_pairs colour_vs_grey --seeds 0 --set game.kl_cost=0.02    a variant, in a row of its own
    scripts/run_pairs --ceilings                                          no games: what can be gained from each pair

Leaves out transfer to other images (eval/transfer.py, which takes the runs in runs/pairs) and the page (eval/pages.py).
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.pairs)

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dixit.common import (
    DixitError,
    atomic_write_text,
    command_line,
    git_commit,
    locked,
    read_json,
)
from dixit.config import Config, changed, configs_folder, load_config, refuse_doubled, settings_hash
from dixit.data.images import fingerprint
from dixit.data.scenes import full_caption, oracle_caption
from dixit.models.listeners import score_all
from dixit.training.candidates import draw_candidates
from dixit.training.game import gap, hits
from dixit.training.runs import load_run, make_listeners, open_models

from .baselines import untrained_speakers
from .commands import ON_PICTURES, ON_SCENES, PAIRS
from .drift import panel, word_shift
from .evaluate import dataset_of, generate_captions, weights_of
from .metrics import mean_and_error
from .pages import DRIFT, OF_PICTURES, SPILL_OVER, UNTRAINED, results_page
from .tables import RESULTS, Cell, find, find_cell, put, read_rows, rows_of

QUICK = ["train.steps=15", "eval.images=80"]
WRITTEN = ("ground truth", "oracle")  # captions that are the same for every seed
GAPS = re.compile(r"(training|heldout)/(accuracy/.+|gap|gap_over_base|bits|scoring_rounds)")
OF_VARIANTS = re.compile(r"(training|heldout)/(gap|gap_over_base)|training/accuracy/.+|faithful/.+")


@dataclass(frozen=True)
class CellResult:
    """The result of one cell: the figures of each speaker, and words and captions as examples."""

    cell: Cell
    figures: dict[str, dict[str, Any]]
    examples: dict[str, Any]


def launch(config: str | Path, *overrides: str, threads: int) -> None:
    """Train in a subprocess whose output goes to the run's folder; `config` is a path relative to configs/. Raises
    DixitError if it fails."""
    out = Path(next(word.removeprefix("out=") for word in overrides if word.startswith("out=")))
    out.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "dixit", "train", configs_folder() / config, *overrides]
    with (out / "train.log").open("w") as log:
        process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=subprocess.STDOUT,
                                   env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        with _signals_passed_on([process]):
            code = process.wait()
    if code:
        raise DixitError(f"training {out} failed (exit code {code}); see the end of {out / 'train.log'}")


@contextmanager
def _signals_passed_on(processes: list[subprocess.Popen]) -> Iterator[None]:
    """Pass a signal that ends this command on to the processes it waits for, and wait until they have saved."""
    try:
        yield
    except KeyboardInterrupt as stop:
        for process in processes:
            if process.poll() is None:
                process.send_signal(getattr(stop, "number", signal.SIGINT))
        for process in processes:
            process.wait()
        raise


def base_speaker(runs: Path, seed: int, threads: int, pictures: bool = False) -> Path:
    """The warm-started speaker of a seed, of scenes or of pictures, trained on first use."""
    mark = "pictures_" if pictures else ""
    words, base = runs / f"words_{mark}{seed}", runs / f"base_{mark}{seed}"
    with locked(runs / f"base_{mark}{seed}.lock"):
        if (base / "train.json").is_file():
            return base
        if not (words / "train.json").is_file():
            launch("pictures/words.yaml" if pictures else "words_scenes.yaml", f"seed={seed}", f"out={words}",
                   threads=threads)
        launch("pictures/base.yaml" if pictures else "caption_scenes.yaml", f"seed={seed}", f"out={base}",
               f"speaker.init={words}", threads=threads)
    return base


def path_of(pair: str) -> Path:
    return configs_folder() / ("pictures" if pair in ON_PICTURES else "pairs") / f"{pair}.yaml"


def reason_to_run(condition: str, seed: int, config_hash: str, baselines: bool, folder: Path) -> str:
    """Why a cell must be run: it is missing, its config has changed, or baselines are missing; "" if it is done."""
    cell = find_cell("pairs", condition, str(seed), folder)
    if cell is None:
        return "not made yet"
    if cell.config_hash != config_hash:
        return f"its config has changed since {cell.commit}"
    rows = find(read_rows(folder / "pairs.csv"), condition=condition, seed=str(seed))
    if baselines and not find(rows, speaker=UNTRAINED[1]):
        return f"made without --baselines at {cell.commit}"
    return ""


def variant_name(pair: str, changes: list[str]) -> str:
    """The name of a pair's condition in the table; a variant's name includes its changes."""
    return "+".join([pair, *changes]).replace("/", "_")


def _check_settings(out: Path, wanted: Config) -> None:
    """Raise DixitError if a finished run was trained with other settings than its cell's. Its folder may differ."""
    other = {key.partition(".")[0]: None for key, *_ in changed(load_config(out / "config.yaml"), wanted)
             if key not in ("out", "speaker.init")}
    if other:
        raise DixitError(f"{out} was trained with another {', '.join(other)} than this cell names; move it away to "
                         "train anew")


def run_cell(path: Path, seed: int, runs: Path, threads: int, quick: bool, changes: list[str],
             baselines: bool) -> CellResult:
    """Train (or continue training) and evaluate one pair, a YAML file, with one seed."""
    pair = path.stem
    out = runs / f"{variant_name(pair, changes)}_{seed}"
    overrides = overrides_of(seed, quick, changes)
    config = load_config(path, [*overrides, f"out={out}"])
    if (out / "train.json").is_file():
        _check_settings(out, config)
    else:
        base = base_speaker(runs, seed, threads, path.parent.name == "pictures")
        launch(path, f"speaker.init={base}", f"out={out}", *overrides, threads=threads)
    began = time.perf_counter()
    run = load_run(out)
    dataset = dataset_of(run.config, run.config.eval.split, run.config.eval.images)
    captions = generate_captions(run, dataset)
    if baselines:
        captions |= untrained_speakers(run, dataset)
    drift, picks = panel(run, dataset, captions)
    shift = word_shift(picks["base"]["texts"], picks["trained"]["texts"])
    rounds = [{speaker: {"caption": picks[speaker]["texts"][i], "found_by": [
        c.name for c, row in zip(run.config.listeners, picks[speaker]["pick"], strict=True) if row[i] == 0]}
        for speaker in ("base", "trained", "oracle") if speaker in picks} for i in range(3)]
    training = read_json(out / "train.json")
    words = ["scripts/run_pairs", pair, "--seeds", str(seed), *["--quick"] * quick, *["--baselines"] * baselines,
             *(["--set", *changes] if changes else [])]
    cell = Cell("pairs", variant_name(pair, changes), str(seed), " ".join(words), settings_hash(config), git_commit(),
                training["commit"], round(training["wall_seconds"] + time.perf_counter() - began, 1),
                f"{config.train.steps} steps, {config.eval.images} images")
    return CellResult(cell, drift["speakers"], {
        "seed": cell.seed, "gained": [[word, float(f"{z:.6g}")] for word, z, *_ in shift[:8]],
        "lost": [[word, float(f"{z:.6g}")] for word, z, *_ in shift[:-9:-1]], "rounds": rounds})


def overrides_of(seed: int, quick: bool, changes: list[str]) -> list[str]:
    """The overrides of a pair's YAML file for one cell."""
    return [f"seed={seed}", *QUICK * quick, *changes]


def is_kept(speaker: str, figure: str, is_variant: bool) -> bool:
    """Whether a figure of the drift panel is kept; the others are in the run's own folder only if eval.drift is run."""
    if is_variant:
        return speaker != "ground truth" and bool(OF_VARIANTS.fullmatch(figure))
    if GAPS.fullmatch(figure) or figure in (*DRIFT, *OF_PICTURES, *SPILL_OVER):
        return True
    return speaker not in WRITTEN and figure == "most_repeated"


def keep(result: CellResult, folder: Path) -> None:
    """Write a cell's rows to the tables and its examples to examples.json.

    Ground-truth and oracle captions are the same for every seed, so their rows are written once, under seed "". For a
    variant fewer figures and no examples are written.
    """
    cell, is_variant = result.cell, "+" in result.cell.condition
    for part, speakers in ((cell, [s for s in result.figures if s not in WRITTEN]),
                           (replace(cell, seed=""), [s for s in result.figures if s in WRITTEN])):
        put(part, [row for speaker in speakers for row in rows_of(part, speaker, {
            figure: value for figure, value in result.figures[speaker].items()
            if is_kept(speaker, figure, is_variant)})], folder)
    if not is_variant:
        with locked(folder / ".examples.lock"):
            path = folder / "examples.json"
            found = read_json(path) if path.is_file() else {}
            if int(cell.seed) <= int(found.get(cell.condition, result.examples)["seed"]):  # those of the first seed
                found[cell.condition] = result.examples
            lines = (f"{json.dumps(pair)}: {json.dumps(found[pair], ensure_ascii=False)}" for pair in sorted(found))
            atomic_write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def ceilings(speaker: Path, pairs: list[Path], folder: Path) -> None:
    """Measure what can be gained from each pair, without a game: the gaps of a base speaker, of ground-truth captions
    and of the pair's oracle, with training and held-out listeners. Written to ceilings.csv; the note of a cell lists
    what the oracle names."""
    base = load_run(speaker)
    texts: dict[str, list[str]] = {}  # the base speaker's captions, by the fingerprint of the images
    configs = [load_config(path) for path in pairs]
    # Each is opened once; a missing one raises before anything is computed.
    opened = [[open_models(who, base.speaker.device) for who in (config.listeners, config.heldout)]
              for config in configs]
    for config, models in zip(tqdm(configs, desc="ceilings", disable=None), opened, strict=True):
        dataset = dataset_of(config, "test", config.eval.images)
        images = fingerprint(dataset)
        if images not in texts:
            texts[images] = generate_captions(base, dataset)["trained"]["texts"]
        records = [json.loads(record) for record in dataset["record"]]
        captions = {"base": texts[images], "ground truth": [full_caption(r) for r in records],
                    "oracle": [oracle_caption(r, frozenset(config.oracle)) for r in records]}
        pools = draw_candidates(np.arange(len(records)), np.arange(len(records)), config.game.candidates, "eval",
                                config.eval.seed)
        groups = {group: (make_listeners(who, dataset, base.speaker.device, own), weights_of(who)) for group, who, own
                  in zip(("training", "heldout"), (config.listeners, config.heldout), models, strict=True) if who}
        cell = Cell("ceilings", config.name, str(base.config.seed), command_line(), settings_hash(config),
                    git_commit(), read_json(speaker / "train.json")["commit"], note=", ".join(config.oracle))
        put(cell, [row for name, words in captions.items() for row in rows_of(cell, name, {
            f"{group}/gap": mean_and_error(gap(hits(score_all(listeners, words, pools)).cpu(), weights))
            for group, (listeners, weights) in groups.items()})], folder)


def main(arguments: Namespace) -> None:
    for name in arguments.pair:
        if name not in PAIRS:
            raise DixitError(f"unknown pair '{name}'; choose from {', '.join(PAIRS)}")
    refuse_doubled(arguments.set)
    if arguments.jobs < 1:
        raise DixitError(f"--jobs is {arguments.jobs}; choose at least 1")
    runs = arguments.runs or Path("runs/pairs_quick" if arguments.quick else "runs/pairs")
    results = runs / "results" if arguments.quick else RESULTS
    page = results.parent / "RESULTS.md"
    if arguments.ceilings:
        ceilings(base_speaker(runs, 0, torch.get_num_threads()), [path_of(pair) for pair in ON_SCENES], results)
    tasks: dict[tuple[str, int], str] = {}  # the cells to make, and why
    if not arguments.page_only and not arguments.ceilings:
        for pair, seed in itertools.product(arguments.pair or PAIRS, arguments.seeds):
            config = load_config(path_of(pair), overrides_of(seed, arguments.quick, arguments.set))
            why = reason_to_run(variant_name(pair, arguments.set), seed, settings_hash(config), arguments.baselines,
                                results)
            if why:
                tasks[pair, seed] = why

    running: list[subprocess.Popen] = []

    def run_in_subprocess(task: tuple[str, int]) -> int:
        """Run a cell in a subprocess."""
        words = [sys.executable, "-m", f"{__package__}.pairs", task[0], "--seeds", str(task[1]), "--runs", str(runs),
                 *["--quick"] * arguments.quick, *["--baselines"] * arguments.baselines,
                 *(["--set", *arguments.set] if arguments.set else [])]
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        running.append(subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": str(threads)}))
        return running[-1].wait()

    if len(tasks) > 1:
        pool = ThreadPoolExecutor(arguments.jobs)
        try:
            with _signals_passed_on(running):
                failed = [task for task, code in zip(tasks, pool.map(run_in_subprocess, tasks), strict=True) if code]
        finally:
            pool.shutdown(cancel_futures=True)
        if failed:
            raise DixitError(f"{len(failed)} of {len(tasks)} cells failed (see above), the first {failed[0]}; run the "
                             "same command again to continue")
    elif tasks:
        ((pair, seed), why), = tasks.items()
        print(f"{variant_name(pair, arguments.set)}, seed {seed}: {why}", flush=True)
        keep(run_cell(path_of(pair), seed, runs, torch.get_num_threads(), arguments.quick, arguments.set,
                  arguments.baselines), results)
        print(f"{variant_name(pair, arguments.set)}, seed {seed}: done", flush=True)
    atomic_write_text(page, results_page(results))
    print(f"written to {page}")
