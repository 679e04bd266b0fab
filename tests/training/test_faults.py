"""A few cases of every kind of scripts/faults, and what wears out over long runs."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import fault_bench
import faults
import pytest
import torch
from processes import fork, wait

from dixit.common import DixitError
from dixit.models.listeners import score_all
from dixit.training.checkpoints import checkpoints

MOST = {"lost_process": 1, "failing_listener": 1, "any_caption": 4, "damaged_cache": 2, "bad_image": 6,
        "config_fault": 10, "damaged_captions": 4, "signal_in_an_evaluation": 1, "signal_in_a_warm_start": 1}


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory):
    before = os.environ.copy()
    root = tmp_path_factory.mktemp("faults")
    for folder in (root, *root.parents[:2]):
        folder.chmod(0o755)  # for a child that is nobody
    made = faults.Bench(root)
    made._tiny = tiny
    os.environ["DIXIT_CACHE"] = str(tiny.cache)
    yield made
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(("kind", "number"), [
    (kind, number) for kind in faults.KINDS for number in range(MOST.get(kind.__name__, 2))],
    ids=lambda value: value if isinstance(value, int) else value.__name__)
def test_a_case_is_survived(bench, kind, number):
    faults.one_case(bench, kind, number)


def test_a_lost_case_is_told(bench, monkeypatch):
    """The suite itself notices a loss: here a run that throws away its checkpoints."""
    from dixit.training import loop

    monkeypatch.setattr(loop, "save_checkpoint", lambda *given, **more: None)
    with pytest.raises((AssertionError, DixitError)):
        for number in range(9):
            faults.kill_at_a_step(bench, bench.root / f"lossy_{number}", faults.rng("lossy", number))


def test_a_damaged_checkpoint_does_not_push_out_sound_ones(bench, tmp_path):
    """A later one that is damaged is none of the newest that are kept."""
    run = tmp_path / "run"
    assert bench.child(run, lambda: fault_bench.toy(run, steps=6, save_every=6))[0] == 0
    (run / "checkpoints" / "step_000006").rename(run / "checkpoints" / "step_000900")
    (run / "checkpoints" / "step_000900" / "state.json").write_text("{")
    assert bench.child(run, lambda: fault_bench.toy(tmp_path / "short", steps=3, save_every=3))[0] == 0
    (tmp_path / "short" / "checkpoints" / "step_000003").rename(run / "checkpoints" / "step_000003")
    code, said = bench.child(run, lambda: fault_bench.toy(run, steps=4, save_every=1, keep_last=1))
    assert code == 0 and "step_000900 is damaged" in said
    assert fault_bench.sound(run) == [4]


def test_checkpoints_of_many_digits_are_in_order(tmp_path):
    for name in ("step_999999", "step_1000000", "step_x", "step_000007"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "state.json").write_text("{}")
    assert [p.name for p in checkpoints(tmp_path)] == ["step_000007", "step_999999", "step_1000000"]


def test_the_log_is_begun_anew_when_it_is_large(bench, tmp_path, monkeypatch):
    """log.jsonl and log.old.jsonl hold the newest lines, none twice, also after a resumption that goes back."""
    from dixit.training import loop

    run = tmp_path / "run"
    monkeypatch.setattr(loop, "_rotated", lambda log, folder, most, real=loop._rotated: real(log, folder, 1000.0))
    code, said = bench.child(run, lambda: fault_bench.toy(run, lambda s: os.kill(os.getpid(), 9) if s == 11 else None))
    assert code == -9 and (run / "log.old.jsonl").is_file(), said
    assert bench.child(run, lambda: fault_bench.toy(run))[0] == 0
    steps = [json.loads(line)["step"] for name in ("log.old.jsonl", "log.jsonl")
             for line in (run / name).read_text().splitlines()]
    assert steps == list(range(steps[0], 13)) and len(steps) >= 5
    assert (run / "log.jsonl").stat().st_size < 1500


def test_a_listener_that_fails_is_named():
    class Broken:
        def score(self, texts, candidates):
            raise KeyError("colour\nof what")

    with pytest.raises(DixitError, match=r"^listener 1 failed \(KeyError: .*then run the same command again$"):
        score_all([Broken()], ["a"], torch.zeros(1, 2, dtype=torch.long))


def resident() -> float:
    """Megabytes this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat_over_2000_steps(home, train, tmp_path, monkeypatch):
    """A game of tiny models, with evaluation, saving and logging all along; memory in steps 500 to 2,000."""
    from dixit.training.game_task import GameTask

    held: list[tuple[int, float, int]] = []
    loss = GameTask.loss

    def watched(self: GameTask, step: int, part: int) -> tuple:
        if step % 50 == 0:
            gc.collect()
            held.append((step, resident(), len(gc.get_objects())))
        return loss(self, step, part)

    monkeypatch.setattr(GameTask, "loss", watched)

    def work() -> None:
        train(home.game_config, tmp_path / "run", "train.steps=2000", "train.log_every=10", "train.eval_every=100",
              "train.save_every=100", "train.best=gap", "train.lr=1e-4", "train.schedule=constant")
        (tmp_path / "held.json").write_text(json.dumps(held))

    assert wait(fork(work, tmp_path / "said"), seconds=1800) == 0, (tmp_path / "said").read_text()
    rows = [row for row in json.loads((tmp_path / "held.json").read_text()) if row[0] >= 500]
    first, last = rows[:5], rows[-5:]
    megabytes = sum(r[1] for r in last) / 5 - sum(r[1] for r in first) / 5
    objects = sum(r[2] for r in last) / 5 - sum(r[2] for r in first) / 5
    print(f"from step 500 to 2,000: {megabytes:+.1f} MB of {rows[0][1]:.0f}, {objects:+.0f} objects of {rows[0][2]}")
    assert megabytes < 10 and objects < 500
    assert len(checkpoints(tmp_path / "run")) == 2 and len(checkpoints(tmp_path / "run", "best")) == 1
