"""Unimodal bias: when each of two modalities is learned, by depth of the network and layer of fusion.

Deep linear networks with modalities A and B that meet at layer L_f of L learn one of them first, the longer alone the
later they are fused (Zhang, Latham, Saxe, ICML 2024, arXiv 2312.00935; settings from
github.com/yedizhang/unimodal-bias). The paper's theory is for vanishing starts; `half_times` (derived) also takes the
size of the start into account.

Shapes: 2 modalities, D inputs of one modality, H hidden units, M times.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.integrate import quad, solve_ivp


def covariance(ratio: float, rho: float) -> Float[np.ndarray, "2 2"]:
    """The covariance S of two scalar modalities with sigma_A = ratio, sigma_B = 1 and correlation rho."""
    return np.array([[ratio ** 2, rho * ratio], [rho * ratio, 1.0]])


def time_ratio(ratio: float, rho: float) -> float:
    """t_B / t_A of two layers, late fusion, vanishing start: 1 + (r^2 - 1)/(1 - rho^2).

    From the paper; `sweep.py` of its code.
    """
    return 1 + (ratio ** 2 - 1) / (1 - rho ** 2)


def half_times(sigma: Float[np.ndarray, "2 2"], w: Float[np.ndarray, "2"], logs: Float[np.ndarray, "2"],
               ) -> Float[np.ndarray, "2"]:
    """The time at which each scalar modality has half of its first plateau; two linear layers, late fusion; derived.

    `logs` is the logarithm of each modality's weight at the start, as far as it grows (`log_sizes`). The first has rate
    c_i = S_yi and goes to c_i / S_ii, the second grows at c_j until t_i and at s = c_j - S_ij c_i / S_ii after. The
    ratio goes to `time_ratio` for logs -> -inf. Twice as late in ReLU networks.
    """
    c = w @ sigma
    i = int(np.argmax(c))
    j = 1 - i
    plateau, left = c[i] / sigma[i, i], c[j] - sigma[i, j] * c[i] / sigma[i, i]
    times = np.zeros(2)
    times[i] = (np.log(plateau) - logs[i]) / (2 * c[i])
    times[j] = times[i] + (np.log(w[j]) - logs[j] - 2 * c[j] * times[i]) / (2 * left)
    return times


def limit_error(ratio: float, rho: float, hidden: int, init: float) -> float:
    """By how much of itself `time_ratio` is off at a start of this standard deviation, according to `half_times`."""
    times = half_times(covariance(ratio, rho), np.ones(2), np.full(2, np.log(hidden * init ** 2 / 2)))
    return float(abs(times[1] / times[0] / time_ratio(ratio, rho) - 1))


def log_sizes(weights: list[np.ndarray], relu: bool = False) -> Float[np.ndarray, "2"]:
    """ln sum p^2 of each modality, p = (W1 + W2)/2, the part that grows; two-layer weights (2, D, H), (2, H, 1), D = 1.

    With ReLU, units of p > 0 learn positive inputs and those of p < 0 negative ones, at times that differ; their mean
    belongs to the mean of the two logarithms.
    """
    p = (weights[0][:, 0] + weights[1][:, :, 0]) / 2
    sizes = [np.log((part ** 2).sum(1)) for part in ((p.clip(0), p.clip(None, 0)) if relu else (p,))]
    return np.mean(sizes, axis=0)


def flow(u: Float[np.ndarray, "2"], depth: int, fusion: int, sigma: Float[np.ndarray, "2 2"],
         w: Float[np.ndarray, "2"]) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """The velocity of the layer norms (u_A, u_B) of a balanced rank-one network, and its total weights W.

    W_m = u_m^Lf (u_A^2 + u_B^2)^((L - Lf)/2), u_m' = u_m^(Lf - 1) (u_A^2 + u_B^2)^((L - Lf)/2) e_m, e = S (w - W).
    """
    shared = (u @ u) ** ((depth - fusion) / 2)
    weights = u ** fusion * shared
    return u ** (fusion - 1) * shared * (sigma @ (w - weights)), weights


def reduced(times: Float[np.ndarray, "M"], start: Float[np.ndarray, "2"], depth: int, fusion: int,
            sigma: Float[np.ndarray, "2 2"], w: Float[np.ndarray, "2"]) -> Float[np.ndarray, "M 2"]:
    """The total weights W(t) of `flow`, integrated from layer norms `start`."""
    solved = solve_ivp(lambda t, u: flow(u, depth, fusion, sigma, w)[0], (0, times[-1]), start, "LSODA", times,
                       rtol=1e-10, atol=1e-9 * float(start.min()))
    return np.stack([flow(u, depth, fusion, sigma, w)[1] for u in solved.y.T])


def reduced_half_times(start: float, depth: int, fusion: int, ratio: float, rho: float) -> Float[np.ndarray, "2"]:
    """The times at which `flow` takes W_A through (1 + rho/r)/2 and W_B through 1/2; y = x_A + x_B."""
    return half_events(start, depth, fusion, ratio, rho)[0]


def half_events(start: float, depth: int, fusion: int, ratio: float, rho: float,
                ) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """The times of `reduced_half_times`, and 2 W'/W of each modality then: of a logistic curve, its rate of growth."""
    sigma, w = covariance(ratio, rho), np.ones(2)

    def first(_: float, u: np.ndarray) -> float:
        return float(flow(u, depth, fusion, sigma, w)[1][0] - (1 + rho / ratio) / 2)

    def second(_: float, u: np.ndarray) -> float:
        return float(flow(u, depth, fusion, sigma, w)[1][1] - 0.5)

    second.terminal = True  # type: ignore[attr-defined]
    solved = solve_ivp(lambda t, u: flow(u, depth, fusion, sigma, w)[0],
                       (0, 1e9 * max(1.0, start ** (2 - depth))), np.full(2, start), "LSODA", events=[first, second],
                       rtol=1e-9, atol=1e-12)
    growth = []
    for m, states in enumerate(solved.y_events):
        u = states[0]
        speed, size = flow(u, depth, fusion, sigma, w)[0], u @ u
        growth.append(2 * (fusion * speed[m] / u[m] + (depth - fusion) * (u @ speed) / size))
    return np.array([times[0] for times in solved.t_events]), np.array(growth)


def deep_curvatures(depth: int, fusion: int, ratio: float, rho: float) -> tuple[float, float]:
    """The largest curvature of the loss of a balanced network when A alone is learned, and when both are.

    Steps of gradient descent diverge at 2 over this. The tangent kernel of W = (W_A, W_B) is fusion (W_m/u_m)^2 of each
    modality and (depth - fusion) W_m W_n / (u_A^2 + u_B^2) of the shared layers. Derived.
    """
    root = np.linalg.cholesky(covariance(ratio, rho))
    alone = depth * ratio ** 2 * (1 + rho / ratio) ** (2 - 2 / depth)
    size = 2 ** ((fusion - depth) / depth)  # u_A^2 = u_B^2, where both weights are 1
    kernel = (fusion * np.eye(2) + (depth - fusion) / 2) / size
    return float(alone), float(np.linalg.eigvalsh(root.T @ kernel @ root)[-1])


def depth_time_ratio(start: float, depth: int, fusion: int, ratio: float, rho: float) -> float:
    """t_B / t_A of L layers fused at layer L_f, to leading order in a small start u0.

    From the paper; `sweep.py` of its code. 1 for L_f = 1, `time_ratio` for L_f = L.
    """
    if fusion == 1:
        return 1.0
    if fusion == depth:
        return time_ratio(ratio, rho)
    fast, slow = ratio ** 2 + rho * ratio, 1 + rho * ratio
    k, power = slow / fast, 2 - fusion

    def time(u: float) -> float:
        other = u ** k * start ** (1 - k) if power == 0 else (k * u ** power + (1 - k) * start ** power) ** (1 / power)
        return 1 / (fast * u ** (fusion - 1) * (u ** 2 + other ** 2) ** ((depth - fusion) / 2))

    left = np.log(1 / start) if power == 0 else start ** power / -power
    alone = left * (1 - k) * (1 + rho / ratio) ** (fusion / depth - 1) / (1 - rho ** 2)
    return float(1 + alone / quad(time, start, 1)[0])


def xor_rate(angle: float) -> float:
    """The growth rate of a ReLU unit on XOR: E[XOR(x) relu(d x)] for a unit vector d at this angle (radians).

    x is in {-1, 1}^2 and XOR = -x_1 x_2. Largest, sqrt(2)/4, at the odd multiples of 45 degrees; a unit of the Gaussian
    modality has variance/2. So with late fusion and small weights t_XOR / t_Gaussian -> sqrt(2) variance. Derived; the
    paper's code marks 1/sqrt(2).
    """
    x = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    return float(np.mean(-x.prod(1) * np.maximum(x @ [np.cos(angle), np.sin(angle)], 0)))


# With early fusion a unit along the Gaussian input turns to the XOR inputs only below this variance: tilted by e along
# (1, -1)/sqrt(2) it grows at variance/2 + (p - variance/2) e^2/2, p = 1/sqrt(2 pi variance) the density at 0. Derived.
TURNING_VARIANCE = (2 / np.pi) ** (1 / 3)


def tilt_left(variances: Float[np.ndarray, "V"], init: float) -> Float[np.ndarray, "V"]:
    """What is left of a unit's tilt towards XOR when the Gaussian is learned, with early fusion and a start of `init`.

    The tilt falls at the rate variance/2 - p (see TURNING_VARIANCE) for the time ln(1/init) 2/variance. Derived.
    """
    p = 1 / np.sqrt(2 * np.pi * variances)
    return init ** (1 - 2 * p / variances)
