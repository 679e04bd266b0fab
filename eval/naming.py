"""How a speaker names pictures: `python -m eval.naming RUN [--data stamps] [--eyes mobilenetv2-pictures ...]`.

Greedy captions of a run's speaker, of any task: how often listeners with the CLIPs of `--eyes` find the picture among
10 random ones by its caption, and what the captions are made of (eval/picture_metrics.py). Written captions stand
beside them. Prints a table and examples; `--keep CONDITION` also writes the figures to eval/results/naming.csv.

Leaves out games (eval/evaluate.py, eval/transfer.py).

Shapes: S captions, C candidates.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.naming)

import time
from argparse import Namespace
from typing import Any

import numpy as np
from datasets import Dataset

from dixit.common import DixitError, command_line, git_commit, read_json
from dixit.config import ListenerConfig, config_hash
from dixit.data.images import open_data
from dixit.models.clip import load_clip
from dixit.models.listeners import score_all
from dixit.training import game
from dixit.training.candidates import draw_candidates
from dixit.training.runs import LoadedRun, load_run, make_listeners

from .evaluate import generate_captions, token_logp
from .metrics import mean_and_error, perplexity
from .picture_metrics import caption_figures, without_colours
from .tables import Cell, put, rows_of

POOLS, CANDIDATES = 20, 10


def found_by(eyes: list[str], dataset: Dataset, captions: dict[str, list[str]], seed: int) -> dict[str, dict[str, Any]]:
    """speaker -> found/CLIP: how often a listener with that CLIP finds a picture by its caption."""
    count = len(dataset)
    pools = draw_candidates(np.repeat(np.arange(count), POOLS), np.arange(count), CANDIDATES, "naming", seed)
    figures: dict[str, dict[str, Any]] = {name: {} for name in captions}
    listeners = make_listeners(tuple(ListenerConfig(name, clip=name) for name in eyes), dataset)
    for listener, name in zip(listeners, eyes, strict=True):
        for speaker, texts in captions.items():
            repeated = [text for text in texts for _ in range(POOLS)]
            hits = game.hits(score_all([listener], repeated, pools))[0].unflatten(0, (-1, POOLS)).mean(1)
            figures[speaker][f"found/{name}"] = mean_and_error(hits)
    return figures


def naming(run: LoadedRun, dataset: Dataset, eyes: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Every figure of each speaker's captions, and the captions."""
    captions = {name: own["texts"] for name, own in generate_captions(run, dataset).items() if name != "oracle"}
    figures = found_by(eyes, dataset, captions, run.config.eval.seed)
    concepts, plain = list(dataset["concept"]), without_colours(dataset)
    for name, texts in captions.items():
        figures[name] |= caption_figures(texts, concepts, plain)
        figures[name]["perplexity"] = perplexity(*token_logp(texts, run.speaker))
    return figures, captions


def main(arguments: Namespace) -> None:
    began = time.perf_counter()
    overrides = [word for word in arguments.eyes if word.startswith("eval.") and "=" in word]
    eyes = [word for word in arguments.eyes if word not in overrides]
    run = load_run(arguments.run, arguments.override + overrides)
    for name in eyes:
        load_clip(name)  # a missing one raises before anything is computed
    dataset = open_data(arguments.data, run.config)
    if len(dataset) < CANDIDATES:
        raise DixitError(f"--data {arguments.data} has {len(dataset)} images; {CANDIDATES} are needed")
    figures, captions = naming(run, dataset, eyes)
    if arguments.keep:
        trained = read_json(arguments.run / "train.json")
        cell = Cell("naming", arguments.keep, str(run.config.seed), command_line(), config_hash(run.config),
                    git_commit(), trained["commit"], round(time.perf_counter() - began, 1),
                    f"{len(dataset)} images of {arguments.data}")
        put(cell, [row for name, own in figures.items() for row in rows_of(cell, name, own)])
    names = list(figures)
    print("| figure | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for key in figures[names[0]]:
        print(f"| {key} | " + " | ".join(f"{figures[n][key]['mean']:.3f} ± {figures[n][key]['se']:.3f}" for n in names)
              + " |")
    print()
    for i in range(0, len(dataset), max(1, len(dataset) // 12)):
        print("  ".join(f"{name}: {texts[i]}" for name, texts in captions.items()))
