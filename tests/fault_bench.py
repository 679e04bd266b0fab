"""What the cases of fault injection share: a training of milliseconds, broken runs in children, and what is left.

See faults.py.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from conftest import make_tiny  # isort: skip  # first: it sets the environment

import numpy as np
import torch
from processes import fork, wait
from safetensors.torch import load_file
from torch import nn

from dixit.common import DixitError, rng
from dixit.config import Config, TrainConfig
from dixit.training import loop
from dixit.training.checkpoints import FILES, checkpoints, step_of, trained_weights, verify_checkpoint
from dixit.training.sharding import full_tensor
from dixit.training.task import Task

STEPS, EVERY = 12, 3
TOY = Config(task="caption", train=TrainConfig(steps=STEPS, batch=6, save_every=EVERY, eval_every=EVERY, lr=0.05,
                                               warmup=1, keep_last=2, best="-loss", timeout=60))
Random = np.random.Generator


class Toy(Task):
    """A linear map learns another, from data that are a function of (seed, step); `fault(step)` may break it."""

    def __init__(self, accelerator: Any, fault: Callable[[int], float | None] = lambda step: None):
        self.accelerator, self.fault, self.seen = accelerator, fault, 0
        self.trained: nn.Module = nn.Linear(8, 4)
        with torch.no_grad():
            for p in self.trained.parameters():
                p.copy_(torch.from_numpy(rng("start", *p.shape).normal(size=p.shape).astype(np.float32)))

    def loss(self, step: int, part: int) -> tuple[torch.Tensor, dict[str, float]]:
        broken = self.fault(step)
        x = torch.from_numpy(rng("toy", step).normal(size=(TOY.train.batch, 8)).astype(np.float32))
        x = x[loop.local_slice(TOY.train.batch, 1, part, self.accelerator)]
        loss = (self.trained(x) - x[:, :4]).square().mean()
        self.seen += 1
        return (loss if broken is None else loss * broken), {"reward": float(-loss.detach())}

    def validate(self, step: int) -> dict[str, float]:
        return {"loss": float(full_tensor(next(self.trained.parameters())).square().mean())}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def toy(folder: Path, fault: Callable[[int], float | None] = lambda step: None, **settings: Any) -> None:
    """Train the toy in this process."""
    from accelerate.state import AcceleratorState

    config = replace(TOY, out=str(folder), train=replace(TOY.train, **settings))
    AcceleratorState._reset_state()
    accelerator = loop.make_accelerator(config)
    with mock.patch.object(loop, "git_commit", lambda: "none"):  # asking git takes longer than the training
        loop.train(config, Toy(accelerator, fault), accelerator)


def lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in rows]


class Bench:
    """One place to break things in: tiny models, the uninterrupted run, and a folder for each case."""

    def __init__(self, root: Path, seed: int = 0):
        self.root, self.seed = root, seed
        os.environ |= {"ACCELERATE_USE_CPU": "true"}
        self.whole = root / "whole"
        with redirect_stderr(io.StringIO()):
            toy(self.whole)
        self._tiny: Any = None

    @property
    def tiny(self) -> Any:
        if self._tiny is None:
            self._tiny = make_tiny(self.root / "tiny")
            os.environ["DIXIT_CACHE"] = str(self._tiny.cache)
        return self._tiny

    def child(self, folder: Path, work: Callable[[], object]) -> tuple[int, str]:
        """Exit code and stderr of a child; a pipe, so that it can speak when its disk is full."""
        end, said = os.pipe()
        code = wait(fork(work, said))
        os.close(said)
        with open(end, encoding="utf-8", errors="replace") as stream:
            return code, stream.read()

    def ends_as_whole(self, folder: Path, settings: dict | None = None) -> str:
        """Give the command again; the warnings it gave. It must end bit for bit as the uninterrupted run."""
        code, said = self.child(folder, lambda: toy(folder, **(settings or {})))
        assert code == 0, said
        assert lines(folder) == lines(self.whole), "the log differs"
        for kind in ("last", "best"):
            for name in FILES:
                one, other = (load_file(trained_weights(run, kind).with_name(name)) for run in (self.whole, folder))
                assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), (kind, name)
        assert verify_checkpoint(checkpoints(folder)[-1])["task"] == {"seen": STEPS}
        left = [p.name for p in folder.rglob("*") if ".tmp" in p.name]
        assert not left, f"left behind: {left}"
        return said


def one_error(code: int, said: str, *words: str) -> None:
    """The child ended as a command ends on bad input."""
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in said, f"exit code {code}: {said}"
    assert all(word in errors[0] for word in words), errors[0]


def sound(folder: Path) -> list[int]:
    """The steps of the checkpoints that are as they were written."""
    found = []
    for place in checkpoints(folder):
        try:
            verify_checkpoint(place)
            found.append(step_of(place))
        except DixitError:
            pass
    return found
