"""What each form of caption is worth to a pair of listeners: `python -m eval.forms CONFIG [eval.images=300 ...]`.

A form is a rule for all pictures: the likeliest class by its name, its everyday word or its broad kind, with the
picture's colours or without, or the colours alone. Class and colours come from `oracle_clip` and the pixels, so no
speaker is needed. The oracle (eval/oracle.py) chooses a caption for each picture by its reward, the best form is chosen
once, by its mean reward on the validation split: what lies between the two needs knowledge of single pictures.
Prints a table; `--keep CONDITION` also writes the figures to eval/results/forms.csv.

Leaves out what speakers say (eval/evaluate.py).
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.forms)

import time
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from dixit.common import DixitError, command_line, git_commit
from dixit.config import Config, config_hash, find_config, load_config, refuse_doubled
from dixit.data.known import row_colours
from dixit.models.listeners import score_all
from dixit.training.candidates import draw_candidates
from dixit.training.runs import make_listeners

from .evaluate import dataset_of, game_figures
from .oracle import caption_of, likely_nouns, picture_oracle
from .tables import Cell, put, rows_of

LEVELS = ("name", "everyday word", "kind")
CPU = torch.device("cpu")


def captions_by_form(config: Config, dataset: Dataset) -> dict[str, list[str]]:
    """form -> the caption of each image."""
    colours = [" and ".join(row_colours(image)) for image in dataset]
    best = [likely[0] for likely in likely_nouns(config, dataset, CPU)]
    captions = {}
    for i, level in enumerate(LEVELS):
        captions[level] = [caption_of(nouns[i]) for nouns in best]
        captions[f"colours, {level}"] = [caption_of(nouns[i], said) for nouns, said in zip(best, colours, strict=True)]
    return captions | {"colours": [caption_of("thing", said) for said in colours]}


def figures_of(config: Config, dataset: Dataset, captions: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """form -> its figures with the training listeners and the held-out ones, on the pools of eval.evaluate."""
    everyone = np.arange(len(dataset))
    pools = draw_candidates(everyone, everyone, config.game.candidates, "eval", config.eval.seed)
    figures: dict[str, dict[str, Any]] = {form: {} for form in captions}
    for group, who in {"training": config.listeners, "heldout": config.heldout}.items():
        listeners = make_listeners(who, dataset, CPU) if who else []
        for form, texts in captions.items() if listeners else ():
            figures[form] |= game_figures(group, who, score_all(listeners, texts, pools), config)
    return figures


@torch.no_grad()
def main(arguments: Namespace) -> None:
    refuse_doubled(arguments.override)
    began = time.perf_counter()
    config = load_config(find_config(arguments.config), arguments.override)
    if not config.oracle_clip:
        raise DixitError(f"{arguments.config} has no oracle_clip; forms are made for games on pictures, e.g. "
                         "animals_vs_rest")
    chosen_on = dataset_of(config, "validation", config.eval.images)
    before = figures_of(config, chosen_on, captions_by_form(config, chosen_on))
    best = max(before, key=lambda form: before[form]["training/reward"]["mean"])
    dataset = dataset_of(config, config.eval.split, config.eval.images)
    captions = captions_by_form(config, dataset) | {"oracle": picture_oracle(config, dataset, CPU)}
    figures = figures_of(config, dataset, captions)
    figures["best form"] = figures[best]
    if arguments.keep:
        cell = Cell("forms", arguments.keep, "", command_line(), config_hash(config), git_commit(),
                    seconds=round(time.perf_counter() - began, 1), note=f"best form on validation: {best}")
        put(cell, [row for form, own in figures.items() for row in rows_of(cell, form, own)])
    keys = [key for key in ("training/gap", "heldout/gap", "training/reward") if key in figures["oracle"]]
    print("| form | " + " | ".join(keys) + " |\n" + "|---" * (len(keys) + 1) + "|")
    for form, own in figures.items():
        shown = form if form != "best form" else f"best form on validation: {best}"
        print(f"| {shown} | " + " | ".join(f"{own[key]['mean']:.3f} ± {own[key]['se']:.3f}" for key in keys) + " |")
