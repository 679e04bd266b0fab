"""Hebbian gating and sluggish task units: Oja's rule on task units, the EMA of task signals, and accuracies of rules.

With Oja's rule on their weights two task units come to inhibit each other's hidden units; task units that carry over
from trial to trial (EMA with weight alpha) blur interleaved tasks (Flesch, Nagy, Saxe, Summerfield, PLoS Computational
Biology 2023, with public code). The closed forms are derived here.

Shapes: T steps, H hidden units, n values.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Real
from scipy.signal import lfilter


def oja(steps: Real[np.ndarray, "T"], along: Float[np.ndarray, "*H"], rate: float,
        ) -> tuple[Float[np.ndarray, "T *H"], Float[np.ndarray, "T *H"]]:
    """Oja's rule for one input x of length s: the weight along x, and the part across x over its start.

    u = w.x/s starts at u0 = `along`, and rate = eta s^2. The flow of u' = rate (u - u^3):
    u = sgn(u0) / sqrt(1 + (1/u0^2 - 1) exp(-2 rate t)), across = (u/u0) exp(-rate t). Derived.
    """
    t = steps.reshape(-1, *[1] * np.ndim(along))
    u = np.sign(along) / np.sqrt(1 + (1 / along ** 2 - 1) * np.exp(-2 * rate * t))
    return u, u / along * np.exp(-rate * t)


def oja_time(along: Float[np.ndarray, "*H"], rate: float) -> Float[np.ndarray, "*H"]:
    """The steps of `oja` until u = 1/sqrt(2), for a small start u0: ln(1/|u0|) / rate. Derived."""
    return np.log(1 / np.abs(along)) / rate


def gate(steps: Real[np.ndarray, "T"], rate: float) -> Float[np.ndarray, "T 2"]:
    """Weights from the task units of A and B during B, of a unit that has (1, 0) after A: they end as (1, -1)/sqrt(2).

    The input is (-c/2, c/2), rate = eta c^2/2. A unit that has (-1, 0) after A has minus these: a unit that
    one task excites is inhibited by the other. Derived.
    """
    u, across = oja(steps, np.array(-0.5 ** 0.5), rate)
    return np.stack([across - u * 2 ** 0.5, across + u * 2 ** 0.5], -1) / 2


def sluggish(units: Float[np.ndarray, "T n"], alpha: float) -> Float[np.ndarray, "T n"]:
    """The EMA of the activity c of task units over trials: s(t) = alpha c(t) + (1 - alpha) s(t - 1), s(0) = c(0)."""
    return lfilter([alpha], [1.0, alpha - 1.0], units, 0, (1 - alpha) * units[:1])[0]


def ema_correlation(alpha: float | Float[np.ndarray, "n"]) -> float | Float[np.ndarray, "n"]:
    """Correlation of independent random signs c and their EMA s = alpha c + (1 - alpha) s: sqrt(alpha (2 - alpha)).

    Derived.
    """
    return np.sqrt(alpha * (2 - alpha))


def sign_errors(alpha: float, points: int = 4001) -> float:
    """The share of trials on which the EMA of independent random signs has the wrong sign; 0 from alpha = 1/2 on.

    For c = 1 these are the trials before which the EMA is below -alpha/(1 - alpha); its distribution is the fixed point
    of F(s) = [F((s - alpha)/(1 - alpha)) + F((s + alpha)/(1 - alpha))]/2, found on a grid of `points`. Derived.
    """
    if alpha >= 0.5:
        return 0.0
    s = np.linspace(-1, 1, points)
    f, before = (s + 1) / 2, s
    while np.abs(f - before).max() > 1e-12:
        before = f
        low, high = (np.interp((s + move) / (1 - alpha), s, before, 0, 1) for move in (-alpha, alpha))
        f = (low + high) / 2
    return float(np.interp(-alpha / (1 - alpha), s, f, 0, 1))


def anchors(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> dict[str, float]:
    """Accuracy on task A of three rules: A's own, the diagonal a + b > 0 (guessing where a + b = 0), and B's.

    `a` and `b` are the features of the stimuli, the first relevant in A; those with a = 0 do not count. With B's rule
    stimuli with b = 0 are still answered by A's: B gives no reward there, and learning it changes nothing.
    """
    a, b = a[a != 0], b[a != 0]
    diagonal = (np.sign(a) * np.sign(a + b) + 1) / 2
    other = np.where(b == 0, 1, (np.sign(a * b) + 1) / 2)
    return {"own": 1.0, "diagonal": float(diagonal.mean()), "other": float(other.mean())}
