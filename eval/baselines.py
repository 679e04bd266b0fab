"""Baselines that search with the listeners instead of training: `python -m eval.baselines RUN [eval.images=200 ...]`.

best of N               sample N captions of the base speaker and take the one with the highest reward on pools of
                        its own (reranking, Lazaridou et al. 2020)
contrastive decoding    at each step take the token with the highest log p + strength x reward of the caption so far,
                        among the K likeliest tokens of the base speaker (after Ou et al. 2023, with listener 2
                        subtracted)

Both query the listeners about the images that they are evaluated on, though on other pools; the trained speaker makes
no such queries. Writes RUN/baselines.json, in the format of eval.evaluate, and prints the table.

Shapes: B images, N captions per image, S = B*N, M pools of C candidates, K candidate tokens.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.baselines)

import time
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from dixit.common import DixitError, rng
from dixit.config import Config
from dixit.models.features import patch_features
from dixit.models.listeners import Listener, score_all
from dixit.training import game
from dixit.training.candidates import draw_candidates
from dixit.training.runs import LoadedRun, load_run, make_listeners, patch_batch

from .evaluate import dataset_of, generate_captions, measure, table, weights_of, write_results

POOLS = 8  # pools per image on which the reward is averaged


def mean_reward(config: Config, listeners: list[Listener], texts: list[str],
          candidates: Int[Tensor, "B M C"]) -> Float[Tensor, "S"]:
    """The game's reward of each caption, averaged over its image's pools; texts are ordered by image."""
    each = len(texts) // len(candidates)
    pools = candidates.shape[1]
    tried = candidates.repeat_interleave(each, 0).flatten(0, 1)
    logits = score_all(listeners, [text for text in texts for _ in range(pools)], tried)
    weights = weights_of(config.listeners).to(logits.device)
    return game.listener_reward(config.game.reward, logits, weights).unflatten(0, (-1, pools)).mean(1)


def best_of(run: LoadedRun, prefix: Float[Tensor, "B P D"], listeners: list[Listener],
            candidates: Int[Tensor, "B M C"], samples: int, *key: int | str) -> list[str]:
    """The best of N samples of the base speaker for each image."""
    draws = rng("best_of", *key).random((len(prefix) * samples, run.config.speaker.max_tokens), dtype=np.float32)
    tokens, mask, _ = run.speaker.sample(prefix, torch.from_numpy(draws).to(prefix.device))
    texts = run.speaker.decode(tokens, mask)
    best = mean_reward(run.config, listeners, texts, candidates).unflatten(0, (-1, samples)).argmax(1).tolist()
    return [texts[i * samples + j] for i, j in enumerate(best)]


def contrastive(run: LoadedRun, prefix: Float[Tensor, "B P D"], listeners: list[Listener],
                candidates: Int[Tensor, "B M C"], tokens_tried: int, strength: float) -> list[str]:
    """Greedy decoding by log p + strength x reward of the caption so far, among the K likeliest tokens."""
    speaker, count = run.speaker, len(prefix)
    chosen: list[list[int]] = [[] for _ in range(count)]
    going = list(range(count))
    for _ in range(run.config.speaker.max_tokens):
        rows = torch.tensor(going, device=prefix.device)
        logp = speaker.next_logp(prefix[rows], torch.tensor([chosen[i] for i in going], dtype=torch.long,
                                                            device=prefix.device).reshape(len(going), -1))
        best, token = logp.topk(tokens_tried, dim=1)  # (b, K)
        texts = [speaker.tokenizer.decode([*chosen[i], t] if t != speaker.eos else chosen[i], skip_special_tokens=True)
                 for i, row in zip(going, token.tolist(), strict=True) for t in row]
        paid = mean_reward(run.config, listeners, texts, candidates[rows.cpu()]).unflatten(0, (-1, tokens_tried))
        choice = (best + strength * paid).argmax(1)
        for i, t in zip(list(going), token.gather(1, choice[:, None]).squeeze(1).tolist(), strict=True):
            if t == speaker.eos:
                going.remove(i)
            else:
                chosen[i].append(t)
        if not going:
            break
    return [speaker.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in chosen]


@torch.no_grad()
def untrained_speakers(run: LoadedRun, dataset: Dataset, samples: int = 8, tokens_tried: int = 6,
                       strength: float = 8.0) -> dict[str, dict[str, Any]]:
    """Captions of both baselines for every image, in the format of `evaluate.generate_captions`."""
    if run.base is None:
        raise DixitError(f"{run.folder} has no base speaker; name a run of the game that started from one")
    store, config = patch_features(run.eyes, dataset, "colour"), run.config
    listeners = make_listeners(config.listeners, dataset, run.speaker.device)
    everyone = np.arange(len(dataset))
    pools = draw_candidates(np.repeat(everyone, POOLS), everyone, config.game.candidates, "baselines",
                                 config.eval.seed).unflatten(0, (-1, POOLS))
    names = f"best of {samples}", "contrastive decoding"
    captions: dict[str, dict[str, Any]] = {name: {"texts": []} for name in names}
    for start in tqdm(range(0, len(dataset), config.eval.batch), desc="baselines", unit="batch", disable=None):
        index = everyone[start:start + config.eval.batch]
        prefix, mine = run.base(patch_batch(store, index, run.speaker.device)), pools[index]
        captions[names[0]]["texts"] += best_of(run, prefix, listeners, mine, samples, config.eval.seed, start)
        captions[names[1]]["texts"] += contrastive(run, prefix, listeners, mine, tokens_tried, strength)
    return captions


def main(arguments: Namespace) -> None:
    began = time.perf_counter()
    run = load_run(arguments.run, arguments.override)
    dataset = dataset_of(run.config, run.config.eval.split, run.config.eval.images)
    captions = generate_captions(run, dataset) | untrained_speakers(run, dataset)
    figures, picks = measure(run, dataset, captions)
    path = write_results(run, "baselines", figures, picks, time.perf_counter() - began)
    print(table(figures))
    print(f"written to {path}")
