"""The theory of eval.dynamics.geometry by other means than its simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dixit.common import rng
from eval import geometry as geo
from eval.dynamics.geometry import TINY, Mlps, Net, Trajectories, input_scales, inputs, rsa, targets
from eval.dynamics.theory.geometry import frozen_losses, hidden_kernel, ideal_values, kernel_rdm


def test_blobs_and_targets():
    x, y = inputs(), targets()
    assert x.shape == (50, 27)
    assert np.linalg.norm(x[:, :25]) == pytest.approx(1) == np.linalg.norm(x[:, 25:])
    np.testing.assert_array_equal(x[:25, :25], x[25:, :25])
    assert (x[:25, 26] == 0).all() and (x[25:, 25] == 0).all()
    swapped = x[:, :25].reshape(2, 5, 5, 5, 5).transpose(0, 2, 1, 4, 3)  # a and b change places, and so do the pixels
    np.testing.assert_allclose(swapped.reshape(50, 25), x[:, :25], atol=1e-15)
    assert sorted(y[:25]) == sorted(y[25:]) and y[:5].tolist() == [-2] * 5 and y[25:30].tolist() == [-2, -1, 0, 1, 2]
    np.testing.assert_array_equal(targets(one_rule=True), np.tile(y[:25], 2))


def test_the_hidden_kernel_without_bias_is_the_arc_cosine_kernel():
    """Cho and Saul 2009: |u| |v| (sin t + (pi - t) cos t) / (2 pi), t the angle between the two."""
    scales = input_scales(TINY, 1)
    x = inputs() * scales
    length = np.linalg.norm(x, axis=1)
    angle = np.arccos((x @ x.T / np.outer(length, length)).clip(-1, 1))
    expected = np.outer(length, length) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    np.testing.assert_allclose(hidden_kernel(inputs(), scales, 0.0), expected, atol=2e-5 * expected.max())


def test_the_hidden_kernel_of_a_large_bias_is_linear():
    scales = input_scales(TINY, 1)
    x = inputs() * scales
    np.testing.assert_allclose(hidden_kernel(inputs(), scales, 50.0), x @ x.T + 2500, rtol=1e-9)


def test_the_hidden_kernel_is_the_mean_over_units():
    scales, bias = input_scales(TINY, 1), 0.1
    weights = scales[:, None] * rng("test", "units").standard_normal((27, 20_000))
    hidden = np.maximum(inputs() @ weights + bias, 0)
    kernel = hidden_kernel(inputs(), scales, bias)
    np.testing.assert_allclose(kernel, hidden @ hidden.T / 20_000, atol=0.03 * kernel.max())
    np.testing.assert_allclose(kernel_rdm(kernel), geo.rdm(hidden) / np.sqrt(20_000), atol=0.02)


def test_small_untrained_weights_know_only_the_context():
    distances = kernel_rdm(hidden_kernel(inputs(), input_scales(TINY, 0), 0.1))
    assert rsa(distances, context=True) == pytest.approx(
        {"grid": 0, "orthogonal": 0, "parallel": 0, "context": 1}, abs=0.01)
    assert rsa(distances, context=False)["orthogonal"] > 0.4  # the pitfall


def test_the_frozen_loss_by_steps():
    draw = rng("test", "frozen")
    hidden, readout, bias = np.maximum(draw.standard_normal((50, 20)), 0), 0.1 * draw.standard_normal(20), 0.3
    y, losses = targets(), []
    residual = hidden @ readout + bias - y
    for _ in range(30):
        error = hidden @ readout + bias - y
        losses.append((error ** 2).sum() / 2)
        readout, bias = readout - 1e-3 * hidden.T @ error, bias - 1e-3 * error.sum()
    np.testing.assert_allclose(frozen_losses(hidden, residual, 1e-3, np.arange(30)), losses, rtol=1e-10)


def test_conservation_in_gradient_flow():
    """d/dt (|w|^2 + b^2 - v^2) / 2 = -(w.g_w + b g_b - v g_v) is 0 for every unit, wherever the weights are."""
    networks = Mlps(TINY, [Net("rich", 0, 0), Net("lazy", 1, 1)])
    with torch.no_grad():
        networks.last += torch.from_numpy(rng("test", "readout").standard_normal(networks.last.shape))
    networks(0).sum().backward()
    first, bias, last = (p.detach() * p.grad for p in (networks.first, networks.first_bias, networks.last))
    assert last.abs().max() > 1
    torch.testing.assert_close(first.sum(2) + bias, last, rtol=1e-9, atol=1e-10)


def test_networks_are_what_their_kind_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    nets = [Net("plain", 0, 1), Net("frozen", 0, 1, frozen=True), Net("L2", 0, 1, penalty=0.5)]
    run = Trajectories(TINY, nets, tmp_path / "nets", 1e-3, 20)
    first, last = run.start["first"], run.start["last"]
    np.testing.assert_array_equal(first[0], first[1])  # the same seed and scale: the same start
    np.testing.assert_array_equal(run.end["first"][1], first[1])
    assert np.abs(run.end["last"][1] - last[1]).max() > 0.01 and np.abs(run.end["first"][0] - first[0]).max() > 1e-3
    assert (run.end["first"][2] ** 2).sum() < (run.end["first"][0] ** 2).sum() * (1 - 0.015)
    hidden = np.maximum(inputs() @ first[0].T + 0.1, 0)
    np.testing.assert_allclose(run.start["hidden"][0], hidden, atol=1e-14)
    np.testing.assert_allclose(run.outputs[0, 0], hidden @ last[0] + 0.1, atol=1e-14)
    assert np.isnan(run.converged(0)) and Mlps(TINY, nets)(0)[2] > Mlps(TINY, nets)(0)[0]


def test_limits_of_the_ideal_values():
    assert ideal_values(1e-6)["CCGP"] == pytest.approx([0.5, 1, 0.5, 1, 0.8])
    assert ideal_values(1e6)["CCGP"] == pytest.approx([0.5] * 5, abs=1e-5)
    assert ideal_values(1.0)["participation ratio"] == pytest.approx([2.24031, 2.24031, 2.45455, 1.24615, 1.24615],
                                                                     abs=1e-5)
