"""Images in a terminal: kitty's protocol, sixel, or half-blocks in 24-bit colour, whichever it knows.

Leaves out asking the terminal itself: what it can is taken from the environment, or said by the user.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Mapping

import numpy as np
from PIL import Image

WAYS = ("kitty", "sixel", "blocks", "files")


def way_of(environment: Mapping[str, str] = os.environ, is_terminal: bool | None = None) -> str:
    """How this terminal can show images; "files" if it cannot."""
    if not (sys.stdout.isatty() if is_terminal is None else is_terminal):
        return "files"
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "kitty" in term or "KITTY_WINDOW_ID" in environment or program in ("WezTerm", "ghostty"):
        return "kitty"
    if "sixel" in term or term.startswith(("foot", "mlterm")) or program == "mintty":
        return "sixel"
    return "blocks" if environment.get("COLORTERM") in ("truecolor", "24bit") else "files"


def inline(image: Image.Image, way: str, columns: int = 28) -> str:
    """The text that shows an RGB image, about so many columns wide; nothing for "files"."""
    if way == "kitty":
        return _kitty(image, columns)
    if way == "sixel":
        return _sixel(image.resize((columns * 8, columns * 8 * image.height // image.width)))
    return _blocks(image, columns) if way == "blocks" else ""


def _blocks(image: Image.Image, columns: int) -> str:
    """Two pixels a character: the upper one is the ink, the lower one the ground."""
    rows = max(2, columns * image.height // image.width // 2 * 2)
    p = np.asarray(image.resize((columns, rows)))
    lines = []
    for above, below in zip(p[::2], p[1::2], strict=True):
        cells = [f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
                 for a, b in zip(above, below, strict=True)]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _kitty(image: Image.Image, columns: int) -> str:
    """A PNG in base64, 4096 letters at a time (kitty's graphics protocol, direct transmission)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    parts = [data[i:i + 4096] for i in range(0, len(data), 4096)]
    first = f"a=T,f=100,c={columns},"
    return "".join(f"\x1b_G{first if i == 0 else ''}m={int(i < len(parts) - 1)};{part}\x1b\\"
                   for i, part in enumerate(parts))


def _sixel(image: Image.Image) -> str:
    """64 colours; in each band of 6 rows, a line for each colour there, equal letters run-length coded."""
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
