"""The steps of a perception that have a strength: pure functions of RGB pixels in [0, 1] and the strength.

The keys of dixit/config_perception.py say what each strength means. Steps keep size and range. Leaves out the
perceptions that have a name only (perception.py).

Shapes: B images of 3 x H x W.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dixit.common import rng
from dixit.config_perception import Box, PerceptionStep

Pixels = Float[Tensor, "B 3 H W"]
MEAN_GREY = 0.5

# What dichromats see of linear RGB: severity 1.0 of Machado, Oliveira, Fernandes (2009). A physiologically-based model
# for simulation of color vision deficiency. IEEE TVCG 15(6), 1291-1298, doi:10.1109/TVCG.2009.113; the numbers are the
# authors' (www.inf.ufrgs.br/~oliveira/pubs_files/CVD_Simulation/CVD_Simulation.html). DaltonLens notes that the model
# does not work well for tritan.
MACHADO = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur, cut off at three standard deviations or at the size of the image."""
    for axis, side in enumerate(reversed(pixels.shape[-2:])):  # rows and columns in turn: as good, and much faster
        kernel = [1, 1]
        kernel[axis] = 2 * min(math.ceil(3 * sigma), side - 1) + 1
        pixels = F.gaussian_blur(pixels, kernel, [sigma, sigma])
    return pixels


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """What is left of the images after Pillow has saved them as JPEG."""
    def saved(image: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        return np.array(Image.open(stream, formats=["JPEG"]))

    images = np.stack([saved(image) for image in _bytes(pixels).transpose(0, 2, 3, 1)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(pixels) / 255


def crop(pixels: Pixels, box: Box) -> Pixels:
    """Only the box is seen; the rest is grey."""
    rows, columns = _inside(pixels, box)
    seen = torch.full_like(pixels, MEAN_GREY)
    seen[..., rows, columns] = pixels[..., rows, columns]
    return seen


def occlude(pixels: Pixels, box: Box) -> Pixels:
    """The box is hidden behind grey."""
    rows, columns = _inside(pixels, box)
    seen = pixels.clone()
    seen[..., rows, columns] = MEAN_GREY
    return seen


def _inside(pixels: Pixels, box: Box) -> tuple[slice, slice]:
    (height, width), (left, top, right, bottom) = pixels.shape[-2:], box
    return slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))


def rotate_hue(pixels: Pixels, degrees: float) -> Pixels:
    """The hue of HSV turns by so many degrees: 120 makes red green, green blue and blue red."""
    return F.adjust_hue(pixels, degrees / 360)


def colour_blind(pixels: Pixels, kind: str) -> Pixels:
    """What a dichromat sees, after Machado, Oliveira and Fernandes (2009) at severity 1.0, in linear RGB; colours that
    the display cannot show are cut off. See MACHADO above."""
    matrix = torch.tensor(MACHADO[kind], dtype=pixels.dtype, device=pixels.device)
    return _from_linear(torch.einsum("ij,bjhw->bihw", matrix, _to_linear(pixels)).clamp(0, 1))


def cataract(pixels: Pixels, severity: float) -> Pixels:
    """A clouded lens: a blur, a loss of blue and some green, and a veil of light scattered from the whole image.

    A sketch of these symptoms after no published model; the strengths are ours and fitted to no patient. At severity 1
    the blur is 1/32 of the height, half the light is scattered, and 0.6 of the blue and 0.15 of the green is lost.
    """
    light = _to_linear(blur(pixels, severity * pixels.shape[-2] / 32))
    veiled = torch.lerp(light, light.mean((-2, -1), keepdim=True).expand_as(light), 0.5 * severity)
    passed = 1 - severity * torch.tensor([0.0, 0.15, 0.6], dtype=pixels.dtype, device=pixels.device).view(1, 3, 1, 1)
    return _from_linear(veiled * passed)


def noise(pixels: Pixels, sigma: float, images: Pixels) -> Pixels:
    """Gaussian noise, drawn anew for each image but the same whenever it is seen: `images` are what the chain began
    with, and each one's pixels, at 8 bits, seed its noise.

    Those of an earlier step would not do, for they may differ in their rounding from batch to batch.
    """
    drawn = [rng("noise", hashlib.sha256(image.tobytes()).hexdigest()).standard_normal(image.shape, np.float32)
             for image in _bytes(images)]
    return (pixels + sigma * torch.from_numpy(np.stack(drawn)).to(pixels)).clamp(0, 1)


def downsample(pixels: Pixels, height: int) -> Pixels:
    """Averaged down to so many pixels of height, then enlarged to the old size; nothing if it has no more."""
    old_height, old_width = pixels.shape[-2:]
    if height >= old_height:
        return pixels
    return coarse(pixels, height, max(round(old_width * height / old_height), 1))


def coarse(pixels: Pixels, height: int, width: int) -> Pixels:
    """Averaged down to height x width, then enlarged to the old size."""
    small = F.resize(pixels, [height, width], antialias=True)
    return F.resize(small, list(pixels.shape[-2:]), interpolation=F.InterpolationMode.NEAREST)


def contrast(pixels: Pixels, left: float) -> Pixels:
    """Every image is mixed with a flat grey of its mean brightness, until so much of the contrast is left."""
    return F.adjust_contrast(pixels, left)


STEPS: dict[str, Callable[[Pixels, Any], Pixels]] = {
    "blur": blur, "jpeg": jpeg, "crop": crop, "occlude": occlude, "rotate_hue": rotate_hue,
    "colour_blind": colour_blind, "cataract": cataract, "downsample": downsample, "contrast": contrast,
}


def take_step(pixels: Pixels, step: PerceptionStep, images: Pixels) -> Pixels:
    """The pixels after one more step of a chain that began with `images`."""
    (name, strength), = step.given.items()
    return noise(pixels, strength, images) if name == "noise" else STEPS[name](pixels, strength)


def _bytes(pixels: Pixels) -> np.ndarray:
    """The pixels at 8 bits."""
    return (pixels * 255).round().clamp(0, 255).byte().cpu().numpy()


def _to_linear(pixels: Pixels) -> Pixels:
    """sRGB (IEC 61966-2-1) as light."""
    return torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)


def _from_linear(light: Pixels) -> Pixels:
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)
