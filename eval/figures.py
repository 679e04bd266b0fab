"""Pictures that are kept in the repository: small PNGs.

Leaves out the plots themselves.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dixit.common import atomic_path

MOST_BYTES = 80_000
WIDEST = 1400  # pixels


def keep_picture(source: Path, target: Path) -> None:
    """Write a picture as a PNG of 256 colours, as wide as fits into MOST_BYTES."""
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    for width in range(min(picture.width, WIDEST), 0, -100):
        small = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)
        with atomic_path(target) as temporary:  # MAXCOVERAGE: thin lines keep their own colours
            small.quantize(256, Image.Quantize.MAXCOVERAGE).save(temporary, "PNG", optimize=True)
        if target.stat().st_size <= MOST_BYTES:
            return
