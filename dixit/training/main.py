"""The training command: `accelerate launch scripts/train.py CONFIG [key.subkey=value ...]`, or `dixit train CONFIG`.

CONFIG is a YAML file, or the name of one that comes with dixit: colour_vs_grey, pairs/english_vs_german. Run the same
command again to resume from the last checkpoint. On several processes: `accelerate launch -m dixit train CONFIG`.
"""

from __future__ import annotations

import argparse

from dixit.config import find_config, load_config, refuse_doubled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, or the name of a config that comes with dixit")
    parser.add_argument("override", nargs="*", default=[], help="key.subkey=value, e.g. train.steps=50 "
                        "listeners.0.perception=blur 'listeners.1.perception=[{blur: 3}, {jpeg: 5}]'")
    arguments = parser.parse_args()
    refuse_doubled(arguments.override)
    config = load_config(find_config(arguments.config), arguments.override)
    # Only now, so that --help and a wrong config need no import of a model library.
    from dixit.models.clip import save_clip
    from dixit.training.game_task import TASKS
    from dixit.training.loop import make_accelerator, train
    from dixit.training.warm_start import ClipTask

    accelerator = make_accelerator(config)
    task = TASKS[config.task](config, accelerator)
    train(config, task, accelerator)
    if isinstance(task, ClipTask) and accelerator.is_main_process:
        print(f"CLIP written to {save_clip(task.clip, config.clip.name)}")
