"""Shared utilities: the error for users, command lines, seeded random generators, atomic file writes,
facts about the process.

Contains nothing about models or data.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import errno
import fcntl
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from dixit.interrupts import Interrupted, handled


class DixitError(Exception):
    """Raised on bad input. The message is one line: what is wrong, where, and how to fix it. Commands exit with code 2.

    Characters that do not print (a file name may contain them) become spaces, so that the message stays one line.
    """

    def __init__(self, message: object):
        super().__init__("".join(c if c.isprintable() else " " for c in str(message)))


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command's `main`; a DixitError or a full disk becomes one line on stderr and exit code 2.

    A signal that ends it becomes one line and exit code 128 + its number; a reader of its output that has gone, as in
    `| head`, ends it silently like SIGPIPE. Characters that a terminal's encoding lacks are printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with handled():
            code = main() or 0
        if sys.stdout:  # None if it was closed from the start
            sys.stdout.flush()
    except DixitError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered is flushed at exit
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: a path is too long: {str(error.filename)[:60]}...; give a shorter one", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as stop:
        interrupted = stop if isinstance(stop, Interrupted) else Interrupted(signal.SIGINT)
        if interrupted.message:
            print(interrupted.message, file=sys.stderr)
        code = 128 + interrupted.number
    sys.exit(code)


class Command(argparse.ArgumentParser):
    """The command line of a module that imports model libraries.

    Its description is the module's docstring, which is read without running the module: `--help` and wrong arguments
    end before the slow imports.
    """

    def __init__(self, module: str, prog: str | None = None):
        spec = importlib.util.find_spec(module)
        assert spec and spec.origin
        super().__init__(prog, description=ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))),
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        self.module = module

    def run(self) -> None:
        """Parse the arguments, then import the module and call its `main` with them."""
        arguments = self.parse_intermixed_args()
        importlib.import_module(self.module).main(arguments)


def rng(*key: int | str) -> np.random.Generator:
    """A random generator that is a pure function of its key, e.g. rng(seed, step, "game").

    Every random draw of the project comes from here, so that a resumed run and a run on another number of
    processes make the same draws.
    """
    salt = current_salt()
    digest = hashlib.sha256(json.dumps({"salt": salt, "key": key} if salt else key).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


_salt: ContextVar[str] = ContextVar("salt", default="")


@contextmanager
def salted(salt: str) -> Iterator[None]:
    """Within this block every draw of `rng` is another one: a pure function of its key and `salt`; "" changes none."""
    token = _salt.set(salt)
    try:
        yield
    finally:
        _salt.reset(token)


def current_salt() -> str:
    """The salt of the block in which this is called, or "". What is kept on disk of draws needs it in its key."""
    return _salt.get()


def seed_of(*key: int | str) -> int:
    """A 63-bit seed for torch that is a pure function of its key."""
    return int(rng(*key).integers(2**63))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it replaces `path` if the block ends without an error.

    Raises DixitError if the disk is full or the folder cannot be written; the old file is then kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DixitError(f"cannot write {path}: {error.strerror or error}; free some space or choose "
                         "another output folder, then run the same command again") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, refusal: str = "") -> Iterator[None]:
    """Run the block under an exclusive lock on the file `path`, so that one process at a time runs it.

    Other processes wait, or raise DixitError(refusal) if `refusal` is given. The kernel frees the lock of a process
    that died.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise DixitError(f"cannot write to {path.parent}: {error.strerror}; choose another folder (out= for a run, "
                         "DIXIT_CACHE for the cache)") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise DixitError(refusal) from None
        yield


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused."""
    atomic_write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; DixitError if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DixitError(f"{path} does not exist") from None
    except (ValueError, OSError) as error:
        raise DixitError(f"{path} is damaged ({error}); delete it and run again") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_states(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file right in a folder, in order; none if there is no such folder."""
    found = ((p.name, p.stat()) for p in sorted(folder.glob("*")) if p.is_file())
    return [(name, state.st_size, state.st_mtime_ns) for name, state in found]


def expand_home(path: str | Path) -> Path:
    """A path that a user gave, with the home folder in place of ~ or ~user. Raises DixitError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DixitError(f"there is no home folder {Path(path).parts[0]}; write the path {path} out, with ./ in front "
                         "if it is a name") from None


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return "".join(c if c.isalnum() or c in "'-" else " " for c in text.lower()).split()


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters, without the source location that gloo prepends."""
    text = re.sub(r"^\[[^]]*]\s*", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:200]


def did_you_mean(given: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The end of an error about an unknown name: the nearest of the allowed ones if one is like it, and all of them."""
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5) or [
        name for name in names if given and name.startswith(given)]
    listed = ", ".join(names)
    return f"did you mean '{prefix}{near[0]}'? (one of {listed})" if near else f"choose one of {listed}"


def git_commit() -> str:
    """The commit of the source tree, with '+' if it has uncommitted changes, not counting results, on which no run
    depends; 'unknown' outside git."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":!/eval/results", ":!/eval/RESULTS.md")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command_line() -> str:
    """The command this process was started with, without the path of the interpreter."""
    words = sys.orig_argv[1:]
    if words and Path(words[0]).name == "dixit":  # the installed command
        return shlex.join(["dixit", *words[1:]])
    return shlex.join(["python", *words])


def program(module: str) -> str:
    """The name of the running command for its usage line: "dixit NAME" if started so, else "python -m MODULE"."""
    return sys.argv[0] if sys.argv[0].startswith("dixit ") else f"python -m {module}"


def peak_memory_gb() -> float:
    """Peak resident memory of this process so far, in GB (10^9 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the parent's memory at the time of the fork
        kilobytes = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if kilobytes:
            return int(kilobytes[0]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def scratch_dir(parent: Path) -> Path:
    """Make a temporary folder inside `parent`, to be renamed into place when it is complete."""
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `parent`, removed at the end of the block.

    First removes those whose process was killed: a living process has a lock on the file `.lock` in its own.
    """
    with locked(parent / ".scratch.lock"):  # so that no folder is seen before it has its lock
        for leftover in parent.glob(".tmp-*"):
            if not _is_locked(leftover / ".lock"):
                shutil.rmtree(leftover, ignore_errors=True)
        folder = scratch_dir(parent)
        lock = (folder / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
