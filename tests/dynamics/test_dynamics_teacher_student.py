"""The theory of eval.dynamics.teacher_student by other means than its simulation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import erf

from dixit.common import rng
from eval.dynamics.probe import simulate
from eval.dynamics.teacher_student import ARMS, STARTS, Settings, Students, draw_student
from eval.dynamics.theory.teacher_student import (
    Overlaps,
    early_forgetting,
    entropy,
    errors,
    forgetting,
    i2,
    i3,
    i4,
    integrate,
    j2,
    overlaps_of,
    participation,
    reuse,
    snapshot,
    specialised,
    speeds,
    transfer,
    usage,
)


def g(x: np.ndarray) -> np.ndarray:
    return erf(x / np.sqrt(2))


def dg(x: np.ndarray) -> np.ndarray:
    return np.sqrt(2 / np.pi) * np.exp(-x ** 2 / 2)


def gauss(c: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite: fields (n, points^n) with covariance c, and weights."""
    x, w = np.polynomial.hermite_e.hermegauss(points)
    grid = np.stack(np.meshgrid(*[x] * len(c), indexing="ij")).reshape(len(c), -1)
    weights = np.prod(np.stack(np.meshgrid(*[w / np.sqrt(2 * np.pi)] * len(c), indexing="ij")), 0).ravel()
    return np.linalg.cholesky(c + 1e-15 * np.eye(len(c))) @ grid, weights


def covariance(n: int, seed: int) -> np.ndarray:
    a = rng("test", seed).standard_normal((n, n + 1)) / 3
    return a @ a.T


def student(k: int, m: int, seed: int, size: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights of a student, its heads, both teachers, and their heads; N = 7."""
    draw = rng("test", "student", seed)
    return (size * draw.standard_normal((1, k, 7)), draw.standard_normal((1, 2, k)) / 2,
            draw.standard_normal((1, 2, m, 7)) / np.sqrt(7), draw.standard_normal((2, m)))


@pytest.mark.parametrize("seed", range(3))
def test_integrals_by_quadrature(seed):
    (a, b), w = gauss(covariance(2, seed), 60)
    assert i2(covariance(2, seed)) == pytest.approx(w @ (g(a) * g(b)), abs=1e-12)
    assert j2(covariance(2, seed)) == pytest.approx(w @ (dg(a) * dg(b)), abs=1e-12)
    (a, b, c), w = gauss(covariance(3, seed), 40)
    assert i3(covariance(3, seed)) == pytest.approx(w @ (dg(a) * b * g(c)), abs=1e-10)
    (a, b, c, d), w = gauss(covariance(4, seed), 26)
    assert i4(covariance(4, seed)) == pytest.approx(w @ (dg(a) * dg(b) * g(c) * g(d)), abs=1e-7)


def test_integrals_of_batches_and_of_equal_fields():
    batch = np.stack([covariance(4, seed) for seed in range(6)]).reshape(2, 3, 4, 4)
    assert i4(batch).shape == (2, 3) and i4(batch)[1, 2] == i4(batch[1, 2])
    ones = np.full((4, 4), 3.0)
    (a,), w = gauss(np.array([[3.0]]), 80)
    assert i2(ones[:2, :2]) == pytest.approx(w @ g(a) ** 2, abs=1e-6)
    assert i4(ones) == pytest.approx(w @ (dg(a) * g(a)) ** 2, abs=1e-6)
    assert i2(np.full((2, 2), 1e9)) == pytest.approx(1, abs=1e-3)  # large fields: a sign


@pytest.mark.parametrize(("k", "m"), [(2, 1), (3, 2)])
def test_errors_are_those_of_the_network(k, m):
    w, h, teachers, v = student(k, m, 0)
    found = errors(overlaps_of(w, h, teachers, v))
    x = rng("test", "x").standard_normal((400_000, 7))
    for task in (0, 1):
        gap = g(x @ w[0].T) @ h[0, task] - g(x @ teachers[0, task].T) @ v[task]
        assert found[0, task] == pytest.approx((gap ** 2).mean() / 2, rel=0.01)


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize(("k", "m"), [(2, 1), (3, 2)])
def test_first_order_terms_are_the_gradient_of_the_error(k, m, task):
    """By finite differences in weight space; K and M that differ find wrong indices."""
    w, h, teachers, v = student(k, m, 1)
    eta, small = 1e-6, 1e-5
    dgram, dheads = speeds(overlaps_of(w, h, teachers, v), task, eta)

    def slope(dw: np.ndarray, dh: np.ndarray) -> float:
        plus, minus = (errors(overlaps_of(w + s * dw, h + s * dh, teachers, v))[0, task] for s in (small, -small))
        return (plus - minus) / (2 * small)

    fields = np.concatenate([w[0], teachers[0].reshape(-1, 7)])
    gradient = np.zeros((k, 7))
    for i in range(k):
        for j in range(7):
            one = np.zeros_like(w)
            one[0, i, j] = 1
            gradient[i, j] = slope(one, np.zeros_like(h))
        one = np.zeros_like(h)
        one[0, task, i] = 1
        assert dheads[0, task, i] / eta == pytest.approx(-slope(np.zeros_like(w), one), abs=1e-8)
    assert not dheads[0, 1 - task].any()
    expected = np.zeros_like(dgram[0])
    expected[:k] -= gradient @ fields.T
    expected[:, :k] -= fields @ gradient.T
    np.testing.assert_allclose(dgram[0] / eta, expected, atol=1e-5)


def test_second_order_term_by_quadrature():
    w, h, teachers, v = student(2, 1, 2)
    overlaps, task, noise = overlaps_of(w, h, teachers, v), 1, 0.7
    one, two = (speeds(overlaps, task, eta, noise)[0][0, :2, :2] for eta in (1.0, 2.0))
    measured = (two - 2 * one) / 2  # eta a + eta^2 b: what is left is b
    fields, weights = gauss(overlaps.gram[0][np.ix_([0, 1, 3], [0, 1, 3])], 40)
    squared = (h[0, task] @ g(fields[:2]) - v[task, 0] * g(fields[2])) ** 2 + noise ** 2
    pull = h[0, task][:, None] * dg(fields[:2])
    np.testing.assert_allclose(measured, (weights * squared * pull) @ pull.T, atol=1e-8)


def test_integration_converges_with_order_two_and_batches_do_not_touch():
    parts = [overlaps_of(*student(2, 1, seed)) for seed in range(3)]
    v = np.ones((2, 1))
    batch = Overlaps(np.concatenate([p.gram for p in parts]), np.concatenate([p.heads for p in parts]), v)
    times = np.array([0.0, 1.0, 4.0])
    exact, coarse, fine = (integrate(batch, 1, times, dt, 0.5)["gram"] for dt in (0.025, 0.4, 0.2))
    ratio = np.abs(coarse - exact).max() / np.abs(fine - exact).max()
    assert 3 < ratio < 5.5
    alone = integrate(dataclasses.replace(parts[1], teacher_heads=v), 1, times, 0.2, 0.5)
    np.testing.assert_allclose(alone["gram"][:, 0], fine[:, 1], atol=1e-13)


def test_replay_mixes_the_tasks_and_consolidation_holds_nodes():
    start = snapshot(overlaps_of(*student(2, 1, 3)))
    times, p = np.array([0.0, 1e-4]), 0.3
    first, second, mixed = (integrate(start, 1, times, 1e-4, 0.5, replay) for replay in (1.0, 0.0, p))
    for name in ("gram", "heads"):
        np.testing.assert_allclose(mixed[name][1] - mixed[name][0], p * (first[name][1] - first[name][0])
                                   + (1 - p) * (second[name][1] - second[name][0]), atol=1e-8)
    assert first["heads"][1, 0, 0] != pytest.approx(first["heads"][0, 0, 0], abs=1e-9)
    held = integrate(start, 1, np.array([0.0, 5.0]), 0.05, 0.5, 0.0, 20.0, np.array([[1.0, 0.0]]))["gram"][1, 0]
    distance = [held[i, i] - 2 * held[i, 4 + i] + held[4 + i, 4 + i] for i in (0, 1)]
    assert distance[0] < 0.01 * distance[1]
    np.testing.assert_array_equal(held[2:, 2:], start.gram[0, 2:, 2:])  # teachers and the snapshot stay


def test_consolidation_is_the_gradient_of_its_penalty():
    w, h, teachers, v = student(2, 1, 4)
    moved = w + 0.1 * rng("test", "moved").standard_normal(w.shape)
    start, kappa = snapshot(overlaps_of(w, h, teachers, v)), np.array([[0.5, 2.0]])
    fields = np.concatenate([moved, teachers.reshape(1, 2, 7), w], 1)
    away = dataclasses.replace(start, gram=fields @ fields.swapaxes(1, 2))
    times, eta, rho = np.array([0.0, 1e-6]), 0.5, 0.7
    plain, held = (integrate(away, 1, times, 1e-6, eta, 0.0, r, kappa)["gram"] for r in (0.0, rho))
    dw = -eta * rho * kappa[0][:, None] * (moved - w)[0]
    expected = np.zeros((6, 6))
    expected[:2] += dw @ fields[0].T
    expected[:, :2] += fields[0] @ dw.T
    np.testing.assert_allclose((held - plain)[1, 0] / 1e-6, expected, atol=1e-5)


def test_a_perfect_student_stays_and_identical_tasks_are_not_forgotten():
    start = specialised(np.array([0.0, 0.5, 1.0]), 0.0)
    assert errors(start)[:, 0] == pytest.approx(np.zeros(3), abs=1e-12)
    np.testing.assert_allclose(integrate(start, 0, np.array([0.0, 10.0]), 0.2, 1.0)["gram"][1], start.gram, atol=1e-12)
    same = dataclasses.replace(start, heads=np.tile([1.0, 0.0], (3, 2, 1)))
    forgot = integrate(same, 1, np.array([0.0, 10.0]), 0.2, 1.0)["errors"][1, :, 0]
    assert forgot[2] == pytest.approx(0, abs=1e-9) and forgot[1] > 1e-3


def test_use_of_nodes():
    gram, heads = np.diag([4.0, 1.0, 1.0, 1.0]), np.array([[1.0, 0.0], [1.0, 2.0]])
    shares = usage(gram, heads)
    np.testing.assert_allclose(shares, [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(entropy(shares), [0, 1], atol=1e-12)
    np.testing.assert_allclose(participation(shares), [1, 2])
    assert reuse(shares) == pytest.approx(0.5)


def test_teachers_are_as_similar_as_asked():
    similarity = np.array([0.0, 0.3, 1.0])
    w, h, teachers = draw_student(50, 3, STARTS[0], similarity, np.ones((2, 2)), "test")
    gram = overlaps_of(w, h, teachers, np.ones((2, 2))).gram[:, 3:, 3:]
    across = similarity[:, None, None] * np.eye(2)
    np.testing.assert_allclose(gram, np.block([[np.tile(np.eye(2), (3, 1, 1)), across],
                                               [across, np.tile(np.eye(2), (3, 1, 1))]]), atol=1e-12)
    assert w.std() * np.sqrt(50) == pytest.approx(1e-3, rel=0.3)


def test_early_forgetting_is_nothing_at_zero_similarity_and_most_in_between():
    v = np.linspace(0, 1, 21)
    found = early_forgetting(v, 0.5, 1.0)
    assert found[0] == 0 and 0 < found.argmax() < 20
    np.testing.assert_allclose(early_forgetting(v, 0.5, 2.0), 16 * found)


def test_forgetting_and_transfer_count_from_the_switch():
    record = np.array([[[0.1, 0.9]], [[0.3, 0.4]]])
    np.testing.assert_allclose(forgetting(record), [[0], [0.2]])
    np.testing.assert_allclose(transfer(record), [[0], [0.5]])


def test_students_learn_by_online_sgd_and_arms_differ_where_they_should(tmp_path):
    students = Students(Settings(size=20, simulated_switch=10.0), 2)
    students(0).sum().backward()
    for i in (1, 5):
        w, h, x = students.weights[i].detach(), students.heads[i, 0].detach(), students.x[0, i % 2]
        field = w @ x
        gap = h @ torch.erf(field / 2 ** 0.5) - students.outputs[0, i]
        pull = (2 / np.pi) ** 0.5 * torch.exp(-field ** 2 / 2)
        torch.testing.assert_close(students.weights.grad[i], (gap * h * pull)[:, None] * x)
        torch.testing.assert_close(students.heads.grad[i, 0], gap * torch.erf(field / 2 ** 0.5))
        assert not students.heads.grad[i, 1].any()
    assert not students.tasks[:200, :, 1].any()  # task 1 until the switch
    share = students.tasks[200:, :, 0].mean(0).reshape(len(ARMS), 2).mean(1)
    assert share[1] == pytest.approx(0.1, abs=0.05) and share.sum() == share[1]
    students = Students(Settings(size=20, simulated_switch=10.0), 2)
    seen = simulate(students, tmp_path / "students", 300, 1 / 20, 100)
    before, after = (seen["heads"][k].reshape(len(ARMS), 2, 2, 2) for k in (2, 3))
    np.testing.assert_array_equal(before[0], before[2])  # consolidation begins with the switch; inputs are the same
    assert np.abs(after[0] - after[2])[:, 1].min() > 0 and np.abs(before[0] - before[3]).max() > 0
    pinned = students.kappa.reshape(len(ARMS), 2, 2)
    assert (pinned[2] > 0).all() and not pinned[[0, 1, 3, 4, 5]].any()
