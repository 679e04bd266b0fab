"""theory/steps.py: the error of finite steps, against gradient descent itself."""

from __future__ import annotations

import numpy as np
import pytest

from eval.dynamics.theory.bias_free import strength, strength_error
from eval.dynamics.theory.ocs import condition_inputs, exact_outputs, labels, singular_values, step_error, tree_modes
from eval.dynamics.theory.steps import flow, lag, layers_error


def test_a_decay_is_late_by_half_a_step_times_the_logarithm_of_its_speed():
    """u' = -u in steps: u = (1 - h)^n, which is exp(-t) later by h t / 2."""
    times, step = np.linspace(0, 5, 51), 0.01
    u = np.exp(-times)
    np.testing.assert_allclose(lag(step, u), step * times / 2, atol=1e-12)
    np.testing.assert_allclose(layers_error(step, u, -u, 1), u - (1 - step) ** (times / step), rtol=0.05, atol=1e-6)


@pytest.mark.parametrize(("depth", "slope"), [(2, 0.0), (2, 0.9), (3, 0.0), (5, 0.0)])
def test_the_error_of_a_balanced_network(depth, slope):
    """The layers u of w = u^depth move by their gradient, w' = depth (1 + slope)/2 w^(2 - 2/depth) (B - w)."""
    target, start, step, steps = 1.2, 0.01, 0.005, 4000
    u, found = start ** (1 / depth), []
    for _ in range(steps + 1):
        found.append(u ** depth)
        u += step * (1 + slope) / 2 * u ** (depth - 1) * (target - u ** depth)
    times = step * np.arange(steps + 1)
    off = np.abs(np.array(found) - strength(times, target, start, slope, depth)).max()
    assert strength_error(times, target, start, step, slope, depth) == pytest.approx(off, rel=0.05)


@pytest.mark.parametrize("end", [1.0, 30.0])
@pytest.mark.parametrize("condition", ["hidden bias", "output bias", "rho 0.6"])
def test_the_error_of_the_outputs_of_an_aligned_network(condition, end):
    x, y, start, step = condition_inputs(condition), labels(), 1e-3, 0.02
    right = tree_modes() @ x
    first = start ** 0.5 * (right / np.linalg.norm(right, axis=1, keepdims=True)).T
    last, bias, biased, found = start ** 0.5 * tree_modes() @ y / singular_values()[:, None], np.zeros(14), \
        condition == "output bias", []
    steps = round(end / step)
    for _ in range(steps + 1):
        found.append(x @ first @ last + bias)
        error = (y - found[-1]) / 8
        first, last = first + step * x.T @ error @ last.T, last + step * (x @ first).T @ error
        bias = bias + step * biased * error.sum(0)
    times = step * np.arange(steps + 1)
    off = np.abs(np.array(found) - exact_outputs(times, condition, start)).max()
    assert off / 1.1 < step_error(times, condition, start, 2, step) < 1.5 * off


def test_a_flow_in_finite_steps_is_what_gradient_descent_follows():
    """Two coupled variables: with the step, the error is of second order."""
    def field(u: np.ndarray) -> np.ndarray:
        return np.array([u[1] * (1 - u[0] * u[1]), u[0] * (1 - u[0] * u[1])])

    errors = []
    for step in (0.02, 0.01):
        u, found = np.array([0.1, 0.3]), []
        for _ in range(round(8 / step) + 1):
            found.append(u)
            u = u + step * field(u)
        times = step * np.arange(len(found))
        errors.append([np.abs(np.array(found) - flow(field, found[0], times, h)).max() for h in (0.0, step)])
    (plain, bent), (half, quarter) = errors
    assert half == pytest.approx(plain / 2, rel=0.05) and quarter == pytest.approx(bent / 4, rel=0.1)
    assert bent < 0.05 * plain
