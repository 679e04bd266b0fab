"""The reference game: candidates, reward and its named terms. Pure functions on tensors.

A round is one caption of a target and C candidate images, the target at place 0 (listeners score each
candidate alone, so the place tells nothing; ties share the hit). Leaves out how captions are made
(speaker.py) and how they change the speaker (policy.py).

Shapes: B images, S captions, C candidates, L listeners.
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


def draw_candidates(targets: Int[np.ndarray, "B"], pool: Int[np.ndarray, "n"], candidates: int,
                    *key: int | str) -> Int[Tensor, "B C"]:
    """Each target, then C-1 different distractors drawn from `pool` without the target. Pure in `key`.

    Raises DixitError if the pool is too small.
    """
    if len(pool) < candidates:
        raise DixitError(f"game.candidates {candidates} needs at least as many images, but there are only "
                         f"{len(pool)}; lower game.candidates or add images")
    r = rng("candidates", *key)
    rows = []
    for target in targets:
        chosen = r.choice(pool, size=candidates, replace=False)
        chosen = chosen[chosen != target][: candidates - 1]
        rows.append(np.concatenate([[target], chosen]))
    return torch.from_numpy(np.stack(rows))


def draw_hard_candidates(targets: Int[np.ndarray, "B"], neighbours: Int[np.ndarray, "n m"], candidates: int,
              *key: int | str) -> Int[Tensor, "B C"]:
    """Like draw_candidates, from each target's own nearest neighbours (itself not among them)."""
    r = rng("candidates", *key)
    return torch.from_numpy(np.stack([
        np.concatenate([[t], r.choice(neighbours[t], size=candidates - 1, replace=False)]) for t in targets]))


def nearest_images(embeddings: Float[Tensor, "n E"], count: int) -> Int[np.ndarray, "n m"]:
    """The `count` nearest other images of each image by cosine of unit embeddings."""
    parts = []
    for start in range(0, len(embeddings), 512):
        similarity = embeddings[start:start + 512] @ embeddings.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -math.inf
        parts.append(similarity.topk(min(count, len(embeddings) - 1), dim=1).indices)
    return torch.cat(parts).numpy()


def target_logp(logits: Logits) -> Float[Tensor, "L S"]:
    """Each listener's log-probability of the target, log softmax(logits)[0]."""
    return logits.log_softmax(-1)[..., 0]


def hits(logits: Logits) -> Float[Tensor, "L S"]:
    """1 where the target scores highest; a tie for the highest of m candidates counts 1/m."""
    best = logits == logits.max(-1, keepdim=True).values
    return best[..., 0].float() / best.float().sum(-1)


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
    """Each round's weights dealt to the listeners at random: a control in which nobody stays who they were."""
    order = rng("audience", *key).permuted(np.tile(np.arange(len(weights)), (rounds, 1)), axis=1)
    return weights[torch.from_numpy(order)].T


def listener_reward(kind: str, logits: Logits,
                    weights: Float[Tensor, "L"] | Float[Tensor, "L S"]) -> Float[Tensor, "S"]:
    """The game reward of each caption; p_l = softmax(logits_l)[target], w_l the signed weight of listener l.

    sub_logp    sum_l w_l log p_l                      (listener subtraction; w = +1, -1). Unbounded: it pays to
                mislead listener 2 far below chance even at listener 1's cost; sub_chance closes that route
    sub_prob    sum_l w_l p_l
    sub_acc     sum_l w_l hit_l
    sub_chance  as sub_logp, but a negative listener counts only above chance: w_l max(0, log p_l + log C)
    product     sum_{w>0} w_l log p_l + sum_{w<0} |w_l| log(1 - p_l)
    clip_score  sum_{w>0} w_l logit_l[target], no game: CLIPScore (Hessel et al. 2021) times the CLIP's scale, and
                not cut off below 0
    dixit       3 (1 - prod p_l - prod (1 - p_l)): expected storyteller points, all-or-none rule, signs ignored
    """
    logp = target_logp(logits)
    w = (weights if weights.ndim == 2 else weights[:, None]).to(logp)
    if kind == "sub_logp":
        return (w * logp).sum(0)
    if kind == "sub_prob":
        return (w * logp.exp()).sum(0)
    if kind == "sub_acc":
        return (w * hits(logits)).sum(0)
    if kind == "sub_chance":
        above = (logp + math.log(logits.shape[-1])).clamp(min=0)
        return (w * torch.where(w > 0, logp, above)).sum(0)
    if kind == "product":
        # log(1 - p) from the other candidates' log-probabilities: stable as p -> 1.
        others = logits.log_softmax(-1)[..., 1:].logsumexp(-1)
        return (w.abs() * torch.where(w > 0, logp, others)).sum(0)
    if kind == "clip_score":
        return (w.clamp(min=0) * logits[..., 0]).sum(0)
    if kind == "dixit":
        p = logp.exp()
        return 3 * (1 - p.prod(0) - (1 - p).prod(0))
    raise DixitError(f"unknown reward '{kind}'")


def repetition(texts: list[str]) -> Float[Tensor, "S"]:
    """How many words of each caption stood in it before (function words aside)."""
    spared = {"a", "an", "the", "and", "of", "at", "on", "in", "is"}
    said = [[w for w in words(text) if w not in spared] for text in texts]
    return torch.tensor([float(len(row) - len(set(row))) for row in said])


def total_reward(terms: dict[str, Float[Tensor, "S"]], costs: dict[str, float]) -> Float[Tensor, "S"]:
    """terms["listeners"] minus each named cost times its term."""
    return terms["listeners"] - sum((costs[k] * terms[k] for k in costs), torch.zeros(()))


def caption_lengths(mask: Bool[Tensor, "S T"]) -> Float[Tensor, "S"]:
    """Tokens per caption, the end token included."""
    return mask.sum(1).float()


# ---- what is worth watching while the speaker learns ---------------------------------------------------------


def most_common_caption(texts: list[str]) -> tuple[str, float]:
    """The caption most often said, and the share of the images it is said of: 1 if the speaker is constant."""
    text, count = Counter(texts).most_common(1)[0]
    return text, count / len(texts)


def kernel(states: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    """Inner products between images of the speaker's states, less their mean."""
    x = states - states.mean(0)
    return x @ x.T


def kernel_distance(first: Float[Tensor, "B B"], now: Float[Tensor, "B B"]) -> float:
    """1 - <K, K'> / (|K| |K'|): 0 if images still lie to each other as they did. Of centred kernels, 1 - linear CKA
    (Kornblith et al. 2019)."""
    return float(1 - ((first * now).sum() / (first.norm() * now.norm()).clamp(min=1e-12)).clamp(max=1))


def participation_ratio(kernel: Float[Tensor, "B B"]) -> float:
    """(sum l)^2 / sum l^2 over its eigenvalues l: how many dimensions the states fill; 0 if they are all alike."""
    return float(kernel.trace().square() / kernel.square().sum().clamp(min=1e-12))
