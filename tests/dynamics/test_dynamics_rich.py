"""The theory of eval.dynamics.rich by other means than its simulation, and the parts of rich_applied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dixit.common import rng
from eval.dynamics import rich_applied as applied
from eval.dynamics.rich import AT_ZERO, SIZES, Settings, Student, relu_kernel, scale_gradient
from eval.dynamics.theory.rich import (
    half_rise,
    implicit_bias,
    kernel_distance,
    layers,
    least_potential,
    neuron,
    potential,
    start,
    wide_map,
    wide_start,
)

DELTAS = (-4.0, -2.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 2.0, 4.0)
TARGET, BETA0 = np.array([0.0, 1.0]), np.array([-1.0, 0.0])  # figure 3 of the paper


def flow(times: np.ndarray, a0: float, w0: np.ndarray, x: np.ndarray, y: np.ndarray, paces=(1.0, 1.0)) -> np.ndarray:
    """Gradient flow of both layers, integrated by scipy: columns a, w."""
    def move(_: float, state: np.ndarray) -> np.ndarray:
        a, w = state[0], state[1:]
        pull = x.T @ (y - a * x @ w)
        return np.concatenate([[paces[0] * w @ pull], paces[1] * a * pull])

    solved = solve_ivp(move, (0, times[-1]), np.concatenate([[a0], w0]), "DOP853", times, rtol=1e-12, atol=1e-13)
    return solved.y.T


@pytest.mark.parametrize("paces", [(1.0, 1.0), (0.3, 2.0)])
@pytest.mark.parametrize("delta", DELTAS)
def test_the_closed_form_is_gradient_flow(delta, paces):
    times = np.linspace(0, 12, 25)
    draw = rng("test", 0)
    for target, beta0 in (TARGET, BETA0), draw.standard_normal((2, 4)) / 2, (np.full(2, 0.5), np.array([0.0, -1.0])):
        a0, w0 = start(beta0, delta, paces)
        np.testing.assert_allclose(a0 * w0, beta0, atol=1e-14)
        assert paces[1] * a0 ** 2 - paces[0] * w0 @ w0 == pytest.approx(delta, abs=1e-12)
        a, w = neuron(times, a0, w0, target, paces)
        np.testing.assert_allclose(np.column_stack([a, w]), flow(times, a0, w0, np.eye(len(w0)), target, paces),
                                   atol=2e-8)
        np.testing.assert_allclose(paces[1] * a ** 2 - paces[0] * (w ** 2).sum(1), delta, atol=1e-9)


def test_the_closed_form_ends_at_the_target_and_never_overflows():
    for delta in DELTAS:
        a, w = neuron(np.array([0.0, 500.0, 1e5]), *start(BETA0, delta), TARGET)
        np.testing.assert_allclose(a[:, None] * w, [BETA0, TARGET, TARGET], atol=1e-9)


@pytest.mark.parametrize("delta", [-2.0, 0.0, 1.0])
def test_length_and_angle_have_their_own_equation(delta):
    """Equation 2 of the paper, with rates eta_a, eta_w: of the length mu of a w and its cosine phi to the target."""
    paces, target, beta0 = (0.5, 1.5), np.array([0.3, 0.9]), np.array([-0.8, 0.4])
    size, both = np.linalg.norm(target), paces[0] * paces[1]

    def move(_: float, state: np.ndarray) -> np.ndarray:
        mu, phi = state
        big = np.sqrt(delta ** 2 + 4 * both * mu ** 2)
        return np.array([big * (phi * size - mu), 2 * both * mu * size * (1 - phi ** 2) / (big - delta)])

    times, mu0 = np.linspace(0, 10, 11), np.linalg.norm(beta0)
    solved = solve_ivp(move, (0, 10), [mu0, beta0 @ target / mu0 / size], "DOP853", times, rtol=1e-11, atol=1e-12).y
    a, w = neuron(times, *start(beta0, delta, paces), target, paces)
    beta = a[:, None] * w
    mu = np.linalg.norm(beta, axis=1)
    np.testing.assert_allclose([mu, beta @ target / mu / size], solved, atol=1e-8)


@pytest.mark.parametrize(("delta", "expected"), [
    (-4.0, (0.005, 0.028, 0.871, 0.071)), (-2.0, (0.043, 0.441, 0.713, 0.235)), (-1.0, (0.117, 0.478, 0.486, 0.427)),
    (0.0, (0.116, 0.200, 0.200, 0.594)), (1.0, (0.039, 0.050, 0.050, 0.665)), (2.0, (0.011, 0.012, 0.012, 0.688)),
    (4.0, (0.001, 0.001, 0.001, 0.701))])
def test_the_numbers_of_figure_3(delta, expected):
    """Kernel distance at 1, 5, 20, least length; integrated independently, to three digits."""
    times = np.linspace(0, 20, 4001)
    a, w = neuron(times, *start(BETA0, delta), TARGET)
    distance = kernel_distance(a, w, 2)
    got = [*np.interp([1, 5, 20], times, distance), np.linalg.norm(a[:, None] * w, axis=1).min()]
    np.testing.assert_allclose(got, expected, atol=6e-4)
    if delta == -4:
        assert half_rise(times, distance) == pytest.approx(12.2, abs=0.05)


def test_kernel_distance_is_that_of_the_kernels_and_the_notebooks_is_not():
    times = np.linspace(0, 20, 401)
    errors = {-4.0: 0.054, -2.0: 0.139, -1.0: 0.189, 0.0: 0.106, 1.0: 0.020}
    for delta, error in errors.items():
        a, w = neuron(times, *start(BETA0, delta), TARGET)
        kernels = a[:, None, None] ** 2 * np.eye(2) + w[:, :, None] * w[:, None]
        norms = np.linalg.norm(kernels, axis=(1, 2))
        brute = 1 - (kernels * kernels[0]).sum((1, 2)) / norms / norms[0]
        np.testing.assert_allclose(kernel_distance(a, w, 2), brute, atol=1e-14)
        assert np.abs(kernel_distance(a, w, 2, notebook=True) - brute).max() == pytest.approx(error, abs=2e-3)


def test_the_kernel_is_a_function_of_the_map_and_delta():
    """Equation 4: a^2 + w w' = (kappa + delta)/2 + (kappa - delta)/2 beta beta'/|beta|^2."""
    beta = np.array([0.3, -0.7, 0.2])
    for delta in DELTAS:
        a, w = start(beta, delta)
        kappa, unit = np.sqrt(delta ** 2 + 4 * beta @ beta), beta / np.linalg.norm(beta)
        np.testing.assert_allclose(a ** 2 * np.eye(3) + np.outer(w, w), (kappa + delta) / 2 * np.eye(3)
                                   + (kappa - delta) / 2 * np.outer(unit, unit), atol=1e-12)


@pytest.mark.parametrize("delta", [-2.0, -1.0, 0.0, 1.0, 4.0])
def test_implicit_bias_three_ways(delta):
    """The end of gradient flow, the notebook's offset along the null direction, and theorem 3.1."""
    x, y, beta0 = np.array([[0.5, 1.0]]), np.array([1.1]), np.array([0.4, 0.05])
    end = implicit_bias(x, y, beta0, delta)
    weights = flow(np.array([0.0, 120.0]), *start(beta0, delta), x, y)[-1]
    np.testing.assert_allclose(weights[0] * weights[1:], end, atol=1e-8)
    np.testing.assert_allclose(least_potential(x, y, beta0, delta), end, atol=1e-7)
    null, least, size = np.array([1.0, -0.5]) / np.sqrt(1.25), np.linalg.pinv(x) @ y, np.linalg.norm(beta0)
    k = np.sqrt(np.sqrt(size ** 2 + delta ** 2 / 4) - delta / 2) * (beta0 / size) @ null
    kappa = (k ** 2 + delta) / 2
    offset = k * np.sqrt(kappa + np.sqrt(kappa ** 2 + least @ least))
    np.testing.assert_allclose(end - least, offset * null, atol=1e-12)


def test_the_gradient_of_the_potential():
    beta, beta0 = np.array([0.3, -0.8, 0.5]), np.array([0.1, 0.4, -0.2])
    for delta in (-2.0, 0.0, 1.5):
        numeric = [(potential(beta + h, beta0, delta)[0] - potential(beta - h, beta0, delta)[0]) / 2e-6
                   for h in 1e-6 * np.eye(3)]
        np.testing.assert_allclose(potential(beta, beta0, delta)[1], numeric, atol=1e-8)


@pytest.mark.parametrize("delta", [-2.0, 0.0, 0.7])
def test_wide_networks_follow_their_map_alone(delta):
    target, beta0 = rng("test", 1).standard_normal((2, 3, 3))
    a0, w0 = wide_start(beta0, delta)
    np.testing.assert_allclose(w0.T @ a0, beta0, atol=1e-12)
    np.testing.assert_allclose(a0 @ a0.T - w0 @ w0.T, delta * np.eye(3), atol=1e-12)
    last, first = layers(beta0, delta)
    np.testing.assert_allclose(last, a0.T @ a0, atol=1e-12)
    np.testing.assert_allclose(first, w0.T @ w0, atol=1e-12)

    def move(_: float, state: np.ndarray) -> np.ndarray:
        a, w = state.reshape(2, 3, 3)
        pull = target - w.T @ a
        return np.stack([w @ pull, a @ pull.T]).ravel()

    times = np.linspace(0, 3, 7)
    states = solve_ivp(move, (0, 3), np.stack([a0, w0]).ravel(), "DOP853", times, rtol=1e-11, atol=1e-12).y.T
    maps = np.stack([w.T @ a for a, w in states.reshape(-1, 2, 3, 3)])
    np.testing.assert_allclose(wide_map(times, beta0, target, delta), maps, atol=1e-8)


def test_three_step_sizes_make_one_of_zero():
    np.testing.assert_allclose([np.dot(AT_ZERO, np.power(SIZES, n)) for n in range(3)], [1, 0, 0], atol=1e-12)


def test_a_pace_is_a_learning_rate_of_its_own():
    weight = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    value = scale_gradient(weight, torch.tensor(0.25))
    value.pow(2).sum().backward()
    assert value.tolist() == [2.0, 3.0] and weight.grad is not None and weight.grad.tolist() == [1.0, 1.5]


@pytest.mark.parametrize("delta", [-1.0, 0.0, 1.0])
def test_a_student_starts_at_zero_with_its_delta(delta):
    settings = Settings(inputs=6, hidden=8)
    a, w = Student(0.1, delta, 0).weights(settings)
    np.testing.assert_allclose(a ** 2 - (w ** 2).sum(1), delta, atol=1e-12)
    np.testing.assert_allclose(np.abs(a) * np.linalg.norm(w, axis=1), 0.01, atol=1e-12)
    x = rng("test", 2).standard_normal((9, 6))
    np.testing.assert_allclose(np.maximum(x @ w.T, 0) @ a, 0, atol=1e-12)


def test_the_relu_kernel_is_the_jacobians():
    draw = rng("test", 3)
    x, a, w = draw.standard_normal((7, 4)), draw.standard_normal(5), draw.standard_normal((5, 4))
    both = torch.autograd.functional.jacobian(
        lambda a, w: (torch.from_numpy(x) @ w.T).relu() @ a, (torch.from_numpy(a), torch.from_numpy(w)))
    jacobian = torch.cat([part.flatten(1) for part in both], 1).numpy()
    np.testing.assert_allclose(relu_kernel(x, a, w), jacobian @ jacobian.T, atol=1e-12)


# ---- rich_applied ----------------------------------------------------------------------------------------


SMALL = applied.Settings(images=0, symbols=4, synonyms=2, modulus=5, width=8, units=12, grok_alphas=(0.1, 1.0, 10.0))


def test_roughness_of_noise_and_of_smooth_filters():
    noise = rng("test", 4).standard_normal((20000, 3, 7, 7))
    assert applied.roughness(noise).mean() == pytest.approx(5.25 * (5 / 7) ** 2, rel=0.01)
    assert applied.roughness(np.ones((1, 3, 7, 7)))[0] == pytest.approx((5 / 7) ** 2)
    np.testing.assert_allclose(applied.roughness(3 * noise[:5]), applied.roughness(noise[:5]))


def test_a_grammar_is_unambiguous_and_every_number_is_a_sentence():
    rules = applied.grammar(SMALL, 0)
    for rule in rules:
        assert len({tuple(pair) for pair in rule.reshape(-1, 2)}) == SMALL.symbols * SMALL.synonyms
    count = applied.derivations(SMALL)
    text, classes = applied.sentences(rules, np.arange(count))
    assert count == 4 * 2 ** 7 and text.shape == (count, 8)
    assert len({tuple(row) for row in text}) == count and np.bincount(classes).tolist() == [count // 4] * 4
    back = text  # parse: every pair has one parent
    for rule in reversed(rules):
        parent = {tuple(pair): symbol for symbol, pairs in enumerate(rule) for pair in pairs}
        back = np.array([[parent[tuple(pair)] for pair in row.reshape(-1, 2)] for row in back])
    np.testing.assert_array_equal(back[:, 0], classes)


def test_the_transformer_is_one_layer_of_attention():
    """Pair by pair with torch's own attention, and the same at every alpha."""
    nets = applied.Transformers(SMALL, 1)
    outputs = nets.outputs()
    np.testing.assert_allclose(outputs[0].detach(), outputs[2].detach(), atol=1e-4)
    w = {name: value[0].detach() for name, value in nets.named_parameters()}
    norm = applied.normed
    for a, b in (0, 3), (4, 4):
        x = norm(torch.stack([w["numbers"][a] + w["places"][0], w["numbers"][b] + w["places"][1], w["places"][2]]))
        heads = [(x @ w[name]).unflatten(1, (2, -1)).transpose(0, 1) for name in ("query", "key", "value")]
        heard = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)[2]
        h = x[2] + heard @ w["out"]
        h = h + (norm(h) @ w["up"]).relu() @ w["down"]
        np.testing.assert_allclose(outputs[0, a, b].detach(), norm(h) @ w["read"], atol=1e-5)


def test_equal_speed_and_the_same_function_at_every_alpha():
    """A step of the rate given lowers each loss by as much, to first order, as at alpha = 1."""
    settings = applied.Settings(images=0, sizes=(64,), test_sentences=20)
    nets = applied.Mlps(settings, 1)
    losses, weights = nets(0) / nets.rate, list(nets.parameters())
    np.testing.assert_allclose(losses.detach(), losses[0].item(), rtol=1e-4)
    gradients = torch.autograd.grad(losses.sum(), weights)
    rate = 1e-4 * nets.rate[:, None, None]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= rate * gradient
        fall = (losses - nets(0) / nets.rate).numpy()
    np.testing.assert_allclose(fall, fall[1], rtol=0.05)


def test_how_many_are_needed_and_when_it_is_reached():
    assert applied.examples_needed((100, 400), np.array([0.5, 0.1]), 0.3) == pytest.approx(200)
    assert applied.examples_needed((100, 400), np.array([0.5, 0.4]), 0.3) == 400
    assert applied.examples_needed((100, 400), np.array([0.2, 0.1]), 0.3) == 100
    values = np.array([[0.0, 0.0], [0.9, 0.1], [1.0, 0.2]])
    assert applied.first_step_at(np.array([0, 5, 10]), values, 0.9).tolist() == [5, 10]
