"""Training: exact resume, the same result however the batch is split, every algorithm and reward runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from dixit.common import DixitError
from dixit.config import TrainConfig, load_config
from dixit.data.images import fingerprint, load
from dixit.models.listeners import score_all
from dixit.training import game, game_task
from dixit.training.checkpoints import checkpoints, trained_weights
from dixit.training.loop import learning_rate
from dixit.training.runs import load_run
from eval.evaluate import generate_captions

ROOT = Path(__file__).resolve().parents[2]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(trained_weights(run))


def lines(run: Path, *, timed: bool = False) -> list[dict]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if timed or k != "seconds_per_step"} for row in rows]


def same_run(one: Path, other: Path) -> None:
    """Bit for bit: every log line, every trained weight, every number of the optimiser."""
    assert lines(one) == lines(other)
    for name in ("model", "optimizer"):
        first, second = (load_file(trained_weights(run).with_name(f"{name}.safetensors")) for run in (one, other))
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def close_run(one: Path, other: Path) -> None:
    """The same training up to rounding: losses to 1e-4, rewards and weights too."""
    first, second = lines(one), lines(other)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for key in ("step", "loss", "reward", "length"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), (a["step"], key)
    old, new = weights(one), weights(other)
    for key in old:
        torch.testing.assert_close(old[key], new[key], atol=2e-4, rtol=1e-3)


def test_exactly_the_adapter_is_trained(home, train, tmp_path):
    from dixit.models.llm import load_llm
    from dixit.models.speaker import Speaker

    task = train(home.game_config, tmp_path / "run")
    fresh = Speaker(task.config.speaker, *task.store.shape[1:])
    before, after = fresh.trained.state_dict(), task.speaker.trained.state_dict()
    assert before.keys() == after.keys() == weights(tmp_path / "run").keys()
    assert not [k for k in before if torch.equal(before[k], after[k])]
    assert all(torch.equal(weights(tmp_path / "run")[k], v) for k, v in after.items())
    untouched, _ = load_llm(task.config.speaker.llm)
    for name, frozen in untouched.state_dict().items():
        assert torch.equal(frozen, task.speaker.llm.state_dict()[name])
    stored = load_file(home.clip / "open_clip_model.safetensors")
    for name, frozen in task.listeners[0].clip.model.state_dict().items():
        assert torch.equal(frozen, stored[name])


def test_the_folder_of_a_run_says_what_was_run(game_run, tiny):
    config = load_config(game_run / "config.yaml")
    about = json.loads((game_run / "run.json").read_text())
    assert config.listeners[1].perception == "grey" and Path(config.clip.name) == tiny.clip
    assert len(about["config_hash"]) == 12 and about["commit"] and about["seed"] == 0
    logged = lines(game_run, timed=True)
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    for row in logged:
        assert {"loss", "reward", "accuracy/colour", "accuracy/grey", "grad_norm", "lr", "seconds_per_step"} <= set(row)
    assert "eval/gap" in logged[-1]
    assert [p.name for p in checkpoints(game_run)] == ["step_000002", "step_000004"]
    assert not list(game_run.rglob(".*tmp*"))


def test_what_a_game_observes_besides_the_gap(home, train, caption_run, game_run, tmp_path):
    seen = lines(game_run)[-1]
    assert seen["eval/kernel_distance"] > 1e-7 and 1 <= seen["eval/prefix_dimensions"] <= 23  # of 24 images
    assert 1 / 24 <= seen["eval/commonest_caption"] <= 1 and -1 <= seen["eval/gap_constant"] <= 1
    said = load_run(game_run).speaker
    task = train(home.game_config, tmp_path / "run", "train.steps=1", f"speaker.init={caption_run}")
    assert seen["eval/captions"] == [row[0] for row in said.caption(torch.tensor(task.validation_store[:4]).float())]
    task.trained = task.speaker.trained = task.base  # before it has learned anything
    assert task.validate(0)["kernel_distance"] == pytest.approx(0, abs=1e-12)
    task.speaker.decode = lambda tokens, mask: ["A red ring."] * len(tokens)  # says one thing of everything
    found = task.validate(0)
    assert found["commonest_caption"] == 1 and found["gap"] == found["gap_constant"]


def test_a_run_starts_from_the_run_it_names(caption_run, game_run, home):
    run = load_run(game_run)
    started = weights(caption_run)
    assert all(torch.equal(v, started[k]) for k, v in run.base.state_dict().items())
    assert all(torch.equal(v, weights(game_run)[k]) for k, v in run.speaker.trained.state_dict().items())


def test_captioning_lowers_its_loss(home, train, tmp_path):
    task = train(home.caption_config, tmp_path / "run", "train.steps=80", "train.batch=16")
    losses = [row["loss"] for row in lines(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert task.validate(0)["loss"] == lines(tmp_path / "run")[-1]["eval/loss"]


def test_a_killed_run_goes_on_exactly(home, command, tmp_path):
    """SIGKILL between two checkpoints; the same command then ends as a run that was never stopped."""
    words = ["scripts/train.py", home.game_config, "train.steps=60", "train.save_every=10", "train.log_every=5"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = command(*words, f"out={whole}")
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen([sys.executable, *map(str, words), f"out={broken}"], cwd=ROOT, env=home.environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while not checkpoints(broken) and process.poll() is None and time.monotonic() - began < 200:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = int(checkpoints(broken)[-1].name[-6:])
    assert 0 < reached < 60
    done = command(*words, f"out={broken}")
    assert done.returncode == 0, done.stderr
    same_run(whole, broken)
    assert "eval/gap" in lines(broken)[-1] and not (broken / "checkpoints" / f"step_{reached:06d}").exists()


@pytest.mark.parametrize("overrides", [
    ["policy.algorithm=reinforce"], ["policy.algorithm=ppo", "policy.epochs=2"], ["speaker.lora_rank=2"],
    ["listeners.1.learning_rate=0.1"], ["policy.algorithm=dpo"], ["game.normalise=listener", "policy.algorithm=grpo"],
    ["policy.baseline=audience", "policy.algorithm=reinforce", "game.audience=shuffled"],
], ids=lambda o: o[0].split("=")[1])
def test_going_on_from_an_earlier_checkpoint_is_exact(home, train, tmp_path, overrides):
    run, again = tmp_path / "run", tmp_path / "again"
    train(home.game_config, run, "train.steps=6", *overrides)
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step_000006")
    assert [p.name for p in checkpoints(again)] == ["step_000004"]
    train(home.game_config, again, "train.steps=6", *overrides)
    same_run(run, again)


def test_a_folder_is_not_gone_on_with_as_another_run(home, train, tmp_path, capsys):
    run = tmp_path / "run"
    train(home.caption_config, run, "train.steps=2")
    before = (run / "config.yaml").read_text()
    for key, override in (("seed", "seed=1"), ("data", "data.train=20"), ("clip", "clip.width=8")):
        with pytest.raises(DixitError, match=f"{run} holds a run with another {key}.*out="):
            train(home.caption_config, run, "train.steps=3", override)
    assert (run / "config.yaml").read_text() == before
    capsys.readouterr()
    train(home.caption_config, run, "train.steps=3", "train.lr=0.02", "eval.images=4")  # these may change
    assert f"{run} goes on with train.steps 3 (was 2), train.lr 0.02 (was " in capsys.readouterr().err
    train(home.caption_config, run, "train.steps=3", "train.lr=0.02")
    assert "goes on" not in capsys.readouterr().err
    (run / "config.yaml").write_bytes(b"\x9f\x00: [")
    train(home.caption_config, run, "train.steps=4")
    assert load_config(run / "config.yaml").train.steps == 4


def test_the_newest_checkpoints_and_the_best_are_kept(home, train, tmp_path, monkeypatch):
    from dixit.training.game_task import CaptionTask

    losses = iter([3.0, 1.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr(CaptionTask, "validate", lambda self, step: {"loss": next(losses)})
    run = tmp_path / "run"
    words = ["train.eval_every=1", "train.save_every=1", "train.keep_last=3", "train.best=-loss"]
    train(home.caption_config, run, "train.steps=3", "train.schedule=constant", *words)
    train(home.caption_config, run, "train.steps=4", "train.schedule=constant", *words)  # what was best is remembered
    assert [p.name for p in checkpoints(run)] == ["step_000002", "step_000003", "step_000004"]
    best = load_file(trained_weights(run, "best"))
    second = load_file(checkpoints(run)[0] / "model.safetensors")
    assert all(torch.equal(best[k], second[k]) for k in second)
    loaded = load_run(run, ["eval.checkpoint=best"]).speaker.trained.state_dict()
    assert all(torch.equal(v, best[k]) for k, v in loaded.items())
    with pytest.raises(DixitError, match="train.best 'gap' is no validation figure; choose of loss"):
        train(home.caption_config, tmp_path / "other", "train.steps=1", "train.best=gap")


def test_a_finished_run_is_left_as_it_is(home, train, tmp_path):
    train(home.game_config, tmp_path / "run")
    before = lines(tmp_path / "run", timed=True), weights(tmp_path / "run")
    train(home.game_config, tmp_path / "run")
    assert lines(tmp_path / "run", timed=True) == before[0]
    assert all(torch.equal(before[1][k], v) for k, v in weights(tmp_path / "run").items())


def test_a_half_written_checkpoint_is_passed_over(home, train, tmp_path):
    train(home.game_config, tmp_path / "run", "train.steps=6")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    newest = tmp_path / "again" / "checkpoints" / "step_000006"
    (newest / "state.json").unlink()
    (newest / "model.safetensors").write_bytes(b"half")
    train(home.game_config, tmp_path / "again", "train.steps=6")
    same_run(tmp_path / "run", tmp_path / "again")


@pytest.mark.parametrize("task", ["game", "caption"])
def test_micro_batches_equal_one_batch(home, train, tmp_path, task):
    config = home.game_config if task == "game" else home.caption_config
    for name, parts in (("one", 1), ("two", 2)):
        train(config, tmp_path / name, "train.steps=3", f"train.accumulate={parts}", "train.lr=1e-3")
    if task == "game":
        close_run(tmp_path / "one", tmp_path / "two")
    else:
        losses = [[row["loss"] for row in lines(tmp_path / name)] for name in ("one", "two")]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 3


def test_two_processes_equal_one(home, train, tmp_path):
    """The same global batch on two processes; each process writes down how many there really were."""
    spy = tmp_path / "spy.py"
    spy.write_text(f"""
import runpy, sys
from pathlib import Path
from accelerate import PartialState
try:
    runpy.run_path({str(ROOT / 'scripts' / 'train.py')!r}, run_name="__main__")
finally:
    state = PartialState()
    (Path({str(tmp_path)!r}) / f"world_{{state.process_index}}").write_text(str(state.num_processes))
""")
    words = ["train.steps=3", "train.lr=1e-3"]
    train(home.game_config, tmp_path / "one", *words)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", spy, home.game_config,
         f"out={tmp_path / 'two'}", *words],
        cwd=ROOT, env=home.environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"world_{i}").read_text() for i in (0, 1)] == ["2", "2"]
    close_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("algorithm", ["reinforce", "self_critical", "rloo", "grpo", "ppo", "dpo"])
def test_every_algorithm_trains(home, train, tmp_path, algorithm):
    extra = ["policy.epochs=2"] if algorithm == "ppo" else []
    task = train(home.game_config, tmp_path / "run", "train.steps=2", f"policy.algorithm={algorithm}", *extra)
    assert [row["step"] for row in lines(tmp_path / "run")] == [1, 2]
    assert all(torch.isfinite(torch.tensor([row["loss"], row["grad_norm"]])).all() for row in lines(tmp_path / "run"))
    assert lines(tmp_path / "run")[0]["grad_norm"] > 0
    assert all(p.isfinite().all() for p in task.trained.parameters())


@pytest.mark.parametrize("overrides", [
    *[[f"game.reward={r}"] for r in ("sub_logp", "sub_prob", "sub_chance", "sub_acc", "product", "dixit")],
    ["game.distractors=in_batch"], ["game.distractors=hard"],
    ["game.length_cost=0.1", "game.repetition_cost=0.1", "game.kl_cost=0.1"],
    ["listeners.1.vocabulary=[red, blue]"], ["listeners.0.domain=colour", "listeners.1.domain=shape"],
    ["speaker.dtype=bfloat16"], ["train.mixed_precision=bf16"],
], ids=lambda o: o[0])
def test_every_reward_and_option_trains(home, train, tmp_path, overrides):
    train(home.game_config, tmp_path / "run", "train.steps=2", *overrides)
    logged = lines(tmp_path / "run")
    assert [row["step"] for row in logged] == [1, 2]
    assert all(torch.isfinite(torch.tensor([row["loss"], row["reward"]])).all() for row in logged)
    if len(overrides) == 3:
        row = logged[0]
        terms = {k.removeprefix("term/"): v for k, v in row.items() if k.startswith("term/")}
        assert terms.keys() == {"listeners", "length", "repetition", "kl"}
        expected = terms["listeners"] - 0.1 * (terms["length"] + terms["repetition"] + terms["kl"])
        assert row["reward"] == pytest.approx(expected, abs=1e-4)
        assert terms["kl"] == pytest.approx(0, abs=1e-4)  # at the first step the speaker is the base


@pytest.mark.parametrize("reward", ["sub_logp", "sub_prob", "sub_acc"])
def test_identical_listeners_teach_nothing(home, train, tmp_path, reward):
    task = train(home.game_config, tmp_path / "run", f"game.reward={reward}", "listeners.1.perception=colour")
    for row in lines(tmp_path / "run"):
        assert row["reward"] == row["reward_std"] == row["loss"] == row["grad_norm"] == 0
        assert row["accuracy/colour"] == row["accuracy/grey"]
    from dixit.models.speaker import Speaker

    fresh = Speaker(task.config.speaker, *task.store.shape[1:]).trained.state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in task.trained.state_dict().items())


def test_the_reward_is_the_mean_over_pools(home, train, tmp_path):
    task = train(home.game_config, tmp_path / "run", "game.pools=3", "train.steps=1")
    index, texts = np.array([0, 5]), ["A red circle.", "A star.", "A thing.", "A blue ring."]
    pools = task.candidates(7, index)
    assert pools.shape == (2, 3, 4) and (pools[..., 0] == torch.tensor([[0], [5]])).all()
    assert torch.equal(pools, task.candidates(7, index)) and len(pools[0, :, 1:].unique(dim=0)) > 1
    given = (texts, torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1), None)
    weights = task.audience.listener_weights
    audience = weights[:, None].expand(-1, 4)
    whole, _, logits = task.reward(task.listeners, *given, pools.repeat_interleave(2, 0), audience)
    assert logits.shape == (2, 12, 4)
    single = [game.listener_reward("sub_logp", score_all(task.listeners, texts, one), weights)
              for one in pools.repeat_interleave(2, 0).unbind(1)]
    torch.testing.assert_close(whole, torch.stack(single).mean(0))


def test_of_two_sets_each_image_is_told_from_its_own(home, train, tmp_path):
    """Scenes and a folder of images: rows in order, the same for every process, distractors of the target's set."""
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(folder / f"red {i}.png")
    (tmp_path / "images" / "validation").mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (0, 60 * i, 0)).save(tmp_path / "images" / "validation" / f"green {i}.png")
    config = load_config(home.game_config, [f"out={tmp_path / 'run'}", "data.name=scenes+folder",
                                            f"data.path={tmp_path / 'images'}", "game.pools=3"])
    task = game_task.GameTask(config, Accelerator(cpu=True))
    assert len(task.data) == 70 and [bool(r) for r in task.data["record"]] == [True] * 64 + [False] * 6
    assert fingerprint(task.data) == fingerprint(load(config.data, "train"))
    pools = task.candidates(3, np.array([2, 69, 64, 63]))
    assert (pools[[0, 3]] < 64).all() and (pools[[1, 2]] >= 64).all() and pools[:, 0, 0].tolist() == [2, 69, 64, 63]
    assert all(len(set(row)) == 4 for row in pools.flatten(0, 1).tolist())
    train(home.game_config, tmp_path / "run", "data.name=scenes+folder", f"data.path={tmp_path / 'images'}")
    assert len(lines(tmp_path / "run")) == 4


def test_a_batch_that_does_not_divide_is_refused(home, train, tmp_path):
    with pytest.raises(DixitError, match="larger than the dataset"):
        train(home.game_config, tmp_path / "run", "train.batch=65")


def test_the_learning_rate_warms_up_and_ends_at_a_tenth():
    settings = TrainConfig(steps=110, warmup=10, lr=1.0)
    rates = [learning_rate(settings, step) for step in range(111)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_two_clips_of_one_folder_name_share_no_cache(home, tmp_path):
    """Cached features follow the weights, not the name of a folder."""
    from dixit.data.images import load
    from dixit.models.clip import load_clip
    from dixit.models.features import patch_features

    dataset = load(load_config(home.game_config).data, "validation")
    stores = []
    for place, source in (("a", home.clip), ("b", home.other_clip)):
        shutil.copytree(source, tmp_path / place / "clip-mine")
        stores.append(patch_features(load_clip(str(tmp_path / place / "clip-mine")), dataset, "colour"))
    assert stores[0].shape == stores[1].shape and not (stores[0] == stores[1]).all()


def test_the_saved_config_runs_the_same_training(home, train, tmp_path):
    train(home.game_config, tmp_path / "one", "train.steps=2", "policy.samples=3")
    saved = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert saved["policy"]["samples"] == 3
    train(tmp_path / "one" / "config.yaml", tmp_path / "two")
    same_run(tmp_path / "one", tmp_path / "two")
    assert os.listdir(tmp_path / "one" / "checkpoints") == os.listdir(tmp_path / "two" / "checkpoints")


def test_a_run_is_complete_without_the_run_it_started_from(home, train, caption_run, tmp_path):
    """It is moved, the base speaker's run is gone, and it is opened, evaluated and gone on with."""
    base, first = tmp_path / "base", tmp_path / "first"
    shutil.copytree(caption_run, base)
    train(home.game_config, first, "train.steps=2", f"speaker.init={base}")
    before = load_run(first)
    train(home.game_config, tmp_path / "whole", "train.steps=4", f"speaker.init={base}")
    shutil.rmtree(base)
    moved = shutil.move(first, tmp_path / "moved")
    after = load_run(moved)
    assert before.base is not None and after.base is not None
    for one, other in ((before.base, after.base), (before.speaker.trained, after.speaker.trained)):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    dataset = load(after.config.data, "test")
    assert generate_captions(before, dataset)["base"]["texts"] == generate_captions(after, dataset)["base"]["texts"]
    train(home.game_config, moved, "train.steps=4", f"speaker.init={base}")
    one, other = weights(tmp_path / "whole"), weights(moved)
    assert all(torch.equal(one[key], other[key]) for key in one)
    (moved / "base.safetensors").write_bytes(b"damaged")
    with pytest.raises(DixitError, match="base.safetensors is damaged"):
        load_run(moved)
