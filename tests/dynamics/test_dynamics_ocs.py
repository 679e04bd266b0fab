"""The theory of eval.dynamics.ocs by other means than its simulation; and its CNNs on made-up images."""

from __future__ import annotations

import json

import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from eval.dynamics.ocs import Settings, run
from eval.dynamics.theory.ocs import (
    BASE_RATES,
    condition_inputs,
    constant_growth,
    exact_outputs,
    half_time,
    labels,
    mode_constants,
    ocs_distance,
    output_bias,
    singular_values,
    strengths,
    tree_modes,
    true_negatives,
)

TIMES = np.linspace(0, 60, 31)


def test_the_tree_has_the_spectrum_of_the_notes():
    np.testing.assert_allclose(singular_values() ** 2, [7, 7, 3, 3, 1, 1, 1, 1], rtol=1e-14)
    np.testing.assert_allclose(tree_modes() @ tree_modes().T, np.eye(8), atol=1e-15)
    np.testing.assert_allclose(tree_modes() @ labels() @ labels().T @ tree_modes().T,
                               np.diag(singular_values() ** 2), atol=1e-14)
    np.testing.assert_allclose(labels().mean(0), np.repeat([1 / 2, 1 / 4, 1 / 8], [2, 4, 8]))


def test_constants_of_a_hidden_bias_and_of_correlated_inputs():
    s, d = mode_constants(condition_inputs("hidden bias"))
    plain, _ = mode_constants(condition_inputs("rho 0"))
    assert s[0] / plain[0] == pytest.approx(3) and d[0] == pytest.approx(1 + 1 / 8)
    np.testing.assert_allclose(s[1:], plain[1:], rtol=1e-14)
    s, d = mode_constants(condition_inputs("rho 0.3"))
    np.testing.assert_allclose(8 * d, [0.7 + 8 * 0.3, *[0.7] * 7], rtol=1e-14)
    assert s[0] / s[1] == pytest.approx(2.10, abs=0.005)


def test_the_logistic_in_many_digits():
    """mpmath integrates a' = 2 a (s - d a) itself."""
    s, d, start = 0.9, 1.1, 1e-3
    solution = mpmath.odefun(lambda t, a: 2 * a * (s - d * a), 0, mpmath.mpf(start))
    for t in (1.0, 3.0, 6.0):
        assert strengths(np.array([t]), np.array([s]), np.array([d]), start)[0, 0] == pytest.approx(float(solution(t)),
                                                                                                    rel=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_strengths_solve_their_equation_start_right_and_end_at_s_over_d(depth):
    s, d = np.array([0.99, 0.33, 0.125]), np.array([1.125, 0.125, 0.125])
    times = np.linspace(0, 400, 40001)
    a = strengths(times, s, d, 1e-3, depth)
    slope = np.gradient(a, times, axis=0, edge_order=2)
    np.testing.assert_allclose(slope[1:-1], (depth * a ** (2 - 2 / depth) * (s - d * a))[1:-1], atol=2e-4)
    np.testing.assert_allclose(a[0], 1e-3, rtol=1e-12)
    np.testing.assert_allclose(a[-1], s / d, rtol=1e-6)


def test_dimensions_time_scales_with_the_rates_and_strength_with_their_ratio():
    """Times c, with s and d over c, leaves a as it is; d over c multiplies a by c if the start is multiplied too."""
    s, d = np.array([0.5]), np.array([0.25])
    for depth in (2, 3):
        a = strengths(TIMES, s, d, 1e-3, depth)
        np.testing.assert_allclose(strengths(2 * TIMES, s / 2, d / 2, 1e-3, depth), a, rtol=1e-7)
    np.testing.assert_allclose(strengths(TIMES, s, d / 3, 3e-3), 3 * strengths(TIMES, s, d, 1e-3), rtol=1e-12)


def test_half_time_is_when_half_is_learned():
    s, d = 0.33, 0.125
    at = np.array([half_time(s, d, 1e-3)])
    assert strengths(at, np.array([s]), np.array([d]), 1e-3)[0, 0] == pytest.approx(s / d / 2, rel=1e-12)
    s_bias, d_bias = mode_constants(condition_inputs("hidden bias"))
    assert half_time(s_bias[0], d_bias[0], 1e-3) == pytest.approx(3.42, abs=0.01)
    assert half_time(s_bias[1], d_bias[1], 1e-3) == pytest.approx(11.91, abs=0.01)


def test_the_constant_mode_grows_by_less_from_a_larger_start():
    for start in (1e-6, 1e-3, 1e-2):
        a = output_bias(np.array([0.0, 60.0]), start)[:, 1]
        assert constant_growth(start) == pytest.approx(a[1] / a[0], rel=1e-7)
    assert constant_growth(1e-9) == pytest.approx(np.exp(2 * 0.875 ** 0.5 / 8 ** 0.5), rel=1e-8)


def test_the_output_bias_conserves_and_ends_at_the_mean():
    norm = np.sqrt(0.875)
    beta, a = output_bias(TIMES, 1e-3).T
    np.testing.assert_allclose(np.log(a) - 2 * beta / np.sqrt(8), np.log(1e-3), rtol=1e-9)
    assert beta[-1] + a[-1] / np.sqrt(8) == pytest.approx(norm, rel=1e-9)
    np.testing.assert_allclose(beta, norm * (1 - np.exp(-TIMES)), atol=1e-3)  # the weights' share is of order a0
    beta, q = output_bias(TIMES, 1e-3, 3)[:, 0], output_bias(TIMES, 1e-3, 3)[:, 1] ** (1 / 3)
    np.testing.assert_allclose(-1 / q - beta / np.sqrt(8), -10, rtol=1e-8)  # depth 3: q^-1 takes the place of ln a


@pytest.mark.parametrize("condition", ["hidden bias", "output bias", "rho 0.3"])
def test_outputs_against_gradient_flow_in_all_weights(condition):
    """The whole weight matrices integrated by scipy from an aligned start, without modes."""
    x, y, width = condition_inputs(condition), labels(), 8
    u = tree_modes() @ y / singular_values()[:, None]
    right = tree_modes() @ x
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    q, biased = 1e-3 ** 0.5, condition == "output bias"

    def unpack(state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return state[:72].reshape(9, width), state[72:184].reshape(width, 14), state[184:]

    def slope(_: float, state: np.ndarray) -> np.ndarray:
        first, last, bias = unpack(state)
        error = (y - x @ first @ last - bias) / 8
        return np.concatenate([(x.T @ error @ last.T).ravel(), ((x @ first).T @ error).ravel(), biased * error.sum(0)])

    start = np.concatenate([(q * right.T).ravel(), (q * u).ravel(), np.zeros(14)])
    times = np.linspace(0, 30, 7)
    states = solve_ivp(slope, (0, 30), start, "DOP853", times, rtol=1e-9, atol=1e-12).y.T
    flow = [x @ first @ last + bias for first, last, bias in map(unpack, states)]
    np.testing.assert_allclose(exact_outputs(times, condition, 1e-3), np.stack(flow), atol=1e-6)


def test_measures_at_the_ocs_and_at_the_truth():
    outputs = np.stack([np.broadcast_to(labels().mean(0), (8, 14)), labels()])
    np.testing.assert_allclose(ocs_distance(outputs), [0, 2.125 / 0.875])  # (3 - |y|^2) / |y|^2
    np.testing.assert_allclose(true_negatives(outputs, labels()), [BASE_RATES, [1, 1, 1]])
    np.testing.assert_allclose(BASE_RATES, [0.5, 0.75, 0.875])


@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_cnns_run_on_a_small_set_of_images(tmp_path, monkeypatch, name, shape):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path))
    folder = tmp_path / "assets" / name
    folder.mkdir(parents=True)
    kinds = np.tile(np.arange(10), 4)
    np.save(folder / "train_images.npy", np.random.default_rng(0).integers(0, 255, (40, *shape), dtype=np.uint8))
    np.save(folder / "train_labels.npy", kinds)
    (folder / "DONE.json").write_text(json.dumps({"name": name}))
    settings = Settings(hidden=8, rhos=(0.0,), depths=(2,), steps=20, images=(name,), per_class=4, batch=8, channels=2,
                        image_steps=4, image_every=2)
    claims, figure = run(settings, 1, tmp_path / "run")
    assert sum(name in claim.name for claim in claims) == 7 and len(figure.axes) == 7
    assert all(np.isfinite(claim.deviation).all() for claim in claims if name in claim.name)
