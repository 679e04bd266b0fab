"""SIGTERM, SIGUSR1 and SIGINT: the step is finished and saved, on all processes; a second signal ends at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_bench
import pytest
import torch
from processes import as_rank, fork, free_port, processes_of, wait
from safetensors.torch import load_file

from dixit.common import run_main
from dixit.interrupts import Interrupted, finishing, launcher_words, noted_signal
from dixit.training.checkpoints import checkpoints, step_of, trained_weights

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("train.save_every=1000", "train.eval_every=1000", "train.lr=1e-3")


def lines(run: Path) -> list[dict]:
    log = run / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []


def wait_for_steps(run: Path, process: subprocess.Popen, steps: int = 3, seconds: float = 400) -> None:
    """Until the run has logged so many steps."""
    end = time.monotonic() + seconds
    while len(lines(run)) < steps:
        assert process.poll() is None, f"ended with {process.returncode}: {Path(f'{run}.err').read_text()}"
        assert time.monotonic() < end, Path(f"{run}.err").read_text()
        time.sleep(0.02)


def start(words: list[object], run: Path, environment: dict[str, str]) -> subprocess.Popen:
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it

    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
                            stderr=Path(f"{run}.err").open("w"), preexec_fn=prepare, start_new_session=True)


def train_process(home, run: Path, *overrides: str, launcher: tuple[object, ...] = (), **environment: str):
    words = [*launcher, "scripts/train.py", home.game_config, f"out={run}", "train.steps=100000", *SETTINGS, *overrides]
    return start(words, run, home.environment | environment)


def wait_until_gone(run: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while processes_of(run):
        assert time.monotonic() < end, f"still running: {Path(f'{run}.err').read_text()}"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [  # the others by signal_at_a_step of scripts/faults
    signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda n: n.name)
def test_a_training_saves_and_ends_with_the_code_of_the_signal(home, tmp_path, number):
    run = tmp_path / "run"
    process = train_process(home, run)
    wait_for_steps(run, process)
    process.send_signal(number)
    assert process.wait(timeout=240) == 128 + number
    said = Path(f"{run}.err").read_text()
    saved = step_of(checkpoints(run)[-1])
    assert saved == lines(run)[-1]["step"] >= 3 and f"{number.name}: stopped after step {saved} of 100000" in said
    assert "Traceback" not in said and not [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]


def test_an_interrupted_run_ends_as_the_uninterrupted_one(home, train, tmp_path):
    """With rollouts that last three steps: the signal comes in the first, and the rollout is finished."""
    settings = ("train.steps=9", "policy.algorithm=ppo", "policy.epochs=3", "train.save_every=9", "train.eval_every=3")
    train(home.game_config, tmp_path / "whole", *settings)

    def broken() -> None:
        from dixit.training.game_task import GameTask

        step = GameTask.after_step

        def after_step(self, done: int) -> None:
            step(self, done)
            if done == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        GameTask.after_step = after_step
        train(home.game_config, tmp_path / "run", *settings)

    said = tmp_path / "said"
    assert wait(fork(broken, said)) == 143, said.read_text()
    assert [step_of(place) for place in checkpoints(tmp_path / "run")] == [6]
    train(home.game_config, tmp_path / "run", *settings)
    one, other = (load_file(trained_weights(tmp_path / name)) for name in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [row["step"] for row in lines(tmp_path / "whole")] == [row["step"] for row in lines(tmp_path / "run")]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
                         ids=lambda n: n.name)
def test_the_end_of_accelerate_launch_ends_its_process_which_saves(home, tmp_path, number):
    run = tmp_path / "run"
    launcher = ("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision",
                "no", "--dynamo_backend", "no")
    process = train_process(home, run, launcher=launcher)
    wait_for_steps(run, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    wait_until_gone(run)
    assert step_of(checkpoints(run)[-1]) == lines(run)[-1]["step"]
    assert "SIGTERM: stopped after step" in Path(f"{run}.err").read_text()


def test_two_processes_under_accelerate_launch_save_together(home, tmp_path):
    run = tmp_path / "run"
    launcher = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/ddp.yaml", "--num_processes",
                "2", "--main_process_port", free_port())
    process = train_process(home, run, launcher=launcher, ACCELERATE_USE_CPU="true", GLOO_SOCKET_IFNAME="lo")
    wait_for_steps(run, process)
    assert len(processes_of(run)) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) != 0
    wait_until_gone(run)
    said = Path(f"{run}.err").read_text()
    assert said.count("SIGTERM: stopped after step") == 1, said
    assert step_of(checkpoints(run)[-1]) == lines(run)[-1]["step"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_of_two_stops_both_at_the_same_step(tmp_path, rank):
    run, port = tmp_path / "run", free_port()

    def fault(step: int) -> None:
        if step == 4 and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGUSR1)

    children = [fork(lambda: fault_bench.toy(run, fault, save_every=1000), tmp_path / str(r),
                     **as_rank(r, 2, "127.0.0.1", port, "lo")) for r in (0, 1)]
    assert [wait(child) for child in children] == [138, 138], (tmp_path / "0").read_text()
    assert fault_bench.sound(run) == [5]
    assert "stopped after step 5" in (tmp_path / "0").read_text()
    assert "stopped after step" not in (tmp_path / "1").read_text()


def ended(work) -> tuple[int, BaseException | None]:
    """The exit code of a command in this process."""
    with pytest.raises(SystemExit) as caught:
        run_main(work)
    return int(caught.value.code or 0), caught.value


def test_outside_a_training_a_signal_ends_at_once_with_clean_up(capsys):
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            cleaned.append(True)

    assert ended(work)[0] == 143 and cleaned == [True]
    assert "interrupted by SIGTERM: run the same command again" in capsys.readouterr().err


def test_inside_a_training_the_second_signal_ends_at_once():
    noted = []

    def work() -> None:
        with finishing():
            os.kill(os.getpid(), signal.SIGUSR1)
            noted.append(noted_signal())
            os.kill(os.getpid(), signal.SIGTERM)
            noted.append("not reached")

    assert ended(work)[0] == 143 and noted == [signal.SIGUSR1]
    assert noted_signal() == 0


def test_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    assert ended(lambda: None)[0] == 0
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    assert launcher_words() == [] and issubclass(Interrupted, KeyboardInterrupt)
