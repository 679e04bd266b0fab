"""What a speaker that knew the listeners could say of a picture, without seeing through their CLIPs.

Candidate captions come from the likeliest classes of another CLIP that names things (`oracle_clip`): each class by its
name, its everyday word and its broad kind, with the picture's colours and without, and the colours alone. The oracle
takes the one with the highest reward from the training listeners, on pools of its own. It is no upper bound: a caption
outside these candidates may serve better.

Shapes: n images, M pools of C candidates.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm

from dixit.common import DixitError, read_json, sentence, sha256, write_json
from dixit.config import Config
from dixit.data.assets import cache_dir
from dixit.data.images import fingerprint
from dixit.data.known import row_colours
from dixit.data.names import phrase
from dixit.models.clip import load_clip
from dixit.models.features import class_features
from dixit.training.candidates import draw_candidates
from dixit.training.checkpoints import trained_weights
from dixit.training.made_captions import class_levels
from dixit.training.runs import make_listeners, run_config

from .baselines import POOLS, mean_reward

CLASSES = 3  # the likeliest ones of an image
BATCH = 32  # images scored at once


@torch.no_grad()
def likely_nouns(config: Config, dataset: Dataset, device: torch.device) -> list[list[tuple[str, str, str]]]:
    """Of the likeliest classes of each image, by `oracle_clip`: name, everyday word and broad kind. Raises DixitError
    if that CLIP does not name things."""
    clip = load_clip(config.oracle_clip, "", device)
    if clip.named is None:
        raise DixitError(f"config: oracle_clip '{config.oracle_clip}' does not name things; take one that was trained "
                         "with clip.names")
    features = torch.from_numpy(np.asarray(class_features(clip, dataset, "colour"), dtype=np.float32)).to(device)
    classes, levels = clip.named.classes, class_levels(clip)
    likeliest = classes.posterior(features).topk(CLASSES, dim=1).indices.tolist()
    return [[(levels[i][0][0], *levels[i][1:]) for i in best] for best in likeliest]


def caption_of(noun: str, colours: Sequence[str] = ()) -> str:
    """A short caption: `A red and blue dog.`"""
    return sentence(phrase(f"{' and '.join(colours)} {noun}".strip()))


def candidate_captions(config: Config, dataset: Dataset, device: torch.device) -> list[list[str]]:
    """What the oracle chooses from, for each image. Raises DixitError if `oracle_clip` does not name things."""
    rows = []
    for image, likely in zip(dataset, likely_nouns(config, dataset, device), strict=True):
        colours = row_colours(image)
        nouns = dict.fromkeys(noun for levels in likely for noun in levels)
        rows.append([caption_of(noun, said) for noun in nouns for said in ((), colours)]
                    + [caption_of("thing", colours)])
    return rows


def picture_oracle(config: Config, dataset: Dataset, device: torch.device) -> list[str]:
    """The oracle's caption of each image; cached, since seeds and runs with the same listeners share it."""
    clips = [load_clip(name, pretrained).key for name, pretrained in sorted({(config.oracle_clip, ""), *(
        (who.clip, who.pretrained) for who in config.listeners if who.kind == "clip")})]
    clips += [sha256(trained_weights(Path(who.model), run_config(Path(who.model)).eval.checkpoint))
              for who in config.listeners if who.kind == "captioner"]
    about = [clips, [dataclasses.asdict(who) for who in config.listeners], config.game.candidates, config.game.reward,
             config.eval.seed, fingerprint(dataset), Path(__file__).read_text(encoding="utf-8")]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
    path = cache_dir() / "captions" / f"oracle-{key}.json"
    if not path.is_file():
        write_json(path, _choose(config, dataset, device))
    return read_json(path)


@torch.no_grad()
def _choose(config: Config, dataset: Dataset, device: torch.device) -> list[str]:
    """The candidate caption with the highest reward, for each image."""
    rows, everyone = candidate_captions(config, dataset, device), np.arange(len(dataset))
    listeners = make_listeners(config.listeners, dataset, device)
    size = min(config.game.candidates, len(everyone))  # other data than the game's may have fewer images
    pools = draw_candidates(np.repeat(everyone, POOLS), everyone, size, "oracle", config.eval.seed)
    pools = pools.unflatten(0, (-1, POOLS))
    most = max(map(len, rows))
    chosen: list[str] = []
    for start in tqdm(range(0, len(rows), BATCH), desc="oracle", unit="batch", disable=None):
        some = [row + row[:1] * (most - len(row)) for row in rows[start:start + BATCH]]
        paid = mean_reward(config, listeners, [text for row in some for text in row], pools[start:start + BATCH])
        best = paid.unflatten(0, (-1, most)).argmax(1).tolist()
        chosen += [row[i] for row, i in zip(some, best, strict=True)]
    return chosen
