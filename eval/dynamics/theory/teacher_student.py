"""Order parameters of continual learning in the teacher-student setup, and its measures of forgetting and node re-use.

A student of K hidden units and two heads learns teacher 1 from a stream of fresh Gaussian inputs, then teacher 2 with
its other head. For N -> infinity its overlaps obey an ODE (Lee, Goldt & Saxe, ICML 2021, arXiv 2107.04384; settings
from their public code, `cata`). Replay, node consolidation and noisy teachers are terms of the ODE; this form of it and
of early forgetting are derived.

Shapes: S students, K units, M units of a teacher, F = K + 2M (+ K) fields, A = K + M of a task, N inputs, R runs. In
`integrate` and the measures of its records M is the number of times.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, "..."] | np.float64  # of a batch, or of one

# ---- Gaussian integrals ----------------------------------------------------------------------------------
# g(x) = erf(x/sqrt2). Rounding takes the argument of asin out of [-1, 1] when two fields are nearly equal, so it is
# clipped.


def i2(c: Float[np.ndarray, "... 2 2"]) -> Values:
    """E[g(l1) g(l2)] = (2/pi) asin(c12/sqrt((1+c11)(1+c22))), g(x) = erf(x/sqrt2), l ~ N(0, c)."""
    return 2 / np.pi * np.arcsin(np.clip(c[..., 0, 1] / np.sqrt((1 + c[..., 0, 0]) * (1 + c[..., 1, 1])), -1, 1))


def i3(c: Float[np.ndarray, "... 3 3"]) -> Values:
    """E[g'(l1) l2 g(l3)] = (2/pi) (c23(1+c11) - c12 c13)/((1+c11) sqrt((1+c11)(1+c33) - c13^2))."""
    c12, c13, c23, one = c[..., 0, 1], c[..., 0, 2], c[..., 1, 2], 1 + c[..., 0, 0]
    return 2 / np.pi * (c23 * one - c12 * c13) / (one * np.sqrt(one * (1 + c[..., 2, 2]) - c13 ** 2))


def i4(c: Float[np.ndarray, "... 4 4"]) -> Values:
    """E[g'(l1) g'(l2) g(l3) g(l4)] = (4/pi^2)/sqrt(L) asin(L0/sqrt(L1 L2)), L = (1+c11)(1+c22) - c12^2."""
    one, two, three, four = (1 + c[..., i, i] for i in range(4))
    c12, c13, c14, c23, c24, c34 = (c[..., i, j] for i in range(4) for j in range(i + 1, 4))
    both = one * two - c12 ** 2
    cross = both * c34 - c23 * c24 * one - c13 * c14 * two + c12 * (c13 * c24 + c14 * c23)
    third = both * three - c23 ** 2 * one - c13 ** 2 * two + 2 * c12 * c13 * c23
    fourth = both * four - c24 ** 2 * one - c14 ** 2 * two + 2 * c12 * c14 * c24
    return 4 / np.pi ** 2 / np.sqrt(both) * np.arcsin(np.clip(cross / np.sqrt(third * fourth), -1, 1))


def j2(c: Float[np.ndarray, "... 2 2"]) -> Values:
    """E[g'(l1) g'(l2)] = (2/pi)/sqrt((1+c11)(1+c22) - c12^2)."""
    return 2 / np.pi / np.sqrt((1 + c[..., 0, 0]) * (1 + c[..., 1, 1]) - c[..., 0, 1] ** 2)



# ---- order parameters ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlaps:
    """S students and their teachers for N -> infinity: the covariances of all fields l = w.x/sqrt(N), and the readouts.

    Fields: K of the student, M of teacher 1, M of teacher 2, and, after `snapshot`, K of the student as it was then.
    """

    gram: Float[np.ndarray, "S F F"]
    heads: Float[np.ndarray, "S 2 K"]
    teacher_heads: Float[np.ndarray, "*S 2 M"]  # of all, or of each

    def at_end(self, record: dict[str, np.ndarray]) -> Overlaps:
        """The overlaps at the end of a record of `integrate`."""
        return dataclasses.replace(self, gram=record["gram"][-1], heads=record["heads"][-1])


def overlaps_of(students: Float[np.ndarray, "S K N"], heads: Float[np.ndarray, "S 2 K"],
                teachers: Float[np.ndarray, "S 2 M N"], teacher_heads: np.ndarray) -> Overlaps:
    """The overlaps of given weights, all of which are divided by sqrt(N)."""
    fields = np.concatenate([students, teachers.reshape(len(teachers), -1, teachers.shape[-1])], 1).astype(float)
    return Overlaps(fields @ fields.swapaxes(1, 2), heads.astype(float), teacher_heads)


def together(parts: list[Overlaps]) -> Overlaps:
    """Concatenate batches."""
    return Overlaps(np.concatenate([p.gram for p in parts]), np.concatenate([p.heads for p in parts]),
                    np.concatenate([np.broadcast_to(p.teacher_heads, (len(p.heads), *p.teacher_heads.shape[-2:]))
                                    for p in parts]))


def snapshot(overlaps: Overlaps) -> Overlaps:
    """The overlaps with the current student added as K constant fields (for consolidation)."""
    k, fields = overlaps.heads.shape[-1], 2 * overlaps.teacher_heads.shape[-1] + overlaps.heads.shape[-1]
    index = np.r_[:fields, :k]
    return dataclasses.replace(overlaps, gram=overlaps.gram[:, index[:, None], index])


def _fields(overlaps: Overlaps, task: int) -> tuple[np.ndarray, Float[np.ndarray, "S A"]]:
    """The index of the fields in the error D = sum_a a g(l_a) of a task, and their weights a."""
    k, m = overlaps.heads.shape[-1], overlaps.teacher_heads.shape[-1]
    readout = np.broadcast_to(overlaps.teacher_heads, (len(overlaps.heads), 2, m))
    return np.r_[:k, k + task * m:k + (task + 1) * m], np.concatenate([overlaps.heads, -readout], 2)[:, task]


def _covariances(gram: Float[np.ndarray, "S F F"], *fields: np.ndarray) -> Float[np.ndarray, "S ... n n"]:
    """The covariances of n fields, whose index arrays broadcast against each other."""
    index = np.stack(np.broadcast_arrays(*fields))
    return np.moveaxis(gram[:, index[:, None], index[None]], (1, 2), (-2, -1))


def errors(overlaps: Overlaps) -> Float[np.ndarray, "S 2"]:
    """Generalisation error of each task with its own head: 1/2 sum_ab a_a a_b I2(a, b)."""
    found = []
    for task in (0, 1):
        index, a = _fields(overlaps, task)
        products = i2(_covariances(overlaps.gram, index[:, None], index))
        found.append(np.einsum("sa,sb,sab->s", a, a, products) / 2)
    return np.stack(found, 1)


def speeds(overlaps: Overlaps, task: int, eta: float, noise: float | np.ndarray = 0.0
           ) -> tuple[Float[np.ndarray, "S F F"], Float[np.ndarray, "S 2 K"]]:
    """d gram/dt and d heads/dt under online SGD at rate eta on one task (0 or 1); one unit of time is N steps.

    dh_i/dt     = -eta sum_a a_a I2(i, a)                             of the task's head
    d<w_i,z>/dt = -eta h_i sum_a a_a I3(i, z, a)                      for every z, and the same of w_k if z = w_k, plus
                  eta^2 h_i h_k [sum_ab a_a a_b I4(i, k, a, b) + noise^2 J2(i, k)]

    Lee, Goldt, Saxe 2021; this form is derived.
    """
    gram, h, k = overlaps.gram, overlaps.heads[:, task], overlaps.heads.shape[-1]
    index, a = _fields(overlaps, task)
    student, every = np.arange(k), np.arange(gram.shape[-1])
    dheads = np.zeros_like(overlaps.heads)
    dheads[:, task] = -eta * np.einsum("sa,sia->si", a, i2(_covariances(gram, student[:, None], index)))
    pull = np.einsum("si,sa,siza->siz", h, a, i3(_covariances(gram, student[:, None, None], every[:, None], index)))
    dgram = _both(-eta * pull)
    i, j = np.triu_indices(k)  # I4 is symmetric in its first two fields and in its last two
    b, c = np.triu_indices(len(index))
    fluctuation = i4(_covariances(gram, student[i, None], student[j, None], index[b], index[c]))
    weight = a[:, b] * a[:, c] * np.where(b == c, 1, 2)
    diffusion = np.einsum("sp,sqp->sq", weight, fluctuation)
    if np.any(noise):
        diffusion += np.reshape(noise, (-1, 1)) ** 2 * j2(_covariances(gram, student[i], student[j]))
    diffusion *= eta ** 2 * h[:, i] * h[:, j]
    dgram[:, i, j] += diffusion
    dgram[:, j, i] += np.where(i == j, 0, diffusion)
    return dgram, dheads


def _both(rows: Float[np.ndarray, "S K F"]) -> Float[np.ndarray, "S F F"]:
    """The change of the gram matrix whose first factor is the student, and its mirror."""
    dgram = np.zeros((len(rows), rows.shape[2], rows.shape[2]))
    dgram[:, :rows.shape[1]] += rows
    dgram[:, :, :rows.shape[1]] += rows.swapaxes(1, 2)
    return dgram


def integrate(overlaps: Overlaps, task: int, times: Float[np.ndarray, "M"], dt: float, eta: float,
              replay: float | np.ndarray = 0.0, consolidation: float | np.ndarray = 0.0,
              kappa: Float[np.ndarray, "S K"] | None = None, noise: float | np.ndarray = 0.0) -> dict[str, np.ndarray]:
    """Train on `task` (0 or 1) from times[0] on, by the midpoint rule with steps of at most `dt`.

    Returns "errors" (M, S, 2), "gram" (M, S, F, F) and "heads" (M, S, 2, K) at the times.

    With probability `replay` a step is on the other task. `consolidation` rho adds rho/2 sum_k kappa_k |w_k - ~w_k|^2
    to the loss, ~w the snapshot: d<w_i,z>/dt -= eta rho kappa_i (<w_i,z> - <~w_i,z>). `noise` is that of the teachers'
    outputs. `replay`, `consolidation` and `noise` are numbers or one per student.
    """
    k, count = overlaps.heads.shape[-1], len(overlaps.heads)
    p, rho = (np.broadcast_to(x, (count,))[:, None, None] for x in (replay, consolidation))
    pinned = rho * (np.ones((count, k)) if kappa is None else kappa)[:, :, None]

    def move(now: Overlaps) -> tuple[np.ndarray, np.ndarray]:
        dgram, dheads = speeds(now, task, eta, noise)
        if p.any():
            other = speeds(now, 1 - task, eta, noise)
            dgram, dheads = (1 - p) * dgram + p * other[0], (1 - p) * dheads + p * other[1]
        if pinned.any():
            dgram = dgram - eta * _both(pinned * (now.gram[:, :k] - now.gram[:, -k:]))
        return dgram, dheads

    def step(start: Overlaps, slope: tuple[np.ndarray, np.ndarray], size: float) -> Overlaps:
        return dataclasses.replace(start, gram=start.gram + size * slope[0], heads=start.heads + size * slope[1])

    record: dict[str, list[np.ndarray]] = {"errors": [], "gram": [], "heads": []}
    for before, now in zip([times[0], *times], times, strict=False):
        pieces = max(1, int(np.ceil((now - before) / dt - 1e-9)))
        for _ in range(pieces if now > before else 0):
            size = (now - before) / pieces
            overlaps = step(overlaps, move(step(overlaps, move(overlaps), size / 2)), size)
        for name, value in (("errors", errors(overlaps)), ("gram", overlaps.gram), ("heads", overlaps.heads)):
            record[name].append(value)
    return {name: np.stack(values) for name, values in record.items()}



# ---- measures --------------------------------------------------------------------------------------------


def forgetting(errors: Float[np.ndarray, "M S 2"]) -> Float[np.ndarray, "M S"]:
    """Forgetting of task 1, eps_1(t) - eps_1(switch); the record begins at the switch."""
    return errors[..., 0] - errors[0, :, 0]


def transfer(errors: Float[np.ndarray, "M S 2"]) -> Float[np.ndarray, "M S"]:
    """Transfer to task 2, eps_2(switch) - eps_2(t); the record begins at the switch."""
    return errors[0, :, 1] - errors[..., 1]


def usage(gram: Float[np.ndarray, "*S F F"], heads: Float[np.ndarray, "*S 2 K"]) -> Float[np.ndarray, "*S 2 K"]:
    """The share of each node in each task: p_k = u_k^2/sum u^2, u_k = |h_k| sqrt(Q_kk)."""
    power = heads ** 2 * np.diagonal(gram, axis1=-2, axis2=-1)[..., None, :heads.shape[-1]]
    return power / power.sum(-1, keepdims=True)


def entropy(shares: Float[np.ndarray, "... K"]) -> Values:
    """Entropy of shares, -sum p ln p/ln K: 0 when one node is used alone, 1 when all are used equally."""
    return -(shares * np.log(np.maximum(shares, np.finfo(shares.dtype).tiny))).sum(-1) / np.log(shares.shape[-1])


def participation(shares: Float[np.ndarray, "... K"]) -> Values:
    """The number of nodes in use, 1/sum p^2."""
    return 1 / (shares ** 2).sum(-1)


def reuse(shares: Float[np.ndarray, "... 2 K"]) -> Values:
    """Overlap of two tasks' shares, sum_k min(p1_k, p2_k): 1 when they use the same nodes, 0 when they share none."""
    return shares.min(-2).sum(-1)



# ---- a student with an idle node -------------------------------------------------------------------------


def specialised(similarity: Float[np.ndarray, "S"], dormant: float) -> Overlaps:
    """A student that has learned task 1 with its first node alone, for unit teachers of one node.

    w_1 = w^1, h^1 = (1, 0); node 2 has |w_2| = h^2_2 = `dormant` and is orthogonal to both teachers.
    """
    gram = np.zeros((len(similarity), 4, 4))
    gram[:, np.arange(4), np.arange(4)] = 1, dormant ** 2, 1, 1
    for i, j, value in (0, 2, 1.0), (0, 3, similarity), (2, 3, similarity):
        gram[:, i, j] = gram[:, j, i] = value
    heads = np.broadcast_to([[1.0, 0.0], [0.0, dormant]], (len(similarity), 2, 2)).copy()
    return Overlaps(gram, heads, np.ones((2, 1)))


def early_forgetting(v: Float[np.ndarray, "S"], t: float, eta: float) -> Float[np.ndarray, "S"]:
    """Forgetting of `specialised(v, 0)` at time t, to leading order in eta t. Derived.

    eta^4 a^2/2 [(kp b^2 + kl c^2) t^4/4 + kp I4(1,1,2,2) t^3/3], a = (2/pi) asin(V/2) the rate of the new head,
    b = (2/pi) sqrt((1-V^2)/(4-V^2)) and c = V/(pi sqrt(4-V^2)) the pull on w_1 across and along itself,
    kp = (2/pi) 3^-1/2 and kl = (2/pi) 3^-3/2 the curvatures of eps_1 across and along.
    """
    a = 2 / np.pi * np.arcsin(v / 2)
    b, c = 2 / np.pi * np.sqrt((1 - v ** 2) / (4 - v ** 2)), v / np.pi / np.sqrt(4 - v ** 2)
    across, along = 2 / np.pi / 3 ** 0.5, 2 / np.pi / 3 ** 1.5
    fields = np.ones((len(v), 4, 4))
    fields[:, :2, 2:] = fields[:, 2:, :2] = v[:, None, None]
    return eta ** 4 * a ** 2 / 2 * ((across * b ** 2 + along * c ** 2) * t ** 4 / 4 + across * i4(fields) * t ** 3 / 3)
