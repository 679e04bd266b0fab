"""Two-layer ReLU networks without biases: linear regression as a floor, and learning as a slower linear network.

f(x) = W2 s(W1 x) with s(z) = max(z, slope z); on symmetric data (every x has its -x, and y is odd) such a network
fits no better than linear regression, and from a small balanced start it learns as a linear network does, at
(1 + slope)/2 of the speed and with sqrt(2/(1 + slope)) times its weights (Zhang, Saxe, Latham,
openreview.net/forum?id=Ucpfdn66k2). The symmetry condition is from memory.

Shapes: n points, D inputs, H hidden units, M times.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.special import expit

from .steps import flow, layers_error


def regression(x: Float[np.ndarray, "n D"], y: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "D"], float]:
    """Least-squares coefficients and their loss, half the mean squared error: no bias-free network has a lower one.

    Holds on symmetric data: the odd part of the network is linear, and its even part only adds error.
    """
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    return beta, float(((y - x @ beta) ** 2).mean() / 2)


def parts(first: Float[np.ndarray, "D H"], last: Float[np.ndarray, "H 1"], x: Float[np.ndarray, "n D"], slope: float,
          ) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The output of a two-layer network, split into its odd and its even part.

    Odd (1 + slope)/2 W2 W1 x, even (1 - slope)/2 W2 |W1 x|; their sum is the output at every x.
    """
    h = x @ first
    return (1 + slope) / 2 * (h @ last)[:, 0], (1 - slope) / 2 * (np.abs(h) @ last)[:, 0]


def scale(slope: float) -> float:
    """sqrt(2/(1 + slope)): the network's weights over those of the linear network that it follows.

    The linear network is taken at (1 + slope)/2 of the time. Zhang, Saxe, Latham.
    """
    return float(np.sqrt(2 / (1 + slope)))


def strength(times: Float[np.ndarray, "M"], target: float, start: float, slope: float = 0.0, depth: int = 2,
             ) -> Float[np.ndarray, "M"]:
    """w(t), the length of the linear map, for whitened inputs, square loss and a balanced start along the target.

    `target` is B, the length of the target, and `start` is w0. Depth 2: w = B / (1 + (B/w0 - 1) exp(-(1 + slope) B t)).
    Deeper (slope 0): w' = L/2 w^(2 - 2/L) (B - w), half the speed of a linear network at every depth L. Derived.
    """
    if depth == 2:
        return target / (1 + (target / start - 1) * np.exp(-(1 + slope) * target * times))
    return solve_ivp(lambda t, w: depth / 2 * w ** (2 - 2 / depth) * (target - w), (0, times[-1]), [start], "DOP853",
                     times, rtol=1e-11, atol=1e-13).y[0]


def strength_error(times: Float[np.ndarray, "M"], target: float, start: float, step: float, slope: float = 0.0,
                   depth: int = 2) -> float:
    """How far gradient descent with steps of this size can be from `strength` at any time, to first order."""
    w = strength(times, target, start, slope, depth)
    velocity = depth * (1 + slope) / 2 * w ** (2 - 2 / depth) * (target - w)
    return float(layers_error(step, w, velocity, depth).max())


def logistic_map(times: Float[np.ndarray, "M"], unit: Float[np.ndarray, "D"], norm: float, x: Float[np.ndarray, "n D"],
                 y: Float[np.ndarray, "n"], slope: float, step: float = 0.0) -> Float[np.ndarray, "M D"]:
    """The linear map of a network over time that starts aligned along `unit` and learns the signs of y: logistic loss.

    Its layers are p and q of length `norm`, and stay of rank one: the linear network q p'x has p' = q g and q' = p g,
    g = E[s x/(1 + exp(s q p'x))] with the sign s of y, at (1 + slope)/2 of the speed. With a step: in finite steps, to
    first order. Derived.
    """
    sign, pace = np.sign(y), (1 + slope) / 2

    def field(state: np.ndarray) -> np.ndarray:
        p, q = state[:-1], state[-1]
        g = x.T @ (sign * expit(-sign * (x @ p) * q)) / len(x)
        return pace * np.append(q * g, p @ g)

    layers = flow(field, np.sqrt(pace) * norm * np.append(unit, 1.0), times, step)
    return layers[:, :-1] * layers[:, -1:]
