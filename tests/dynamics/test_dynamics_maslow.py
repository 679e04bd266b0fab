"""The theory of eval.dynamics.maslow by other means than its simulation, and how its networks learn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from dixit.common import rng
from eval.dynamics.maslow import TINY, Settings, Students, hump, run
from eval.dynamics.networks.mixtures import (
    DORMANT,
    OFFICIAL,
    UNDORMANT,
    ImageNetworks,
    Manner,
    Mixtures,
    epochs,
    initialise,
    mixtures,
    whitening,
)
from eval.dynamics.probe import simulate
from eval.dynamics.theory.maslow import GROWTH, crossover, idle, learn_second, no_idle, node_fisher, reuse_rate
from eval.dynamics.theory.teacher_student import reuse

SMALL = Settings(pairs=((0, 5, 2, 7),), unlike=((0, 4, 6, 7),), mixtures=(0.0, 0.5, 1.0), runs=2, units=3, per_class=40,
                 test_per_class=20, image_time=0.2, batch=4, official_batch=4, official_steps=10)


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 images of noise of each class."""
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path))
    folder = tmp_path / "assets" / "fashion-mnist"
    folder.mkdir(parents=True)
    for split in "train", "test":
        pixels = rng("test", split).integers(0, 255, (600, 28, 28, 1), np.uint8)
        np.save(folder / f"{split}_images.npy", pixels)
        np.save(folder / f"{split}_labels.npy", np.tile(np.arange(10), 60))
    (folder / "DONE.json").write_text(json.dumps({"name": "fashion-mnist"}))


def expectation(f, count: int = 80) -> float:
    """Of f(x, y) over independent standard normal x and y."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    return float(weights @ (f(points[:, None], points[None]) * np.ones((count, count))) @ weights)


def g(x):
    return erf(x / np.sqrt(2))


def test_rates_by_quadrature():
    """An idle unit: U' = h E[g'(0) u y], h' = E[g'(0) l y] with l = U u, y = g(u); a re-used one: h' = E[g(l) y]."""
    assert expectation(lambda u, _: np.sqrt(2 / np.pi) * u * g(u)) == pytest.approx(GROWTH, rel=1e-8)
    for v in (0.2, 0.7, 0.95):
        results = expectation(lambda x, y, v=v: g(x) * g(v * x + np.sqrt(1 - v ** 2) * y))
        assert reuse_rate(np.array([v]))[0] == pytest.approx(results, rel=1e-4)


def test_the_law_of_the_crossover():
    sizes = np.array([1e-6, 1e-3, 0.03, 0.2])
    np.testing.assert_allclose(reuse_rate(crossover(sizes)) * np.log(1 / sizes), GROWTH)
    assert crossover([0.9]) == pytest.approx(1) and (np.diff(crossover(sizes)) > 0).all()


def test_fisher_information_is_of_nodes():
    """Of a finite network by sampling: the formula, and nearly the same for all weights of a node."""
    draw, n = rng("test", "fisher"), 40
    weight, head = draw.standard_normal((2, n)) * [[1.0], [2.0]], np.array([0.7, -0.4])
    x = draw.standard_normal((400_000, n))
    slope = head * np.sqrt(2 / np.pi) * np.exp(-(x @ weight.T / np.sqrt(n)) ** 2 / 2)
    sampled = (slope ** 2).T @ x ** 2 / len(x)
    theory = node_fisher(head, (weight ** 2).mean(1))
    np.testing.assert_allclose(sampled.mean(1) / theory, 1, atol=0.03)  # 1 - 2 Q/(1 + 2 Q)/n is left out
    assert (sampled.std(1) / sampled.mean(1)).max() < 0.1


def test_against_an_independent_integration():
    """Forgetting and re-use for V = 0, 0.1 ... 1, from other code, to the digits that were kept."""
    results = learn_second(idle(np.linspace(0, 1, 11), 0.05), 0.5, 150.0, 1.0).at(0)
    known = [0, 0.010, 0.046, 0.107, 0.144, 0.145, 0.126, 0.099, 0.068, 0.035, 0]
    np.testing.assert_allclose(results.forgotten, known, atol=1e-3)
    np.testing.assert_allclose(reuse(results.shares), [0, 0, 0.01, 0.16, 0.63, 0.90, 0.97, 0.99, 1, 1, 1], atol=6e-3)


def test_a_unit_of_size_zero_is_no_unit():
    v = np.linspace(0.2, 1, 5)
    one, two = (learn_second(start, 0.5, 30.0, 1.0).at(0) for start in (no_idle(v, 0.3), idle(v, 0.0, new_head=0.3)))
    np.testing.assert_allclose(one.forgotten, two.forgotten, atol=1e-9)
    np.testing.assert_allclose(one.error, two.error, atol=1e-9)
    np.testing.assert_allclose(two.shares[:, 1], [[1, 0]] * 5, atol=1e-12)


def test_students_start_where_the_theory_does_and_make_its_steps(tmp_path):
    students = Students(TINY, 2)
    start = idle(np.tile(TINY.sgd_similarities, len(students.seed) // 3), TINY.dormant)
    measured = students.measure()
    np.testing.assert_allclose(measured["gram"].detach(), start.gram, atol=1e-6)
    np.testing.assert_allclose(measured["heads"].detach(), start.heads, atol=1e-7)
    rows, eta, n = np.arange(len(students.seed)), 0.5, TINY.inputs
    weights, anchor, heads, teachers, seed, pinned, replay = (
        getattr(students, name).detach().numpy().astype(float).copy()
        for name in ("weights", "anchor", "heads", "teachers", "seed", "pinned", "replay"))
    simulate(students, tmp_path, 3, eta / n, 3)
    for step in range(3):
        x = students.x[step].numpy()[seed.astype(int)].astype(float)
        task = (students.chance[step].numpy()[seed.astype(int)] >= replay).astype(int)
        fields, target = np.einsum("skn,sn->sk", weights, x), g(np.einsum("sn,sn->s", teachers[rows, task], x))
        error = ((heads[rows, task] * g(fields)).sum(1) - target)[:, None]
        pull = error * heads[rows, task] * np.sqrt(2 / np.pi) * np.exp(-fields ** 2 / 2)
        weights = weights - eta / n * (pull[..., None] * x[:, None] + pinned[..., None] * (weights - anchor))
        heads[rows, task] -= eta / n * error * g(fields)
    np.testing.assert_allclose(students.weights.detach(), weights, atol=1e-5)
    np.testing.assert_allclose(students.heads.detach(), heads, atol=1e-5)


def test_mixtures_are_white_and_end_in_task_1(clothes):
    data = mixtures(SMALL, (0, 5, 2, 7), 2, coordinates=False)
    assert data.train.shape == (2, 3, 80, 196) and data.test.shape == (2, 3, 40, 196)
    np.testing.assert_allclose(data.train.mean(2), 0, atol=2e-4)
    other = mixtures(SMALL, (0, 5, 1, 9), 2, coordinates=False)
    assert other.train.shape == data.train.shape and not np.allclose(other.train[:, 0], data.train[:, 0])
    np.testing.assert_allclose(data.similarity()[:, -1], 1, rtol=1e-5)


def test_similarity_is_the_cosine_of_readouts():
    first, second = np.array([0.6, 0.8, 0.0]), np.array([1.0, 0.0, 0.0])
    noise = np.tile(rng("test", "noise").standard_normal((50, 3)), (2, 1))  # the same in both classes
    label = np.repeat([-1.0, 1.0], 50)[:, None]
    train = np.stack([2 * label * first + noise, 5 * label * second - noise])[None]
    np.testing.assert_allclose(Mixtures(train, train).similarity(), [[0.6, 1]])


def test_whitening():
    x = (rng("test", "white").standard_normal((500, 6)) @ rng("test", "mix").standard_normal((6, 6))).astype(np.float32)
    for coordinates in False, True:
        mean, matrix = whitening(x, 0.0, coordinates)
        np.testing.assert_allclose(np.cov(((x - mean) @ matrix).T, bias=True), np.eye(6), atol=1e-4)
    mean, matrix = whitening(x, 0.0, False)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)
    flat = np.concatenate([x, 1e-6 * x[:, :1] ** 2], 1)
    assert np.abs(whitening(flat, 1e-3, False)[1]).max() < 100  # what hardly varies is not blown up


def test_epochs_show_every_image_once():
    rows = epochs(20, 10, 4, "x").reshape(2, 20)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(20), (2, 1)))


@pytest.mark.parametrize("manner", [DORMANT, UNDORMANT, OFFICIAL], ids=lambda m: m.name)
def test_image_networks_learn_at_the_rates_they_say(tmp_path, manner: Manner):
    """One step of b images is the sum of the updates of each at the start, or the step of an ordinary PyTorch model."""
    d, n, b, settings = 9, 20, 5, dataclasses.replace(SMALL, units=4)
    start = initialise(settings, manner, d, 3, "x")
    x = rng("test", "x").standard_normal((3, n, d)).astype(np.float32)
    rows = np.stack([epochs(n, 2, b, i) for i in range(3)])
    net = ImageNetworks(settings, manner.official, start, x, np.arange(3), rows, np.arange(3))
    before = {name: part.detach().numpy().astype(float) for name, part in net.named_parameters()}
    scale = np.sqrt(settings.head_rate / settings.weight_rate / d)
    if manner is not OFFICIAL:
        assert (before["head"] * scale).std() == pytest.approx(1e-2 if manner is DORMANT else 1, rel=0.6)
    lr = 0.2 if manner is OFFICIAL else settings.weight_rate * b
    simulate(net, tmp_path, 1, (2 if manner is OFFICIAL else 1) * lr, 1)
    for i in range(3):
        batch, second = x[i, rows[i, 0]].astype(float), rows[i, 0] >= n // 2
        if manner is OFFICIAL:
            model = nn.Sequential(nn.Linear(d, 4), nn.Sigmoid(), nn.Linear(4, 1)).double()
            with torch.no_grad():
                for part, name in zip(model.parameters(), ("weight", "bias", "head", "offset"), strict=True):
                    part.copy_(torch.tensor(before[name][i]).reshape(part.shape))
            loss = ((model(torch.from_numpy(batch))[:, 0] - torch.from_numpy(second.astype(float))) ** 2).mean()
            loss.backward()
            torch.optim.SGD(model.parameters(), lr).step()
            after = [part.detach().numpy() for part in model.parameters()]
            for value, name in zip(after, ("weight", "bias", "head", "offset"), strict=True):
                results = getattr(net, name)[i].detach()
                np.testing.assert_allclose(results, value.reshape(results.shape), atol=1e-5)
        else:
            fields, head = batch @ before["weight"][i].T / np.sqrt(d), before["head"][i] * scale
            error = (g(fields) @ head - (2.0 * second - 1))[:, None]
            pull = error * head * np.sqrt(2 / np.pi) * np.exp(-fields ** 2 / 2)
            weight = before["weight"][i] - settings.weight_rate / np.sqrt(d) * pull.T @ batch
            np.testing.assert_allclose(net.weight[i].detach(), weight, atol=1e-5)
            np.testing.assert_allclose(net.head[i].detach() * scale,
                                       head - settings.head_rate / d * (error * g(fields)).sum(0), atol=1e-5)
            assert not net.bias.any() and not net.offset.any()


def test_a_hump_is_measured_where_the_other_half_peaks():
    noise = rng("test", "hump").standard_normal((400, 9))
    mean, error = hump(noise)
    assert (np.abs(mean) < 3.5 * error).all()  # the best of seven would be well above
    mean, error = hump(0.1 * noise + 1 - (np.linspace(-1, 1, 9) - 0.25) ** 2)
    np.testing.assert_allclose(mean, [1.25 ** 2, 0.75 ** 2], atol=0.03)
    np.testing.assert_allclose(error, 0.1 * np.sqrt(2 / 400), rtol=0.2)


def test_images_run_on_a_small_set(tmp_path, clothes):
    few = dataclasses.replace(SMALL, similarities=11, dt=5.0, time=5.0, sweep_dt=5.0, sweep_time=5.0, sgd_time=0.05,
                              sgd_similarities=(0.0, 0.5))
    claims, figure = run(few, 1, tmp_path / "run")
    images = [claim for claim in claims if claim.name.startswith("Fashion-MNIST")]
    assert len(images) == (4 + 2) + 4 + 4 and all(np.isfinite(claim.deviation).all() for claim in images)
    assert {claim.kind for claim in images if "unlike" not in claim.name} == {"report"} and len(figure.axes) == 9
