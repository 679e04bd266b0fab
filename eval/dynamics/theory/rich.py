"""Unbalanced initialisation: delta = eta_w a^2 - eta_a |w|^2 is conserved and decides how linear networks learn.

The closed form of one linear neuron f = a w'x for every delta, the distance that its tangent kernel moves, the
solution that it ends in where there are many, and the differential equation of wide linear networks whose imbalance is
isotropic (Kunin et al. 2024, github.com/allanraventos/getrichquick). What is derived here and not taken from the paper
says so.

Shapes: M times, D inputs, C outputs, H hidden, n points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

# ---- one linear neuron -----------------------------------------------------------------------------------


def start(beta: Float[np.ndarray, "D"], delta: float, paces: Sequence[float] = (1.0, 1.0),
          ) -> tuple[float, Float[np.ndarray, "D"]]:
    """The weights a > 0 and w of the neuron with a w = beta and eta_w a^2 - eta_a |w|^2 = delta.

    `paces` are (eta_a, eta_w), the learning rates of the two layers. Kunin et al. 2024.
    """
    eta_a, eta_w = paces
    a = np.sqrt((delta + np.sqrt(delta ** 2 + 4 * eta_a * eta_w * beta @ beta)) / 2 / eta_w)
    return float(a), beta / a


def neuron(times: Float[np.ndarray, "M"], a0: float, w0: Float[np.ndarray, "D"], target: Float[np.ndarray, "D"],
           paces: Sequence[float] = (1.0, 1.0)) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M D"]]:
    """a(t), w(t) of f = a w'x with loss |a w - target|^2 / 2 (whitened inputs), for every delta.

    With s = |target|, k = sqrt(delta^2/4 + s^2): a = q G, w = p G, where q and the part of p along the target solve
    a linear equation with eigenvalues +-k, the rest of p decays as exp(-delta t/2), and G^-2 exp(delta t) = 1 + 2
    (integral of q^2 exp(delta t)), three exponentials. Derived; one formula where the public notebook has a complex
    arctanh and a separate case for delta = 0. Unequal rates `paces` are absorbed into the units of a, w and t. All
    growing factors are divided by exp(kt), so nothing overflows.
    """
    r = np.sqrt(paces[0] * paces[1])
    a0, w0, t = a0 * np.sqrt(r / paces[0]), w0 * np.sqrt(r / paces[1]), r * np.asarray(times, float)
    s, delta = float(np.linalg.norm(target)), float(a0 ** 2 - w0 @ w0)
    k, unit = np.hypot(delta / 2, s), target / s
    along = w0 @ unit
    fall = np.exp(-2 * k * t)
    grow_q, grow_p = (a0 + (s * along + delta * a0 / 2) / k) / 2, (along + (s * a0 - delta * along / 2) / k) / 2
    q, p = grow_q + (a0 - grow_q) * fall, grow_p + (along - grow_p) * fall
    rest = (w0 - along * unit) * np.exp(-(delta / 2 + k) * t)[:, None]
    last = np.exp(-(2 * k + delta) * t)
    between = t if delta == 0 else -np.expm1(-abs(delta) * t) / abs(delta)  # of exp(delta t), without its growth
    squared = last + 2 * (grow_q ** 2 * -np.expm1(-(2 * k + delta) * t) / (2 * k + delta)
                          + 2 * grow_q * (a0 - grow_q) * np.maximum(fall, last) * between
                          + (a0 - grow_q) ** 2 * last * np.expm1((delta - 2 * k) * t) / (delta - 2 * k))
    size = 1 / np.sqrt(squared)
    a, w = q * size, (p[:, None] * unit + rest) * size[:, None]
    return a * np.sqrt(paces[0] / r), w * np.sqrt(paces[1] / r)


def kernel_distance(a: Float[np.ndarray, "M"], w: Float[np.ndarray, "M D"], samples: int, notebook: bool = False,
                    ) -> Float[np.ndarray, "M"]:
    """S = 1 - <K0, Kt>/(|K0| |Kt|), the distance of each tangent kernel K = X (a^2 + w w') X' from the first one.

    For X'X = 1 and n = D = `samples`. `notebook`: the formula of the public notebook, with a0^2 in the norm of K_t,
    which is right at the first record only.
    """
    a2, w2 = a ** 2, (w ** 2).sum(1)
    norm = samples * a2 ** 2 + 2 * (a2[0] if notebook else a2) * w2 + w2 ** 2
    product = samples * a2[0] * a2 + a2[0] * w2 + a2 * w2[0] + (w @ w[0]) ** 2
    return 1 - product / np.sqrt(norm[0] * norm)


def half_rise(times: Float[np.ndarray, "M"], values: Float[np.ndarray, "M"]) -> float:
    """The time at which values that start at 0 first reach half of their last value, by linear interpolation."""
    level = values[-1] / 2
    i = int(np.argmax(values >= level))
    return float(np.interp(level, values[i - 1:i + 1], times[i - 1:i + 1]))


def implicit_bias(x: Float[np.ndarray, "n D"], y: Float[np.ndarray, "n"], beta0: Float[np.ndarray, "D"], delta: float,
                  ) -> Float[np.ndarray, "D"]:
    """The solution beta = a w of x beta = y, of many, that gradient flow ends in, if it fits y and a has kept its sign.

    The part u of w that is orthogonal to all inputs never moves; with c = |least-norm solution| and kappa = (|u|^2 +
    delta)/2 the end is that solution + u sqrt(kappa + sqrt(kappa^2 + c^2)); the public notebook has it for one
    dimension. a keeps its sign if it is positive and beta0 does not point away from the solution. Derived.
    """
    pseudo = np.linalg.pinv(x)
    _, w0 = start(beta0, delta)
    unseen, least = w0 - pseudo @ x @ w0, pseudo @ y
    kappa = (unseen @ unseen + delta) / 2
    return least + unseen * np.sqrt(kappa + np.sqrt(kappa ** 2 + least @ least))


def potential(beta: Float[np.ndarray, "D"], beta0: Float[np.ndarray, "D"], delta: float,
              ) -> tuple[float, Float[np.ndarray, "D"]]:
    """Psi_delta(beta) - psi_delta beta0'beta/|beta0| and its gradient.

    Gradient flow ends where it is least (Kunin et al. 2024, theorem 3.1). Psi = (R - 2 delta) sqrt(R + delta) / 3,
    R = sqrt(delta^2 + 4 |beta|^2), psi = sqrt(R0 - delta). The gradient of Psi is sqrt(R - delta) beta/|beta|, that is
    sqrt(2) w, so the theorem is equivalent to `implicit_bias`: the part of w orthogonal to all inputs never moves.
    """
    size, size0 = np.linalg.norm(beta), np.linalg.norm(beta0)
    big, big0 = np.hypot(delta, 2 * size), np.hypot(delta, 2 * size0)
    linear = np.sqrt(big0 - delta) * beta0 / size0
    value = (big - 2 * delta) * np.sqrt(big + delta) / 3 - linear @ beta
    return float(value), np.sqrt(big - delta) * beta / size - linear


def least_potential(x: Float[np.ndarray, "n D"], y: Float[np.ndarray, "n"], beta0: Float[np.ndarray, "D"],
                    delta: float) -> Float[np.ndarray, "D"]:
    """The solution of x beta = y with the least `potential` (theorem 3.1), by numerical minimisation."""
    least = np.linalg.pinv(x) @ y
    _, values, rows = np.linalg.svd(x)
    free = rows[(values > 1e-9).sum():].T  # (D, unseen): orthonormal

    def along(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = potential(least + free @ z, beta0, delta)
        return value, free.T @ gradient

    return least + free @ minimize(along, free.T @ beta0, jac=True, method="BFGS", options={"gtol": 1e-9}).x


# ---- wide linear networks --------------------------------------------------------------------------------


def root(matrix: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def layers(beta: Float[np.ndarray, "D C"], delta: float) -> tuple[Float[np.ndarray, "C C"], Float[np.ndarray, "D D"]]:
    """A'A and W'W as functions of beta = W'A, for layers with A A' - W W' = delta 1.

    A'A = delta/2 + sqrt(delta^2/4 + beta'beta) and W'W = -delta/2 + sqrt(delta^2/4 + beta beta'). H = D = C, the only
    case in which delta of both signs can be isotropic. Derived.
    """
    return (root(delta ** 2 / 4 * np.eye(beta.shape[1]) + beta.T @ beta) + delta / 2 * np.eye(beta.shape[1]),
            root(delta ** 2 / 4 * np.eye(len(beta)) + beta @ beta.T) - delta / 2 * np.eye(len(beta)))


def wide_start(beta: Float[np.ndarray, "D D"], delta: float) -> tuple[Float[np.ndarray, "D D"],
                                                                      Float[np.ndarray, "D D"]]:
    """Weights A and W with W'A = beta and A A' - W W' = delta 1, from the singular value decomposition of beta."""
    left, sigma, right = np.linalg.svd(beta)
    a, w = (np.sqrt(np.sqrt(delta ** 2 / 4 + sigma ** 2) + sign * delta / 2) for sign in (1, -1))
    return a[:, None] * right, w[:, None] * left.T


def wide_map(times: Float[np.ndarray, "M"], beta0: Float[np.ndarray, "D D"], target: Float[np.ndarray, "D D"],
             delta: float) -> Float[np.ndarray, "M D D"]:
    """The linear map beta(t) of a wide network with isotropic imbalance delta, without its layers.

    beta' = P A'A + W'W P with P = target - beta, and A'A and W'W from `layers`. Derived.
    """

    def move(_: float, state: np.ndarray) -> np.ndarray:
        beta = state.reshape(beta0.shape)
        last, first = layers(beta, delta)
        return ((target - beta) @ last + first @ (target - beta)).ravel()

    solved = solve_ivp(move, (0, times[-1]), beta0.ravel(), "DOP853", times, rtol=1e-10, atol=1e-12)
    return solved.y.T.reshape(-1, *beta0.shape)
