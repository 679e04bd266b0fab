"""The command lines of this package's modules: `python -m eval.NAME`.

They are apart from the work so that `--help` and wrong arguments need no import of a model library. Each module says in
its docstring what its command does, and has a `main` that takes the parsed arguments.

Leaves out eval.dynamics, a command of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dixit.common import Command
from dixit.config import configs_folder
from dixit.data.sources import EVALUATION_SETS

ON_SCENES = sorted(path.stem for path in (configs_folder() / "pairs").glob("*.yaml"))
ON_PICTURES = sorted({path.stem for path in (configs_folder() / "pictures").glob("*.yaml")}
                     - {"clip", "words", "base", "caption_attributes", "audiences", "continual"})
PAIRS = [*ON_SCENES, *ON_PICTURES]
RECALL_SETS = ("scenes", "emoji", "clipart", "stamps")  # of clip_quality
MOST_RUNS = 5  # of audience_picture; more columns are too narrow to read


def add_keep_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--keep CONDITION`, which writes a command's figures to the tables."""
    parser.add_argument("--keep", metavar="CONDITION", help="also keep the figures in eval/results under this name "
                        "(scripts/run_pairs --page-only then lists them in eval/RESULTS.md)")


def _add_run(command: Command, overrides: str, run: str = "a run's folder, e.g. runs/colour_vs_grey") -> None:
    """Add a run's folder and overrides of its config; the texts are their help."""
    command.add_argument("run", type=Path, help=run)
    command.add_argument("override", nargs="*", default=[], help=overrides)


def evaluate() -> None:
    command = Command(f"{__package__}.evaluate")
    _add_run(command, "eval.split=..., eval.images=..., eval.seed=...")
    command.run()


def transfer() -> None:
    command = Command(f"{__package__}.transfer")
    command.add_argument("run", nargs="+", metavar="RUN | eval.KEY=VALUE",
                         help="folders of runs that differ in their seed only; eval.images=..., eval.seed=...")
    command.add_argument("--data", nargs="+", metavar="SET",
                         help=f"{', '.join(EVALUATION_SETS)}, or folder:PATH (default: all; combos for scenes only)")
    command.add_argument("--pools", type=int, default=8, help="pools per image, size and kind (default 8)")
    command.add_argument("--baselines", action="store_true", help="also best of N samples and contrastive decoding")
    command.add_argument("--out", type=Path, help="folder to write to (default: the first run's)")
    add_keep_option(command)
    command.run()


def baselines() -> None:
    command = Command(f"{__package__}.baselines")
    _add_run(command, "eval.split=..., eval.images=..., eval.seed=...")
    command.run()


def drift() -> None:
    command = Command(f"{__package__}.drift")
    command.add_argument("run", nargs="+", help="folders of runs, and overrides: eval.images=... eval.split=...")
    command.add_argument("--frontier", type=Path, metavar="PATH",
                         help="plot gap against drift of all runs to this PNG")
    add_keep_option(command)
    command.run()


def naming() -> None:
    command = Command(f"{__package__}.naming")
    _add_run(command, "eval.images=... (0 = all), eval.seed=...", "a run's folder, e.g. runs/base_pictures")
    command.add_argument("--data", default="stamps", help=f"{', '.join(EVALUATION_SETS)}, or folder:PATH")
    command.add_argument("--eyes", nargs="+", default=["mobilenetv2-pictures"], metavar="CLIP",
                         help="CLIPs of the listeners (default mobilenetv2-pictures, which the speaker does not use)")
    add_keep_option(command)
    command.run()


def forms() -> None:
    command = Command(f"{__package__}.forms")
    command.add_argument("config", help="a game's config with oracle_clip, e.g. animals_vs_rest")
    command.add_argument("override", nargs="*", default=[], help="eval.images=... (0 = all), eval.seed=...")
    add_keep_option(command)
    command.run()


def pairs() -> None:
    command = Command(f"{__package__}.pairs", prog="scripts/run_pairs")
    command.add_argument("pair", nargs="*", help=f"default: all of {', '.join(PAIRS)}")
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    command.add_argument("--jobs", type=int, default=1, help="cells side by side; the cores are shared out")
    command.add_argument("--quick", action="store_true", help="few steps and images, kept apart in runs/pairs_quick")
    command.add_argument("--runs", type=Path, help="where runs are kept (default runs/pairs)")
    command.add_argument("--baselines", action="store_true", help="also best of N samples and contrastive decoding")
    command.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a variant: change the config")
    command.add_argument("--ceilings", action="store_true", help="what can be gained from each pair; trains no game")
    command.add_argument("--page-only", action="store_true", help="generate eval/RESULTS.md from the tables, no more")
    command.run()


def seeds() -> None:
    command = Command(f"{__package__}.seeds")
    command.add_argument("condition", help="the name under which the figures are kept, e.g. colour_vs_grey")
    command.add_argument("run", nargs="+", type=Path, help="runs that differ in their seed only")
    command.run()


def audiences() -> None:
    command = Command(f"{__package__}.audiences")
    _add_run(command, "eval.images=..., eval.seed=...", "a run of configs/audiences.yaml")
    command.add_argument("--data", default="", help=f"{', '.join(EVALUATION_SETS)}, or folder:PATH (default: the run's "
                         "own test split)")
    command.add_argument("--beside", nargs="+", type=Path, default=[], help="specialists; an uninformed speaker")
    add_keep_option(command)
    command.run()


def audience_picture() -> None:
    command = Command(f"{__package__}.audience_picture")
    command.add_argument("run", nargs="+", type=Path, help=f"folders of 1 to {MOST_RUNS} runs of the game with one "
                         "base speaker, in the order of the columns")
    command.add_argument("--data", default="stamps", help="the images, as in eval.transfer: stamps, emoji, clipart, "
                         "cifar10, folder:PATH (default: stamps)")
    command.add_argument("--images", type=int, default=6, help="rows (default 6)")
    command.add_argument("--seed", type=int, default=0, help="of the draw of images (default 0)")
    command.add_argument("--out", type=Path, help="the PNG to write (default: audiences.png in the first run's folder)")
    command.run()


def tournament() -> None:
    command = Command(f"{__package__}.tournament")
    _add_run(command, "eval.images=..., eval.seed=...")
    command.add_argument("--games", type=int, default=500)
    command.add_argument("--data", default="test", help="test: the run's own test split; or as in eval.transfer")
    command.add_argument("--audience", choices=("all", "heldout"), default="all", help="whose listeners the players "
                         "have: all of the run's, or the held-out ones only (default: all)")
    add_keep_option(command)
    command.run()


def clip_quality() -> None:
    command = Command(f"{__package__}.clip_quality")
    command.add_argument("name", nargs="+", help="CLIPs built here, e.g. lite0")
    command.add_argument("--sets", nargs="+", choices=RECALL_SETS, default=RECALL_SETS,
                         help="image sets for recall among ten (default all); leave stamps out while you choose "
                         "anything")
    add_keep_option(command)
    command.run()


def report() -> None:
    command = Command(f"{__package__}.report")
    command.add_argument("run", type=Path, help="a run's folder that eval.evaluate has been run on")
    command.add_argument("--images", type=int, default=24, help="cards on the contact sheet (default 24)")
    command.run()


def export() -> None:
    command = Command(f"{__package__}.export")
    command.add_argument("run", type=Path, help="a finished run's folder, e.g. runs/colour_vs_grey")
    command.add_argument("folder", type=Path, help="the folder to write, new or empty")
    command.add_argument("--push", metavar="NAME", default="", help="also upload it to the hub as NAME")
    command.run()
