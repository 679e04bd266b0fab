"""The theory, the task and the measures of eval.dynamics.gating by other means than its simulation."""

from __future__ import annotations

import dataclasses
from itertools import permutations, product

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit
from scipy.stats import ttest_ind

from dixit.common import rng
from eval.dynamics.gating import LONG, SHORT, Settings, crossing, geometry, welch
from eval.dynamics.networks.gated import Condition, GatedNetworks, blobs, order, task_units, tree
from eval.dynamics.probe import simulate
from eval.dynamics.theory.gating import anchors, ema_correlation, gate, oja, oja_error, oja_time, sign_errors, sluggish
from eval.psychophysics import FEATURE_A, FEATURE_B, IN_B, REWARD, accuracy

SMALL = {"hidden": 6, "init": 0.3, "bias": Settings().bias}


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


# ---- theory ----


def flow(w: np.ndarray, x: np.ndarray, time: float) -> np.ndarray:
    """Oja's rule in continuous time."""
    return solve_ivp(lambda _, w: (y := w @ x) * (x - y * w), (0, time), w, "DOP853", rtol=1e-11, atol=1e-14).y[:, -1]


def test_ojas_closed_form_is_its_flow():
    x, w = np.array([0.3, -0.4, 0.2]), np.array([0.02, 0.05, -0.1])
    length, eta = np.linalg.norm(x), 0.05
    unit = x / length
    u, across = oja(np.array([0.0, 100.0, 900.0]), np.array(w @ unit), eta * length ** 2)
    for i, steps in enumerate((0, 100, 900)):
        later = flow(w, x, eta * steps)
        assert later @ unit == pytest.approx(u[i], abs=1e-8)
        np.testing.assert_allclose(later - u[i] * unit, across[i] * (w - w @ unit * unit), atol=1e-8)
    far = oja(np.array([1e5]), np.array([0.3, -1e-4, 0.99]), 0.01)
    np.testing.assert_allclose(far[0], [[1, -1, 1]])
    np.testing.assert_allclose(far[1], 0, atol=1e-12)
    start = np.array([1e-3, -0.01])
    np.testing.assert_allclose(oja(oja_time(start, 0.01), start, 0.01)[0][[0, 1], [0, 1]], np.sign(start) * 0.5 ** 0.5,
                               rtol=1e-4)


def test_crossing_finds_the_time_between_records():
    steps, start = np.arange(0, 3000, 100.0), np.array([0.003, -0.02])
    np.testing.assert_allclose(crossing(steps, oja(steps, start, 0.01)[0]), oja_time(start, 0.01), rtol=1e-4)


def test_the_gate_is_the_flow_of_both_tasks():
    a, b, c, eta = np.array([1.0, 0.0]), np.array([-0.5, 0.5]), 0.8, 0.05
    for w in ([0.01, 0.02], [-0.02, 0.005]):
        after_a = flow(np.array(w), c * a / 2, 2000.0)
        np.testing.assert_allclose(after_a, np.sign(w[0]) * a, atol=1e-8)
        for steps in (0, 50, 4000):
            theory = np.sign(w[0]) * gate(np.array([float(steps)]), eta * c ** 2 / 2)[0]
            np.testing.assert_allclose(flow(np.sign(w[0]) * a, c * b, eta * steps), theory, atol=1e-8)
    np.testing.assert_allclose(gate(np.array([1e6]), 0.01), [[0.5 ** 0.5, -0.5 ** 0.5]])


def test_oja_error_is_that_of_finite_steps():
    rate, start = 0.0125, np.array([0.01, -0.003, 1e-5])
    u, across, found = start, np.ones(3), []
    for _ in range(3001):
        found.append((u, across))
        u, across = u + rate * (u - u ** 3), across * (1 - rate * u ** 2)
    steps = np.arange(3001.0)
    for part, curve, error in zip(zip(*found, strict=True), oja(steps, start, rate), oja_error(steps, start, rate),
                                  strict=True):
        off = np.abs(np.array(part) - curve)
        np.testing.assert_allclose(error.max(0), off.max(0), rtol=0.05)
        np.testing.assert_allclose(error, off, atol=0.05 * float(off.max()))


def test_sign_errors_by_all_sequences():
    """Of passes of four trials, two of each task: all orders of five passes."""
    passes = np.array(sorted(set(permutations([1.0, 1.0, -1.0, -1.0]))))
    signs = np.array([np.concatenate(some) for some in product(passes, repeat=5)])
    for alpha in (0.45, 0.3, 0.2):
        s = np.stack([sluggish(one[:, None], alpha)[:, 0] for one in signs])
        exact = (s * signs < 0)[:, -4:].mean()
        assert sign_errors(alpha, 4) == pytest.approx(exact, abs=0.005)
    assert sign_errors(0.5) == pytest.approx(0, abs=1e-9) and sign_errors(0.9) == 0


def test_ema_correlation_of_tasks_in_passes():
    task = np.concatenate([rng("test", i).permutation(np.repeat([-1.0, 1.0], 25)) for i in range(8000)])
    for alpha in (0.05, 0.3, 0.8, 1.0):
        s = sluggish(task[:, None], alpha)[:, 0]
        assert np.corrcoef(task, s)[0, 1] == pytest.approx(ema_correlation(alpha), abs=3e-3)
        assert (np.sign(s) != task).mean() == pytest.approx(sign_errors(alpha), abs=3e-3)
    assert ema_correlation(0.05) > 1.05 * ema_correlation(0.05, 5000)  # as of independent trials


def test_anchors_are_accuracies_of_rules():
    assert anchors(FEATURE_A[:25], FEATURE_B[:25]) == pytest.approx({"own": 1.0, "diagonal": 0.8, "other": 0.6})
    tie = 1e-6 * REWARD  # what is left of the task's own rule
    assert accuracy(REWARD).tolist() == [1.0, 1.0]
    assert accuracy(FEATURE_B + tie).tolist() == [0.6, 1.0] and accuracy(FEATURE_A + tie).tolist() == [1.0, 0.6]
    diagonal = [accuracy(FEATURE_A + FEATURE_B + sign * tie).mean() for sign in (1, -1)]
    assert np.mean(diagonal) == pytest.approx(0.8)
    assert accuracy(np.zeros((3, 50)) - 1).tolist() == [[0.5, 0.5]] * 3


# ---- task and networks ----


def test_blobs_and_input_energies():
    """Energies of inputs that were measured for the code's settings: pixels 1.6, blocked 5.0, interleaved 9.6."""
    images = blobs().images
    assert images.shape == (25, 25) and (images.max(1) == 1).all() and images.min() > 0
    np.testing.assert_allclose(images.reshape(5, 5, 5, 5), images.reshape(5, 5, 5, 5).transpose(1, 0, 3, 2))
    assert ((images - images.mean(0)) ** 2).sum(1).mean() == pytest.approx(1.6, abs=0.05)
    for condition, mean, most in (SHORT[2], 5.0, 7.0), (SHORT[3], 9.6, 10.5):
        networks = GatedNetworks([(condition, 0)], blobs(), 8, **SMALL)
        energy = np.array([float((networks.inputs(step) ** 2).sum()) for step in range(networks.steps)])
        assert energy.mean() == pytest.approx(mean, abs=0.06) and energy.max() == pytest.approx(most, abs=0.06)


def test_every_pass_shows_every_item_once():
    items, number = order("interleaved", 3, 0)
    for i in range(3):
        assert sorted(items[number == i]) == list(range(50))
    items, number = order("blocked", 3, 0)
    assert (items[:75] < 25).all() and (items[75:] >= 25).all()
    for i in range(3):
        assert sorted(items[number == i]) == list(range(50))
    assert not np.array_equal(order("blocked", 3, 1)[0], items)


def test_task_units_of_every_phase():
    task, c = np.array([0, 0, 1, 1, 0]), 4.0
    plain = Condition("x", "interleaved", 0.1, c)
    np.testing.assert_array_equal(task_units(plain, task), [[4, 0], [4, 0], [0, 4], [0, 4], [4, 0]])
    centred = dataclasses.replace(plain, centred=True)
    np.testing.assert_array_equal(task_units(centred, task), [[2, -2], [2, -2], [-2, 2], [-2, 2], [2, -2]])
    blocked = dataclasses.replace(centred, curriculum="blocked")
    np.testing.assert_array_equal(task_units(blocked, task), [[2, 0], [2, 0], [-2, 2], [-2, 2], [2, 0]])
    np.testing.assert_array_equal(task_units(blocked, task, test=True), task_units(centred, task))
    slow = plain.sluggish(0.25)
    requested, sampled = task_units(slow, task), task_units(plain, task)[0]
    for i, now in enumerate(task_units(plain, task)):
        sampled = 0.25 * now + 0.75 * sampled
        np.testing.assert_allclose(requested[i], sampled)
    np.testing.assert_array_equal(task_units(slow, task, test=True), task_units(plain, task))


@pytest.mark.parametrize("which", [(LONG[0],), (LONG[2],), (LONG[3],), (LONG[3], LONG[4], LONG[1].sluggish(0.3))])
def test_a_step_is_sgd_then_ojas_rule(tmp_path, which):
    """Against loops over units, in numpy; networks of one batch do not touch each other."""
    nets = [(dataclasses.replace(c, hebb=10 * c.hebb), run) for run, c in enumerate(which)]
    networks = GatedNetworks(nets, blobs(), 1, **SMALL)
    networks.steps = 4
    start = [p.detach().numpy().astype(float) for p in (networks.first, networks.last, networks.offset)]
    xs = np.stack([networks.inputs(step)[:, 0].numpy().astype(float) for step in range(4)], 1)
    rewards = networks.reward.numpy().astype(float)
    simulate(networks, tmp_path / "net", 4, 1.0)
    for i, (condition, _) in enumerate(nets):
        first, last, offset = (value[i].copy() for value in start)
        bias = 0.0 if condition.gate == "manual" else SMALL["bias"]
        for x, r in zip(xs[i, :4], rewards[i], strict=False):
            z = x @ first + bias
            p = expit(np.maximum(z, 0) @ last + offset[0])[0]
            push = condition.lr * r * p * (1 - p)  # of the probability of reward, upwards
            moved = first + push * np.outer(x, last[:, 0] * (z > 0))
            last, offset = last + push * np.maximum(z, 0)[:, None], offset + push
            first = moved
            seen = np.arange(27) >= (25 if condition.gate == "context" else 0)
            for unit in range(6) if condition.hebb else ():
                w = first[seen, unit]
                y = w @ x[seen]
                first[seen, unit] = w + condition.hebb * y * (x[seen] - y * w)
        for value, parameter in (first, networks.first), (last, networks.last), (offset, networks.offset):
            np.testing.assert_allclose(parameter[i].detach().numpy(), value, atol=2e-6)


def test_trees_grow_branches_and_leaves():
    assert tree(2, 2, 0).tobytes() == tree(2, 2, 0).tobytes() != tree(2, 2, 1).tobytes()
    image = np.array([[[np.asarray(tree(b, leaf, i), float) / 255 for i in range(6)] for leaf in range(5)]
                      for b in range(5)]).mean(2)
    assert image.shape == (5, 5, 18, 18, 3)
    sky = np.array([170, 200, 230]) / 255
    covered, green = np.abs(image - sky).mean((2, 3, 4)), (image[..., 1] - image[..., 2]).mean((2, 3))
    assert (np.diff(covered.mean(1)) > 0).all() and (np.diff(green.mean(0)) > 0).all()


# ---- measures ----


def test_hidden_geometry_of_ideal_points():
    grid = np.stack([FEATURE_A, FEATURE_B, IN_B], 1)
    split = np.stack([(1 - IN_B) * FEATURE_A, IN_B * FEATURE_B, IN_B], 1)
    assert geometry(grid) == pytest.approx({"grid": 1, "orthogonal": 0, "diagonal": 0}, abs=1e-9)
    assert geometry(split) == pytest.approx({"grid": 0, "orthogonal": 1, "diagonal": 0}, abs=1e-9)


def test_welch_is_scipys():
    one, other = rng("test", 2).standard_normal((2, 3)) + 1, rng("test", 3).standard_normal((2, 5))
    assert welch(one, other) == pytest.approx(ttest_ind(one.ravel(), other.ravel(), equal_var=False).statistic)
