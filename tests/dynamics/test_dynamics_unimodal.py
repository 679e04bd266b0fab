"""The theory of eval.dynamics.unimodal by other means than its simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.stats import norm

from dixit.common import rng
from eval.dynamics.networks.fusion import (
    balanced,
    equivalent_points,
    gaussian,
    linear_data,
    mixes,
    network_output,
    split_modalities,
    symmetric_data,
    views,
    xor_data,
)
from eval.dynamics.theory.unimodal import (
    TURNING_VARIANCE,
    covariance,
    deep_curvatures,
    depth_time_ratio,
    half_events,
    half_times,
    limit_error,
    log_sizes,
    reduced,
    reduced_half_times,
    time_ratio,
    xor_rate,
)

ONES = np.ones(2)


@pytest.mark.parametrize(("ratio", "rho"), [(2.0, 0.0), (2.0, 0.6), (1.5, -0.45), (3.0, -0.45)])
def test_half_times_of_two_layers_are_those_of_the_differential_equation(ratio, rho):
    """Integrated from a start of 1e-9; at (3, -0.45) B first shrinks, and the paper's ratio still holds."""
    sigma = covariance(ratio, rho)
    times = reduced_half_times(1e-9, 2, 2, ratio, rho)
    logs = np.full(2, 2 * np.log(1e-9))
    np.testing.assert_allclose(half_times(sigma, ONES, logs), times, rtol=0.01)
    assert times[1] / times[0] == pytest.approx(time_ratio(ratio, rho), rel=0.03)


def test_half_times_go_to_the_paper_s_ratio_as_the_start_vanishes():
    for ratio, rho in ((1.5, 0.9), (2.0, 0.45), (3.0, -0.45)):
        off = [half_times(covariance(ratio, rho), ONES, np.full(2, -size)) for size in (40.0, 400.0, 4000.0)]
        errors = np.abs([b / a / time_ratio(ratio, rho) - 1 for a, b in off])
        assert (np.diff(errors) < 0).all() and errors[-1] < 1e-3
    assert time_ratio(1.0, 0.3) == 1.0


def test_uncorrelated_modalities_are_logistic_and_the_weaker_may_be_first():
    sigma, logs = covariance(2.0, 0.0), np.full(2, -40.0)
    for w, first in ((0.35, 0), (0.2, 1)):  # both below 1/r: B is for more
        times = half_times(sigma, np.array([w, 1.0]), logs)
        np.testing.assert_allclose(times, [(np.log(w) + 40) / (8 * w), 20.0])
        assert int(np.argmin(times)) == first and w ** 2 * 4 < 1


@pytest.mark.parametrize("fusion", [2, 3, 4])
def test_the_formula_is_the_limit_of_the_reduced_equations(fusion):
    for start, most in ((0.1, 0.08), (0.03, 0.01), (0.01, 0.001)):
        times = reduced_half_times(start, 4, fusion, 2.0, 0.0)
        assert abs(times[1] / times[0] / depth_time_ratio(start, 4, fusion, 2.0, 0.0) - 1) < most
    for start in (0.1, 0.01):
        assert depth_time_ratio(start, 4, 4, 2.0, 0.3) == pytest.approx(time_ratio(2.0, 0.3))
    assert depth_time_ratio(0.1, 4, 1, 2.0, 0.3) == 1.0


def test_known_values_and_order_in_fusion_depth():
    values = [depth_time_ratio(0.1, 4, fusion, 2.0, 0.0) for fusion in (1, 2, 3, 4)]
    np.testing.assert_allclose(values, [1, 1.21, 1.75, 4], atol=0.006)
    assert 1 < depth_time_ratio(0.001, 4, 3, 2.0, 0.0) < 1.01  # intermediate fusion: to 1 as the start vanishes


@pytest.mark.parametrize("fusion", [1, 2, 3])
def test_a_balanced_network_follows_the_reduced_equations(fusion):
    """All weights of three layers integrated by scipy in numpy alone, with the gradient of each product."""
    start, sigma = balanced(4, 3, 0.3, fusion, 0), covariance(2.0, 0.3)
    shapes = [w.shape for w in start]
    cuts = np.cumsum([w.size for w in start])[:-1]

    def layers(state: np.ndarray) -> list[np.ndarray]:
        return [part.reshape(shape) for part, shape in zip(np.split(state, cuts), shapes, strict=True)]

    def path(w: list[np.ndarray], m: int) -> list[np.ndarray]:
        return [layer[m if i < fusion else 0] for i, layer in enumerate(w)]

    def move(_: float, state: np.ndarray) -> np.ndarray:
        w = layers(state)
        weights = np.array([np.linalg.multi_dot(path(w, m)).item() for m in (0, 1)])
        error, change = sigma @ (ONES - weights), [np.zeros(shape) for shape in shapes]
        for m in (0, 1):
            p = path(w, m)
            left, right = [np.eye(1), p[0], p[0] @ p[1]], [p[1] @ p[2], p[2], np.eye(1)]
            for i in range(3):
                change[i][m if i < fusion else 0] += error[m] * left[i].T @ right[i].T
        return np.concatenate([c.ravel() for c in change])

    times = np.linspace(0, 5, 6)
    state = np.concatenate([w.ravel() for w in start])
    solved = solve_ivp(move, (0, 5), state, "DOP853", times, rtol=1e-10, atol=1e-12)
    full = np.array([[np.linalg.multi_dot(path(layers(s), m)).item() for m in (0, 1)] for s in solved.y.T])
    np.testing.assert_allclose(reduced(times, np.full(2, 0.3), 3, fusion, sigma, ONES), full, atol=1e-7)
    np.testing.assert_allclose(full[-1], 1, atol=0.1)


def test_misattribution_is_the_least_squares_weight_of_one_modality():
    x = symmetric_data(2.0, 0.6, 0)["features"]
    accuracy_alone = np.linalg.lstsq(x[:, :1], x.sum(1), rcond=None)[0][0]
    assert accuracy_alone == pytest.approx(1 + 0.6 / 2)
    times = np.array([0.0, 8.0])  # A is learned at 4, B at 20
    assert reduced(times, np.full(2, 1e-9), 2, 2, covariance(2.0, 0.6), ONES)[-1, 0] == pytest.approx(1.3, abs=1e-3)


def test_log_sizes_count_what_grows():
    p, q = np.array([[0.3, -0.2], [-0.1, 0.4]]), np.array([[0.5, 0.1], [-0.2, 0.3]])
    weights = [(p + q)[:, None], (p - q)[:, :, None]]
    np.testing.assert_allclose(log_sizes(weights), np.log((p ** 2).sum(1)))
    np.testing.assert_allclose(log_sizes(weights, relu=True), [np.log(0.3 * 0.2), np.log(0.1 * 0.4)])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("fusion", [1, 2, 3])
def test_streams_meet_at_the_fusion_layer(fusion, relu):
    """Against a plain network that concatenates, as in the paper's code."""
    weights, x = gaussian([2, 5, 5, 3], [1.0] * 3, "test"), rng("test").standard_normal((2, 7, 2))
    out = network_output(torch.from_numpy(x)[None], [torch.from_numpy(w)[None] for w in weights],
                 torch.from_numpy(mixes(3, fusion))[None], relu)[0].numpy()
    act = (lambda h: np.maximum(h, 0)) if relu else (lambda h: h)
    a, b = x
    for i in range(fusion - 1):
        a, b = act(a @ weights[i][0]), act(b @ weights[i][1])
    h = np.concatenate([a, b], 1) @ np.concatenate(list(weights[fusion - 1]), 0)
    for i in range(fusion, 3):
        h = act(h) @ weights[i][0]
    np.testing.assert_allclose(out, h, atol=1e-12)


def test_condensed_data_have_the_same_moments():
    for count in (6, 40):
        x, y = rng("x", count).standard_normal((count, 10)), rng("y", count).standard_normal(count)
        small, target = equivalent_points(x, y, 10)
        np.testing.assert_allclose(small.T @ small / 10, x.T @ x / count, atol=1e-12)
        np.testing.assert_allclose(small.T @ target / 10, x.T @ y / count, atol=1e-12)


def test_data_have_the_moments_that_theory_assumes():
    linear, points, xor = linear_data(covariance(3.0, -0.4), ONES), symmetric_data(2.0, 0.45, 1), xor_data(1.4)
    flat = linear["x"][:, :, 0].T
    np.testing.assert_allclose(flat.T @ flat / 2, covariance(3.0, -0.4), atol=1e-12)
    x = points["features"]
    np.testing.assert_allclose(x.T @ x / len(x), covariance(2.0, 0.45), atol=1e-12)
    np.testing.assert_array_equal(x[:32], -x[32:])
    parts = xor["features"]
    np.testing.assert_allclose(parts.T @ parts / len(parts), np.diag([1, 1.4]), atol=1e-12)
    np.testing.assert_allclose(xor["x"][0].mean(0), 0, atol=1e-12)
    assert split_modalities(np.arange(8.0).reshape(2, 4))[1].tolist() == [[2, 3], [6, 7]]


def test_xor_units_grow_fastest_on_the_diagonals():
    angles = np.linspace(0, 2 * np.pi, 721)
    rates = np.array([xor_rate(a) for a in angles])
    np.testing.assert_allclose([rates.max(), rates.min()], [np.sqrt(2) / 4, -np.sqrt(2) / 4], atol=1e-12)
    assert np.degrees(angles[np.argmax(rates)]) % 90 == pytest.approx(45)
    for variance in (0.5, 2.0):  # the Gaussian's rate
        grown = quad(lambda b, v=variance: b * max(b, 0) * norm.pdf(b, scale=v ** 0.5), -20, 20, limit=200)[0]
        assert grown == pytest.approx(variance / 2, rel=1e-6)


def test_early_fusion_turns_to_xor_below_the_turning_variance():
    """E[(XOR(a) + b) relu(d (a, b))], integrated over the Gaussian b: at a small tilt more or less than at none."""
    def rate(tilt: float, variance: float) -> float:
        """A unit at angle `tilt` from the Gaussian input towards (1, -1)/sqrt(2) of the XOR inputs."""
        total = 0.0
        for projection, target, share in ((np.sqrt(2), 1, 0.25), (-np.sqrt(2), 1, 0.25), (0.0, -1, 0.5)):
            kink = -np.tan(tilt) * projection
            total += share * quad(
                lambda b, p=projection, y=target: (y + b) * (np.sin(tilt) * p + np.cos(tilt) * b)
                * norm.pdf(b, scale=variance ** 0.5), kink, kink + 15 * variance ** 0.5, limit=200)[0]
        return total

    for variance in (0.35, 0.7, 0.83):
        assert rate(0.1, variance) > rate(0.0, variance) and variance < TURNING_VARIANCE
    for variance in (0.9, 1.4, 2.8):
        assert rate(0.1, variance) < rate(0.0, variance) and variance > TURNING_VARIANCE


def test_views_are_clear_as_often_as_in_the_paper_s_code():
    images = np.full((20000, 2), 5.0)
    a, b = np.abs(views(images, rng("views")) - 5).max(2) == 0
    shares = [np.mean(a & ~b), np.mean(b & ~a), np.mean(a & b), np.mean(~a & ~b)]
    np.testing.assert_allclose(shares, [0.8, 0.16, 0.04, 0], atol=0.01)
    faint = views(images, rng("views"))[1][~b]
    assert faint.mean() == pytest.approx(0.5, abs=0.01) and faint.std() == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_half_times_are_found_from_the_smallest_start_that_a_setting_may_have(depth):
    first, second = reduced_half_times(0.001, depth, depth // 2, 2.0, 0.0)
    assert 0 < first < second < np.inf


@pytest.mark.parametrize(("depth", "fusion"), [(2, 2), (3, 1), (4, 3)])
def test_curvatures_and_growth_of_balanced_networks(depth, fusion):
    """The curvature against autograd over all weights; the growth against the curve itself."""
    ratio, rho = 2.0, 0.3
    size = 2 ** ((fusion - depth) / depth / 2)
    layers = [torch.from_numpy(w)[None] for w in balanced(3, depth, size, fusion, 0)]
    x = torch.from_numpy(linear_data(covariance(ratio, rho), ONES)["x"])[None]
    mix = torch.from_numpy(mixes(depth, fusion))[None]
    jacobian = torch.cat([part.reshape(2, -1) for part in torch.autograd.functional.jacobian(
        lambda *w: network_output(x, list(w), mix, False)[0, :, 0], tuple(layers))], 1)
    top = float(torch.linalg.eigvalsh(jacobian @ jacobian.T)[-1]) / 2
    assert deep_curvatures(depth, fusion, ratio, rho)[1] == pytest.approx(top, rel=1e-6)
    times, growth = half_events(0.1, depth, fusion, ratio, rho)
    for m, time in enumerate(times):
        around = np.array([0, time - 1e-3, time + 1e-3])
        curve = reduced(around, np.full(2, 0.1), depth, fusion, covariance(ratio, rho), ONES)
        assert growth[m] == pytest.approx(2 * np.log(curve[2, m] / curve[1, m]) / 2e-3, rel=1e-3)


def test_the_limit_of_small_starts_is_far_where_variances_are_alike():
    found = [limit_error(*case) for case in ((1.2, 0.8, 100, 1e-9), (2.0, 0.8, 100, 1e-9), (2.0, 0.8, 100, 1e-15))]
    assert found[0] > 0.03 > found[1] > found[2]
    assert limit_error(1.2, 0.0, 100, 1e-9) == pytest.approx(0, abs=1e-9)
