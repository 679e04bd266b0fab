"""Audiences one after another: their order, their codes, and what each remedy does to the units."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch

from dixit.common import DixitError
from dixit.config import load_config
from dixit.models.adapter import GatedUnits
from dixit.training import continual
from dixit.training.checkpoints import checkpoints
from dixit.training.runs import load_run, patch_batch

WORDS = ("listeners=[{name: colours, clip: EYE, domain: colour}, {name: shapes, clip: EYE, domain: shape}]",
         "heldout=[]", "audiences=[[colours, shapes], [shapes, colours]]", "speaker.audience_width=2",
         "speaker.gated_units=8", "continual.order=blocked", "train.schedule=constant", "train.lr=0.01")


def words(home, base) -> list[str]:
    return [*(word.replace("EYE", str(home.clip)) for word in WORDS), f"speaker.init={base}"]


def config_of(home, *overrides: str):
    return load_config(home.game_config, [*(word.replace("EYE", str(home.clip)) for word in WORDS), *overrides])


def test_blocked_audiences_come_one_after_another_and_replay_goes_back(home):
    config = config_of(home, "train.steps=40", "train.batch=50")
    assert [continual.audience_indices(config, step).tolist() for step in (0, 19)] == [[0] * 50] * 2
    assert set(continual.audience_indices(config, 20)) == {1} and set(continual.audience_indices(config, 39)) == {1}
    replayed = config_of(home, "train.steps=40", "train.batch=50", "continual.remedy=replay", "continual.replay=0.3")
    assert set(continual.audience_indices(replayed, 19)) == {0}
    later = np.concatenate([continual.audience_indices(replayed, step) for step in range(20, 40)])
    assert (later == 0).mean() == pytest.approx(0.3, abs=0.05) and set(later) == {0, 1}
    mixed = config_of(home, "train.steps=40", "train.batch=50", "continual.order=interleaved")
    drawn = np.concatenate([continual.audience_indices(mixed, step) for step in range(40)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.05)


def test_codes_are_of_one_length_and_centred():
    for count in 2, 3, 5:
        named = continual.audience_codes(np.arange(count), count)
        assert torch.allclose(named.norm(dim=1), torch.full((count,), continual.LENGTH))
        assert torch.allclose(named.mean(0), torch.zeros(count), atol=1e-6)
    plain = continual.audience_codes(np.array([1]), 2, centred=False)
    assert torch.allclose(plain, torch.tensor([[0.0, continual.LENGTH]]))
    assert torch.allclose(*continual.audience_codes(np.array([0, 1]), 2).mul(torch.tensor([[1.0], [-1.0]])))


def test_a_sluggish_code_correlates_with_the_rounds_as_theory_says():
    """corr(s, c) = sqrt(alpha (2 - alpha)) for independent rounds."""
    drawn = np.random.default_rng(0).integers(2, size=20000)
    now = continual.audience_codes(drawn, 2)
    for alpha in 0.15, 0.41, 0.8:
        lagged = continual.sluggish(now, alpha)
        found = np.corrcoef(now[200:, 0].numpy(), lagged[200:, 0].numpy())[0, 1]
        assert found == pytest.approx(math.sqrt(alpha * (2 - alpha)), abs=0.02)
    assert torch.equal(continual.sluggish(now[:50], 1.0), now[:50])


def test_the_lagging_code_of_a_step_is_that_of_the_whole_sequence(home):
    config = config_of(home, "train.steps=60", "train.batch=6", "continual.order=interleaved",
                       "continual.remedy=hebbian_gate+sluggish", "continual.sluggish=0.2")
    everything = np.concatenate([continual.audience_indices(config, step) for step in range(41)])
    whole = continual.sluggish(continual.audience_codes(everything, 2), 0.2)
    assert torch.allclose(continual.audience_codes_at(config, 40), whole[-6:], atol=1e-5)


def test_oja_splits_the_units_between_two_audiences_if_codes_are_centred():
    start = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 0.01
    rounds = np.arange(16) % 2
    for centred, correlation in (True, -1.0), (False, 0.0):
        gate = start.clone()
        for step in range(400):
            blocked = np.full(16, step // 200)  # one after the other
            continual.oja(gate, continual.audience_codes(blocked if centred else rounds, 2, centred), 0.05)
        assert np.corrcoef(gate[:, 0], gate[:, 1])[0, 1] == pytest.approx(correlation, abs=0.2)
        if centred:
            assert torch.allclose(gate.norm(dim=1), torch.ones(200), atol=1e-3)
            drive = continual.audience_codes(np.array([0, 1]), 2) @ gate.T
            assert torch.allclose(drive.abs(), torch.full((2, 200), continual.LENGTH), atol=1e-2)
            assert torch.equal(drive[0] > 0, drive[1] < 0)  # active for one, silent for the other


def test_oja_with_one_code_follows_its_solution():
    """u(t) = 1 / sqrt(1 + (1/u0^2 - 1) exp(-2 rate s^2 t)) for the part of a row along a context of length s."""
    context = torch.tensor([[0.6, 0.8]]) * 0.5
    gate, rate = torch.tensor([[0.03, 0.04]]), 0.02
    for step in range(1, 1201):
        continual.oja(gate, context, rate)
        if step % 300 == 0:
            u = float(gate[0] @ torch.tensor([0.6, 0.8]))
            theory = 1 / math.sqrt(1 + (1 / 0.05 ** 2 - 1) * math.exp(-2 * rate * 0.25 * step))
            assert u == pytest.approx(theory, abs=0.01)


def test_the_penalty_is_for_moving_used_units():
    units = GatedUnits(4, 3, 2)
    continual.consolidate(units, torch.tensor([0.0, 2.0, 4.0]))
    assert units.importance.tolist() == [0.0, 1.0, 2.0] and float(continual.ewc_penalty(units).detach()) == 0
    with torch.no_grad():
        units.inputs.weight[0] += 7.0  # a unit that was of no use may move
        assert float(continual.ewc_penalty(units).detach()) == 0
        units.inputs.bias[1] += 2.0
        units.outputs.weight[:, 2] += 1.0
        units.gate.weight[2, 0] += 1.0
    assert float(continual.ewc_penalty(units).detach()) == pytest.approx((1 * 4 + 2 * (4 + 1)) / 2)


@pytest.mark.parametrize("remedy", ["none", "replay", "ewc_nodes", "hebbian_gate", "hebbian_gate+sluggish"])
def test_a_remedy_trains_the_units_alone_and_resumes_exactly(home, train, caption_run, tmp_path, remedy):
    rule = [*words(home, caption_run), f"continual.remedy={remedy}", "train.steps=4", "train.save_every=1",
            "train.keep_last=9"]
    task = train(home.game_config, tmp_path / "run", *rule)
    adapter, base = task.speaker.trained, dict(task.base.named_parameters())
    moved = {name for name, p in adapter.named_parameters() if not torch.equal(p, base[name])}
    assert moved and all(name.startswith("gated_units.") for name in moved)
    assert any("outputs" in name for name in moved)
    used = [float(units.importance.sum()) for units in task.remedy.units]
    assert all(u > 0 for u in used) if remedy == "ewc_nodes" else not any(used)
    for place in checkpoints(tmp_path / "run")[2:]:  # as if it had been killed in the second audience's time
        shutil.rmtree(place)
    again = train(home.game_config, tmp_path / "run", *rule)
    assert all(torch.equal(a, b) for a, b in zip(again.speaker.trained.state_dict().values(),
                                                 adapter.state_dict().values(), strict=True))


def test_units_are_silent_at_first_and_active_for_the_audience_given(home, train, caption_run, tmp_path):
    task = train(home.game_config, tmp_path / "run", *words(home, caption_run), "train.steps=4")
    patches = patch_batch(task.store, np.arange(3), task.speaker.device)
    named = continual.audience_codes(np.array([0, 1, 0]), 2)
    with torch.no_grad():
        assert torch.equal(task.base(patches, named), task.base(patches))
        assert not torch.equal(task.trained(patches, named), task.base(patches))
        assert torch.equal(task.trained(patches), task.base(patches))  # no name, no units
    run = load_run(tmp_path / "run")
    with torch.no_grad():
        assert torch.allclose(run.speaker.trained(patches, named), task.trained(patches, named), atol=1e-6)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "eval/gap/colours-shapes" in log and "eval/gap/shapes-colours" in log


def test_what_is_used_is_important(home, train, caption_run, tmp_path):
    task = train(home.game_config, tmp_path / "run", *words(home, caption_run))
    with torch.no_grad():  # a unit whose output is nought matters to nobody
        for units in task.remedy.units:
            units.outputs.weight[:, 3] = 0
    patches = patch_batch(task.store, np.arange(4), task.speaker.device)
    codes = continual.audience_codes(np.zeros(4, int), 2)
    found = continual.unit_importance(task.speaker, task.speaker.trained, patches, codes, torch.rand(4, 6))
    assert all(f.shape == (8,) and f[3] == 0 and (f >= 0).all() and f.sum() > 0 for f in found)


@pytest.mark.parametrize(("overrides", "message"), [
    (["speaker.audience_width=3"], "speaker.gated_units needs audiences, as many as speaker.audience_width is wide"),
    (["speaker.gated_units=0", "speaker.audience_width=0", "continual.remedy=replay"],
     "replay needs speaker.gated_units"),
    (["continual.remedy=hebbian"], "continual.remedy is 'hebbian'; did you mean 'hebbian_gate'"),
    (["continual.hebbian_rate=0.5"], r"continual.hebbian_rate is 0.5; choose a number in \(0, 0.25\]"),
    (["unseen=[[shapes, colours]]"], "none unseen"),
    (["train.steps=1"], "train.steps must be at least 2"),
])
def test_what_cannot_be(home, overrides, message):
    with pytest.raises(DixitError, match=message):
        config_of(home, *overrides)
