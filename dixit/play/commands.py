"""The command lines of dixit.play.demo and dixit.play.web, apart from the work so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path

from dixit.common import Command
from dixit.play.terminal import METHODS, detect_method


def demo() -> None:
    command = Command(f"{__package__}.demo")
    command.add_argument("run", type=Path, help="a run's folder, e.g. runs/colour_vs_grey")
    command.add_argument("image", nargs="*", default=[], help="play these images and exit")
    command.add_argument("--heldout", action="store_true", help="begin with the held-out listeners instead of the "
                         "training ones")
    command.add_argument("--images", choices=METHODS, default=detect_method(),
                         help="how images are shown (here: %(default)s)")
    command.run()


def web() -> None:
    command = Command(f"{__package__}.web")
    command.add_argument("run", type=Path, nargs="?", help="a run's folder, e.g. runs/colour_vs_grey")
    command.add_argument("--data", help="the cards; test: the run's own test split; or as in eval.transfer: stamps, "
                         "emoji, clipart, cifar10, folder:PATH (default: stamps, or test where there are none)")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    command.add_argument("--port", type=int, default=8000, help="0: any free one")
    command.run()
