"""Similarity of audiences, and its effect on forgetting, on re-use of units and on their geometry.

This needs many trainings, so the speaker is replaced by a first-order expansion (first_order.py) around the trained
speaker `init`: the exact inputs of units behind the last block, and the exact gradient, through the LLM, of the
preference d for the first of two messages in the units' output. The messages are "A red" or "A circle" for a scene of
one object; d is half the difference of their logits. An audience's loss is (d - s)^2 / 2 without sampling noise, where
s is the projection of the image on a direction of the units' inputs (of the leading principal components of their
means over K, scaled to variance 1). The cosine of two audiences' directions is their similarity (Lee, Goldt, Saxe 2021;
Lee et al. 2022). Training is plain gradient descent; the mean over images is subtracted from the units' inputs, because
it would set the step size, and the inputs are divided by their spread. Score: 1 minus the loss over that of the speaker
before training, on held-out images; for the first audience also computed by the real speaker with the trained units
(one draw).

Forgetting against similarity, from small weights: heads are private (a map out of the units for each audience), or
there is one head and an audience code; the control has heads that are large from the start, so that there are no idle
units. A unit's share for an audience is the mean square of its contribution to d, over the sum over units; re-use is
the sum of min(p1, p2) of the first audience's shares before the second block and the second's at the end. Similarity is
estimated before training from the gradient G in a linear map parallel to the units: cosine of two audiences' G, of
their G'G (features), of their GG' (readout), and of the covariances of gradients in the units' output.

Gates, at similarity 0, with units like the speaker's (GatedUnits in models/adapter.py): in blocks and interleaved, with
and without Oja's rule, with sluggish codes, with three audiences; and the geometry of the units' states in 5 x 5 cells
of both features and two audiences (Flesch et al. 2022, 2023), minus each audience's mean.

A seed's results are kept in OUT/similarity/seed_SEED.json and not computed again unless settings change. Sizes, rates
and bars are [stand-in], bars declared before the runs. A reward s tanh d was tried first: it saturates, and hides
forgetting with private heads. Leaves out different readouts, and remedies other than the gate.

Shapes: n images, A audiences, K prefix tokens, W width of the adapter, H units, P components, S trainings, b rounds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from dixit.config import to_dict
from dixit.data.scenes import oracle_caption
from dixit.models.listeners import score_all
from dixit.training.candidates import draw_candidates
from dixit.training.runs import patch_batch

from ... import geometry
from ..probe import simulate
from ..theory.teacher_student import entropy, reuse
from .continual import ContinualGame, config_of
from .continual import Settings as GameSettings
from .first_order import FirstOrder, Plan, Settings, estimate_similarity, expand, nameable_scenes
from .measure import Finding, accelerator, keep, load_cached, new_adapter

# ---- setting ---------------------------------------------------------------------------------------------

TINY = Settings(levels=(0.0, 0.5, 1.0), draws=1, images=25, held=4, components=3, units=6, gate_units=6, block=6,
                every=3, batch=8, sluggish=(0.3,), candidates=3)

HEADS = {"private heads": Plan(start="small", private=True), "one head": Plan(start="small"),
         "private heads, large": Plan(start="large", private=True)}
GATES = {"none": Plan(), "gate": Plan(gated=True), "gate, uncentred": Plan(gated=True, centred=False),
         "interleaved": Plan(order="interleaved"), "interleaved, gate": Plan(order="interleaved", gated=True)}

# ---- quantities ------------------------------------------------------------------------------------------


def preferences(task: ContinualGame, rows: list[int], records: list[dict[str, Any]],
                      candidates: int) -> list[Float[Tensor, "n"]]:
    """Each audience's reward for naming the colour minus that for naming the shape: sub_prob on random pools."""
    chances = []
    for kind in "colour", "shape":
        pools = draw_candidates(np.array(rows), np.array(rows), candidates, "paid", kind)
        texts = [oracle_caption(record, {kind}) for record in records]
        chances.append(score_all(task.listeners, texts, pools).softmax(-1)[..., 0].cpu())
    more = chances[0] - chances[1]  # (L, n)
    return [more[a] - more[b] for a, b in task.audience.pairs]


def forgotten(record: dict[str, np.ndarray], settings: Settings) -> dict[str, Float[np.ndarray, "S"]]:
    """Figures of two audiences in blocks: forgetting of the first, transfer to the second, and use of units."""
    score, share, switch = record["score"], record["share"], settings.block // settings.every
    before, later = score[switch, :, 0], score[switch + 1:, :, 0]
    first, second = share[switch, :, 0], share[-1, :, 1]
    idle = first < 0.1 / first.shape[1]
    return {"forgetting": before - later[-1], "largest forgetting": before - later.min(0),
            "forgetting per step at first": (before - later[0]) / settings.every,
            "score of the first audience, once learned": before, "score of the second audience": score[-1, :, 1],
            "transfer": score[switch, :, 1] - score[0, :, 1], "reuse": reuse(np.stack([first, second], 1)),
            "entropy": entropy(first), "idle units": idle.mean(1),
            "share of idle units for the second": (second * idle).sum(1)}


def geometry_figures(states: Float[np.ndarray, "cells H"]) -> dict[str, float]:
    """Geometry of 5 x 5 cells in two audiences; model RSA without an offset between audiences."""
    a, b, context = geometry.conditions(5)
    centred = np.concatenate([side - side.mean(0) for side in np.split(np.asarray(states, float), 2)])
    models = geometry.model_rdms(5, 0.0)
    betas = geometry.rsa_betas(geometry.rdm(centred), {k: models[k] for k in ("grid", "orthogonal", "diagonal")})
    relevant, index = np.where(context == 1, b, a), geometry.selectivity_index(states, context)
    return {**{f"RSA {name}": beta for name, beta in betas.items()},
            "dimensions": geometry.participation_ratio(centred),
            "angle": geometry.axis_angle(states, relevant, context),
            "units of one audience": float((np.abs(index) > 0.9).mean()),
            "cosine of patterns": geometry.pattern_cosine(states, context)}


def of_seed(task: ContinualGame, settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """All results of a seed, means over draws: "alike" and "heads" at each similarity, "gates 2" and "gates 3" (the
    number of audiences)."""
    base: Any = new_adapter(task, replace(task.config, seed=seed), settings.init_of(seed))
    base.requires_grad_(False)
    rows, records = nameable_scenes(task.data, settings.images)
    held_rows, held_records = nameable_scenes(task.validation, settings.held)
    data = expand(task, base, task.store[rows], records)
    held = expand(task, base, task.validation_store[held_rows], held_records)
    patches = patch_batch(task.validation_store, np.array(held_rows), task.speaker.device)

    def train(plans: list[Plan], rules: Settings, count: int) -> tuple[FirstOrder, dict[str, np.ndarray]]:
        drawn = [replace(plan, draw=draw) for plan in plans for draw in range(rules.draws)]
        networks = FirstOrder(data, held, drawn, rules, seed, count)
        return networks, simulate(networks, folder / f"seed_{seed}", count * rules.block, rules.lr, rules.every)

    def over_draws(values: Float[np.ndarray, "S"], names: list[str]) -> dict[str, float]:
        return dict(zip(names, values.reshape(len(names), -1).mean(1).tolist(), strict=True))

    levels = [f"{level:g}" for level in settings.levels]
    networks, record = train([replace(plan, similarity=level) for plan in HEADS.values() for level in settings.levels],
                             settings, 2)
    names = [f"{head}, {level}" for head in HEADS for level in levels]
    found: dict[str, Any] = {"heads": {what: over_draws(values, names)
                                       for what, values in forgotten(record, settings).items()}}
    found["itself"] = {"learned": {}, "forgetting": {}}  # of one draw
    for i, name in enumerate(names):
        if not i % len(levels):  # the first audience is the same at all similarities
            learned = networks.switched.speaker_score(task, base, i * settings.draws, 0, patches, held_records)
        found["itself"]["learned"][name] = learned
        left = networks.speaker_score(task, base, i * settings.draws, 0, patches, held_records)
        found["itself"]["forgetting"][name] = learned - left
    pairs = {level: [replace(Plan(draw), similarity=float(level)).directions(seed, 2, settings.components).T
                     for draw in range(settings.draws)] for level in levels}
    estimates = {level: [estimate_similarity(data, *(networks.features @ torch.from_numpy(pair).float()).T)
                         for pair in drawn] for level, drawn in pairs.items()}
    estimates["the game"] = [estimate_similarity(data, *preferences(task, rows, records, settings.candidates)[:2])]
    found["alike"] = {what: {level: float(np.mean([one[what] for one in several]))
                             for level, several in estimates.items()} for what in estimates["the game"][0]}

    gates = GATES | {f"interleaved, gate, lag {alpha:g}": replace(GATES["interleaved, gate"], sluggish=alpha)
                     for alpha in settings.sluggish}
    for count, arms in (2, list(gates)), (3, ["none", "gate"]):
        _, record = train([gates[name] for name in arms],
                          replace(settings, units=settings.gate_units, lr=settings.gate_lr), count)
        after = record["score"][[(j + 1) * settings.block // settings.every for j in range(count)]]  # (stages, S, A)
        own = np.stack([after[j, :, j] for j in range(count)], 1)
        figures = {"kept": (after[-1] / own)[:, :-1].min(1), "first": after[-1, :, 0], "newest": after[-1, :, -1],
                   "reuse": reuse(record["share"][-1][:, :2])}
        if count == 2:
            states = [geometry_figures(s) for s in record["states"][-1].reshape(len(after[0]), 50, -1)]
            figures |= {what: np.array([one[what] for one in states]) for what in states[0]}
        found[f"gates {count}"] = {what: over_draws(values, arms) for what, values in figures.items()}
    return found


# ---- findings --------------------------------------------------------------------------------------------


def findings(settings: Settings, values: list[dict[str, Any]]) -> list[Finding]:
    """Verdicts; one value for each seed."""
    def get(part: str, what: str, name: str) -> Float[np.ndarray, "n"]:
        return np.array([one[part][what][name] for one in values])

    levels: list[str] = [f"{level:g}" for level in settings.levels]
    found: list[Finding] = []
    for head in HEADS:
        rows = {what: np.stack([get("heads", what, f"{head}, {level}") for level in levels], 1)
                for what in values[0]["heads"]}
        by_speaker = {what: np.stack([get("itself", what, f"{head}, {level}") for level in levels], 1)
                  for what in values[0]["itself"]}
        f = rows["forgetting"]
        found += [Finding(f"{head}, similarity {level}: forgetting", f[:, i]) for i, level in enumerate(levels)]
        found += [
            Finding(f"{head}: forgetting between similarity 0 and 1 over that at the worse end (null: 0)",
                    f[:, 1:-1].mean(1) - f[:, [0, -1]].max(1), 0.0, 0.03,
                    "audiences that are half alike forget each other most: interleave those",
                    "half-alike audiences are not the worst case"),
            Finding(f"{head}: forgetting at similarity 0 over that at 1 (null: 0)", f[:, 0] - f[:, -1], 0.0, 0.1,
                    "the less alike audiences are, the more they forget each other",
                    "unlike audiences do not forget each other more than like ones"),
            Finding(f"{head}: forgetting by the speaker itself less the first order's, mean over similarities",
                    (by_speaker["forgetting"] - f).mean(1)),
            Finding(f"{head}: first score once learned, by the speaker itself", by_speaker["learned"].mean(1))]
        found += [Finding(f"{head}, similarity {levels[i]}: {what}", rows[what][:, i])
                  for what in ("transfer", "reuse", "share of idle units for the second") for i in (0, -1)]
        found += [Finding(f"{head}, mean over similarities: {what}", rows[what].mean(1)) for what in (
            "score of the first audience, once learned", "score of the second audience", "largest forgetting",
            "forgetting per step at first", "entropy", "idle units")]
    for what in values[0]["alike"]:
        guessed = np.stack([get("alike", what, level) for level in levels], 1)
        found += [Finding(f"similarity estimated before training, {what}: largest error",
                          np.abs(guessed - np.array(settings.levels)).max(1)),
                  Finding(f"similarity estimated before training, {what}: of the game's audiences",
                          get("alike", what, "the game"))]

    def gates(what: str, name: str, count: int = 2) -> Float[np.ndarray, "n"]:
        return get(f"gates {count}", what, name)

    found += [Finding(f"{name}: {what}", gates(what, name)) for name in values[0]["gates 2"]["kept"]
              for what in ("first", "newest", "reuse", "RSA grid", "RSA orthogonal", "RSA diagonal", "dimensions",
                           "units of one audience")]
    found += [
        Finding("share of the first score kept, gate (null: none)", gates("kept", "gate"), gates("kept", "none"), 0.2,
                "a gate by Oja's rule keeps the first audience", "the gate keeps no more"),
        Finding("share of the first score kept, gate with names uncentred (null: none)",
                gates("kept", "gate, uncentred"), gates("kept", "none"), 0.2, "names need not be centred",
                "centre the names: else no gate forms"),
        Finding("orthogonal geometry, gate (null: none)", gates("RSA orthogonal", "gate"),
                gates("RSA orthogonal", "none"), 0.1, "the gate sets audiences on axes of their own",
                "the gate does not change the geometry"),
        Finding("least share kept of three audiences, none", gates("kept", "none", 3)),
        Finding("least share kept of three audiences, gate (null: nothing)", gates("kept", "gate", 3), 0.0, 0.9,
                "the gate serves three audiences", "Oja's rule makes two groups of units: not for three audiences")]
    for alpha in settings.sluggish:
        both = [(gates("first", name) + gates("newest", name)) / 2
                for name in ("interleaved, gate", f"interleaved, gate, lag {alpha:g}")]
        found.append(Finding(f"interleaved: mean score that a context of {alpha:g} new costs (null: 0)",
                             both[0] - both[1], 0.0, 0.05, "keep the context fresh where audiences are interleaved",
                             "a lagging context does no harm"))
    return found


# ---- figure ----------------------------------------------------------------------------------------------


def draw(settings: Settings, values: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(13, 8), layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)
    for i, head in enumerate(HEADS):
        for axis, part, what, style in ((first, "heads", "forgetting", "-o"), (first, "itself", "forgetting", ":s"),
                                        (second, "heads", "reuse", "-o"),
                                        (second, "heads", "share of idle units for the second", "--^")):
            rows = np.array([[one[part][what][f"{head}, {level:g}"] for level in settings.levels] for one in values])
            axis.errorbar(settings.levels, rows.mean(0), rows.std(0) / len(rows) ** 0.5, fmt=style, color=f"C{i}",
                          label=f"{head}: {what}{', speaker itself' if part == 'itself' else ''}", capsize=2)
    first.set(title="forgetting of the first audience", xlabel="similarity")
    second.set(title="units", xlabel="similarity")
    names = list(values[0]["gates 2"]["kept"])
    for axis, bars in (third, ("first", "newest")), (fourth, ("RSA grid", "RSA orthogonal", "RSA diagonal")):
        for i, what in enumerate(bars):
            heights = [np.mean([one["gates 2"][what][name] for one in values]) for name in names]
            axis.bar(np.arange(len(names)) + 0.25 * i, heights, 0.24, label=what)
        axis.set_xticks(np.arange(len(names)) + 0.25, [name.replace("interleaved", "int.") for name in names],
                        rotation=20, fontsize=7)
    third.set(title="scores of both audiences at the end")
    fourth.set(title="geometry of the units' states at the end")
    for axis in (first, second, third, fourth):
        axis.axhline(0, color="black", linewidth=0.8)
        axis.legend(fontsize=7)
    return figure


def run(settings: Settings, seeds: int, folder: Path) -> tuple[list[Finding], Figure]:
    """The measurement, seed by seed."""
    task: ContinualGame | None = None
    values = []
    for seed in range(seeds):
        path, key = folder / f"seed_{seed}.json", to_dict(settings) | {"init": settings.init_of(seed)}
        value = load_cached(path, key)
        if value is None:
            if task is None:
                game_settings = GameSettings(game=settings.game, pools=1, candidates=settings.candidates)
                task = ContinualGame(config_of(game_settings, "none", 0, folder), accelerator(folder))
                task.prepare(game_settings)
            value = of_seed(task, settings, seed, folder)
            keep(path, key, value)
        values.append(value)
    return findings(settings, values), draw(settings, values)
