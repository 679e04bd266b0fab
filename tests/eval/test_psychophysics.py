"""Measures of choices and units in two tasks: what they recover from choices and units that were made up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from dixit.common import rng
from eval.psychophysics import (
    FEATURE_A,
    FEATURE_B,
    IN_B,
    OTHER,
    REWARD,
    congruency,
    factorisation,
    fit_psychometric,
    psychometric,
    selective,
    sensitivity,
    task_only,
)


def test_rules_are_distinguished_in_choices():
    own = (np.sign(REWARD) + 1) / 2
    one = (np.sign(FEATURE_A + FEATURE_B) + 1) / 2
    assert factorisation(own) == pytest.approx({"factorised": 1, "linear": 0})
    assert factorisation(one) == pytest.approx({"factorised": 0, "linear": 1})
    assert congruency(own) == 0 and congruency(one) == pytest.approx(0.5)  # incongruent: half of them are right
    assert sensitivity(expit(1.5 * REWARD)) == pytest.approx({"relevant": 1.5, "irrelevant": 0}, abs=1e-3)


@pytest.mark.parametrize("theta", [(0.2, 0.3, 0.05, 2.0, 0.1), (0.8, 0.7, 0.0, 1.0, 0.0), (1.5, 0.05, 0.02, 3.0, -0.2)])
def test_the_psychometric_fit_recovers_what_made_the_choices(theta):
    fit = fit_psychometric(psychometric(np.array(theta)))
    assert fit["bias"] == pytest.approx(np.rad2deg(np.mean(theta[:2])), abs=1.0)
    assert fit["slope"] == pytest.approx(theta[3], rel=0.05)


def test_the_other_tasks_rule_is_biased_by_90_degrees():
    np.testing.assert_allclose(psychometric(np.array([np.pi / 2, 0, 0, 2.0, 0])), expit(2 * FEATURE_B), atol=1e-12)
    np.testing.assert_allclose(psychometric(np.array([0, 0, 0, 2.0, 0])), expit(2 * REWARD))


def test_units_that_serve_one_task_are_counted():
    in_a, both = 1 - IN_B, REWARD + 3
    units = np.stack([in_a * both, IN_B * both, in_a * (OTHER + 3), both, 0 * both], 1)
    noise = 0.01 * rng("test", 1).standard_normal((50, 4 * 50))
    shares = selective(np.concatenate([np.repeat(units[:, :4], 50, 1) + noise, np.zeros((50, 50))], 1))
    assert shares == pytest.approx({"relevant": 0.4, "irrelevant": 0.2}, rel=0.15)  # t > 1.96 by chance
    plain = selective(np.concatenate([np.repeat(units[:, 3:4], 50, 1) + noise[:, :50]], 1))
    assert plain["relevant"] + plain["irrelevant"] == 0
    assert task_only(units).tolist() == [2, 1]
