"""Zero-shot transfer: `python -m eval.transfer RUN [RUN ...] [--data stamps emoji folder:PATH] [eval.images=200]`.

Evaluates a speaker with the same listeners on images it was never trained on: photo stamps, emoji (test concepts),
CIFAR-10 (test), scenes with held-out combinations, or any folder of images. Accuracies and gap with 95 % intervals
(bootstrap over images), with random and hard candidates, pools of 2 to 100, and by category. Several RUNs are seeds of
one experiment; values are averaged over them for each image. Writes transfer.json, transfer_captions.json and
transfer.png and prints a table at 10 candidates; `--keep CONDITION` also adds rows to eval/results/transfer.csv.
`--baselines` adds the speakers that query the listeners and need no training (eval/baselines.py).

Where the run's CLIP names things, a second table says what the captions are made of: true names, invented colours and
so on (eval/picture_metrics.py).

`trained_minus_this` is the trained speaker's gap minus that of the row's speaker, paired: same images, same pools. It
is significant where its interval excludes 0; no correction is made for multiple comparisons. Intervals are over images,
not over seeds; the mean of each seed is given beside them as `runs`.

Leaves out figures that evaluate.py measures on the run's own data only: rewards, perplexity, word classes.

Shapes: R runs, L listeners, n images (a caption for each), r pools per image, C candidates.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.transfer)

import dataclasses
import itertools
import json
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from dixit.common import DixitError, atomic_path, read_json
from dixit.config import ListenerConfig, config_hash
from dixit.data.assets import asset
from dixit.data.images import open_data
from dixit.data.sources import EVALUATION_SETS
from dixit.models.listeners import ClipListener, score_all
from dixit.training import game
from dixit.training.candidates import draw_candidates, draw_hard_candidates, nearest_images
from dixit.training.runs import LoadedRun, load_run, make_listeners

from . import metrics
from .baselines import untrained_speakers
from .evaluate import generate_captions, write_results
from .figures import save_small_png
from .picture_metrics import caption_figures, without_colours
from .tables import RESULTS, Cell, Row, put, rows_of

KINDS = ("random", "hard")
SIZES = (2, 4, 10, 32, 100)
SMALLEST = 5  # images in a category that gets a row
BLOCK = 50  # captions scored at a time, each against all images
Rows = dict[tuple[str, ...], Float[Tensor, "R n"]]


def categories(name: str, dataset: Dataset) -> list[str]:
    """A category for each image: a stamp's top folder, an emoji's group, else its concept ("" for scenes)."""
    concepts = list(dataset["concept"])
    if name not in ("stamps", "emoji"):
        return concepts
    labels = json.loads((asset(name) / "labels.json").read_text(encoding="utf-8"))
    if name == "emoji":
        group = {item["label"]: item["group"] for item in labels}
        return [group[concept] for concept in concepts]
    # Two captions occur in two folders each; such an image counts in the later one.
    folder = {item["caption"]: item["category"].split("/")[0] for item in labels}
    return [folder[row[0]] for row in dataset["captions"]]


def draw_pools(embeddings: Float[Tensor, "n E"], pools: int, seed: int) -> dict[str, Int[Tensor, "n r C"]]:
    """For each kind and size, e.g. "random/10": independent pools for each image, the image itself at index 0.

    Hard pools of C are drawn from the 2 (C - 1) nearest images. Sizes larger than the data set are left out.
    """
    everyone = np.arange(len(embeddings))
    drawn: dict[str, Int[Tensor, "n r C"]] = {}
    for size in (s for s in SIZES if s <= len(everyone)):
        near = nearest_images(embeddings, 2 * (size - 1))
        drawn[f"random/{size}"] = torch.stack([
            draw_candidates(everyone, everyone, size, "transfer", seed, i) for i in range(pools)], dim=1)
        drawn[f"hard/{size}"] = torch.stack([
            draw_hard_candidates(everyone, near, size, "transfer hard", seed, i) for i in range(pools)], dim=1)
    return drawn


def accuracies(listeners: list, texts: list[str],
               pools: dict[str, Int[Tensor, "n r C"]]) -> dict[str, Float[Tensor, "L n"]]:
    """How often each listener finds each image, averaged over the image's pools.

    A listener scores each candidate independently, so every caption is scored against all images once and each pool is
    gathered from these scores. Memory grows with BLOCK times n.
    """
    everyone = torch.arange(len(texts))
    parts: dict[str, list[Tensor]] = {key: [] for key in pools}
    for start in range(0, len(texts), BLOCK):
        some = texts[start:start + BLOCK]
        logits = score_all(listeners, some, everyone.expand(len(some), -1)).cpu()  # (L, B, n)
        for key, pool in pools.items():
            places = pool[start:start + BLOCK].flatten(1).expand(len(listeners), -1, -1)  # (L, B, r*C)
            rounds = logits.gather(2, places).unflatten(2, pool.shape[1:])  # (L, B, r, C)
            parts[key].append(game.hits(rounds.flatten(1, 2)).unflatten(1, rounds.shape[1:3]).mean(2))
    return {key: torch.cat(part, dim=1) for key, part in parts.items()}


def common_speakers(captions: list[dict[str, list[str]]]) -> list[str]:
    """The speakers that every run has captions of."""
    return [name for name in captions[0] if all(name in one for one in captions)]


@torch.no_grad()
def measure(captions: list[dict[str, list[str]]], dataset: Dataset, groups: dict[str, tuple[ListenerConfig, ...]],
            pools: int, seed: int, device: str | torch.device = "cpu") -> Rows:
    """(pool, speaker, figure) -> a value for each run and image.

    `captions` holds for each run: speaker -> one caption per image. Speakers that are missing in some run are left out.
    `groups` are "training" listeners and, where there are any, "heldout" ones. Pools are the same for all; hard ones
    are the nearest images by the embeddings of the first training listener.
    """
    listeners = {group: make_listeners(configs, dataset, device) for group, configs in groups.items()}
    first = listeners["training"][0]
    if not isinstance(first, ClipListener):
        raise DixitError("the first listener must be of kind clip: its images say which pools are hard")
    drawn = draw_pools(first.images.cpu(), pools, seed)
    speakers = common_speakers(captions)
    rows: Rows = {}
    for name, group in tqdm(list(itertools.product(speakers, listeners)), desc="scoring", disable=None):
        weights = torch.tensor([c.weight for c in groups[group]])
        runs = [accuracies(listeners[group], one[name], drawn) for one in captions]
        for pool in drawn:
            hits = torch.stack([found[pool] for found in runs], dim=1)  # (L, R, n)
            for listener, values in zip(groups[group], hits, strict=True):
                rows[pool, name, f"{group}/accuracy/{listener.name}"] = values
            rows[pool, name, f"{group}/gap"] = game.gap(hits, weights)
    for pool, name, group in itertools.product(drawn, (s for s in speakers if s != "trained"), listeners):
        rows[pool, name, f"{group}/trained_minus_this"] = (
            rows[pool, "trained", f"{group}/gap"] - rows[pool, name, f"{group}/gap"])
    return rows


def summarise(rows: Rows, seed: int) -> dict[str, Any]:
    """The rows as a tree of figures: mean, 95 % interval and number of images; with several runs each one's mean.

    `significant` marks a difference whose interval excludes 0.
    """
    intervals = metrics.bootstrap(torch.stack([values.mean(0) for values in rows.values()]), seed).T.tolist()
    tree: dict[str, Any] = {}
    for (path, values), (low, high) in zip(rows.items(), intervals, strict=True):
        figure = {"mean": float(values.double().mean()), "low": low, "high": high, "n": values.shape[1]}
        if path[-1].endswith("_minus_this"):
            figure["significant"] = low > 0 or high < 0
        if len(values) > 1:
            means = values.double().mean(1)
            figure |= {"runs": means.tolist(), "runs_se": metrics.mean_and_error(means)["se"]}
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = figure
    return tree


def by_category(rows: Rows, labels: list[str], seed: int) -> dict[str, Any]:
    """category -> images, and the gap of the base and the trained speaker among 10 random candidates.

    Categories with a name and at least SMALLEST images, the largest first.
    """
    chosen = {path[1:]: values for path, values in rows.items() if path[0] == "random/10"
              and path[1] in ("base", "trained") and path[2].endswith(("/gap", "_minus_this"))}
    found: dict[str, Any] = {}
    for label, count in Counter(labels).most_common():
        if chosen and label and count >= SMALLEST:
            where = [i for i, other in enumerate(labels) if other == label]
            found[label] = {"images": count,
                            **summarise({path: values[:, where] for path, values in chosen.items()}, seed)}
    return found


def wording(captions: list[dict[str, list[str]]], dataset: Dataset) -> dict[str, dict[str, Any]]:
    """speaker -> what its captions are made of: the mean over runs, and with several runs each one's. Figures that some
    run lacks are left out, as are the standard errors over images of several runs."""
    concepts, plain = list(dataset["concept"]), without_colours(dataset)
    found: dict[str, dict[str, Any]] = {}
    for speaker in common_speakers(captions):
        each = [caption_figures(one[speaker], concepts, plain) for one in captions]
        found[speaker] = each[0]
        if len(each) > 1:
            runs = {key: [own[key]["mean"] for own in each] for key in each[0] if all(key in own for own in each)}
            found[speaker] = {key: metrics.mean_and_error(means) | {"n": each[0][key]["n"], "runs": means}
                              for key, means in runs.items()}
    return found


def wording_table(found: dict[str, dict]) -> str:
    """A Markdown table: a row per data set and speaker, mean ± standard error; empty if there is nothing to show."""
    rows = {(data, speaker): own for data, result in found.items() for speaker, own in result["captions"].items()}
    columns = list(dict.fromkeys(key for own in rows.values() for key in own))
    if not rows:
        return ""
    lines = ["| data | speaker | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    lines += [f"| {data} | {speaker} | " + " | ".join(
        f"{own[c]['mean']:.2f} ± {own[c]['se']:.2f}" if c in own else "" for c in columns) + " |"
        for (data, speaker), own in rows.items()]
    return "\n" + "\n".join(lines) + "\n"


def table(found: dict[str, dict], size: int = 10) -> str:
    """A Markdown table at `size` candidates: a row per data set, kind of pool and speaker, mean [95 % interval].

    A difference in bold is significant. Held-out accuracies are in the JSON only.
    """
    rows = {(data, kind, name): row for data, result in found.items() for kind in KINDS
            for name, row in result["pools"].get(f"{kind}/{size}", {}).items()}
    columns = [c for c in dict.fromkeys(c for row in rows.values() for c in row) if not c.startswith("heldout/acc")]

    def cell(figure: dict | None) -> str:
        if figure is None:
            return ""
        mean = f"**{figure['mean']:.2f}**" if figure.get("significant") else f"{figure['mean']:.2f}"
        return f"{mean} [{figure['low']:.2f}, {figure['high']:.2f}]"

    lines = ["| data | candidates | speaker | " + " | ".join(c.replace("_", " ") for c in columns) + " |",
             "|---" * (len(columns) + 3) + "|"]
    lines += [f"| {data} | {kind} | {name} | " + " | ".join(cell(row.get(c)) for c in columns) + " |"
              for (data, kind, name), row in rows.items()]
    return "\n".join(lines)


def plot(found: dict[str, dict], path: Path) -> None:
    """Gap against pool size with its interval: a column per data set, random candidates above, hard ones below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 2.9 * len(found), 5.6), layout="constrained")
    axes = figure.subplots(len(KINDS), len(found), sharex=True, sharey=True, squeeze=False)
    names = {"training": "training listeners", "heldout": "held-out listeners"}
    for (column, (data, result)), (line, kind) in itertools.product(enumerate(found.items()), enumerate(KINDS)):
        axis = axes[line][column]
        axis.axhline(0, color="grey", linewidth=0.8)
        lines = itertools.product((("base", "tab:grey"), ("trained", "tab:blue")),
                                  (("training", "o-"), ("heldout", "s--")))
        for place, ((speaker, colour), (group, style)) in enumerate(lines):
            points = [(size, row[speaker][f"{group}/gap"]) for size in SIZES
                      if (row := result["pools"].get(f"{kind}/{size}")) and f"{group}/gap" in row.get(speaker, {})]
            if points:
                bars = [[f["mean"] - f["low"] for _, f in points], [f["high"] - f["mean"] for _, f in points]]
                axis.errorbar([size * 1.05 ** (place - 1.5) for size, _ in points],  # beside each other
                              [f["mean"] for _, f in points], np.maximum(bars, 0), fmt=style, color=colour,
                              markersize=4, capsize=2, linewidth=1, label=f"{speaker}, {names[group]}")
        axis.set_xscale("log")
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.minorticks_off()
        if line == 0:
            axis.set_title(f"{Path(data).name} ({result['images']} images)", fontsize=10)
        if column == 0:
            axis.set_ylabel(f"gap, {kind} candidates")
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("candidates", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def keep(condition: str, results: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a transfer.json to the table of transfer: figures are SET/KIND/SIZE/GROUP/..., e.g.
    stamps/random/10/training/gap, with their interval over images and, of several runs, their error over seeds.

    What captions are made of is kept as SET/captions/FIGURE.

    Accuracies and written captions are kept among 10 random candidates only, categories not at all. Of several runs
    each one's gaps among 10 random candidates are kept under its own seed.
    """
    runs = results["figures"]["runs"]
    cell = Cell("transfer", condition, " ".join(str(run["seed"]) for run in runs), results["command"],
                results["config_hash"], results["commit"], (results["training"] or {}).get("commit", ""),
                results["wall_seconds"])
    rows: list[Row] = []
    of_seeds: list[list[Row]] = [[] for _ in runs]
    cells = [dataclasses.replace(cell, seed=str(run["seed"]), config_hash=run["config_hash"]) for run in runs]
    for name, result in results["figures"]["data"].items():
        for speaker, figures in result["captions"].items():
            rows += rows_of(cell, speaker, {f"{name}/captions/{key}": figure for key, figure in figures.items()})
        for pool, speakers in result["pools"].items():
            for speaker, figures in speakers.items():
                for key, figure in figures.items():
                    ten, generated = pool == "random/10", speaker not in ("ground truth", "oracle")
                    if ten or generated and "/accuracy/" not in key:
                        rows += rows_of(cell, speaker, {
                            f"{name}/{pool}/{key}": figure | {"se": figure.get("runs_se")}})
                    if ten and generated and "/accuracy/" not in key:
                        for one, kept, mean in zip(cells, of_seeds, figure.get("runs", []), strict=False):
                            kept += rows_of(one, speaker, {f"{name}/{pool}/{key}": {"mean": mean, "n": figure["n"]}})
    put(cell, rows, folder)
    if len(runs) > 1:
        for one, kept in zip(cells, of_seeds, strict=True):
            put(one, kept, folder)


def _check(runs: list[LoadedRun]) -> None:
    """Raise DixitError unless the runs are seeds of one experiment, because their values are averaged."""
    first = runs[0].config
    if not first.listeners:
        raise DixitError(f"{runs[0].folder} has no listeners; name a run of the game")
    for run in runs[1:]:
        if (run.config.listeners, run.config.heldout, run.config.data) != (first.listeners, first.heldout, first.data):
            raise DixitError(f"{run.folder} has other listeners or data than {runs[0].folder}; name runs that differ "
                             "in their seed only")
    seeds = [run.config.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise DixitError(f"two of these runs have the same seed {seeds}; train each with its own seed=...")


def main(arguments: Namespace) -> None:
    if arguments.pools < 1:
        raise DixitError(f"--pools is {arguments.pools}; choose at least 1")
    overrides = [word for word in arguments.run + (arguments.data or []) if word.startswith("eval.") and "=" in word]
    folders = [Path(word) for word in arguments.run if word not in overrides]
    if not folders:
        raise DixitError("no run named; name a run's folder, e.g. runs/colour_vs_grey")
    began = time.perf_counter()
    runs = [load_run(folder, overrides) for folder in folders]
    _check(runs)
    config = runs[0].config
    names = [word for word in arguments.data or [] if word not in overrides]
    names = names or [name for name in EVALUATION_SETS if name != "combos" or config.data.name == "scenes"]
    opened = {name: open_data(name, config) for name in names}  # all of them first, so that a wrong name fails at once

    if arguments.baselines:
        small = [name for name, dataset in opened.items() if len(dataset) < config.game.candidates]
        if small or any(run.base is None for run in runs):
            why = f"{small[0]} has fewer images than game.candidates" if small else "a run has no base speaker"
            raise DixitError(f"--baselines: {why}; leave it out")
    groups = {"training": config.listeners, **({"heldout": config.heldout} if config.heldout else {})}
    found: dict[str, dict] = {}
    captions: dict[str, list] = {}
    for name, dataset in opened.items():
        print(f"{name}: {len(dataset)} images")
        captions[name] = []
        for run in runs:
            generated = generate_captions(run, dataset)
            if arguments.baselines:
                generated |= untrained_speakers(run, dataset)
            captions[name].append({who: own["texts"] for who, own in generated.items()})
        rows = measure(captions[name], dataset, groups, arguments.pools, config.eval.seed, runs[0].speaker.device)
        skipped = {str(size): f"more candidates than the {len(dataset)} images of {name}"
                   for size in SIZES if size > len(dataset)}
        for size, why in skipped.items():
            print(f"pools of {size} skipped: {why}")
        found[name] = {"images": len(dataset), "skipped": skipped, "pools": summarise(rows, config.eval.seed),
                       "captions": wording(captions[name], dataset) if runs[0].eyes.named else {},
                       "categories": by_category(rows, categories(name, dataset), config.eval.seed)}
    out = arguments.out or runs[0].folder
    about = [{"folder": str(run.folder), "seed": run.config.seed, "config_hash": config_hash(run.config)}
             for run in runs]
    figures = {"runs": about, "pools_per_image": arguments.pools, "data": found}
    path = write_results(dataclasses.replace(runs[0], folder=out), "transfer", figures, captions,
                         time.perf_counter() - began)
    picture = path.with_suffix(".png")
    plot(found, picture)
    if arguments.keep:
        keep(arguments.keep, read_json(path))
        save_small_png(picture, RESULTS / "transfer" / f"{arguments.keep}.png")
    print(f"\n{table(found)}\n{wording_table(found)}\nwritten to {path} and {picture}")
