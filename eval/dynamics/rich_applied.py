"""Get rich quick, applied: filters, sample complexity, and the time to grok, against the imbalance of layers.

Networks that are one function at the start, with the first layer divided by alpha and the last one multiplied by it:
alpha > 1 is upstream (the first layer learns faster), alpha < 1 downstream. In Kunin et al. 2024, figure 6, upstream
networks have smoother filters (CNN), need fewer examples of hierarchical grammars, and grok modular arithmetic sooner
(transformer). There is no closed form here; the theory of the imbalance is theory/rich.py.

Everything is much smaller than in the paper and [stand-in]. For its ResNet with kernels of 15 pixels, one convolution
with kernels of 7 and a readout, on 2,000 photos. For its grammar of 131,072 sentences, one of 6 * 3^7 = 13,122. For its
transformer on the modular arithmetic of Power et al., 30,000 steps and 99 % of held-out pairs, one layer of width 32 on
addition mod 31, 80 % of the pairs, 1,600 steps and 90 %; its embeddings are normalised, so that they alone are divided
by alpha. Memorising and generalising come close together there, so the time to generalise is compared. SGD has no
momentum, decay or schedule; the rates of CNN and MLP are such that every loss falls equally fast at the start. That
choice matters: at rates divided by (alpha^2 + 2 + alpha^-2)/4 the grammar's upstream network was still learning at the
last step, better than downstream and worse than alpha = 1 (tried on seed 0). Rates, sizes and scales were chosen on
seed 0.

For CNN and grammar the paper's sign, between the outermost alphas, has the bar of two standard errors over seeds; the
transformer's is reported without a bar: at three seeds it was 1.99 of them. Other figures have no bar.
rich_applied_long.yaml is larger. Leaves out the LeNet on MNIST and the sweep over overall scale.

Shapes: S networks, B examples, C channels or classes, T symbols of a sentence, V their alphabet, p numbers, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.common import rng
from dixit.config import DataConfig
from dixit.data.images import load, pixels

from .probe import Claim, Networks, bar_if, simulate, skipped
from .settings.rich_applied import TINY as TINY
from .settings.rich_applied import Settings, derivations
from .settings.rich_applied import check as check

# ---- setting ---------------------------------------------------------------------------------------------


def equal_speed(networks: Networks, alphas: tuple[float, ...]) -> Float[Tensor, "S"]:
    """Learning rates at which every loss initially falls as fast as that of the same network at alpha = 1.

    Networks are sorted by alpha; gradient flow lowers a loss by its squared gradient.
    """
    gradients = torch.autograd.grad(networks(0).sum(), list(networks.parameters()))
    speed = torch.stack([gradient.pow(2).flatten(1).sum(1) for gradient in gradients]).sum(0)
    by_alpha = speed.unflatten(0, (len(alphas), -1))
    return (by_alpha[alphas.index(1.0)] / by_alpha).flatten()


# ---- filters of a CNN ------------------------------------------------------------------------------------


def photos(settings: Settings, split: str, count: int) -> tuple[Float[Tensor, "B 3 32 32"], Int[np.ndarray, "B"]]:
    """CIFAR-10 with mean 0 and variance 1, and classes."""
    rows = load(DataConfig(name="cifar10", image_size=32, train=count, test=count), split, split == "train")
    images = pixels(rows).float()
    return (images - images.mean()) / images.std(), np.unique(rows["concept"], return_inverse=True)[1]


STENCIL = np.array([[-0.25, -0.5, -0.25], [-0.5, 2.0, -0.5], [-0.25, -0.5, -0.25]])


def roughness(filters: Float[np.ndarray, "*S 3 k k"]) -> Float[np.ndarray, "*S"]:
    """|w * STENCIL|^2 / |w|^2 where the stencil fits: 21/4 (1 - 2/k)^2 for white noise, less if smooth.

    The stencil is the paper's; it sums to -1 and not to 0, so a constant filter has (1 - 2/k)^2.
    """
    windows = np.lib.stride_tricks.sliding_window_view(filters, (3, 3), (-2, -1))
    curved = np.einsum("...xyij,ij->...xy", windows, STENCIL)
    return (curved ** 2).sum((-3, -2, -1)) / (filters ** 2).sum((-3, -2, -1))


class Cnns(Networks):
    """Convolution (stride 2), ReLU, mean over 4 x 4, readout; cross-entropy, random batches, no biases; float32."""

    alpha: Tensor
    rate: Tensor

    def __init__(self, settings: Settings, seeds: int):
        super().__init__()
        self.settings = settings
        self.names = [(alpha, seed) for alpha in settings.alphas for seed in range(seeds)]
        self.x, labels = photos(settings, "train", settings.images)
        self.test, self.truth = photos(settings, "test", settings.test_images)
        self.y, c, k = torch.from_numpy(labels), settings.channels, settings.kernel
        pooled = ((32 - k) // 2 + 1) // 4
        first = [rng("rich", "cnn", seed).standard_normal((c, 3, k, k)) / alpha for alpha, seed in self.names]
        last = [rng("rich", "readout", seed).standard_normal((c * pooled ** 2, 10)) * alpha
                for alpha, seed in self.names]
        self.first = nn.Parameter(torch.from_numpy(np.stack(first)).float() * (2 / (3 * k * k)) ** 0.5)
        self.last = nn.Parameter(torch.from_numpy(np.stack(last)).float() / (c * pooled ** 2) ** 0.5)
        self.register_buffer("rate", torch.ones(len(self.names)))
        self.rate.copy_(equal_speed(self, settings.alphas))

    def outputs(self, x: Float[Tensor, "B 3 32 32"]) -> Float[Tensor, "S B 10"]:
        h = F.conv2d(x.to(self.first.device), self.first.flatten(0, 1), stride=2).relu()  # all see one image
        h = F.avg_pool2d(h, 4).unflatten(1, (len(self.first), -1)).flatten(2).transpose(0, 1)
        return h @ self.last

    def forward(self, step: int) -> Float[Tensor, "S"]:
        rows = rng("rich", "images", step).choice(len(self.x), self.settings.image_batch, replace=False)
        y = self.y[rows].to(self.first.device).expand(len(self.first), -1)
        return self.rate * F.cross_entropy(self.outputs(self.x[rows]).mT, y, reduction="none").mean(1)

    def measure(self) -> dict[str, Tensor]:
        outputs = self.outputs(self.test)
        right = (outputs.argmax(2).cpu() == torch.from_numpy(self.truth)).float().mean(1)
        sizes = self.last.unflatten(1, (self.settings.channels, -1)).pow(2).sum((2, 3))
        return {"first": self.first, "right": right, "outputs": outputs[:, :20],
                "delta": sizes - self.first.pow(2).sum((2, 3, 4)), "sum": sizes + self.first.pow(2).sum((2, 3, 4))}


# ---- sample complexity of a grammar ----------------------------------------------------------------------


def grammar(settings: Settings, seed: int) -> list[Int[np.ndarray, "V m 2"]]:
    """A random grammar: at every level each symbol has m pairs of symbols of the next one, shared with no other."""
    v, m, rules = settings.symbols, settings.synonyms, []
    for level in range(settings.levels):
        pairs = rng("rich", "grammar", seed, level).permutation(v * v)[:v * m]
        rules.append(np.stack([pairs // v, pairs % v], 1).reshape(v, m, 2))
    return rules


def sentences(rules: list[Int[np.ndarray, "V m 2"]], index: Int[np.ndarray, "B"],
              ) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]:
    """The sentences with these numbers, and their classes: digits choose the class, then the synonym at every node."""
    v, m, _ = rules[0].shape
    classes, index = index % v, index // v
    text = classes[:, None]
    for rule in rules:
        digits = m ** np.arange(text.shape[1])
        text, index = (rule[text, index[:, None] // digits % m].reshape(len(index), -1),
                       index // m ** text.shape[1])
    return text, classes


class Mlps(Networks):
    """Three hidden layers, ReLU, no biases; cross-entropy, random batches of the first P sentences; float32."""

    x: Tensor
    y: Tensor
    test: Tensor
    truth: Tensor
    size: Tensor
    rate: Tensor

    def __init__(self, settings: Settings, seeds: int):
        super().__init__()
        self.settings = settings
        self.names = [(alpha, size, seed) for alpha in settings.alphas for size in settings.sizes
                      for seed in range(seeds)]
        max_count, tests = max(settings.sizes), settings.test_sentences
        kept = []
        for seed in range(seeds):
            order = rng("rich", "sentences", seed).permutation(derivations(settings))[:max_count + tests]
            text, classes = sentences(grammar(settings, seed), order)
            kept.append((np.eye(settings.symbols)[text].reshape(max_count + tests, -1), classes))
        tokens = 2 ** settings.levels
        widths = [tokens * settings.symbols, *[settings.hidden] * 3, settings.symbols]
        scales = [(2 / tokens) ** 0.5, *[(2 / settings.hidden) ** 0.5] * 2, settings.hidden ** -0.5]
        self.weights = nn.ParameterList()
        for layer, (shape, scale) in enumerate(zip(zip(widths, widths[1:], strict=False), scales, strict=True)):
            drawn = {seed: rng("rich", "mlp", layer, seed).standard_normal(shape) for seed in range(seeds)}
            power = {0: -1, 3: 1}.get(layer, 0)
            stack = np.stack([drawn[seed] * alpha ** power for alpha, _, seed in self.names])
            self.weights.append(torch.from_numpy(stack * scale).float())
        seed_of = [seed for *_, seed in self.names]
        for name, values in (("x", [kept[seed][0][:max_count] for seed in seed_of]),
                             ("test", [kept[seed][0][max_count:] for seed in seed_of]), ("rate", [1.0] * len(seed_of))):
            self.register_buffer(name, torch.from_numpy(np.stack(values)).float())
        for name, numbers in (("y", [kept[seed][1][:max_count] for seed in seed_of]),
                              ("truth", [kept[seed][1][max_count:] for seed in seed_of]),
                              ("size", [size for _, size, _ in self.names])):
            self.register_buffer(name, torch.from_numpy(np.stack(numbers)))
        self.rate.copy_(equal_speed(self, settings.alphas))

    def outputs(self, x: Float[Tensor, "S B I"]) -> Float[Tensor, "S B C"]:
        for i, weight in enumerate(self.weights):
            x = (x.relu() if i else x) @ weight
        return x

    def forward(self, step: int) -> Float[Tensor, "S"]:
        share = torch.from_numpy(rng("rich", "batch", step).random(self.settings.batch)).to(self.x.device)
        rows = (share * self.size[:, None]).long()  # of one step, the same for all alphas
        each = torch.arange(len(rows), device=rows.device)[:, None]
        losses = F.cross_entropy(self.outputs(self.x[each, rows]).mT, self.y[each, rows], reduction="none")
        return self.rate * losses.mean(1)

    def measure(self) -> dict[str, Tensor]:
        outputs, trained = self.outputs(self.test), self.outputs(self.x)
        known = torch.arange(self.x.shape[1], device=self.x.device) < self.size[:, None]
        wrong = ((trained.argmax(2) != self.y) & known).sum(1) / self.size
        return {"outputs": outputs[:, :20], "test": (outputs.argmax(2) != self.truth).float().mean(1), "train": wrong}


# ---- the time to grok modular addition -------------------------------------------------------------------


def normed(x: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-12).rsqrt()


class Transformers(Networks):
    """One layer, read at the third position of "a b =": attention, ReLU MLP, root-mean-square norms without gains.

    Every pair (a, b) is computed at once from tables of one row per number and place. All embeddings are normalised
    before use, so the answers do not depend on alpha at the start. Full batch, cross-entropy, no decay; float32.
    """

    trained: Tensor
    numbers: Tensor
    places: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    up: Tensor
    down: Tensor
    read: Tensor

    def __init__(self, settings: Settings, seeds: int):
        super().__init__()
        self.settings = settings
        self.names = [(alpha, seed) for alpha in settings.grok_alphas for seed in range(seeds)]
        p, d, units = settings.modulus, settings.width, settings.units
        shapes = {"numbers": (p, d), "places": (3, d), "query": (d, d), "key": (d, d), "value": (d, d), "out": (d, d),
                  "up": (d, units), "down": (units, d), "read": (d, p)}
        for name, shape in shapes.items():
            embeds, scale = name in ("numbers", "places"), settings.gain * (1 + (name == "down")) ** 0.5
            drawn = [rng("rich", "grok", name, seed).standard_normal(shape) * (1 / alpha if embeds else scale
                     / shape[0] ** 0.5) for alpha, seed in self.names]
            self.register_parameter(name, nn.Parameter(torch.from_numpy(np.stack(drawn)).float()))
        pairs = np.array([rng("rich", "pairs", seed).random((p, p)) < settings.share for _, seed in self.names])
        self.register_buffer("trained", torch.from_numpy(pairs).float())
        self.sums = torch.arange(p)[:, None].add(torch.arange(p)) % p

    def outputs(self) -> Float[Tensor, "S p p p"]:
        heads = self.settings.heads
        x = normed(torch.stack([self.numbers + self.places[:, :1], self.numbers + self.places[:, 1:2]], 1))
        end = normed(self.places[:, 2:])  # (S, 1, D)
        x = torch.cat([x.flatten(1, 2), end], 1)  # (S, 2p + 1, D)
        split = lambda t: t.unflatten(-1, (heads, -1))  # noqa: E731
        query, key, value = split(end @ self.query), split(x @ self.key), split(x @ self.value)
        scores, p = (query * key).sum(-1) / query.shape[-1] ** 0.5, self.settings.modulus  # (S, 2p + 1, heads)
        pair = lambda t: (t[:, :p, None], t[:, None, p:2 * p], t[:, None, 2 * p:])  # noqa: E731  of a, of b, of "="
        weights = torch.stack(torch.broadcast_tensors(*pair(scores)), -1).softmax(-1).unbind(-1)  # (S, p, p, heads)
        each = [weight[..., None] * part for weight, part in zip(weights, pair(value), strict=True)]
        attended = (each[0] + each[1] + each[2]).flatten(3)  # (S, p, p, D)
        wide = lambda w: w[:, None]  # noqa: E731
        h = end[:, None] + attended @ wide(self.out)
        h = h + (normed(h) @ wide(self.up)).relu() @ wide(self.down)
        return normed(h) @ wide(self.read)

    def forward(self, step: int) -> Float[Tensor, "S"]:
        outputs = self.outputs()
        sums = self.sums.to(outputs.device).expand(len(outputs), -1, -1)
        losses = F.cross_entropy(outputs.permute(0, 3, 1, 2), sums, reduction="none")
        return (losses * self.trained).sum((1, 2)) / self.trained.sum((1, 2))

    def measure(self) -> dict[str, Tensor]:
        outputs = self.outputs()
        right = (outputs.argmax(3) == self.sums.to(outputs.device)).float()
        shares = {name: (right * mask).sum((1, 2)) / mask.sum((1, 2))
                  for name, mask in (("train", self.trained), ("held", 1 - self.trained))}
        return shares | {"outputs": outputs[:, 0]}


# ---- claims ----------------------------------------------------------------------------------------------


def error_of_mean(values: Float[np.ndarray, "seeds"]) -> float:
    """The standard error of the mean over seeds; NaN for one seed."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def mean_claim(name: str, values: Float[np.ndarray, "seeds"], note: str = "") -> Claim:
    """The mean over seeds, without a bar."""
    error = f"standard error {error_of_mean(values):.2g}" if len(values) > 1 else "one seed"
    return Claim(name, 0.0, float(np.mean(values)), kind="report", source=f"{error}{'; ' if note else ''}{note}")


def positive_claim(name: str, alphas: tuple[float, ...], differences: Float[np.ndarray, "seeds"]) -> Claim:
    """The claim that a paired difference of the outermost alphas is positive: its mean over its standard error is at
    least 2. Without a bar where the alphas are less than a factor of 10 from 1."""
    name = f"{name}, over its standard error"
    if len(alphas) < 2:
        return skipped(name, "needs two alphas")
    if len(differences) < 2:
        return skipped(name, "needs two seeds")
    error = error_of_mean(differences)
    if not error:
        return skipped(name, "no spread over seeds")
    claim = Claim(name, 2.0, float(np.mean(differences)) / error, kind="at_least",
                  source="our bar: 2; the sign is the paper's")
    return bar_if(alphas[0] <= 0.1 and alphas[-1] >= 10, "the bar is for alphas from 0.1 to 10", [claim])[0]


def same_start_claim(name: str, alphas: list[float], outputs: Float[np.ndarray, "M S ..."]) -> Claim:
    """The first outputs do not depend on alpha. Networks are sorted by alpha."""
    by_alpha = outputs[0].reshape(len(set(alphas)), -1)
    return Claim(f"{name}: first answers at every alpha", by_alpha[:1], by_alpha, 1e-3,
                 source="those of the first alpha")


def cnn_claims(settings: Settings, nets: Cnns, record: dict[str, np.ndarray]) -> list[Claim]:
    """Upstream filters are smoother."""
    alphas = [alpha for alpha, _ in nets.names]
    rough = roughness(record["first"].astype(float)).mean(2).reshape(len(record["step"]), len(settings.alphas), -1)
    right = record["right"][-1].reshape(len(settings.alphas), -1)
    claims = [same_start_claim("CNN", alphas, record["outputs"]),
              Claim("CNN: drift of delta = |a|^2 - |w|^2 of channels, over |a|^2 + |w|^2", 0.0,
                    (record["delta"] - record["delta"][0]) / record["sum"], kind="report",
                    source="conserved by gradient flow, not by SGD with steps as large as here")]
    for i, alpha in enumerate(settings.alphas):
        claims += [mean_claim(f"CNN: roughness of filters, alpha {alpha:g}", rough[-1, i],
                         f"at the start {rough[0, i].mean():.3g}"),
                   mean_claim(f"CNN: test accuracy, alpha {alpha:g}", right[i])]
    return claims + [positive_claim("CNN: roughness downstream less upstream", settings.alphas,
                                    rough[-1, 0] - rough[-1, -1])]


def examples_needed(sizes: tuple[int, ...], errors: Float[np.ndarray, "P"], wrong: float) -> float:
    """The number of examples at which the error first falls to `wrong`, interpolated on a log scale; else the
    largest."""
    low = np.flatnonzero(errors <= wrong)
    if not len(low) or low[0] == 0:
        return float(sizes[0 if len(low) else -1])
    i = int(low[0])
    return float(np.exp(np.interp(-wrong, -errors[i - 1:i + 1], np.log(sizes[i - 1:i + 1]))))


def grammar_claims(settings: Settings, nets: Mlps, record: dict[str, np.ndarray]) -> list[Claim]:
    """Upstream networks need fewer sentences."""
    shape = len(settings.alphas), len(settings.sizes), -1
    test, train = (record[name][-1].astype(float).reshape(shape) for name in ("test", "train"))
    claims = [same_start_claim("grammar", [alpha for alpha, *_ in nets.names], record["outputs"])]
    for i, alpha in enumerate(settings.alphas):
        points = np.array([examples_needed(settings.sizes, errors, settings.wrong) for errors in test[i].T])
        never = int((test[i].min(0) > settings.wrong).sum())
        claims += [
            mean_claim(f"grammar: sentences for a test error of {settings.wrong:g}, alpha {alpha:g}", points,
                  f"{never} of {len(points)} seeds need more than {settings.sizes[-1]}, counted as that"),
            mean_claim(f"grammar: test error, mean over sizes, alpha {alpha:g}", test[i].mean(0),
                  f"on the sentences trained on {train[i].mean():.2g}")]
    return claims + [positive_claim("grammar: test error, downstream less upstream", settings.alphas,
                                    (test[0] - test[-1]).mean(0))]


def grok_claims(settings: Settings, nets: Transformers, record: dict[str, np.ndarray]) -> list[Claim]:
    """Upstream transformers grok sooner."""
    train, held = (record[name].reshape(len(record["step"]), len(settings.grok_alphas), -1)
                   for name in ("train", "held"))
    claims, times = [same_start_claim("transformer", [alpha for alpha, _ in nets.names], record["outputs"])], []
    for i, alpha in enumerate(settings.grok_alphas):
        known, grokked = (first_step_at(record["step"], values[:, i], settings.right) for values in (train, held))
        times.append(grokked)
        never = int((held[:, i].max(0) < settings.right).sum())
        claims += [mean_claim(f"transformer: step at which held-out accuracy is {settings.right:g}, alpha {alpha:g}",
                         grokked, f"{never} of {len(grokked)} seeds never, counted as the last step; "
                         f"training pairs {known.mean():.0f}"),
                   mean_claim(f"transformer: held-out accuracy at the last step, alpha {alpha:g}", held[-1, i])]
    # No bar: at the default three seeds it does not reach the two standard errors that the others reach.
    claim = positive_claim("transformer: log of that step, downstream less upstream", settings.grok_alphas,
                           np.log(np.maximum(times[0], 1) / np.maximum(times[-1], 1)))
    return claims + bar_if(False, "the paper's sign is positive; of a bar of 2, not reached at three seeds", [claim])


def first_step_at(steps: Int[np.ndarray, "M"], values: Float[np.ndarray, "M seeds"], level: float,
            ) -> Float[np.ndarray, "seeds"]:
    """The first recorded step at which each seed's value reaches the level, or the last step."""
    high = values >= level
    return np.where(high.any(0), steps[high.argmax(0)], steps[-1]).astype(float)


# ---- figure ----------------------------------------------------------------------------------------------

COLOURS = ("tab:blue", "tab:grey", "tab:orange", "tab:red", "tab:purple", "tab:brown")


def draw_cnns(figure: Figure, settings: Settings, nets: Cnns, record: dict[str, np.ndarray]) -> None:
    """Roughness over steps, and the filters of seed 0."""
    rough = figure.add_subplot(2, 3, 1)
    values = roughness(record["first"].astype(float)).mean(2).reshape(len(record["step"]), len(settings.alphas), -1)
    for i, alpha in enumerate(settings.alphas):
        rough.plot(record["step"], values[:, i], color=COLOURS[i])
        rough.plot([], [], color=COLOURS[i], label=f"alpha {alpha:g}")
    rough.axhline(5.25 * (1 - 2 / settings.kernel) ** 2, color="black", linestyle="--", label="white noise")
    rough.set(title="CNN: roughness of filters, each seed", xlabel="step", ylim=(0, None))
    rough.legend(fontsize=7)
    filters = figure.add_subplot(2, 3, (2, 3))
    per_alpha = len(nets.names) // len(settings.alphas)
    rows = []
    for i in range(len(settings.alphas)):
        tiles = record["first"][-1, i * per_alpha, :8]
        tiles = tiles / np.abs(tiles).max((1, 2, 3), keepdims=True) / 2 + 0.5
        rows.append(np.concatenate(list(np.pad(tiles.transpose(0, 2, 3, 1), ((0, 0), (0, 1), (0, 1), (0, 0)),
                                               constant_values=1)), 1))
    filters.imshow(np.concatenate(rows))
    filters.set_yticks([(settings.kernel + 1) * (i + 0.5) for i in range(len(rows))],
                       [f"alpha {alpha:g}" for alpha in settings.alphas])
    filters.set_xticks([])
    filters.set(title="eight filters of seed 0, last step")


def draw_grammar(figure: Figure, settings: Settings, record: dict[str, np.ndarray]) -> None:
    """Test error over the size of the training set, and over steps."""
    size, course = figure.add_subplot(2, 3, 4), figure.add_subplot(2, 3, 5)
    test = record["test"].reshape(len(record["step"]), len(settings.alphas), len(settings.sizes), -1)
    for i, alpha in enumerate(settings.alphas):
        size.errorbar(settings.sizes, test[-1, i].mean(1), [error_of_mean(e) for e in test[-1, i]], color=COLOURS[i],
                      label=f"alpha {alpha:g}")
        course.plot(record["step"], test[:, i, -1].mean(1), color=COLOURS[i], label=f"alpha {alpha:g}")
    size.set(title="grammar: test error, last step", xlabel="sentences trained on", xscale="log", ylim=(0, 1))
    size.set_xticks(settings.sizes, [str(p) for p in settings.sizes], minor=False)
    size.set_xticks([], minor=True)
    course.set(title=f"grammar: test error, {settings.sizes[-1]} sentences", xlabel="step", ylim=(0, 1))
    for axis in (size, course):
        axis.legend(fontsize=7)


def draw_groks(figure: Figure, settings: Settings, record: dict[str, np.ndarray]) -> None:
    """Accuracies on trained and held-out pairs, mean over seeds."""
    axis = figure.add_subplot(2, 3, 6)
    for i, alpha in enumerate(settings.grok_alphas):
        for name, style in ("train", ":"), ("held", "-"):
            values = record[name].reshape(len(record["step"]), len(settings.grok_alphas), -1)[:, i].mean(1)
            axis.plot(record["step"], values, style, color=COLOURS[i], label=f"alpha {alpha:g}, {name}")
    axis.set(title=f"transformer, addition mod {settings.modulus}: accuracy", xlabel="step", ylim=(0, 1.02))
    axis.legend(fontsize=7)


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Claim], Figure]:
    """The probe: CNN, grammar, transformer."""
    claims: list[Claim] = []
    figure = Figure(figsize=(15, 8), layout="constrained")
    if settings.images:
        cnns = Cnns(settings, seeds)
        record = simulate(cnns, folder / "cnn", settings.image_steps, settings.image_lr, settings.image_steps // 10)
        time = settings.image_steps * settings.image_lr
        start, *found = cnn_claims(settings, cnns, record)
        late = f"the bar is for 100 units of time, and this training ends at {time:g}"
        claims += [start, *bar_if(time >= 100, late, found)]
        draw_cnns(figure, settings, cnns, record)
    mlps = Mlps(settings, seeds)
    record = simulate(mlps, folder / "grammar", settings.grammar_steps, settings.grammar_lr,
                      settings.grammar_steps // 10)
    time = settings.grammar_steps * settings.grammar_lr
    start, *found = grammar_claims(settings, mlps, record)
    short = f"the bar is for 60 units of time, and this training ends at {time:g}"
    claims += [start, *bar_if(time >= 60, short, found)]
    draw_grammar(figure, settings, record)
    if settings.grok_alphas:
        transformers = Transformers(settings, seeds)
        record = simulate(transformers, folder / "grok", settings.grok_steps, settings.grok_lr, settings.grok_every)
        claims += grok_claims(settings, transformers, record)
        draw_groks(figure, settings, record)
    return claims, figure
