"""Evaluate CLIPs: `python -m eval.clip_quality lite0 [mobilenetv2 ...]`.

Zero-shot accuracy on CIFAR-10 test, recall at 1 among 10 on held-out scenes, emoji, clip art and photo stamps, and
zero-shot accuracy of each attribute of scenes. Prints the figures; `--keep CONDITION` also writes them to
eval/results/clip_quality.csv.

Shapes: S captions, C candidates or classes.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.clip_quality)

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dixit.common import command_line, git_commit
from dixit.config import DataConfig
from dixit.data import scenes
from dixit.data.images import load
from dixit.models.clip import Clip, load_clip
from dixit.models.features import image_embeddings
from dixit.training import game
from dixit.training.candidates import draw_candidates

from .commands import RECALL_SETS
from .metrics import mean_and_error
from .tables import Cell, put, rows_of


def recall_among_ten(clip: Clip, data: DataConfig, perception: str) -> dict[str, float]:
    """Recall at 1 of each test image's first caption among 10 random images."""
    dataset = load(data, "test")
    images = image_embeddings(clip, dataset, perception)
    everyone = np.arange(len(dataset))
    pools = draw_candidates(everyone, everyone, 10, "clip_quality")
    words = clip.embed_texts([row[0] for row in dataset["captions"]])
    logits = torch.einsum("se,sce->sc", words, images[pools])
    return mean_and_error(game.hits(logits[None])[0])


def classify(clip: Clip, images: Tensor, texts: list[str], labels: Tensor) -> dict[str, float]:
    """Zero-shot accuracy: how often the most similar text is the right one."""
    return mean_and_error(((images @ clip.embed_texts(texts).T).argmax(1) == labels).float())


def attributes(clip: Clip, data: DataConfig) -> dict[str, Any]:
    """On scenes of one object, zero-shot accuracy of colour, shape, size and position; on all, of the count."""
    dataset = load(data, "test")
    images = image_embeddings(clip, dataset, "colour")
    records = [json.loads(r) for r in dataset["record"]]
    single = [i for i, r in enumerate(records) if len(r["objects"]) == 1]
    found: dict[str, Any] = {}
    places = [scenes.position((row, column)) for row in range(3) for column in range(3)]
    for name, values, template in (("colour", scenes.COLOURS, "a {} shape"), ("shape", scenes.SHAPES, "a {}"),
                                   ("size", scenes.SIZES, "a {} shape"), ("position", places, "a shape at the {}")):
        def value(item: dict, name: str = name) -> str:
            return scenes.position(item["cell"]) if name == "position" else item[name]
        labels = torch.tensor([values.index(value(records[i]["objects"][0])) for i in single])
        found[name] = classify(clip, images[single], [template.format(v) for v in values], labels)
    counts = ["one shape", "two shapes", "three shapes"]
    labels = torch.tensor([len(r["objects"]) - 1 for r in records])
    found["count"] = classify(clip, images, [f"{c} on a light background" for c in counts], labels)
    return found


def _sides(clip: Clip) -> tuple[int, ...]:
    size = clip.preprocessing.size
    return (size,) if isinstance(size, int) else tuple(size)


@torch.no_grad()
def quality(clip: Clip, sets: Sequence[str] = RECALL_SETS) -> dict[str, Any]:
    """Every figure of one CLIP, with standard errors. Pictures are as large as its image tower takes them."""
    size = max(DataConfig.image_size, *_sides(clip))
    cifar = load(DataConfig(name="cifar10", test=2000, image_size=size), "test")
    classes = sorted(set(cifar["concept"]))
    labels = torch.tensor([classes.index(c) for c in cifar["concept"]])
    return {
        "cifar10_zero_shot": classify(clip, image_embeddings(clip, cifar, "colour"),
                                      [f"a photo of {'an' if c[0] in 'aeiou' else 'a'} {c}" for c in classes], labels),
        **{f"recall@1_of_10/{data}_{perception}": recall_among_ten(clip, DataConfig(
            name=data, test=1000, image_size=DataConfig.image_size if data == "scenes" else size), perception)
           for data in sets for perception in ("colour", "grey")},
        **{f"attribute/{k}": v for k, v in attributes(clip, DataConfig()).items()},
    }


def main(arguments: Namespace) -> None:
    clips = {name: load_clip(name) for name in arguments.name}  # a missing one raises before anything is computed
    found = {}
    for name, clip in clips.items():
        found[name] = figures = quality(clip, arguments.sets)
        print(f"{name}")
        for key, value in figures.items():
            print(f"  {key:<32} {value['mean']:.3f} ± {value['se']:.3f}")
    if arguments.keep:
        cell = Cell("clip_quality", arguments.keep, "", command_line(), "", git_commit())
        put(cell, [row for name, figures in found.items() for row in rows_of(cell, name, figures)])
