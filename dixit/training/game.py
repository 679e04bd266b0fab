"""The reference game: rewards with their named terms, hits and gaps. Pure functions on tensors.

A round is one caption of a target and C candidate images, the target at index 0 (listeners score each candidate
alone, so the order carries no information; ties share the hit). Leaves out which candidates are drawn (candidates.py),
how captions are sampled (models/speaker.py) and how rewards update the speaker (policy.py).

Shapes: B images, N captions per image (a group), S = B*N captions, C candidates, L listeners.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dixit.common import DixitError, rng, words

Logits = Float[Tensor, "L S C"]


def batch_indices(seed: int, step: int, batch: int, size: int) -> Int[np.ndarray, "B"]:
    """The images of a global batch: without repeats, a pure function of (seed, step)."""
    if batch > size:
        raise DixitError(f"train.batch {batch} is larger than the dataset of {size} images")
    return rng("batch", seed, step).choice(size, size=batch, replace=False)


def target_logp(logits: Logits) -> Float[Tensor, "L S"]:
    """Each listener's log-probability of the target, log softmax(logits)[0]."""
    return logits.log_softmax(-1)[..., 0]


def hits(logits: Logits) -> Float[Tensor, "L S"]:
    """1 where the target has the highest logit; a tie of m candidates for the highest counts 1/m, NaN nothing."""
    best = logits == logits.max(-1, keepdim=True).values
    return best[..., 0].float() / best.float().sum(-1).clamp(min=1)


def gap(hits: Float[Tensor, "L *S"], weights: Float[Tensor, "L"] | Float[Tensor, "L *S"]) -> Float[Tensor, "*S"]:
    """Mean hit of the listeners of positive weight minus that of those of negative weight (0 where there are none)."""
    w = weights.reshape(-1, *[1] * (hits.ndim - 1)) if weights.ndim == 1 else weights
    plus, minus = (w > 0).to(hits), (w < 0).to(hits)
    return (hits * plus).sum(0) / plus.sum(0) - (hits * minus).sum(0) / minus.sum(0).clamp(min=1)


def scoring_rounds(hits: Float[Tensor, "L S"]) -> Float[Tensor, "S"]:
    """Dixit's rule: 1 where some listeners find the target but not all (expected value where there are ties)."""
    return 1 - hits.prod(0) - (1 - hits).prod(0)


def sampled_audience(weights: Float[Tensor, "L"], rounds: int, *key: int | str) -> Float[Tensor, "L B"]:
    """Weights of each round's audience: one listener of positive weight and one of negative, the others 0."""
    r = rng("audience", *key)
    w = weights.tolist()
    chosen = torch.zeros(len(w), rounds)
    for side in ([i for i, x in enumerate(w) if x > 0], [i for i, x in enumerate(w) if x < 0]):
        if side:
            places = torch.from_numpy(r.choice(side, size=rounds))
            chosen[places, torch.arange(rounds)] = torch.tensor([w[i] for i in places])
    return chosen


def shuffled_audience(weights: Float[Tensor, "L"], rounds: int, *key: int | str) -> Float[Tensor, "L B"]:
    """Each round's weights assigned to the listeners at random: a control without stable roles."""
    order = rng("audience", *key).permuted(np.tile(np.arange(len(weights)), (rounds, 1)), axis=1)
    return weights[torch.from_numpy(order)].T


def listener_reward(kind: str, logits: Logits,
                    weights: Float[Tensor, "L"] | Float[Tensor, "L S"]) -> Float[Tensor, "S"]:
    """The game reward of each caption; p_l = softmax(logits_l)[target], w_l the signed weight of listener l.

    sub_logp    sum_l w_l log p_l                      (listener subtraction; w = +1, -1). Unbounded: misleading
                listener 2 far below chance pays even at listener 1's cost; sub_chance prevents that
    sub_prob    sum_l w_l p_l
    sub_acc     sum_l w_l hit_l
    sub_chance  as sub_logp, but a negative listener counts only above chance: w_l max(0, log p_l + log C)
    product     sum_{w>0} w_l log p_l + sum_{w<0} |w_l| log(1 - p_l)
    clip_score  sum_{w>0} w_l logit_l[target], no game: CLIPScore (Hessel et al. 2021) times the CLIP's scale, and
                not cut off below 0
    dixit       3 (1 - prod p_l - prod (1 - p_l)): expected storyteller points, all-or-none rule, signs ignored
    """
    w = (weights if weights.ndim == 2 else weights[:, None]).to(logits)
    each = listener_terms(kind, logits, w)
    if kind == "dixit":
        return 3 * (1 - each.prod(0) - (1 - each).prod(0))
    return (w * each).sum(0)


def listener_terms(kind: str, logits: Logits, weights: Float[Tensor, "L #S"]) -> Float[Tensor, "L S"]:
    """Each listener's own reward of each caption: the game reward is their sum, times the weights (dixit: see there).

    sub_logp log p_l, sub_prob and dixit p_l, sub_acc hit_l. The other three differ by the sign of w_l:
    sub_chance log p_l or max(0, log p_l + log C), product log p_l or -log(1 - p_l), clip_score logit_l[target] or 0.
    """
    logp = target_logp(logits)
    if kind == "sub_logp":
        return logp
    if kind in ("sub_prob", "dixit"):
        return logp.exp()
    if kind == "sub_acc":
        return hits(logits)
    if kind == "sub_chance":
        return torch.where(weights > 0, logp, (logp + math.log(logits.shape[-1])).clamp(min=0))
    if kind == "product":
        # log(1 - p) from the other candidates' log-probabilities: stable as p -> 1.
        return torch.where(weights > 0, logp, -logits.log_softmax(-1)[..., 1:].logsumexp(-1))
    if kind == "clip_score":
        return logits[..., 0].where(weights > 0, 0.0)
    raise DixitError(f"unknown reward '{kind}'")


def group_statistics(rewards: Float[Tensor, "L B N"]) -> tuple[Float[Tensor, "L B"], Float[Tensor, "L B"]]:
    """Mean and standard deviation of each listener's rewards of an image's captions. Rewards that are not finite are
    left out; of none both are 0, of one the deviation is."""
    known = rewards.isfinite()
    count = known.sum(-1)
    mean = rewards.where(known, 0.0).sum(-1) / count.clamp(min=1)
    squares = (rewards - mean[..., None]).where(known, 0.0).square().sum(-1)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def normalised_terms(rewards: Float[Tensor, "L B N"], epsilon: float = 1e-4) -> Float[Tensor, "L B N"]:
    """(r - mean) / (std + epsilon) of each listener within each image's captions, 0 where r is not finite. N >= 2.

    The step of GDPO before the weighted sum (Liu et al. 2026): a listener whose rewards vary more does not count for
    more. GDPO's other step, over the batch after the sum, is left out: `policy.algorithm` takes the sum as a reward.
    """
    mean, std = group_statistics(rewards)
    found = (rewards - mean[..., None]) / (std[..., None] + epsilon)
    return found.where(rewards.isfinite(), 0.0)


def repetition(texts: list[str]) -> Float[Tensor, "S"]:
    """The number of repeated words in each caption (function words aside)."""
    function_words = {"a", "an", "the", "and", "of", "at", "on", "in", "is"}
    content = [[w for w in words(text) if w not in function_words] for text in texts]
    return torch.tensor([float(len(row) - len(set(row))) for row in content])


def total_reward(terms: dict[str, Float[Tensor, "S"]], costs: dict[str, float]) -> Float[Tensor, "S"]:
    """terms["listeners"] minus each named cost times its term."""
    return terms["listeners"] - sum((costs[k] * terms[k] for k in costs), torch.zeros(()))


def caption_lengths(mask: Bool[Tensor, "S T"]) -> Float[Tensor, "S"]:
    """Tokens per caption, the end token included."""
    return mask.sum(1).float()


# ---- diagnostics of the speaker while it learns --------------------------------------------------------------


def most_common_caption(texts: list[str]) -> tuple[str, float]:
    """The most frequent caption, and the fraction of the images that get it: 1 if the speaker is constant."""
    text, count = Counter(texts).most_common(1)[0]
    return text, count / len(texts)


def centred_kernel(states: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    """Inner products between images of the speaker's states, after subtracting the mean state."""
    x = states - states.mean(0)
    return x @ x.T


def kernel_distance(first: Float[Tensor, "B B"], now: Float[Tensor, "B B"]) -> float:
    """1 - <K, K'> / (|K| |K'|): 0 if the geometry of the states has not changed. For centred kernels this is 1 - linear
    CKA (Kornblith et al. 2019)."""
    return float(1 - ((first * now).sum() / (first.norm() * now.norm()).clamp(min=1e-12)).clamp(max=1))


def participation_ratio(kernel: Float[Tensor, "B B"]) -> float:
    """(sum l)^2 / sum l^2 over its eigenvalues l: the effective dimension of the states; 0 if all are equal."""
    return float(kernel.trace().square() / kernel.square().sum().clamp(min=1e-12))
