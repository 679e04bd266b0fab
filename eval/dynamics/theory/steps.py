"""What finite steps of gradient descent add to a curve of gradient flow, to first order in the step.

For a flow u' = f(u) in one dimension, steps of size h lag behind by h/2 ln(f(u)/f(u0)) of time: to first order they
follow the flow of f - h/2 f f', whose time differs by the integral of h/2 f'/f. A quantity a(u) is then off by a' times
that. Derived.

Shapes: M points of time, n variables; any further axes, A.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp


def lag(step: float, speed: Float[np.ndarray, "M *A"]) -> Float[np.ndarray, "M *A"]:
    """The time by which steps of this size are late, where the flow has this speed f(u); speed[0] is at the start."""
    small = 1e-12 * np.abs(speed[:1])  # the speed ends at 0, where a lag no longer matters
    return step / 2 * np.abs(np.log(np.maximum(np.abs(speed), small) / np.maximum(np.abs(speed[:1]), small)))


def layers_error(step: float, strength: Float[np.ndarray, "M *A"], slope: Float[np.ndarray, "M *A"], depth: int,
                 ) -> Float[np.ndarray, "M *A"]:
    """The error of the strength a = u^depth of a balanced network of this depth, from its slope a' over time.

    The layers grow at the speed u' = a' / (depth u^(depth - 1)).
    """
    return np.abs(slope) * lag(step, slope / strength ** (1 - 1 / depth))


def flow(field: Callable[[np.ndarray], np.ndarray], start: Float[np.ndarray, "n"], times: Float[np.ndarray, "M"],
         step: float = 0.0) -> Float[np.ndarray, "M n"]:
    """The flow u' = f(u) from `start` over time.

    With a step: what steps of this size follow to first order, the flow of f - step/2 f' f.
    """

    def bent(_: float, u: np.ndarray) -> np.ndarray:
        f = field(u)
        return f - step / 2 * (field(u + 1e-4 * f) - field(u - 1e-4 * f)) / 2e-4 if step else f

    return solve_ivp(bent, (0, times[-1]), start, "DOP853", times, rtol=1e-9, atol=1e-11).y.T
