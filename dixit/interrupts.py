"""Signals that ask a command to end: SIGTERM, SIGUSR1 and SIGINT (Ctrl-C).

Schedulers such as Slurm and Kubernetes send one some seconds before they kill a job. A command ends at once, with its
clean-up; inside `finishing`, which is where the training loop runs, the first signal is only noted, so that the step
can be finished and saved, and a second one ends the command at once. A command that a launcher such as `accelerate
launch` started also ends when the launcher has died.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ECHO = 5.0  # seconds in which a launcher may pass on the signal that its processes have had themselves
PR_SET_PDEATHSIG = 1


class Interrupted(KeyboardInterrupt):
    """Raised where a signal ends a command, with exit code 128 + `number`; `message` is what to print, if anything."""

    def __init__(self, number: int, message: str | None = None):
        if message is None:
            message = f"interrupted by {name_of(number)}: run the same command again; what was finished is kept"
        super().__init__(message)
        self.number, self.message = number, message


class _Interrupts:
    """What this process knows of signals."""

    def __init__(self) -> None:
        self.noted = 0  # the signal that asked to finish; 0: none
        self.since = 0.0
        self.finishing = False
        self.launched = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.finishing and not self.noted:
            self.noted, self.since = number, time.monotonic()
            if int(os.environ.get("RANK", "0")) == 0:  # not print: the signal may have come in the middle of one
                os.write(2, f"\n{name_of(number)}: finishing the step, then saving; a second signal ends at "
                            "once\n".encode())
            return
        if self.noted and self.launched and time.monotonic() - self.since < ECHO:
            return
        raise Interrupted(number)


_interrupts = _Interrupts()


def name_of(number: int) -> str:
    """The name of a signal, e.g. "SIGTERM"."""
    return signal.Signals(number).name


def noted_signal() -> int:
    """The signal that has asked to finish, inside `finishing`; 0 if none has."""
    return _interrupts.noted


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals while the block runs. Those that the process was started to ignore stay ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
        _interrupts.launched = bool(launcher_words())
        for number in before:
            signal.signal(number, _interrupts.handle)
        if _interrupts.launched and sys.platform == "linux":  # `kill` of the launcher would leave this process running
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def finishing() -> Iterator[None]:
    """Note the first signal while the block runs (`noted_signal`), instead of ending at once."""
    _interrupts.finishing, _interrupts.noted = True, 0
    try:
        yield
    finally:
        _interrupts.finishing, _interrupts.noted = False, 0


def launcher_words() -> list[str]:
    """The command line of the launcher that started this process (accelerate launch, torchrun, or eval.pairs, which
    passes signals on like them); empty if none did."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:  # no Linux, or the parent has gone
        return []
    launchers = {"accelerate", "accelerate-launch", "torchrun", "accelerate.commands.launch", "torch.distributed.run",
                 "accelerate.commands.accelerate_cli", "eval.pairs", "dixit.eval.pairs"}
    return words if any(Path(word).name in launchers for word in words[:4]) else []
