"""How a listener sees: pure functions from RGB pixels to RGB pixels.

A perception is applied before a CLIP's own preprocessing. Leaves out anything learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dixit.common import DixitError, rng

Pixels = Float[Tensor, "B 3 H W"]
MEAN_GREY = 0.5


def grey(pixels: Pixels) -> Pixels:
    """ITU-R BT.601 luma in all three channels."""
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=pixels.dtype, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * luma).sum(1, keepdim=True).expand_as(pixels)


def blur(pixels: Pixels) -> Pixels:
    """Gaussian blur with a standard deviation of 1/24 of the height."""
    sigma = pixels.shape[-2] / 24
    size = 2 * int(2 * sigma) + 1
    return F.gaussian_blur(pixels, [size, size], [sigma, sigma])


def low_resolution(pixels: Pixels) -> Pixels:
    """Averaged down to 1/8 of the side, then enlarged to the old size."""
    height, width = pixels.shape[-2:]
    small = F.resize(pixels, [max(height // 8, 1), max(width // 8, 1)], antialias=True)
    return F.resize(small, [height, width], interpolation=F.InterpolationMode.NEAREST)


def left_half(pixels: Pixels) -> Pixels:
    """The right half is hidden behind grey."""
    seen = pixels.clone()
    seen[..., pixels.shape[-1] // 2:] = MEAN_GREY
    return seen


def right_half(pixels: Pixels) -> Pixels:
    """The left half is hidden behind grey."""
    seen = pixels.clone()
    seen[..., : pixels.shape[-1] // 2] = MEAN_GREY
    return seen


def centre_crop(pixels: Pixels) -> Pixels:
    """Only the central half of each side is seen; the rest is grey."""
    height, width = pixels.shape[-2:]
    rows, columns = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
    seen = torch.full_like(pixels, MEAN_GREY)
    seen[..., rows, columns] = pixels[..., rows, columns]
    return seen


def occluded(pixels: Pixels) -> Pixels:
    """The middle third of the rows is hidden behind grey."""
    seen = pixels.clone()
    seen[..., pixels.shape[-2] // 3: 2 * pixels.shape[-2] // 3, :] = MEAN_GREY
    return seen


def channel_swapped(pixels: Pixels) -> Pixels:
    """Red and blue change places."""
    return pixels.flip(1)


PERCEPTIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "colour": lambda pixels: pixels, "grey": grey, "blur": blur, "low_resolution": low_resolution,
    "left_half": left_half, "right_half": right_half, "centre_crop": centre_crop, "occluded": occluded,
    "channel_swapped": channel_swapped,
}


def perceive(pixels: Pixels, name: str) -> Pixels:
    """Pixels in [0, 1] as the perception `name` sees them; DixitError if there is no such perception."""
    if name not in PERCEPTIONS:
        raise DixitError(f"unknown perception '{name}'; choose one of {', '.join(PERCEPTIONS)}")
    return PERCEPTIONS[name](pixels)


def perception_key(name: str) -> str:
    """A hash of the pixels, rounded to 8 bits, that a perception makes of a few fixed images of two sizes.

    Caches are keyed by it, so that a perception whose code or settings change gets new ones. Raises DixitError if there
    is no such perception or it makes other pixels the second time.
    """
    hashes = []
    for _ in range(2):
        found = hashlib.sha256()
        for size in (32, 128):
            noise, blocks = rng("perception", size).integers(0, 256, (2, 3, size, size))
            images = np.stack([noise, blocks[:, :4, :4].repeat(size // 4, 1).repeat(size // 4, 2)])
            seen = perceive(torch.from_numpy(images).float() / 255, name)
            found.update((seen * 255).round().clamp(0, 255).byte().cpu().numpy().tobytes())
        hashes.append(found.hexdigest()[:16])
    if hashes[0] != hashes[1]:
        raise DixitError(f"perception '{name}' makes other pixels of the same image the second time; let it draw its "
                         "random numbers from dixit.common.rng with a fixed key")
    return hashes[0]
