"""What the speaker says while it trains: a table of captions, beliefs and rewards per evaluation, with the images.

The same images, candidates and draws at every step, so that only the speaker changes. Each table is a Parquet file,
RUN/said/step_000120.parquet, that `datasets.load_dataset` and dataset viewers open; trackers are sent the same table.

Columns: image, caption, `belief/LISTENER` (probability of the target, mean over pools), `pick/LISTENER` (the number of
the image with the highest score in the first pool), reward, advantage, step, number (the image's place in the
validation split), sample (the caption's place among those of the image). A listener that takes no part in a round has
no belief.

Leaves out the captions themselves (game_task.py) and greedy captions (validation.py).

Shapes: B images, N captions per image, S = B*N, M pools of C candidates, L listeners.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from dixit.common import DixitError, atomic_path, first_line
from dixit.training.checkpoints import step_name, step_of

IMAGES = 16  # at most
SIDE = 128  # pixels; larger images are scaled down to it
LISTENER = ("belief/", "pick/")  # columns, one for each listener


def rows(step: int, validation: datasets.Dataset, index: Int[np.ndarray, "B"], texts: list[str], listeners: list[str],
         logits: Float[Tensor, "L SM C"], pools: Int[Tensor, "B M C"], weights: Float[Tensor, "L B"],
         reward: Float[Tensor, "B N"], advantage: Float[Tensor, "B N"]) -> list[dict[str, Any]]:
    """A row for each caption, those of an image together. Figures that are not finite are None."""
    images, samples = reward.shape
    scores = logits.float().unflatten(1, (images, samples, -1))  # (L, B, N, M, C)
    belief = scores.softmax(-1)[..., 0].mean(3)
    pick = scores[:, :, :, 0].argmax(-1).cpu()  # (L, B, N)
    made = []
    for i, number in enumerate(index.tolist()):
        picture = thumbnail(validation[number]["image"])
        for j in range(samples):
            row: dict[str, Any] = {"image": {"bytes": picture, "path": None}, "caption": texts[i * samples + j]}
            for k, name in enumerate(listeners):
                known = _finite(belief[k, i, j]) if weights[k, i] else None
                row[LISTENER[0] + name] = known
                row[LISTENER[1] + name] = None if known is None else int(pools[i, 0, pick[k, i, j]])
            made.append(row | {"reward": _finite(reward[i, j]), "advantage": _finite(advantage[i, j]), "step": step,
                               "number": number, "sample": j})
    return made


def _finite(value: Float[Tensor, ""]) -> float | None:
    return float(value) if math.isfinite(value) else None


def thumbnail(image: Image.Image) -> bytes:
    """A PNG of an image, at most SIDE pixels high and wide."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


# --- files ---


def _features(columns: Iterable[str]) -> datasets.Features:
    kinds = {"image": datasets.Image(), "caption": datasets.Value("string"), "step": datasets.Value("int32"),
             "number": datasets.Value("int32"), "sample": datasets.Value("int32")}
    return datasets.Features({name: kinds.get(name, datasets.Value("int32" if name.startswith("pick/") else "float32"))
                              for name in columns})


def write(folder: Path, step: int, table: list[dict[str, Any]]) -> None:
    """Write one evaluation's table to RUN/said, in place of one of the same step."""
    schema = _features(table[0]).arrow_schema
    with atomic_path(folder / "said" / f"{step_name(step)}.parquet") as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, schema=schema), temporary)


def steps(folder: Path) -> dict[int, Path]:
    """The tables of a run by step, in order."""
    return dict(sorted((step_of(path.with_suffix("")), path) for path in folder.glob("said/step_*.parquet")
                       if path.stem.removeprefix("step_").isdecimal()))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table. Raises DixitError if it is damaged."""
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DixitError(f"{path} is damaged ({first_line(error)}); delete it") from None


def forget_after(folder: Path, step: int) -> None:
    """Remove the tables after the step from which a run is resumed."""
    for own, path in steps(folder).items():
        if own > step:
            path.unlink()


# --- trackers ---


def track(trackers: list[Any], step: int, table: list[dict[str, Any]]) -> None:
    """Send a table with its images to those of accelerate's trackers that are in use."""
    for tracker in trackers:
        if tracker.name == "tensorboard":
            first = [row for row in table if row["sample"] == 0]
            pixels = torch.from_numpy(np.stack([np.asarray(_picture(row)) for row in first]))
            tracker.tracker.add_images("said/images", pixels, step, dataformats="NHWC")
            tracker.tracker.add_text("said/captions", _markdown(table), step)
        elif tracker.name in ("wandb", "trackio"):
            module = importlib.import_module(tracker.name)
            images = {row["number"]: module.Image(_picture(row)) for row in table}
            columns = list(table[0])
            data = [[images[row["number"]] if name == "image" else row[name] for name in columns] for row in table]
            tracker.log({"said": module.Table(columns=columns, data=data)}, step=step)


def _picture(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def _markdown(table: list[dict[str, Any]]) -> str:
    """The table without its images, which TensorBoard shows as a grid in the same order."""
    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())

    columns = ["number", "caption", *(name for name in table[0] if name.startswith(LISTENER)), "reward", "advantage"]
    lines = ["| " + " | ".join(map(cell, columns)) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cell(row[name]) for name in columns) + " |" for row in table])
