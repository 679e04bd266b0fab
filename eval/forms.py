"""What each form of caption is worth to a pair of listeners: `python -m eval.forms CONFIG [eval.images=300 ...]`.

A form is a rule for all pictures: the likeliest class by its name, its everyday word or its broad kind, with the
picture's colours or without, or the colours alone. Class and colours come from `oracle_clip` and the pixels, so no
speaker is needed. Two rules are chosen by mean reward on the validation split: the best form, and the best form of each
broad kind of things. The oracle (eval/oracle.py) chooses a caption for each picture by its own reward: what lies
between it and the rules needs knowledge of how the listeners mistake single pictures.
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
from jaxtyping import Float
from torch import Tensor

from dixit.common import DixitError, command_line, git_commit
from dixit.config import Config, ListenerConfig, config_hash, find_config, load_config, refuse_doubled
from dixit.data.known import row_colours
from dixit.models.listeners import score_all
from dixit.training import game
from dixit.training.candidates import draw_candidates
from dixit.training.runs import make_listeners

from .evaluate import dataset_of, game_figures, weights_of
from .oracle import caption_of, likely_nouns, picture_oracle
from .tables import Cell, put, rows_of

LEVELS = ("name", "everyday word", "kind")
BEST, BY_KIND = "best form", "best form of each kind"
ENOUGH = 10  # validation images of a kind, to choose a form for it
CPU = torch.device("cpu")


def captions_by_form(config: Config, dataset: Dataset) -> tuple[dict[str, list[str]], list[str]]:
    """form -> the caption of each image; and the broad kind of each image."""
    colours = [row_colours(image) for image in dataset]
    best = [likely[0] for likely in likely_nouns(config, dataset, CPU)]
    captions = {}
    for i, level in enumerate(LEVELS):
        captions[level] = [caption_of(nouns[i]) for nouns in best]
        captions[f"colours, {level}"] = [caption_of(nouns[i], said) for nouns, said in zip(best, colours, strict=True)]
    captions["colours"] = [caption_of("thing", said) for said in colours]
    return captions, [nouns[-1] for nouns in best]


def scores_of(config: Config, dataset: Dataset, who: tuple[ListenerConfig, ...],
              captions: dict[str, list[str]]) -> dict[str, Float[Tensor, "L S C"]]:
    """form -> what listeners make of its captions, on the pools of eval.evaluate."""
    everyone = np.arange(len(dataset))
    pools = draw_candidates(everyone, everyone, config.game.candidates, "eval", config.eval.seed)
    listeners = make_listeners(who, dataset, CPU)
    return {form: score_all(listeners, texts, pools) for form, texts in captions.items()}


def choose(rewards: dict[str, Float[np.ndarray, "S"]], kinds: list[str]) -> tuple[str, dict[str, str]]:
    """The form with the highest mean reward, and that of each kind with `ENOUGH` images."""
    def best(some: np.ndarray) -> str:
        return max(rewards, key=lambda form: float(rewards[form][some].mean()))

    of = np.array(kinds)
    return best(np.full(len(of), True)), {kind: best(of == kind) for kind in sorted(set(kinds))
                                          if (of == kind).sum() >= ENOUGH}


@torch.no_grad()
def main(arguments: Namespace) -> None:
    refuse_doubled(arguments.override)
    began = time.perf_counter()
    config = load_config(find_config(arguments.config), arguments.override)
    if not config.oracle_clip:
        raise DixitError(f"{arguments.config} has no oracle_clip; forms are made for games on pictures, e.g. "
                         "animals_vs_rest")
    chosen_on = dataset_of(config, "validation", config.eval.images)
    captions, kinds = captions_by_form(config, chosen_on)
    weights = weights_of(config.listeners)
    rewards = {form: game.listener_reward(config.game.reward, logits, weights).numpy()
               for form, logits in scores_of(config, chosen_on, config.listeners, captions).items()}
    best, of_kind = choose(rewards, kinds)
    dataset = dataset_of(config, config.eval.split, config.eval.images)
    captions, kinds = captions_by_form(config, dataset)
    by_kind = [captions[of_kind.get(kind, best)][i] for i, kind in enumerate(kinds)]
    captions |= {BEST: captions[best], BY_KIND: by_kind, "oracle": picture_oracle(config, dataset, CPU)}
    figures: dict[str, dict[str, Any]] = {form: {} for form in captions}
    for group, who in {"training": config.listeners, "heldout": config.heldout}.items():
        for form, logits in scores_of(config, dataset, who, captions).items() if who else ():
            figures[form] |= game_figures(group, who, logits, config)
    keys = [key for key in ("training/gap", "heldout/gap", "training/reward") if key in figures["oracle"]]
    if arguments.keep:
        cell = Cell("forms", arguments.keep, "", command_line(), config_hash(config), git_commit(),
                    seconds=round(time.perf_counter() - began, 1), note=f"best form: {best}; "
                    + ", ".join(f"{kind}: {form}" for kind, form in of_kind.items()))
        put(cell, [row for form, own in figures.items()
                   for row in rows_of(cell, form, {key: own[key] for key in keys})])
    print("| form | " + " | ".join(keys) + " |\n" + "|---" * (len(keys) + 1) + "|")
    for form, own in figures.items():
        print(f"| {form} | " + " | ".join(f"{own[key]['mean']:.3f} ± {own[key]['se']:.3f}" for key in keys) + " |")
    print(f"\nbest form: {best}; of each kind: " + ", ".join(f"{kind}: {form}" for kind, form in of_kind.items()))
