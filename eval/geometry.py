"""Measures of the geometry of task representations: dimensions, axes, decoding, RSA, selectivity of units, forgetting.

Pure float64 functions of X, conditions x units. The reference task is that of Flesch et al. (Neuron 2022; reviewed with
Saxe and Summerfield, TiNS 2023): every stimulus (a, b) of a grid of levels is seen in context A, where a counts, and in
context B, where b counts; conditions are ordered A before B, then by a, then by b. Labels are signed; those of 0 (on a
boundary) are left out of decoding and accuracy. Decoders are least-squares classifiers, trained and tested on
infinitely many noisy copies of the conditions, which has a closed form; without noise, cross-condition decoding
would depend on rounding.

Leaves out recording, training, and statistics over networks. Axes and angles are of mean differences, so conditions
should be balanced.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Float, Shaped
from scipy.optimize import minimize
from scipy.spatial.distance import pdist, squareform
from scipy.special import ndtr

from dixit.common import DixitError, rng

Points = Float[np.ndarray, "conditions units"]
PerCondition = Shaped[np.ndarray, "conditions"]  # labels, context or setting of each condition
Distances = Float[np.ndarray, "pairs"]

# ---- the task and its ideal geometries ---------------------------------------------------------------------


def conditions(levels: int = 5) -> tuple[PerCondition, PerCondition, PerCondition]:
    """Feature a, feature b (both centred, unit steps) and context (0 for A, 1 for B) of each condition."""
    level = np.arange(levels) - (levels - 1) / 2
    a, b = (values.ravel() for values in np.meshgrid(level, level, indexing="ij"))
    return np.tile(a, 2), np.tile(b, 2), np.repeat([0.0, 1.0], levels ** 2)


def ideal_geometries(levels: int = 5, context: float = 1.0) -> dict[str, Points]:
    """Ideal representations in (axis 1, axis 2, context); B lies `context` from A.

    The irrelevant feature is as large as the relevant one in the grids (rotated: turned in B by -90 degrees, so that
    the relevant axes coincide) and absent in orthogonal and parallel; diagonal has (a + b)/2 on both axes; only_a and
    only_b have one feature in both contexts; context has no feature.
    """
    a, b, in_b = conditions(levels)
    zero, mean = np.zeros_like(a), (a + b) / 2
    planes = {
        "grid": (a, b),
        "rotated_grid": (np.where(in_b, b, a), np.where(in_b, -a, b)),
        "orthogonal": (np.where(in_b, 0, a), np.where(in_b, b, 0)),
        "parallel": (np.where(in_b, b, a), zero),
        "diagonal": (mean, mean),
        "only_a": (a, zero),
        "only_b": (zero, b),
        "context": (zero, zero),
    }
    return {name: np.stack([*plane, context * in_b], 1) for name, plane in planes.items()}


def model_rdms(levels: int = 5, context: float = 1.0) -> dict[str, Distances]:
    """The `rdm` of each ideal geometry. RSA depends on the context offset: use the same for all models and report it.

    Without "context" among the models, orthogonal absorbs an offset that is larger in the data than in the models.
    """
    return {name: rdm(x) for name, x in ideal_geometries(levels, context).items()}


# ---- dimensionality ----------------------------------------------------------------------------------------


def scree(x: Points) -> Float[np.ndarray, "components"]:
    """The share of variance of each principal component, largest first."""
    values = np.linalg.svd(_centred(x), compute_uv=False) ** 2
    if not values.sum() > 0:
        raise DixitError("geometry: all conditions are represented alike; record something that differs")
    return values / values.sum()


def participation_ratio(x: Points) -> float:
    """(sum l)^2 / sum l^2 over the eigenvalues l of the covariance between units; from 1 to conditions - 1."""
    return float(1 / (scree(x) ** 2).sum())


def effective_rank(x: Points) -> float:
    """exp of the entropy of the scree."""
    shares = scree(x)
    return float(np.exp(-(shares * np.log(np.maximum(shares, 1e-300))).sum()))


def accuracy(outputs: PerCondition, labels: PerCondition) -> float:
    """How often an output has the sign of its label; an output of 0 is half right."""
    kept = labels != 0
    return float((1 + np.sign(outputs[kept]) * np.sign(labels[kept])).mean() / 2)


def accuracy_by_rank(x: Points, readout: Float[np.ndarray, "units"], bias: float, labels: PerCondition,
                     ) -> Float[np.ndarray, "components"]:
    """Accuracy of a linear readout of X after keeping its first 1, 2, ... principal components and its mean."""
    left, values, right = np.linalg.svd(_centred(x), full_matrices=False)
    outputs = np.cumsum(left * values * (right @ readout), 1) + np.asarray(x, float).mean(0) @ readout + bias
    return np.array([accuracy(one, labels) for one in outputs.T])


# ---- decoding and abstraction ------------------------------------------------------------------------------


def dichotomy_accuracies(x: Points, noise: float, max_count: int = 500) -> Float[np.ndarray, "dichotomies"]:
    """Decoding accuracy of every balanced dichotomy of the conditions, or of `most` random ones if there are more.

    Train and test copies of the conditions differ by isotropic Gaussian noise of standard deviation `noise`.
    """
    n = len(x)
    if n % 2 or n < 2:
        raise DixitError(f"geometry: {n} conditions have no balanced dichotomies; give an even number")
    if n <= 12:
        plus = np.array([(0, *rest) for rest in combinations(range(1, n), n // 2 - 1)])
    else:
        draw = rng("geometry", "dichotomies", n)
        plus = np.array([draw.permutation(n)[:n // 2] for _ in range(max_count)])
    labels = -np.ones((n, len(plus)))
    np.put_along_axis(labels, plus.T, 1.0, 0)
    return _decode(x, labels, x, labels, noise)


def shattering_dimension(x: Points, noise: float, criterion: float | None = None, max_count: int = 500) -> float:
    """The mean of `dichotomy_accuracies`, or the share of them above a criterion."""
    accuracies = dichotomy_accuracies(x, noise, max_count)
    return float(accuracies.mean() if criterion is None else (accuracies > criterion).mean())


def ccgp(x: Points, labels: PerCondition, settings: PerCondition, noise: float) -> float:
    """Cross-condition generalisation: labels decoded in all settings but one, tested in that one; mean over settings.

    `settings` are the values of the other variables, e.g. the context; `noise` as in `dichotomy_accuracies`.
    """
    sides = [settings == one for one in np.unique(settings)]
    return float(np.mean([_decode(x[~side], labels[~side, None], x[side], labels[side, None], noise)
                          for side in sides]))


def ccgp_null(x: Points, labels: PerCondition, settings: PerCondition, noise: float, draws: int = 100,
              ) -> Float[np.ndarray, "draws"]:
    """CCGP after a random rotation of each setting's points about their mean; distances within a setting stay."""
    scores, units = [], x.shape[1]
    for number in range(draws):
        turned = np.array(x, float)
        for place, one in enumerate(np.unique(settings)):
            side, draw = settings == one, rng("geometry", "rotation", number, place)
            turn = np.linalg.qr(draw.standard_normal((units, units)))[0] * draw.choice([-1.0, 1.0], units)
            turned[side] = _centred(x[side]) @ turn + x[side].mean(0)
        scores.append(ccgp(turned, labels, settings, noise))
    return np.array(scores)


def coding_vectors(x: Points, labels: PerCondition, settings: PerCondition) -> Float[np.ndarray, "settings units"]:
    """In each setting, the mean of conditions of positive label less the mean of those of negative label."""
    for one in np.unique(settings):
        _both_signs(labels[settings == one])
    return np.stack([x[(settings == one) & (labels > 0)].mean(0) - x[(settings == one) & (labels < 0)].mean(0)
                     for one in np.unique(settings)])


def parallelism_score(x: Points, labels: PerCondition, settings: PerCondition) -> float:
    """Mean cosine over pairs of coding vectors."""
    return float(np.mean(_cosines(coding_vectors(x, labels, settings))))


def axis_angle(x: Points, labels: PerCondition, context: PerCondition) -> float:
    """Degrees between the coding vectors of two contexts; the labels are each context's own."""
    return float(np.degrees(np.arccos(_cosines(coding_vectors(x, labels, context)).clip(-1, 1))[0]))


# ---- model RSA ---------------------------------------------------------------------------------------------


def rdm(x: Points) -> Distances:
    """Euclidean distances between conditions, one of each pair: (1, 0), (2, 0), ..., (2, 1), ..."""
    return pdist(np.asarray(x, float))


def rsa_betas(distances: Distances, models: dict[str, Distances]) -> dict[str, float]:
    """Model RSA: coefficients of the z-scored RDM on the z-scored model RDMs that are given, together. The models
    correlate: choose few (`vif` measures how much)."""
    betas = np.linalg.lstsq(np.stack([_zscored(m) for m in models.values()], 1), _zscored(distances), rcond=None)[0]
    return dict(zip(models, betas.tolist(), strict=True))


def vif(models: dict[str, Distances]) -> dict[str, float]:
    """Variance inflation of each model among the others: 1/(1 - R^2) of its regression on them; 1 if uncorrelated."""
    correlation = np.atleast_2d(np.corrcoef(np.stack(list(models.values()))))
    return dict(zip(models, np.diag(np.linalg.inv(correlation)).tolist(), strict=True))


def noise_ceiling(rdms: Float[np.ndarray, "subjects pairs"]) -> tuple[float, float]:
    """Bounds of the best possible model's mean correlation with the subjects' RDMs: each with the mean of the others,
    and each with the mean of all (Nili et al. 2014)."""
    if len(rdms) < 2:
        raise DixitError("geometry: a noise ceiling needs the RDMs of two subjects or more")
    z = np.stack([_zscored(one) for one in rdms])
    others = [np.corrcoef(one, np.delete(z, i, 0).mean(0))[0, 1] for i, one in enumerate(z)]
    return float(np.mean(others)), float(np.mean([np.corrcoef(one, z.mean(0))[0, 1] for one in z]))


def kendall_tau_a(one: Distances, other: Distances) -> float:
    """Pairs of entries in the same order less those in opposite order, over all pairs: ties count as neither."""
    return float((_order(one) * _order(other)).sum() / (len(one) * (len(one) - 1)))


def partial_tau_a(distances: Distances, models: dict[str, Distances]) -> dict[str, float]:
    """Kendall's partial rank correlation of the RDM with each model given the others, from tau-a."""
    order = np.stack([_order(values).ravel() for values in (distances, *models.values())])
    taus = order @ order.T / (len(distances) * (len(distances) - 1))
    np.fill_diagonal(taus, 1.0)
    precision = np.linalg.inv(taus)
    partial = -precision[0, 1:] / np.sqrt(precision[0, 0] * np.diag(precision)[1:])
    return dict(zip(models, partial.tolist(), strict=True))


# ---- a geometry fitted to an RDM ---------------------------------------------------------------------------


def compressed(scales: Float[np.ndarray, "4"], angle: float, context: float, levels: int = 5) -> Points:
    """The grid with its axes scaled (relevant in A and B, irrelevant in A and B), the plane of B turned by `angle`
    (radians) and lifted by `context`. Angle 0: relevant axes at right angles; -90 degrees: one shared axis."""
    a, b, in_b = conditions(levels)
    relevant_a, relevant_b, irrelevant_a, irrelevant_b = scales
    first, second = np.where(in_b, irrelevant_b, relevant_a) * a, np.where(in_b, relevant_b, irrelevant_a) * b
    cos, sin = np.where(in_b, np.cos(angle), 1.0), np.where(in_b, np.sin(angle), 0.0)
    return np.stack([cos * first - sin * second, sin * first + cos * second, context * in_b], 1)


def fit_geometry(distances: Distances, levels: int = 5, starts: int = 20) -> dict[str, float]:
    """The `compressed` grid whose distances are nearest: the best of L-BFGS-B from random starts, never their mean.

    Compressions "c_rel_a", "c_rel_b", "c_irr_a", "c_irr_b" are relative to the least compressed axis, which has 0;
    "context" is in steps of that axis; "angle" is in degrees, of equally good ones the smallest; "compression" is 1
    less irrelevant over relevant scale; "sse" is of distances over their maximum.
    """
    target = np.asarray(distances, float) / np.max(distances)
    a, b, in_b = conditions(levels)
    if len(target) != len(a) * (len(a) - 1) // 2:
        raise DixitError(f"geometry: {len(target)} distances are not of {len(a)} conditions; check levels={levels}")

    def error(p: np.ndarray) -> tuple[float, np.ndarray]:
        x = compressed(p[:4], p[4], p[5], levels)
        d = pdist(x)
        off = d - target
        pull = squareform(2 * off / np.maximum(d, 1e-12))
        gx = pull.sum(1)[:, None] * x - pull @ x  # d error / d x
        cos, sin = np.where(in_b, np.cos(p[4]), 1.0), np.where(in_b, np.sin(p[4]), 0.0)
        on_a, on_b = (cos * gx[:, 0] + sin * gx[:, 1]) * a, (cos * gx[:, 1] - sin * gx[:, 0]) * b
        slope = [on_a @ (1 - in_b), on_b @ in_b, on_b @ (1 - in_b), on_a @ in_b,
                 (gx[:, 1] * x[:, 0] - gx[:, 0] * x[:, 1]) @ in_b, gx[:, 2] @ in_b]
        return float(off @ off), np.array(slope)

    fits = []
    for number in range(starts):
        draw = rng("geometry", "fit", number)
        first = [*draw.uniform(0.02, 0.3, 4), draw.uniform(-np.pi, np.pi), draw.uniform(0, 0.5)]
        fit = minimize(error, first, jac=True, method="L-BFGS-B", bounds=[(0, None)] * 4 + [(None, None), (0, None)],
                       options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000})
        fits.append((round(fit.fun, 9), round(abs(_wrapped(fit.x[4])), 1), fit.fun, number, fit))
    best = min(fits)[-1]
    scales, largest = best.x[:4], best.x[:4].max()
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN if there is nothing but context
        found = dict(zip(("c_rel_a", "c_rel_b", "c_irr_a", "c_irr_b"), (1 - scales / largest).tolist(), strict=True))
        return found | {"angle": _wrapped(best.x[4]), "context": float(best.x[5] / largest),
                       "compression": float(1 - scales[2:].sum() / scales[:2].sum()), "sse": float(best.fun)}


# ---- gating ------------------------------------------------------------------------------------------------


def task_units(x: Points, context: PerCondition, threshold: float = 0.0) -> dict[str, Shaped[np.ndarray, "units"]]:
    """Which units are above threshold for some condition of A only ("a_only"), of B only, of "both", of none
    ("dead"); A is the smaller value of `context`."""
    in_a, in_b = ((np.asarray(x, float)[side] > threshold).any(0) for side in _two(context))
    return {"dead": ~in_a & ~in_b, "a_only": in_a & ~in_b, "b_only": in_b & ~in_a, "both": in_a & in_b}


def pattern_cosine(x: Points, context: PerCondition) -> float:
    """Cosine between the mean patterns of the two contexts."""
    return float(_cosines(np.stack([x[side].mean(0) for side in _two(context)]))[0])


def selectivity_index(x: Points, context: PerCondition) -> Float[np.ndarray, "units"]:
    """(mean in A - mean in B)/(mean in A + mean in B) of each unit, from 1 (A only) to -1; 0 for a dead one."""
    in_a, in_b = (np.asarray(x, float)[side].mean(0) for side in _two(context))
    return np.divide(in_a - in_b, in_a + in_b, out=np.zeros_like(in_a), where=in_a + in_b != 0)


def row_correlation(weights: Float[np.ndarray, "2 units"]) -> float:
    """Pearson correlation of the two contexts' weights: -1 is a gate."""
    return float(np.corrcoef(weights)[0, 1])


def ablated_accuracy(x: Points, readout: Float[np.ndarray, "units"], bias: float, labels: PerCondition,
                     units: Shaped[np.ndarray, "units"]) -> float:
    """Accuracy of a linear readout of X with these units at 0. Congruent trials are those where both tasks agree."""
    return accuracy(np.where(units, 0.0, x) @ readout + bias, labels)


def explained(x: Points, labels: PerCondition) -> float:
    """The share of the variance of x, over all units, that lies between the groups of `labels`: epsilon squared (Kelley
    1935), 0 on average where labels explain nothing, and 1 where they explain everything. 0 too if nothing varies,
    or all groups have one member.

    >>> explained(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1]))
    1.0
    """
    groups, n = np.unique(labels), len(x)
    total = float(((x - x.mean(0)) ** 2).sum())
    if total == 0 or n == len(groups):
        return 0.0
    within = sum(float(((part - part.mean(0)) ** 2).sum()) for part in (x[labels == g] for g in groups))
    return 1 - (within / (n - len(groups))) / (total / (n - 1))


# ---- rich or lazy ------------------------------------------------------------------------------------------


def relative_change(start: np.ndarray, end: np.ndarray) -> float:
    """|W_t - W_0| / |W_0|."""
    return float(np.linalg.norm(end - start) / np.linalg.norm(start))


def norm_change(start: np.ndarray, end: np.ndarray) -> float:
    """(|W_t| - |W_0|) / |W_0|, as Flesch et al. report it: 0 for weights that only turned."""
    return float(np.linalg.norm(end) / np.linalg.norm(start) - 1)


def kernel_change(start: Float[np.ndarray, "n n"], end: Float[np.ndarray, "n n"]) -> float:
    """1 - <K_0, K_t> / (|K_0| |K_t|): 0 for lazy learning."""
    return float(1 - (start * end).sum() / (np.linalg.norm(start) * np.linalg.norm(end)))


# ---- learning in sequence ----------------------------------------------------------------------------------


def transfer(after: Float[np.ndarray, "stages tasks"], before: Float[np.ndarray, "tasks"] | None = None,
             ) -> dict[str, float]:
    """From the accuracy on task j after stage i (`after[i, j]`; task i is learned in stage i):

    backward transfer mean_{i<T} (A_Ti - A_ii), below 0 if tasks are forgotten; with the accuracies before any learning,
    forward transfer mean_{i>1} (A_{i-1,i} - before_i) (Lopez-Paz and Ranzato 2017).
    """
    if after.shape[0] != after.shape[1] or len(after) < 2:
        raise DixitError(f"geometry: transfer needs one stage for each of two tasks or more, not {after.shape}")
    found = {"backward": float((after[-1] - np.diag(after))[:-1].mean())}
    return found if before is None else found | {"forward": float((np.diag(after, 1) - before[1:]).mean())}


def forgetting_matrix(after: Float[np.ndarray, "stages tasks"]) -> Float[np.ndarray, "stages tasks"]:
    """How much of task j's accuracy at the end of its own stage is lost after stage i; 0 before that."""
    return np.tril(np.diag(after) - after)


def switch_cost(correct: Shaped[np.ndarray, "trials"], tasks: Shaped[np.ndarray, "trials"]) -> float:
    """Accuracy on trials that repeat the task of the previous trial, minus that on trials that switch it."""
    switched = tasks[1:] != tasks[:-1]
    return float(correct[1:][~switched].mean() - correct[1:][switched].mean())


def congruency_effect(correct: PerCondition, label_a: PerCondition, label_b: PerCondition) -> float:
    """Accuracy where both tasks require the same answer, minus that where they require opposite ones."""
    agree = np.sign(label_a) * np.sign(label_b)
    return float(correct[agree > 0].mean() - correct[agree < 0].mean())


# ---- helpers -----------------------------------------------------------------------------------------------


def _centred(x: Points) -> Points:
    x = np.asarray(x, float)
    if not np.isfinite(x).all():
        raise DixitError("geometry: activity that is not finite; did training diverge?")
    return x - x.mean(0)


def _zscored(values: Distances) -> Distances:
    values = np.asarray(values, float)
    if not values.std() > 0:
        raise DixitError("geometry: all distances are equal (or NaN), so none can be explained; record more conditions")
    return (values - values.mean()) / values.std()


def _order(values: Distances) -> Float[np.ndarray, "pairs pairs"]:
    return np.sign(values[:, None] - values)


def _cosines(vectors: Float[np.ndarray, "n units"]) -> Float[np.ndarray, "pairs"]:
    with np.errstate(invalid="ignore"):  # a vector of zeros has no direction: NaN
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def _wrapped(radians: float) -> float:
    """Degrees from -180 to 180."""
    return float((np.degrees(radians) + 180) % 360 - 180)


def _two(context: PerCondition) -> tuple[PerCondition, PerCondition]:
    values = np.unique(context)
    if len(values) != 2:
        raise DixitError(f"geometry: {len(values)} contexts where two are compared; pass the conditions of two")
    return context == values[0], context == values[1]


def _both_signs(labels: np.ndarray) -> None:
    if not ((labels > 0).any(0) & (labels < 0).any(0)).all():
        raise DixitError("geometry: labels of one sign only; every setting needs conditions on both sides")


def _decode(train: Points, train_labels: Shaped[np.ndarray, "conditions dichotomies"],
            test: Float[np.ndarray, "n units"], test_labels: Shaped[np.ndarray, "n dichotomies"], noise: float,
            ) -> Float[np.ndarray, "dichotomies"]:
    """Decoding accuracies. Least squares on infinitely many noisy copies is ridge regression; a noisy copy is right
    with probability Phi(margin / noise)."""
    if not noise > 0:
        raise DixitError(f"geometry: noise={noise} must be above 0, or decoding hangs on rounding")
    _both_signs(train_labels)
    signs = np.sign(train_labels)
    if not signs.all():  # one dichotomy, some conditions of which are left out
        train, signs = train[signs[:, 0] != 0], signs[signs[:, 0] != 0]
    x = _centred(train)
    weights = np.linalg.solve(x.T @ x / len(x) + noise ** 2 * np.eye(x.shape[1]), x.T @ signs / len(x))
    spread = noise * np.linalg.norm(weights, axis=0)
    margins = (np.asarray(test, float) - np.asarray(train, float).mean(0)) @ weights + signs.mean(0)
    margins = np.where(spread > 1e-9, margins / np.maximum(spread, 1e-9), 0.0)  # no signal: chance level
    right, kept = ndtr(np.sign(test_labels) * margins), test_labels != 0
    return (right * kept).sum(0) / kept.sum(0)
