"""Policy gradients and DPO against numbers worked out by hand, finite differences, and exact expectations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dixit.training import policy

REWARDS = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])


def test_running_mean_advantage():
    found = policy.running_mean_advantage(REWARDS, torch.tensor([2.0, -1.0]))
    assert found.tolist() == [[-1.0, 0.0, 4.0], [1.0, 1.0, 1.0]]


def test_self_critical_advantage():
    found = policy.self_critical_advantage(REWARDS, torch.tensor([2.0, -1.0]))
    assert found.tolist() == [[-1.0, 0.0, 4.0], [1.0, 1.0, 1.0]]


def test_leave_one_out_advantage():
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    assert policy.leave_one_out_advantage(REWARDS).tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]


def test_group_advantage():
    # Mean 3, standard deviation sqrt((4 + 1 + 9) / 2) = sqrt(7).
    found = policy.group_advantage(REWARDS, epsilon=0.0001)
    expected = torch.tensor([-2.0, -1.0, 3.0]) / (7**0.5 + 0.0001)
    torch.testing.assert_close(found[0], expected)
    assert found[1].tolist() == [0.0, 0.0, 0.0]  # equal rewards teach nothing, and nothing is divided by zero


LOGP = torch.tensor([[-1.0, -2.0, -5.0], [-0.5, -9.0, -9.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_policy_loss_by_hand():
    # -(0.5 * (-8) + (-2) * (-0.5)) / 2
    assert float(policy.policy_loss(LOGP, MASK, torch.tensor([0.5, -2.0]))) == pytest.approx(1.5)


def test_policy_loss_gradient_by_hand_and_not_through_the_advantage():
    logp, advantage = LOGP.clone().requires_grad_(), torch.tensor([0.5, -2.0], requires_grad=True)
    policy.policy_loss(logp, MASK, advantage).backward()
    assert logp.grad.tolist() == [[-0.25, -0.25, -0.25], [1.0, 0.0, 0.0]]
    assert advantage.grad is None


def test_clipped_loss_by_hand():
    # Ratios 1.5, 1 and 0.5, then 1.5; clip 0.2.
    # Advantage 2: min(3, 2.4) + 2 + min(1, 1.6). Advantage -1: min(-1.5, -1.2).
    old = torch.tensor([[-1.0, -2.0, -5.0], [-0.5, -9.0, -9.0]])
    shift = torch.tensor([[1.5, 1.0, 0.5], [1.5, 7.0, 7.0]]).log()
    loss = policy.clipped_loss(old + shift, old, MASK, torch.tensor([2.0, -1.0]), 0.2)
    assert float(loss) == pytest.approx(-(2.4 + 2 + 1 - 1.5) / 2)


def test_clipped_loss_stops_the_gradient_beyond_the_clip():
    old = torch.zeros(1, 4)
    logp = torch.tensor([[1.5, 0.5, 1.1, 0.9]]).log().requires_grad_()
    policy.clipped_loss(logp, old, torch.ones(1, 4, dtype=torch.bool), torch.tensor([1.0]), 0.2).backward()
    # Better than wanted (1.5): no pull. 0.5 may come back: full pull, its ratio. In between: the ratio.
    torch.testing.assert_close(logp.grad, -torch.tensor([[0.0, 0.5, 1.1, 0.9]]))


def test_clipped_loss_on_fresh_samples_has_the_gradient_of_policy_loss():
    gradients = []
    for loss in (lambda x: policy.clipped_loss(x, LOGP, MASK, torch.tensor([2.0, -1.0]), 0.2),
                 lambda x: policy.policy_loss(x, MASK, torch.tensor([2.0, -1.0]))):
        logp = LOGP.clone().requires_grad_()
        loss(logp).backward()
        gradients.append(logp.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("loss", [
    lambda x: policy.policy_loss(x, MASK, torch.tensor([0.7, -1.3]).double()),
    lambda x: policy.clipped_loss(x, LOGP.double() + 0.05, MASK, torch.tensor([0.7, -1.3]).double(), 0.2),
])
def test_gradients_agree_with_finite_differences(loss):
    logp = LOGP.double().requires_grad_()
    loss(logp).backward()
    step = 1e-6
    for place in itertools.product(range(2), range(3)):
        bump = torch.zeros_like(LOGP.double())
        bump[place] = step
        with torch.no_grad():
            slope = float(loss(logp + bump) - loss(logp - bump)) / (2 * step)
        assert slope == pytest.approx(float(logp.grad[place]), abs=1e-8)


# Best and worst of each image: captions 1 and 0, then 0 and 2; the third image has none.
PREFERENCES = torch.tensor([[-1.0, 3.0, 2.0], [5.0, 0.0, -5.0], [4.0, 4.0, 4.0]])
SAID = torch.tensor([[-3.0, -2.0, -9.0], [-1.0, -9.0, -4.0], [-1.0, -2.0, -3.0]])
BASE = torch.tensor([[-2.0, -4.0, -9.0], [-2.0, -9.0, -1.0], [-3.0, -2.0, -1.0]])


def test_dpo_loss_by_hand():
    # Margins: (-2 + 4) - (-3 + 2) = 3 and (-1 + 2) - (-4 + 1) = 4.
    expected = (math.log(1 + math.exp(-0.5 * 3)) + math.log(1 + math.exp(-0.5 * 4))) / 3
    assert float(policy.dpo_loss(SAID, BASE, PREFERENCES, 0.5)) == pytest.approx(expected)


def test_dpo_gradient_by_hand_and_for_the_speaker_only():
    logp, base, rewards = (x.clone().requires_grad_() for x in (SAID, BASE, PREFERENCES))
    policy.dpo_loss(logp, base.detach(), rewards, 0.5).backward()
    one, two = (0.5 / (1 + math.exp(0.5 * margin)) / 3 for margin in (3, 4))
    torch.testing.assert_close(logp.grad, torch.tensor([[one, -one, 0.0], [-two, 0.0, two], [0.0, 0.0, 0.0]]))
    assert rewards.grad is None


def test_dpo_of_the_base_speaker_is_undecided():
    assert float(policy.dpo_loss(BASE, BASE, PREFERENCES, 7.0)) == pytest.approx(math.log(2) * 2 / 3)
    assert float(policy.dpo_loss(SAID[2:], BASE[2:], PREFERENCES[2:], 7.0)) == 0  # equal rewards teach nothing


# --- a whole tiny problem: two tokens out of three, every caption can be listed --------------------------------

CAPTIONS = torch.tensor(list(itertools.product(range(3), repeat=2)))  # (9, 2)
PAYS = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.5, -0.4, 0.9, -2.0, 0.1], dtype=torch.float64)
GREEDY = 4


def parameters() -> Tensor:
    """Logits of the first token (row 0), and of the second one after each first one (rows 1 to 3)."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def token_logp(theta: Tensor) -> Tensor:
    rows = theta.log_softmax(-1)
    return torch.stack([rows[0, CAPTIONS[:, 0]], rows[1 + CAPTIONS[:, 0], CAPTIONS[:, 1]]], 1)


def expected_gradient(advantage: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of the estimate's gradient over every pair of captions that two draws can give."""
    total = torch.zeros(4, 3, dtype=torch.float64)
    for pair in itertools.product(range(9), repeat=2):
        theta = parameters()
        logp = token_logp(theta)
        chance = float(logp.detach()[list(pair)].sum().exp())
        mask = torch.ones(2, 2, dtype=torch.bool)
        gains = advantage(PAYS[list(pair)][None])
        policy.policy_loss(logp[list(pair)], mask, gains.flatten()).backward()
        total += chance * theta.grad
    return total


@pytest.mark.parametrize("advantage", [
    lambda r: r, lambda r: policy.running_mean_advantage(r, torch.tensor([0.7]).to(r)), policy.leave_one_out_advantage,
    lambda r: policy.self_critical_advantage(r, PAYS[GREEDY][None]),
], ids=["reinforce", "running_mean", "leave_one_out", "self_critical"])
def test_the_estimate_is_the_exact_gradient_in_expectation(advantage):
    theta = parameters()
    (token_logp(theta).sum(1).exp() * PAYS).sum().backward()  # the expected reward
    assert theta.grad.norm() > 0.1
    torch.testing.assert_close(expected_gradient(advantage), -theta.grad, atol=1e-12, rtol=1e-9)


def test_leave_one_out_has_less_variance_than_no_baseline():
    def variance(advantage: Callable[[Tensor], Tensor]) -> float:
        first, second = torch.zeros(4, 3, dtype=torch.float64), 0.0
        for pair in itertools.product(range(9), repeat=2):
            theta = parameters()
            logp = token_logp(theta)
            chance = float(logp.detach()[list(pair)].sum().exp())
            gains = advantage(PAYS[list(pair)][None] + 5)  # a constant that carries no information
            policy.policy_loss(logp[list(pair)], torch.ones(2, 2, dtype=torch.bool), gains.flatten()).backward()
            first += chance * theta.grad
            second += chance * float(theta.grad.square().sum())
        return second - float(first.square().sum())

    assert variance(policy.leave_one_out_advantage) < 0.5 * variance(lambda r: r)
