"""Save plots as small PNGs for the repository. Plots themselves are made by each evaluation."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dixit.common import atomic_path

MAX_BYTES = 80_000
MAX_WIDTH = 1400  # pixels


def save_small_png(source: Path, target: Path) -> None:
    """Write a picture as a PNG of 256 colours, in the largest width that fits into MAX_BYTES."""
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    for width in range(min(picture.width, MAX_WIDTH), 0, -100):
        small = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)
        with atomic_path(target) as temporary:  # MAXCOVERAGE: thin lines keep their own colours
            small.quantize(256, Image.Quantize.MAXCOVERAGE).save(temporary, "PNG", optimize=True)
        if target.stat().st_size <= MAX_BYTES:
            return
