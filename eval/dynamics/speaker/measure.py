"""Shared parts of all measurements on the speaker: findings and their verdicts, configs, trainings, short captions.

A measurement is one module of this package, named like its probe, with a frozen dataclass `Settings`, an instance
`TINY` of it for tests, a pure function `findings` that turns recorded numbers into findings, and `run(settings, seeds,
folder) -> (findings, figure)`. No theory is tested here: a finding compares a statistic of each seed with a null (a
control run, or a number) and gives a verdict, by a rule and a bar that were fixed before the runs.

Leaves out the command line (eval/dynamics/__main__.py) and training on several processes.

Shapes: n seeds, B images, S captions, K prefix vectors, T tokens, D LLM width, V vocabulary.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from scipy.stats import t as student
from torch import Tensor, nn

from dixit.common import read_json, write_json
from dixit.config import Config, find_config, load_config
from dixit.models.adapter import Adapter
from dixit.models.listeners import ClipListener
from dixit.models.speaker import Speaker
from dixit.training.checkpoints import load_weights, trained_weights
from dixit.training.continual import Remedy
from dixit.training.game_task import GameTask
from dixit.training.loop import train
from dixit.training.task import Task
from dixit.training.warm_start import CaptionTask, WordTask

from ..probe import _PersistentAccelerator

Verdict = Literal["present", "absent", "inconclusive", ""]
NOTHING = "nothing follows from so few seeds; run more seeds or steps before changing anything"
SomeTask = TypeVar("SomeTask", bound=Any)

# ---- findings --------------------------------------------------------------------------------------------


def judge(difference: Float[np.ndarray, "n"], bar: float) -> Verdict:
    """The verdict on an effect. `difference` is statistic minus null, one value per seed; `bar` > 0 is the smallest
    difference that would matter.

    present: the mean is at least `bar` and its one-sided 95 % lower bound (Student's t over seeds) is above 0.
    absent: the one-sided 95 % upper bound is below `bar`. Otherwise, or with one seed or a NaN: inconclusive.
    """
    n = len(difference)
    if n < 2 or not np.isfinite(difference).all():
        return "inconclusive"
    mean, reach = difference.mean(), student.ppf(0.95, n - 1) * difference.std(ddof=1) / math.sqrt(n)
    if mean >= bar and mean - reach > 0:
        return "present"
    return "absent" if mean + reach < bar else "inconclusive"


@dataclass(frozen=True)
class Finding:
    """A statistic of each seed, compared with a null. Without a bar it has no verdict."""

    name: str
    values: Sequence[float] | np.ndarray  # one for each seed
    null: float | Sequence[float] | np.ndarray = 0.0  # a number, or the control run of each seed
    bar: float | None = None
    present: str = ""  # what to change in training if the effect is present
    absent: str = ""  # and if it is absent

    @property
    def verdict(self) -> Verdict:
        difference = np.asarray(self.values, float) - np.asarray(self.null, float)
        return "" if self.bar is None else judge(difference, self.bar)

    @property
    def advice(self) -> str:
        return {"present": self.present, "absent": self.absent, "inconclusive": NOTHING, "": ""}[self.verdict]

    def row(self) -> dict[str, Any]:
        """Plain values for results.json."""
        values, null = np.asarray(self.values, float), np.broadcast_to(np.asarray(self.null, float), len(self.values))
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return {"finding": self.name, "mean": _finite(values.mean()), "se": _finite(error),
                "null": _finite(null.mean()), "bar": self.bar, "verdict": self.verdict, "advice": self.advice,
                "values": [_finite(v) for v in values]}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of `Finding.row()`s: a table, then the advice that goes with each verdict."""
    def number(value: float | None) -> str:
        return "NaN" if value is None else f"{value:.3g}"

    lines = ["| finding | mean ± s.e. over seeds | null | least that matters | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        judged = row["bar"] is not None
        cells = [row["finding"], f"{number(row['mean'])} ± {number(row['se'])}", number(row["null"]) if judged else "",
                 number(row["bar"]) if judged else "", f"**{row['verdict']}**" if judged else "no bar"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    advice = [f"- {row['finding']}: {row['verdict']}; {row['advice']}." for row in rows if row["verdict"]]
    return "\n".join([*lines, *([""] if advice else []), *advice])


# ---- the project's loop ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FromTrained:
    """Settings of a measurement that starts from a trained speaker."""

    init: str = "runs/caption_scenes"  # its run; {seed} is replaced by the seed

    def init_of(self, seed: int) -> str:
        return self.init.format(seed=seed)


@dataclass(frozen=True)
class CaptionsAndGame(FromTrained):
    """Settings of a measurement of the caption warm start from scratch, and of the game from the trained speaker."""

    captions: str = "configs/caption_scenes.yaml"
    game: str = "configs/pairs/colour_vs_grey.yaml"
    tokens: int = 9  # of a caption, its end included
    batch: int = 4
    samples: int = 3  # captions of each image
    game_lr: float = 3e-4
    messages: int = 4  # of each image in the game
    message_tokens: int = 12


KEYS = {"tokens": "speaker.max_tokens", "batch": "train.batch", "samples": "policy.samples",
        "candidates": "game.candidates", "lr": "train.lr", "warmup": "train.warmup", "steps": "train.steps",
        "every": "train.eval_every"}  # a keyword of `configure` -> the key of the config


def configure(path: str, seed: int, folder: Path, *overrides: str, **settings: int | float) -> Config:
    """A YAML of the project with changes: `settings` by the names in KEYS, then `overrides`.

    The learning rate is constant, there is no weight decay, the adapter is new, and one checkpoint is kept.
    """
    folder = folder.with_name(folder.name.replace(" ", "_"))
    changes = [f"{KEYS[name]}={value}" for name, value in settings.items()]
    if "steps" in settings:
        changes.append(f"train.save_every={settings['steps']}")
    return load_config(find_config(path), [f"seed={seed}", f"out={folder}", "train.schedule=constant",
                                     "train.weight_decay=0.0", "speaker.init=''", *changes, *overrides])


def accelerator(folder: Path) -> Accelerator:
    return _PersistentAccelerator(project_dir=str(folder))


def run_training(task: Task, config: Config) -> list[dict[str, float]]:
    """Train a task from the start; returns the figures of `task.validate` before, during and after training.

    Checkpoints are not kept: a measurement trains dozens of adapters, and none is trained further.
    """
    folder = config.folder
    remove_training(folder)
    first = {"step": 0.0, **task.validate(0)}
    train(config, task, accelerator(folder))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [first] + [{"step": float(line["step"]), **{k.removeprefix("eval/"): v for k, v in line.items()
                                                if k.startswith("eval/")}}
                      for line in lines if any(k.startswith("eval/") for k in line)]


def losses(folder: Path) -> Float[np.ndarray, "steps"]:
    """The training loss of every step of a finished training."""
    return np.array([json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()])


def remove_training(folder: Path) -> None:
    """Remove an earlier training, so that the loop does not resume it."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for name in ("log.jsonl", "train.json"):
        (folder / name).unlink(missing_ok=True)


def load_cached(path: Path, key: dict[str, Any]) -> Any:
    """Values that `save_cached` wrote to a file, or None if there are none for this key."""
    found = read_json(path) if path.is_file() else {}
    return found.get("values") if found.get("key") == key else None


def keep(path: Path, key: dict[str, Any], values: Any) -> None:
    """Write measured values with everything they depend on (`key`), so that they are not measured again."""
    write_json(path, {"key": key, "values": values})


# ---- curves ----------------------------------------------------------------------------------------------

Observed = list[list[dict[str, float]]]  # seed -> time -> figures


def curve(records: Observed, name: str) -> Float[np.ndarray, "n times"]:
    """One figure of all seeds over time."""
    return np.array([[line[name] for line in record] for record in records])


def all_curves(records: Observed) -> dict[str, Float[np.ndarray, "n _times"]]:
    """Every figure of all seeds over time, including "step"."""
    return {name: curve(records, name) for name in records[0][0]}


def plot_seeds(axis: Axes, times: Sequence[float] | np.ndarray, values: Float[np.ndarray, "n times"], label: str = "",
               colour: str | None = None, linestyle: str = "-") -> None:
    """Plot the mean over seeds, and every seed as a thin pale line."""
    line, = axis.plot(times, values.mean(0), color=colour, linestyle=linestyle, label=label)
    axis.plot(times, values.T, color=line.get_color(), linestyle=linestyle, alpha=0.3, linewidth=0.8)


# ---- the speaker -----------------------------------------------------------------------------------------


def with_config(task: SomeTask, config: Config, module: nn.Module) -> SomeTask:
    """A copy of a task with another config and another trained module; data, features and the LLM are shared."""
    other = copy.copy(task)
    other.speaker = copy.copy(task.speaker)
    other.config, other.trained, other.speaker.trained = config, module, module
    if isinstance(other, GameTask):  # its parts have the config too
        other.audience, other.sampler = copy.copy(other.audience), copy.copy(other.sampler)
        other.audience.config = other.sampler.config = config
        other.remedy = Remedy(config, other.speaker)
    return other


def new_adapter(task: Any, config: Config, init: str = "") -> Adapter:
    """The initial adapter of a run of this config: random by its seed, or the weights of the run `init`."""
    speaker, store = task.speaker, task.store
    embedding = speaker.llm.get_input_embeddings().weight
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapter = Adapter(config.speaker, store.shape[1], store.shape[2], embedding.shape[1],
                          float(embedding.float().std()), speaker.row_width)
    if init:
        load_weights(adapter, trained_weights(Path(init)), optional=("audience.", "gated_units."))
    return adapter.to(speaker.device)


def single_object_scenes(dataset: Dataset) -> list[int]:
    """The indices of the scenes with a single object."""
    return [i for i, record in enumerate(dataset["record"]) if len(json.loads(record)["objects"]) == 1]


def keep_single_object_scenes(task: CaptionTask | WordTask | GameTask) -> tuple[list[int], list[int]]:
    """Restrict a task to its scenes with a single object, in both splits; returns their former indices."""
    rows, held = single_object_scenes(task.data), single_object_scenes(task.validation)
    task.data, task.validation = task.data.select(rows), task.validation.select(held)
    if isinstance(task, GameTask):
        task.sampler.size = len(task.data)
    task.store, task.validation_store = np.asarray(task.store[rows]), np.asarray(task.validation_store[held])
    if isinstance(task, GameTask):
        for listeners, indices in (task.listeners, rows), (task.validation_listeners, held):
            for listener in listeners:
                assert isinstance(listener, ClipListener)
                listener.images = listener.images[indices]
    return rows, held


class ShortCaptions(CaptionTask):
    """The caption warm start on scenes of one object or on pictures, with the captions that fit into
    `speaker.max_tokens`.

    Steps are short, and the word after "A" depends on one object of the image only.
    """

    def __init__(self, config: Config, accelerator: Accelerator):
        super().__init__(config, accelerator)
        if all(self.data["record"]):
            rows, held = keep_single_object_scenes(self)
            self.captions, self.validation_captions = self.captions.select(rows), self.validation_captions.select(held)


class ShortWords(WordTask):
    """The first warm start, which does not run the LLM, on scenes of one object."""

    def __init__(self, config: Config, accelerator: Accelerator):
        super().__init__(config, accelerator)
        rows, held = keep_single_object_scenes(self)
        self.captions, self.validation_captions = self.captions.select(rows), self.validation_captions.select(held)


def final_states(speaker: Speaker, prefix: Float[Tensor, "B K D"],
                 tokens: Int[Tensor, "S T"]) -> Float[Tensor, "S T1 D"]:
    """The LLM's last hidden states after the prefix and after each token: T + 1 of them, which predict what follows.

    S is a multiple of B: the captions of one image are adjacent. Differentiable in the prefix.
    """
    image = torch.arange(len(tokens), device=tokens.device) // (len(tokens) // len(prefix))
    cache, first = speaker.prefill(prefix)
    if not tokens.shape[1]:
        return first[image, None]
    body = speaker.decoder.extend(speaker.decoder.select(cache, image, room=tokens.shape[1]), tokens)
    return torch.cat([first[image, None], body], 1)
