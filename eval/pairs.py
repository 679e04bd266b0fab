"""Every listener pair of configs/pairs, several seeds each: `scripts/run_pairs [PAIR ...] [--seeds 0 1 2]`.

A cell is one pair and one seed: the base speaker of that seed (made once for all pairs), the game, the evaluation on
the test split with the drift panel. It ends as one small file, eval/results/pairs/PAIR/seed_S.json, and is not run
again while that file is there; an interrupted one goes on from its checkpoint. eval/RESULTS.md is written anew from the
files after each.

    scripts/run_pairs colour_vs_grey --baselines                          also the speakers that train nothing
    scripts/run_pairs colour_vs_grey --seeds 0 --set game.kl_cost=0.02    a variant, with a row of its own
    scripts/run_pairs --ceilings                                          no games: what can be gained from each pair

To make a cell anew, delete its file (and its run's folder, to train anew).

Leaves out transfer to other images (eval/transfer.py), which takes the runs this leaves in runs/pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm

from dixit.common import (
    DixitError,
    atomic_write_text,
    command_line,
    git_commit,
    locked,
    read_json,
    run_main,
    write_json,
)
from dixit.config import Config, changed, load_config, to_dict
from dixit.data.images import fingerprint
from dixit.data.scenes import full_caption, oracle_caption
from dixit.models.clip import load_clip
from dixit.models.features import patch_features
from dixit.models.listeners import make_listeners, score_all
from dixit.training.candidates import draw_candidates
from dixit.training.game import gap, hits
from dixit.training.runs import LoadedRun, load_run
from eval.audiences import greedy
from eval.baselines import untrained_speakers
from eval.drift import panel, word_shift
from eval.evaluate import dataset_of, speak, weights_of
from eval.metrics import mean_and_error

ROOT = Path(__file__).parents[1]
PAIRS = sorted(path.stem for path in (ROOT / "configs" / "pairs").glob("*.yaml"))
QUICK = ["train.steps=15", "eval.images=80"]
DRIFT = ("faithful/words", "faithful/phrases", "rewritten/training/gap", "perplexity", "no_doubled_word")
HEARD = tuple(f"{group}/{what}" for group in ("training", "heldout") for what in ("accuracy/", "gap"))
ASKING = "contrastive decoding"  # among the speakers of a cell that was made with --baselines
LEARNABLE = 0.05  # a pair is learnable if the oracle's gap is so much wider than the base speaker's


def launch(config: str | Path, *overrides: str, threads: int) -> None:
    """Train in a process of its own; `config` is a path from configs/. Its output goes to the run's folder. Raises
    DixitError if it fails."""
    out = Path(next(word.removeprefix("out=") for word in overrides if word.startswith("out=")))
    out.mkdir(parents=True, exist_ok=True)
    words = [Path(sys.executable).parent / "accelerate", "launch", "--num_processes", "1", "--num_machines", "1",
             "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", threads,
             ROOT / "scripts" / "train.py", ROOT / "configs" / config, *overrides]
    with (out / "train.log").open("w") as log:
        done = subprocess.run(list(map(str, words)), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                              env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        raise DixitError(f"training {out} failed (exit code {done.returncode}); see the end of {out / 'train.log'}")


def base_speaker(runs: Path, seed: int, threads: int) -> Path:
    """The warm-started speaker of a seed, trained on first use."""
    words, base = runs / f"words_{seed}", runs / f"base_{seed}"
    with locked(runs / f"base_{seed}.lock"):
        if not (words / "train.json").is_file() and not (base / "train.json").is_file():
            launch("words_scenes.yaml", f"seed={seed}", f"out={words}", threads=threads)
        if not (base / "train.json").is_file():
            launch("caption_scenes.yaml", f"seed={seed}", f"out={base}", f"speaker.init={words}", threads=threads)
    return base


def path_of(pair: str) -> Path:
    return ROOT / "configs" / "pairs" / f"{pair}.yaml"


def finished(cell: Path, baselines: bool) -> bool:
    """Whether a cell is there, with the speakers that train nothing where they are asked for."""
    return cell.is_file() and (not baselines or ASKING in read_json(cell)["figures"])


def variant(pair: str, changes: list[str]) -> str:
    """The name of a pair's row in the table: a variant's says what was changed."""
    return "+".join([pair, *changes]).replace("/", "_")


def known(path: Path, run: LoadedRun, dataset: Dataset) -> list[str]:
    """The captions of a run's base speaker, which are the same for all pairs of a seed: kept in a file."""
    config = to_dict(run.config)
    key = {"speaker": config["speaker"], "training": read_json(Path(run.config.speaker.init) / "train.json"),
           "clip": config["clip"], "images": fingerprint(dataset)}
    found = read_json(path) if path.is_file() else {}
    if found.get("key") != key:
        assert run.base is not None
        found = {"key": key, "texts": greedy(run, run.base, patch_features(run.clip, dataset, "colour"), None)}
        write_json(path, found)
    return found["texts"]


def _trained_so(out: Path, wanted: Config) -> None:
    """Raises DixitError if a finished run was trained with other settings than its cell would name; runs may move."""
    other = {key.partition(".")[0]: None for key, *_ in changed(load_config(out / "config.yaml"), wanted)
             if key not in ("out", "speaker.init")}
    if other:
        raise DixitError(f"{out} was trained with another {', '.join(other)} than this cell names; move it away to "
                         "train anew")


def cell(path: Path, seed: int, runs: Path, threads: int, quick: bool, changes: list[str],
         baselines: bool) -> dict[str, Any]:
    """Train (or go on training) and evaluate one pair, a YAML file, with one seed."""
    pair = path.stem
    out = runs / f"{variant(pair, changes)}_{seed}"
    overrides = [f"seed={seed}", f"out={out}", *QUICK * quick, *changes]
    if (out / "train.json").is_file():
        _trained_so(out, load_config(path, overrides))
    else:
        launch(path, f"speaker.init={base_speaker(runs, seed, threads)}", *overrides, threads=threads)
    began = time.perf_counter()
    run = load_run(out)
    dataset = dataset_of(run, run.config.data, run.config.eval.split, run.config.eval.images)
    said = speak(run, dataset, known(runs / f"base_{seed}_said.json", run, dataset))
    if baselines:
        said |= untrained_speakers(run, dataset)
    drift, picks = panel(run, dataset, said)
    shift = word_shift(picks["base"]["texts"], picks["trained"]["texts"])
    rounds = [{"image": i, **{speaker: {"says": picks[speaker]["texts"][i], "found_by": [
        c.name for c, row in zip(run.config.listeners, picks[speaker]["pick"], strict=True) if row[i] == 0]}
        for speaker in ("base", "trained", "oracle") if speaker in picks}} for i in range(3)]
    training = read_json(out / "train.json")
    words = ["scripts/run_pairs", pair, "--seeds", str(seed), *["--quick"] * quick, *["--baselines"] * baselines,
             *(["--set", *changes] if changes else [])]
    return {"pair": variant(pair, changes), "seed": seed, "command": " ".join(words),
            "commit": {"training": training["commit"], "evaluation": git_commit()},
            "wall_seconds": {"training": training["wall_seconds"],
                             "evaluation": round(time.perf_counter() - began, 1)},
            "threads": threads, "steps": run.config.train.steps, "images": run.config.eval.images,
            "figures": drift["speakers"], "gained": shift[:8], "lost": shift[:-9:-1], "rounds": rounds}


def ceilings(speaker: Path, pairs: list[Path]) -> dict[str, Any]:
    """What each pair of listeners leaves to be gained, without a game: gaps of a base speaker, of ground-truth captions
    and of the pair's oracle, as training and held-out listeners hear them."""
    base = load_run(speaker)
    rows: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}  # the base speaker's, by the images
    configs = [load_config(path) for path in pairs]
    for clip, pretrained in sorted({(who.clip, who.pretrained) for config in configs
                                    for who in (*config.listeners, *config.heldout)}):
        load_clip(clip, pretrained)  # one that is missing is told before anything is computed
    for config in tqdm(configs, desc="ceilings", disable=None):
        dataset = dataset_of(base, config.data, "test", config.eval.images)
        images = fingerprint(dataset)
        if images not in texts:
            texts[images] = speak(base, dataset)["trained"]["texts"]
        records = [json.loads(record) for record in dataset["record"]]
        said = {"base": texts[images], "ground truth": [full_caption(r) for r in records],
                "oracle": [oracle_caption(r, frozenset(config.oracle)) for r in records]}
        pools = draw_candidates(np.arange(len(records)), np.arange(len(records)), config.game.candidates, "eval",
                                config.eval.seed)
        groups = {group: (make_listeners(who, dataset, base.speaker.device), weights_of(who))
                  for group, who in (("training", config.listeners), ("heldout", config.heldout)) if who}
        rows[config.name] = {"oracle names": list(config.oracle), **{
            f"{who}/{group}": mean_and_error(gap(hits(score_all(made, words, pools)).cpu(), weights))
            for group, (made, weights) in groups.items() for who, words in said.items()}}
    return {"command": command_line(), "commit": git_commit(), "seed": base.config.seed, "pairs": rows}


def over_seeds(cells: list[dict], speaker: str, key: str) -> dict[str, float] | None:
    """Mean over seeds of a figure, and its standard error over seeds and images.

    All seeds play on the same images, so that more seeds do not lessen the error from the images: its variance (the
    mean over seeds) is added to that of the seeds' mean.
    """
    found = [c["figures"].get(speaker, {}).get(key) for c in cells]
    if any(f is None for f in found):
        return None
    seeds = mean_and_error([f["mean"] for f in found])
    return seeds | {"se": math.hypot(seeds["se"], math.sqrt(sum(f["se"] ** 2 for f in found) / len(found)))}


def learnable(base: dict[str, float], oracle: dict[str, float]) -> bool:
    """Whether there is a game to be won."""
    return oracle["mean"] - base["mean"] >= LEARNABLE


def summary(pair: str, cells: list[dict]) -> dict[str, Any]:
    """What the table says of one pair."""
    def of(speaker: str, key: str) -> dict[str, float] | None:
        return over_seeds(cells, speaker, key)

    change, held = of("trained", "training/gap_over_base"), of("trained", "heldout/gap_over_base")
    base, ceiling = of("base", "training/gap"), of("oracle", "training/gap")
    row: dict[str, Any] = {"pair": pair, "seeds": len(cells), "change": change, "held": held, "base": base,
                           "trained": of("trained", "training/gap"), "ceiling": ceiling}
    held_base, held_ceiling = of("base", "heldout/gap"), of("oracle", "heldout/gap")
    row["oracle held"] = held_ceiling["mean"] - held_base["mean"] if held_base and held_ceiling else None
    significant = bool(change and change["mean"] > 1.96 * change["se"])
    kept = None
    if change and held and significant:  # the error of a ratio, as if the two were independent; they are not quite
        ratio = held["mean"] / change["mean"]
        kept = {"mean": ratio, "se": math.hypot(held["se"], ratio * change["se"]) / change["mean"]}
    for level in ("words", "phrases"):
        old, new = of("base", f"faithful/{level}"), of("trained", f"faithful/{level}")
        row[level] = new["mean"] / old["mean"] if old and new else None
    row |= {"learnable": learnable(base, ceiling) if base and ceiling else None, "significant": significant,
            "kept": kept}
    return row


def results_page(folder: Path) -> str:
    """eval/RESULTS.md from the cells in a folder."""
    found = {path.name: [read_json(cell) for cell in sorted(path.glob("seed_*.json"))]
             for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}
    rows = [summary(pair, cells) for pair, cells in found.items() if cells]

    def show(figure: dict[str, float] | None) -> str:
        return f"{figure['mean']:+.2f} ± {figure['se']:.2f}" if figure else ""

    def words(pairs: list) -> str:
        return ", ".join(f"{word} {z:+.1f}" for word, z, *_ in pairs if abs(z) > 2) or "none"

    head = ("| pair | seeds | base gap | trained gap | oracle gap | change | significant | held-out change | kept "
            "| oracle's held-out change | learnable | true words, trained / base | true phrases, trained / base |",
            "|---" * 13 + "|")
    yes = {None: "", True: "yes", False: "no"}

    def row_of(r: dict[str, Any]) -> str:
        kept = "" if r["kept"] is None else f"{100 * r['kept']['mean']:.0f} ± {100 * r['kept']['se']:.0f} %"
        true = ("" if r[level] is None else f"{r[level]:.2f}" for level in ("words", "phrases"))
        room = "" if r["oracle held"] is None else f"{r['oracle held']:+.2f}"
        return "| " + " | ".join([r["pair"], str(r["seeds"]), show(r["base"]), show(r["trained"]), show(r["ceiling"]),
                                  show(r["change"]), yes[r["significant"]], show(r["held"]), kept, room,
                                  yes[r["learnable"]], *true]) + " |"

    ceiling = read_json(folder / "ceilings.json")["pairs"] if (folder / "ceilings.json").is_file() else {}
    variants = [r for r in rows if "+" in r["pair"]]
    controls = [r for r in rows if r["pair"].startswith("control_") and r not in variants]
    pairs = [r for r in rows if r not in variants and r not in controls]
    lines = ["# Listener pairs", "",
             "Written by `scripts/run_pairs` from the cells in `eval/results/pairs`; each cell names its command, "
             "commits and seed. Test split, greedy captions, 10 candidates. The gap is the mean accuracy of listeners "
             "of positive weight minus that of the others. ± is one standard error over seeds and images; change is "
             "paired: same images, same candidates, trained minus base. A change is significant where it exceeds "
             f"1.96 errors. A pair is learnable where the oracle's gap is at least {LEARNABLE} above the base "
             "speaker's. Kept: the held-out listeners' change over the training listeners'. The oracle's held-out "
             "change is what there is to be gained with them: its gap minus the base speaker's. True words: the share "
             "of claimed attributes that are true of any object of the scene; true phrases: that of noun phrases whose "
             "attributes are all true of one object; both over the base speaker's share.", "", *head,
             *map(row_of, pairs)]
    if ceiling:
        lines += ["", "## Ceilings", "", "What there is to be gained, without a game (`scripts/run_pairs --ceilings`, "
                  "seed 0): the gap of the base speaker, of captions that name everything, and of the oracle, which "
                  "names only what is said in the last column.", "",
                  "| pair | base | ground truth | oracle | oracle, held-out | learnable | the oracle names |",
                  "|---" * 7 + "|"]
        lines += ["| " + " | ".join([
            name, show(c["base/training"]), show(c["ground truth/training"]), show(c["oracle/training"]),
            show(c.get("oracle/heldout")), yes[learnable(c["base/training"], c["oracle/training"])],
            ", ".join(c["oracle names"])]) + " |" for name, c in ceiling.items()]
    if controls:
        lines += ["", "## Controls", "", "Their rows judge by colour minus grey, as colour_vs_grey does (identical: by "
                  "the held-out listeners).", "", *head, *map(row_of, controls)]
    if variants:
        lines += ["", "## Variants", "", "One thing changed, mostly with one seed: a sketch, not a result.", "", *head,
                  *map(row_of, variants)]
    for r in (r for r in rows if r not in variants):
        cells = found[r["pair"]]
        first = cells[0]
        speakers = [name for name in first["figures"] if all(name in c["figures"] for c in cells)]
        lines += ["", f"## {r['pair']}", "",
                  f"`scripts/run_pairs {r['pair']}{' --baselines' * (ASKING in speakers)}` "
                  f"(`configs/pairs/{r['pair']}.yaml`), seeds {', '.join(str(c['seed']) for c in cells)}; "
                  f"{first['steps']} steps, {first['images']} images", "",
                  "| | " + " | ".join(speakers) + " |", "|---" * (len(speakers) + 1) + "|"]
        keys = [key for key in first["figures"]["base"] if key.startswith(HEARD)]
        for key in (*keys, *DRIFT):
            figures = [over_seeds(cells, speaker, key) for speaker in speakers]
            if any(figures):
                lines.append(f"| {key} | " + " | ".join(map(show, figures)) + " |")
        if ASKING in speakers:
            lines += ["", f"Best of 8 and {ASKING} train nothing: they ask the listeners about each image."]
        lines += ["", f"Words gained (log-odds z, seed {first['seed']}): {words(first['gained'])}. Lost: "
                  f"{words(first['lost'])}.", ""]
        for turn in first["rounds"]:
            said = [f"{speaker} “{turn[speaker]['says']}” → {', '.join(turn[speaker]['found_by']) or 'nobody'}"
                    for speaker in ("base", "trained", "oracle") if speaker in turn]
            lines.append(f"- image {turn['image']}: {'; '.join(said)}")
    others = [(path, read_json(path).get("command")) for name in ("transfer", "audiences", "tournament")
              for path in sorted((folder.parent / name).glob("*.json"))]
    if others:
        lines += ["", "## Other figures", "", "Made from the runs in `runs/` by these commands; the README says how "
                  "these were trained and what they show.", ""]
        lines += [f"- [{path.stem}](results/{path.parent.name}/{path.name}): `{command}`" for path, command in others]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/run_pairs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", nargs="*", help=f"default: all of {', '.join(PAIRS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side; the cores are shared out")
    parser.add_argument("--quick", action="store_true", help="few steps and images, kept apart in runs/pairs_quick")
    parser.add_argument("--runs", type=Path, help="where runs are kept (default runs/pairs)")
    parser.add_argument("--baselines", action="store_true", help="also best of N samples and contrastive decoding")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a variant: change the config")
    parser.add_argument("--ceilings", action="store_true", help="what can be gained from each pair; trains no game")
    parser.add_argument("--page-only", action="store_true", help="write the page from the cells there are")
    arguments = parser.parse_args()
    for name in arguments.pair:
        if name not in PAIRS:
            raise DixitError(f"unknown pair '{name}'; choose from {', '.join(PAIRS)}")
    runs = arguments.runs or Path("runs/pairs_quick" if arguments.quick else "runs/pairs")
    results = runs / "results" if arguments.quick else ROOT / "eval" / "results" / "pairs"
    page = runs / "RESULTS.md" if arguments.quick else ROOT / "eval" / "RESULTS.md"
    if arguments.ceilings:
        write_json(results / "ceilings.json", ceilings(
            base_speaker(runs, 0, torch.get_num_threads()), [path_of(pair) for pair in PAIRS]))
    tasks = [] if arguments.page_only or arguments.ceilings else [
        (pair, seed) for pair in arguments.pair or PAIRS for seed in arguments.seeds
        if not finished(results / variant(pair, arguments.set) / f"seed_{seed}.json", arguments.baselines)]

    def apart(task: tuple[str, int]) -> int:
        """A cell in a process of its own."""
        words = [sys.executable, "-m", "eval.pairs", task[0], "--seeds", str(task[1]), "--runs", str(runs),
                 *["--quick"] * arguments.quick, *["--baselines"] * arguments.baselines,
                 *(["--set", *arguments.set] if arguments.set else [])]
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        return subprocess.run(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}).returncode

    if len(tasks) > 1:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            failed = [task for task, code in zip(tasks, pool.map(apart, tasks), strict=True) if code]
        if failed:
            raise DixitError(f"{len(failed)} of {len(tasks)} cells failed (see above), the first {failed[0]}; run the "
                             "same command again to go on")
    elif tasks:
        (pair, seed), = tasks
        write_json(results / variant(pair, arguments.set) / f"seed_{seed}.json",
                   cell(path_of(pair), seed, runs, torch.get_num_threads(), arguments.quick, arguments.set,
                        arguments.baselines))
        print(f"{pair}, seed {seed}: done", flush=True)
    atomic_write_text(page, results_page(results))
    print(f"written to {page}")


if __name__ == "__main__":
    run_main(main)
