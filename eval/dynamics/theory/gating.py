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

from .steps import lag


def oja(steps: Real[np.ndarray, "T"], along: Float[np.ndarray, "*H"], rate: float,
        ) -> tuple[Float[np.ndarray, "T *H"], Float[np.ndarray, "T *H"]]:
    """Oja's rule for one input x of length s: the weight along x, and the part across x over its start.

    u = w.x/s starts at u0 = `along`, and rate = eta s^2. The flow of u' = rate (u - u^3):
    u = sgn(u0) / sqrt(1 + (1/u0^2 - 1) exp(-2 rate t)), across = (u/u0) exp(-rate t). Derived.
    """
    t = steps.reshape(-1, *[1] * np.ndim(along))
    u = np.sign(along) / np.sqrt(1 + (1 / along ** 2 - 1) * np.exp(-2 * rate * t))
    return u, u / along * np.exp(-rate * t)


def oja_error(steps: Real[np.ndarray, "T"], along: Float[np.ndarray, "*H"], rate: float,
              ) -> tuple[Float[np.ndarray, "T *H"], Float[np.ndarray, "T *H"]]:
    """How far steps of Oja's rule are from the two curves of `oja`, to first order in the rate.

    u is late by steps.lag; ln(across/u) falls by rate - rate^2/2 (1 - 2 u^2) in a step, instead of by rate. Derived.
    """
    u, across = oja(steps, along, rate)
    t, speed = steps.reshape(-1, *[1] * np.ndim(along)), rate * (u - u ** 3)
    late = lag(1.0, speed) * np.sign(np.abs(speed) - np.abs(speed[:1]))
    error = rate ** 2 / 2 * t + rate * np.log(across) - rate * (1 - u ** 2) * late
    return np.abs(speed * late), across * np.abs(error)


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


def ema_correlation(alpha: float | Float[np.ndarray, "n"], trials: int = 50) -> float | Float[np.ndarray, "n"]:
    """Correlation of signs c and their EMA s = alpha c + (1 - alpha) s, long after its start.

    Half of the signs of each pass of this many trials are +, in random order: two trials of one pass have the
    covariance -1/(trials - 1), and trials k apart are of one pass with probability 1 - k/trials. With G = sum over k of
    (1 - alpha)^k times both: sqrt(alpha (2 - alpha)) (1 + G)/sqrt(1 + 2 G). Independent signs have G = 0. Derived.
    """
    k, kept = np.arange(1, trials), 1 - np.asarray(alpha, float)[..., None]
    g = -(kept ** k * (1 - k / trials)).sum(-1) / (trials - 1)
    found = np.sqrt(alpha * (2 - alpha)) * (1 + g) / np.sqrt(1 + 2 * g)
    return found if np.ndim(alpha) else float(found)


def sign_errors(alpha: float, trials: int = 50, points: int = 2001) -> float:
    """The share of trials on which the EMA of signs has the wrong sign, long after its start; 0 from alpha = 1/2 on.

    Signs are those of `ema_correlation`. For c = 1 these are the trials before which the EMA is below
    -alpha/(1 - alpha). Its distribution is followed from trial to trial on a grid of `points`, beside the number of
    + in the pass so far, which decides the next sign, until the first pass is forgotten. Derived.
    """
    if alpha >= 0.5:
        return 0.0
    s, plus, share = np.linspace(-1, 1, points), np.arange(trials // 2 + 1)[:, None], 0.0

    def before(f: Float[np.ndarray, "P n"], now: Float[np.ndarray, "m"]) -> Float[np.ndarray, "P m"]:
        """The distribution at the value of the EMA that was `now` one trial later."""
        place = np.clip((now + 1) / 2 * (points - 1), 0, points - 1)
        low = np.minimum(place.astype(int), points - 2)
        return f[:, low] + (f[:, low + 1] - f[:, low]) * (place - low)

    total = (s + 1) / 2
    for _ in range(2 + int(np.log(1e-6) / np.log(1 - alpha) / trials)):
        f, share = np.zeros((len(plus), points)), 0.0
        f[0] = total
        for t in range(trials):
            up = np.clip((trials // 2 - plus) / (trials - t), 0, 1)  # the probability that the next sign is +
            share += 2 * float((up * before(f, np.array([-alpha / (1 - alpha)]))).sum()) / trials
            rise = up * before(f, (s - alpha) / (1 - alpha))
            f = (1 - up) * before(f, (s + alpha) / (1 - alpha))
            f[1:] += rise[:-1]
        total = f.sum(0)
    return share


def anchors(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> dict[str, float]:
    """Accuracy on task A of three rules: A's own, the diagonal a + b > 0 (guessing where a + b = 0), and B's.

    `a` and `b` are the features of the stimuli, the first relevant in A; those with a = 0 do not count. With B's rule
    stimuli with b = 0 are still answered by A's: B gives no reward there, and learning it changes nothing.
    """
    a, b = a[a != 0], b[a != 0]
    diagonal = (np.sign(a) * np.sign(a + b) + 1) / 2
    other = np.where(b == 0, 1, (np.sign(a * b) + 1) / 2)
    return {"own": 1.0, "diagonal": float(diagonal.mean()), "other": float(other.mean())}
