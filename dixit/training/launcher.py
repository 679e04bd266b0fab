"""What the launcher (accelerate launch) was asked for beside what the run's config says.

Leaves out the processes themselves, which accelerate connects.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.config.config_args import default_config_file

from dixit.common import DixitError, first_line
from dixit.config import TrainConfig
from dixit.interrupts import launcher_words
from dixit.yaml_files import read_yaml


def disagreements(settings: TrainConfig, processes: int) -> list[str]:
    """One line for each setting in which the launcher and `train` differ: which one counts."""
    lines = []
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", settings.mixed_precision):
        lines.append(f"the launcher says mixed_precision {precision}, the config train.mixed_precision "
                     f"{settings.mixed_precision}: the config counts")
    accumulate = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulate not in ("1", str(settings.accumulate)):
        lines.append(f"the launcher says gradient_accumulation_steps {accumulate}, the config train.accumulate "
                     f"{settings.accumulate}: the config counts")
    wanted = _processes(launcher_words())
    if wanted not in (0, processes):
        lines.append(f"the launcher was asked for {wanted} processes and started {processes}, which "
                     "counts; on CPUs it starts several with ACCELERATE_USE_CPU=true accelerate launch --config_file "
                     "configs/accelerate/ddp.yaml")
    return lines


def _processes(words: list[str]) -> int:
    """The number of processes that a launcher's command line, or the file it names, asks for; 0 if neither does."""
    named: dict[str, str] = {}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        key, equals, value = word.partition("=")
        if key.replace("-", "_") in ("__num_processes", "__config_file"):
            named.setdefault(key.replace("-", "_"), value if equals else following)
    if "__num_processes" in named:
        return int(named["__num_processes"]) if named["__num_processes"].isdecimal() else 0
    file = Path(named.get("__config_file", default_config_file)) if words else None
    try:
        count = read_yaml(file)["num_processes"].value if file and file.is_file() else 0
    except (DixitError, AttributeError, KeyError, TypeError):  # accelerate says what is wrong with its own file
        return 0
    return count if isinstance(count, int) else 0


_kept: list[Any] = []


def keep_process_group() -> None:
    """Keep the process group until the process ends, although accelerate destroys it at the end of a training.

    Else the last object that uses it, such as a wrapped module, waits for gloo's thread when it is freed, and that
    thread may wait for Python's lock to free the last exchange: both wait for ever (seen once in fifty short runs).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _kept.append(torch.distributed.group.WORLD)


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises DixitError if a tracker cannot be imported, or asks for a login that this process has not got."""
    modules = {"tensorboard": ("torch.utils.tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
    for name in names:
        problems = [problem for module in modules[name] if (problem := _import_problem(module))]
        if len(problems) == len(modules[name]):
            raise DixitError(f"train.trackers names {name}, which cannot be imported ({problems[0]}): pip install "
                             f"{name}, or leave it out; log.jsonl is written in any case")
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") in ("online", "shared"):
        import wandb

        if not wandb.api.api_key:
            raise DixitError("train.trackers names wandb, and nobody is logged in: run wandb login, or set "
                             "WANDB_MODE=offline")


def _import_problem(module: str) -> str:
    """Why a module cannot be imported; empty if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a damaged installation raises anything
        return first_line(error)
    return ""
