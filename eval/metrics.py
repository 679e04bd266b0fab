"""Metrics of captions and picks: pure functions on texts and tensors.

Leaves out accuracy and reward, which are the game's own (dixit/training/game.py).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dixit.common import rng, words
from dixit.data.scenes import WORD_CLASSES
from dixit.training.game import most_common_caption


def mean_and_error(values: Float[Tensor, "n"] | list[float]) -> dict[str, float]:
    """{"mean", "se", "n"}; the standard error of the mean is 0 for a single value."""
    x = torch.as_tensor(values, dtype=torch.float64)
    error = float(x.std() / math.sqrt(len(x))) if len(x) > 1 else 0.0
    return {"mean": float(x.mean()), "se": error, "n": len(x)}


def decimals(mean: float) -> int:
    """The decimals a mean and its error are shown with: the tables keep six digits."""
    return 1 if abs(mean) >= 100 else 2


def holm(p_values: list[float]) -> list[float]:
    """P-values adjusted for the number of tests, by the step-down procedure of Holm (1979): the chance that any of the
    hypotheses called false at this level is true."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = np.minimum(1, (len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


def bootstrap(values: Float[Tensor, "k n"], seed: int, draws: int = 2000) -> Float[Tensor, "2 k"]:
    """The 95 % interval of the mean of each row, by resampling its n values (percentiles; Efron 1979).

    All rows use the same resamples, so that pairs stay together. Too narrow for a handful of values.
    """
    n = values.shape[1]
    # How often each value is in each sample of n: the mean of a sample is then one matrix product.
    counts = rng("bootstrap", seed, draws).multinomial(n, np.full(n, 1 / n), size=draws)
    means = values.double().cpu().numpy() @ counts.T / n  # (k, draws)
    return torch.from_numpy(np.quantile(means, [0.025, 0.975], axis=1))


def distinct(texts: list[str], n: int) -> float:
    """Different n-grams over all n-grams (Li et al. 2016, distinct-n); 0 if there are none."""
    grams = [tuple(w[i:i + n]) for w in map(words, texts) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def vocabulary(texts: list[str]) -> int:
    """The number of different words."""
    return len({w for text in texts for w in words(text)})


def perplexity(total: Float[Tensor, "S"], length: Float[Tensor, "S"]) -> dict[str, float]:
    """{"mean", "se", "n"}: perplexity per token, from the log-probability of each caption and its length in tokens."""
    mean = float((-total.sum() / length.sum()).exp())
    # The error of a ratio of sums, by the delta method.
    spread = (-total - (-total.sum() / length.sum()) * length).std() / length.mean() / len(total) ** 0.5
    return {"mean": mean, "se": mean * float(spread), "n": len(total)}


def most_repeated(texts: list[str]) -> float:
    """The share of images that get the commonest caption."""
    return most_common_caption(texts)[1] if texts else 0.0


def word_class_rates(texts: list[str]) -> dict[str, Float[Tensor, "S"]]:
    """For each class of words (colour, shape, ...), 1 for each caption that holds at least one."""
    sets = [set(words(text)) for text in texts]
    return {name: torch.tensor([float(bool(s & members)) for s in sets]) for name, members in WORD_CLASSES.items()}


def recall_at(similarity: Float[Tensor, "S n"], k: int) -> Float[Tensor, "S"]:
    """1 where caption s's own image s is among the k most similar of all n (ties count against it)."""
    own = similarity.diagonal()[:, None]
    return ((similarity >= own).sum(1) <= k).float()
