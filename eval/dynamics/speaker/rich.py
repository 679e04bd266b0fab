"""Rich and lazy learning in the speaker: conserved quantities, and the effect of rescaled layers.

Measured are the quantities that gradient flow conserves, how far the tangent kernel moves, and the effect on both and
on the game of rescaling layers without changing the function. Under gradient flow the invariance of a map
under a rescaling conserves a quantity (probe rich: delta). The default adapter has exact ones despite its norms and
biases, because they are invariances between layers with nothing between them: for every head Q Q' - K K' and V V' - O'O
(Q, K, V with their biases as one more column), and for every channel of the last norm gain^2 + shift^2 - |column of the
last map|^2. Of its MLPs, whose GELU is not homogeneous, |w_in|^2 + b^2 - |w_out|^2 is not conserved. The drift of each
over training is divided by the drift that the same steps would have caused with their entries in random order; that
null is 1. It is given for plain gradient descent and for AdamW.

Intervention: V and its bias over alpha and O times alpha in every attention, gain and shift of the last norm over alpha
and the last map times alpha. The function is the same (checked before training; a run stops if it is not). Large
alpha: small early weights, large late ones, where a rapid rich regime is expected: an early move of the tangent kernel
S = 1 - <K0, Kt>/(|K0||Kt|) that grows with alpha. K is that of the logit of the right token after "A", on fixed
held-out images. Both small and large alpha make the kernel large, and the loss fall fast: the rate of plain gradient
descent is set by the gradient at the start, so that at every alpha the loss begins to fall alike. Then the game from
the trained speaker `init` at each alpha with AdamW, at equal steps: the gap between the listeners; its null is alpha =
1 with other draws.

All sizes, rates and bars are [stand-in]. Leaves out momentum and weight decay, and kernels of whole captions.

Shapes: n seeds, m items, H heads, d head width, W adapter width, P parameters.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from dixit.common import DixitError, rng
from dixit.config import Config
from dixit.models.adapter import Adapter
from dixit.training.game_task import GameTask
from dixit.training.runs import patch_batch

from ...geometry import kernel_change
from .measure import (
    CaptionsAndGame,
    Finding,
    ShortCaptions,
    accelerator,
    all_curves,
    configure,
    final_states,
    new_adapter,
    plot_seeds,
    run_training,
    with_config,
)

# ---- setting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings(CaptionsAndGame):
    """One step of captions is 4 images x 3 captions, one of the game 4 images x 4 messages."""

    alphas: tuple[float, ...] = (0.1, 1.0, 10.0)
    steps: int = 16
    every: int = 8
    fall: float = 0.5  # nats that the first step of plain gradient descent takes off, to first order: sets its rate
    adam_lr: float = 1e-3
    items: int = 16  # images of the kernel
    game_batch: int = 4
    game_steps: int = 8
    rounds: int = 96  # held-out images of the gap


TINY = Settings(tokens=6, batch=4, samples=2, steps=4, every=2, fall=0.1, items=3, game_batch=4, game_steps=2,
                messages=2, message_tokens=5, rounds=8)

# ---- quantities ------------------------------------------------------------------------------------------


def attention_quantities(layer: nn.MultiheadAttention) -> dict[str, Float[Tensor, "H d d"]]:
    """Q Q' - K K' and V V' - O'O of every head; exact under gradient flow, since Q and K enter as Q'K alone, V and O as
    O V alone. Derived."""
    heads, width = layer.num_heads, layer.embed_dim
    full = torch.cat([layer.in_proj_weight, layer.in_proj_bias[:, None]], 1)
    q, k, v = (part.unflatten(0, (heads, -1)).double() for part in full.chunk(3))
    out = layer.out_proj.weight.view(width, heads, -1).permute(1, 0, 2).double()  # (H, W, d)
    return {"QQ'-KK'": q @ q.mT - k @ k.mT, "VV'-O'O": v @ v.mT - out.mT @ out}


def norm_quantity(norm: nn.LayerNorm, linear: nn.Linear) -> Float[Tensor, "W"]:
    """gain^2 + shift^2 - |column|^2 of each channel of a norm that a linear map follows; exact. Derived."""
    return norm.weight.double() ** 2 + norm.bias.double() ** 2 - (linear.weight.double() ** 2).sum(0)


def mlp_quantity(block: Any) -> Float[Tensor, "units"]:
    """|w_in|^2 + b^2 - |w_out|^2 of each unit: exact for a ReLU, not for the GELU there is."""
    first, second = block.mlp[0], block.mlp[2]
    return (first.weight.double() ** 2).sum(1) + first.bias.double() ** 2 - (second.weight.double() ** 2).sum(0)


@torch.no_grad()
def quantities(adapter: Any) -> dict[str, Float[Tensor, "count"]]:
    """All of an adapter, kind by kind: the exact ones, and "MLP"."""
    found: dict[str, list[Tensor]] = {}
    for block in adapter.blocks:
        for layer in (block.cross, block.self_):
            for name, value in attention_quantities(layer).items():
                found.setdefault(name, []).append(value.flatten())
        found.setdefault("MLP", []).append(mlp_quantity(block))
    found["norm-map"] = [norm_quantity(adapter.outputs[0], adapter.outputs[1])]
    return {name: torch.cat(values) for name, values in found.items()}


@torch.no_grad()
def shuffled_move(before: nn.Module, after: nn.Module, *key: int | str) -> nn.Module:
    """`before`, moved as far as to `after`, but with the entries of each parameter's move in random order."""
    other, r = copy.deepcopy(before), rng("order", *key)
    for p, a, b in zip(other.parameters(), after.parameters(), before.parameters(), strict=True):
        move = (a - b).flatten()
        p.add_(move[torch.from_numpy(r.permutation(len(move)))].view_as(p))
    return other


def drifts(before: nn.Module, after: nn.Module, *key: int | str) -> dict[str, float]:
    """|change| of each kind of quantity over that of the same move in random order; NaN where nothing moved."""
    start, end, random = (quantities(a) for a in (before, after, shuffled_move(before, after, *key)))
    return {name: float((end[name] - start[name]).norm() / (random[name] - start[name]).norm()) for name in start}


@torch.no_grad()
def rescale(adapter: Adapter, alpha: float) -> Adapter:
    """A copy with early weights over alpha and late ones times alpha, the function unchanged."""
    other: Any = copy.deepcopy(adapter)
    for block in other.blocks:
        for layer in (block.cross, block.self_):
            layer.in_proj_weight[-layer.embed_dim:] /= alpha
            layer.in_proj_bias[-layer.embed_dim:] /= alpha
            layer.out_proj.weight *= alpha
    norm, last = other.outputs
    norm.weight /= alpha
    norm.bias /= alpha
    last.weight *= alpha
    return other


# ---- simulation ------------------------------------------------------------------------------------------


class KernelCaptions(ShortCaptions):
    """Short captions; observes S, the loss on held-out captions, and the drifts of what should be conserved."""

    def prepare(self, settings: Settings) -> None:
        start = self.speaker.encode(["A red"])[0][0, 0]
        texts: list[str] = []
        self.items: list[int] = []
        for i, row in enumerate(self.validation_captions.written):
            text = next((t for t in row if t.startswith("A ")), None)
            if text and len(self.items) < settings.items:
                texts.append(text)
                self.items.append(i)
        self.item_tokens, self.item_mask = self.speaker.encode(texts)
        self.start = start.expand(len(texts), 1)
        self.first: np.ndarray | None = None
        self.before: nn.Module | None = None

    def kernel(self) -> Float[np.ndarray, "m m"]:
        """Inner products of the items' gradients of the right token's logit in the adapter's parameters.

        The LLM gives the gradient in the prefix, of all items at once, and the adapter carries on, item by item.
        """
        patches = patch_batch(self.validation_store, np.array(self.items), self.speaker.device)
        with torch.no_grad():
            prefix = self.trained(patches)
        prefix = prefix.requires_grad_(True)
        head = self.speaker.llm.get_output_embeddings().weight
        states = final_states(self.speaker, prefix, self.start)[:, -1]
        logits = (states.float() * head[self.item_tokens[:, 1]].float()).sum(-1)
        slopes, = torch.autograd.grad(logits.sum(), prefix)
        parameters = [p for p in self.trained.parameters() if p.requires_grad]
        rows = []
        for one, slope in zip(patches, slopes, strict=True):
            parts = torch.autograd.grad(self.trained(one[None]), parameters, slope[None])
            rows.append(torch.cat([part.flatten() for part in parts]))
        jacobian = torch.stack(rows)
        return (jacobian @ jacobian.T).double().cpu().numpy()

    def validate(self, step: int) -> dict[str, float]:
        kernel = self.kernel()
        if self.first is None:
            self.first, self.before = kernel, copy.deepcopy(self.trained)
        figures = {"S": kernel_change(self.first, kernel)}
        with torch.no_grad():
            prefix = self.trained(patch_batch(self.validation_store, np.array(self.items), self.speaker.device))
            nats = -self.speaker.logprobs(prefix, self.item_tokens, self.item_mask).sum(1)
        figures["nats"] = float(nats.mean())
        assert self.before is not None
        moved = drifts(self.before, self.trained, self.config.seed)  # NaN before the first step
        return figures | {f"drift/{name}": value for name, value in moved.items()}


def squared_gradient_norm(task: KernelCaptions) -> float:
    """|gradient|^2 of the loss on the first batch: what the loss falls by, per step and rate, to first order."""
    grads = torch.autograd.grad(task.loss(0, 0)[0], list(task.trained.parameters()))
    return float(sum(g.double().square().sum() for g in grads))


class GapGame(GameTask):
    """The game, validated at its end only."""

    def validate(self, step: int) -> dict[str, float]:
        return super().validate(step) if step else {}


def check_function(task: KernelCaptions | GameTask, adapter: Adapter, other: Adapter) -> float:
    """The largest difference of two adapters' prefixes on some images, over their scale. Raises DixitError if the
    functions differ by more than rounding."""
    with torch.no_grad():
        patches = patch_batch(task.validation_store, np.arange(4), task.speaker.device)
        difference = float((adapter(patches) - other(patches)).abs().max()) / adapter.scale
    if not difference < 1e-3:
        raise DixitError(f"the rescaled adapter is another function: prefixes differ by {difference:.2g} scales")
    return difference


# ---- findings --------------------------------------------------------------------------------------------

EXACT = ("QQ'-KK'", "VV'-O'O", "norm-map")


def findings(drift: dict[str, dict[str, np.ndarray]], early: dict[float, np.ndarray],
             nats: dict[float, np.ndarray], gaps: dict[str, np.ndarray], differences: np.ndarray) -> list[Finding]:
    """Verdicts. `drift`: "SGD", "AdamW" -> kind -> (n,); `early`: alpha -> S at the first observation after the start;
    `nats`: alpha -> fall of the held-out loss at the end; `gaps`: "1 again" and alphas as text -> gap at the end."""
    low, high = min(early), max(early)
    found = []
    for name, rule in drift.items():
        advice = ("the balance of layers is set by the start and stays: choose initial scales with care",
                  f"{name} does not keep the layers' balance: initial scales matter less, and theory of gradient flow "
                  "says little of this optimiser")
        for kind, values in rule.items():
            judged = kind in EXACT
            found.append(Finding(
                f"{name}: share of the drift of {kind} that is avoided (null: 0, the same moves in random order)",
                1 - values, 0.0, 0.9 if judged else None, *(advice if judged else ())))
    found += [
        *(Finding(f"SGD: S at the first observation, alpha {alpha:g}", early[alpha]) for alpha in early),
        Finding(f"SGD: log10 of early S, alpha {high:g} over alpha {low:g} (null: no ratio)",
                np.log10(early[high] / early[low]), 0.0, 0.5,
                "small early and large late layers move the kernel first: start so if features must change",
                "the scale of these layers does not decide how soon the kernel moves; leave it"),
        *(Finding(f"SGD: fall of the held-out loss, nats per caption, alpha {alpha:g}", nats[alpha]) for alpha in nats),
        *(Finding(f"game: gap at the end, alpha {name}", gap) for name, gap in gaps.items()),
    ]
    for alpha in (low, high):
        found.append(Finding(
            f"game: |gap at alpha {alpha:g} less gap at alpha 1| (null: alpha 1 with other draws)",
            np.abs(gaps[f"{alpha:g}"] - gaps["1"]), np.abs(gaps["1 again"] - gaps["1"]), 0.03,
            "the scale of layers changes the gap at equal steps by more than draws do: tune it like a learning rate",
            "at equal steps the draws matter as much as the scale of layers: leave it alone"))
    found.append(Finding("largest difference of rescaled prefixes before training, over their scale", differences))
    return found


# ---- figure ----------------------------------------------------------------------------------------------


def draw(settings: Settings, curves: dict[str, dict[str, np.ndarray]], drift: dict[str, dict[str, np.ndarray]],
         gaps: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(15, 4), layout="constrained")
    left, second, third, right = figure.subplots(1, 4)
    for arm, one in curves.items():
        plot_seeds(left, one["step"][0], one["S"], arm)
        second.plot(one["step"][0], one["nats"].mean(0), label=arm)
    left.set(title="distance of the tangent kernel S", xlabel="step")
    second.set(title="held-out loss, nats per caption", xlabel="step")
    for i, (name, kinds) in enumerate(drift.items()):
        third.bar(np.arange(len(kinds)) + 0.4 * i, [v.mean() for v in kinds.values()], 0.38, label=name,
                  yerr=[v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0 for v in kinds.values()])
        third.set_xticks(np.arange(len(kinds)) + 0.2, list(kinds), fontsize=7)
    third.axhline(1, color="black", linestyle="--", linewidth=1)
    third.set(title="drift over that of random order", yscale="log")
    for i, gap in enumerate(gaps.values()):
        right.plot(np.full(len(gap), i), gap, "o", color="C0", alpha=0.5)
        right.plot([i - 0.2, i + 0.2], [gap.mean()] * 2, color="C0")
    right.set_xticks(range(len(gaps)), list(gaps))
    right.set(title=f"game: gap after {settings.game_steps} steps", xlabel="alpha")
    for axis in (left, second, third):
        axis.legend(fontsize=7)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement: plain gradient descent at every alpha, AdamW at alpha 1, then the game."""
    def caption_config(name: str, seed: int, rule: str, lr: float = 0.0) -> Config:
        return configure(settings.captions, seed, folder / name, f"train.optimizer={rule}", "train.clip_norm=0.0",
                         tokens=settings.tokens, batch=settings.batch, samples=settings.samples, lr=lr, warmup=0,
                         steps=settings.steps, every=settings.every)

    task = KernelCaptions(caption_config("start", 0, "sgd"), accelerator(folder))
    task.prepare(settings)
    records: dict[str, list[list[dict[str, float]]]] = {}
    differences = []
    for seed in range(seeds):
        for rule, alpha in [*(("sgd", alpha) for alpha in settings.alphas), ("adamw", 1.0)]:
            arm = f"{'SGD' if rule == 'sgd' else 'AdamW'}, alpha {alpha:g}"
            name, config = arm.replace(", alpha ", "_") + f"_{seed}", caption_config("start", seed, rule)
            plain = new_adapter(task, config)
            adapter = rescale(plain, alpha)
            differences.append(check_function(task, plain, adapter))
            lr = settings.adam_lr if rule == "adamw" else \
                settings.fall / squared_gradient_norm(with_config(task, config, adapter))
            config = caption_config(name, seed, rule, lr)
            records.setdefault(arm, []).append(run_training(with_config(task, config, adapter), config))
    del task
    curves = {arm: all_curves(rows) for arm, rows in records.items()}
    drift = {rule: {name.removeprefix("drift/"): values[:, -1] for name, values in curves[f"{rule}, alpha 1"].items()
                    if name.startswith("drift/")} for rule in ("SGD", "AdamW")}
    sgd = {alpha: curves[f"SGD, alpha {alpha:g}"] for alpha in settings.alphas}

    def game_config(name: str, seed: int) -> Config:
        return configure(settings.game, seed, folder / f"game_{name}", tokens=settings.message_tokens,
                         batch=settings.game_batch, samples=settings.messages, lr=settings.game_lr, warmup=2,
                         steps=settings.game_steps, every=settings.game_steps)

    game = GapGame(game_config("start", 0), accelerator(folder))
    game.validation = game.validation.select(range(min(settings.rounds, len(game.validation))))
    gaps: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name in [*(f"{alpha:g}" for alpha in settings.alphas), "1 again"]:
            plain = new_adapter(game, game_config(f"{name}_{seed}", seed), settings.init_of(seed))
            adapter = rescale(plain, float(name.split()[0]))
            differences.append(check_function(game, plain, adapter))
            config = game_config(f"{name}_{seed}", seed + 1000 * name.endswith("again"))
            gaps.setdefault(name, []).append(run_training(with_config(game, config, adapter), config)[-1]["gap"])
    levels = {name: np.array(values) for name, values in gaps.items()}
    worst = np.array(differences).reshape(2, seeds, -1).max((0, 2))  # of captions and game, all alphas
    return (findings(drift, {alpha: one["S"][:, 1] for alpha, one in sgd.items()},
                     {alpha: one["nats"][:, 0] - one["nats"][:, -1] for alpha, one in sgd.items()}, levels, worst),
            draw(settings, curves, drift, levels))
