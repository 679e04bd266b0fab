"""Talk with a trained speaker: `python scripts/demo.py RUN`.

Give the path of an image, a folder of images, or the number of one. You see the captions of the base and the trained
speaker, each with its probability, and for each listener how much it believes in its pick and in the target, among
distractors, and which words moved it (each word's effect on its log-probability of the target, by leaving the word
out). Of a folder, the numbers and the distractors are then its images. `l` names the listeners; `l 1 4` chooses two and
asks them about the same captions. Images are shown where the terminal can (--images), else written to a folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dixit.common import DixitError, run_main  # noqa: E402
from dixit.data.images import load, open_data, open_image, pixels  # noqa: E402
from dixit.models.clip import Clip, load_clip  # noqa: E402
from dixit.models.perception import perceive  # noqa: E402
from dixit.play.explain import ScoredCaptions, caption_images, listener_labels, listener_response, listeners_looking_at  # noqa: E402
from dixit.play.terminal import WAYS, inline, way_of  # noqa: E402
from dixit.training.runs import LoadedRun, load_run  # noqa: E402

HELP = "an image path, a folder, the number of an image, l for the listeners, h for help, or q to leave"
BAR = 24


@dataclass
class Talk:
    """What the questions are about: a run, images to choose from, and the listeners that are asked."""

    run: LoadedRun
    pool: datasets.Dataset
    pool_name: str
    asked: list[int]  # places in `everyone`
    way: str
    r: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    folder: str = ""  # of images that the terminal cannot show
    images: torch.Tensor | None = None  # of the last round, the target first
    labels: list[str] = field(default_factory=list)  # of these images
    said: dict[str, list[ScoredCaptions]] = field(default_factory=dict)  # in the last round

    def __post_init__(self) -> None:
        self.everyone = [c for c in (*self.run.config.listeners, *self.run.config.heldout) if c.kind == "clip"]
        self.names = listener_labels(self.everyone)
        self.clips: dict[int, Clip] = {}

    def answer(self, text: str) -> None:
        """What the user typed. Raises DixitError where it cannot be done."""
        words = text.split()
        if words[0] in ("l", "listeners"):
            self.choose(words[1:])
            return
        path = given_path(text)
        if not text.isdigit() and path.is_dir():
            config = self.run.config
            all_of_it = replace(config, eval=replace(config.eval, images=0))
            self.pool, self.pool_name = open_data(f"folder:{path}", all_of_it), "image"
            print(f"{len(self.pool)} images of {path}: 0 to {len(self.pool) - 1}")
        else:
            self.play(text, path)

    def choose(self, numbers: list[str]) -> None:
        """Ask other listeners from now on, given by their numbers from 1."""
        if any(not n.isdigit() or not 1 <= int(n) <= len(self.everyone) for n in numbers):
            raise DixitError(f"give numbers of listeners from 1 to {len(self.everyone)}, as in: l 1 2")
        self.asked = [int(n) - 1 for n in dict.fromkeys(numbers)] or self.asked
        for i, (name, c) in enumerate(zip(self.names, self.everyone, strict=True)):
            print(f"  {'*' if i in self.asked else ' '} {i + 1} {name}: sees {c.perception}")
        if numbers and self.images is not None:
            self.tell()

    def play(self, target: str, path: Path) -> None:
        """One round, printed."""
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
        self.said = caption_images(self.run, image, samples=3, seed=int(self.r.integers(2**31)))
        self.tell()

    def tell(self) -> None:
        """What was said in the last round, and what the listeners that are asked make of it."""
        assert self.images is not None
        configs = [self.everyone[i] for i in self.asked]
        for i in self.asked:
            if i not in self.clips:
                self.clips[i] = load_clip(self.everyone[i].clip, self.everyone[i].pretrained)
        listeners = listeners_looking_at(self.images, configs, [self.clips[i] for i in self.asked])
        target = self.images[:1].float() / 255
        seen = dict.fromkeys(["colour", *[c.perception for c in configs]])
        self.show("target", [perceive(target, perception)[0] for perception in seen], 24)
        print(f"(in {' and '.join(seen)})  candidates: {', '.join(self.labels)}")
        self.show("candidates", list(self.images.float() / 255), 10)
        width = max(map(len, self.labels))
        for who, rows in self.said.items():
            (said, probability), *more = [(" ".join(text.split()), p) for text, p in rows[0]]  # each on one line
            print(f"\n{who} speaker: {said}   (probability {probability:.2g})")
            for text, p in more:
                print(f"  also sampled: {text}   ({p:.2g})")
            for i, listener in zip(self.asked, listeners, strict=True):
                found = listener_response(listener, said, torch.arange(len(self.images)))
                pick = found["pick"]
                print(f"  {self.names[i]} picks {self.labels[pick]}")
                for place in dict.fromkeys([pick, 0]):
                    belief = found["belief"][place]
                    print(f"    {self.labels[place]:<{width}} {'#' * round(BAR * belief):<{BAR}} {belief:.2f}")
                moved = sorted(found["words"], key=lambda pair: -abs(pair[1]))[:4]
                print("    words: " + "  ".join(f"{word} {effect:+.2f}" for word, effect in moved))

    def show(self, name: str, views: list[torch.Tensor], columns: int) -> None:
        """Images side by side, each so many columns wide if there is room; as a file where the terminal cannot."""
        row = torch.cat([torch.nn.functional.pad(v, (0, 4), value=1.0) for v in views], dim=2)
        picture = Image.fromarray((row * 255).round().byte().permute(1, 2, 0).numpy())
        if self.way != "files":
            print(inline(picture, self.way, min(columns * len(views), shutil.get_terminal_size().columns)))
        elif sys.stdout.isatty():
            self.folder = self.folder or tempfile.mkdtemp(prefix="dixit-")
            picture.save(Path(self.folder) / f"{name}.png")
            print(f"{name}: {self.folder}/{name}.png")


def given_path(text: str) -> Path:
    """A path as it was typed, pasted or dropped: in quotes, with escaped blanks, or as file://."""
    plain = text.strip("'\"").removeprefix("file://")
    path = Path(plain).expanduser()
    return path if path.exists() else Path(plain.replace("\\ ", " ")).expanduser()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, e.g. runs/colour_vs_grey")
    parser.add_argument("image", nargs="*", help="play these and leave, instead of asking")
    parser.add_argument("--heldout", action="store_true", help="begin with the held-out listeners instead of the "
                        "training ones")
    parser.add_argument("--images", choices=WAYS, default=way_of(), help="how images are shown (here: %(default)s)")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    training = sum(c.kind == "clip" for c in run.config.listeners)
    talk = Talk(run, load(run.config.data, "test"), "test image", [], arguments.images)
    talk.asked = list(range(training, len(talk.everyone)) if arguments.heldout else range(training))
    if arguments.image:
        for target in arguments.image:
            talk.answer(target)
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
                talk.answer(target)
            except DixitError as error:  # a bad path must not end the session
                print(f"error: {error}")


if __name__ == "__main__":
    run_main(main)
