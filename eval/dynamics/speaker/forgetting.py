"""Which second audience makes the speaker forget the first? The game itself, rewards only.

The first audience is colours against shapes; the second shares both of its listeners, one, none, one in the opposite
role, or both in opposite roles. By design the cosine of the two audiences' rewards is then 1, 1/2, 0, -1/2 and -1. The
similarity for the speaker is estimated before training, from the game's policy gradient G in the heads of the gated
units, on the same sampled captions for all audiences: the cosine of two audiences' G, of their G'G (features) and of
their GG' (readout; Lee, Goldt, Saxe 2021). The speaker is trained for the first audience, and from there for each of
the second ones.

Arms: one head, with the audience's code as an input to the units (forgetting should fall as audiences become similar),
or private heads, one map out of the units for each audience and no code (after Lee et al. 2022, forgetting should be
worst for half similar or half opposed audiences: similar and opposite ones need the same features, others need other
features). The control has private heads of units in pairs of opposite effect, large from the start, so that there are
no idle units (the peak should vanish). Forgetting is the first audience's gap after its own block minus that at the
end; re-use is the overlap of the units' shares. Trainings are those of continual.py and are cached in the same way. The
geometry of the prefix is reported at every validation with one head, as means over the second audiences.

Bars declared before the runs: .05 of gap for half against full similarity, .1 from similar to opposite audiences.
Sizes and rates are those of continual.py [stand-in]. Leaves out remedies (continual.py), and exactly controlled
similarity (similarity.py, to first order).

Shapes: A audiences, n held-out images, H units of a layer, W width of the adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from dixit.common import DixitError, rng
from dixit.config import Config
from dixit.models.listeners import score_all
from dixit.training import audiences, continual, game, policy
from dixit.training.candidates import draw_candidates
from dixit.training.runs import patch_batch

from .continual import TINY as TINY_GAME
from .continual import ContinualGame, Records, config_of, selectivity, train_condition
from .continual import Settings as GameSettings
from .measure import Finding, Observed, accelerator, curve, new_adapter

ARMS = ("one head", "private heads", "private heads, paired")
SECOND = {1.0: ("colours", "shapes"), 0.5: ("colours", "places"), 0.0: ("textures", "sizes"),
          -0.5: ("sizes", "colours"), -1.0: ("shapes", "colours")}  # cosine with the first, by design -> audience
LARGE = 0.1  # standard deviation of paired heads; small ones reach .02 at most in 20 steps of .001


@dataclass(frozen=True)
class Settings(GameSettings):
    """As the game of continual.py."""

    conditions: tuple[str, ...] = ARMS
    levels: tuple[float, ...] = tuple(SECOND)
    estimate: int = 128  # images that similarity is estimated from


TINY = Settings(**vars(TINY_GAME) | {"conditions": ARMS}, levels=(1.0, -1.0), estimate=6)


class ForgettingGame(ContinualGame):
    """The continual game with one head or private ones. `first` is the first audience's head after its block."""

    arm: str = ARMS[0]
    start: list[Tensor]
    first: list[Tensor] | None = None

    def begin(self) -> None:
        self.first = None
        if self.arm.endswith("paired"):
            for i, units in enumerate(self.remedy.units):
                half = units.outputs.weight.shape[1] // 2
                draws = rng("paired heads", self.config.seed, i).standard_normal((len(units.outputs.weight), half))
                with torch.no_grad():
                    for layer in units.inputs, units.gate:
                        layer.weight[half:] = layer.weight[:half]
                    units.inputs.bias[half:] = units.inputs.bias[:half]
                    head = LARGE * torch.from_numpy(draws).to(units.outputs.weight)
                    units.outputs.weight.copy_(torch.cat([head, -head], 1))
        self.start = [units.outputs.weight.detach().clone() for units in self.remedy.units]

    @property
    def private(self) -> bool:
        return self.arm.startswith("private")

    @property
    def names(self) -> Float[Tensor, "A A"]:
        return super().names * (not self.private)

    def audience_inputs(self, step: int) -> Float[Tensor, "B A"]:
        named = super().audience_inputs(step)
        assert named is not None
        return named * (not self.private)

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        if self.private and step == self.block and part == 0:
            self.first = [units.outputs.weight.detach().clone() for units in self.remedy.units]
            self._put(self.start)
        return super().loss(step, part)

    @torch.no_grad()
    def _put(self, heads: list[Tensor]) -> None:
        for units, head in zip(self.remedy.units, heads, strict=True):
            units.outputs.weight.copy_(head)

    @contextmanager
    def head(self, audience: int) -> Iterator[None]:
        """Use the head of an audience. In the first block there is one head only."""
        if self.first is None or audience:
            yield
            return
        now = [units.outputs.weight.detach().clone() for units in self.remedy.units]
        self._put(self.first)
        try:
            yield
        finally:
            self._put(now)

    def gaps(self, patches: Float[Tensor, "n P Dv"], context: Float[Tensor, "n A"],
             audience: int) -> tuple[float, float]:
        with self.head(audience):
            return super().gaps(patches, context, audience)

    def states(self, patches: Float[Tensor, "n P Dv"]) -> tuple[Float[np.ndarray, "An H"], Float[np.ndarray, "An D"]]:
        """Of each audience by its own head."""
        parts, n = [], len(patches)
        for audience in range(len(self.names)):
            with self.head(audience):
                parts.append([x[audience * n:(audience + 1) * n] for x in super().states(patches)])
        units, prefix = zip(*parts, strict=True)
        return np.concatenate(units), np.concatenate(prefix)

    def shares(self, patches: Float[Tensor, "n P Dv"], step: int) -> Float[np.ndarray, "A H"]:
        rows = []
        for audience in range(len(self.names)):
            with self.head(audience):
                rows.append(super().shares(patches, step)[audience])
        return np.stack(rows)


def gradients(task: ContinualGame, adapter: nn.Module, settings: Settings, seed: int,
              pairs: list[tuple[int, int]]) -> list[list[Float[Tensor, "W H"]]]:
    """Policy gradient of each audience in the heads of the units, layer by layer, on the same captions."""
    heads = [units.outputs.weight for units in continual.gated_units_of(adapter)]
    found = [[torch.zeros_like(head) for head in heads] for _ in pairs]
    rows = game.batch_indices(seed, 0, min(settings.estimate, len(task.data)), len(task.data))
    everyone, n, tokens = np.arange(len(task.data)), settings.messages, settings.tokens
    for i, index in enumerate(np.array_split(rows, max(1, len(rows) // settings.batch))):
        draws = rng("similarity", seed, i).random((len(index) * n, tokens), dtype=np.float32)
        patches = patch_batch(task.store, index, task.speaker.device)
        prefix = adapter(patches, torch.zeros(len(index), 2, device=patches.device)).repeat_interleave(n, 0)
        own = prefix.detach().requires_grad_(True)  # one per caption: a single pass through the LLM
        sampled, mask, _ = task.speaker.sample(own.detach(), torch.from_numpy(draws).to(patches.device))
        texts = task.speaker.decode(sampled, mask)
        slopes = torch.autograd.grad((task.speaker.logprobs(own, sampled, mask) * mask).sum(), own)[0]  # (S, K, D)
        pools = task.config.game.pools
        drawn = draw_candidates(np.repeat(index, pools), everyone, settings.candidates, "similarity", seed, i)
        tried = drawn.unflatten(0, (-1, pools)).repeat_interleave(n, 0).flatten(0, 1)
        logits = score_all(task.listeners, [text for text in texts for _ in range(pools)], tried)
        for pair, total in zip(pairs, found, strict=True):
            weights = audiences.round_weights([pair] * logits.shape[1], len(logits)).to(logits.device)
            paid = game.listener_reward("sub_prob", logits, weights).unflatten(0, (-1, n, pools)).mean(2)
            advantage = policy.leave_one_out_advantage(paid).flatten()
            for sum_, slope in zip(total, torch.autograd.grad(prefix, heads, advantage[:, None, None] * slopes,
                                                              retain_graph=True), strict=True):
                sum_ += slope
    return found


def estimate_similarity(one: list[Float[Tensor, "W H"]], other: list[Float[Tensor, "W H"]]) -> dict[str, float]:
    """The similarity of two audiences' gradients, means over layers."""
    def cosine(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30))

    both = list(zip(one, other, strict=True))
    return {"gradient": float(np.mean([cosine(a, b) for a, b in both])),
            "features": float(np.mean([cosine(a.T @ a, b.T @ b) for a, b in both])),
            "readout": float(np.mean([cosine(a @ a.T, b @ b.T) for a, b in both]))}


# ---- findings --------------------------------------------------------------------------------------------


def geometry_of(records: Records, arm: str, levels: list[str]) -> dict[str, Float[np.ndarray, "seeds times"]]:
    """The geometry of the prefix at every observation, means over levels."""
    def over_levels(of: Callable[[Observed], np.ndarray]) -> Float[np.ndarray, "seeds times"]:
        return np.mean([of(records[f"{arm}, {level}"]) for level in levels], 0)

    return {**{f"variance of audience {j + 1}'s prefix by what serves less that by what hinders":
               over_levels(partial(selectivity, audience=j)) for j in range(2)},
            "dimensions of the prefix": over_levels(partial(curve, name="dimensions of the prefix"))}


def outcome(settings: Settings, cells: list[Observed]) -> list[Float[np.ndarray, "seeds levels"]]:
    """For the trainings at each level: the first audience's gap after its block, its loss by the end, and re-use."""
    own = np.array([[next(x["gap/0"] for x in one if x["step"] == settings.block) for one in cell] for cell in cells]).T
    end, used = (np.array([[one[-1][what] for one in cell] for cell in cells]).T for what in ("gap/0", "reuse"))
    return [own, own - end, used]


def findings(settings: Settings, records: Records, estimates: list[dict[str, dict[str, float]]]) -> list[Finding]:
    """`records` by "ARM, LEVEL", `estimates` a seed each: level -> how alike, before training."""
    levels, found = [f"{level:g}" for level in settings.levels], []
    for what in estimates[0][levels[0]]:
        rows = np.array([[one[level][what] for level in levels] for one in estimates])
        found += [Finding(f"similarity before training, {what}, by design {level}", rows[:, i])
                  for i, level in enumerate(levels)]
    for arm in settings.conditions:
        own, lost, used = outcome(settings, [records[f"{arm}, {level}"] for level in levels])
        second = np.array([[one[-1]["gap/1"] - one[0]["gap/1"] for one in records[f"{arm}, {level}"]]
                           for level in levels]).T
        found += [Finding(f"{arm}: gap of the first audience after its block", own[:, 0])]
        found += [Finding(f"{arm}, {level}: forgetting", lost[:, i]) for i, level in enumerate(levels)]
        found += [Finding(f"{arm}, {level}: gap gained by the second audience", second[:, i])
                  for i, level in enumerate(levels)]
        found += [Finding(f"{arm}, {level}: re-use of units", used[:, i]) for i, level in enumerate(levels)]
        found += [Finding(f"{arm}: entropy of the first audience's units",
                          [one[-1]["entropy/0"] for one in records[f"{arm}, {levels[0]}"]])]
        half = np.isin(np.abs(settings.levels), 0.5)
        if half.any() and not half.all():
            found += [Finding(f"{arm}: forgetting by half alike and half opposed audiences over that by the others "
                              "(null: 0)", lost[:, half].mean(1) - lost[:, ~half].mean(1), 0.0, 0.05,
                              "half-alike audiences forget each other most: interleave those",
                              "half-alike audiences are not the worst case")]
        if not arm.startswith("private"):
            shapes = geometry_of(records, arm, levels)
            for i, line in enumerate(records[f"{arm}, {levels[0]}"][0]):
                for what, over in shapes.items():
                    if "audience 2" not in what or line["step"] > settings.block:  # the first block knows one second
                        found += [Finding(f"{arm}, step {line['step']:g}: {what}", over[:, i])]
        found += [Finding(f"{arm}: forgetting by opposite audiences over that by like ones (null: 0)",
                          lost[:, -1] - lost[:, 0], 0.0, 0.1, "the less alike audiences are, the more is forgotten",
                          "unlike audiences do not forget each other more than like ones")]
    return found


def draw(settings: Settings, records: Records, estimates: list[dict[str, dict[str, float]]]) -> Figure:
    rows = 1 + any(not arm.startswith("private") for arm in settings.conditions)  # the second is of one head only
    figure = Figure(figsize=(13, 4 * rows), layout="constrained")
    (left, middle, right), *rest = figure.subplots(rows, 3, squeeze=False)
    measured = [np.mean([one[f"{level:g}"]["gradient"] for one in estimates]) for level in settings.levels]
    for arm in settings.conditions:
        cells = [records[f"{arm}, {level:g}"] for level in settings.levels]
        _, lost, used = outcome(settings, cells)
        for axis, x, y in (left, settings.levels, lost), (middle, measured, lost), (right, settings.levels, used):
            axis.errorbar(x, y.mean(0), y.std(0) / len(y) ** 0.5, fmt="-o", capsize=2, label=arm)
        steps = [line["step"] for line in cells[0][0]]
        if arm.startswith("private"):
            continue
        for axis, (what, over) in zip(rest[0], geometry_of(records, arm, [f"{x:g}" for x in settings.levels]).items(),
                                      strict=True):
            axis.errorbar(steps, over.mean(0), over.std(0) / len(over) ** 0.5, capsize=2, label=arm)
            axis.set(title=what, xlabel="step")
            axis.title.set_fontsize(8)
    left.set(title="forgetting of the first audience", xlabel="similarity, by design")
    middle.set(title="the same", xlabel="similarity, cosine of policy gradients before training")
    right.set(title="re-use of units", xlabel="similarity, by design")
    left.legend(fontsize=7)
    return figure


def game_of(settings: Settings, arm: str, level: float, seed: int, folder: Path) -> Config:
    pair = "[" + ",".join(SECOND[level]) + "]"
    place = folder / f"{arm} {level:g}".replace(",", "").replace(" ", "_")
    return config_of(settings, "none", seed, place, f"audiences=[[colours,shapes],{pair}]")


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement: every arm and level, seed by seed. First blocks are shared by the levels of an arm."""
    for level in settings.levels:
        if level not in SECOND:
            raise DixitError(f"there is no audience of similarity {level:g}; choose levels of "
                             f"{', '.join(f'{x:g}' for x in SECOND)}")
    first = settings.levels[0]
    task = ForgettingGame(game_of(settings, ARMS[0], first, 0, folder), accelerator(folder))
    task.prepare(settings)
    names = [c.name for c in task.config.listeners]
    second = audiences.listener_indices(tuple(SECOND[level] for level in settings.levels), names)
    records: Records = {}
    estimates = []
    for seed in range(seeds):
        init = settings.init_of(seed)
        config = game_of(settings, ARMS[0], first, seed, folder)
        adapter = new_adapter(task, config, init)
        adapter.requires_grad_(False).gated_units.requires_grad_(True)
        slopes = gradients(task, adapter, settings, seed, [task.audience.pairs[0], *second])
        estimates.append({f"{level:g}": estimate_similarity(slopes[0], slope)
                          for level, slope in zip(settings.levels, slopes[1:], strict=True)})
        for arm in settings.conditions:
            task.arm = arm
            configs = [game_of(settings, arm, level, seed, folder) for level in settings.levels]
            for level, config, pair in zip(settings.levels, configs, second, strict=True):
                task.audience.pairs = [task.audience.pairs[0], pair]
                records.setdefault(f"{arm}, {level:g}", []).append(
                    train_condition(task, settings, config, init, configs[0].folder))
            for config in configs:
                shutil.rmtree(config.folder / "checkpoints", ignore_errors=True)
    return findings(settings, records, estimates), draw(settings, records, estimates)
