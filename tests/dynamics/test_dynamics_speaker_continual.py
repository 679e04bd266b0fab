"""Audiences one after another on the speaker: quantities by hand, verdicts, and both measurements on tiny models."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml

from dixit.common import DixitError
from dixit.training.runs import patch_batch
from eval.dynamics.speaker import continual, first_order, forgetting, similarity, sluggish
from eval.dynamics.speaker.first_order import Expansion, FirstOrder, Plan
from eval.dynamics.speaker.measure import accelerator, new_adapter


@pytest.fixture(scope="module")
def game(tiny):
    """A config of two audiences, as configs/continual.yaml, on tiny models."""
    tree = yaml.safe_load(tiny.game_config.read_text())
    tree["speaker"] |= {"audience_width": 2, "gated_units": 8}
    tree["data"] = tree["data"] | {"train": 200, "validation": 60}
    experts = [{"name": f"{kind}s", "clip": str(tiny.clip), "domain": kind} for kind in ("colour", "shape")]
    pairs = [["colours", "shapes"], ["shapes", "colours"]]
    tree |= {"listeners": experts, "heldout": [], "oracle": [], "audiences": pairs,
             "game": {"candidates": 3, "reward": "sub_prob", "kl_cost": 0.02}}
    path = tiny.root / "continual.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


# ---- the game --------------------------------------------------------------------------------------------


def line(step, *gaps):
    return {"step": float(step), "sampled": 0.3, "reuse": 0.5, "entropy/0": 0.9, "entropy/1": 0.9,
            "units of one audience": 0.1, "cosine of unit patterns": 0.9, "drive": 0.1, "serves/0": 0.5,
            "hinders/0": 0.2, "serves/1": 0.5, "hinders/1": 0.2} \
        | {f"gap/{j}": gap for j, gap in enumerate(gaps)}


def test_shares_of_units_by_hand():
    p = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0]])
    assert continual.reuse(p) == pytest.approx(0.25) and continual.reuse(p[[0, 0]]) == pytest.approx(1)
    assert continual.entropy(p[0]) == pytest.approx(0.5) and continual.entropy(np.full(4, 0.25)) == pytest.approx(1)


def test_forgetting_by_hand():
    records = [line(0, 0.1, 0.0), line(2, 0.4, 0.0), line(4, 0.5, -0.1), line(6, 0.2, 0.1), line(8, 0.3, 0.4)]
    assert continual.stages(records, 4).tolist() == [[0.5, -0.1], [0.3, 0.4]]
    found = continual.blocked_figures(records, 4, 2)
    assert found["share of an earlier gap that is kept"] == pytest.approx(0.6)
    assert found["largest forgetting"] == pytest.approx(0.3) and found["forgetting at the end"] == pytest.approx(0.2)
    assert found["forgetting per step at first"] == pytest.approx(0.15)
    assert found["backward transfer"] == pytest.approx(-0.2) and found["forward transfer"] == pytest.approx(-0.1)
    three = np.array([[0.5, 0.0, 0.0], [0.4, 0.4, 0.0], [0.4, 0.2, 0.4]])
    assert continual.share_kept(three) == pytest.approx(0.5)
    assert np.isnan(continual.share_kept(np.array([[0.05, 0.0], [0.05, 0.4]])))  # nothing was learned


@pytest.mark.parametrize(("gated", "plain", "verdicts"), [
    ((0.49, 0.40), (0.1, 0.4), ["present", "present", "absent", "present"]),
    ((0.30, 0.40), (0.1, 0.4), ["absent", "present", "absent", "absent"]),
    ((0.49, 0.40), (0.49, 0.4), ["present", "absent", "absent", "absent"]),
    ((0.49, 0.20), (0.1, 0.4), ["present", "present", "present", "absent"])])
def test_the_practical_claim(gated, plain, verdicts):
    settings = dataclasses.replace(continual.TINY, block=4, every=4)
    records = {name: [[line(0, 0.1, 0.0), line(4, 0.5 + noise, -0.1), line(8, end[0], end[1] + noise)]
                      for noise in (-0.001, 0.0, 0.001)] for name, end in (("none", plain), ("hebbian_gate", gated))}
    claims = [f for f in continual.findings(settings, records) if "claim" in f.name]
    assert [f.verdict for f in claims] == verdicts and all(f.present and f.absent for f in claims)


def test_the_game_is_resumed_and_shares_first_blocks(home, game, caption_run, tmp_path):
    settings = dataclasses.replace(continual.TINY, game=str(game), init=str(caption_run),
                                   conditions=("replay", "none", "hebbian_gate", "none interleaved"))
    found, figure = continual.run(settings, 1, tmp_path)
    assert len({f.name for f in found}) == len(found) and figure.axes and not list(tmp_path.glob("*/checkpoints"))

    def cell(name, root=tmp_path):
        return json.loads((root / name / "cell.json").read_text())["values"]

    assert [x["step"] for x in cell("replay_0")] == [0, 2, 4, 6, 8]
    assert cell("replay_0")[:3] == cell("none_0")[:3] and cell("replay_0")[3:] != cell("none_0")[3:]
    assert cell("none_interleaved_0")[1:3] != cell("none_0")[1:3]
    alone = dataclasses.replace(settings, conditions=("replay",))  # with nobody to share with: the same
    continual.run(alone, 1, tmp_path / "alone")
    assert cell("replay_0", tmp_path / "alone") == cell("replay_0")

    path = tmp_path / "none_0" / "cell.json"  # what is there is not made again
    load_cached = json.loads(path.read_text())
    load_cached["values"][-1]["gap/0"] = 7.0
    path.write_text(json.dumps(load_cached))
    with_config = {f.name: f for f in continual.run(settings, 1, tmp_path)[0]}
    assert list(with_config["none: gap of audience 1 at the end"].values) == [7.0]
    other = dataclasses.replace(settings, lr=0.02, conditions=("none",))  # but what is of other settings is
    assert continual.run(other, 1, tmp_path)[0] and cell("none_0")[-1]["gap/0"] != 7.0


def test_pictures_without_known_attributes(home, game, caption_run, folder_of_cards, tmp_path):
    tree = yaml.safe_load(game.read_text())
    tree["data"] = {"name": "folder", "path": str(folder_of_cards), "image_size": tree["data"]["image_size"]}
    path = tmp_path / "pictures.yaml"
    path.write_text(yaml.safe_dump(tree))
    settings = dataclasses.replace(continual.TINY, game=str(path), init=str(caption_run), conditions=("none",))
    found, figure = continual.run(settings, 1, tmp_path)
    assert figure.axes and not any("serves" in f.name for f in found)
    assert np.isfinite(next(f for f in found if f.name == "none: gap of audience 2 at the end").values).all()


def test_forgetting_against_similarity_in_the_game(home, game, caption_run, tmp_path):
    settings = dataclasses.replace(forgetting.TINY, game=str(game), init=str(caption_run))
    found, figure = forgetting.run(settings, 1, tmp_path)
    values = {f.name: f.values[0] for f in found}
    assert len(values) == len(found) and len(figure.axes) == 6 and not list(tmp_path.glob("*/checkpoints"))
    for what, opposite in ("gradient", -1), ("features", 1), ("readout", 1):  # the same captions, the reward reversed
        assert values[f"similarity before training, {what}, by design 1"] == pytest.approx(1, abs=1e-5)
        assert values[f"similarity before training, {what}, by design -1"] == pytest.approx(opposite, abs=1e-5)
    for arm in forgetting.ARMS:
        folders = [tmp_path / f"{arm} {level}".replace(",", "").replace(" ", "_") / "none_0" for level in ("1", "-1")]
        cells = [json.loads((folder / "cell.json").read_text())["values"] for folder in folders]
        assert [x["step"] for x in cells[0]] == [0, 2, 4, 6, 8]
        assert [x["gap/0"] for x in cells[0][:3]] == [x["gap/0"] for x in cells[1][:3]]  # one first block
    with pytest.raises(DixitError, match="no audience of similarity 0.3; choose levels of 1, 0.5"):
        forgetting.run(dataclasses.replace(settings, levels=(0.3,)), 1, tmp_path)


def test_private_heads_are_put_in_and_out(home, game, caption_run, tmp_path):
    settings = dataclasses.replace(forgetting.TINY, game=str(game), init=str(caption_run))
    task = forgetting.ForgettingGame(forgetting.game_of(settings, "private heads", 1.0, 0, tmp_path),
                                     accelerator(tmp_path))
    task.prepare(settings)
    task.arm = "private heads, paired"
    before = task.speaker.trained(patch_batch(task.store, np.arange(2), task.speaker.device), torch.zeros(2, 2))
    task.begin()
    after = task.speaker.trained(patch_batch(task.store, np.arange(2), task.speaker.device), torch.zeros(2, 2))
    assert torch.allclose(before, after, atol=1e-4) and task.start[0].std() > 0.05  # pairs of units cancel
    assert not task.names.any() and not task.audience_inputs(0).any()
    first = [torch.full_like(head, 3.0) for head in task.start]
    task._put(first)
    task.loss(settings.block, 0)  # the second audience comes
    pairs = zip(task.remedy.units, task.start, strict=True)
    assert all(torch.equal(units.outputs.weight, head) for units, head in pairs)
    with task.head(0):
        assert all((units.outputs.weight == 3).all() for units in task.remedy.units)
    with task.head(1):
        assert not (task.remedy.units[0].outputs.weight == 3).any()
    assert torch.equal(task.remedy.units[0].outputs.weight, task.start[0])


def test_no_such_condition():
    with pytest.raises(DixitError, match="'none sluggish' is no condition"):
        continual.condition("none sluggish")
    assert continual.condition("hebbian_gate+sluggish interleaved lag=0.1")[-1] == "continual.sluggish=0.1"


def test_the_sweep_of_lags_runs(home, game, caption_run, tmp_path):
    settings = dataclasses.replace(sluggish.TINY, game=str(game), init=str(caption_run))
    found, figure = sluggish.run(settings, 1, tmp_path)
    assert "hebbian_gate+sluggish interleaved lag=0.1: mean gap that the lag costs (null: 0)" in {f.name for f in found}
    cells = [json.loads((folder / "cell.json").read_text())["values"] for folder in sorted(tmp_path.glob("*_0"))]
    assert len(cells) == 2 and cells[0] != cells[1] and len(figure.axes) == 6


def test_what_a_lagging_context_costs():
    settings = dataclasses.replace(continual.TINY, block=4, every=4)
    ends = {"hebbian_gate interleaved": 0.4, "hebbian_gate+sluggish interleaved lag=0.1": 0.1}
    records = {name: [[line(0, 0.0, 0.0), line(4, end, end), line(8, end + noise, end)] for noise in (-0.01, 0.0, 0.01)]
               for name, end in ends.items()}
    found = {f.name: f for f in continual.findings(settings, records)}
    cost = found["hebbian_gate+sluggish interleaved lag=0.1: mean gap that the lag costs (null: 0)"]
    assert np.mean(cost.values) == pytest.approx(0.3) and cost.verdict == "present"


# ---- the first order -------------------------------------------------------------------------------------


@pytest.fixture
def small_speaker(home, game, caption_run, tmp_path):
    """A game, the trained adapter, held-out patches and records, and their expansion."""
    rules = continual.Settings(game=str(game), tokens=6, candidates=3, pools=1)
    task = continual.ContinualGame(continual.config_of(rules, "none", 0, tmp_path), accelerator(tmp_path))
    task.prepare(rules)
    adapter = new_adapter(task, task.config, str(caption_run)).requires_grad_(False)
    rows, records = first_order.nameable_scenes(task.data, 26)
    assert len(rows) == 26 and not any(r["objects"][0]["colour"] == "orange" for r in records)
    patches = patch_batch(task.store, np.array(rows), task.speaker.device)
    return task, adapter, patches, records, first_order.expand(task, adapter, task.store[rows], records)


def test_the_expansion_is_the_speaker_to_first_order(small_speaker):
    task, adapter, patches, records, data = small_speaker
    silent = torch.zeros(len(records), 2)
    with torch.no_grad():
        assert torch.allclose(first_order.preference(task, adapter, patches, records, silent), data.bias, atol=1e-5)
        step = 1e-3 * torch.randn(data.slopes.shape, generator=torch.Generator().manual_seed(0))
        ends = []
        for sign in 1, -1:
            handle = adapter.gated_units[-1].register_forward_hook(lambda _, __, out, sign=sign: out + sign * step)
            ends.append(first_order.preference(task, adapter, patches, records, silent))
            handle.remove()
    assert torch.allclose((ends[0] - ends[1]) / 2, (data.slopes * step).sum((1, 2)), atol=2e-5, rtol=0.02)


def test_small_units_score_in_the_speaker_as_in_the_first_order(small_speaker):
    task, adapter, patches, records, data = small_speaker
    settings = dataclasses.replace(similarity.TINY, small=0.1)
    plans = [Plan(start="small", private=True), Plan(start="small", similarity=0.5)]
    networks = FirstOrder(data, data, plans, settings, 0, 2)
    with torch.no_grad():
        networks.outputs *= networks.scale
        score = networks.measure()["score"].detach()
    for which in range(2):
        for audience in range(2):
            measured = networks.speaker_score(task, adapter, which, audience, patches, records)
            assert measured == pytest.approx(float(score[which, audience]), rel=0.1) and abs(measured) > 1e-5


def random_expansion(n=30, prefix=3, width=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Expansion(torch.randn(n, prefix, width, generator=draw), torch.randn(n, prefix, width, generator=draw),
                     0.1 * torch.randn(n, generator=draw))


def test_directions_have_the_similarity_they_are_named_after():
    for level in 0.0, 0.5, 1.0:
        u = Plan(2, level).directions(0, 3, 4)
        assert u[0] @ u[1] == pytest.approx(level) and np.allclose(np.linalg.norm(u, axis=1), 1)
        assert abs(u[2] @ u[:2].T).max() < 1e-12


def test_features_are_white_and_alike_audiences_are_estimated_so():
    data = random_expansion(200)
    first, same = first_order.features(data.inputs, data.inputs, 4)
    assert torch.equal(first, same) and torch.allclose(torch.cov(first.T), torch.eye(4), atol=1e-4)
    data = dataclasses.replace(data, bias=torch.zeros(200))
    one, other = first[:, 0], first[:, 1]
    for what, value in first_order.estimate_similarity(data, one, one).items():
        assert value == pytest.approx(1, abs=1e-5), what
    opposite = first_order.estimate_similarity(data, one, -one)
    assert opposite["gradient"] == pytest.approx(-1, abs=1e-5) and opposite["features"] == pytest.approx(1, abs=1e-5)
    flat = dataclasses.replace(data, slopes=torch.ones(200, 3, 16))  # one readout: features alone tell them apart
    found = first_order.estimate_similarity(flat, one, other)
    assert found["readout"] == pytest.approx(1, abs=1e-4) and abs(found["gradient"]) < 0.2 and found["features"] < 0.2


def test_a_gate_keeps_private_heads_keep_and_plans_share_their_start():
    settings = dataclasses.replace(similarity.TINY, block=60, every=30, units=12)
    plans = [Plan(), Plan(gated=True), Plan(gated=True, centred=False), Plan(start="small", private=True),
             Plan(start="large", private=True), Plan(order="interleaved", sluggish=0.2)]
    networks = FirstOrder(random_expansion(), random_expansion(), plans, settings, 0, 2)
    assert torch.equal(networks.inputs[0], networks.inputs[5]) and torch.equal(networks.inputs[3], networks.inputs[4])
    assert set(networks.audience[0, 59].tolist()) == {0} and set(networks.audience[0, 60].tolist()) == {1}
    assert set(networks.audience[5].flatten().tolist()) == {0, 1} and not networks.context[3].any()
    gate = networks.gate.detach().clone()
    with torch.no_grad():
        for step in range(120):
            networks.after_step(step)
    rows = [np.corrcoef(g.detach().T.numpy())[0, 1] for g in networks.gate]
    assert rows[1] == pytest.approx(-1, abs=1e-2) and torch.equal(networks.gate[0], gate[0])
    assert networks.switched is not None and not torch.equal(networks.switched.gate[2], networks.gate[2])
    shares = networks.measure()["share"]
    assert torch.allclose(shares[3:5].sum(-1), torch.ones(2, 2), atol=1e-5)


def test_the_first_order_is_kept(home, game, caption_run, tmp_path):
    settings = dataclasses.replace(similarity.TINY, game=str(game), init=str(caption_run))
    found, figure = similarity.run(settings, 1, tmp_path)
    assert len({f.name for f in found}) == len(found) and figure.axes
    assert all("null" in f.name and f.present and f.absent for f in found if f.bar is not None)
    assert all(np.isfinite(f.values).all() for f in found)
    made = (tmp_path / "seed_0.json").stat().st_mtime_ns
    assert [f.row() for f in similarity.run(settings, 1, tmp_path)[0]] == [f.row() for f in found]
    assert (tmp_path / "seed_0.json").stat().st_mtime_ns == made
