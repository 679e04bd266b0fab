"""Evaluate one speaker with many audiences: `python -m eval.audiences RUN [eval.images=100 ...] [--beside RUN ...]`.

Measures the gap with each audience, trained or unseen, after the speaker has observed N = 0, 4, 16, 64 picks of each
listener, or, with speaker.gated_units, when it is given the audience's code. Picks are observed on validation images,
drawn separately for each image; the game is played on the test split, or on the images of --data. For comparison: the
base speaker; the runs named by --beside (a specialist trained for one audience, like those of configs/pairs, in that
audience's row only; or a speaker trained for all audiences without knowing which); and a ceiling, the caption that
names the one attribute that serves the audience best on the validation split (of scenes by their records; of pictures
by the classes of the speaker's CLIP, so that other captions may serve better).

Writes RUN/audiences.json, with --data RUN/audiences_DATA.json (with --keep CONDITION also rows of
eval/results/audiences.csv), prints a table and the means over audiences: paired differences, 95 % intervals by
bootstrap over images.

Shapes: R audiences, L listeners, n images.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.audiences)

import dataclasses
import re
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from dixit.common import DixitError, command_line, git_commit, read_json, write_json
from dixit.config import Config, ListenerConfig, config_hash
from dixit.data.images import load, open_data
from dixit.models.features import patch_features
from dixit.models.listeners import score_all
from dixit.training import audiences, continual, game
from dixit.training.candidates import draw_candidates
from dixit.training.runs import LoadedRun, load_run, make_listeners, open_models, patch_batch

from .evaluate import dataset_of
from .metrics import bootstrap
from .tables import RESULTS, Cell, put, rows_of

Gaps = dict[str, dict[str, Float[Tensor, "R n"]]]  # group of listeners -> speaker -> gap of each audience and image


@torch.no_grad()
def greedy_captions(run: LoadedRun, module: nn.Module, store: np.ndarray,
                    context: Float[Tensor, "n c"] | None) -> list[str]:
    """Greedy captions of all images by an adapter of the run."""
    texts: list[str] = []
    for rows in np.array_split(np.arange(len(store)), max(1, len(store) // run.config.eval.batch)):
        patches = patch_batch(store, rows, run.speaker.device)
        prefix = module(patches) if context is None else module(patches, context[rows].to(patches.device))
        texts += run.speaker.decode(*run.speaker.sample(prefix)[:2])
    return texts


def heldout_counterparts(config: Config) -> dict[str, tuple[ListenerConfig, ...]]:
    """The training listeners, and the held-out listeners of the same names in the same order if there are all."""
    heldout = {c.name: c for c in config.heldout}
    groups = {"training": config.listeners}
    if all(c.name in heldout for c in config.listeners):
        groups["heldout"] = tuple(heldout[c.name] for c in config.listeners)
    return groups


def audiences_of(other: Config, config: Config) -> tuple[tuple[str, str], ...]:
    """The audiences another run was trained for: its `audiences`, or its two listeners by their names in `config`.

    Raises DixitError if it was trained for other listeners.
    """
    if other.audiences:
        return other.audiences
    plain = {dataclasses.replace(c, name="", weight=0.0): c.name for c in config.listeners}
    names = [plain.get(dataclasses.replace(c, name="", weight=0.0))
             for c in sorted(other.listeners, key=lambda c: -c.weight)]
    if len(names) != 2 or None in names:
        raise DixitError(f"{other.folder} is no specialist for two of the listeners {', '.join(plain.values())}")
    return ((str(names[0]), str(names[1])),)


def measure_gaps(run: LoadedRun, dataset: Dataset, validation: Dataset,
                 others: list[LoadedRun]) -> tuple[Gaps, dict[str, Any]]:
    """The gap of every speaker with every audience, and the captions. A specialist has NaN for other audiences."""
    config = run.config
    everyone, count = np.arange(len(dataset)), len(dataset)
    groups = heldout_counterparts(config)
    pools = draw_candidates(everyone, everyone, config.game.candidates, "eval", config.eval.seed)
    device = run.speaker.device
    models = {name: open_models(group, device) for name, group in groups.items()}
    listeners = {name: make_listeners(group, dataset, device, models[name]) for name, group in groups.items()}
    choosing = make_listeners(groups["training"], validation, device, models["training"])
    observed = audiences.hits_by_attribute(choosing, run.eyes, validation, config.game.candidates, "eval",
                                           config.eval.seed)
    names = [*config.audiences, *config.unseen]
    pairs = audiences.listener_indices(tuple(names), [c.name for c in config.listeners])
    gaps: Gaps = {group: {} for group in groups}
    captions: dict[str, Any] = {}

    def add(speaker: str, row: int, texts: list[str]) -> None:
        """Record a speaker's captions for one audience and their gaps."""
        captions.setdefault(speaker, {})[" / ".join(names[row])] = texts
        for group, made in listeners.items():
            two = list(pairs[row])
            hits = game.hits(score_all([made[i] for i in two], texts, pools)).cpu()
            blank = torch.full((len(pairs), count), torch.nan)
            gaps[group].setdefault(speaker, blank)[row] = hits[0] - hits[1]

    store = patch_features(run.eyes, dataset, "colour")
    ceilings = [named.captions for named in audiences.name_attributes(run.eyes, dataset)]
    base = greedy_captions(run, run.base, store, None) if run.base is not None else []
    for i in tqdm(range(len(pairs)), desc="audiences", disable=None):
        if base:
            add("base", i, base)
        if config.speaker.gated_units:
            context = continual.audience_codes(np.full(count, i), len(pairs), config.continual.centred)
            add("given the name", i, greedy_captions(run, run.speaker.trained, store, context))
        for picks in config.picks if config.speaker.audience_width and not config.speaker.gated_units else ():
            profile = audiences.profiles(observed, count, [picks] * count, "eval", config.eval.seed, i, picks)
            context = audiences.audience_vectors(profile, [pairs[i]] * count)
            add(f"{picks} picks", i, greedy_captions(run, run.speaker.trained, store, context))
        if not config.speaker.audience_width:
            add("uninformed", i, greedy_captions(run, run.speaker.trained, store, None))
        means = observed[pairs[i][0]].mean(1) - observed[pairs[i][1]].mean(1)  # (A,)
        add("ceiling", i, ceilings[int(means.argmax())])
    for other in others:
        theirs = audiences_of(other.config, config)
        own = [i for i, pair in enumerate(names) if pair in theirs]
        texts = greedy_captions(other, other.speaker.trained, patch_features(other.eyes, dataset, "colour"), None)
        special = len(theirs) == 1
        for i in own if special else range(len(pairs)):
            add("specialist" if special else "uninformed", i, texts)
    return gaps, captions


def summarise(config: Config, gaps: Gaps) -> dict[str, Any]:
    """Mean gap of each speaker per audience, over the trained and over the unseen ones, and the paired claims."""
    names = [" / ".join(pair) for pair in (*config.audiences, *config.unseen)]
    trained = torch.arange(len(names)) < len(config.audiences)
    found: dict[str, Any] = {}
    for group, speakers in gaps.items():
        rows_of = {name: {s: float(v[i].mean()) for s, v in speakers.items() if not v[i].isnan().any()}
                 for i, name in enumerate(names)}
        claims: dict[str, dict[str, float]] = {}

        def claim(name: str, values: Float[Tensor, "n"], claims: dict = claims) -> None:
            low, high = bootstrap(values[None], config.eval.seed)[:, 0].tolist()
            claims[name] = {"mean": float(values.mean()), "low": low, "high": high, "images": len(values)}

        for which, rows in ("trained", trained), ("unseen", ~trained):
            for speaker, values in speakers.items():
                if rows.any() and not values[rows].isnan().any():
                    claim(f"{which}: {speaker}", values[rows].mean(0))
            for other in ("0 picks", "uninformed"):
                if rows.any() and "16 picks" in speakers and other in speakers:
                    claim(f"{which}: 16 picks minus {other}", (speakers["16 picks"] - speakers[other])[rows].mean(0))
        if "specialist" in speakers and "64 picks" in speakers:
            own = ~speakers["specialist"].isnan().any(1)
            ours, theirs = (speakers[s][own].mean(0) for s in ("64 picks", "specialist"))
            claim("specialists, where there are", theirs)
            claim("64 picks, same audiences", ours)
            claims["64 picks over specialists"] = {"ratio": float(ours.mean() / theirs.mean()),
                                                   "audiences": int(own.sum())}
        found[group] = {"gap": rows_of, "claims": claims}
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: a row per audience, a column per speaker; then the claims."""
    rows = found["gap"]
    speakers = list(dict.fromkeys(s for row in rows.values() for s in row))
    lines = ["| audience | " + " | ".join(speakers) + " |", "|---" * (len(speakers) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[s]:+.2f}" if s in row else "" for s in speakers) + " |"
              for name, row in rows.items()]
    lines += ["", "| over audiences | mean | 95 % |", "|---|---|---|"]
    lines += [f"| {name} | {c['mean']:+.3f} | {c['low']:+.3f} to {c['high']:+.3f} |" if "mean" in c else
              f"| {name} | {c['ratio']:.2f} | {c['audiences']} audiences |" for name, c in found["claims"].items()]
    return "\n".join(lines)


def keep(condition: str, results: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write an audiences.json to the table of audiences.

    "GROUP/gap/AUDIENCE" is a speaker's gap for one audience (training listeners only), "GROUP/..." without a speaker a
    mean over audiences or a difference of two.
    """
    cell = Cell("audiences", condition, str(results["seeds"]["run"]), results["command"], results["config_hash"],
                results["commit"], seconds=results["wall_seconds"])
    rows = []
    for group in [group for group in ("training", "heldout") if group in results]:
        for name, claim in results[group]["claims"].items():
            rows += rows_of(cell, "", {f"{group}/{name}": {
                "mean": claim["ratio"] if "ratio" in claim else claim["mean"], "low": claim.get("low"),
                "high": claim.get("high"), "n": claim["audiences"] if "ratio" in claim else claim["images"]}})
    for audience, speakers in results["training"]["gap"].items():
        for speaker, mean in speakers.items():
            rows += rows_of(cell, speaker, {f"training/gap/{audience}": {"mean": mean, "n": results["images"]}})
    put(cell, rows, folder)


def main(arguments: Namespace) -> None:
    began = time.perf_counter()
    run = load_run(arguments.run, arguments.override)
    if not run.config.audiences:
        raise DixitError(f"{arguments.run} was not trained for audiences; use configs/audiences.yaml")
    if arguments.data:
        dataset = open_data(arguments.data, run.config)
    else:
        dataset = dataset_of(run.config, run.config.eval.split, run.config.eval.images)
    others = [load_run(path) for path in arguments.beside]
    gaps, captions = measure_gaps(run, dataset, load(run.config.data, "validation"), others)
    found = summarise(run.config, gaps)
    trainings = {str(path): read_json(path / "train.json") for path in (arguments.run, *arguments.beside)
                 if (path / "train.json").is_file()}
    stem = "audiences" + re.sub(r"\W+", "_", f"_{arguments.data}" if arguments.data else "")
    write_json(arguments.run / f"{stem}_captions.json", captions)
    results = {"command": command_line(), "config_hash": config_hash(run.config), "commit": git_commit(),
               "wall_seconds": round(time.perf_counter() - began, 1),
               "seeds": {"run": run.config.seed, "eval": run.config.eval.seed}, "images": len(dataset),
               "trainings": trainings, **found}
    write_json(arguments.run / f"{stem}.json", results)
    if arguments.keep:
        keep(arguments.keep, results)
    for group, part in found.items():
        print(f"\n{group} listeners\n\n{table(part)}")
    print(f"\nwritten to {arguments.run / stem}.json")
