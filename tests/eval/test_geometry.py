"""eval.geometry: exact values on ideal geometries, invariances and where they end, other ways to the same number."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.special import ndtr
from scipy.stats import kendalltau

from dixit.common import DixitError, rng
from eval import geometry as geo

A, B, IN_B = geo.conditions()
RELEVANT, IRRELEVANT = np.where(IN_B, B, A), np.where(IN_B, A, B)
OFF = (RELEVANT != 0) & (IRRELEVANT != 0)
SETTING = 2 * IN_B + (IRRELEVANT > 0)
IDEAL, MODELS = geo.ideal_geometries(), geo.model_rdms()
THREE = {name: MODELS[name] for name in ("grid", "orthogonal", "parallel")}
FEW = settings(max_examples=15, deadline=None)


def quadrants(x: np.ndarray) -> np.ndarray:
    return np.stack([x[(IN_B == c) & (np.sign(A) == i) & (np.sign(B) == j)].mean(0)
                     for c in (0, 1) for i in (-1, 1) for j in (-1, 1)])


def turned(x: np.ndarray, seed: int, scale: float = 1.0, units: int = 12) -> np.ndarray:
    """The same geometry elsewhere: turned into `units` dimensions, scaled and moved."""
    draw = rng("test geometry", seed)
    frame = np.linalg.qr(draw.standard_normal((units, units)))[0]
    return scale * x @ frame[:x.shape[1]] + draw.standard_normal(units)


@pytest.mark.parametrize(("name", "pr", "ps", "angle", "ccgp", "separable"), [
    ("grid", (2 * 2 + 1 / 4) ** 2 / (2 * 4 + 1 / 16), 1 / 3, 90, 0.5, 7),
    ("rotated_grid", (2 * 2 + 1 / 4) ** 2 / (2 * 4 + 1 / 16), 1, 0, ndtr([1, 2]).mean(), 7),
    ("orthogonal", (1 + 1 + 1 / 4) ** 2 / (1 + 1 + 1 / 16), 1 / 3, 90, 0.5, 3),
    ("parallel", (2 + 1 / 4) ** 2 / (4 + 1 / 16), 1, 0, ndtr([1, 2]).mean(), 2),
    ("diagonal", (2 + 1 / 4) ** 2 / (4 + 1 / 16), 1, 0,
     np.mean([ndtr((m + k) / 2 ** 0.5) for m in (1, 2) for k in (-2, -1, 0, 1, 2)]), 3)])
def test_ideal_geometries_have_their_known_values(name, pr, ps, angle, ccgp, separable):
    x = IDEAL[name]
    assert geo.participation_ratio(x) == pytest.approx(pr)
    assert geo.parallelism_score(x[OFF], RELEVANT[OFF], SETTING[OFF]) == pytest.approx(ps)
    assert geo.axis_angle(x, RELEVANT, IN_B) == pytest.approx(angle, abs=1e-4)
    assert geo.ccgp(x, RELEVANT, IN_B, 1.0) == pytest.approx(ccgp)
    assert geo.shattering_dimension(quadrants(x), 1e-3, criterion=0.999) == pytest.approx(separable / 35)


@pytest.mark.parametrize("name", THREE)
def test_rsa_gives_a_model_itself_and_a_mixture_its_parts(name):
    assert geo.rsa_betas(MODELS[name], THREE) == pytest.approx({n: float(n == name) for n in THREE}, abs=1e-12)
    z = {n: (m - m.mean()) / m.std() for n, m in THREE.items()}
    mixed = 0.7 * z["grid"] + 0.2 * z["parallel"]
    found = geo.rsa_betas(5 + 3 * mixed, THREE)
    assert found["orthogonal"] == pytest.approx(0, abs=1e-12)
    assert found["grid"] / found["parallel"] == pytest.approx(3.5)


def test_the_rotated_grid_is_no_mixture_of_the_three():
    found = geo.rsa_betas(MODELS["rotated_grid"], THREE)
    assert list(found.values()) == pytest.approx([0.469, -0.3525, 0.7609], abs=1e-4)


def test_the_usual_models_call_a_context_orthogonal_unless_context_is_among_them():
    only_context = geo.rdm(IN_B[:, None] * 3.0)
    assert geo.rsa_betas(only_context, THREE)["orthogonal"] > 0.4
    beside = geo.rsa_betas(only_context, THREE | {"context": MODELS["context"]})
    assert beside == pytest.approx({"grid": 0, "orthogonal": 0, "parallel": 0, "context": 1}, abs=1e-12)


def test_vif_by_regression():
    names = list(THREE)
    for name in names:
        others = np.stack([np.ones(1225), *(THREE[n] for n in names if n != name)], 1)
        residual = THREE[name] - others @ np.linalg.lstsq(others, THREE[name], rcond=None)[0]
        assert geo.vif(THREE)[name] == pytest.approx(THREE[name].var() / residual.var())


@FEW
@given(seed=st.integers(0, 10 ** 6), scale=st.floats(0.01, 100), name=st.sampled_from(list(THREE)))
def test_turning_scaling_and_moving_change_nothing(seed, scale, name):
    x, y = IDEAL[name], turned(IDEAL[name], seed, scale)
    for measure in (geo.participation_ratio, geo.effective_rank):
        assert measure(y) == pytest.approx(measure(x))
    assert geo.parallelism_score(y[OFF], RELEVANT[OFF], SETTING[OFF]) == pytest.approx(
        geo.parallelism_score(x[OFF], RELEVANT[OFF], SETTING[OFF]))
    assert geo.axis_angle(y, RELEVANT, IN_B) == pytest.approx(geo.axis_angle(x, RELEVANT, IN_B), abs=1e-3)
    assert geo.ccgp(y, RELEVANT, IN_B, scale) == pytest.approx(geo.ccgp(x, RELEVANT, IN_B, 1.0))
    assert geo.shattering_dimension(quadrants(y), scale) == pytest.approx(geo.shattering_dimension(quadrants(x), 1.0))
    assert geo.rsa_betas(geo.rdm(y), THREE) == pytest.approx(geo.rsa_betas(geo.rdm(x), THREE), abs=1e-9)
    np.testing.assert_allclose(geo.rdm(y), scale * geo.rdm(x), rtol=1e-9, atol=1e-9 * scale)


def test_where_it_does_not_hold():
    """A context offset changes RSA and PR but no axis; noise that does not scale with X changes decoding; stretching
    one unit changes the axes."""
    near, far = geo.ideal_geometries(context=1.0)["grid"], geo.ideal_geometries(context=5.0)["grid"]
    assert geo.rsa_betas(geo.rdm(near), THREE)["grid"] == pytest.approx(1)
    assert geo.rsa_betas(geo.rdm(far), THREE)["grid"] < 0.8
    assert geo.rsa_betas(geo.rdm(far), {n: geo.model_rdms(context=5.0)[n] for n in THREE})["grid"] == pytest.approx(1)
    middle = geo.ideal_geometries(context=2.0)["grid"]
    assert geo.participation_ratio(middle) == pytest.approx(25 / 9) != geo.participation_ratio(near)
    assert geo.axis_angle(near, RELEVANT, IN_B) == pytest.approx(geo.axis_angle(far, RELEVANT, IN_B))
    x = IDEAL["parallel"]
    assert geo.ccgp(10 * x, RELEVANT, IN_B, 1.0) > geo.ccgp(x, RELEVANT, IN_B, 1.0) + 0.05
    oblique = turned(IDEAL["orthogonal"], 0, units=3)
    assert abs(geo.axis_angle(oblique * [10, 1, 1], RELEVANT, IN_B) - 90) > 5


@FEW
@given(seed=st.integers(0, 10 ** 6), conditions=st.integers(2, 20), units=st.integers(1, 30))
def test_dimensions_have_their_bounds(seed, conditions, units):
    x = rng("bounds", seed).standard_normal((conditions, units))
    most = min(conditions - 1, units) + 1e-9
    assert 1 - 1e-9 <= geo.participation_ratio(x) <= geo.effective_rank(x) + 1e-9 <= most + 1e-9
    shares = geo.scree(x)
    assert shares.sum() == pytest.approx(1) and (np.diff(shares) <= 1e-12).all()


def test_equal_variances_fill_all_dimensions():
    corners = np.vstack([np.eye(6), -np.eye(6)])
    assert geo.participation_ratio(corners) == pytest.approx(6) == geo.effective_rank(corners)


def test_accuracy_by_rank():
    a, b, in_b = geo.conditions()
    x = np.stack([3 * a, b, 9 * in_b], 1)
    found = geo.accuracy_by_rank(x, np.array([0.0, 1.0, 0.0]), 0.0, b)  # b is the third component
    assert found == pytest.approx([0.5, 0.5, 1.0])
    assert geo.accuracy(np.array([1.0, -1.0, 0.0, 5.0]), np.array([2.0, 2.0, 1.0, 0.0])) == 0.5


def test_decoding_is_that_of_many_noisy_copies():
    """Least squares on 4,000 noisy copies of each condition, tested on others."""
    x, draw, noise = turned(IDEAL["diagonal"], 3, units=4), rng("copies"), 1.3
    labels = np.sign(RELEVANT)
    train, test = (np.repeat(x, 4000, 0) + noise * draw.standard_normal((200_000, 4)) for _ in range(2))
    many, side = np.repeat(labels, 4000), np.repeat(IN_B, 4000)
    scores = []
    for one in (0, 1):
        kept = (side != one) & (many != 0)
        design = np.column_stack([train, np.ones(len(train))])
        w = np.linalg.lstsq(design[kept], many[kept], rcond=None)[0]
        tested = (side == one) & (many != 0)
        scores.append((np.sign(np.column_stack([test, np.ones(len(test))])[tested] @ w) == many[tested]).mean())
    assert geo.ccgp(x, RELEVANT, IN_B, noise) == pytest.approx(np.mean(scores), abs=0.005)


@pytest.mark.parametrize("name", ["grid", "orthogonal", "parallel", "diagonal"])
def test_separable_dichotomies_by_linear_programming(name):
    x = quadrants(IDEAL[name])
    separable = []
    for rest in combinations(range(1, 8), 3):
        labels = -np.ones(8)
        labels[[0, *rest]] = 1
        rows = -labels[:, None] * np.column_stack([x, np.ones(8)])
        separable.append(linprog(np.zeros(4), rows, -np.ones(8), bounds=[(None, None)] * 4).status == 0)
    found = geo.dichotomy_accuracies(x, 1e-3)
    assert len(found) == 35 and (found > 0.999).sum() == sum(separable)


def test_points_in_general_position_shatter_and_a_line_does_not():
    x = rng("general").standard_normal((8, 20))
    assert geo.shattering_dimension(x, 1e-3) == pytest.approx(1)
    assert geo.shattering_dimension(np.arange(8.0)[:, None], 1e-3, criterion=0.999) == pytest.approx(1 / 35)
    assert len(geo.dichotomy_accuracies(rng("many").standard_normal((50, 5)), 1.0, max_count=40)) == 40


def test_without_signal_decoding_is_chance_not_dust():
    """The orthogonal geometry is silent on the trained axis in the other context; so is any XOR of the grid."""
    for seed in range(5):
        assert geo.ccgp(turned(IDEAL["orthogonal"], seed), RELEVANT, IN_B, 1e-3) == pytest.approx(0.5, abs=1e-6)
    x = np.array([[i, j] for i in (-1.0, 1.0) for j in (-1.0, 1.0)])
    assert sorted(geo.dichotomy_accuracies(x, 0.01)) == pytest.approx([0.5, 1, 1])


def test_the_null_of_ccgp_keeps_clouds_and_breaks_alignment():
    x = turned(IDEAL["parallel"], 1, units=20)
    null = geo.ccgp_null(x, RELEVANT, IN_B, 1.0, draws=40)
    assert geo.ccgp(x, RELEVANT, IN_B, 1.0) > np.quantile(null, 0.95) and abs(null.mean() - 0.5) < 0.1


def test_kendall_tau_a_and_its_partial():
    draw = rng("tau")
    one, other, third = draw.standard_normal((3, 60))
    other, third = other + one, third + one  # no ties: tau-a is tau-b
    assert geo.kendall_tau_a(one, other) == pytest.approx(kendalltau(one, other).statistic)
    assert geo.kendall_tau_a(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 3)
    xy, xz, yz = (geo.kendall_tau_a(*pair) for pair in ((one, other), (one, third), (other, third)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz ** 2) * (1 - yz ** 2))
    assert geo.partial_tau_a(one, {"y": other, "z": third})["y"] == pytest.approx(expected)
    assert geo.partial_tau_a(np.exp(one), {"y": other, "z": third})["y"] == pytest.approx(expected)  # ranks only


def test_the_true_model_lies_within_the_noise_ceiling():
    draw = rng("ceiling")
    subjects = MODELS["grid"] + draw.standard_normal((20, 1225))
    lower, upper = geo.noise_ceiling(subjects)
    true = np.mean([np.corrcoef(one, MODELS["grid"])[0, 1] for one in subjects])
    assert lower <= true <= upper and upper - lower < 0.05
    assert geo.noise_ceiling(np.stack([MODELS["grid"]] * 3)) == pytest.approx((1, 1))


@pytest.mark.parametrize(("name", "angle", "irrelevant"), [
    ("grid", 0, 0), ("rotated_grid", -90, 0), ("orthogonal", 0, 1), ("parallel", -90, 1)])
def test_the_fit_finds_ideal_geometries(name, angle, irrelevant):
    fit = geo.fit_geometry(7 * MODELS[name], starts=10)
    assert fit["sse"] < 1e-8 and fit["angle"] == pytest.approx(angle, abs=0.2)
    assert [fit[k] for k in ("c_rel_a", "c_rel_b")] == pytest.approx([0, 0], abs=1e-3)
    assert [fit[k] for k in ("c_irr_a", "c_irr_b", "compression")] == pytest.approx([irrelevant] * 3, abs=1e-3)
    assert fit["context"] == pytest.approx(1, abs=1e-3)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10 ** 6))
def test_the_fit_finds_any_compressed_grid(seed):
    draw = rng("fit", seed)
    scales, angle, offset = draw.uniform(0.3, 1, 4), draw.uniform(-170, 170), draw.uniform(0.3, 3)
    fit = geo.fit_geometry(geo.rdm(turned(geo.compressed(scales, np.radians(angle), offset), seed)))
    assert fit["sse"] < 1e-6 and fit["angle"] == pytest.approx(angle, abs=0.5)
    assert [fit[k] for k in ("c_rel_a", "c_rel_b", "c_irr_a", "c_irr_b")] == pytest.approx(
        1 - scales / scales.max(), abs=0.01)
    assert fit["context"] == pytest.approx(offset / scales.max(), abs=0.02)


def test_nothing_but_context_has_no_axes_to_fit():
    assert np.isnan(geo.fit_geometry(MODELS["context"], starts=3)["compression"])


def test_gates():
    """Unit 0 is on in A, unit 1 in B, unit 2 in both (twice as much in A), unit 3 never."""
    x = np.stack([1 - IN_B, IN_B, 2 - IN_B, 0 * IN_B], 1) * (1.5 + RELEVANT[:, None] / 2)
    units = geo.task_units(x, IN_B)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in units.items()} == {
        "dead": [3], "a_only": [0], "b_only": [1], "both": [2]}
    assert geo.selectivity_index(x, IN_B) == pytest.approx([1, -1, 1 / 3, 0])
    assert geo.pattern_cosine(x, IN_B) == pytest.approx(2 / np.sqrt(5 * 2))
    assert geo.row_correlation(np.array([[1.0, -1.0, 1.0], [-2.0, 2.0, -2.0]])) == pytest.approx(-1)
    readout = np.array([2.0, 2.0, 0.0, 1.0])  # answers are the relevant feature
    assert geo.ablated_accuracy(x, readout, -3.0, RELEVANT, units["dead"]) == 1
    in_a = IN_B == 0
    assert geo.ablated_accuracy(x[~in_a], readout, -3.0, RELEVANT[~in_a], units["a_only"]) == 1
    assert geo.ablated_accuracy(x[in_a], readout, -3.0, RELEVANT[in_a], units["a_only"]) == 0.5


def test_rich_and_lazy_indices():
    start, turn = np.eye(3), np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    assert geo.relative_change(start, 3 * start) == pytest.approx(2) == geo.norm_change(start, 3 * start)
    assert geo.norm_change(start, start @ turn) == pytest.approx(0) and geo.relative_change(start, start @ turn) > 0.5
    assert geo.kernel_change(start, 5 * start) == pytest.approx(0)
    assert geo.kernel_change(np.diag([1.0, 0]), np.diag([0, 1.0])) == 1


def test_learning_in_sequence():
    after = np.array([[0.9, 0.5, 0.6], [0.7, 0.8, 0.55], [0.6, 0.75, 1.0]])
    told = geo.transfer(after, np.array([0.5, 0.4, 0.5]))
    assert told == pytest.approx({"backward": (-0.3 - 0.05) / 2, "forward": (0.1 + 0.05) / 2})
    assert geo.transfer(after) == {"backward": told["backward"]}
    np.testing.assert_allclose(geo.forgetting_matrix(after), [[0, 0, 0], [0.2, 0, 0], [0.3, 0.05, 0]], atol=1e-12)
    tasks, correct = np.array([0, 0, 1, 1, 0]), np.array([1.0, 1, 0, 1, 1])
    assert geo.switch_cost(correct, tasks) == pytest.approx(1 - 0.5)
    assert geo.congruency_effect((np.sign(A) == np.sign(RELEVANT)).astype(float), A, B) == pytest.approx(0.5)


def test_the_fit_is_a_minimum():
    """Of distances that no compressed grid has: no small step in any direction does better."""
    x = turned(IDEAL["grid"], 5) + 0.3 * rng("noise").standard_normal((50, 12))
    fit, target = geo.fit_geometry(geo.rdm(x)), geo.rdm(x) / geo.rdm(x).max()
    scales = 1 - np.array([fit[k] for k in ("c_rel_a", "c_rel_b", "c_irr_a", "c_irr_b")])

    def error(p: np.ndarray) -> float:
        """Of the best overall scale."""
        d = geo.rdm(geo.compressed(p[:4], p[4], p[5]))
        return float(((d @ target / (d @ d) * d - target) ** 2).sum())

    found = np.array([*scales, np.radians(fit["angle"]), fit["context"]])
    assert error(found) == pytest.approx(fit["sse"]) and fit["sse"] > 0.1
    for number in range(20):
        assert error(found * (1 + 0.02 * rng("step", number).standard_normal(6))) >= fit["sse"] - 1e-9


@pytest.mark.parametrize("wrong", [
    lambda: geo.participation_ratio(np.ones((4, 3))),
    lambda: geo.participation_ratio(np.full((4, 3), np.nan)),
    lambda: geo.rsa_betas(np.ones(1225), THREE),
    lambda: geo.ccgp(IDEAL["grid"], RELEVANT, IN_B, 0.0),
    lambda: geo.ccgp(IDEAL["grid"], np.abs(RELEVANT), IN_B, 1.0),
    lambda: geo.coding_vectors(IDEAL["grid"], np.abs(RELEVANT), IN_B),
    lambda: geo.shattering_dimension(IDEAL["grid"][:7], 1.0),
    lambda: geo.task_units(IDEAL["grid"], np.zeros(50)),
    lambda: geo.fit_geometry(MODELS["grid"][:-1]),
    lambda: geo.noise_ceiling(MODELS["grid"][None]),
    lambda: geo.transfer(np.ones((1, 2)))])
def test_bad_input_is_told_in_one_line(wrong):
    with pytest.raises(DixitError, match="geometry: .*"):
        wrong()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_variance_explained_by_groups(seed, scale):
    """1 where groups say all, about 0 where they say nothing; the same however the axes are turned and scaled."""
    r = np.random.default_rng(seed)
    labels = r.permutation(np.repeat(np.arange(4), 100))
    points = r.standard_normal((400, 5))
    turn = np.linalg.qr(r.standard_normal((5, 5)))[0]
    assert geo.explained(r.standard_normal((4, 5))[labels], labels) == pytest.approx(1)
    assert abs(geo.explained(points, labels)) < 0.05
    mixed = points + 2 * r.standard_normal((4, 5))[labels]
    value = geo.explained(mixed, labels)
    assert geo.explained(scale * mixed @ turn + 3, labels) == pytest.approx(value)
    assert geo.explained(np.ones((6, 2)), np.arange(6) % 2) == 0 == geo.explained(points[:4], np.arange(4))
