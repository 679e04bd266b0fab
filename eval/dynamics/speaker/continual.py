"""Continual learning in the game: how much of earlier audiences the speaker forgets, with and without remedies.

Rewards only, scenes of one object. The first audience must understand colours and not shapes, the second shapes and not
places; on pictures (game=configs/pictures/continual.yaml) experts of two kinds of things take their place. Only the
gated units behind the frozen speaker `init` are trained (training/continual.py), with each remedy, in blocks or
interleaved. Recorded: the gap of every audience j after training on i, and from it forgetting, backward and forward
transfer; which units an audience uses (Fisher information of its captions about a unit's activation), the overlap of
two audiences' shares, sum of min(p1, p2), and their entropy; how well the units' states separate audiences; and, at
every validation, the geometry of the prefix: its dimensions, and on scenes whether it varies with the attribute that
serves an audience or with the one that hinders. Node-wise measures follow Lee, Goldt, Saxe (2021, 2022), gates Flesch
et al. (2023).

The practical claim, its bars declared before the runs: Hebbian gating keeps 90 % of every earlier audience's gap, where
plain training loses a third, at a cost of at most 5 % of the newest audience's gap. Controls: audience codes that are
not centred (no gate should form), and audiences interleaved (nothing to forget).

A gap is that of greedy captions on few held-out images; the reward of sampled captions over the last steps of the
newest audience's training, on many images, is reported too. Each training is kept in OUT/continual/CONDITION_SEED/
cell.json and is not run again unless its settings change: a measurement may be stopped and run again, and seeds or
conditions may be added. Remedies whose first block is the same as another condition's start from its end. Sizes and
rates are [stand-in]. Leaves out the effect of the similarity of audiences (forgetting.py, similarity.py), sluggish
codes with interleaved audiences (sluggish.py), and listeners that change.

Shapes: n held-out images, A audiences, L listeners, C candidates, H units of all layers, D LLM width.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from dixit.common import DixitError, read_json, rng, write_json
from dixit.config import ATTRIBUTES, Config, config_hash
from dixit.data import scenes
from dixit.models.listeners import score_all
from dixit.training import audiences, continual, game
from dixit.training.candidates import draw_candidates
from dixit.training.checkpoints import checkpoints, step_name
from dixit.training.game_task import GameTask
from dixit.training.loop import train
from dixit.training.runs import patch_batch
from dixit.training.task import Task

from ... import geometry
from ..theory.teacher_student import entropy, reuse
from .measure import (
    Finding,
    FromTrained,
    Observed,
    accelerator,
    configure,
    curve,
    keep,
    keep_single_object_scenes,
    load_cached,
    new_adapter,
    plot_seeds,
    remove_training,
    with_config,
)

# ---- setting ---------------------------------------------------------------------------------------------

CONDITIONS = ("none", "replay", "ewc_nodes", "hebbian_gate", "hebbian_gate+sluggish", "hebbian_gate uncentred",
              "none interleaved")
SAME_START = {"replay": "none", "ewc_nodes": "none", "hebbian_gate+sluggish": "hebbian_gate"}  # their first block


@dataclass(frozen=True)
class Settings(FromTrained):
    """One step is `batch` images x `messages` messages."""

    game: str = "configs/continual.yaml"
    conditions: tuple[str, ...] = CONDITIONS  # a remedy, and "uncentred" or "interleaved"
    block: int = 20  # steps for each audience
    every: int = 10
    batch: int = 8
    messages: int = 4
    tokens: int = 12
    lr: float = 1e-3
    holding: float = 1.0  # of ewc_nodes
    candidates: int = 10
    rounds: int = 40  # held-out images
    pools: int = 32  # of candidates, for each of them
    used: int = 16  # images from which the units in use are estimated


TINY = Settings(block=4, every=2, batch=4, messages=2, tokens=6, candidates=3, rounds=4, pools=4, used=4)

AT_THE_END = ("reuse", "entropy/0", "entropy/1", "units of one audience", "cosine of unit patterns", "drive")

# ---- the game --------------------------------------------------------------------------------------------


class ContinualGame(GameTask):
    """The game on scenes of one object, or pictures; validation measures each audience's gap and use of the units."""

    said = Task.said  # nothing: curves are looked at, not captions

    def prepare(self, settings: Settings) -> None:
        """Keep the scenes of one object, and draw validation pools."""
        if on_scenes := all(self.data["record"]):
            keep_single_object_scenes(self)
        everyone = np.arange(len(self.validation))
        self.rounds = everyone[:settings.rounds]
        self.pools = torch.stack([draw_candidates(self.rounds, everyone, settings.candidates, "observe", i)
                                  for i in range(settings.pools)], 1)  # (n, pools, C)
        self.block, self.used = settings.block, settings.used
        self.labels: dict[str, np.ndarray] = {}  # of scenes' objects, by attribute
        if on_scenes:
            objects = [json.loads(self.validation["record"][int(i)])["objects"][0] for i in self.rounds]
            self.labels = {kind: np.array([scenes.position(o["cell"]) if kind == "position" else o[kind]
                                           for o in objects]) for kind in ATTRIBUTES}

    def begin(self) -> None:
        """Change the units of a new training before its first step."""

    @property
    def names(self) -> Float[Tensor, "A A"]:
        count = len(self.audience.pairs)
        return continual.audience_codes(np.arange(count), count, self.config.continual.centred).to(self.speaker.device)

    @torch.no_grad()
    def gaps(self, patches: Float[Tensor, "n P Dv"], context: Float[Tensor, "n A"],
             audience: int) -> tuple[float, float]:
        """An audience's gap and its reward sub_prob, of greedy captions: means over images and pools."""
        prefix = self.speaker.trained(patches, context)
        texts = self.speaker.decode(*self.speaker.sample(prefix)[:2])
        everyone = torch.arange(len(self.validation)).expand(len(texts), -1)
        logits = score_all(self.validation_listeners, texts, everyone).cpu()  # (L, n, all)
        tried = logits[:, :, None].expand(-1, -1, self.pools.shape[1], -1).gather(-1, self.pools.expand(
            len(logits), -1, -1, -1)).flatten(1, 2)
        weights = audiences.round_weights([self.audience.pairs[audience]] * tried.shape[1], len(logits))
        return (float(game.gap(game.hits(tried), weights).mean()),
                float(game.listener_reward("sub_prob", tried, weights).mean()))

    def states(self, patches: Float[Tensor, "n P Dv"]) -> tuple[Float[np.ndarray, "An H"], Float[np.ndarray, "An D"]]:
        """Every audience's unit activations and prefixes for the same images, means over K; audiences in order."""
        active: list[Tensor] = []
        hooks = [units.relu.register_forward_hook(lambda _, __, a: active.append(a.mean(1)))
                 for units in self.remedy.units]
        with torch.no_grad():
            prefix = torch.cat([self.speaker.trained(patches, name.expand(len(patches), -1)).mean(1)
                                for name in self.names])
        for hook in hooks:
            hook.remove()
        layers = len(self.remedy.units)
        units = torch.cat([torch.cat(active[i::layers]) for i in range(layers)], 1)
        return units.double().cpu().numpy(), prefix.double().cpu().numpy()

    def shares(self, patches: Float[Tensor, "n P Dv"], step: int) -> Float[np.ndarray, "A H"]:
        """The share of each unit, over all layers, in the captions for each audience."""
        draws = rng("used", self.config.seed, step).random((len(patches), self.config.speaker.max_tokens))
        uniforms = torch.from_numpy(draws.astype(np.float32)).to(self.speaker.device)
        found = [torch.cat(continual.unit_importance(self.speaker, self.speaker.trained, patches,
                                                name.expand(len(patches), -1), uniforms)) for name in self.names]
        return np.stack([(f / f.sum().clamp(min=1e-30)).double().cpu().numpy() for f in found])

    def validate(self, step: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        patches = patch_batch(self.validation_store, self.rounds, self.speaker.device)
        for j, name in enumerate(self.names):
            figures[f"gap/{j}"], figures[f"reward/{j}"] = self.gaps(patches, name.expand(len(patches), -1), j)
        units, prefix = self.states(patches)
        two, context = slice(0, 2 * len(patches)), np.repeat([0.0, 1.0], len(patches))  # the first two audiences
        gate = torch.cat([part.gate.weight for part in self.remedy.units]).detach() @ self.names.T
        index = geometry.selectivity_index(units[two], context)
        for j, who in enumerate(self.audience.pairs[:2] if self.labels else ()):
            mine = prefix[j * len(patches):(j + 1) * len(patches)]
            kinds = [self.config.listeners[i].domain for i in who]
            serves, hinders = (geometry.explained(mine, self.labels[k]) if k else 0.0 for k in kinds)
            figures |= {f"serves/{j}": serves, f"hinders/{j}": hinders}
        figures |= {"dimensions of the prefix": geometry.participation_ratio(prefix),
                    "cosine of unit patterns": geometry.pattern_cosine(units[two], context),
                    "units of one audience": float((np.abs(index) > 0.9).mean()),
                    "drive": float(gate.abs().mean()) / continual.LENGTH}
        if step and step % self.block == 0:
            p = self.shares(patches[:self.used], step)
            figures |= {"reuse": float(reuse(p[:2]))} | {f"entropy/{j}": float(entropy(row)) for j, row in enumerate(p)}
        return figures


def condition(name: str) -> list[str]:
    """Overrides of a condition's name."""
    remedy, *more = name.split()
    lags = [word.removeprefix("lag=") for word in more if word.startswith("lag=")]
    if len(lags) > 1 or {word for word in more if not word.startswith("lag=")} - {"uncentred", "interleaved"}:
        raise DixitError(f"'{name}' is no condition; write a remedy, then any of uncentred, interleaved, lag=0.1")
    return [f"continual.remedy={remedy}", f"continual.centred={'uncentred' not in more}",
            f"continual.order={'interleaved' if 'interleaved' in more else 'blocked'}",
            *(f"continual.sluggish={lag}" for lag in lags)]


def train_condition(task: ContinualGame, settings: Settings, config: Config, init: str,
                    start: Path) -> list[dict[str, float]]:
    """Run a training, or load it from its folder if it is finished; returns its validation figures.

    A training that was stopped continues from the end of its last block. One whose first block is the same as that of
    the training in `start` starts from the end of that block.
    """
    folder, block = config.folder, step_name(settings.block)
    key = {"config": config_hash(config), "init": init,
           "seen": [settings.block, settings.every, settings.rounds, settings.pools, settings.used]}
    values = load_cached(folder / "cell.json", key)
    if values is not None:
        return values
    if not (folder / "key.json").is_file() or read_json(folder / "key.json") != key:
        remove_training(folder)
        write_json(folder / "key.json", key)
    if not checkpoints(folder) and (start / "checkpoints" / block).is_dir():
        shutil.copytree(start / "checkpoints" / block, folder / "checkpoints" / block)
        shutil.copyfile(start / "log.jsonl", folder / "log.jsonl")
    adapter = new_adapter(task, config, init)
    adapter.requires_grad_(False).gated_units.requires_grad_(True)
    one = with_config(task, config, adapter)
    one.begin()
    one.base = copy.deepcopy(adapter).requires_grad_(False)
    first = [] if checkpoints(folder) else [{"step": 0.0, **one.validate(0)}]
    if first:
        write_json(folder / "first.json", first)
    train(config, one, accelerator(folder))
    for place in checkpoints(folder):
        if place.name != block:
            shutil.rmtree(place)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = [{"step": float(line["step"]),
             "sampled": float(np.mean([x["term/listeners"] for x in lines[max(0, i + 1 - settings.every):i + 1]
                                       if "term/listeners" in x])),
             **{k.removeprefix("eval/"): v for k, v in line.items() if k.startswith("eval/")}}
            for i, line in enumerate(lines) if "eval/gap/0" in line]
    first = read_json((folder if (folder / "first.json").is_file() else start) / "first.json")
    keep(folder / "cell.json", key, [*first, *seen])
    return [*first, *seen]


# ---- findings --------------------------------------------------------------------------------------------

Records = dict[str, Observed]  # by condition
MIN_GAP = 0.1  # if an audience's gap after its own block is smaller, the share kept is not defined


def stages(records: list[dict[str, float]], block: int) -> Float[np.ndarray, "A A"]:
    """The gap of each audience j after the block of i."""
    at = {int(line["step"]): line for line in records}
    count = sum(key.startswith("gap/") for key in records[0])
    return np.array([[at[(i + 1) * block][f"gap/{j}"] for j in range(count)] for i in range(count)])


def share_kept(after: Float[np.ndarray, "A A"]) -> float:
    """The smallest share of an earlier audience's gap that is left at the end; NaN if one was hardly learned."""
    own = np.diag(after)[:-1]
    return float((after[-1, :-1] / own).min()) if own.min() >= MIN_GAP else float("nan")


def blocked_figures(records: list[dict[str, float]], block: int, every: int) -> dict[str, float]:
    """Figures of a training in blocks: forgetting of the first audience, and transfer."""
    after, first = stages(records, block), [line["gap/0"] for line in records if line["step"] >= block]
    before = np.array([records[0][f"gap/{j}"] for j in range(len(after))])
    return {"gap of the first audience after its block": first[0],
            "share of an earlier gap that is kept": share_kept(after),
            "forgetting per step at first": (first[0] - first[1]) / every,
            "largest forgetting": first[0] - min(first[1:]), "forgetting at the end": first[0] - first[-1],
            **{f"{name} transfer": value for name, value in geometry.transfer(after, before).items()}}


def selectivity(rows: Observed, audience: int) -> Float[np.ndarray, "seeds times"]:
    """The share of the variance of an audience's prefix explained by the attribute that serves it, minus that explained
    by the attribute that hinders, over images of one object."""
    return curve(rows, f"serves/{audience}") - curve(rows, f"hinders/{audience}")


def has_selectivity(rows: Observed) -> bool:
    """Whether the attributes of the images are known."""
    return "serves/0" in rows[0][0]


def findings(settings: Settings, records: Records) -> list[Finding]:
    """Verdicts; the practical claim where both its conditions were run."""
    last = {name: np.array([[line[f"gap/{j}"] for j in range(sum(k.startswith("gap/") for k in line))]
                            for line in (one[-1] for one in rows)]) for name, rows in records.items()}
    found = [Finding(f"before: gap of audience {j + 1}", [one[0][f"gap/{j}"] for one in next(iter(records.values()))])
             for j in range(next(iter(last.values())).shape[1])]
    shares_left: dict[str, np.ndarray] = {}
    for name, rows in records.items():
        found += [Finding(f"{name}: gap of audience {j + 1} at the end", last[name][:, j])
                  for j in range(last[name].shape[1])]
        if "interleaved" not in name:
            figures = [blocked_figures(one, settings.block, settings.every) for one in rows]
            shares_left[name] = np.array([one["share of an earlier gap that is kept"] for one in figures])
            found += [Finding(f"{name}: {what}", [one[what] for one in figures]) for what in figures[0]]
        found += [Finding(f"{name}: {what} at the end", [one[-1][what] for one in rows]) for what in AT_THE_END]
        found += [Finding(f"{name}: variance of audience {j + 1}'s prefix by what serves less that by what hinders, at "
                          "the end (null: before)", selectivity(rows, j)[:, -1], selectivity(rows, j)[:, 0], 0.1,
                          "the prefix comes to hold what serves the audience", "the prefix holds what it held")
                  for j in range(2) if has_selectivity(rows)]
    if {"none", "hebbian_gate"} <= shares_left.keys():
        gated, lost = shares_left["hebbian_gate"], 1 - shares_left["none"]
        sampled = {name: np.array([one[-1]["sampled"] for one in records[name]]) for name in ("none", "hebbian_gate")}
        plain = last["none"][:, -1]
        cost = 1 - last["hebbian_gate"][:, -1] / np.where(plain >= MIN_GAP, plain, np.nan)
        found += [
            Finding("claim: share of an earlier gap that Hebbian gating keeps (null: nothing)", gated, 0.0, 0.9,
                    "hebbian_gate keeps what earlier audiences were taught", "do not rely on hebbian_gate alone"),
            Finding("claim: share that plain training loses (null: nothing)", lost, 0.0, 1 / 3,
                    "plain training forgets: use a remedy", "plain training forgets too little to need a remedy"),
            Finding("claim: share of the newest gap that gating costs (null: nothing)", cost, 0.0, 0.05,
                    "gating costs the newest audience: give it more units or steps", "gating is as good as free"),
            Finding("the same of the reward of sampled captions in training", 1 - sampled["hebbian_gate"] /
                    np.where(sampled["none"] >= MIN_GAP, sampled["none"], np.nan)),
            Finding("the practical claim, all three: least of kept/0.9, lost/(1/3), (1 - cost)/0.95 (null: 0)",
                    np.min([gated / 0.9, lost * 3, (1 - cost) / 0.95], 0), 0.0, 1.0,
                    "use hebbian_gate for audiences met one after another", "the claim does not hold as declared")]
    for name in [name for name in shares_left if "none" in shares_left and name != "none"]:
        found.append(Finding(f"{name}: share of an earlier gap that is kept (null: plain training)", shares_left[name],
                             shares_left["none"], 0.2, f"{name} keeps earlier audiences", f"{name} keeps no more"))
    if {"none", "none interleaved"} <= last.keys():
        found.append(Finding("interleaved: gap of the first audience at the end (null: in blocks)",
                             last["none interleaved"][:, 0], last["none"][:, 0], 0.1,
                             "interleave audiences where they can be", "the order of audiences does not matter"))
    fresh = "hebbian_gate interleaved"
    for name in [name for name in last if "lag=" in name and "interleaved" in name and fresh in last]:
        found.append(Finding(f"{name}: mean gap that the lag costs (null: 0)",
                             last[fresh].mean(1) - last[name].mean(1), 0.0, 0.05,
                             "keep the context fresh where audiences are interleaved",
                             "a lagging context does no harm"))
    return found


# ---- figure ----------------------------------------------------------------------------------------------


def draw(settings: Settings, records: Records) -> Figure:
    figure = Figure(figsize=(15, 8), layout="constrained")
    (first, second, right), (first_selectivity, second_selectivity, dimensions) = figure.subplots(2, 3)
    for i, (name, rows) in enumerate(records.items()):
        steps, shown = [line["step"] for line in rows[0]], f"C{i % 10}"
        shown_of = [(first, curve(rows, "gap/0")), (second, curve(rows, "gap/1")),
                    (dimensions, curve(rows, "dimensions of the prefix"))]
        if has_selectivity(rows):
            shown_of += [(first_selectivity, selectivity(rows, 0)), (second_selectivity, selectivity(rows, 1))]
        for axis, values in shown_of:
            plot_seeds(axis, steps, values, name, shown, "-" if i < 10 else "--")
    for j, (gap, selective) in enumerate(((first, first_selectivity), (second, second_selectivity))):
        gap.set(title=f"gap of audience {j + 1}", xlabel="step")
        selective.set(title=f"prefix of audience {j + 1}: variance by what serves less by what hinders", xlabel="step")
    dimensions.set(title="dimensions of the prefix", xlabel="step")
    for axis in (first, second, first_selectivity, second_selectivity, dimensions):
        axis.axvline(settings.block, color="black", linewidth=0.8)
    first.legend(fontsize=7)
    for i, what in enumerate(AT_THE_END):
        right.barh(np.arange(len(records)) - 0.2 * i, [np.mean([one[-1][what] for one in rows]) for rows in
                                                       records.values()], 0.18, label=what)
    right.set_yticks(np.arange(len(records)) - 0.3, list(records), fontsize=7)
    right.set(title="units at the end")
    right.invert_yaxis()
    right.legend(fontsize=7)
    return figure


def config_of(settings: Settings, name: str, seed: int, folder: Path, *more: str) -> Config:
    count = len(configure(settings.game, 0, folder).audiences)
    return configure(
        settings.game, seed, folder / f"{name}_{seed}", *condition(name), f"continual.ewc_strength={settings.holding}",
        f"train.save_every={settings.block}", "train.keep_last=9", *more, tokens=settings.tokens, batch=settings.batch,
        samples=settings.messages, candidates=settings.candidates, lr=settings.lr, warmup=0,
        steps=count * settings.block, every=settings.every)


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement: every condition, seed by seed."""
    task = ContinualGame(config_of(settings, "none", 0, folder), accelerator(folder))
    task.prepare(settings)
    records: Records = {}
    for seed in range(seeds):
        configs = {name: config_of(settings, name, seed, folder) for name in settings.conditions}
        for name in sorted(configs, key=lambda name: name in SAME_START):
            config, start = configs[name], configs.get(SAME_START.get(name, name), configs[name]).folder
            records.setdefault(name, []).append(
                train_condition(task, settings, config, settings.init_of(seed), start))
        for config in configs.values():
            shutil.rmtree(config.folder / "checkpoints", ignore_errors=True)
    return findings(settings, records), draw(settings, records)
