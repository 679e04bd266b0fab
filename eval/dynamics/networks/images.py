"""MNIST and CIFAR-10 as eight classes at the leaves of a binary tree.

The choice of classes and their trees is [stand-in].
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from dixit.data.assets import asset

TREES = {  # eight classes each, the leaves of the binary tree from left to right
    "mnist": (0, 1, 2, 3, 4, 5, 6, 7),  # smaller or larger than 3.5, and so on
    "cifar10": (0, 8, 1, 9, 3, 5, 4, 7),  # plane, ship | car, truck || cat, dog | deer, horse
}


def image_set(name: str, per_class: int) -> tuple[Float[np.ndarray, "N C H W"], Int[np.ndarray, "N"]]:
    """The first `per_class` training images of each class, with pixels from 0 to 1, and the leaf of each image."""
    folder = asset(name)
    kinds = np.load(folder / "train_labels.npy")
    rows = [np.flatnonzero(kinds == kind)[:per_class] for kind in TREES[name]]
    images = np.load(folder / "train_images.npy", mmap_mode="r")[np.concatenate(rows)]
    return (images.transpose(0, 3, 1, 2) / 255).astype(np.float32), np.repeat(np.arange(8), per_class)
