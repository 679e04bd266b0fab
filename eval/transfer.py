"""Zero-shot transfer of a run to images it never trained on: `python -m eval.transfer RUN`.

Real photographs and renderings: photo stamps and CIFAR-10 (test), 3D emoji (test concepts), and scenes with
held-out combinations. Same listeners, same kind of fixed pools as eval/evaluate.py; nothing is trained.
Writes RUN/transfer.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from dixit.common import DixitError, run_main
from dixit.config import DataConfig
from dixit.runs import load_run
from eval.evaluate import evaluate, table, write_results

TARGETS = ("stamps", "emoji", "cifar10", "combos")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, e.g. runs/colour_vs_grey")
    parser.add_argument("--on", nargs="+", default=TARGETS, metavar="SET",
                        help="stamps, emoji, cifar10, combos, or the path of any image folder (default: the four)")
    parser.add_argument("override", nargs="*", help="eval.images=... eval.seed=...", default=[])
    arguments = parser.parse_intermixed_args()
    began = time.perf_counter()
    run = load_run(arguments.run, arguments.override)
    images, size = run.config.eval.images, run.config.data.image_size
    figures: dict[str, dict] = {}
    captions: dict[str, dict] = {}
    for name in arguments.on:
        if name == "combos":
            data, split = run.config.data, "combos"
        elif name in TARGETS:
            data, split = DataConfig(name=name, image_size=size, test=images), "test"
        elif Path(name).is_dir():
            data, split = DataConfig(name="folder", path=name, image_size=size, test=images), "test"
        else:
            raise DixitError(f"--on {name}: neither a folder nor one of {', '.join(TARGETS)}")
        if split == "combos" and run.config.data.name != "scenes":
            continue
        data = dataclasses.replace(data, seed=run.config.data.seed)
        figures[name], captions[name] = evaluate(run, data, split, images)
        print(f"\n{name}\n{table(figures[name])}")
    path = write_results(run, "transfer", figures, captions, time.perf_counter() - began)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    run_main(main)
