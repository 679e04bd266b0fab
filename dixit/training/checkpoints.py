"""Checkpoints: RUN/checkpoints/step_000100/{model,optimizer}.safetensors and state.json; the best one in RUN/best.

A checkpoint holds the trained parameters only, the optimiser's state, the task's own state and the SHA-256 of each
file. It is written beside its place and renamed, so that it is complete or absent; a damaged one is passed over for the
one before it. Draws are functions of (seed, step), so no random state needs to be saved. RUN/base.safetensors keeps the
weights that a run started from. An exported run (eval/export.py) has its weights in RUN/model.safetensors instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dixit.common import DixitError, atomic_path, first_line, read_json, scratch_dir, sha256, write_json
from dixit.training.sharding import full_optimizer_states, full_tensor
from dixit.training.task import Task

FILES = ("model.safetensors", "optimizer.safetensors")
BASE = "base.safetensors"  # in a run's folder: the weights of the speaker that it started from


def step_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step_{step:06d}"


def step_of(place: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(place.name.removeprefix("step_"))


def checkpoints(folder: Path, kind: str = "checkpoints") -> list[Path]:
    """Complete checkpoints of a run, or its best one (kind "best"); oldest first."""
    return sorted((p for p in (folder / kind).glob("step_*")
                   if p.name.removeprefix("step_").isdecimal() and (p / "state.json").is_file()), key=step_of)


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported run: it holds config and trained weights, without checkpoints."""
    return (folder / FILES[0]).is_file() and (folder / "config.yaml").is_file()


def trained_weights(folder: Path, which: str = "last") -> Path:
    """The newest trained weights of a run, or the best; of an exported run those it has. Raises DixitError if there are
    none."""
    found = checkpoints(folder, "best" if which == "best" else "checkpoints")
    if not found and is_exported(folder):
        return folder / FILES[0]
    if which == "best" and not found:
        raise DixitError(f"{folder} kept no best checkpoint; train it with train.best=gap, or use "
                         "eval.checkpoint=last")
    if not found:
        raise DixitError(f"{folder} holds no checkpoint; train it first: "
                         "dixit train CONFIG")
    return found[-1] / "model.safetensors"


def base_weights(folder: Path, init: str) -> Path:
    """The weights of the speaker that a run started from: kept in its folder once it has begun, else those of the run
    `init`. Raises DixitError if there are none."""
    if (folder / BASE).is_file() and (checkpoints(folder) or is_exported(folder)):
        return folder / BASE
    try:
        return trained_weights(Path(init))
    except DixitError as error:
        raise DixitError(f"speaker.init: {error}") from None


def keep_base(folder: Path, module: nn.Module) -> None:
    """Write RUN/base.safetensors, so that a run is complete without the run it started from."""
    try:
        with atomic_path(folder / BASE) as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, temporary)
    except SafetensorError as error:  # a full disk
        raise DixitError(f"cannot write {folder / BASE}: {error}; free some space, then run the same command again") \
            from None


def selected_figure(name: str, figures: dict[str, float]) -> float:
    """The figure that train.best names, negative for "-name". Raises DixitError if it is not measured."""
    key = f"eval/{name.removeprefix('-')}"
    if key not in figures:
        known = sorted(k.removeprefix("eval/") for k in figures if k.startswith("eval/"))
        raise DixitError(f"config: train.best '{name}' is no validation figure; choose of {', '.join(known)}, with - "
                         "before it where less is better")
    return -figures[key] if name.startswith("-") else figures[key]


def best_so_far(folder: Path) -> float:
    """The figure of the best checkpoint so far; minus infinity if there is none that is sound."""
    for place in reversed(checkpoints(folder, "best")):
        try:
            return float(verify_checkpoint(place)["figure"])
        except DixitError as error:
            print(f"warning: {error}; the best from here on takes its place", file=sys.stderr)
    return -math.inf


def save_checkpoint(place: Path, step: int, module: nn.Module, optimizer: Any, task: Task,
                    figure: float | None = None, write: bool = True) -> None:
    """Write a checkpoint beside `place` and rename it there, so that it is whole or not at all.

    All processes call it, for shards to be brought together; `write` says which one writes.
    """
    weights = {k: full_tensor(v) for k, v in module.state_dict().items()}
    states = full_optimizer_states(optimizer, module)
    if not write:
        return
    scratch = None
    try:
        scratch = scratch_dir(place.parent)
        save_file(weights, scratch / "model.safetensors")
        save_file(states, scratch / "optimizer.safetensors")
        state = {"step": step, "task": task.state_dict(), "figure": figure}
        write_json(scratch / "state.json", state | {"sha256": {name: sha256(scratch / name) for name in FILES},
                                                    "state_sha256": _state_hash(state)})
        shutil.rmtree(place, ignore_errors=True)
        scratch.rename(place)
    except (OSError, SafetensorError) as error:
        raise DixitError(f"cannot save the checkpoint {place}: {error}; free some space, then run the same command "
                         "again to go on from the last checkpoint") from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _state_hash(state: dict[str, Any]) -> str:
    """A hash of the contents of state.json other than hashes."""
    content = {key: state[key] for key in ("step", "task", "figure")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify_checkpoint(place: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are as they were written. Raises DixitError if they are not."""
    try:
        state = read_json(place / "state.json")
        wrong = [name for name in FILES if sha256(place / name) != state["sha256"][name]]
        if state.get("state_sha256", _state_hash(state)) != _state_hash(state):  # earlier versions wrote none
            wrong.append("state.json")
    except (DixitError, OSError, KeyError, TypeError, AttributeError) as error:
        raise DixitError(f"the checkpoint {place} is damaged ({first_line(error)}); delete its folder") from None
    if wrong:
        raise DixitError(f"the checkpoint {place} is damaged ({wrong[0]} is not as it was written); delete its folder")
    return state


def load_weights(module: nn.Module, path: Path, optional: tuple[str, ...] = ()) -> None:
    """Load trained weights; those that begin with one of `optional` and that the file has not got stay as they are.

    Raises DixitError if the file is missing, damaged or of another architecture.
    """
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise DixitError(f"there is no checkpoint at {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        mend = "export or download it again" if is_exported(path.parent) else \
            "delete it, then speaker.init is read" if path.name == BASE else \
            "delete its folder to go on from the one before it"
        raise DixitError(f"the checkpoint {path} is damaged ({error}); {mend}") from None
    own = module.state_dict()
    weights = {k: v for k, v in own.items() if k.startswith(optional)} | weights
    wrong = sorted(k for k in own.keys() | weights.keys()
                   if k not in own or k not in weights or own[k].shape != weights[k].shape)
    if wrong:
        raise DixitError(f"the checkpoint {path} is of another architecture (first difference: '{wrong[0]}'); "
                         "use the config it was trained with")
    module.load_state_dict(weights)


def resume(folder: Path, module: nn.Module, optimizer: Any, task: Task) -> int:
    """Load the newest sound checkpoint into module, optimiser and task; returns the number of finished steps.

    Raises DixitError if there are checkpoints and all are damaged, or it is of another architecture.
    """
    found = checkpoints(folder)
    for place in reversed(found):
        try:
            state = verify_checkpoint(place)
            break
        except DixitError as error:
            if place == found[0]:
                raise
            print(f"warning: {error}; going on from the checkpoint before it", file=sys.stderr)
    else:
        return 0
    load_weights(module, place / FILES[0])
    blank = optimizer.state_dict()
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(place / FILES[1]).items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": blank["param_groups"]})
    task.load_state_dict(state["task"])
    return int(state["step"])
