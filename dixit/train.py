"""The one training loop, for every training in the project.

A task gives `loss(step, part)` and `observe(step)`; the loop does the rest: seeding, optimiser, clipping, mixed
precision, accumulation, logging, evaluation, atomic checkpoints, exact resume. A checkpoint is safetensors and
JSON and holds the trained parameters only, with their hashes; a damaged one is passed over for the one before it.
Draws are functions of (seed, step), so nothing of a random state needs to be saved. A step whose loss or gradient is
not finite changes nothing and is counted.

Leaves out what is trained and on what (tasks.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dixit.common import (
    DixitError,
    atomic_write_text,
    command_line,
    git_commit,
    locked,
    peak_memory_gb,
    read_json,
    scratch_dir,
    write_json,
)
from dixit.config import Config, TrainConfig, config_hash, to_dict


@runtime_checkable
class Task(Protocol):
    """What a training must provide. `trained` holds exactly the trained parameters."""

    trained: nn.Module

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        """The loss and figures of micro-batch `part` of `step`, on this process's share of the batch."""

    def observe(self, step: int) -> dict[str, float]:
        """Figures on the validation split."""

    def state(self) -> dict[str, Any]:
        """Whatever else must survive a resume; most tasks have nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""


def make_accelerator(config: Config) -> Accelerator:
    """An Accelerator for this run; `train.trackers` names extra loggers."""
    return Accelerator(mixed_precision=config.train.mixed_precision, log_with=list(config.train.trackers) or None,
                       project_dir=str(config.folder))


def share(batch: int, parts: int, part: int, accelerator: Accelerator) -> slice:
    """This process's rows of the global batch for one micro-batch.

    Rows are cut into parts first and processes second, so any split of the same batch sees the same rows.
    Raises DixitError if they do not divide.
    """
    world = accelerator.num_processes
    if batch % (parts * world):
        raise DixitError(f"train.batch {batch} must be a multiple of train.accumulate x processes "
                         f"({parts} x {world})")
    size = batch // (parts * world)
    start = (part * world + accelerator.process_index) * size
    return slice(start, start + size)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak at the last step, or the peak throughout."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * min(progress, 1.0))))


def make_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, or plain SGD without momentum."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def train(config: Config, task: Task, accelerator: Accelerator) -> None:
    """Run `config.train.steps` steps, going on from the last checkpoint in the run's folder if there is one."""
    with ExitStack() as alone:
        if accelerator.is_main_process:
            alone.enter_context(locked(config.folder / ".lock", f"another process is training in {config.folder}; wait "
                                       "for it, or choose another folder with out="))
        _train(config, task, accelerator)


def _train(config: Config, task: Task, accelerator: Accelerator) -> None:
    settings, folder = config.train, config.folder
    main = accelerator.is_main_process
    set_seed(config.seed)
    plain = task.trained
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimizer = make_optimizer(settings, parameters)
    start = resume(folder, plain, optimizer, task)
    task.trained, optimizer = accelerator.prepare(plain, optimizer)
    if main:
        begin_folder(config, start)
    accelerator.init_trackers("dixit", config={"config": json.dumps(to_dict(config))})
    log = (folder / "log.jsonl").open("a", encoding="utf-8") if main else None
    bar = tqdm(range(start, settings.steps), initial=start, total=settings.steps, desc=config.name, unit="step",
               disable=None if main else True)
    began = clock = time.perf_counter()
    since, skipped = start, 0
    best = best_figure(folder) if settings.best else -math.inf
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        figures: dict[str, float] = {}
        for part in range(settings.accumulate):
            last = part == settings.accumulate - 1
            with accelerator.autocast(), _synced(accelerator, task.trained, last):
                loss, part_figures = task.loss(step, part)
                accelerator.backward(loss / settings.accumulate)
            for key, value in {"loss": float(loss.detach()), **part_figures}.items():
                figures[key] = figures.get(key, 0.0) + value / settings.accumulate
        figures = _mean_over_processes(figures, accelerator)
        if settings.clip_norm:
            figures["grad_norm"] = float(accelerator.clip_grad_norm_(parameters, settings.clip_norm))
        else:
            figures["grad_norm"] = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        broken = [name for name, value in figures.items() if not math.isfinite(value)]
        if {"loss", "reward", "grad_norm"} & set(broken):  # the same on all processes, for these are means or sums
            skipped += 1
            figures = {"skipped": float(skipped)}
            if skipped > settings.max_skipped:
                raise DixitError(f"not finite at step {step + 1}: {', '.join(broken)}, and {skipped - 1} steps before "
                                 f"it were skipped; lower train.lr, or look at the last lines of "
                                 f"{folder / 'log.jsonl'}; checkpoints so far are kept")
        else:
            skipped = 0
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        figures["lr"] = learning_rate(settings, step)
        bar.set_postfix_str(", ".join(f"{k} {figures[k]:.3f}" for k in ("loss", "reward", "skipped") if k in figures))
        if done % settings.eval_every == 0 or done == settings.steps:
            figures |= {f"eval/{k}": v for k, v in task.observe(done).items()}
            if settings.best:
                value = chosen_figure(settings.best, figures)
                if value > best:
                    best = value
                    if main:
                        save_checkpoint(folder / "best", done, plain, optimizer, task, best)
        if main and (done % settings.log_every == 0 or done == settings.steps or skipped
                     or "eval/" in "".join(figures)):
            figures["seconds_per_step"] = (time.perf_counter() - clock) / (done - since)
            clock, since = time.perf_counter(), done
            _write_line(log, {"step": done, **figures})
            accelerator.log(figures, step=done)
        if main and (done % settings.save_every == 0 or done == settings.steps):
            save_checkpoint(folder / "checkpoints" / f"step_{done:06d}", done, plain, optimizer, task)
            for old in checkpoints(folder)[:-settings.keep_last]:
                shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if log is not None:
        log.close()
        write_facts(folder, time.perf_counter() - began)
    task.trained = plain


def write_facts(folder: Path, seconds: float) -> None:
    """RUN/train.json: the command, wall time over all resumptions, and peak memory of this process."""
    path = folder / "train.json"
    before = read_json(path)["wall_seconds"] if path.is_file() else 0.0
    write_json(path, {"command": command_line(), "commit": git_commit(),
                      "wall_seconds": round(before + seconds, 1), "peak_memory_gb": round(peak_memory_gb(), 2)})


def _synced(accelerator: Accelerator, module: nn.Module, last: bool) -> Any:
    """Gradients are averaged over processes once, at a step's last micro-batch."""
    return nullcontext() if last else accelerator.no_sync(module)


def _mean_over_processes(figures: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return figures
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device="cpu")
    values = accelerator.reduce(values.to(accelerator.device, torch.float32), reduction="mean")
    return dict(zip(figures, values.tolist(), strict=True))


def _write_line(log: Any, line: dict[str, Any]) -> None:
    try:
        log.write(json.dumps(line) + "\n")
        log.flush()
    except OSError as error:
        raise DixitError(f"cannot write {log.name}: {error.strerror}; free some space, then run the same command "
                         "again to go on from the last checkpoint") from None


def begin_folder(config: Config, start: int) -> None:
    """Write the resolved config; cut log lines that are past the checkpoint a resumed run starts from."""
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    write_json(folder / "run.json", {"config_hash": config_hash(config), "commit": git_commit(), "seed": config.seed})
    log = folder / "log.jsonl"
    if log.is_file():
        kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step(line) <= start]
        atomic_write_text(log, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf


FILES = ("model.safetensors", "optimizer.safetensors")

# --- checkpoints: <run>/checkpoints/step_000100/{model,optimizer}.safetensors, state.json -------------------


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("step_*") if (p / "state.json").is_file())


def trained_weights(folder: Path, which: str = "last") -> Path:
    """The newest trained weights of a run, or the best. Raises DixitError if there are none."""
    if which == "best":
        if not (folder / "best" / "state.json").is_file():
            raise DixitError(f"{folder} kept no best checkpoint; train it with train.best=gap, or use "
                             "eval.checkpoint=last")
        return folder / "best" / "model.safetensors"
    found = checkpoints(folder)
    if not found:
        raise DixitError(f"{folder} holds no checkpoint; train it first: "
                         "accelerate launch scripts/train.py CONFIG")
    return found[-1] / "model.safetensors"


def chosen_figure(name: str, figures: dict[str, float]) -> float:
    """The figure that train.best names, negative for "-name". Raises DixitError if it is not measured."""
    key = f"eval/{name.removeprefix('-')}"
    if key not in figures:
        known = sorted(k.removeprefix("eval/") for k in figures if k.startswith("eval/"))
        raise DixitError(f"config: train.best '{name}' is no validation figure; choose of {', '.join(known)}, with - "
                         "before it where less is better")
    return -figures[key] if name.startswith("-") else figures[key]


def best_figure(folder: Path) -> float:
    """The figure of the best checkpoint so far; minus infinity if there is none."""
    path = folder / "best" / "state.json"
    return float(read_json(path)["figure"]) if path.is_file() else -math.inf


def save_checkpoint(place: Path, step: int, module: nn.Module, optimizer: Any, task: Task,
                    figure: float | None = None) -> None:
    """Write a checkpoint beside `place` and rename it there, so that it is whole or not at all."""
    scratch = scratch_dir(place.parent)
    try:
        weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
        save_file(weights, scratch / "model.safetensors")
        states = optimizer.state_dict()["state"]
        save_file({f"{i}.{k}": v.detach().cpu().contiguous() for i, s in states.items() for k, v in s.items()},
                  scratch / "optimizer.safetensors")
        write_json(scratch / "state.json", {"step": step, "task": task.state(), "figure": figure,
                                            "sha256": {name: sha256(scratch / name) for name in FILES}})
        shutil.rmtree(place, ignore_errors=True)
        scratch.rename(place)
    except (OSError, SafetensorError) as error:
        raise DixitError(f"cannot save the checkpoint {place}: {error}; free some space, then run the same command "
                         "again to go on from the last checkpoint") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(place: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are as they were written. Raises DixitError if they are not."""
    try:
        state = read_json(place / "state.json")
        wrong = [name for name, known in state["sha256"].items() if sha256(place / name) != known]
    except (DixitError, OSError, KeyError, TypeError, AttributeError) as error:
        raise DixitError(f"the checkpoint {place} is damaged ({error}); delete its folder") from None
    if wrong:
        raise DixitError(f"the checkpoint {place} is damaged ({wrong[0]} is not as it was written); delete its folder")
    return state


def load_weights(module: nn.Module, path: Path, may_lack: tuple[str, ...] = ()) -> None:
    """Load trained weights; those of `may_lack` that the file has not got stay as they are.

    Raises DixitError if the file is missing, damaged or of another architecture.
    """
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise DixitError(f"there is no checkpoint at {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise DixitError(f"the checkpoint {path} is damaged ({error}); delete its folder to go on from the one "
                         "before it") from None
    own = module.state_dict()
    weights = {k: own[k] for k in may_lack if k in own} | weights
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
            state = check(place)
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
    task.restore(state["task"])
    return int(state["step"])
