"""Archives made for tests: tar and Debian packages."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def tar_bytes(members: dict[str, bytes], mode: str, links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


def make_deb(path: Path, data_name: str, data: bytes) -> Path:
    def part(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    path.write_bytes(b"!<arch>\n" + part("debian-binary", b"2.0\n") + part("control.tar.xz", b"odd")
                     + part(data_name, data))
    return path
