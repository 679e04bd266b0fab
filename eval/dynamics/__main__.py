"""Probes of learning dynamics: compare theory with simulations, and measure the same effects on the speaker.

  python -m eval.dynamics                    list the probes (--on speaker: the measurements)
  python -m eval.dynamics NAME               run one, or all: a table, and results in OUT/NAME
  python -m eval.dynamics NAME --on speaker  measure on the trained speaker: OUT/speaker/NAME
  python -m eval.dynamics report [FOLDER]    add finished runs to the tables of eval/results,
                                             and generate all pages from these tables

Exit code: 1 if a claim fails, 2 on bad input, else 0. More in docs/dynamics.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dixit.common import program, run_main


def main() -> int:
    parser = argparse.ArgumentParser(program("eval.dynamics"), description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="a probe, all, or report")
    parser.add_argument("run", nargs="*", type=Path, metavar="FOLDER", help="of a finished run, for report")
    parser.add_argument("--on", choices=["speaker"], default="", help="measure on the trained speaker")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="number of seeds (default 3)")
    parser.add_argument("--salt", default="", metavar="TEXT", help="make every random draw another one (probes)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML of settings: configs/dynamics/*_paper.yaml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change settings")
    parser.add_argument("--out", type=Path, default=Path("runs/dynamics"), help="folder (default runs/dynamics)")
    arguments = parser.parse_args()
    from .running import main as run  # only now, so that --help imports no model library

    return run(arguments)


if __name__ == "__main__":
    run_main(main)
