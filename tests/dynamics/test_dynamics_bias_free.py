"""The theory of eval.dynamics.bias_free by other means than its simulation."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dixit.common import rng
from eval.dynamics.bias_free import (
    Net,
    Settings,
    aligned,
    blocks,
    curvature,
    direction,
    gaussian,
    random_nets,
    symmetric_data,
)
from eval.dynamics.theory.bias_free import logistic_map, parts, regression, scale, strength

SETTINGS = Settings(points=30)


def forward(weights: list[np.ndarray], x: np.ndarray, slope: float) -> np.ndarray:
    h = x @ weights[0]
    for weight in weights[1:]:
        h = np.maximum(h, slope * h) @ weight
    return h[:, 0]


def test_data_are_symmetric_white_and_the_target_odd():
    x, y = symmetric_data(SETTINGS, 0)
    np.testing.assert_array_equal(x[:30], -x[30:])
    np.testing.assert_allclose(y[:30], -y[30:], atol=1e-15)
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(5), atol=1e-12)
    beta, floor = regression(x, y)
    np.testing.assert_allclose(beta, x.T @ y / len(y), atol=1e-12)
    assert floor == pytest.approx(((y ** 2).mean() - beta @ beta) / 2) and floor > 0.005


@pytest.mark.parametrize("slope", [0.0, 0.2, 0.5, 1.0])
def test_odd_and_even_parts_make_up_the_network(slope):
    draw = rng("test", 0)
    first, last = draw.standard_normal((5, 7)), draw.standard_normal((7, 1))
    x = symmetric_data(SETTINGS, 0)[0]
    odd, even = parts(first, last, x, slope)
    np.testing.assert_allclose(odd + even, forward([first, last], x, slope), atol=1e-13)
    np.testing.assert_allclose(np.roll(odd, 30), -odd, atol=1e-13)
    np.testing.assert_allclose(np.roll(even, 30), even, atol=1e-13)
    if slope == 1:
        assert not even.any()


def test_no_network_is_below_the_floor():
    """Loss = loss of the odd part + half the energy of the even part, and the odd part is linear."""
    x, y = symmetric_data(SETTINGS, 1)
    floor = regression(x, y)[1]
    for seed in range(20):
        draw = rng("test", seed)
        first, last = draw.standard_normal((5, 9)) / 3, draw.standard_normal((9, 1)) / 3
        odd, even = parts(first, last, x, 0.0)
        loss = ((forward([first, last], x, 0.0) - y) ** 2).mean() / 2
        assert loss == pytest.approx(((odd - y) ** 2).mean() / 2 + (even ** 2).mean() / 2)
        assert loss >= floor


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_the_closed_form_in_many_digits(slope):
    """Balanced scalars: w = (1+slope)/2 q^2 with q' = (1+slope)/2 q (B - w), integrated by mpmath."""
    b, c, start = 1.2, (1 + slope) / 2, 1e-3
    solution = mpmath.odefun(lambda t, q: c * q * (b - c * q ** 2), 0, mpmath.sqrt(start / c))
    for t in (2.0, 5.0):
        assert strength(np.array([t]), b, start, slope)[0] == pytest.approx(float(c * solution(t) ** 2), rel=1e-12)


def test_limits_and_dimensions_of_the_closed_form():
    times = np.linspace(0, 200, 101)
    for depth in (2, 3, 4):
        w = strength(times, 1.1, 1e-2, depth=depth)
        assert w[0] == pytest.approx(1e-2) and w[-1] == pytest.approx(1.1, rel=1e-6) and (np.diff(w) >= -1e-9).all()
    np.testing.assert_allclose(strength(times / 3, 3.3, 3e-2), 3 * strength(times, 1.1, 1e-2), rtol=1e-12)
    np.testing.assert_allclose(strength(times, 1.1, 1e-2, 0.0), strength(times / 2, 1.1, 1e-2, 1.0), rtol=1e-12)
    assert scale(1.0) == 1 and scale(0.0) == pytest.approx(np.sqrt(2))


def test_half_the_speed_of_a_linear_network_at_every_depth():
    """Linear, balanced: w' = L w^(2-2/L) (B - w); by separation of variables the time it takes is an integral."""
    for depth in (3, 4):
        times = np.linspace(0, 12, 5)
        w = strength(times, 1.1, 1e-2, depth=depth)
        for t, value in zip(times[1:], w[1:], strict=True):
            linear = mpmath.quad(lambda v, n=depth: 1 / (n * v ** (2 - 2 / n) * (1.1 - v)), [0.01, 0.1, float(value)])
            assert float(linear) == pytest.approx(t / 2, rel=1e-5)


def test_an_aligned_start_is_balanced_and_a_block_start_is_linear():
    unit, x = direction(SETTINGS, 0), symmetric_data(SETTINGS, 0)[0]
    first, last = aligned(unit, 8, 0.1, 0)
    assert np.linalg.norm(first) == pytest.approx(0.1) == np.linalg.norm(last)
    assert (last[last > 0] ** 2).sum() == pytest.approx((last[last < 0] ** 2).sum())
    np.testing.assert_allclose(forward([first, last], x, 0.0), 0.005 * x @ unit, atol=1e-15)
    for depth in (3, 4):
        both, one = blocks(unit, 4, depth, 0.1, True), blocks(unit, 4, depth, 0.1, False)
        np.testing.assert_allclose(forward(both, x, 0.0), 0.1 * x @ unit, atol=1e-15)
        np.testing.assert_allclose(forward(one, x, 1.0), 0.1 * x @ unit, atol=1e-15)


def test_the_equivalence_in_gradient_flow():
    """All weights of a ReLU network and of its linear partner integrated by scipy, the partner to half the time."""
    x, y = symmetric_data(SETTINGS, 0)
    first, last = aligned(direction(SETTINGS, 7), 4, 0.3, 0)

    def flow(time: float, slope: float, ratio: float) -> np.ndarray:
        def move(_: float, state: np.ndarray) -> np.ndarray:
            w1, w2 = state[:20].reshape(5, 4), state[20:].reshape(4, 1)
            h = x @ w1
            gate = np.where(h > 0, 1.0, slope)
            error = (y - (gate * h @ w2)[:, 0])[:, None] / len(y)
            return np.concatenate([(x.T @ (error * w2.T * gate)).ravel(), ((gate * h).T @ error).ravel()])

        start = np.concatenate([first.ravel(), last.ravel()]) / ratio
        return solve_ivp(move, (0, time), start, "DOP853", rtol=1e-11, atol=1e-13).y[:, -1]

    np.testing.assert_allclose(flow(6.0, 0.0, 1.0), np.sqrt(2) * flow(3.0, 1.0, np.sqrt(2)), atol=1e-8)


def test_the_logistic_map_is_the_flow_of_all_weights():
    """Of a leaky ReLU network that starts aligned, along another direction than the target's."""
    x, y = symmetric_data(SETTINGS, 0)
    unit, slope = direction(SETTINGS, 7), 0.2
    first, last = aligned(unit, 4, 0.5, 0)

    def move(_: float, state: np.ndarray) -> np.ndarray:
        w1, w2 = state[:20].reshape(5, 4), state[20:].reshape(4, 1)
        h = x @ w1
        gate = np.where(h > 0, 1.0, slope)
        error = (np.sign(y) / (1 + np.exp(np.sign(y) * (gate * h @ w2)[:, 0])))[:, None] / len(y)
        return np.concatenate([(x.T @ (error * w2.T * gate)).ravel(), ((gate * h).T @ error).ravel()])

    state = np.concatenate([first.ravel(), last.ravel()])
    end = solve_ivp(move, (0, 6.0), state, "DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    beta = x.T @ forward([end[:20].reshape(5, 4), end[20:].reshape(4, 1)], x, slope) / len(x)
    found = logistic_map(np.array([0.0, 6.0]), unit, 0.5, x, y, slope)
    np.testing.assert_allclose(found[1], beta, atol=1e-7)
    np.testing.assert_allclose(found[0], 0.6 * 0.25 * unit, atol=1e-12)


def test_curvature_is_that_of_the_jacobian_and_steps_above_it_diverge():
    x, y = symmetric_data(SETTINGS, 0)
    for depth in (2, 3):
        net = Net("x", 0, gaussian([5, *[40] * (depth - 1), 1], [1.0] * depth, "test"), 0.3)
        weights = [torch.from_numpy(w) for w in net.weights]

        def outputs(*layers: torch.Tensor) -> torch.Tensor:
            h = torch.from_numpy(x) @ layers[0]
            for layer in layers[1:]:
                h = torch.where(h > 0, h, 0.3 * h) @ layer
            return h[:, 0]

        blocks_of = torch.autograd.functional.jacobian(outputs, tuple(weights))
        jacobian = torch.cat([part.flatten(1) for part in blocks_of], 1)
        top = float(torch.linalg.eigvalsh(jacobian @ jacobian.T)[-1]) / len(x)
        assert curvature(net, x) == pytest.approx(top, rel=1e-9)
        assert curvature(net, x, 15) == pytest.approx(top, rel=0.5)


def test_steady_networks_take_shorter_steps_only_where_needed():
    calm, wild = (random_nets(Settings(points=30, widths=(width,), slopes=(0.0,)), 1) for width in (60, 2000))
    assert {net.rate for net in calm} == {1.0, 0.5}
    slowed = [net for net in wild if net.kind == "ordinary"]
    assert slowed[0].rate == pytest.approx(1 / 0.05 / curvature(slowed[0], symmetric_data(SETTINGS, 0)[0])) and \
        slowed[0].rate < 0.5
