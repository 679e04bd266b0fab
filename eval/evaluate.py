"""Evaluate a run on a split it was not trained on: `python -m eval.evaluate RUN [eval.images=200 ...]`.

Compares the base speaker (before the game), the trained speaker, ground-truth captions and, on scenes, an oracle that
names exactly the attributes that only the positive listeners see; each with the training and with the held-out
listeners. eval.seed fixes the pools. Writes RUN/results.json and RUN/results_captions.json and prints the table.

Leaves out other datasets (eval/transfer.py) and the page with pictures (eval/report.py).

Shapes: S captions (one per image), C candidates, L listeners.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.evaluate)

import dataclasses
import functools
import hashlib
import json
import math
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from dixit import models
from dixit.common import DixitError, command_line, git_commit, peak_memory_gb, read_json, sha256, write_json
from dixit.config import Config, ListenerConfig, config_hash, refuse_doubled
from dixit.data import scenes
from dixit.data.assets import cache_dir
from dixit.data.images import fingerprint, load
from dixit.models.features import patch_features
from dixit.models.listeners import ClipListener, score_all
from dixit.models.speaker import Speaker
from dixit.training import game
from dixit.training.candidates import draw_candidates
from dixit.training.runs import LoadedRun, load_run, make_listeners

from . import metrics
from .picture_metrics import caption_figures, without_colours


@torch.no_grad()
def generate_captions(run: LoadedRun, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Greedy captions of every image by the base and the trained speaker, and the written ones.

    Returns speaker name -> {"texts", "kl"}; kl is the log-probability of each caption under its speaker minus that
    under the base speaker. A speaker's captions of a data set are cached, and generated once.
    """
    captions: dict[str, dict[str, Any]] = {}
    for name, module in speakers_of(run).items():
        found = kept(run, module, dataset, "", functools.partial(_generate, run, name, module, dataset))
        captions[name] = {"texts": found["texts"], "kl": torch.tensor(found["kl"])}
    records = [json.loads(r) for r in dataset["record"]] if all(dataset["record"]) else []
    if records:
        captions["ground truth"] = {"texts": [scenes.full_caption(r) for r in records]}
        if run.config.oracle:
            named = frozenset(run.config.oracle)
            captions["oracle"] = {"texts": [scenes.oracle_caption(r, named) for r in records]}
    else:
        captions["ground truth"] = {"texts": [row[0] for row in dataset["captions"]]}
        if run.config.oracle_clip:
            from .oracle import picture_oracle  # it scores as the baselines do, which generate captions here
            captions["oracle"] = {"texts": picture_oracle(run.config, dataset, run.speaker.device)}
    return captions


def speakers_of(run: LoadedRun) -> dict[str, nn.Module]:
    """The adapters of the base speaker, if there is one, and of the trained one."""
    base = {} if run.base is None else {"base": run.base}
    return base | {"trained": run.speaker.trained}


def kept(run: LoadedRun, module: nn.Module, dataset: Dataset, kind: str, make: Callable[[], Any]) -> Any:
    """What `make` computes of a speaker and a data set, from the cache after the first time."""
    path = cache_dir() / "captions" / f"{_captions_key(run, module, dataset)}{kind}.json"
    if not path.is_file():
        write_json(path, make())
    return read_json(path)


def _generate(run: LoadedRun, name: str, module: nn.Module, dataset: Dataset) -> dict[str, list]:
    """A speaker's greedy captions of every image, and their log-probability above the base speaker's."""
    store, speaker, batch = patch_features(run.eyes, dataset, "colour"), run.speaker, run.config.eval.batch
    texts, kl = [], []
    for start in tqdm(range(0, len(dataset), batch), desc=f"{name} captions", unit="batch", disable=None):
        patches = torch.from_numpy(np.asarray(store[start:start + batch], dtype=np.float32)).to(speaker.device)
        tokens, mask, logp = speaker.sample(module(patches))
        texts += speaker.decode(tokens, mask)
        under = speaker.logprobs(run.base(patches), tokens, mask) if run.base is not None else logp
        kl += ((logp - under) * mask).sum(1).tolist()
    return {"texts": texts, "kl": kl}


def _captions_key(run: LoadedRun, module: nn.Module, dataset: Dataset) -> str:
    """A hash of what greedy captions depend on: weights, settings, LLM, CLIP, images, and the code of the models."""
    digest = hashlib.sha256()
    for part in (module, run.base):
        for name, value in part.state_dict().items() if part is not None else ():
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    speaker = dataclasses.asdict(run.config.speaker) | {"init": ""}
    about = [speaker, run.eyes.key, fingerprint(dataset), run.config.eval.batch, torch.get_num_threads(),
             str(run.speaker.device)]
    digest.update(json.dumps(about).encode())
    for path in sorted(Path(models.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


@torch.no_grad()
def measure(run: LoadedRun, dataset: Dataset, captions: dict[str, dict[str, Any]]) -> tuple[dict, dict]:
    """Every figure of each speaker's captions with its standard error, and the listeners' picks for each image."""
    config = run.config
    count = len(dataset)
    pools = draw_candidates(np.arange(count), np.arange(count), config.game.candidates, "eval", config.eval.seed)
    groups = {"training": config.listeners, "heldout": config.heldout}
    made = {name: make_listeners(group, dataset, run.speaker.device) for name, group in groups.items() if group}
    figures: dict[str, dict] = {}
    gaps: dict[tuple[str, str], Tensor] = {}
    picks: dict[str, Any] = {"pools": pools.tolist()}
    concepts, plain = list(dataset["concept"]), [] if any(dataset["record"]) else without_colours(dataset)
    for speaker_name, own in captions.items():
        texts = own["texts"]
        row: dict[str, Any] = {}
        for group, listeners in made.items():
            logits = score_all(listeners, texts, pools)
            row |= game_figures(group, groups[group], logits, config)
            gaps[speaker_name, group] = game.gap(game.hits(logits), weights_of(groups[group]).to(logits.device))
            if speaker_name == "trained" and ("base", group) in gaps:
                change = gaps["trained", group] - gaps["base", group]  # paired: same images, same pools
                row[f"{group}/gap_over_base"] = metrics.mean_and_error(change)
            if group == "training":
                beliefs, hit = logits.softmax(-1), game.hits(logits)
                undecided = (hit > 0) & (hit < 1)  # a tie with the target does not count as a pick
                picks[speaker_name] = {"texts": texts, "pick": beliefs.argmax(-1).masked_fill(undecided, -1).tolist(),
                                       "p_target": beliefs[..., 0].tolist()}
        first = made["training"][0]
        if isinstance(first, ClipListener):
            similarity = first.clip.embed_texts(texts) @ first.images.T
            for k in (1, 5):
                row[f"recall@{k}"] = metrics.mean_and_error(metrics.recall_at(similarity, k))
        row |= _text_figures(texts, run)
        if plain:
            row |= caption_figures(texts, concepts, plain)
        if "kl" in own:
            row["kl_to_base"] = metrics.mean_and_error(own["kl"])
        figures[speaker_name] = row
    return figures, picks


def weights_of(listeners: tuple[ListenerConfig, ...]) -> Float[Tensor, "L"]:
    return torch.tensor([c.weight for c in listeners])


def game_figures(group: str, listeners: tuple[ListenerConfig, ...], logits: Float[Tensor, "L S C"],
                 config: Config) -> dict:
    """Accuracy, log-probability, gap, reward and Dixit's scoring rounds of one group of listeners; `bits` is the gap in
    the information about the target that they take from a caption: mean log2 p(target) of the listeners of positive
    weight minus that of the others."""
    row: dict[str, Any] = {}
    hits, logp = game.hits(logits), game.target_logp(logits)
    weights = weights_of(listeners).to(logits.device)
    for i, listener in enumerate(listeners):
        row[f"{group}/accuracy/{listener.name}"] = metrics.mean_and_error(hits[i])
        row[f"{group}/logp/{listener.name}"] = metrics.mean_and_error(logp[i])
    row[f"{group}/gap"] = metrics.mean_and_error(game.gap(hits, weights))
    row[f"{group}/bits"] = metrics.mean_and_error(game.gap(logp, weights) / math.log(2))
    if len(listeners) > 1:
        row[f"{group}/scoring_rounds"] = metrics.mean_and_error(game.scoring_rounds(hits))
    row[f"{group}/reward"] = metrics.mean_and_error(game.listener_reward(config.game.reward, logits, weights))
    return row


def _text_figures(texts: list[str], run: LoadedRun) -> dict:
    """Length, diversity, word classes, and perplexity under the frozen LLM."""
    total, length = token_logp(texts, run.speaker)
    rates = {f"says/{k}": metrics.mean_and_error(v) for k, v in metrics.word_class_rates(texts).items()}
    return {"length": metrics.mean_and_error(length), "perplexity": metrics.perplexity(total, length),
            "distinct_1": metrics.distinct(texts, 1), "distinct_2": metrics.distinct(texts, 2),
            "vocabulary": metrics.vocabulary(texts), "most_repeated": metrics.most_repeated(texts), **rates}


def token_logp(texts: list[str], speaker: Speaker) -> tuple[Float[Tensor, "S"], Float[Tensor, "S"]]:
    """The log-probability of each caption under the frozen LLM alone, and its length in tokens."""
    logp, lengths = [], []
    for start in range(0, len(texts), 64):
        tokens, mask = speaker.encode(texts[start:start + 64])
        logp.append(speaker.perplexity_logp(tokens, mask).sum(1).cpu())
        lengths.append(mask.sum(1).cpu())
    return torch.cat(logp).double(), torch.cat(lengths).double()


def dataset_of(config: Config, split: str, images: int) -> Dataset:
    """The first `images` of a split. Raises DixitError if there are too few for a pool."""
    dataset = load(config.data, split)
    if images < len(dataset):
        dataset = dataset.select(range(images))
    if len(dataset) < config.game.candidates:
        raise DixitError(f"the {split} split of {config.data.name} has {len(dataset)} images, fewer than "
                         f"game.candidates {config.game.candidates}")
    return dataset


COLUMNS = ("training/gap", "heldout/gap", "recall@1", "perplexity", "length", "most_repeated", "says/colour",
           "says/shape", "says/position")


def table(figures: dict[str, dict], columns: tuple[str, ...] | None = None) -> str:
    """A Markdown table: a row per speaker, mean +- standard error."""
    accuracies = tuple(k for k in next(iter(figures.values())) if "/accuracy/" in k)
    columns = columns or accuracies + COLUMNS
    columns = tuple(c for c in columns if any(c in row for row in figures.values()))

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, dict):
            return f"{value:.2f}"
        digits = metrics.decimals(value["mean"])
        return f"{value['mean']:.{digits}f} ± {value['se']:.{digits}f}"

    lines = ["| speaker | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(row.get(c)) for c in columns) + " |" for name, row in figures.items()]
    return "\n".join(lines)


def write_results(run: LoadedRun, name: str, figures: dict, picks: dict, seconds: float) -> Path:
    """Write RUN/<name>.json, with all figures, command, seed, commit and a hash of the trained weights, and
    RUN/<name>_captions.json."""
    config, folder = run.config, run.folder
    trained = folder / "train.json"
    about = {"command": command_line(), "config_hash": config_hash(config), "weights": sha256(run.weights),
             "commit": git_commit(), "seeds": {"run": config.seed, "eval": config.eval.seed},
             "wall_seconds": round(seconds, 1), "peak_memory_gb": round(peak_memory_gb(), 2),
             "training": read_json(trained) if trained.is_file() else None}
    write_json(folder / f"{name}_captions.json", picks)
    write_json(folder / f"{name}.json", {**about, "figures": figures})
    return folder / f"{name}.json"


def main(arguments: Namespace) -> None:
    refuse_doubled(arguments.override)
    began = time.perf_counter()
    run = load_run(arguments.run, arguments.override)
    dataset = dataset_of(run.config, run.config.eval.split, run.config.eval.images)
    figures, picks = measure(run, dataset, generate_captions(run, dataset))
    path = write_results(run, "results", figures, picks, time.perf_counter() - began)
    print(table(figures))
    print(f"written to {path}")
