"""Unimodal bias: a network of two modalities learns one of them first; the later they are fused, the longer alone.

Deep linear networks with modalities A and B that meet at layer L_f of L (Zhang, Latham, Saxe, ICML 2024, arXiv
2312.00935; settings from github.com/yedizhang/unimodal-bias). In two layers with late fusion B is learned
1 + (r^2 - 1)/(1 - rho^2) times later than A, r = sigma_A/sigma_B; meanwhile the weight of A also stands for B
(misattribution rho/r). Between w_A/w_B = 1/r^2 and 1/r the modality that contributes less is learned first. With few
data early stopping then leaves B out for good. Two-layer ReLU networks on symmetric data do the same at half the speed;
on XOR beside a Gaussian they learn both with late fusion, one after the other, and with early fusion only the Gaussian
if its variance is large.

The theory (theory/unimodal.py) is for vanishing starts; `half_times` (derived) also takes the size of the start into
account, and where the formula for depth or the turn to the Gaussian is not yet near its limit, there is no bar. The
networks are in networks/fusion.py. Linear networks see exact moments in place of samples. Time is the sum
of step sizes, which differ between the two halves of a run: short steps while the first modality is learned, longer
ones after (the paper's code takes equal steps).

[stand-in]: step sizes; smaller hidden layers for ReLU; the XOR task's Gaussian as 16 quantiles, and what is claimed of
it, derived here; two-modality MNIST: digits 0 to 7, shrunk to 14 x 14, 64 hidden units, no biases, Gaussian weights,
short training on small batches shared by all seeds. Leaves out the inverse-Wishart sweep, the CNN, fission networks,
and the speaker.

Shapes: S networks, 2 modalities, n points, D inputs of one modality, H hidden, K outputs, F readings, M times.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dixit.common import rng

from .networks.fusion import (
    DigitNetworks,
    Digits,
    FusionNetworks,
    Net,
    balanced,
    equivalent_points,
    gaussian,
    linear_data,
    split_modalities,
    symmetric_data,
    xor_data,
)
from .probe import Claim, bar_if, crossing, only_if, overlay, reached, simulate, skipped
from .settings.unimodal import TINY as TINY
from .settings.unimodal import Settings
from .settings.unimodal import check as check
from .theory.unimodal import (
    covariance,
    depth_time_ratio,
    half_times,
    limit_error,
    log_sizes,
    reduced,
    reduced_half_times,
    tilt_left,
    time_ratio,
    xor_rate,
)

# ---- simulation ------------------------------------------------------------------------------------------


def late_net(settings: Settings, kind: str, seed: int, case: tuple[float, float, float], relu: bool = False) -> Net:
    """Two layers, late fusion, y = w_A x_A + x_B. The first half of the steps takes it past the first modality."""
    ratio, rho, w = case
    inputs, hidden = (2, settings.relu_hidden) if relu else (1, settings.hidden)
    weights = gaussian([inputs, hidden, 1], [settings.init] * 2, kind, *map(str, case), seed)
    data = symmetric_data(ratio, rho, seed) if relu else linear_data(covariance(ratio, rho), np.array([w, 1.0]))
    times = np.sort(half_times(covariance(ratio, rho), np.array([w, 1.0]), log_sizes(weights, relu)))
    slowest = np.linalg.eigvals(covariance(ratio, rho) * [w, 1.0]).real.min()  # 2 x this is the last rate of decay
    first, last = 1.25 * times[0], max(1.3 * times[0], times[1] + 3.5 / slowest)
    return Net(kind, seed, 2, weights, **data, ends=((1 + relu) * first, (1 + relu) * last), case=case)


def late_nets(settings: Settings, seeds: int) -> list[Net]:
    """Linear: every ratio with every correlation, and the uncorrelated tasks around the strip."""
    cases = [("late", (r, rho, 1.0)) for r in settings.ratios for rho in settings.rhos]
    cases += [("strip", (r, 0.0, r ** -e)) for r in settings.ratios for e in settings.exponents]
    return [late_net(settings, kind, seed, case) for kind, case in cases for seed in range(seeds)]


def relu_nets(settings: Settings, seeds: int) -> list[Net]:
    """ReLU: late fusion of two scalars; XOR beside a Gaussian with late and with early fusion."""
    nets = [late_net(settings, "late", seed, (settings.relu_ratio, rho, 1.0), relu=True)
            for rho in settings.relu_rhos for seed in range(seeds)]
    for variance in settings.variances:
        slowest = min(variance / 2, xor_rate(np.pi / 4 * 3))
        end = 1.4 * np.log(1 / settings.init) / slowest
        for fusion in (1, 2):
            for seed in range(seeds):
                weights = gaussian([2, settings.relu_hidden, 1], [settings.init] * 2, "xor", str(variance), seed)
                nets.append(Net("xor", seed, fusion, weights, **xor_data(variance), ends=(end / 2, end),
                                case=(variance,)))
    return nets


def deep_nets(settings: Settings, seeds: int) -> list[Net]:
    """Linear, every L_f: one network balanced, one of random weights per seed with the same norms of layers."""
    case = settings.deep_ratio, settings.deep_rho, 1.0
    data, nets = linear_data(covariance(*case[:2]), np.ones(2)), []
    widths = [1, *[settings.deep_hidden] * (settings.depth - 1), 1]
    for fusion in range(1, settings.depth + 1):
        times = reduced_half_times(settings.deep_start, settings.depth, fusion, *case[:2])
        aligned = balanced(settings.deep_hidden, settings.depth, settings.deep_start, fusion, 0)
        nets.append(Net("balanced", 0, fusion, aligned, **data, ends=(1.25 * times[0], 1.4 * times[1] + 5), case=case))
        spread = [settings.deep_start * (1 if i < fusion else np.sqrt(2)) / np.sqrt(n * m)
                  for i, (n, m) in enumerate(zip(widths, widths[1:], strict=False))]
        nets += [Net("random", seed, fusion, gaussian(widths, spread, "deep", fusion, seed), **data,
                     ends=(settings.deep_time / 2, settings.deep_time), case=case) for seed in range(seeds)]
    return nets


def sample_task(settings: Settings) -> tuple[Float[np.ndarray, "D D"], Float[np.ndarray, "D"]]:
    """Covariance 3 in A and 1 in B, all weights 0.1."""
    d = settings.dimensions
    return np.diag(np.repeat([3.0, 1.0], d)), np.full(2 * d, 0.1)


def sample_nets(settings: Settings, seeds: int) -> list[Net]:
    """Two linear layers on few or many noisy samples, early and late fusion from the same data."""
    sigma, w = sample_task(settings)
    nets, end = [], settings.sample_lr * settings.sample_steps
    for count in settings.samples:
        for seed in range(seeds):
            draw = rng("unimodal", "samples", count, seed)
            x = draw.standard_normal((count, len(w))) * np.sqrt(np.diag(sigma))
            x, y = equivalent_points(x, x @ w + settings.noise * draw.standard_normal(count), len(w))
            for fusion in (1, 2):
                weights = gaussian([len(w) // 2, settings.hidden, 1], [settings.init] * 2, "samples", count, seed)
                nets.append(Net("samples", seed, fusion, weights, split_modalities(x), y,
                                split_modalities(np.eye(len(w))), np.eye(len(w)), (end / 2, end), (float(count),)))
    return nets


class Trajectories:
    """Readings, loss and final weights of one batch of networks."""

    def __init__(self, nets: list[Net], folder: Path, steps: int, every: int, relu: bool = False):
        self.nets, networks = nets, FusionNetworks(nets, steps, relu)
        record = simulate(networks, folder, steps, 1.0, every)
        knots = np.array([0, steps / 2, steps])
        self.times = np.stack([np.interp(record["step"], knots, [0, *net.ends]) for net in nets], 1)  # (M, S)
        self.read, self.loss = record["read"], record["loss"]  # (M, S, F), (M, S)
        self.final = [weight.detach().cpu().numpy() for weight in networks.weights]

    def of(self, kind: str, fusion: int | None = None, case: tuple[float, ...] | None = None) -> list[int]:
        """The networks of a kind, seed by seed."""
        return [i for i, net in enumerate(self.nets)
                if net.kind == kind and fusion in (None, net.fusion) and case in (None, net.case)]

    def half_times(self, i: int) -> Float[np.ndarray, "2"]:
        """The time at which the first modality reaches half of its plateau, and the slower one half of its weight; NaN
        for one that is not learned at the end."""
        sigma, w = self.nets[i].task
        levels, first = w / 2, int(np.argmax(w @ sigma))
        levels[first] = (w @ sigma)[first] / sigma[first, first] / 2
        return np.array([crossing(self.times[:, i], self.read[:, i, m], levels[m]) for m in (0, 1)])


# ---- claims ----------------------------------------------------------------------------------------------


def late_claims(settings: Settings, run: Trajectories) -> list[Claim]:
    """Two linear layers, late fusion: time ratio, misattribution, superficial preference."""
    cases = [(r, rho, 1.0) for r in settings.ratios for rho in settings.rhos]
    index = np.array([run.of("late", case=case) for case in cases])  # (cases, seeds)
    times = np.array([[run.half_times(i) for i in row] for row in index.tolist()])
    ratios = times[..., 1] / times[..., 0]
    leading = np.array([time_ratio(r, rho) for r, rho, _ in cases])
    known = np.array([[run.nets[i].half_times() for i in row] for row in index.tolist()])
    middle = np.array([[np.interp(t.mean(), run.times[:, i], run.read[:, i, 0]) for i, t in zip(row, pair, strict=True)]
                       for row, pair in zip(index, times, strict=True)])
    final = run.read[-1, index, 0]
    theory = np.array([rho / r for r, rho, _ in cases])[:, None]
    limits = np.array([limit_error(r, rho, settings.hidden, settings.init) for r, rho, _ in cases])
    near = limits <= 0.6 * early(settings)
    late = lag(settings, settings.steps)
    name = "late fusion: t_B / t_A over theory, each r and rho whose start is small enough, mean over seeds"
    claims = [
        Claim(name, 1.0, (ratios.mean(1) / leading)[near], late + early(settings), source="1 + (r^2 - 1)/(1 - rho^2)")
        if near.any() else skipped(name, "needs a smaller init"),
        Claim("late fusion: the same, each seed, theory with its start", 1.0, ratios * known[..., 0] / known[..., 1],
              late + 0.025, source="half_times, derived; tolerance: finite steps, and 0.025"),
        Claim("late fusion: misattribution, each r, rho and seed", theory, (middle - final) / final, 0.01,
              source="rho / r; our tolerance")]
    if not near.all():
        claims.append(Claim("late fusion: t_B / t_A off theory by, other r and rho, mean over seeds", 0.0,
                            np.abs(ratios.mean(1) / leading - 1)[~near], kind="report",
                            source="theory wants a still smaller start here: see the row with its start"))
    return claims + (strip_claims(settings, run) if settings.exponents else [
        skipped("preference: learned first is A (1) or B (0)", "needs exponents")])


def lag(settings: Settings, steps: int) -> float:
    """How much later half is learned because steps are finite, over the time itself, of networks of `late_net`.

    Half of the steps take 1.25 times the first half-time, and weights grow by ln(1/init): see theory/steps.py.
    """
    return float(1.25 / steps * np.log(1 / settings.init))


def early(settings: Settings) -> float:
    """Our tolerance for theory to leading order in 1/ln(init)."""
    return float(0.025 * max(1.0, np.log(1e-9) / np.log(settings.init)))


def strip_claims(settings: Settings, run: Trajectories) -> list[Claim]:
    """Uncorrelated tasks around the strip: which modality is learned first."""
    strip = np.array([[run.of("strip", case=(r, 0.0, r ** -e)) for e in settings.exponents] for r in settings.ratios])
    flat, inside = strip.reshape(-1), np.array([1 < e < 2 for e in settings.exponents])
    times = np.array([run.half_times(i) for i in flat.tolist()])
    known = np.array([run.nets[i].half_times() for i in flat])
    q, r = (np.array([run.nets[i].case[k] for i in flat]) for k in (2, 0))
    plateau = np.array([np.interp(t.mean(), run.times[:, i], run.loss[:, i]) for i, t in zip(flat, times, strict=True)])
    shares = np.stack([q * r, np.ones(len(q))], 1) ** 2  # of the loss, of A and B: w^2 sigma^2
    rates = np.stack([q * r ** 2, np.ones(len(q))], 1)
    missing = 1 / (1 + np.exp(2 * rates * (known.mean(1, keepdims=True) - known)))  # of each weight, between the two
    others = np.where(rates[:, 0] > 1, shares[:, 0], 1)  # the loss with only the second modality learned
    claims = [
        Claim("preference: t_B / t_A over theory with its start, each task and seed", 1.0,
              times[:, 1] / times[:, 0] * known[:, 0] / known[:, 1], lag(settings, settings.steps) + 0.025,
              source="r^2 w_A/w_B and the start"),
        Claim("preference: learned first is A (1) or B (0)", np.float64(q * r ** 2 > 1),
              np.float64(times[:, 0] < times[:, 1]), 0.01, source="A iff w_A/w_B > 1/r^2"),
        Claim("preference: loss between the two half-times, over the first loss", (missing ** 2 * shares).sum(1)
              / shares.sum(1), plateau / run.loss[0, flat], 0.01, source="uncorrelated: each modality is logistic")]
    if inside.any():
        rows = strip[:, inside].reshape(-1)
        kept = np.isin(flat, rows)
        claims.append(Claim("preference, 1/r^2 < w_A/w_B < 1/r: that loss over what the other modality alone would "
                            "leave", 1.0, (2 * plateau / others)[kept], kind="at_least",
                            source="the less useful modality is first"))
    return claims


def depth_ratios(run: Trajectories, kind: str, depth: int) -> Float[np.ndarray, "L seeds"]:
    """t_B / t_A for every L_f."""
    times = np.array([[run.half_times(i) for i in run.of(kind, fusion)] for fusion in range(1, depth + 1)])
    return times[..., 1] / times[..., 0]


def depth_claims(settings: Settings, run: Trajectories) -> list[Claim]:
    """Depth and fusion depth: the reduced equations, the formula, and random weights."""
    depth, fusions = settings.depth, range(1, settings.depth + 1)
    formula = np.array([depth_time_ratio(settings.deep_start, depth, f, settings.deep_ratio, settings.deep_rho)
                        for f in fusions])[:, None]
    half = np.array([reduced_half_times(settings.deep_start, depth, f, settings.deep_ratio, settings.deep_rho)
                     for f in fusions])
    times = np.array([run.half_times(run.of("balanced", f)[0]) for f in fusions])
    even, random = depth_ratios(run, "balanced", depth), depth_ratios(run, "random", depth)
    means, off = random.mean(1), float(np.abs(half[:, 1:] / half[:, :1] / formula - 1).max())  # of the formula
    lacking = f"random weights have not learned B by deep_time {settings.deep_time:g}"
    return [
        Claim(f"depth {depth}, balanced start: t_A and t_B over those of the reduced equations, every L_f", 1.0,
              times / half, 0.007 + 1.25 / settings.deep_steps * (depth - 1) * np.log(1 / settings.deep_start),
              source="u_m' = u_m^(Lf-1) (u_A^2 + u_B^2)^((L-Lf)/2) e_m; tolerance: finite steps"),
        *bar_if(off <= 0.1, "the formula is of leading order in u0: choose a smaller deep_start", [
            Claim(f"depth {depth}, balanced start, u0 = {settings.deep_start:g}: t_B / t_A off the formula by",
                  off + 0.015, np.abs(even / formula - 1), kind="at_most",
                  source="formula of leading order in u0; the reduced equations are off by as much, less 0.015")]),
        *only_if(reached(means), lacking, [
            Claim(f"depth {depth}, random weights: t_B / t_A over that of L_f - 1, mean over seeds", 1.0,
                  means[1:] / means[:-1], kind="at_least", source="grows with L_f"),
            Claim(f"depth {depth}, random weights: t_B / t_A off the formula by", 0.0,
                  np.abs(means / formula[:, 0] - 1), kind="report",
                  source="layers start with less than u0 along the path that grows")])]


def relu_claims(settings: Settings, run: Trajectories) -> list[Claim]:
    """Two ReLU layers: the same ratios at half the speed; XOR beside a Gaussian."""
    index = np.array([run.of("late", case=(settings.relu_ratio, rho, 1.0)) for rho in settings.relu_rhos])
    times = np.array([[run.half_times(i) for i in row] for row in index.tolist()])
    known = np.array([[run.nets[i].half_times(relu=True) for i in row] for row in index.tolist()])
    leading = np.array([time_ratio(settings.relu_ratio, rho) for rho in settings.relu_rhos])
    products = np.einsum("...mdh,...mhk->...md", run.final[0][index], run.final[1][index])[..., 0]
    ratio, hidden = settings.relu_ratio, settings.relu_hidden
    near = np.array([limit_error(ratio, rho, hidden, settings.init) for rho in settings.relu_rhos]) <= 0.6 * early(
        settings)
    name = "ReLU: t_B / t_A over theory, each rho, mean over seeds"
    late = lag(settings, settings.relu_steps) + 0.025
    claims = [
        Claim(name, 1.0, ((times[..., 1] / times[..., 0]).mean(1) / leading)[near], late + early(settings) - 0.025,
              source="as linear")
        if near.any() else skipped(name, "needs a smaller init"),
        Claim("ReLU: t_A over theory with its start, each seed", 1.0, times[..., 0] / known[..., 0], late,
              source="twice the linear half-time"),
        Claim("ReLU: t_B over theory with its start, each seed", 1.0, times[..., 1] / known[..., 1], late,
              source="twice the linear half-time"),
        Claim("ReLU: W2 W1 of each modality over its slope, at the end", 2.0, products / run.read[-1, index], 0.02,
              source="each unit is on for half of the inputs")]
    split, fused = xor_measures(settings, run, 2), xor_measures(settings, run, 1)
    variances = np.array(settings.variances)
    scaled = split["ratio"] / (np.sqrt(2) * variances[:, None])
    clear = np.abs(np.log(np.sqrt(2) * variances)) > 0.1  # rates more than 10 % apart
    above = tilt_left(variances, settings.init) < 5e-5
    name = "XOR + Gaussian, late fusion: learned first is the Gaussian (1) or XOR (0), rates 10 % apart"
    claims += [
        Claim("XOR + Gaussian, late fusion: t_XOR / t_Gaussian over sqrt(2) variance, less 1", 0.05,
              np.abs(scaled - 1), kind="at_most", source="derived; our bar"),
        Claim(name, np.float64(variances[clear, None] > np.sqrt(0.5)), np.float64(split["ratio"][clear] > 1), 0.01,
              source="Gaussian iff variance > 1/sqrt(2)")
        if clear.any() else skipped(name, "needs a variance that is 10 % from 1/sqrt(2)"),
        Claim("XOR + Gaussian, late fusion: XOR learned at the end, every variance", 0.95, split["xor"],
              kind="at_least", source="our bar")]
    if above.any():
        claims.append(Claim("XOR + Gaussian, early fusion, large variances: XOR learned at the end", 0.1,
                            fused["xor"][above], kind="at_most",
                            source="all units turn to the Gaussian in time (derived); our bar"))
    if not above.all():
        claims += [
            Claim("XOR + Gaussian, early fusion, other variances: XOR learned at the end, least", 0.0,
                  fused["xor"][~above].min(), kind="report",
                  source="units turn to both below 0.86, and slowly to the Gaussian just above (derived), no bar"),
            *only_if(reached(fused["ratio"][~above]), "not learned at the end", [
                Claim("XOR + Gaussian, early fusion, other variances: t_XOR / t_Gaussian, least", 0.0,
                      fused["ratio"][~above].min(), kind="report", source="no prediction")])]
    return claims


def xor_measures(settings: Settings, run: Trajectories, fusion: int) -> dict[str, Float[np.ndarray, "V seeds"]]:
    """t_XOR / t_Gaussian (half of the target), and the share of XOR in the answers at the end."""
    index = np.array([run.of("xor", fusion, (v,)) for v in settings.variances])
    times = np.array([[[crossing(run.times[:, i], run.read[:, i, m], 0.5) for m in (0, 1)] for i in row]
                      for row in index.tolist()])
    return {"ratio": times[..., 0] / times[..., 1], "xor": run.read[-1, index, 0]}


def errors(settings: Settings, run: Trajectories) -> Float[np.ndarray, "M S"]:
    """Generalisation error of linear networks without the noise, over that of the constant output 0."""
    sigma, w = sample_task(settings)
    wrong = run.read - w
    return np.einsum("mid,de,mie->mi", wrong, sigma, wrong) / (w @ sigma @ w)


def sample_claims(settings: Settings, run: Trajectories) -> list[Claim]:
    """With few data early stopping leaves B out; with many it has no cost."""
    error = errors(settings, run)
    least, stop, half = error.min(0), error.argmin(0), settings.dimensions
    size = np.linalg.norm(run.read[..., half:], axis=2)
    learned = settings.sample_lr * settings.sample_steps >= -2.1 * float(np.log(settings.init))
    claims = []
    for count in settings.samples:
        early, late = (run.of("samples", fusion, (float(count),)) for fusion in (1, 2))
        few, share, rows = count < 2 * half, count / (2 * half), []
        name = f"{count} samples of {2 * half} inputs"
        rows.append(Claim(f"{name}: least error of late over that of early fusion", 1.1 if few else 1.05,
                            least[late] / least[early], kind="at_least" if few else "at_most", source="our bar"))
        at_stop = size[stop[late], late] / size[-1, late]
        rows.append(Claim(f"{name}, late fusion: |W_B| where the error is least, over the last", 0.05 if few else 0.5,
                          at_stop, kind="at_most" if few else "at_least", source="our bar"))
        usual = learned and (0.5 <= share <= 0.75 or share >= 5)
        claims += bar_if(usual, "the bars are for half to three quarters as many samples as inputs, and five times as "
                                "many; and for sample_lr sample_steps of 2.1 ln(1/init)", rows)
    return claims


def digit_claims(settings: Settings, run: Digits) -> list[Claim]:
    """Two views of MNIST digits: B is learned later than A, the more so the later they are fused."""
    lag, gap = run.lag(), run.gap()
    slow = f"B alone is not learned in {settings.digit_steps} steps"
    claims = [
        Claim("MNIST: step of accuracy 1/2 with B alone over that with A alone", 1.0, lag, kind="at_least",
              source="B is clear in 20 % of the images")]
    if len(lag) < 2:
        return [*only_if(reached(lag), slow, claims), skipped("MNIST: lag by L_f", "needs two of digit_fusions")]
    return only_if(reached(lag), slow, [
        *claims,
        Claim("MNIST: that lag, latest fusion over earliest, mean over seeds", 1.0, lag[-1].mean() / lag[0].mean(),
              kind="at_least", source="grows with L_f"),
        Claim("MNIST: that lag, least over that of the fusion before, mean over seeds", 0.0,
              (lag.mean(1)[1:] / lag.mean(1)[:-1]).min(), kind="report", source="below 1: not in order"),
        Claim("MNIST: accuracy with A alone less B alone, mean over training: growth with each L_f, mean over seeds",
              0.0, np.diff(gap.mean(1)), kind="at_least", source="grows with L_f")])


# ---- figure ----------------------------------------------------------------------------------------------

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def draw_late(axes: list[Axes], settings: Settings, run: Trajectories, relu: Trajectories) -> None:
    """Weights over time, the time ratio, misattribution, and the strip."""
    curve, ratio_axis, wrong, strip = axes
    case = settings.ratios[0], max((rho for rho in settings.rhos if abs(rho) < 0.9), default=settings.rhos[-1]), 1.0
    i = run.of("late", case=case)[0]
    theory = reduced(run.times[:, i], np.exp(log_sizes(run.nets[i].weights) / 2), 2, 2, *run.nets[i].task)
    for m, name in enumerate("AB"):
        overlay(curve, run.times[:, i], run.read[:, i, m], theory[:, m], f"W_{name}", COLOURS[m])
    curve.set(title=f"late fusion, r = {case[0]:g}, rho = {case[1]:g}", xlabel="time")
    dense = np.linspace(-0.92, 0.92, 100)
    for r, colour in zip(settings.ratios, COLOURS, strict=False):
        ratio_axis.plot(dense, [time_ratio(r, rho) for rho in dense], "k--", linewidth=1.0)
        wrong.plot(dense, dense / r, "k--", linewidth=1.0)
        for number, rho in enumerate(settings.rhos):
            for i in run.of("late", case=(r, rho, 1.0)):
                times = run.half_times(i)
                label = f"r = {r:g}" if number == 0 and run.nets[i].seed == 0 else None
                ratio_axis.plot(rho, times[1] / times[0], "o", alpha=0.5, color=colour, label=label)
                middle = np.interp(times.mean(), run.times[:, i], run.read[:, i, 0])
                wrong.plot(rho, middle / run.read[-1, i, 0] - 1, "o", alpha=0.5, color=colour, label=label)
    for i in relu.of("late"):
        times = relu.half_times(i)
        ratio_axis.plot(relu.nets[i].case[1], times[1] / times[0], "kx", label="ReLU" if i == 0 else None)
    ratio_axis.set(title="late fusion: t_B / t_A", xlabel="rho", yscale="log")
    wrong.set(title="misattribution to A before B is learned", xlabel="rho")
    dense = np.linspace(1.2, 1.1 * max(settings.ratios), 50)
    strip.fill_between(dense, dense ** -2, dense ** -1.0, color="0.9")
    strip.plot(dense, dense ** -2, "k--", dense, dense ** -1, "k:", linewidth=1.0)
    for i in run.of("strip"):
        r, _, q = run.nets[i].case
        times = run.half_times(i)
        strip.plot(r, q, "o", color=COLOURS[0] if times[0] < times[1] else COLOURS[1])
    strip.plot([], [], "o", color=COLOURS[0], label="A learned first")
    strip.plot([], [], "o", color=COLOURS[1], label="B learned first")
    strip.set(title="grey: A first, though B helps more", xlabel="r", ylabel="w_A / w_B", yscale="log")


def draw_depth(axes: list[Axes], settings: Settings, run: Trajectories) -> None:
    """Balanced networks over time, and the time ratio against L_f."""
    curve, ratio_axis = axes
    depth, fusions = settings.depth, np.arange(1, settings.depth + 1)
    sigma, start = covariance(settings.deep_ratio, settings.deep_rho), settings.deep_start
    for fusion, colour in zip(fusions, COLOURS, strict=False):
        i = run.of("balanced", int(fusion))[0]
        theory = reduced(run.times[:, i], np.full(2, start), depth, int(fusion), sigma, np.ones(2))
        overlay(curve, run.times[:, i], run.read[:, i, 1], theory[:, 1], f"W_B, L_f = {fusion}", colour)
    curve.set(title=f"depth {depth}, balanced; dashed: reduced equations", xlabel="time", xscale="log", xlim=(1, None))
    half = np.array([reduced_half_times(start, depth, int(f), settings.deep_ratio, settings.deep_rho) for f in fusions])
    formula = [depth_time_ratio(start, depth, int(f), settings.deep_ratio, settings.deep_rho) for f in fusions]
    ratio_axis.plot(fusions, formula, "k--", linewidth=1.0, label="formula")
    ratio_axis.plot(fusions, half[:, 1] / half[:, 0], "k:", linewidth=1.0, label="reduced equations")
    ratio_axis.plot(fusions, depth_ratios(run, "balanced", depth)[:, 0], "o", alpha=0.6, label="balanced")
    for seed, values in enumerate(depth_ratios(run, "random", depth).T):
        ratio_axis.plot(fusions, values, "x", color="tab:red", label="random weights" if seed == 0 else None)
    ratio_axis.set(title=f"depth {depth}: t_B / t_A", xlabel="fusion layer L_f", yscale="log", xticks=fusions)


def draw_others(axes: list[Axes], settings: Settings, relu: Trajectories, samples: Trajectories,
                digits: Digits | None) -> None:
    """Few and many data, XOR beside a Gaussian, MNIST."""
    few, xor, mnist = axes
    error = errors(settings, samples)
    for count, colour in zip(settings.samples, COLOURS, strict=False):
        for fusion, style in (1, "-"), (2, "--"):
            i = samples.of("samples", fusion, (float(count),))[0]
            few.plot(samples.times[:, i], error[:, i], style, color=colour,
                     label=f"{count} samples, {'early' if fusion == 1 else 'late'} fusion")
    few.set(title="generalisation error, seed 0", xlabel="time", yscale="log", ylim=(None, 3))
    dense = np.linspace(min(settings.variances), max(settings.variances), 50)
    xor.plot(dense, np.sqrt(2) * dense, "k--", linewidth=1.0, label="sqrt(2) variance")
    late, early = xor_measures(settings, relu, 2), xor_measures(settings, relu, 1)
    for name, values, mark, colour in (("late: t_XOR / t_Gaussian", late["ratio"], "o", COLOURS[0]),
                                       ("early: t_XOR / t_Gaussian", early["ratio"], "o", COLOURS[1]),
                                       ("late: XOR learned", late["xor"], "+", COLOURS[0]),
                                       ("early: XOR learned", early["xor"], "+", COLOURS[1])):
        for seed, column in enumerate(values.T):
            xor.plot(settings.variances, column, mark, alpha=0.6, color=colour, label=name if seed == 0 else None)
    xor.set(title="ReLU, XOR + Gaussian", xlabel="variance of the Gaussian")
    if digits is None:
        mnist.set(title="MNIST not run")
        return
    for number, (fusion, colour) in enumerate(zip(settings.digit_fusions, COLOURS, strict=False)):
        for m, style in (0, "-"), (1, "--"):
            mnist.plot(digits.steps, digits.alone[:, number, :, m].mean(1), style, color=colour,
                       label=f"{'AB'[m]} alone, L_f = {fusion}")
    mnist.set(title="MNIST in two views: accuracy, mean over seeds", xlabel="step")


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Claim], Figure]:
    """The probe: two linear layers, depth, ReLU, few data, digits."""
    late = Trajectories(late_nets(settings, seeds), folder / "late", settings.steps, settings.every)
    deep = Trajectories(deep_nets(settings, seeds), folder / "deep", settings.deep_steps, settings.every)
    relu = Trajectories(relu_nets(settings, seeds), folder / "relu", settings.relu_steps, settings.every, relu=True)
    samples = Trajectories(sample_nets(settings, seeds), folder / "samples", settings.sample_steps, 4)
    digits = None
    if settings.digit_fusions:
        networks = DigitNetworks(settings.digit_fusions, seeds, settings.per_class, settings.digit_hidden,
                                 settings.digit_batch)
        digits = Digits(networks, folder / "digits", settings.digit_steps, settings.digit_lr, settings.digit_every)
    claims = late_claims(settings, late) + depth_claims(settings, deep) + relu_claims(settings, relu)
    claims += sample_claims(settings, samples)
    if digits:
        time = settings.digit_steps * settings.digit_lr
        claims += bar_if(time >= 100, f"the bars are for 100 units of time, and this training ends at {time:g}",
                         digit_claims(settings, digits))
    figure = Figure(figsize=(15, 13), layout="constrained")
    axes = list(figure.subplots(3, 3).flat)
    draw_late(axes[:4], settings, late, relu)
    draw_depth(axes[4:6], settings, deep)
    draw_others(axes[6:], settings, relu, samples, digits)
    for axis in axes:
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7)
    return claims, figure
