"""Read members of package archives (.whl, .tgz, .deb) into memory: nothing is written, no package code is run.

Archives are downloaded by assets.py.
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


def read_members(path: Path, pattern: str, skip_links: bool = False) -> dict[str, bytes]:
    """Read the members of a .whl, .tgz or .deb whose full name matches a regular expression; name -> content.

    Raises DixitError if the archive is damaged, if no name matches, if any name points outside the archive's
    folder, or if a matching member is a link or another special file; with `skip_links` those are left out.
    """
    regex, contents = re.compile(pattern), {}
    try:
        for name, is_file, read in _members(path):
            name = name.removeprefix("./")
            if "\\" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise DixitError(f"{path.name} is refused: unsafe member name {name!r}")
            if regex.fullmatch(name):
                if not is_file and skip_links:
                    continue
                if not is_file:
                    raise DixitError(f"{path.name} is refused: {name!r} is not a plain file")
                contents[name] = read()
    except DixitError:
        raise
    except Exception as error:  # a damaged file can raise almost any kind of error in a decoder
        raise DixitError(f"{path} is damaged ({error}); delete it and run again") from None
    if not contents:
        raise DixitError(f"{path.name} holds no member like {pattern}")
    return contents


def _members(path: Path) -> Iterator[tuple[str, bool, Callable[[], bytes]]]:
    """For each member its name, whether it is a plain file, and a function that reads it."""
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
    """The data.tar of a .deb (an ar archive), read without dpkg-deb; one packed with zstd needs the zstd program."""
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


def single_member(members: dict[str, bytes]) -> bytes:
    """The content of the only member. Raises DixitError if there are several or none."""
    if len(members) != 1:
        raise DixitError(f"expected one member, found {sorted(members)}")
    return next(iter(members.values()))
