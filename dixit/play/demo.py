"""Try a trained speaker on single images: `python scripts/demo.py RUN`, or `dixit demo RUN`.

Type the path of an image, a folder of images, or the number of an image. The demo prints the captions of the base and
the trained speaker with their probabilities, and for each listener its choice among distractors, its belief in the
choice and in the target, and the effect of each word (how much the target's log-probability falls without it). After a
folder, numbers and distractors refer to its images. `l` lists the listeners; `l 1 4` selects two of them for the same
captions. Images are shown in the terminal if it supports that (--images), else written to a folder.
"""

from __future__ import annotations

from dixit.common import run_main
from dixit.play import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.demo)

import shutil
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from dixit.common import DixitError, expand_home
from dixit.config_perception import perception_label
from dixit.data.images import load, open_data, open_image, pixels
from dixit.models.clip import Clip, load_clip
from dixit.models.listeners import ClipListener
from dixit.models.perception import perceive
from dixit.play.explain import (
    ScoredCaptions,
    caption_images,
    describe_listener,
    listener_labels,
    listener_response,
    make_clip_listeners,
)
from dixit.play.terminal import render
from dixit.training.runs import LoadedRun, load_run

HELP = "an image path, a folder, the number of an image, l for the listeners, h for help, or q to leave"
BAR = 24


@dataclass
class Demo:
    """The state of a session: a run, images to choose from, and the selected listeners."""

    run: LoadedRun
    pool: datasets.Dataset
    pool_name: str
    selected: list[int]  # indices into `all_listeners`
    method: str
    r: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    folder: str = ""  # where images are written that the terminal cannot show
    images: torch.Tensor | None = None  # of the last round, the target first
    labels: list[str] = field(default_factory=list)  # of these images
    captions: dict[str, list[ScoredCaptions]] = field(default_factory=dict)  # of the last round, by speaker

    def __post_init__(self) -> None:
        self.all_listeners = [c for c in (*self.run.config.listeners, *self.run.config.heldout) if c.kind == "clip"]
        self.names = listener_labels(self.all_listeners)
        self.clips: dict[int, Clip] = {}

    def handle(self, text: str) -> None:
        """Execute a line of input. Raises DixitError if that is not possible."""
        words = text.split()
        if words[0] in ("l", "listeners"):
            self.select_listeners(words[1:])
            return
        path = parse_path(text)
        if not text.isdigit() and path.is_dir():
            config = self.run.config
            all_of_it = replace(config, eval=replace(config.eval, images=0))
            self.pool, self.pool_name = open_data(f"folder:{path}", all_of_it), "image"
            print(f"{len(self.pool)} images of {path}: 0 to {len(self.pool) - 1}")
        else:
            self.play_round(text, path)

    def select_listeners(self, numbers: list[str]) -> None:
        """Select listeners by their numbers, from 1."""
        if any(not n.isdigit() or not 1 <= int(n) <= len(self.all_listeners) for n in numbers):
            raise DixitError(f"give numbers of listeners from 1 to {len(self.all_listeners)}, as in: l 1 2")
        self.selected = [int(n) - 1 for n in dict.fromkeys(numbers)] or self.selected
        for i, (name, c) in enumerate(zip(self.names, self.all_listeners, strict=True)):
            about = describe_listener(c) if self.run.eyes.named else f"sees {perception_label(c.perception)}"
            print(f"  {'*' if i in self.selected else ' '} {i + 1} {name}: {about}")
        if numbers and self.images is not None:
            self.show_responses()

    def play_round(self, target: str, path: Path) -> None:
        """Play one round with an image as the target, and print it."""
        size, c = self.run.config.data.image_size, self.run.config.game.candidates
        if target.isdigit():
            if int(target) >= len(self.pool):
                raise DixitError(f"there are only {len(self.pool)} images; give a number from 0 to "
                                 f"{len(self.pool) - 1}")
            image = pixels(self.pool, [int(target)])
        else:
            image = torch.from_numpy(np.array(open_image(path, size))).permute(2, 0, 1)[None]
        others = [int(i) for i in self.r.permutation(len(self.pool)) if str(i) != target][: c - 1]
        self.images = torch.cat([image, pixels(self.pool, others)])
        self.labels = ["the target", *[f"{self.pool_name} {i}" for i in others]]
        self.captions = caption_images(self.run, image, samples=3, seed=int(self.r.integers(2**31)))
        self.show_responses()

    def show_responses(self) -> None:
        """Print the captions of the last round and the selected listeners' responses to them."""
        assert self.images is not None
        configs = [self.all_listeners[i] for i in self.selected]
        listeners: list[ClipListener] = []
        target = self.images[:1].float() / 255
        seen = dict.fromkeys(["colour", *[c.perception for c in configs]])
        self.show("target", [perceive(target, perception)[0] for perception in seen], 24)
        print(f"(in {' and '.join(map(perception_label, seen))})  candidates: {', '.join(self.labels)}")
        self.show("candidates", list(self.images.float() / 255), 10)
        width = max(map(len, self.labels))
        for speaker, rows in self.captions.items():
            (caption, probability), *more = [(" ".join(text.split()), p) for text, p in rows[0]]  # each on one line
            print(f"\n{speaker} speaker: {caption}   (probability {probability:.2g})")
            for text, p in more:
                print(f"  also sampled: {text}   ({p:.2g})", flush=True)
            if not listeners:  # they take a while: the first captions are read meanwhile
                listeners = make_clip_listeners(self.images, configs, [self.clip(i) for i in self.selected])
            for i, listener in zip(self.selected, listeners, strict=True):
                response = listener_response(listener, caption, torch.arange(len(self.images)))
                pick = response["pick"]
                print(f"  {self.names[i]} picks {self.labels[pick]}")
                for place in dict.fromkeys([pick, 0]):
                    belief = response["belief"][place]
                    print(f"    {self.labels[place]:<{width}} {'#' * round(BAR * belief):<{BAR}} {belief:.2f}")
                largest = sorted(response["words"], key=lambda pair: -abs(pair[1]))[:4]
                print("    words: " + "  ".join(f"{word} {effect:+.2f}" for word, effect in largest))

    def clip(self, i: int) -> Clip:
        """The CLIP of the i-th listener."""
        if i not in self.clips:
            self.clips[i] = load_clip(self.all_listeners[i].clip, self.all_listeners[i].pretrained)
        return self.clips[i]

    def show(self, name: str, views: list[torch.Tensor], columns: int) -> None:
        """Show images side by side, each `columns` wide if there is room; as a file if the terminal cannot show them.
        """
        row = torch.cat([torch.nn.functional.pad(v, (0, 4), value=1.0) for v in views], dim=2)
        picture = Image.fromarray((row * 255).round().byte().permute(1, 2, 0).numpy())
        if self.method != "files":
            print(render(picture, self.method, min(columns * len(views), shutil.get_terminal_size().columns)))
        elif sys.stdout.isatty():
            self.folder = self.folder or tempfile.mkdtemp(prefix="dixit-")
            picture.save(Path(self.folder) / f"{name}.png")
            print(f"{name}: {self.folder}/{name}.png")


def parse_path(text: str) -> Path:
    """A path as typed, pasted or dropped into a terminal: plain, in quotes, with escaped spaces, or as file://."""
    plain = text.strip("'\"").removeprefix("file://")
    path = expand_home(plain)
    return path if path.exists() else expand_home(plain.replace("\\ ", " "))


def main(arguments: Namespace) -> None:
    run = load_run(arguments.run)
    training = sum(c.kind == "clip" for c in run.config.listeners)
    demo = Demo(run, load(run.config.data, "test"), "test image", [], arguments.images)
    demo.selected = list(range(training, len(demo.all_listeners)) if arguments.heldout else range(training))
    if arguments.image:
        for target in arguments.image:
            demo.handle(target)
        return
    print(f"{run.config.name}: {HELP}")
    while True:
        try:
            target = input("> ").strip()
        except EOFError:
            return
        if target in ("q", "quit", "exit"):
            return
        if target in ("h", "help", "?"):
            print(HELP)
        elif target:
            try:
                demo.handle(target)
            except DixitError as error:  # bad input must not end the session
                print(f"error: {error}")
