"""Training in forked children: several processes that work together, or one that is to die.

A fork has everything imported already, so a child of a tiny training takes a second and not twenty.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def fork(work: Callable[[], object], said: Path | int | None = None, **environment: object) -> int:
    """Start `work` in a child with its stderr in the file `said`, or that descriptor; returns its process number.

    A DixitError is told and ends the child as it ends a command: one line, exit code 2.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if said is not None:
            if isinstance(said, Path):
                said.parent.mkdir(parents=True, exist_ok=True)
            stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if isinstance(said, Path) else said
            os.dup2(stream, 2)
            sys.stderr = os.fdopen(os.dup(stream), "w", buffering=1)
        os.environ.update({key: str(value) for key, value in environment.items()})
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

        from accelerate.state import AcceleratorState, PartialState

        from dixit.common import run_main

        AcceleratorState._reset_state()
        PartialState._reset_state()

        def main() -> None:
            work()

        run_main(main)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(code)


def wait(child: int, seconds: float = 240) -> int:
    """A child's exit code, negative for a signal. One that takes longer is killed: a test must not hang."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a child ran for more than {seconds} s")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def as_rank(rank: int, world: int, address: str, port: int, interface: str) -> dict[str, object]:
    """What `accelerate launch` tells a process of its place among others."""
    return {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": address,
            "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": interface, "ACCELERATE_USE_CPU": "true"}


def together(world: int, work: Callable[[], object], said: Path) -> list[int]:
    """Run `work` in as many processes as one training; their exit codes. What rank 0 says is in said/0, and so on."""
    port = free_port()
    children = [fork(work, said / str(rank), **as_rank(rank, world, "127.0.0.1", port, "lo")) for rank in range(world)]
    return [wait(child) for child in children]


def processes_of(run: Path) -> list[int]:
    """The processes that train in a folder, without their launcher."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if f"out={run}" in words and not any(word.startswith("accelerate.") for word in words):
            found.append(int(place.name))
    return found
