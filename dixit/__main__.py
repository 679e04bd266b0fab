"""The console command `dixit`: one subcommand for each command of the project.

Each subcommand calls the same function as the command that a clone offers; its module is imported only then, and model
libraries only after the arguments have been parsed, so that `--help` is quick.
"""

from __future__ import annotations

import importlib
import sys

from dixit import __version__
from dixit.common import DixitError, run_main

# Subcommand -> (module, its function, what it does). In an installed package the folder eval/ is dixit.eval.
COMMANDS = {
    "train": ("dixit.training.main", "main", "train from a config: dixit train colour_vs_grey train.steps=50"),
    "evaluate": ("dixit.eval.commands", "evaluate", "evaluate a run on its test split, with baselines and controls"),
    "transfer": ("dixit.eval.commands", "transfer", "evaluate runs zero-shot on other images: stamps, emoji, a folder"),
    "report": ("dixit.eval.commands", "report", "write a run's report.html, with pictures"),
    "export": ("dixit.eval.commands", "export",
               "write a run's weights, config and model card to a folder; push it to a hub"),
    "demo": ("dixit.play.commands", "demo", "try a run's speaker and listeners on single images in the terminal"),
    "play": ("dixit.play.commands", "web", "play Dixit against a run's agents in the browser; plots of its training"),
    "assets": ("dixit.data.assets", "main", "list or fetch pretrained weights and image sets"),
    "dynamics": ("dixit.eval.dynamics.__main__", "main", "probes of learning dynamics: theory over simulation"),
}
HELP = """usage: dixit COMMAND [ARGUMENTS ...]          (dixit COMMAND --help says more)

Train a speaker to be understood by one listener and not by another.

commands:
""" + "".join(f"  {name:10} {text}\n" for name, (*_, text) in COMMANDS.items()) + f"""
Training on several processes: accelerate launch -m dixit train CONFIG
dixit {__version__}; Apache-2.0"""


def main() -> int | None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else HELP)
        return 0
    if name not in COMMANDS:
        raise DixitError(f"'{name}' is no command; choose one of {', '.join(COMMANDS)}")
    sys.argv = [f"dixit {name}", *rest]
    module, function, _ = COMMANDS[name]
    try:
        command = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name != "dixit.eval":
            raise
        raise DixitError(f"'dixit {name}' needs an installed dixit; in a clone run: pip install -e .") from None
    return command()


def console() -> None:
    """The entry point of the installed command."""
    run_main(main)


if __name__ == "__main__":
    console()
