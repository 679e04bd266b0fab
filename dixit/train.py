"""The one training loop, for every training in the project.

A task gives `loss(step, part)` and `observe(step)`; the loop does the rest: seeding, optimiser, clipping, mixed
precision, accumulation, logging, evaluation, atomic checkpoints, exact resume. A checkpoint is safetensors and
JSON and holds the trained parameters only. Draws are functions of (seed, step), so nothing of a random state
needs to be saved.

Leaves out what is trained and on what (tasks.py).
"""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import nullcontext
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
    since = start
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
        if not math.isfinite(figures["loss"]):
            raise DixitError(f"the loss is not finite at step {step + 1}; lower train.lr, or look at the last "
                             f"lines of {folder / 'log.jsonl'}; checkpoints so far are kept")
        if settings.clip_norm:
            figures["grad_norm"] = float(accelerator.clip_grad_norm_(parameters, settings.clip_norm))
        else:
            figures["grad_norm"] = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        figures["lr"] = learning_rate(settings, step)
        bar.set_postfix_str(f"loss {figures['loss']:.3f}" + (f" reward {figures['reward']:.2f}"
                                                             if "reward" in figures else ""))
        if done % settings.eval_every == 0 or done == settings.steps:
            figures |= {f"eval/{k}": v for k, v in task.observe(done).items()}
        if main and (done % settings.log_every == 0 or done == settings.steps or "eval/" in "".join(figures)):
            figures["seconds_per_step"] = (time.perf_counter() - clock) / (done - since)
            clock, since = time.perf_counter(), done
            _write_line(log, {"step": done, **figures})
            accelerator.log(figures, step=done)
        if main and (done % settings.save_every == 0 or done == settings.steps):
            save_checkpoint(folder, done, plain, optimizer, task)
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


# --- checkpoints: <run>/checkpoints/step_000100/{model,optimizer}.safetensors, state.json -------------------


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("step_*") if (p / "state.json").is_file())


def trained_weights(folder: Path) -> Path:
    """The newest trained weights of a run. Raises DixitError if there are none."""
    found = checkpoints(folder)
    if not found:
        raise DixitError(f"{folder} holds no checkpoint; train it first: "
                         "accelerate launch scripts/train.py CONFIG")
    return found[-1] / "model.safetensors"


def save_checkpoint(folder: Path, step: int, module: nn.Module, optimizer: Any, task: Task) -> Path:
    """Write a checkpoint beside the others and rename it into place; only the newest two are kept."""
    place = folder / "checkpoints" / f"step_{step:06d}"
    scratch = scratch_dir(place.parent)
    try:
        weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
        save_file(weights, scratch / "model.safetensors")
        states = optimizer.state_dict()["state"]
        save_file({f"{i}.{k}": v.detach().cpu().contiguous() for i, s in states.items() for k, v in s.items()},
                  scratch / "optimizer.safetensors")
        write_json(scratch / "state.json", {"step": step, "task": task.state()})
        shutil.rmtree(place, ignore_errors=True)
        scratch.rename(place)
    except (OSError, SafetensorError) as error:
        raise DixitError(f"cannot save the checkpoint {place}: {error}; free some space, then run the same command "
                         "again to go on from the last checkpoint") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in checkpoints(folder)[:-2]:
        shutil.rmtree(old, ignore_errors=True)
    return place


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
    """Load the newest checkpoint into module, optimiser and task; returns the number of finished steps."""
    found = checkpoints(folder)
    if not found:
        return 0
    place = found[-1]
    load_weights(module, place / "model.safetensors")
    state = read_json(place / "state.json")
    try:
        saved = load_file(place / "optimizer.safetensors")
    except (SafetensorError, OSError) as error:
        raise DixitError(f"the checkpoint {place} is damaged ({error}); delete its folder to go on from the one "
                         "before it") from None
    blank = optimizer.state_dict()
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": blank["param_groups"]})
    task.restore(state["task"])
    return int(state["step"])
