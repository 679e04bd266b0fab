"""Draw what one speaker came to say to each audience: `python -m eval.audience_picture RUN RUN ... [--data stamps]`.

The runs are games that started from the same base speaker. Each row of the picture is an image; its columns are the
greedy captions of the base speaker and of the speaker of each run. A column's head is the name of the run and what its
config says of it: the first comment of the config of that name that comes with dixit, else the names of its listeners.

    python -m eval.audience_picture runs/animals_vs_rest runs/rest_vs_animals runs/colours_vs_things \\
        --data stamps --images 6 --out docs/images/pictures.png

Images are drawn at random by --seed (default 0), never chosen by hand; state the seed beside the picture. The picture
is made for a width of 900 pixels, and written as a small PNG (eval/figures.py).

Leaves out whether the listeners find the images: figures are in eval/evaluate.py and eval/transfer.py.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.audience_picture)

import itertools
import tempfile
import textwrap
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from dixit.common import DixitError, git_commit, rng
from dixit.config import Config, find_config
from dixit.data.images import open_data, pixels
from dixit.play.explain import caption_images
from dixit.training.runs import LoadedRun, load_run

from .commands import MOST_RUNS
from .figures import save_small_png

WIDTH = 9.0  # inches; 100 pixels each at 900 pixels
IMAGE, MARGIN = 1.0, 0.12  # inches
TEXT, SMALL = 10.0, 8.0  # points
CHARACTER, LINE = 0.52, 1.25  # mean width of a character and height of a line, in sizes of the font


@dataclass(frozen=True)
class Column:
    """One speaker: its head, what the head says below it, and a caption for each image."""

    head: str
    about: str
    captions: list[str]


def about_run(config: Config) -> str:
    """The first sentence of the comment on the config of this name, without its topic; without a config or a comment,
    the listeners that should find the image and those that should not."""
    try:
        path = find_config(config.name)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except DixitError:  # a run of another name
        lines = []
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    if comment:
        sentence = comment.split(". ")[0].rstrip(".")
        return sentence.partition(": ")[2] or sentence
    wanted, others = ([c.name for c in config.listeners if c.weight * sign > 0] for sign in (1, -1))
    return f"for {', '.join(wanted) or 'nobody'}; not for {', '.join(others) or 'nobody'}"


def choose_images(count: int, images: int, seed: int) -> list[int]:
    """`images` of `count` images, drawn at random. Raises DixitError if there are fewer."""
    if not 1 <= images <= count:
        raise DixitError(f"--images is {images}; choose 1 to {count}, the images there are")
    return sorted(rng("audience picture", seed).choice(count, images, replace=False).tolist())


def columns(folders: list[Path], data: str, images: int, seed: int) -> tuple[UInt8[Tensor, "n 3 H W"], list[Column]]:
    """The images, and the columns: the base speaker, then the speaker of each run. One run is open at a time.

    Raises DixitError if the runs did not start from one base speaker.
    """
    found: list[Column] = []
    shown = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    first: dict[str, Tensor] = {}
    for folder in folders:
        run = load_run(folder)
        base = _base_weights(run)
        if not found:
            dataset = open_data(data, replace(run.config, eval=replace(run.config.eval, images=0)))
            shown = pixels(dataset, choose_images(len(dataset), images, seed))
            rows = caption_images(run, shown, speakers=["base"])["base"]
            found.append(Column("base", "before the game", [row[0][0] for row in rows]))
            first = base
        elif base.keys() != first.keys() or not all(torch.equal(base[key], first[key]) for key in base):
            raise DixitError(f"{folder} started from another base speaker than {folders[0]}; name runs that share one")
        rows = caption_images(run, shown, speakers=["trained"])["trained"]
        found.append(Column(run.config.name.replace("_", " "), about_run(run.config), [row[0][0] for row in rows]))
    return shown, found


def _base_weights(run: LoadedRun) -> dict[str, Tensor]:
    """The weights of a run's base speaker. Raises DixitError if it has none."""
    if run.base is None or not run.config.listeners:
        raise DixitError(f"{run.folder} has no base speaker or no listeners; name runs of the game that started from "
                         "one")
    return {key: value.cpu() for key, value in run.base.state_dict().items()}


def wrap(text: str, width: float, size: float, lines: int = 100) -> list[str]:
    """A text in lines of at most `width` inches at a font size in points; if `lines` are too few, it ends in "…"."""
    return textwrap.wrap(text, max(8, int(width * 72 / (size * CHARACTER))), max_lines=lines, placeholder=" …")


def draw(images: UInt8[Tensor, "n 3 H W"], found: list[Column], path: Path) -> None:
    """Write the picture as a small PNG."""
    step = (WIDTH - IMAGE - 2 * MARGIN) / len(found)
    heads = [(wrap(c.head, step - MARGIN, 1.1 * TEXT), wrap(c.about, step - MARGIN, SMALL)) for c in found]
    top = max(len(head) * TEXT + len(about) * SMALL for head, about in heads) * LINE / 72 + 2 * MARGIN
    height = top + len(images) * (IMAGE + MARGIN)
    figure = Figure(figsize=(WIDTH, height))

    def write(text: list[str], x: float, y: float, size: float, **style: Any) -> None:  # y: inches from the top
        figure.text(x / WIDTH, 1 - y / height, "\n".join(text), fontsize=size, linespacing=LINE / 1.2, parse_math=False,
                    **style)

    for i, (column, (head, about)) in enumerate(zip(found, heads, strict=True)):
        x = IMAGE + 2 * MARGIN + i * step
        write(head, x, MARGIN, TEXT, va="top", weight="bold")
        write(about, x, MARGIN + len(head) * TEXT * LINE / 72, SMALL, va="top", color="dimgrey")
        for row, caption in enumerate(column.captions):
            lines = wrap(caption, step - MARGIN, TEXT, int(IMAGE * 72 / (TEXT * LINE))) or ["(nothing)"]
            write(lines, x, top + row * (IMAGE + MARGIN) + IMAGE / 2, TEXT, va="center")
    for row, image in enumerate(images):
        y = top + row * (IMAGE + MARGIN)
        axis = figure.add_axes((MARGIN / WIDTH, 1 - (y + IMAGE) / height, IMAGE / WIDTH, IMAGE / height))
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.axis("off")
        line = 1 - (y - MARGIN / 2) / height
        figure.add_artist(Line2D([0, 1], [line, line], color="lightgrey", linewidth=0.8))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        large = Path(scratch) / "large.png"
        figure.savefig(large, dpi=150)
        save_small_png(large, path)


def main(arguments: Namespace) -> None:
    if len(arguments.run) > MOST_RUNS:
        raise DixitError(f"{len(arguments.run)} runs are too many columns to read; name at most {MOST_RUNS}")
    images, found = columns(arguments.run, arguments.data, arguments.images, arguments.seed)
    path = arguments.out or arguments.run[0] / "audiences.png"
    draw(images, found, path)
    for i in range(len(images)):
        print(f"{i + 1}. " + "  ".join(f"{column.head}: {column.captions[i]}" for column in found))
    print(f"written to {path}: {len(images)} images of {arguments.data}, seed {arguments.seed}, commit {git_commit()}")
