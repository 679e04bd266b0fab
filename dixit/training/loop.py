"""The training loop, for every training in the project.

A task gives `loss(step, micro_batch)` and `validate(step)`; the loop does the rest: seeding, optimiser, clipping, mixed
precision, accumulation, logging, evaluation, checkpoints (checkpoints.py), exact resume. A step whose loss or gradient
is not finite changes nothing and is counted. Processes split each batch among themselves; frozen models are never
wrapped nor sent from one process to another.

Leaves out the tasks themselves (game_task.py, warm_start.py).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs, set_seed
from torch import nn
from tqdm import tqdm

from dixit.common import (
    DixitError,
    atomic_write_text,
    command_line,
    first_line,
    git_commit,
    locked,
    peak_memory_gb,
    read_json,
    write_json,
)
from dixit.config import Config, TrainConfig, changed, config_hash, load_config, to_dict
from dixit.interrupts import Interrupted, finishing, name_of, noted_signal
from dixit.training import said
from dixit.training.checkpoints import (
    best_so_far,
    checkpoints,
    keep_base,
    resume,
    save_checkpoint,
    selected_figure,
    step_name,
    step_of,
)
from dixit.training.launcher import check_trackers, disagreements, keep_process_group
from dixit.training.sharding import configure_deepspeed, full_tensor, shard_optimizer_states
from dixit.training.task import Task


def make_accelerator(config: Config) -> Accelerator:
    """An Accelerator for this run; `train.trackers` names extra loggers.

    Raises DixitError if the processes do not connect, or are to be run in a way that this loop does not support.
    """
    if os.environ.get("ACCELERATE_USE_MEGATRON_LM", "").lower() == "true":
        raise DixitError("training does not run under Megatron-LM; launch with a file from configs/accelerate")
    check_trackers(config.train.trackers)
    whole_steps = GradientAccumulationPlugin(num_steps=1)  # else accelerate divides by what the launcher says
    wait = InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.timeout))
    try:
        accelerator = Accelerator(mixed_precision=config.train.mixed_precision, kwargs_handlers=[wait],
                                  gradient_accumulation_plugin=whole_steps,
                                  log_with=list(config.train.trackers) or None, project_dir=str(config.folder))
    except ImportError as error:  # what the launcher's file names, such as DeepSpeed, is not installed
        raise DixitError(f"cannot train as the launcher's config says: {first_line(error)}") from None
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise DixitError(f"the processes did not meet at {place} within {config.train.timeout} s "
                         f"({first_line(error)}); see that all hosts are up and reach that address, then run the same "
                         "command again") from None
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        configure_deepspeed(config.train, accelerator)
    if accelerator.is_main_process:
        for line in disagreements(config.train, accelerator.num_processes):
            print(f"note: {line}", file=sys.stderr)
    return accelerator


def share_bounds(batch: int, accumulate: int, micro_batch: int, world: int) -> list[int]:
    """The world + 1 bounds at which a micro-batch of the global batch is split among `world` processes.

    The batch is split into micro-batches first and processes second, so that any number of processes sees the same
    images. Where it does not divide evenly, shares differ by one image. Raises DixitError if a share would be empty.
    """
    shares = accumulate * world
    if batch < shares:
        raise DixitError(f"train.batch {batch} must be at least train.accumulate x processes ({accumulate} x {world})")
    return [share * batch // shares for share in range(micro_batch * world, (micro_batch + 1) * world + 1)]


def local_slice(batch: int, accumulate: int, micro_batch: int, accelerator: Accelerator) -> slice:
    """The part of the global batch that is this process's share of a micro-batch."""
    bounds = share_bounds(batch, accumulate, micro_batch, accelerator.num_processes)
    return slice(*bounds[accelerator.process_index:][:2])


def local_weight(batch: int, size: int, world: int) -> float:
    """The weight of a mean over a share of `size`: with it, the mean over processes of the sum over micro-batches is
    the mean over the batch."""
    return size * world / batch


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
        try:
            with finishing():
                _train(config, task, accelerator)
        except RuntimeError as error:
            if accelerator.num_processes == 1 or not _is_connection_error(error):
                raise
            raise DixitError(f"process {accelerator.process_index} of {accelerator.num_processes} lost the others "
                             f"({first_line(error)}); run the same command again, on as many processes or on others, "
                             f"to go on from the last checkpoint in {config.folder}") from None


def _is_connection_error(error: RuntimeError) -> bool:
    """Whether other processes died, were disconnected, or took longer than train.timeout."""
    known = "gloo", "connection", "timed out", "timeout", "nccl", "socket", "broken pipe"
    return isinstance(error, torch.distributed.DistError) or any(word in str(error).lower() for word in known)


def _train(config: Config, task: Task, accelerator: Accelerator) -> None:
    settings, folder = config.train, config.folder
    main = accelerator.is_main_process
    set_seed(config.seed)
    plain = task.trained
    optimizer: Any = make_optimizer(settings, [p for p in plain.parameters() if p.requires_grad])
    if checkpoints(folder):
        _check_same_run(config, print_changes=main)
    start = resume(folder, plain, optimizer, task)
    _check_processes_agree(config, start, accelerator)
    if main and not start and config.speaker.init:
        keep_base(folder, plain)
    states = optimizer.state_dict()["state"]
    task.trained, optimizer = accelerator.prepare(plain, optimizer)
    if accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.XLA):
        # Here accelerate's wrapper adds nothing but a search for an optional package in each step.
        optimizer = optimizer.optimizer
    parameters = [p for p in task.trained.parameters() if p.requires_grad]  # FSDP2 has put shards in their place
    shard_optimizer_states(optimizer, states, parameters)
    if main:
        prepare_run_folder(config, start)
    _init_trackers(config, start, accelerator)
    log = open_log(folder) if main else None
    bar = tqdm(range(start, settings.steps), initial=start, total=settings.steps, desc=config.name, unit="step",
               disable=None if main else True)
    began = clock = time.perf_counter()
    since, skipped = start, 0
    best = best_so_far(folder) if settings.best else -math.inf
    signal = 0
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        figures: dict[str, float] = {}
        for micro_batch in range(settings.accumulate):
            last = micro_batch == settings.accumulate - 1
            with accelerator.autocast(), _synced(accelerator, task.trained, last):
                mine = local_slice(settings.batch, settings.accumulate, micro_batch, accelerator)
                weight = local_weight(settings.batch, mine.stop - mine.start, accelerator.num_processes)
                loss, micro_figures = task.loss(step, micro_batch)
                # NaN reaches every process through the gradients, and DeepSpeed, whose step is part of backward.
                sound = math.isfinite(float(loss.detach()) + micro_figures.get("reward", 0.0))
                accelerator.sync_gradients = last
                accelerator.backward(loss * (weight if sound else math.nan))
            for key, value in {"loss": float(loss.detach()), **micro_figures}.items():
                figures[key] = figures.get(key, 0.0) + value * weight
        figures, signal = _over_processes(figures, signal or noted_signal(), accelerator)
        norm = accelerator.clip_grad_norm_(parameters, settings.clip_norm or math.inf)
        figures["grad_norm"] = float(full_tensor(torch.as_tensor(norm)))
        broken = [name for name, value in figures.items() if not math.isfinite(value)]
        if {"loss", "reward", "grad_norm"} & set(broken):  # the same on all processes, because these are means or sums
            skipped += 1
            figures = {"skipped": float(skipped)}
            if skipped > settings.max_skipped:
                raise DixitError(f"not finite at step {step + 1}: {', '.join(broken)}, and {skipped - 1} steps before "
                                 f"it were skipped; lower train.lr, or look at the last lines of "
                                 f"{folder / 'log.jsonl'}; checkpoints so far are kept")
        else:
            skipped = 0
            optimizer.step()
            task.after_step(step)
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        figures["lr"] = learning_rate(settings, step)
        shown = [f"{key} {figures[key]:.3f}" for key in ("loss", "reward", "skipped") if key in figures]
        bar.set_postfix_str(", ".join(shown), refresh=False)  # the bar is drawn when it counts the step
        if done % settings.eval_every == 0 or done == settings.steps:
            figures |= {f"eval/{k}": v for k, v in task.validate(done).items()}
            rows = task.said(done)
            if main and rows:
                said.write(folder, done, rows)
                said.track(accelerator.trackers, done, rows)
            if settings.best:
                value = selected_figure(settings.best, figures)
                if value > best:
                    best = value
                    save_checkpoint(folder / "best" / step_name(done), done, plain, optimizer, task, best, write=main)
                    if main:
                        for old in checkpoints(folder, "best"):
                            if step_of(old) != done:
                                shutil.rmtree(old, ignore_errors=True)
        if main and (done % settings.log_every == 0 or done == settings.steps or skipped
                     or "eval/" in "".join(figures)):
            figures["seconds_per_step"] = (time.perf_counter() - clock) / (done - since)
            clock, since = time.perf_counter(), done
            log = _rotated(log, folder, settings.log_max_mb * 1e6)
            _write_line(log, {"step": done, **figures})
            accelerator.log(figures, step=done)
        stop = signal and done % _rollout_steps(config) == 0
        if done % settings.save_every == 0 or done == settings.steps or stop:
            save_checkpoint(folder / "checkpoints" / step_name(done), done, plain, optimizer, task, write=main)
            finished = [place for place in checkpoints(folder) if step_of(place) <= done]  # later ones are damaged
            for old in finished[:-settings.keep_last] if main else ():
                shutil.rmtree(old, ignore_errors=True)
        if stop:
            break
    bar.close()
    accelerator.wait_for_everyone()
    keep_process_group()
    accelerator.end_training()
    if log is not None:
        log.close()
        if signal and done < settings.steps:
            _add_seconds(folder, time.perf_counter() - began)
        else:
            write_train_summary(folder, time.perf_counter() - began, accelerator.num_processes)
    task.trained = plain
    if signal and done < settings.steps:
        raise Interrupted(signal, f"{name_of(signal)}: stopped after step {done} of {settings.steps} and saved in "
                                  f"{folder}; run the same command again to go on" if main else "")


def _rollout_steps(config: Config) -> int:
    """The number of steps after which a run can be resumed: ppo trains on a rollout for `epochs` steps."""
    return config.policy.epochs if config.task == "game" and config.policy.algorithm == "ppo" else 1


def _init_trackers(config: Config, start: int, accelerator: Accelerator) -> None:
    resumed = {"tensorboard": {"purge_step": start + 1}} if start else {}  # hides what was logged after the checkpoint
    try:
        accelerator.init_trackers("dixit", config={"config": json.dumps(to_dict(config))}, init_kwargs=resumed)
    except Exception as error:  # each tracker raises its own kinds
        names = ", ".join(config.train.trackers)
        raise DixitError(f"cannot start train.trackers {names}: {first_line(error)}") from None


def write_train_summary(folder: Path, seconds: float, processes: int) -> None:
    """RUN/train.json: the command, processes, wall time over all resumptions, and peak memory of this process."""
    write_json(folder / "train.json", {
        "command": command_line(), "commit": git_commit(), "processes": processes,
        "wall_seconds": round(_add_seconds(folder, seconds), 1), "peak_memory_gb": round(peak_memory_gb(), 2)})


def _add_seconds(folder: Path, seconds: float) -> float:
    """Add to the seconds that the training has taken so far, in RUN/run.json; returns the sum."""
    about = read_json(folder / "run.json")
    about["wall_seconds"] = about.get("wall_seconds", 0.0) + seconds
    write_json(folder / "run.json", about)
    return about["wall_seconds"]


def _seconds_so_far(folder: Path) -> float:
    """The seconds that a run has taken before it is resumed; 0 if that is not known."""
    for name in ("run.json", "train.json"):  # runs of earlier versions have them in train.json only
        try:
            return float(read_json(folder / name)["wall_seconds"])
        except (DixitError, KeyError, TypeError, ValueError):  # there is none yet, or it is damaged
            continue
    return 0.0


def _synced(accelerator: Accelerator, module: nn.Module, last: bool) -> Any:
    """Gradients are averaged over processes once, at a step's last micro-batch."""
    return nullcontext() if last else accelerator.no_sync(module)


def _over_processes(figures: dict[str, float], signal: int, accelerator: Accelerator) -> tuple[dict[str, float], int]:
    """The mean of each figure, and the signal that any process has noted (0: none), the same on all processes."""
    if accelerator.num_processes == 1:
        return figures, signal
    values = torch.tensor([*figures.values(), signal, signal > 0], dtype=torch.float64, device="cpu")
    values = accelerator.reduce(values.to(accelerator.device, torch.float32), reduction="mean")
    *means, number, noted = values.tolist()
    return dict(zip(figures, means, strict=True)), round(number / noted) if noted else 0


def _check_same_run(config: Config, print_changes: bool) -> None:
    """Raises DixitError if the run's folder holds a training with other data, models or game.

    The length of a training, its optimiser and its evaluation may change when it is resumed; changes of speaker, policy
    and train are printed. A missing or damaged config.yaml is written again, with a warning.
    """
    try:
        before = load_config(config.folder / "config.yaml")
    except DixitError as error:
        if print_changes:
            print(f"warning: {error}; taking {config.folder} for the same run", file=sys.stderr)
        return
    differing = changed(before, config)
    for key, *_ in differing:
        part = key.partition(".")[0]
        if part in ("task", "seed", "data", "extra_data", "clip", "listeners", "game"):
            raise DixitError(f"{config.folder} holds a run with another {part}; give this one a folder of its own with "
                             "out=, or name=")
    changes = [f"{key} {new} (was {old})" for key, old, new in differing
               if key.partition(".")[0] in ("speaker", "policy", "train")]
    if changes and print_changes:
        print(f"{config.folder} goes on with {', '.join(changes)}", file=sys.stderr)


def _check_processes_agree(config: Config, start: int, accelerator: Accelerator) -> None:
    """Raises DixitError on every process if they have different configs or see different checkpoints."""
    if accelerator.num_processes == 1:
        return
    mine = torch.tensor([[start, int(config_hash(config), 16)]], device=accelerator.device)
    starts, hashes = accelerator.gather(mine).T.tolist()
    if len(set(hashes)) > 1:
        raise DixitError("the processes were given different configs; start all hosts with the same command")
    if len(set(starts)) > 1:
        raise DixitError(f"the processes see checkpoints of different steps ({', '.join(map(str, starts))}) in "
                         f"{config.folder}; out= must be one folder that all hosts share")


def open_log(folder: Path) -> Any:
    """RUN/log.jsonl, opened to append. Raises DixitError if that fails."""
    try:
        return (folder / "log.jsonl").open("a", encoding="utf-8")
    except OSError as error:
        raise DixitError(f"cannot write {folder / 'log.jsonl'}: {error.strerror}; choose another folder with out=") \
            from None


def _rotated(log: Any, folder: Path, max_bytes: float) -> Any:
    """The log, or a new one if it has reached `max_bytes`; the old one is then log.old.jsonl."""
    if log.tell() < max_bytes:
        return log
    log.close()
    os.replace(folder / "log.jsonl", folder / "log.old.jsonl")
    return open_log(folder)


def _write_line(log: Any, line: dict[str, Any]) -> None:
    try:
        log.write(json.dumps(line) + "\n")
        log.flush()
    except OSError as error:
        raise DixitError(f"cannot write {log.name}: {error.strerror}; free some space, then run the same command "
                         "again to go on from the last checkpoint") from None


def prepare_run_folder(config: Config, start: int) -> None:
    """Write the resolved config; remove log lines and captions after the checkpoint from which a run is resumed.

    Half-written files of a killed process are removed.
    """
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp"), *folder.glob("*/.tmp-*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif os.access(folder, os.W_OK):
            left.unlink(missing_ok=True)
    atomic_write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    write_json(folder / "run.json", {"config_hash": config_hash(config), "commit": git_commit(), "seed": config.seed,
                                     "wall_seconds": _seconds_so_far(folder) if start else 0.0})
    for log in (folder / "log.old.jsonl", folder / "log.jsonl"):
        if log.is_file():
            kept = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
                    if _step(line) <= start]
            atomic_write_text(log, "".join(line + "\n" for line in kept))
    said.forget_after(folder, start)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
