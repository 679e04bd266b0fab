"""Policy gradients and DPO: advantages and losses as pure functions on tensors.

Leaves out rewards (game.py) and sampling (speaker.py).

Shapes: B images, N captions per image, S = B*N, T caption tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Rewards = Float[Tensor, "B N"]


def running_mean_advantage(rewards: Rewards, baseline: Float[Tensor, "B"]) -> Rewards:
    """Reward minus a running mean of past rewards (REINFORCE, Williams 1992), of each image's audience or of all."""
    return rewards - baseline[:, None]


def self_critical_advantage(rewards: Rewards, greedy: Float[Tensor, "B"]) -> Rewards:
    """Reward minus the reward of the greedy caption of the same image (SCST, Rennie et al. 2017)."""
    return rewards - greedy[:, None]


def leave_one_out_advantage(rewards: Rewards) -> Rewards:
    """Reward minus the mean reward of the image's other captions (RLOO, Kool et al. 2019). N >= 2."""
    n = rewards.shape[1]
    others = (rewards.sum(1, keepdim=True) - rewards) / (n - 1)
    return rewards - others


def group_advantage(rewards: Rewards, epsilon: float = 1e-4) -> Rewards:
    """(r - mean) / (std + epsilon) within each image's captions (GRPO, Shao et al. 2024). N >= 2."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + epsilon)


def policy_loss(logp: Float[Tensor, "S T"], mask: Bool[Tensor, "S T"],
                advantage: Float[Tensor, "S"]) -> Float[Tensor, ""]:
    """-mean_s advantage_s * log pi(caption_s): its gradient is the REINFORCE estimate.

    >>> policy_loss(torch.tensor([[-1.0, -2.0]]), torch.tensor([[True, True]]), torch.tensor([0.5]))
    tensor(1.5000)
    """
    return -(advantage.detach() * (logp * mask).sum(1)).mean()


def clipped_loss(logp: Float[Tensor, "S T"], old: Float[Tensor, "S T"], mask: Bool[Tensor, "S T"],
                 advantage: Float[Tensor, "S"], clip: float) -> Float[Tensor, ""]:
    """PPO's clipped surrogate per token (Schulman et al. 2017, eq. 7), summed over a caption's tokens."""
    ratio = ((logp - old) * mask).exp()
    a = advantage.detach()[:, None]
    surrogate = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
    return -(surrogate * mask).sum(1).mean()


def dpo_loss(logp: Float[Tensor, "B N"], base: Float[Tensor, "B N"], rewards: Rewards,
             beta: float) -> Float[Tensor, ""]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) of an image's best caption against its worst, both
    sampled from the speaker itself (online: Guo et al. 2024).

    -log sigmoid(beta * ((logp - base)_best - (logp - base)_worst)), the mean over images; an image whose captions have
    equal rewards teaches nothing and counts 0. `logp` and `base` are log-probabilities of whole captions, in nats,
    under the speaker and the reference. N >= 2.

    >>> dpo_loss(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -1.0]]), torch.tensor([[1.0, 0.0]]), 0.5)
    tensor(0.3133)
    """
    best, worst = rewards.argmax(1, keepdim=True), rewards.argmin(1, keepdim=True)
    ratio = logp - base
    margin = beta * (ratio.gather(1, best) - ratio.gather(1, worst)).squeeze(1)
    differ = rewards.amax(1) > rewards.amin(1)
    return -(F.logsigmoid(margin) * differ).mean()
