"""Bad input ends a command with exit code 2 and one line on stderr that begins `error:`, never a traceback."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from dixit.common import DixitError, atomic_write_text, locked, read_json, write_json
from dixit.training.checkpoints import checkpoints, trained_weights

ROOT = Path(__file__).resolve().parents[1]
Command = Callable[..., subprocess.CompletedProcess]


def refused(done: subprocess.CompletedProcess, *words: str) -> str:
    """The one error line of a command, checked; other lines may be a library's progress bars or warnings."""
    mine = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(mine) == 1, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.rstrip().endswith(mine[0]), done.stderr
    for word in words:
        assert word in mine[0], mine[0]
    return mine[0]


@pytest.fixture
def run_copy(game_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(game_run, tmp_path / "run"))


@pytest.mark.parametrize(("overrides", "words"), [
    (["train.stepz=3"], ["train.stepz", "train.steps"]),
    (["game.candidates=65"], ["candidates 65", "64 images"]),
    (["data.validation=3"], ["candidates 4", "3 images", "validation"]),
    (["listeners=[]"], ["at least one listener"]),
    (["clip.name=lite0"], ["lite0", "not built", "dixit train clip"]),
    (["speaker.llm=smollm2-135m"], ["smollm2-135m", "python -m dixit.data.assets"]),
    (["speaker.llm=nobody/no-such-model"], ["nobody/no-such-model"]),
    (["listeners.1.perception=gray"], ["gray", "grey"]),
    (["speaker.init=/nonexistent/run"], ["speaker.init", "no checkpoint"]),
    (["train.batch=6", "train.accumulate=4"], ["multiple"]),
], ids=lambda value: value[0] if "=" in value[0] else "")
def test_a_config_that_cannot_work(command: Command, tiny, tmp_path, overrides, words):
    refused(command("scripts/train.py", tiny.game_config, f"out={tmp_path / 'run'}", *overrides), *words)
    assert not (tmp_path / "run").exists()


def test_no_config_file(command: Command, tmp_path):
    refused(command("scripts/train.py", tmp_path / "absent.yaml"), "absent.yaml", "No such file")


def test_an_empty_image_folder(command: Command, tiny, tmp_path):
    (tmp_path / "images").mkdir()
    refused(command("scripts/train.py", tiny.caption_config, f"out={tmp_path / 'run'}", "data.name=folder",
                    f"data.path={tmp_path / 'images'}"), str(tmp_path / "images"))


def test_an_image_that_is_none(command: Command, tiny, tmp_path):
    for split in ("train", "validation"):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(folder / f"red {i}.png")
    (tmp_path / "images" / "train" / "bad.png").write_bytes(b"no picture")
    refused(command("scripts/train.py", tiny.caption_config, f"out={tmp_path / 'run'}", "data.name=folder",
                    f"data.path={tmp_path / 'images'}"), "bad.png")


def test_a_corrupt_checkpoint(command: Command, run_copy):
    weights = trained_weights(run_copy)
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(command("-m", "eval.evaluate", run_copy), str(weights), "damaged", "delete its folder")
    done = command("scripts/train.py", run_copy / "config.yaml", f"out={run_copy}", "train.steps=6")
    assert done.returncode == 0 and checkpoints(run_copy)[-1].name == "step_000006"
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: the checkpoint")]
    assert len(warned) == 1 and "step_000004 is damaged" in warned[0] and "the checkpoint before it" in warned[0]


@pytest.mark.parametrize("damage", ["empty", "one bit"])
def test_damaged_checkpoints_are_passed_over_and_the_last_one_is_refused(command: Command, run_copy, damage):
    for place in checkpoints(run_copy):
        state = place / "optimizer.safetensors"
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1  # what safetensors alone would not notice
        state.write_bytes(b"" if damage == "empty" else bytes(content))
    refused(command("scripts/train.py", run_copy / "config.yaml", f"out={run_copy}", "train.steps=6"),
            "step_000002 is damaged", "optimizer.safetensors is not as it was written")


def test_a_checkpoint_of_another_architecture(command: Command, run_copy):
    refused(command("scripts/train.py", run_copy / "config.yaml", f"out={run_copy}", "speaker.width=48"),
            "another architecture")


def test_evaluating_what_is_no_run(command: Command, tmp_path):
    refused(command("-m", "eval.evaluate", tmp_path), str(tmp_path), "config.yaml")


@pytest.mark.parametrize("words", [
    ("eval.pairs", "--quick", "--jobs", "0"), ("eval.tournament", "no_run", "--games", "0"),
    ("eval.report", "no_run", "--images", "-3"), ("eval.transfer", "no_run", "--pools", "0")])
def test_a_number_that_must_be_at_least_one(command: Command, words):
    refused(command("-m", *words), f"{words[-2]} is {words[-1]}", "at least 1")


def test_a_path_that_is_too_long(command: Command):
    refused(command("-m", "dixit", "train", "x" * 300), "a path is too long: xxx")


def test_a_reader_of_the_output_that_has_gone(tiny):
    process = subprocess.Popen([sys.executable, "-m", "dixit", "--help"], cwd=ROOT, env=tiny.environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 128 + signal.SIGPIPE


def test_a_clip_that_returns_nan(command: Command, tiny, tmp_path):
    broken = Path(shutil.copytree(tiny.clip, tmp_path / "broken_eye")) / "open_clip_model.safetensors"
    weights = load_file(broken)
    weights["text_projection"] *= float("nan")
    save_file(weights, broken)
    refused(command("scripts/train.py", tiny.game_config, f"out={tmp_path / 'run'}",
                    f"listeners.1.clip={broken.parent}"), "NaN", "broken_eye")


def test_a_damaged_clip(command: Command, tiny, tmp_path):
    broken = Path(shutil.copytree(tiny.clip, tmp_path / "broken_eye"))
    (broken / "open_clip_model.safetensors").write_bytes(b"half")
    refused(command("scripts/train.py", tiny.game_config, f"out={tmp_path / 'run'}", f"clip.name={broken}"),
            "broken_eye")


def test_a_disk_that_is_full_keeps_the_last_checkpoint(command: Command, run_copy):
    """No file may grow beyond 20 kB: a checkpoint cannot be written. With space again, the run goes on."""
    before = load_file(trained_weights(run_copy))
    assert trained_weights(run_copy).stat().st_size > 20_000
    words = ("scripts/train.py", run_copy / "config.yaml", f"out={run_copy}", "train.steps=6")
    small = (20_000, 20_000)
    refused(command(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, small)), "cannot save",
            "free some space")
    assert [p.name for p in checkpoints(run_copy)] == ["step_000002", "step_000004"]
    after = load_file(trained_weights(run_copy))
    assert all((before[k] == after[k]).all() for k in before)
    assert not [p for p in (run_copy / "checkpoints").iterdir() if p.name.startswith(".")]
    assert command(*words).returncode == 0
    assert checkpoints(run_copy)[-1].name == "step_000006"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_that_cannot_grow(command: Command, tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").symlink_to("/dev/full")
    refused(command("scripts/train.py", tiny.game_config, f"out={tmp_path / 'run'}"), "log.jsonl", "No space left",
            "free some space")


@pytest.mark.parametrize("task", ["caption", "game"])
def test_a_loss_that_is_no_number_stops_the_run(home, train, caption_run, tmp_path, task):
    broken = trained_weights(Path(shutil.copytree(caption_run, tmp_path / "broken")))
    save_file({k: v * float("nan") for k, v in load_file(broken).items()}, broken)
    config = home.caption_config if task == "caption" else home.game_config
    with pytest.raises(DixitError, match="not finite at step 3: .*loss.*2 steps before it were skipped"):
        train(config, tmp_path / "run", f"speaker.init={tmp_path / 'broken'}", "train.max_skipped=2",
              "train.save_every=10")
    assert not checkpoints(tmp_path / "run")


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(home, train, tmp_path, monkeypatch):
    from dixit.training.game_task import GameTask

    reward = GameTask.reward

    def sometimes_nan(self: GameTask, *given: object) -> tuple:
        total, *rest = reward(self, *given)
        self.asked = getattr(self, "asked", 0) + 1
        return (total * (math.nan if self.asked == 2 else 1), *rest)

    monkeypatch.setattr(GameTask, "reward", sometimes_nan)
    train(home.game_config, tmp_path / "run", "train.steps=3", "train.save_every=1", "train.keep_last=3",
          "policy.algorithm=reinforce")
    one, two, three = (load_file(place / "model.safetensors") for place in checkpoints(tmp_path / "run"))
    assert all((one[k] == two[k]).all() for k in one) and any((two[k] != three[k]).any() for k in two)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row.get("skipped") for row in rows] == [None, 1.0, None]
    assert math.isfinite(read_json(checkpoints(tmp_path / "run")[-1] / "state.json")["task"]["baseline"])


def test_two_runs_in_one_folder(command: Command, tiny, tmp_path):
    with locked(tmp_path / "run" / ".lock"):
        refused(command("scripts/train.py", tiny.game_config, f"out={tmp_path / 'run'}"), "another process is training",
                "out=")
    assert command("scripts/train.py", tiny.game_config, f"out={tmp_path / 'run'}").returncode == 0


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "notes.json"
    write_json(path, {"old": 1})
    child = os.fork()  # the limit holds for a whole process, so it is set in a child
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            atomic_write_text(path, "x" * 5000)
        except DixitError as error:
            os._exit(0 if "cannot write" in str(error) and "\n" not in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_json(path) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["notes.json"]


def test_json_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DixitError, match="damaged"):
        read_json(tmp_path / "b.json")
