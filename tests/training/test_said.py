"""The table of what is said: its figures are those of the game, it opens as a data set, it is written once."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from processes import together

from dixit.common import DixitError
from dixit.models.listeners import score_all
from dixit.training import game, policy, said

ROOT = Path(__file__).resolve().parents[2]
EVERY = ("train.steps=4", "train.eval_every=2", "train.save_every=2")


def tables(run: Path) -> dict[int, list[dict]]:
    return {step: said.read(path) for step, path in said.steps(run).items()}


def test_it_opens_as_a_data_set_of_images(home, train, tmp_path):
    task = train(home.game_config, tmp_path / "run", *EVERY)
    cache = str(tmp_path / "cache")
    table = datasets.load_dataset(str(tmp_path / "run" / "said"), split="train", cache_dir=cache)
    assert len(table) == 2 * 16 * 2 and isinstance(table.features["image"], datasets.Image)
    assert table["step"] == [2] * 32 + [4] * 32
    assert table["number"][:32] == table["number"][32:] == sorted(table["number"][:32])
    row = table[2]
    assert np.array_equal(np.array(row["image"]), np.array(task.validation[row["number"]]["image"]))
    assert [(r["number"], r["sample"]) for r in said.read(said.steps(tmp_path / "run")[4])] == [
        (number, sample) for number in sorted(set(table["number"])) for sample in (0, 1)]


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce", "self_critical", "grpo", "dpo"])
def test_its_figures_are_those_of_an_update(home, train, tmp_path, algorithm):
    extra = ["game.length_cost=0.01", "game.kl_cost=0.1", "game.pools=3", f"policy.algorithm={algorithm}"]
    task = train(home.game_config, tmp_path / "run", "train.steps=2", *extra)
    rows = task.said(2)
    captions = [row["caption"] for row in rows]
    for kept, row in zip(tables(tmp_path / "run")[2], rows, strict=True):
        assert kept.pop("image") == row.pop("image") and kept.pop("caption") == row.pop("caption")
        assert kept == pytest.approx(row, rel=1e-6)
    number = torch.tensor([row["number"] for row in rows])
    for name, listener in zip(("colour", "grey"), task.validation_listeners, strict=True):
        everyone = torch.arange(len(task.validation)).expand(len(rows), -1)
        scores = score_all([listener], captions, everyone)[0]
        pick = torch.tensor([row[f"pick/{name}"] for row in rows])
        belief = torch.tensor([row[f"belief/{name}"] for row in rows])
        assert (scores.gather(1, pick[:, None]) >= scores.gather(1, number[:, None])).all()
        assert ((0 < belief) & (belief < 1)).all()
    reward = torch.tensor([row["reward"] for row in rows]).unflatten(0, (-1, 2))
    advantage = torch.tensor([row["advantage"] for row in rows]).unflatten(0, (-1, 2))
    if algorithm in ("rloo", "dpo"):
        torch.testing.assert_close(advantage, policy.leave_one_out_advantage(reward))
    elif algorithm == "grpo":
        torch.testing.assert_close(advantage, policy.group_advantage(reward))
    elif algorithm == "reinforce":
        torch.testing.assert_close(advantage, reward - task.baselines.means["all"])
    else:  # the greedy caption's reward is the same for both captions of an image
        torch.testing.assert_close(advantage[:, 0] - advantage[:, 1], reward[:, 0] - reward[:, 1])


def test_the_reward_is_that_of_the_beliefs(home, train, tmp_path):
    task = train(home.game_config, tmp_path / "run", "train.steps=2", "game.reward=sub_prob", "game.pools=2")
    for row in task.said(2):
        assert row["reward"] == pytest.approx(row["belief/colour"] - row["belief/grey"], abs=1e-6)


def test_only_who_takes_part_has_a_belief(home, train, tmp_path):
    names = ("colour", "grey", "blur")
    third = json.dumps([{"name": name, "clip": str(home.clip), "perception": name} for name in names])
    task = train(home.game_config, tmp_path / "run", "train.steps=2", f"listeners={third}", "heldout=[]",
                 "audiences=[[colour, grey], [blur, colour]]", "policy.algorithm=reinforce", "policy.baseline=audience")
    for row in task.said(2):
        silent = "blur" if row["number"] % 2 == 0 else "grey"
        assert row[f"belief/{silent}"] is row[f"pick/{silent}"] is None
        assert sum(row[f"belief/{name}"] is not None for name in names) == 2
    task.baselines.means = {}
    assert all(row["advantage"] is None for row in task.said(2))  # no audience has been met
    assert said.read(said.steps(tmp_path / "run")[2])


def test_a_listener_without_an_answer_has_no_belief():
    logits = torch.tensor([[[0.0, 1.0], [math.nan, math.nan]]])
    picture = datasets.Dataset.from_dict({"image": [PIL.Image.new("L", (400, 300))]})
    rows = said.rows(3, picture, np.array([0]), ["a", "b"], ["one"], logits,
                     torch.tensor([[[0, 5]]]), torch.ones(1, 1), torch.tensor([[1.0, math.nan]]), torch.zeros(1, 2))
    assert rows[0]["belief/one"] == pytest.approx(float(game.target_logp(logits)[0, 0].exp()))
    assert rows[0]["pick/one"] == 5 and rows[1]["belief/one"] is rows[1]["pick/one"] is rows[1]["reward"] is None
    assert max(said._picture(rows[0]).size) == said.SIDE


def test_a_resumed_run_has_each_row_once(home, train, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ("train.eval_every=1", "train.save_every=2", "train.schedule=constant")
    train(home.game_config, whole, "train.steps=4", *words)
    train(home.game_config, broken, "train.steps=2", *words)
    (broken / "said" / "step_000003.parquet").write_bytes(b"cut off")  # it died after step 3, saved last at 2
    (broken / "said" / ".step_000004.parquet.1.tmp").write_bytes(b"")
    train(home.game_config, broken, "train.steps=4", *words)
    assert list(tables(broken)) == [1, 2, 3, 4] and tables(broken) == tables(whole)
    assert not list((broken / "said").glob(".*"))


def test_two_processes_write_it_once(home, train, tmp_path):
    extra = ["game.normalise=listener", "policy.algorithm=grpo"]
    train(home.game_config, tmp_path / "one", "train.steps=2", *extra)
    codes = together(2, lambda: train(home.game_config, tmp_path / "two", "train.steps=2", *extra), tmp_path / "told")
    assert codes == [0, 0], (tmp_path / "told" / "0").read_text()
    one, two = tables(tmp_path / "one")[2], tables(tmp_path / "two")[2]
    assert [row["caption"] for row in one] == [row["caption"] for row in two]
    assert [row["reward"] for row in one] == pytest.approx([row["reward"] for row in two], abs=1e-4)


def test_only_games_have_it_and_a_damaged_one_is_told(caption_run, tmp_path):
    assert not said.steps(caption_run)
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "step_000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(DixitError, match="step_000002.parquet is damaged"):
        tables(tmp_path)


# --- trackers; each is skipped where it is not installed ---


def test_tensorboard_has_images_and_captions(home, train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("train.eval_every=1", "train.save_every=2", "train.trackers=[tensorboard]")
    train(home.game_config, tmp_path / "run", "train.steps=3", *words)
    (tmp_path / "run" / "checkpoints" / "step_000003" / "state.json").unlink()  # it goes on from step 2
    train(home.game_config, tmp_path / "run", "train.steps=4", *words)
    events = EventAccumulator(str(tmp_path / "run" / "dixit"), {"images": 0, "tensors": 0}).Reload()
    assert [e.step for e in events.Images("said/images")] == [e.step for e in events.Scalars("reward")] == [1, 2, 3, 4]
    text = events.Tensors("said/captions/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| number | caption | belief/colour |" in text and tables(tmp_path / "run")[4][0]["caption"] in text


def test_wandb_has_the_table(home, train, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    train(home.game_config, tmp_path / "run", "train.steps=2", "train.trackers=[wandb]")
    path, = tmp_path.glob("wandb/offline-run-*/files/media/table/said_*.table.json")
    table = json.loads(path.read_text())
    said_there = [dict(zip(table["columns"], row, strict=True))["caption"] for row in table["data"]]
    assert said_there == [row["caption"] for row in tables(tmp_path / "run")[2]]
    staged = [path.read_bytes()[:4] for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert staged.count(b"\x89PNG") == 16


def test_trackio_has_the_table(home, tmp_path):
    pytest.importorskip("trackio")
    place = tmp_path / "trackio"  # read from the environment when trackio is imported, so in a process of its own
    done = subprocess.run([sys.executable, "scripts/train.py", home.game_config, f"out={tmp_path / 'run'}",
                           "train.steps=2", "train.trackers=[trackio]"], cwd=ROOT, capture_output=True, text=True,
                          env=home.environment | {"TRACKIO_DIR": str(place)}, timeout=300)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(place / "dixit.db") as database:
        kept = "".join(str(row) for row in database.execute("select * from metrics"))
    assert "trackio.table" in kept and tables(tmp_path / "run")[2][0]["caption"] in kept
    assert len(list(place.rglob("*.png"))) == 16
