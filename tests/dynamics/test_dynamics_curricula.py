"""The theory of eval.dynamics.curricula by other means than its simulation."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.func import functional_call

from dixit.common import rng
from eval.dynamics.curricula import (
    ARMS,
    TINY,
    Settings,
    Students,
    cold_start,
    effect,
    effect_claims,
    mixture,
    noise_levels,
    run,
    tally,
    warm_start,
)
from eval.dynamics.theory.curricula import clusters, covered, drift, lottery, normal_points, order_parameters


def random_state(seed: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M, Q, v) of random weights in many dimensions."""
    draw = rng("test", seed)
    w = draw.standard_normal((k, 30)) / np.sqrt(30) * 1.3
    return w[:, :2], w @ w.T, draw.standard_normal(k)


@pytest.mark.parametrize("k", [1, 3, 4, 5, 6])
def test_the_lottery_counted_out(k):
    """Every way to put k units into four cells."""
    wins = sum(len(set(cells)) == 4 for cells in itertools.product(range(4), repeat=k))
    assert lottery([k])[0] == pytest.approx(float(Fraction(wins, 4 ** k)), abs=1e-14)


def test_the_lottery_grows_to_certainty_and_covered_counts_the_same():
    rates = lottery(range(1, 200))
    assert (np.diff(rates) >= -1e-15).all() and rates[-1] == pytest.approx(1)
    draw = rng("test", 0)
    m, v = draw.standard_normal((20000, 6, 2)), draw.standard_normal((20000, 6))
    assert covered(m, v).mean() == pytest.approx(lottery([6])[0], abs=4 * 0.0035)
    one = np.array([[[1.0, -9], [-1, 9], [9, 1], [-9, -1]]])  # a positive v looks at mu+, a negative one at mu-
    assert covered(one, np.array([[1.0, 1, -1, -1]])).all() and not covered(one, np.array([[1.0, 1, 1, -1]])).any()


def test_without_noise_the_drift_is_the_gradient_on_four_points():
    """M and v descend the loss of the four centres, here by autograd, and Q_kk - v_k^2 is conserved."""
    m, q, v = random_state(1, 4)
    tm, tv = (torch.tensor(part, requires_grad=True) for part in (m, v))
    centres, y = (torch.from_numpy(part.astype(float)) for part in clusters(2))
    torch.nn.functional.softplus(-y * ((centres @ tm.T).relu() @ tv)).mean().backward()
    dm, dq, dv = drift(m, q, v, 0.0, normal_points(8, 4))
    np.testing.assert_allclose(dm, -tm.grad.numpy(), atol=1e-14)
    np.testing.assert_allclose(dv, -tv.grad.numpy(), atol=1e-14)
    np.testing.assert_allclose(np.diag(dq), 2 * v * dv, atol=1e-14)
    np.testing.assert_allclose(dq, dq.T)


def test_one_unit_by_quadrature():
    """K = 1: all averages are integrals over h; x mu by Stein's lemma, with the jump of the gate at h = 0."""
    m, q, v, s = np.array([[0.4, -0.7]]), np.array([[1.7]]), np.array([1.2]), 0.6
    root = s * q[0, 0] ** 0.5
    dm, dq, dv = np.zeros(2), 0.0, 0.0
    for centre, y in zip(clusters(2)[0].astype(float), clusters(2)[1], strict=True):
        mean = centre @ m[0]

        def density(h: float, mean: float = mean) -> float:
            return float(np.exp(-((h - mean) / root) ** 2 / 2) / (root * np.sqrt(2 * np.pi)))

        def g(h: float, y: float = y) -> float:
            return float(y * v[0] / (1 + np.exp(y * v[0] * h)))

        def integral(function, mean: float = mean) -> float:
            return quad(function, 0, max(mean, 0) + 12 * root, limit=200, epsabs=1e-12)[0] / 4

        def slope(h: float, y: float = y) -> float:
            return float(-(v[0] / (2 * np.cosh(y * v[0] * h / 2))) ** 2)

        jump = g(0.0) * density(0.0) / 4
        stein = s ** 2 * (integral(lambda h: slope(h) * density(h)) + jump)
        dm += centre * integral(lambda h: g(h) * density(h)) + m[0] * stein
        dq += integral(lambda h: (2 * g(h) * h + s ** 2 * g(h) ** 2) * density(h))
        dv += integral(lambda h: g(h) / v[0] * h * density(h))
    got = drift(m, q, v, s, normal_points(2 ** 16, 1))
    np.testing.assert_allclose(got[0][0], dm, atol=1e-4)
    assert got[1][0, 0] == pytest.approx(dq, abs=1e-4) and got[2][0] == pytest.approx(dv, abs=1e-4)


def test_drift_is_the_mean_step_of_sgd():
    """One step of SGD from one network, averaged over samples of the mixture in 200 dimensions."""
    draw, k, d, n, s = rng("test", 2), 3, 200, 20000, 0.5
    w, v = draw.standard_normal((k, d)) / np.sqrt(d), draw.standard_normal(k)
    w[:, :2] += 0.5
    centres, y = clusters(d)
    row = draw.integers(4, size=n)
    x, y = centres[row] + s * draw.standard_normal((n, d)), y[row]
    h = x @ w.T
    error = y / (1 + np.exp(y * (np.maximum(h, 0) @ v)))
    g = error[:, None] * v * (h > 0)  # a step is g x' / d
    m, q, gg = w[:, :2], w @ w.T, g[:, :, None] * g[:, None]
    steps = [g[:, :, None] * x[:, None, :2], g[:, :, None] * h[:, None] + h[:, :, None] * g[:, None]
             + gg * ((x ** 2).sum(1) / d)[:, None, None], error[:, None] * np.maximum(h, 0)]
    slack = 0.0, 3 * np.abs(gg.mean(0)).max() / d, 0.0  # M' and v' hold in every dimension, Q' but for x^2 / d
    for theory, step, more in zip(drift(m, q, v, s, normal_points(4096, k)), steps, slack, strict=True):
        allowed = 5 * step.std(0) / np.sqrt(n) + more
        assert (np.abs(step.mean(0) - theory) < allowed).all()
        assert (np.abs(theory) > 2 * allowed).any()  # so that the comparison says something


def test_order_parameters_do_not_depend_on_the_points_or_the_name_of_the_classes():
    m, q, v = warm_start(Settings(), 0)
    times = np.linspace(0, 3, 4)
    flow = order_parameters(times, m, q, v, 0.3, normal_points(4096, 4))
    fine = order_parameters(times, m, q, v, 0.3, normal_points(8192, 4))
    swapped = order_parameters(times, m[:, ::-1], q, -v, 0.3, normal_points(4096, 4))
    for one, other in zip(flow, fine, strict=True):
        np.testing.assert_allclose(one, other, atol=0.005)
    np.testing.assert_allclose(flow[0], swapped[0][..., ::-1], atol=1e-9)
    np.testing.assert_allclose(flow[2], -swapped[2], atol=1e-9)
    assert (np.linalg.eigvalsh(flow[1] - flow[0] @ flow[0].swapaxes(1, 2)) > 0).all()  # what is orthogonal to mu
    balance = np.diagonal(flow[1], axis1=1, axis2=2) - flow[2] ** 2
    assert (np.diff(balance, axis=0) > -1e-4).all()  # grows by the noise of SGD only


def test_arms_see_as_many_easy_samples_in_another_order():
    levels = noise_levels(0.1, 0.5, 40, 0)
    for arm in ("easy first", "mix", "hard first"):
        assert (levels[ARMS.index(arm)] == np.float32(0.1)).sum() == 20
    assert (levels[0][:20] < levels[0][20:]).all() and (levels[3][:20] > levels[3][20:]).all()
    assert (levels[2] == np.float32(0.5)).all() and 5 < (levels[1][:20] == np.float32(0.1)).sum() < 15
    assert (noise_levels(0.1, 0.5, 40, 1)[1] != levels[1]).any()


def students(seeds: int, steps: int = 50) -> Students:
    levels = np.stack([noise_levels(0.1, 0.5, steps, s, r) for s in range(seeds) for r in range(3)])
    return Students(mixture(8, 0.5, 4), seeds, cold_start("mixture", seeds, 3, 8, np.ones(6)), [4, 2], levels)


def test_samples_belong_to_seed_and_step():
    """A run sees the same samples whatever seeds and processes are beside it; block ends change nothing."""
    few, many = students(1), students(2)
    for step in (0, 31, 32, 49, 3):
        for one, other in zip(few.samples(step), many.samples(step), strict=True):
            assert torch.equal(one, other[:3])
    assert torch.equal(few.weight, many.weight[:3]) and torch.equal(few.noise, many.noise[:3])
    state = dict(many.named_parameters()) | dict(many.named_buffers())
    share = functional_call(many, {name: value[2:5] for name, value in state.items()}, (40,))
    torch.testing.assert_close(share, many(40)[2:5])


def test_a_run_is_the_networks_of_its_widths_and_arms_one_by_one():
    """Losses and accuracies against a plain network on the same samples."""
    reference = students(2)
    inputs, z, y = reference.samples(7)
    total = 0.0
    for arm in range(4):
        x = inputs[4, 0] + reference.noise[4, arm, 7] * z[4, 0]
        for g, units in enumerate((slice(0, 4), slice(4, 6))):
            w, v = reference.weight[4, arm, :, units], reference.readout[4, arm, units]
            total += float(torch.nn.functional.softplus(-y[4, 0] * ((x @ w).relu() @ v)).detach())
            right = ((reference.test_inputs @ w).relu() @ v * reference.test_labels > 0).float().mean()
            assert float(reference.accuracy()[4, arm, g]) == pytest.approx(float(right))
    assert float(reference(7)[4].detach()) == pytest.approx(total, rel=1e-5)


def test_effects_are_paired_and_tell_their_sign():
    rates = rng("test", 3).uniform(0.5, 0.9, (50, 1, 2)).repeat(4, 1)  # runs differ much, arms little
    rates[:, 0] += 0.01
    rates[:, 1, 1] += 0.02
    mean, error = effect(rates, ("easy first", "mix"))
    np.testing.assert_allclose(mean, [0.01, -0.01, 0.02])
    np.testing.assert_allclose(error, 0, atol=1e-12)
    claims = effect_claims("x", [4, 8], rates)
    assert "K 4: +0.0100" in claims[0].source and "(+); K 8: -0.0100" in claims[0].source
    assert "narrowest less widest: +0.0200" in claims[0].source and all(claim.kind == "report" for claim in claims)
    counts = [claim.measured for claim in tally({"x": ([4, 8], rates)})]
    assert counts[:4] == [1, 1, 2, 0]  # one of two widths gains; the gain shrinks; on hard only both gain alike


@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_images_run_on_a_small_set(tmp_path, monkeypatch, name, shape):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path))
    folder = tmp_path / "assets" / name
    folder.mkdir(parents=True)
    kinds = np.tile(np.arange(10), 10)
    np.save(folder / "train_images.npy", np.random.default_rng(0).integers(0, 255, (100, *shape), dtype=np.uint8))
    np.save(folder / "train_labels.npy", kinds)
    (folder / "DONE.json").write_text(json.dumps({"name": name}))
    settings = Settings(dimensions=(16,), time=1.0, ode_runs=2, points=64, dimension=16, runs=2, lottery_widths=(4,),
                        lottery_noises=(0.02,), lottery_time=1.0, hard=(), test=4, images=(name,), per_class=10,
                        image_runs=2, image_widths=(2, 4), batch=4, image_steps=4)
    claims, figure = run(settings, 1, tmp_path / "run")
    assert sum(claim.name.startswith(name) for claim in claims) == 3 and len(figure.axes) == 6
    assert all(np.isfinite(claim.deviation).all() for claim in claims if claim.name.startswith(name))


def test_tiny_is_small():
    assert sum(round(time * TINY.dimension) for _, time in TINY.hard) < 2000
