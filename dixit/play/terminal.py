"""Show images in a terminal: by kitty's graphics protocol, sixel, or half-blocks in 24-bit colour.

What the terminal supports is guessed from environment variables; the terminal itself is not queried.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Mapping

import numpy as np
from PIL import Image

METHODS = ("kitty", "sixel", "blocks", "files")


def detect_method(environment: Mapping[str, str] = os.environ, is_terminal: bool | None = None) -> str:
    """How this terminal can show images: one of METHODS, "files" if it cannot."""
    if not (sys.stdout.isatty() if is_terminal is None else is_terminal):
        return "files"
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "kitty" in term or "KITTY_WINDOW_ID" in environment or program in ("WezTerm", "ghostty"):
        return "kitty"
    if "sixel" in term or term.startswith(("foot", "mlterm")) or program == "mintty":
        return "sixel"
    return "blocks" if environment.get("COLORTERM") in ("truecolor", "24bit") else "files"


def render(image: Image.Image, method: str, columns: int = 28) -> str:
    """The text that shows an RGB image about `columns` wide in a terminal; "" for "files"."""
    if method == "kitty":
        return _kitty(image, columns)
    if method == "sixel":
        return _sixel(image.resize((columns * 8, columns * 8 * image.height // image.width)))
    return _blocks(image, columns) if method == "blocks" else ""


def _blocks(image: Image.Image, columns: int) -> str:
    """Two pixels per character: the upper one is the foreground colour, the lower one the background."""
    rows = max(2, columns * image.height // image.width // 2 * 2)
    p = np.asarray(image.resize((columns, rows)))
    lines = []
    for above, below in zip(p[::2], p[1::2], strict=True):
        cells = [f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
                 for a, b in zip(above, below, strict=True)]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _kitty(image: Image.Image, columns: int) -> str:
    """A PNG in base64, in chunks of 4096 characters (kitty's graphics protocol, direct transmission)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    parts = [data[i:i + 4096] for i in range(0, len(data), 4096)]
    first = f"a=T,f=100,c={columns},"
    return "".join(f"\x1b_G{first if i == 0 else ''}m={int(i < len(parts) - 1)};{part}\x1b\\"
                   for i, part in enumerate(parts))


def _sixel(image: Image.Image) -> str:
    """Sixel with 64 colours: for each band of 6 rows, a run-length encoded line for each colour in it."""
    small = image.quantize(64)
    palette, index = np.array(small.getpalette()).reshape(-1, 3), np.asarray(small)
    used = np.unique(index)
    text = ["\x1bPq", f'"1;1;{image.width};{image.height}']
    text += [f"#{c};2;" + ";".join(str(round(int(v) / 2.55)) for v in palette[c]) for c in used]
    for top in range(0, image.height, 6):
        band = index[top:top + 6]
        for c in np.unique(band):
            bits = ((band == c) * (1 << np.arange(len(band)))[:, None]).sum(0)
            starts = np.flatnonzero(np.diff(bits, prepend=-1))
            runs = np.diff(starts, append=len(bits))
            text.append(f"#{c}" + "".join(f"!{n}{chr(63 + bits[s])}" if n > 3 else chr(63 + bits[s]) * n
                                          for s, n in zip(starts, runs, strict=True)) + "$")
        text.append("-")
    return "".join(text) + "\x1b\\"
