"""Fault injection: `scripts/faults [--seed 0] [KIND ...]` breaks things at random places and looks at what is left.

Each case draws its fault from (seed, kind, number) alone. A run that is broken must end as it should (killed, or one
line that begins `error:` and exit code 2), keep every checkpoint it had completed, and end bit for bit as the
uninterrupted run when the same command is given again. Prints cases tried, survived and lost; exit code 1 if any is
lost.

Training faults are tried on the project's one loop with a task of milliseconds; caches, captions and listeners on the
tiny models of the tests. Faults of a network are in test_hosts.py.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from fault_bench import Bench, Random
from fault_inputs import (
    broken_images,
    config_fault,
    damaged_captions,
    extreme_values,
    signal_in_a_cache,
    signal_in_a_warm_start,
    signal_in_an_evaluation,
    signal_in_data,
)
from fault_kinds import (
    all_checkpoints_damaged,
    any_caption,
    bad_image,
    clock_jumps,
    damaged_cache,
    damaged_checkpoint,
    failing_listener,
    full_disk,
    kill_at_a_step,
    kill_inside_a_save,
    lost_process,
    not_finite,
    read_only,
    signal_at_a_step,
    spoilt_small_file,
    two_runs_in_one_folder,
)

from dixit.common import rng

KINDS: dict[Callable[[Bench, Path, Random], None], int] = {
    kill_at_a_step: 40, signal_at_a_step: 40, kill_inside_a_save: 50, full_disk: 30, damaged_checkpoint: 50,
    all_checkpoints_damaged: 5, spoilt_small_file: 15, not_finite: 20, clock_jumps: 10, read_only: 15,
    two_runs_in_one_folder: 5, lost_process: 8, damaged_cache: 20, bad_image: 60, any_caption: 40, failing_listener: 6,
    config_fault: 100, damaged_captions: 40, broken_images: 20, signal_in_data: 16, signal_in_a_cache: 16,
    signal_in_an_evaluation: 8, signal_in_a_warm_start: 8, extreme_values: 40,
}


def one_case(bench: Bench, kind: Callable[[Bench, Path, Random], None], number: int) -> None:
    """Try one case. Raises whatever shows that it is lost."""
    kind(bench, bench.root / f"{kind.__name__}_{number}", rng("faults", bench.seed, kind.__name__, number))


def main() -> int:
    names = {kind.__name__: kind for kind in KINDS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, default=1, help="as many cases of every kind, so many times over")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(names)} (default: all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(names):
        parser.error(f"unknown kind {sorted(unknown)[0]}")
    began, cpu, tried, lost = time.monotonic(), time.process_time(), 0, []
    with tempfile.TemporaryDirectory(prefix="dixit-faults-") as place:
        Path(place).chmod(0o755)  # for a child that is nobody
        bench = Bench(Path(place), arguments.seed)
        for kind, count in KINDS.items():
            if arguments.kinds and kind.__name__ not in arguments.kinds:
                continue
            missed = 0
            for number in range(count * arguments.times):
                try:
                    one_case(bench, kind, number)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    missed += 1
                    lost.append(f"{kind.__name__} {number}")
                    traceback.print_exc()
            tried += count * arguments.times
            print(f"{kind.__name__:24} {count * arguments.times:4} tried, {missed} lost", flush=True)
    spent = time.process_time() - cpu + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    print(f"seed {arguments.seed}: {tried} cases tried, {tried - len(lost)} survived, {len(lost)} lost "
          f"({time.monotonic() - began:.0f} s, {spent:.0f} CPU seconds)")
    for case in lost:
        print(f"lost: {case}")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
