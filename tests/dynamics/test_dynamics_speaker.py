"""eval.dynamics.speaker: the rule of verdicts, the quantities by hand, and every measurement on tiny models."""

from __future__ import annotations

import copy
import dataclasses
import json
import shlex

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from dixit.common import DixitError, rng
from dixit.config import build, read_tree, to_dict
from dixit.models.adapter import Adapter
from dixit.training.runs import patch_batch
from eval.dynamics.find import find_probe, probe_names
from eval.dynamics.pages import FindingRow
from eval.dynamics.running import report, run_probe
from eval.dynamics.speaker import bias_free, curricula, measure, ocs, rich, unimodal
from eval.dynamics.speaker.measure import Finding, judge, table
from eval.tables import read_cells, read_table

NAMES = ("bias_free", "curricula", "ocs", "rich", "unimodal")


def tiny_settings(module, tiny, init=""):
    """The module's TINY on the tiny models."""
    paths = {"captions": str(tiny.caption_config), "words": str(tiny.caption_config), "game": str(tiny.game_config),
             "init": str(init)}
    known = {f.name for f in dataclasses.fields(module.TINY)}
    return dataclasses.replace(module.TINY, **{k: v for k, v in paths.items() if k in known})


def tiny_task(make, tiny, tmp_path, *overrides):
    config = measure.configure(str(tiny.caption_config), 0, tmp_path / "task", "speaker.init=''", *overrides)
    return make(config, measure.accelerator(tmp_path)), config


# ---- the rule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("difference", "bar", "verdict"), [
    ([0.3, 0.31, 0.29], 0.1, "present"),
    ([0.0, 0.01, -0.01], 0.1, "absent"),
    ([-0.5, -0.5, -0.4], 0.1, "absent"),
    ([0.05, 0.06, 0.05], 0.1, "absent"),  # surely there, and too small to matter
    ([0.0, 0.3, 0.6], 0.1, "inconclusive"),  # large on average, but within its own error
    ([0.0, 0.1, 0.2], 0.15, "inconclusive"),
    ([0.3, np.nan, 0.3], 0.1, "inconclusive"),
    ([5.0], 0.1, "inconclusive")])
def test_the_rule(difference, bar, verdict):
    assert judge(np.array(difference), bar) == verdict


def test_a_finding_is_held_against_its_null_and_carries_the_advice_of_its_verdict():
    found = Finding("x | y", [1.0, 1.1, 0.9], [0.5, 0.6, 0.4], 0.2, "do", "leave")
    assert found.verdict == "present" and found.row()["advice"] == "do" and found.row()["null"] == pytest.approx(0.5)
    assert found.row()["se"] == pytest.approx(0.1 / 3 ** 0.5)
    assert dataclasses.replace(found, null=1.0).row()["advice"] == "leave"
    plain = Finding("figure", [1.0, np.nan])
    assert plain.row()["mean"] is None and plain.row()["verdict"] == "" and plain.row()["values"] == [1.0, None]
    text = table([found.row(), plain.row()])
    assert "x \\| y" in text and "**present**" in text and "- x | y: present; do." in text and "no bar" in text


# ---- every measurement, small ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_measurement_runs_with_a_null_and_a_verdict(name, home, caption_run, tmp_path):
    module = find_probe(name, "speaker")
    assert name in probe_names("speaker") and name in probe_names()
    findings, figure = module.run(tiny_settings(module, home, caption_run), 2, tmp_path)
    names = [f.name for f in findings]
    assert len(set(names)) == len(names) and figure.axes
    judged = [f for f in findings if f.bar is not None]
    assert judged and all(f.bar > 0 and f.present and f.absent and "null" in f.name or "share" in f.name
                          or "over" in f.name for f in judged)
    assert all(len(f.values) in (1, 2) for f in findings)
    assert not list(tmp_path.glob("*/checkpoints"))


def test_command_and_report(home, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(to_dict(tiny_settings(bias_free, home))))
    results = run_probe("bias_free", 2, tmp_path / "run", settings, on="speaker")
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "claims" not in saved and saved["findings"] == results["findings"]
    place = tmp_path / "place"
    report([tmp_path / "run"], place)
    page = (place / "docs/dynamics/bias_free.md").read_text()
    assert "## On the speaker" in page and "(../../eval/results/dynamics/speaker/bias_free.png)" in page
    assert (place / "eval/results/dynamics/speaker/bias_free.png").is_file()
    rows = read_table(place / "eval/results/dynamics_speaker.csv", FindingRow)
    assert [(r.finding, r.verdict) for r in rows] == [(f["finding"], f["verdict"]) for f in results["findings"]]
    for row, found in zip(rows, results["findings"], strict=True):
        assert row.mean == pytest.approx(found["mean"], rel=1e-5) and row.bar == found["bar"]
        assert [float(v) for v in row.values.split()] == pytest.approx(found["values"], rel=1e-5)
        assert found["advice"] in page
    (tmp_path / "run").rename(tmp_path / "bias_free_long")  # a variant stands beside the first run
    report([tmp_path / "bias_free_long"], place)
    index, variant = (place / "eval/DYNAMICS.md").read_text(), (place / "docs/dynamics/bias_free_long.md").read_text()
    assert "## [bias_free](" in index and "## [bias_free_long](" in index
    assert index.count("A variant of bias_free.") == variant.count("A variant of bias_free.") == 1
    assert (place / "docs/dynamics/bias_free.md").read_text() == page and bias_free.__doc__.strip() in page
    assert bias_free.__doc__.strip() not in variant and "/speaker/bias_free_long.png" in variant
    for cell in read_cells(place / "eval/results"):  # as --set takes them
        words = shlex.split(cell.note)
        assert build(bias_free.Settings, read_tree(None, words[words.index("--set") + 1:])) == tiny_settings(
            bias_free, home)
    with pytest.raises(DixitError, match="on the speaker; did you mean 'rich'"):
        find_probe("ritch", "speaker")
    assert "speaker" not in probe_names() and "measure" not in probe_names("speaker")


def test_the_same_seed_gives_the_same_numbers(home, tmp_path):
    settings = tiny_settings(unimodal, home)
    first, with_config = (unimodal.run(settings, 1, tmp_path / "run")[0] for _ in range(2))
    assert [f.row() for f in first] == [f.row() for f in with_config]


# ---- ocs -------------------------------------------------------------------------------------------------


def test_quantities_at_the_ocs_and_at_the_captions():
    p = rng("test").dirichlet(np.full(6, 0.5), size=5)
    p[0, 0] = 0
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    flat = np.tile(mean, (5, 1))
    lacks = np.ones((5, 6), bool)
    assert ocs.marginal_distance(mean, flat) == pytest.approx(0) == pytest.approx(ocs.image_dependence(flat))
    assert ocs.ocs_distance(mean, flat) == pytest.approx(0) and ocs.ocs_distance(mean, p) > 0.1
    assert ocs.negative_slope(mean, flat, np.arange(6), lacks) == pytest.approx(1)
    assert ocs.marginal_distance(mean, p) == pytest.approx(0) and ocs.image_dependence(p) > 0.1
    # A speaker that names words of images that hold them only: no false word at all.
    right = np.eye(6)[:5]
    assert ocs.negative_slope(mean, right, np.arange(5), ~np.eye(5, dtype=bool)) == pytest.approx(0)
    by_hand = sum(a * np.log(a / b) for a, b in zip(p[1], flat[1], strict=True) if a > 0)
    assert ocs.divergence(p, flat)[1] == pytest.approx(by_hand)


def test_information_of_messages_by_hand():
    own = np.repeat(np.arange(3), 2)
    distinct = np.where(own[:, None] == np.arange(3), np.log(0.5), -800.0)  # two messages for each image, no overlap
    entropy, information = ocs.message_information(distinct, own)
    assert information == pytest.approx(np.log(3)) and entropy == pytest.approx(np.log(6))
    entropy, information = ocs.message_information(np.full((6, 3), np.log(0.25)), own)
    assert information == pytest.approx(0) and entropy == pytest.approx(np.log(4))


def test_the_best_constant_message_is_chosen_and_valued_on_other_rounds():
    paid = np.eye(4)
    assert ocs.rewards(paid) == (1.0, 0.0, 0.0)
    paid[2] = 0.6
    assert ocs.rewards(paid)[2] == pytest.approx(0.6)
    noise = rng("test").standard_normal((40, 60, 60))
    assert abs(np.mean([ocs.rewards(paid)[2] for paid in noise])) < 0.08 < noise.mean(2).max(1).mean() - 0.1


def test_an_output_bias_of_zero_changes_nothing_and_is_trained(home, tmp_path):
    task, config = tiny_task(ocs.OcsCaptions, home, tmp_path, "speaker.max_tokens=6")
    task.prepare(ocs.TINY)
    plain = measure.new_adapter(task, config)
    vocabulary = len(task.speaker.llm.get_input_embeddings().weight)
    biased = measure.with_config(task, config, ocs.OutputBias(plain, vocabulary, 9.0))
    task = measure.with_config(task, config, plain)
    loss, other = task.loss(0, 0)[0], biased.loss(0, 0)[0]
    torch.testing.assert_close(loss, other, rtol=1e-4, atol=1e-4)
    for name, value in task.validate(0).items():
        assert biased.validate(0)[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    other.backward()
    assert biased.trained.raw.grad.abs().max() > 0
    assert task.p.sum() == pytest.approx(1) and (task.p > 0).sum() > 5
    assert task.lacks.shape == (len(task.described), len(task.words))


def test_wrong_captions_are_those_of_other_images():
    source = ocs.WrittenCaptions([["one"], ["two"], ["three"]])
    assert ocs.WrongCaptions(source).draw(np.array([0, 2, 1])) == (None, [["two"], ["one"], ["three"]])


def test_a_blind_game_pays_for_another_image(home, tmp_path):
    config = measure.configure(str(home.game_config), 0, tmp_path, "speaker.init=''")
    task = ocs.MessageGame(config, measure.accelerator(tmp_path))
    index = np.array([3, 5, 8])
    assert task.candidates(0, index)[:, 0, 0].tolist() == [3, 5, 8]
    task.blind = True
    assert task.candidates(0, index)[:, 0, 0].tolist() == [8, 3, 5]


def ocs_curves(slope: float, seen: float) -> dict[str, np.ndarray]:
    """Made-up captions: D falls fast; I and G are at `seen` of the trained speaker's 1 when it has."""
    fall = np.tile([10.0, 4.0, 0.5, 0.1], (3, 1))
    rise = np.tile([0.0, 0.0, seen, 1.0], (3, 1)) + np.array([[0.0], [0.001], [0.002]])
    return {"D": fall, "I": rise, "G": rise, "slope": np.full((3, 4), slope) + 0.01 * np.arange(3)[:, None],
            "step": np.tile([0.0, 1, 2, 3], (3, 1)), "anisotropy": np.full((3, 4), 0.9)}


def test_verdicts_of_ocs_follow_the_curves():
    game = {k: np.tile([1.0, 1.0], (3, 1)) for k in ("I", "H", "reward", "best constant", "reward of others", "step")}
    fallen = game | {"I": np.tile([1.0, 0.2], (3, 1))}
    reference = {"I": np.ones(3), "G": np.ones(3), "slope": np.array([0.3, 0.31, 0.29])}

    def verdicts(slope: float, seen: float, played: dict) -> list[str]:
        arms = dict.fromkeys(ocs.ARMS, ocs_curves(slope, seen))
        return [f.verdict for f in ocs.findings(arms, {"game": played, "blind game": fallen}, reference)]

    there, gone = verdicts(1.0, 0.0, fallen), verdicts(0.3, 0.8, game)
    assert [v for v in there if v] == ["present"] * 4 + ["absent", "absent", "present", "absent"]
    assert [v for v in gone if v] == ["absent"] * 8


# ---- bias_free -------------------------------------------------------------------------------------------


def test_even_share_and_departure():
    z = rng("test").standard_normal((50, 3))
    assert bias_free.even_share(z, -z) == 0 and bias_free.even_share(z, z) == 1
    weights = rng("test", 1).standard_normal((3, 4000)), rng("test", 2).standard_normal((4000, 5))
    plus, minus = (np.maximum(s * z @ weights[0], 0) @ weights[1] for s in (1, -1))
    assert bias_free.even_share(plus, minus) == pytest.approx(0.5, abs=0.1)
    curve = np.linspace(2, 1, 9)
    assert bias_free.departure(curve, curve) == 0
    assert bias_free.departure(curve, np.where(np.arange(9) > 4, curve + 0.2, curve)) == pytest.approx(0.2)


def test_the_linear_partner_and_its_rate(home, tmp_path):
    settings = bias_free.TINY
    task, config = tiny_task(bias_free.MlpWords, home, tmp_path, "speaker.prefix=2")
    task.prepare(settings)
    relu, linear = (task.adapter(settings, 0, arm) for arm in ("ReLU", "linear"))
    torch.testing.assert_close(relu.first, 2 ** 0.5 * linear.first)
    losses = []
    for adapter in (relu, linear):
        one = measure.with_config(task, config, adapter)
        losses.append(one.loss(0, 0)[0])
        losses[-1].backward()
    full = linear.second.grad.clone()
    linear.second.grad = None
    linear.rate = 1.0
    measure.with_config(task, config, linear).loss(0, 0)[0].backward()
    torch.testing.assert_close(linear.second.grad, 2 * full)
    z, target = task.odd_target(settings, 0)
    assert torch.linalg.matrix_rank(target) == 1
    assert float(target.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)


def test_on_the_odd_target_the_relu_follows_its_partner(home, tmp_path):
    """Small weights, enough time: the even part goes, and the loss is that of the linear network at t/2."""
    findings, _ = bias_free.run(tiny_settings(bias_free, home), 2, tmp_path)
    null = {f.name.split(" (")[0]: np.asarray(f.null) for f in findings if "odd target" in f.name}
    even, away = null.values()
    end = next(f for f in findings if f.name.startswith("null: loss"))
    assert (even < 0.1).all() and (away < 0.1).all() and (np.asarray(end.values) < 0.5).all()


# ---- rich ------------------------------------------------------------------------------------------------


def adapter_of(task, config) -> Adapter:
    adapter = measure.new_adapter(task, config)
    with torch.no_grad():
        for p in adapter.parameters():  # norms and biases as training leaves them: not 1 and 0
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return adapter


def test_what_gradient_descent_conserves(home, tmp_path):
    task, config = tiny_task(rich.KernelCaptions, home, tmp_path, "speaker.layers=2")
    before = adapter_of(task, config).double()
    after = copy.deepcopy(before)
    patches = patch_batch(task.store, np.arange(8), task.speaker.device).double()
    target = torch.randn(before(patches).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(20):
        loss = (after(patches) - target).square().sum()
        grads = torch.autograd.grad(loss, list(after.parameters()))
        with torch.no_grad():
            for p, g in zip(after.parameters(), grads, strict=True):
                p -= 1e-6 * g
    drift = rich.drifts(before, after, 0)
    assert set(drift) == {*rich.EXACT, "MLP"} and all(drift[name] < 1e-2 for name in rich.EXACT), drift
    assert drift["MLP"] > 0.1
    random = rich.shuffled_move(before, after, 1)
    assert all(rich.drifts(before, random, 0)[name] > 0.3 for name in rich.EXACT)


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_a_rescaled_adapter_is_the_same_function(home, tmp_path, alpha):
    task, config = tiny_task(rich.KernelCaptions, home, tmp_path)
    adapter = adapter_of(task, config)
    other = rich.rescale(adapter, alpha)
    assert rich.check_function(task, adapter, other) < 1e-4
    torch.testing.assert_close(other.outputs[1].weight, alpha * adapter.outputs[1].weight)
    with torch.no_grad():
        other.outputs[1].weight *= 1.05
    with pytest.raises(DixitError, match="another function"):
        rich.check_function(task, adapter, other)


def test_the_kernel_is_that_of_the_logit(home, tmp_path):
    task, config = tiny_task(rich.KernelCaptions, home, tmp_path, "speaker.max_tokens=6")
    task.prepare(rich.TINY)
    adapter = task.speaker.trained
    rows = []
    for i, token in zip(task.items, task.item_tokens[:, 1], strict=True):
        prefix = adapter(patch_batch(task.validation_store, np.array([i]), task.speaker.device))
        embed = task.speaker.llm.get_input_embeddings()
        inputs = torch.cat([embed.weight[task.speaker.start].expand(1, 1, -1), prefix, embed(task.start[:1])], 1)
        logit = task.speaker.llm(inputs_embeds=inputs).logits[0, -1, token]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(logit, list(adapter.parameters()))]))
    brute = (torch.stack(rows) @ torch.stack(rows).T).numpy()
    np.testing.assert_allclose(task.kernel(), brute, rtol=1e-3)
    assert rich.kernel_change(brute, 3 * brute) == pytest.approx(0, abs=1e-7)
    assert rich.kernel_change(np.diag([1.0, 0]), np.diag([0, 1.0])) == 1


def test_verdicts_of_rich_follow_the_numbers():
    noise = np.array([0.0, 0.002, -0.002])
    drift = {"SGD": {k: 0.01 + noise for k in (*rich.EXACT, "MLP")}, "AdamW": {k: 0.9 + noise for k in rich.EXACT}}
    early = {0.1: 0.001 + noise / 100, 1.0: 0.01 + noise, 10.0: 0.1 + noise}
    gaps = {"0.1": 0.1 + noise, "1": 0.1 + noise, "10": 0.3 + noise, "1 again": 0.11 + noise}
    found = {f.name: f.verdict for f in rich.findings(drift, early, early, gaps, np.zeros(3)) if f.verdict}
    assert [v for k, v in found.items() if k.startswith("SGD: share")] == ["present"] * 3
    assert [v for k, v in found.items() if k.startswith("AdamW: share")] == ["absent"] * 3
    assert [v for k, v in found.items() if "log10" in k] == ["present"]
    assert [v for k, v in found.items() if k.startswith("game: |gap")] == ["absent", "present"]


# ---- curricula -------------------------------------------------------------------------------------------


def test_arms_have_as_many_hard_steps():
    first, mix, hard = (curricula.hard_steps(arm, 12, 0) for arm in curricula.ARMS)
    assert first.sum() == mix.sum() == 6 and hard.all() and first[6:].all() and not (mix == first).all()


def test_hard_steps_draw_from_the_nearest(home, tmp_path):
    config = measure.configure(str(home.game_config), 0, tmp_path, "speaker.init=''", "game.candidates=3")
    task = curricula.CurriculumGame(config, measure.accelerator(tmp_path))
    task.prepare(dataclasses.replace(curricula.TINY, candidates=2))
    assert all(len(json.loads(record)["objects"]) == 1 for record in task.data["record"])
    assert len(task.store) == len(task.data) == len(task.listeners[0].images)
    task.near = task.near[:, :2]
    task.hard = np.array([True, False])
    index = np.arange(len(task.data))
    hard, easy = (task.candidates(step, index)[:, 0, 1:].numpy() for step in (0, 1))
    near = (task.near[:, :, None] == hard[:, None]).any(1)
    assert near.all() and not (task.near[:, :, None] == easy[:, None]).any(1).all()


def test_every_width_starts_as_the_trained_speaker(home, tmp_path):
    task, config = tiny_task(rich.KernelCaptions, home, tmp_path)
    adapter = measure.new_adapter(task, config)
    patches = patch_batch(task.store, np.arange(3), task.speaker.device)
    narrow, wide = (curricula.Bottleneck(adapter, width, 0) for width in (2, 8))
    torch.testing.assert_close(narrow(patches), adapter(patches))
    torch.testing.assert_close(wide(patches), adapter(patches))
    wide(patches).square().sum().backward()
    assert wide.second.grad.abs().max() > 0 and {p for p in wide.parameters() if p.requires_grad} == {
        wide.first, wide.second}


def test_verdicts_of_curricula_follow_the_numbers():
    noise = np.array([0.0, 0.004, -0.004])
    ends = {(w, arm): 0.5 + noise for w in (8, 64) for arm in ("start", *curricula.ARMS)}
    assert {f.verdict for f in curricula.findings(ends) if f.bar} == {"absent"}
    ends[8, "easy first"] = 0.6 + noise
    found = {f.name: f.verdict for f in curricula.findings(ends) if f.bar}
    assert [found[k] for k in found if "width 8" in k] == ["present"] * 3
    assert {found[k] for k in found if k.startswith("width 64")} == {"absent"}


# ---- unimodal --------------------------------------------------------------------------------------------


def test_times_by_hand():
    times = np.array([0.0, 4.0, 8.0, 12.0])
    assert unimodal.half_time(times, np.array([0.0, 0.0, 1.0, 2.0])) == 8
    assert unimodal.half_time(times, np.array([0.0, 2.0, 2.0, 2.0])) == 2
    assert np.isnan(unimodal.half_time(times, np.array([0.0, 0.0, 0.0, 0.05])))
    assert unimodal.crossing(times, np.array([3.0, 3, 3, 3]), 1.0) == 0
    assert np.isnan(unimodal.crossing(times, np.zeros(4), 1.0))
    bumpy = np.array([0.0, 3.0, 0.0, 2.0])
    assert unimodal.crossing(times, bumpy, 1.0) == pytest.approx(4 / 3) and unimodal.half_time(times, bumpy) == 10
    assert np.isnan(unimodal.crossing(times, np.array([0.0, 3, 3, 0]), 1.0, last=True))
    assert unimodal.overshoot(np.array([0.0, 3.0, 2.0])) == 1
    # The loss without the image is down by 90 % at 3.6; the image gap is at a tenth of its last value at 8.4.
    assert unimodal.unimodal_phase(times, np.array([9.0, 4, 4, 4]), np.array([0.0, 0, 0, 1])) == pytest.approx(4.8)


@pytest.mark.parametrize("kind", ["prefix", "input", "middle", "logits"])
def test_where_the_image_enters(home, tmp_path, kind):
    task, config = tiny_task(unimodal.HintedCaptions, home, tmp_path, "speaker.max_tokens=8")
    task.prepare(unimodal.TINY, True)
    width = task.speaker.llm.get_input_embeddings().weight.shape[1]
    reference = patch_batch(task.store, np.arange(8), task.speaker.device)
    module = unimodal.Fusion(measure.new_adapter(task, config), reference, kind, 0.5)
    one = measure.with_config(task, config, module)
    patches = patch_batch(task.validation_store, np.arange(3), task.speaker.device)
    tokens, mask = task.speaker.encode(task.held_texts[:3])
    hints = torch.tensor([0, 1, 2])
    nats = one.nats(module(patches), tokens, mask, hints)
    text = torch.cat([one.names[hints][:, None], tokens], 1)
    seen = torch.cat([torch.ones(3, 1, dtype=torch.bool), mask], 1)
    empty = torch.empty(3, 0, width)
    if kind == "prefix":  # the project's own decoder, the hint scored and left out
        expected = -task.speaker.logprobs(module(patches), text, seen)[:, 1:].sum(1)
    else:  # the language model alone, until something is learned
        expected = -task.speaker.logprobs(empty, text, seen)[:, 1:].sum(1)
    torch.testing.assert_close(nats, expected, rtol=1e-3, atol=1e-3)
    nats.sum().backward()
    moved = module.adapter.queries if kind == "prefix" else module.into.weight
    assert moved.grad.abs().max() > 0
    if kind == "middle":  # by the layers of Hugging Face, one after another
        with torch.no_grad():
            module.into.bias[:] = torch.randn(width, generator=torch.Generator().manual_seed(0))
        model = task.speaker.llm.model
        inputs = torch.cat([torch.full((3, 1), task.speaker.start), text[:, :-1]], 1)
        more = 0.5 * one.sizes[kind] * module.into.bias
        handle = model.layers[1].register_forward_pre_hook(lambda layer, given: (given[0] + more, *given[1:]))
        logp = F.log_softmax(task.speaker.llm(inputs).logits, -1)[:, 1:]
        handle.remove()
        expected = -(logp.gather(2, tokens[..., None])[..., 0] * mask).sum(1)
        torch.testing.assert_close(one.nats(module(patches), tokens, mask, hints), expected, rtol=1e-3, atol=1e-3)
    if kind == "logits":
        with torch.no_grad():
            module.into.bias[:] = torch.randn(width, generator=torch.Generator().manual_seed(0))
        inputs = torch.cat([torch.full((3, 1), task.speaker.start), text[:, :-1]], 1)
        states = task.speaker.llm.model(inputs).last_hidden_state
        assert one.sizes[kind] == pytest.approx(float(states.square().mean().sqrt()), rel=0.2)
        shifted = states + 0.5 * one.sizes[kind] * module.into.bias
        logp = F.log_softmax(shifted @ task.speaker.llm.get_output_embeddings().weight.T, -1)[:, 1:]
        expected = -(logp.gather(2, tokens[..., None])[..., 0] * mask).sum(1)
        torch.testing.assert_close(one.nats(module(patches), tokens, mask, hints), expected, rtol=1e-3, atol=1e-3)


def test_hints_are_as_reliable_as_they_say(home, tmp_path):
    task, _ = tiny_task(unimodal.HintedCaptions, home, tmp_path)
    task.prepare(unimodal.TINY, True)
    record = json.dumps({"objects": [{"colour": "green", "shape": "ring"}]})
    texts, hints = task.material([record] * 2000, 0.75, True, "test")
    assert set(texts) == {"A green ring."} and set(hints.tolist()) == set(range(8))
    own = unimodal.COLOURS.index("green")
    assert np.mean(hints == own) == pytest.approx(0.75, abs=0.03)
    _, random = task.material([record] * 2000, 0.75, False, "test")
    assert np.mean(random == own) == pytest.approx(1 / 8, abs=0.03)


def test_verdicts_of_unimodal_follow_the_curves():
    times = np.tile(np.arange(0.0, 41, 4), (3, 1))
    noise = np.array([[0.0], [0.01], [0.02]])

    def one(half: float, over: float) -> dict[str, np.ndarray]:
        image = 2 / (1 + np.exp(-(times - half))) + noise
        text = 1 + over * np.exp(-(times - 8) ** 2 / 20) + noise
        return {"step": times, "full": 9 - image, "without image": 4 + 5 * np.exp(-times / 2), "image gap": image,
                "text gap": text}

    curves = {("input", "hints"): one(12, 0), ("input", "random hints"): one(12, 0),
              ("logits", "hints"): one(30, 1), ("logits", "random hints"): one(12, 0)}
    found = {f.name: f.verdict for f in unimodal.findings(curves) if f.bar}
    assert [v for k, v in found.items() if k.startswith("logits")] == ["present"] * 3
    assert [v for k, v in found.items() if k.startswith("input")][1:] == ["absent"] * 2
    assert found["t_image, logits over input, less 1 (null: 0)"] == "present"
    assert found["t_image, input over logits, less 1 (null: 0)"] == "absent"
