"""Two hosts with addresses of their own, a slow and lossy link, a host that is cut off or killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_bench
import pytest
import torch
from processes import as_rank, fork, wait
from safetensors.torch import load_file

from dixit.training.checkpoints import checkpoints, trained_weights

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from hosts import INTERFACE, Hosts, enter, unavailable_reason  # noqa: E402

TIMEOUT = 12


@pytest.fixture(scope="module", autouse=True)
def permitted():
    if reason := unavailable_reason():
        pytest.skip(reason)
    yield
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert f"dixit-{os.getpid()}-" not in left, "namespaces are left over"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The toy's run on one host, never broken."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    run = tmp_path_factory.mktemp("whole") / "run"
    fault_bench.toy(run)
    return run


def start(hosts: Hosts, run: Path, **toy: object) -> list[int]:
    """A process of the toy's training on each host."""
    def work(host: int) -> None:
        enter(hosts.names[host])
        fault_bench.toy(run, **toy)

    return [fork(lambda host=host: work(host), run.with_suffix(f".{host}"),
                 **as_rank(host, len(hosts.names), hosts.addresses[0], 29511, INTERFACE))
            for host in range(len(hosts.names))]


def same(one: Path, other: Path) -> None:
    first, second = (load_file(trained_weights(run)) for run in (one, other))
    assert all(torch.allclose(first[k], second[k], atol=1e-5) for k in first)
    assert [row["step"] for row in fault_bench.lines(one)] == [row["step"] for row in fault_bench.lines(other)]


def test_a_slow_and_lossy_link_changes_nothing_but_the_time(whole, tmp_path):
    with Hosts(2, delay=0.02, loss=0.02) as hosts:
        assert [wait(child) for child in start(hosts, tmp_path / "run")] == [0, 0]
        assert hosts.sent > 100 and hosts.lost > 0
    same(whole, tmp_path / "run")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", ["cut off", "killed"])
def test_a_host_that_is_gone_ends_the_job_with_one_line_and_it_goes_on(whole, tmp_path, how, victim):
    run, gate = tmp_path / "run", tmp_path / "gate"

    def hold(step: int) -> None:
        if step == 7 and not (tmp_path / "gone").exists():
            (tmp_path / f"gate_{os.environ['RANK']}").touch()
            while not (tmp_path / "gone").exists():
                time.sleep(0.01)

    with Hosts(2) as hosts:
        children = start(hosts, run, fault=hold, timeout=TIMEOUT)
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("gate_*"))) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        if how == "cut off":
            hosts.off = {victim}
        else:
            os.kill(children[victim], 9)
        (tmp_path / "gone").touch()
        began = time.monotonic()
        codes = [wait(child) for child in children]
        took = time.monotonic() - began
        for host in {0, 1} - ({victim} if how == "killed" else set()):
            fault_bench.one_error(codes[host], run.with_suffix(f".{host}").read_text(), "lost the other",
                             "run the same command again")
        assert took < TIMEOUT + 120  # it ends by the timeout, not by train.timeout's default of 600 s
        assert fault_bench.sound(run) == [3, 6]
        shutil.copytree(run, tmp_path / "elsewhere")
        hosts.off = set()
        assert [wait(child) for child in start(hosts, run)] == [0, 0], run.with_suffix(".0").read_text()
    same(whole, run)
    assert wait(fork(lambda: fault_bench.toy(tmp_path / "elsewhere"), gate)) == 0  # and on one process
    same(whole, tmp_path / "elsewhere")


@pytest.mark.parametrize("warned", [0, 1])
def test_a_host_that_is_preempted_stops_both_which_save(whole, tmp_path, warned):
    run = tmp_path / "run"

    def preempt(step: int) -> None:
        if step == 4 and int(os.environ["RANK"]) == warned:
            os.kill(os.getpid(), signal.SIGTERM)

    with Hosts(2) as hosts:
        assert [wait(child) for child in start(hosts, run, fault=preempt, save_every=1000)] == [143, 143]
        assert fault_bench.sound(run) == [5]
        assert [wait(child) for child in start(hosts, run)] == [0, 0], run.with_suffix(".0").read_text()
    same(whole, run)


def test_a_host_that_never_comes_is_told_in_time(tmp_path):
    def work() -> None:
        enter(hosts.names[0])
        fault_bench.toy(tmp_path / "run", timeout=5)

    with Hosts(2) as hosts:
        for rank in (0, 1):  # the first host waits for the second, the second for the first
            said = tmp_path / f"said_{rank}"
            child = fork(work, said, **as_rank(rank, 2, hosts.addresses[0] if rank == 0 else hosts.addresses[1], 29512,
                                               INTERFACE))
            fault_bench.one_error(wait(child), said.read_text(), "did not meet", "run the same command again")


def launch(hosts: Hosts, tiny, run: Path) -> list[subprocess.Popen]:
    """`accelerate launch --num_machines 2` of a game on both hosts, as docs/scale.md has it."""
    return [hosts.start(host, [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/multi_node.yaml",
        "--machine_rank", str(host), "--main_process_ip", hosts.addresses[0], "scripts/train.py",
        str(tiny.game_config), f"out={run}", "train.steps=40", "train.save_every=5", "train.timeout=30",
        "train.lr=1e-3"], cwd=ROOT, env=tiny.environment, stdout=subprocess.DEVNULL,
        stderr=run.with_suffix(f".{host}").open("w")) for host in (0, 1)]


@pytest.mark.slow
def test_accelerate_launch_on_two_hosts_one_of_which_is_killed(home, train, tmp_path):
    """The whole command line: uninterrupted on one process; on two hosts, killed, and gone on with on two hosts."""
    train(home.game_config, tmp_path / "whole", "train.steps=40", "train.save_every=5", "train.lr=1e-3")
    run = tmp_path / "run"
    with Hosts(2, delay=0.005, loss=0.002) as hosts:
        jobs = launch(hosts, home, run)
        end = time.monotonic() + 500
        while not checkpoints(run):
            assert time.monotonic() < end and all(job.poll() is None for job in jobs), run.with_suffix(".0").read_text()
            time.sleep(0.02)
        hosts.kill(1)
        began = time.monotonic()
        assert jobs[0].wait(timeout=200) != 0
        took, said = time.monotonic() - began, run.with_suffix(".0").read_text()
        assert len([line for line in said.splitlines() if line.startswith("error: process 0 of 2 lost the other")]) == 1
        assert took < 120 and 0 < int(checkpoints(run)[-1].name[-6:]) < 40
        jobs = launch(hosts, home, run)
        assert [job.wait(timeout=500) for job in jobs] == [0, 0], run.with_suffix(".0").read_text()
    one, other = (load_file(trained_weights(r)) for r in (tmp_path / "whole", run))
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=2e-3, rtol=1e-2)
    first, second = (fault_bench.lines(r) for r in (tmp_path / "whole", run))
    assert [row["step"] for row in first] == [row["step"] for row in second]
    assert all(a["loss"] == pytest.approx(b["loss"], abs=1e-3) for a, b in zip(first, second, strict=True))
