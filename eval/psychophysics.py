"""Psychophysics of choices in two tasks: accuracy, the rule they follow, psychometric fits, and units of one task.

Pure float64 functions of a network's outputs or choice probabilities for the 50 items of the reference task of
eval/geometry.py: 25 stimuli (a, b) in task A, where a is rewarded, then in task B, where b is. The measures are those
of Flesch, Nagy, Saxe, Summerfield, PLoS Computational Biology 2023, and of its public code.

Leaves out recording, training, and the statistics over networks.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import curve_fit, minimize
from scipy.special import expit

from .geometry import conditions, rdm, rsa_betas

FEATURE_A, FEATURE_B, IN_B = conditions()  # of the 50 items: 25 stimuli in A, then in B
REWARD = np.where(IN_B, FEATURE_B, FEATURE_A)
OTHER = np.where(IN_B, FEATURE_A, FEATURE_B)


def accuracy(outputs: Float[np.ndarray, "*S n"]) -> Float[np.ndarray, "*S 2"]:
    """The share of stimuli of each task, without those on its boundary, whose output has the sign of the reward."""
    outputs, reward = outputs.reshape(*outputs.shape[:-1], 2, -1, 25), REWARD.reshape(2, 1, 25)
    return (((outputs > 0) == (reward > 0)) & (reward != 0)).mean(-2).sum(-1) / 20


LEVELS = np.array([0.0, 0.0, 0.5, 1.0, 1.0])
CHOICE_MODELS = {"factorised": rdm(LEVELS[REWARD.astype(int) + 2][:, None]),  # the choice of each task's own rule
                 "linear": rdm((np.sign(FEATURE_A + FEATURE_B)[:, None] + 1) / 2)}  # of the one rule a + b > 0


def factorisation(choices: Float[np.ndarray, "50"]) -> dict[str, float]:
    """Regression of |p_i - p_j| on that of the factorised and that of the linear (diagonal) rule, all z-scored."""
    return rsa_betas(rdm(choices[:, None]), CHOICE_MODELS)


def rule(outputs: Float[np.ndarray, "50"]) -> dict[str, float]:
    """`factorisation` of the choices sigmoid(y) of outputs y, at temperature 1."""
    return factorisation(expit(outputs))


def psychometric(theta: Float[np.ndarray, "5"]) -> Float[np.ndarray, "50"]:
    """Choice probabilities p = L + (1 - 2 L) / (1 + exp(-k (x - x0))), x = relevant cos(phi) + irrelevant sin(phi).

    `theta` is (phi of A, phi of B, L, k, x0), with phi in radians: 0 for each task's own rule, 45 degrees for the
    diagonal one, 90 for that of the other task.
    """
    phi, lapse, slope, threshold = np.where(IN_B, theta[1], theta[0]), theta[2], theta[3], theta[4]
    return lapse + (1 - 2 * lapse) * expit(slope * (REWARD * np.cos(phi) + OTHER * np.sin(phi) - threshold))


def fit_psychometric(choices: Float[np.ndarray, "50"]) -> dict[str, float]:
    """The best fit of `psychometric` from three starts: `bias` is the mean phi in degrees, `slope` is k.

    Minimises -sum log(1 - |p - fit| + 1e-5) with L in (0, 0.5), k in (0, 20), x0 in (-1, 1).
    """
    fits = [minimize(lambda theta: -np.log(1 - np.abs(choices - psychometric(theta)) + 1e-5).sum(),
                     [*start, 0.0, 2.0, 0.0], method="L-BFGS-B",
                     bounds=((-np.pi, np.pi), (-np.pi, np.pi), (0, 0.5), (0, 20), (-1, 1)))
            for start in ((0.0, 0.0), (np.pi / 4, np.pi / 4), (np.pi / 2, 0.0))]
    best = min(fits, key=lambda fit: fit.fun).x
    return {"bias": float(np.rad2deg(best[:2].mean())), "slope": float(best[3])}


def sensitivity(choices: Float[np.ndarray, "50"]) -> dict[str, float]:
    """Slopes of sigmoids of the relevant and of the irrelevant feature alone, means over the other and over tasks."""
    def sigmoid(x: np.ndarray, lapse: float, k: float, x0: float) -> np.ndarray:
        return lapse + (1 - 2 * lapse) * expit(k * (x - x0))

    slopes, x = {}, np.arange(-2.0, 3.0)
    for name, feature in ("relevant", REWARD), ("irrelevant", OTHER):
        means = [[choices[(IN_B == task) & (feature == level)].mean() for level in x] for task in (0, 1)]
        fits = [curve_fit(sigmoid, x, mean, (0.0, 0.0, 0.0), bounds=([0, -10, -10], [0.5, 10, 10]), method="dogbox",
                          max_nfev=1000)[0][1] for mean in means]
        slopes[name] = float(np.mean(fits))
    return slopes


def congruency(choices: Float[np.ndarray, "50"]) -> float:
    """Probability of the right choice where it is the same in both tasks, minus that where the tasks differ."""
    right, both = np.where(REWARD > 0, choices, 1 - choices), np.sign(REWARD * OTHER)
    return float(right[both > 0].mean() - right[both < 0].mean())


def behaviour(outputs: Float[np.ndarray, "50"], temperature: float) -> dict[str, float]:
    """The measures that the paper reports for people, of choices with p = sigmoid(y / T)."""
    choices = expit(outputs / temperature)
    right = np.where(REWARD > 0, choices, 1 - choices)[REWARD != 0].mean()
    return {"accuracy": float(right), **factorisation(choices), **fit_psychometric(choices), **sensitivity(choices),
            "congruency": congruency(choices)}


def task_only(hidden: Float[np.ndarray, "*S n H"]) -> Int[np.ndarray, "*S 2"]:
    """The numbers of units that are active in A only and in B only."""
    a, b = (half.max(-2) > 0 for half in np.split(hidden, 2, -2))
    return np.stack([(a & ~b).sum(-1), (b & ~a).sum(-1)], -1)


def selective(hidden: Float[np.ndarray, "50 H"]) -> dict[str, float]:
    """The share of units that respond to one feature of one task alone (t > 1.96): relevant, irrelevant.

    Regression of a unit's activity on the levels 1..5 of (a in A, b in B, b in A, a in B), which are 0 in the other
    task; all z-scored, no constant.
    """
    active = hidden[:, hidden.std(0) > 0]
    a, b = FEATURE_A + 3, FEATURE_B + 3
    x = np.stack([a * (1 - IN_B), b * IN_B, b * (1 - IN_B), a * IN_B], 1)
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    y = (active - active.mean(0)) / active.std(0)
    betas = np.linalg.lstsq(x, y, rcond=None)[0]
    variance = ((y - x @ betas) ** 2).sum(0) / (len(x) - x.shape[1])
    driven = betas / np.sqrt(np.outer(np.diag(np.linalg.inv(x.T @ x)), variance)) > 1.96
    alone = (driven & (driven.sum(0) == 1)).sum(1) / hidden.shape[1]
    return {"relevant": float(alone[:2].sum()), "irrelevant": float(alone[2:].sum())}