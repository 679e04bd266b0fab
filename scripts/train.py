"""Train: `accelerate launch scripts/train.py CONFIG.yaml [key.subkey=value ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dixit.common import run_main  # noqa: E402
from dixit.config import load_config  # noqa: E402
from dixit.models.clip import save_clip  # noqa: E402
from dixit.training.game_task import TASKS  # noqa: E402
from dixit.training.loop import make_accelerator, train  # noqa: E402
from dixit.training.warm_start import ClipTask  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Overrides: e.g. train.steps=50 game.reward=sub_prob "
                                     "listeners.1.perception=blur. Run again to resume from the last checkpoint.")
    parser.add_argument("config", help="a YAML file from configs/")
    parser.add_argument("override", nargs="*", help="key.subkey=value")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.override)
    accelerator = make_accelerator(config)
    task = TASKS[config.task](config, accelerator)
    train(config, task, accelerator)
    if isinstance(task, ClipTask) and accelerator.is_main_process:
        print(f"CLIP written to {save_clip(task.clip, config.clip.name)}")


if __name__ == "__main__":
    run_main(main)
