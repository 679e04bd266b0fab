"""How a listener sees: pure functions from RGB pixels to RGB pixels.

A perception is a name of PERCEPTIONS, or a chain of such names and of steps with a strength (perception_steps.py). It
is applied before a CLIP's own preprocessing. Leaves out anything learned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from dixit.common import DixitError, rng
from dixit.config_perception import Perception, PerceptionStep, perception_label
from dixit.models.perception_steps import MEAN_GREY, Pixels, coarse, take_step


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
    return coarse(pixels, max(height // 8, 1), max(width // 8, 1))


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


def perceive(pixels: Pixels, perception: Perception) -> Pixels:
    """Pixels in [0, 1] as a perception sees them, step by step; DixitError if it names one that there is not."""
    seen = pixels
    for step in (perception,) if isinstance(perception, str) else perception:
        if isinstance(step, PerceptionStep):
            seen = take_step(seen, step, pixels)
        elif step in PERCEPTIONS:
            seen = PERCEPTIONS[step](seen)
        else:
            raise DixitError(f"unknown perception '{step}'; choose one of {', '.join(PERCEPTIONS)}")
    return seen


def perception_key(perception: Perception) -> str:
    """A hash of the pixels, rounded to 8 bits, that a perception makes of a few fixed images of two sizes, and of a
    chain's steps, which may differ on images of other sizes only.

    Caches are keyed by it, so that a perception whose code or settings change gets new ones. Raises DixitError if there
    is no such perception or it makes other pixels the second time.
    """
    steps = [] if isinstance(perception, str) else [
        step.given if isinstance(step, PerceptionStep) else step for step in perception]
    hashes = []
    for _ in range(2):
        found = hashlib.sha256(json.dumps(steps).encode() if steps else b"")
        for size in (32, 128):
            noise, blocks = rng("perception", size).integers(0, 256, (2, 3, size, size))
            images = np.stack([noise, blocks[:, :4, :4].repeat(size // 4, 1).repeat(size // 4, 2)])
            seen = perceive(torch.from_numpy(images).float() / 255, perception)
            found.update((seen * 255).round().clamp(0, 255).byte().cpu().numpy().tobytes())
        hashes.append(found.hexdigest()[:16])
    if hashes[0] != hashes[1]:
        raise DixitError(f"perception '{perception_label(perception)}' makes other pixels of the same image the "
                         "second time; let it draw its random numbers from dixit.common.rng with a fixed key")
    return hashes[0]
