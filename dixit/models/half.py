"""Products in bfloat16 on CPUs that are no faster at it than at float32.

Without instructions for it torch and oneDNN turn every number into float32 within a product, several times. It is
faster to turn the weight into float32 once, multiply, and round the outcome, unless rows are few (measured with the
layers of SmolLM2-135M, one thread, oneDNN's time over this: 1.5 for 16 rows, 1.9 to 2.8 for 32, 3.2 to 3.5 for 128).
Intel's AVX-512 without AMX has instructions for it that are no faster than those for float32 (0.8 to 0.9 for 32 rows,
1.1 to 1.2 for 64, 1.4 for 128, 1.6 for 480). The numbers are the same, up to the order of sums.

Shapes: n rows, D and E widths.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

NEVER = sys.maxsize
PART = 4096  # rows of a weight that are in float32 at once, so that they fit into a cache


def _least_rows() -> int:
    """The number of rows from which a product is faster by way of float32 on this machine."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX") or torch.cpu._is_amx_tile_supported():
        return NEVER
    if not torch.cpu._is_avx512_bf16_supported():
        return 16
    processors = Path("/proc/cpuinfo")
    intel = processors.is_file() and "GenuineIntel" in processors.read_text(encoding="utf-8", errors="replace")
    return 48 if intel else NEVER


ROWS = _least_rows()


def is_widened(x: Float[Tensor, "*n D"], weight: Float[Tensor, "E D"]) -> bool:
    """Whether `wide_product` is the faster one."""
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and x.numel() >= ROWS * x.shape[-1]


def wide_product(x: Float[Tensor, "*n D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "*n E"]:
    """x @ weight.T by way of float32, without a gradient."""
    wide = x.float()
    parts = [F.linear(wide, part.float()).to(x.dtype) for part in weight.split(PART)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def product(x: Float[Tensor, "*n D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "*n E"]:
    """x @ weight.T, by the faster way."""
    return wide_product(x, weight) if is_widened(x, weight) else F.linear(x, weight)
