"""The race of idle and re-used units for a second task, and the order parameters of its outcome with each remedy.

A two-layer network with a head for each task learns task 1, then task 2. Where the tasks are unlike, idle units learn
task 2 (activation); where they are alike, the units of task 1 do (re-use), which overwrites them; forgetting is worst
in between (Lee, Sarao Mannelli, Clopath, Goldt, Saxe, ICML 2022, arXiv 2205.09029; only the abstract was available).
The order parameters are those of teacher_student.py. An idle unit of size delta grows as exp(sqrt(2)/pi eta t) and
loses the race against a re-used one for similarities V > Vc with (2/pi) asin(Vc/2) = (sqrt(2)/pi)/ln(1/delta): a
heuristic, derived.

Shapes: S students, K units, F fields (see teacher_student.py), R remedies, V similarities, D sizes of the idle unit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .teacher_student import Overlaps, integrate, snapshot, specialised, usage

GROWTH = np.sqrt(2) / np.pi  # growth rate of an idle unit while its teacher is not learned, over eta; derived


def reuse_rate(similarity: Float[np.ndarray, "V"]) -> Float[np.ndarray, "V"]:
    """The rate at which the new head of the unit of task 1 grows at first, over eta: (2/pi) asin(V/2). Derived."""
    return 2 / np.pi * np.arcsin(np.asarray(similarity) / 2)


def crossover(dormant: Sequence[float] | np.ndarray) -> Float[np.ndarray, "D"]:
    """The similarity Vc above which the unit of task 1 is faster than an idle one of size delta; at most 1.

    Vc solves reuse_rate(Vc) = GROWTH / ln(1/delta): a heuristic, derived.
    """
    return 2 * np.sin(np.minimum(np.pi / 2 * GROWTH / np.log(1 / np.asarray(dormant)), np.pi / 6))


def node_fisher(head: Float[np.ndarray, "... K"], q: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "... K"]:
    """N times the Fisher information of the output about any weight of a node, for N to infinity.

    h_k^2 E[g'(l_k)^2] = h_k^2 (2/pi)/sqrt(1 + 2 Q_kk). It is the same for all weights of a node, so EWC consolidates
    nodes. Derived.
    """
    return head ** 2 * 2 / np.pi / np.sqrt(1 + 2 * q)


def idle(similarity: Float[np.ndarray, "S"], dormant: float | np.ndarray, new_head: float = 0.0) -> Overlaps:
    """A student that has learned task 1 with its first unit, and whose second unit is idle.

    The idle unit has size `dormant` and a cosine of 1/2 to the part of teacher 2 that is orthogonal to teacher 1.
    `new_head` is the first unit's head for task 2.
    """
    start = specialised(similarity, 1.0)
    gram, heads = start.gram.copy(), start.heads.copy()
    gram[:, 1, 1], heads[:, 1, 1], heads[:, 1, 0] = np.square(dormant), dormant, new_head
    gram[:, 1, 3] = gram[:, 3, 1] = dormant * np.sqrt(1 - similarity ** 2) / 2
    return Overlaps(gram, heads, start.teacher_heads)


def no_idle(similarity: Float[np.ndarray, "S"], dormant: float) -> Overlaps:
    """As `idle`, without the second unit; the first unit's head for task 2 starts at `dormant`."""
    gram = np.ones((len(similarity), 3, 3))
    gram[:, [0, 2, 1, 2], [2, 0, 2, 1]] = similarity[:, None]
    heads = np.broadcast_to([[1.0], [dormant]], (len(similarity), 2, 1))
    return Overlaps(gram, heads, np.ones((2, 1)))


@dataclass(frozen=True)
class Remedy:
    """A remedy against forgetting: a share of replayed task 1, or a penalty on moving the weights of the first task.

    The penalty is rho/2 sum_k kappa_k |w_k - w_k at the switch|^2.
    """

    name: str
    replay: float = 0.0
    rho: float = 0.0
    by_node: bool = False  # kappa_k = (h^1_k)^2, else 1

    def kappa(self, heads: Float[np.ndarray, "S 2 K"]) -> Float[np.ndarray, "S K"]:
        """The weight of each node in the penalty, from the heads at the switch."""
        return heads[:, 0] ** 2 if self.by_node else np.ones_like(heads[:, 0])


NONE = Remedy("none")


@dataclass(frozen=True)
class Outcome:
    """Forgetting, error and use of units after task 2, similarity by similarity."""

    forgotten: np.ndarray  # error of task 1, at the end less at the switch
    error: np.ndarray  # of task 2 at the end
    shares: np.ndarray  # (..., 2, K): of the units in each task, at the end
    heads: np.ndarray  # (..., 2, K)

    def at(self, index: int) -> Outcome:
        """The outcome of one remedy (one index of the first dimension)."""
        return Outcome(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def learn_second(start: Overlaps, eta: float, time: float, dt: float, remedies: Sequence[Remedy] = (NONE,)) -> Outcome:
    """Train every start on task 2 with every remedy, by the ODE of teacher_student.py; results are (R, V, ...)."""
    count, many = len(start.gram), len(remedies)
    one = snapshot(start)
    every = Overlaps(np.tile(one.gram, (many, 1, 1)), np.tile(one.heads, (many, 1, 1)), one.teacher_heads)
    replay, rho = (np.repeat([getattr(remedy, name) for remedy in remedies], count) for name in ("replay", "rho"))
    kappa = np.concatenate([remedy.kappa(start.heads) for remedy in remedies])
    record = integrate(every, 1, np.array([0.0, time]), dt, eta, replay, rho, kappa)
    found = (record["errors"][-1, :, 0] - record["errors"][0, :, 0], record["errors"][-1, :, 1],
             usage(record["gram"][-1], record["heads"][-1]), record["heads"][-1])
    return Outcome(*(part.reshape(many, count, *part.shape[1:]) for part in found))
