"""What the launcher was told beside the config, and trackers: both are looked at before anything is computed."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from dixit.common import DixitError
from dixit.config import TrainConfig
from dixit.training import launcher
from dixit.training.launcher import check_trackers, disagreements


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(launcher, "launcher_words", lambda: [])


def lines(**settings: object) -> list[str]:
    return disagreements(TrainConfig(**settings), 1)  # type: ignore[arg-type]


def test_nothing_is_said_where_they_agree(monkeypatch):
    assert lines() == [] and lines(mixed_precision="bf16", accumulate=4) == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert lines(mixed_precision="bf16", accumulate=4) == []


def test_precision_and_accumulation_are_the_configs(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    precision, accumulate = lines(accumulate=2)
    assert "mixed_precision fp16" in precision and "train.mixed_precision no: the config counts" in precision
    assert "gradient_accumulation_steps 4" in accumulate and "train.accumulate 2: the config counts" in accumulate


@pytest.mark.parametrize("words", [["--num_processes", "3"], ["--num_processes=3"], ["--num-processes", "3"],
                                   ["--config_file", "FILE"], ["--config_file=FILE"]])
def test_another_number_of_processes_is_said(monkeypatch, tmp_path, words):
    (tmp_path / "file.yaml").write_text("num_processes: 3\n")
    words = ["python", "accelerate", "launch", *(w.replace("FILE", str(tmp_path / "file.yaml")) for w in words)]
    monkeypatch.setattr(launcher, "launcher_words", lambda: words)
    line, = lines()
    assert "asked for 3 processes and started 1, which counts" in line and "configs/accelerate/ddp.yaml" in line
    assert disagreements(TrainConfig(), 3) == []


def test_accelerate_launch_that_starts_one_process_of_two_says_so(home, tmp_path, command):
    done = command("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
                   "--dynamo_backend", "no", "--mixed_precision", "bf16", "--gradient_accumulation_steps", "4",
                   "scripts/train.py", home.game_config, f"out={tmp_path / 'run'}", "train.steps=1")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert any("asked for 2 processes and started 1" in line for line in notes), done.stderr
    assert any("mixed_precision bf16" in line for line in notes)


@pytest.mark.parametrize(("name", "module"), [
    ("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch, name, module):
    for absent in (module, "tensorboardX"):
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(DixitError, match=f"names {name}, which cannot be imported .*: pip install {name}"):
        check_trackers((name,))
    check_trackers(())


def test_wandb_without_a_login_is_one_line_unless_it_is_offline(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(api=SimpleNamespace(api_key=None)))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(DixitError, match="nobody is logged in: run wandb login, or set WANDB_MODE=offline"):
        check_trackers(("wandb",))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(("wandb",))


def test_trackers_are_checked_before_anything_is_computed(home, train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(DixitError, match="names trackio"):
        train(home.game_config, tmp_path / "run", "train.trackers=[trackio]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["heldout.0.clip=/nonexistent/eye", "listeners.1.clip=/nonexistent/eye",
                                      "speaker.llm=/nonexistent/llm", "speaker.init=/nonexistent/run"])
def test_models_are_looked_for_before_data_and_features_are_made(home, train, tmp_path, monkeypatch, override):
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DixitError, match="nonexistent"):
        train(home.game_config, tmp_path / "run", override)
    assert not (tmp_path / "cache").exists()
