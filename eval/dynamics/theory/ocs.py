"""Early learning of the optimal constant solution (OCS): deep linear networks on a hierarchical task, solved exactly.

Networks first learn to give the mean label for every input, and only then to tell inputs apart: always with biases,
and without them as far as inputs are correlated (Rubruck et al., arXiv 2406.17467). The solution by modes is that of
Saxe et al. 2014. The tree of labels is [stand-in]. Time is lr * step, for a loss of |error|^2 / 2N.

Shapes: N items (8), K labels (14: 2 + 4 + 8), A modes (8), M times.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.special import lambertw

from .steps import lag, layers_error

# ---- the task --------------------------------------------------------------------------------------------


def labels() -> Float[np.ndarray, "8 14"]:
    """The labels of the task: each of 8 items is a leaf of a binary tree and has the label of its branch at each level.

    14 labels: 2 of the top level, 4 of the middle one, 8 of the bottom one.
    """
    return np.concatenate([np.repeat(np.eye(n), 8 // n, axis=0) for n in (2, 4, 8)], axis=1)


def tree_modes() -> Float[np.ndarray, "8 8"]:
    """The item modes (rows): constant, top split, two middle and four bottom splits (Haar vectors).

    They diagonalise the labels' Gram matrix; numpy's SVD would mix the first two, whose singular values are equal.
    """
    rows = [np.ones(8)]
    for n in (1, 2, 4):
        rows += list(np.kron(np.eye(n), np.repeat([1.0, -1.0], 4 // n)))
    return np.stack([row / np.linalg.norm(row) for row in rows])


def inputs(rho: float, bias: bool) -> Float[np.ndarray, "8 9"]:
    """Inputs of the 8 items, with inner products (1 - rho) delta_ij + rho.

    The last column is the constant input of a hidden bias: 1 with `bias`, else 0.
    """
    mean = np.full((8, 8), 1 / 8)
    root = np.sqrt(1 - rho) * (np.eye(8) - mean) + np.sqrt(1 - rho + 8 * rho) * mean
    return np.concatenate([root, np.full((8, 1), float(bias))], axis=1)


def condition_inputs(condition: str) -> Float[np.ndarray, "8 9"]:
    """`inputs` of a condition: "hidden bias", "output bias" (its inputs are those of no bias), or "rho NUMBER"."""
    rho = float(condition.removeprefix("rho ")) if condition.startswith("rho") else 0.0
    return inputs(rho, condition == "hidden bias")


# ---- learning --------------------------------------------------------------------------------------------


def singular_values() -> Float[np.ndarray, "8"]:
    """Singular values of the labels along `tree_modes`: the square roots of 7, 7, 3, 3, 1, 1, 1, 1."""
    return np.linalg.norm(tree_modes() @ labels(), axis=1)


def mode_constants(x: Float[np.ndarray, "8 9"]) -> tuple[Float[np.ndarray, "8"], Float[np.ndarray, "8"]]:
    """s = sigma sqrt(lambda) / N and d = lambda / N of each mode, lambda being the inputs' Gram eigenvalues.

    With a hidden bias the constant mode has lambda = 1 + N, with correlated inputs 1 - rho + N rho: a bias acts as an
    input correlation. Derived; Saxe et al. 2014 for the modes.
    """
    lam = np.einsum("ai,ij,aj->a", tree_modes(), x @ x.T, tree_modes())
    return singular_values() * np.sqrt(lam) / 8, lam / 8


def strengths(times: Float[np.ndarray, "M"], s: Float[np.ndarray, "A"], d: Float[np.ndarray, "A"], start: float,
              depth: int = 2) -> Float[np.ndarray, "M A"]:
    """Mode strengths a(t) of balanced aligned networks of depth L: a' = L a^(2 - 2/L) (s - d a); a logistic if L = 2.

    All modes start at strength `start`; s and d are those of `mode_constants`. Saxe et al. 2014.
    """
    if depth == 2:
        return (s / d) / (1 + (s / (d * start) - 1) * np.exp(-2 * s * times[:, None]))
    solved = solve_ivp(lambda t, a: depth * a ** (2 - 2 / depth) * (s - d * a), (0, times[-1]),
                       np.full(len(s), start), "DOP853", times, rtol=1e-10, atol=1e-13)
    return solved.y.T


def half_time(s: float, d: float, start: float) -> float:
    """The time at which a mode has half of its final strength, depth 2: ln(s/(d start) - 1) / 2s."""
    return float(np.log(s / (d * start) - 1) / (2 * s))


def output_bias(times: Float[np.ndarray, "M"], start: float, depth: int = 2) -> Float[np.ndarray, "M 2"]:
    """(beta, a) over time: the output bias along the mean label, and the weights' constant mode; uncorrelated inputs.

    beta' = |y| - beta - a / sqrt N, a' = L a^(2 - 2/L) beta' / sqrt N; so ln a - 2 beta / sqrt N is conserved if
    L = 2. The bias learns the mean label at a time of order 1, and the weights hardly learn it any more. Derived.
    """
    norm, root = np.linalg.norm(labels().mean(0)), np.sqrt(8)

    def slope(_: float, state: np.ndarray) -> np.ndarray:
        error = norm - state[0] - state[1] / root
        return np.array([error, depth * state[1] ** (2 - 2 / depth) * error / root])

    return solve_ivp(slope, (0, times[-1]), [0.0, start], "DOP853", times, rtol=1e-10, atol=1e-13).y.T


def constant_growth(start: float) -> float:
    """The factor by which the weights' constant mode grows from `start` while an output bias learns the mean label.

    Depth 2: ln a - 2 beta/sqrt N is conserved, and beta + a/sqrt N = |y| at the end, so a exp(2 a/N) is
    start exp(2 |y|/sqrt N); the factor goes to exp(2 |y|/sqrt N) as the start goes to 0. Derived.
    """
    most = start * np.exp(2 * np.linalg.norm(labels().mean(0)) / np.sqrt(8))
    return float(4 * lambertw(most / 4).real / start)


def exact_outputs(times: Float[np.ndarray, "M"], condition: str, start: float, depth: int = 2,
                  ) -> Float[np.ndarray, "M 8 14"]:
    """Outputs of an aligned network over time, in a condition of `condition_inputs`; exact under gradient flow.

    The sum over modes of `strengths`, with `output_bias` in place of the constant mode where there is an output bias.
    """
    x, modes = condition_inputs(condition), tree_modes()
    s, d = mode_constants(x)
    a = strengths(times, s, d, start, depth)
    label_modes = modes @ labels() / singular_values()[:, None]
    learned = np.zeros(len(times))
    if condition == "output bias":
        learned, a[:, 0] = output_bias(times, start, depth).T
    y = np.einsum("ma,ai,ak->mik", a * np.sqrt(8 * d), modes, label_modes)
    return y + learned[:, None, None] * label_modes[0]


def step_error(times: Float[np.ndarray, "M"], condition: str, start: float, depth: int, step: float) -> float:
    """How far gradient descent with steps of this size can be from `exact_outputs` at any time, to first order."""
    x, modes = condition_inputs(condition), tree_modes()
    s, d = mode_constants(x)
    a = strengths(times, s, d, start, depth)
    off = layers_error(step, a, depth * a ** (2 - 2 / depth) * (s - d * a), depth) * np.sqrt(8 * d)
    if condition == "output bias":
        beta, constant = output_bias(times, start, depth).T
        rate = np.linalg.norm(labels().mean(0)) - beta - constant / np.sqrt(8)
        off[:, 0] = np.abs(rate) * lag(step, rate) * np.sqrt(8)  # the bias is the same for all items
    label_modes = np.abs(modes @ labels()) / singular_values()[:, None]
    return float(np.einsum("ma,ai,ak->mik", off, np.abs(modes), label_modes).max())


def mode_strengths(outputs: Float[np.ndarray, "M 8 14"], condition: str) -> Float[np.ndarray, "M A"]:
    """The strength of each mode in a linear network's outputs; the inverse of `exact_outputs` without output bias."""
    modes = tree_modes()
    _, d = mode_constants(condition_inputs(condition))
    label_modes = modes @ labels() / singular_values()[:, None]
    return np.einsum("ai,mik,ak->ma", modes, outputs, label_modes) / np.sqrt(8 * d)


# ---- signatures of the OCS -------------------------------------------------------------------------------

LEVELS = (slice(0, 2), slice(2, 6), slice(6, 14))  # top, middle, bottom
BASE_RATES = 1 - labels().mean(0)[[0, 2, 6]]  # true-negative rates at the OCS: 1/2, 3/4, 7/8


def ocs_distance(outputs: Float[np.ndarray, "*M N K"]) -> Float[np.ndarray, "*M"]:
    """Mean squared distance between outputs and the OCS (the mean label), over the squared length of the mean label."""
    mean = labels().mean(0)
    return ((outputs - mean) ** 2).sum(-1).mean(-1) / (mean ** 2).sum()


def true_negatives(outputs: Float[np.ndarray, "*M N K"], truth: Float[np.ndarray, "N K"],
                   ) -> Float[np.ndarray, "*M 3"]:
    """True-negative rate of each level: one minus the mean output (clipped to 0..1) where the label is 0.

    At the OCS it is 1 - p_l, p_l being the base rate of the labels of level l.
    """
    clipped, rates = outputs.clip(0, 1), []
    for level in LEVELS:
        negative = 1 - truth[:, level]
        rates.append(1 - (clipped[..., level] * negative).sum((-2, -1)) / negative.sum())
    return np.stack(rates, axis=-1)
