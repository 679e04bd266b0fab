"""Rich and lazy learning of two tasks: ideal geometries, the kernel of an untrained network, a frozen hidden layer.

A network with one hidden ReLU layer whose input weights are small makes two tasks orthogonal and compressed (rich);
with large input weights its hidden layer stays nearly as it was (lazy). The measures are those of eval/geometry.py.
The networks are those of Flesch, Juechems, Dumbalska, Saxe, Summerfield, Neuron 2022.

Shapes: n conditions (context A first), D inputs, H hidden units, M times.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr
from scipy.stats import norm


def inputs(levels: int = 5) -> Float[np.ndarray, "n D"]:
    """Blobs (as many pixels as levels along a side, variance 0.08, peak 1) and context (2 units), each part over its
    Frobenius norm."""
    place, pixel = np.linspace(0.2, 0.8, levels), np.linspace(0, 1, levels)
    blobs = np.stack([np.exp(-((pixel[:, None] - x) ** 2 + (pixel - y) ** 2) / 0.16).ravel()
                      for x in place for y in place])
    blobs = np.tile(blobs / blobs.max(1, keepdims=True), (2, 1))
    context = np.repeat(np.eye(2), levels ** 2, axis=0)
    return np.concatenate([blobs / np.linalg.norm(blobs), context / np.linalg.norm(context)], 1)


def ideal_values(noise: float, levels: int = 5) -> dict[str, list[float]]:
    """Measures of the ideal grid, rotated grid, orthogonal, parallel and diagonal geometry, their contexts 1 apart.

    `noise` is the standard deviation of the decoders' noise, `levels` the number of levels of a feature. With 5 levels
    a feature has variance v = 2; context has 1/4. PR = (sum l)^2 / sum l^2 over the eigenvalues l of the covariance.
    Parallelism over the four settings context x sign of the irrelevant feature: 2 of 6 pairs agree, or all. CCGP: the
    decoder is the axis, so a level m of it is right with probability Phi(m / noise); on the diagonal
    m = (a + b)/sqrt 2. Shattering: of the 35 dichotomies of the 8 quadrant means those that a plane separates. Derived.
    """
    v, c = (levels ** 2 - 1) / 12, 1 / 4
    one, two = (v + c) ** 2 / (v ** 2 + c ** 2), (2 * v + c) ** 2 / (2 * v ** 2 + c ** 2)
    halves = (v + c) ** 2 / (v ** 2 / 2 + c ** 2)
    level, all_levels = np.array([1, 2]), np.arange(levels) - levels // 2
    along = float(ndtr(level / noise).mean())
    across = float(ndtr((level[:, None] + all_levels) / np.sqrt(2) / noise).mean())
    return {"participation ratio": [two, two, halves, one, one], "parallelism score": [1 / 3, 1, 1 / 3, 1, 1],
            "angle between the relevant axes": [90, 0, 90, 0, 0], "CCGP": [0.5, along, 0.5, along, across],
            "separable dichotomies of the quadrants": [7 / 35, 7 / 35, 3 / 35, 2 / 35, 3 / 35]}


def hidden_kernel(x: Float[np.ndarray, "n D"], scales: Float[np.ndarray, "D"], bias: float, nodes: int = 1001,
                  ) -> Float[np.ndarray, "n n"]:
    """E[relu(u_i) relu(u_j)] over untrained hidden units, u = bias + w.x with w ~ N(0, diag(scales^2)), for inputs x.

    Given u_i, u_j is Gaussian with mean m and deviation s, so E[relu(u_j) | u_i] = m Phi(m/s) + s phi(m/s); the mean
    over u_i is a sum over `nodes` points. Derived.
    """
    x = x * scales
    covariance = x @ x.T
    spread, z = np.sqrt(np.diag(covariance)), np.linspace(-8, 8, nodes)
    weight = norm.pdf(z) / norm.pdf(z).sum()
    kernel = np.empty_like(covariance)
    for i, row in enumerate(covariance):
        r = np.clip(row / spread / spread[i], -1, 1)
        m = bias + (spread * r)[:, None] * z
        s = np.maximum(spread * np.sqrt(1 - r ** 2), 1e-12)[:, None]
        kernel[i] = (m * ndtr(m / s) + s * norm.pdf(m / s)) @ (np.maximum(bias + spread[i] * z, 0) * weight)
    return (kernel + kernel.T) / 2


def kernel_rdm(kernel: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "pairs"]:
    """The distances of all pairs i < j in a kernel's feature space: sqrt(K_ii + K_jj - 2 K_ij)."""
    i, j = np.triu_indices(len(kernel), 1)
    own = np.diag(kernel)
    return np.sqrt(np.maximum(own[i] + own[j] - 2 * kernel[i, j], 0))


def frozen_losses(hidden: Float[np.ndarray, "n H"], residual: Float[np.ndarray, "n"], lr: float,
                  steps: Int[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
    """Loss |r|^2 / 2 over steps t of gradient descent of the readout alone, on a frozen hidden layer h.

    The residual is r(t) = (1 - lr K)^t r(0), with K = h h' + 1 (1 for the bias of the readout). Derived.
    """
    values, vectors = np.linalg.eigh(hidden @ hidden.T + 1)
    return ((1 - lr * values) ** (2 * steps[:, None]) @ (residual @ vectors) ** 2) / 2
