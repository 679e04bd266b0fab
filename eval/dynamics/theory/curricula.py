"""Two-layer ReLU networks on an XOR-like Gaussian mixture: when they succeed, and their order parameters in online SGD.

In high dimension a few order parameters of online SGD obey ODEs (Mannelli, Ivashynka, Saxe, Saglietti, ICML 2024, arXiv
2406.01589). Where noise is small a network succeeds if its start already has a unit for each of the four clusters: a
lottery that wide networks win more often. Only the paper's abstract was available: the equations are derived; their
form is that of Ben Arous, Gheissari, Jagannath 2022, from memory.

Shapes: S networks, G widths, K units of one network, d dimensions, M times, n points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.integrate import solve_ivp
from scipy.special import expit, ndtri
from scipy.stats import qmc


def clusters(d: int) -> tuple[Float[np.ndarray, "4 d"], Float[np.ndarray, "4"]]:
    """The centres mu+, -mu+, mu-, -mu- of the mixture (mu+ and mu- orthogonal, of length 1) and their XOR labels."""
    centres = np.zeros((4, d))
    centres[[0, 1, 2, 3], [0, 0, 1, 1]] = 1, -1, 1, -1
    return centres, np.array([1.0, 1.0, -1.0, -1.0])


def lottery(widths: Sequence[int] | np.ndarray) -> Float[np.ndarray, "G"]:
    """The probability that K units cover four equally likely cells: 1 - 4 (3/4)^K + 6 (1/2)^K - 4 (1/4)^K.

    A unit's cell is the sign of its v and the sign of its overlap with that class's mu. Derived, for noise to 0.
    """
    k = np.asarray(widths, float)
    return 1 - 4 * 0.75 ** k + 6 * 0.5 ** k - 4 * 0.25 ** k


def covered(m: Float[np.ndarray, "S K 2"], v: Float[np.ndarray, "S K"]) -> Bool[np.ndarray, "S"]:
    """Whether a network with overlaps `m` and readout `v` has a unit in each of the four cells of `lottery`."""
    positive = np.where(v > 0, m[..., 0], m[..., 1]) > 0
    cell = 2 * (v > 0) + positive
    return np.all([(cell == i).any(1) for i in range(4)], axis=0)


def normal_points(n: int, k: int) -> Float[np.ndarray, "n K"]:
    """Evenly spread standard normal points (Sobol; n a power of 2) for the averages of `drift`.

    The same points serve at every time of an ODE, as fresh draws would add noise.
    """
    return ndtri(qmc.Sobol(k, scramble=False).random(n) + 0.5 / n)


def drift(m: Float[np.ndarray, "K 2"], q: Float[np.ndarray, "K K"], v: Float[np.ndarray, "K"], noise: float,
          points: Float[np.ndarray, "n K"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M', Q', v') of M = W mu, Q = W W' and the readout v, for d to infinity and rate 1. Derived.

    With e = y / (1 + exp(y f)) and G_k = e v_k 1(h_k > 0): M' = E[G (x mu)], Q' = E[G h' + h G'] + noise^2 E[G G'],
    v' = E[e ReLU(h)]. Given h, x mu is replaced by its mean; otherwise its noise would dominate M near 0. `points` are
    the standard normal points that the averages are taken over.
    """
    centres, labels = clusters(2)
    root, y = np.linalg.cholesky(q), labels[:, None]
    h = (centres @ m.T)[:, None] + noise * points @ root.T  # (4, n, K): N(s M_c, noise^2 Q)
    along = centres[:, None] + noise * points @ np.linalg.solve(root, m)  # (4, n, 2): the mean of x mu given h
    active = np.maximum(h, 0)
    error = y * expit(-y * (active @ v))
    g = (error[..., None] * v * (h > 0)).reshape(-1, len(v))
    h, along, count = h.reshape(g.shape), along.reshape(-1, 2), len(g)
    gh = g.T @ h / count
    return g.T @ along / count, gh + gh.T + noise ** 2 * g.T @ g / count, (error[..., None] * active).mean((0, 1))


def order_parameters(times: Float[np.ndarray, "M"], m: Float[np.ndarray, "K 2"], q: Float[np.ndarray, "K K"],
                     v: Float[np.ndarray, "K"], noise: float, points: Float[np.ndarray, "n K"],
                     ) -> tuple[Float[np.ndarray, "M K 2"], Float[np.ndarray, "M K K"], Float[np.ndarray, "M K"]]:
    """M, Q and v over time, from their values at time 0: `drift` integrated by Runge-Kutta (rtol 1e-4, atol 1e-5)."""
    k = len(v)

    def split(state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return state[..., :2 * k].reshape(-1, k, 2), state[..., 2 * k:-k].reshape(-1, k, k), state[..., -k:]

    def slope(_: float, state: np.ndarray) -> np.ndarray:
        m, q, v = split(state)
        return np.concatenate([part.ravel() for part in drift(m[0], q[0], v, noise, points)])

    start = np.concatenate([m.ravel(), q.ravel(), v])
    return split(solve_ivp(slope, (0, times[-1]), start, "RK45", times, rtol=1e-4, atol=1e-5).y.T)
