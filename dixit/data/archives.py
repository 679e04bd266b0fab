"""Package archives (.whl, .tgz, .deb) read as data: nothing is written to disk, no package code is run.

Leaves out where archives come from (assets.py).
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from dixit.common import DixitError


def read_members(path: Path, wanted: str) -> dict[str, bytes]:
    """The members of a .whl, .tgz or .deb whose whole name matches the regular expression, by name.

    Nothing is written to disk here, and an archive is refused whole if any name leaves its folder or if a
    wanted member is a link or another special file.
    """
    pattern, found = re.compile(wanted), {}
    try:
        for name, is_file, read in _members(path):
            name = name.removeprefix("./")
            if "\\" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise DixitError(f"{path.name} is refused: unsafe member name {name!r}")
            if pattern.fullmatch(name):
                if not is_file:
                    raise DixitError(f"{path.name} is refused: {name!r} is not a plain file")
                found[name] = read()
    except DixitError:
        raise
    except Exception as error:  # decoders raise many kinds, and damaged files find them all
        raise DixitError(f"{path} is damaged ({error}); delete it and run again") from None
    if not found:
        raise DixitError(f"{path.name} holds no member like {wanted}")
    return found


def _members(path: Path) -> Iterator[tuple[str, bool, Callable[[], bytes]]]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for info in wheel.infolist():
                kind = info.external_attr >> 28  # the file type in the Unix mode: 0 unknown, 8 plain file
                yield info.filename, kind in (0, 8) and not info.is_dir(), partial(wheel.read, info)
        return
    with _deb_data(path) if path.suffix == ".deb" else path.open("rb") as stream:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                yield member.name, content is not None, content.read if content else bytes


def _deb_data(path: Path) -> io.BytesIO:
    """The data.tar of a .deb (an ar archive), so that dpkg-deb is not needed; zstd needs its program."""
    stream = path.open("rb")
    if stream.read(8) != b"!<arch>\n":
        raise DixitError(f"{path} is not a .deb archive; delete it and run again")
    while header := stream.read(60):
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if not name.startswith("data.tar"):
            stream.seek(size + size % 2, 1)
        elif name != "data.tar.zst":
            return io.BytesIO(stream.read(size))
        elif shutil.which("zstd"):
            data = stream.read(size)
            return io.BytesIO(subprocess.run(["zstd", "-dc"], input=data, capture_output=True).stdout)
        else:
            raise DixitError(f"{path.name} is packed with zstd: install the zstd program and run again")
    raise DixitError(f"{path} holds no data.tar; delete it and run again")


def only(members: dict[str, bytes]) -> bytes:
    """The content of the one member that was asked for."""
    if len(members) != 1:
        raise DixitError(f"expected one member, found {sorted(members)}")
    return next(iter(members.values()))
