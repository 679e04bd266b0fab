"""Further classes for a classifier whose own classes stay as they are: one row of weights for each new concept.

Leaves out the text embeddings of classes (models/named.py).

Shapes: n images, F feature width, k classes, m new classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dixit.common import rng
from dixit.models.named import TEMPERATURE

STEPS, BATCH, RATE, BIAS = 600, 256, 1e-3, -2.0
EVENNESS = 0.5  # images are drawn by their class's number of images to the power of minus this: 0 as they come, 1 each
# class equally often


@torch.enable_grad()
def train_rows(features: Float[Tensor, "n F"], labels: Int[Tensor, "n"], weight: Float[Tensor, "k F"],
               bias: Float[Tensor, "k"], seed: int) -> tuple[Float[Tensor, "m F"], Float[Tensor, "m"]]:
    """Weights and biases of m new classes beside k given ones, by cross-entropy against all of them.

    `labels` count from 0 to m - 1. A new class starts from zero weights and a low bias, so that it wins an image from
    the given classes only where the training images make it.
    """
    count = int(labels.max()) + 1
    rows = torch.zeros(count, features.shape[1], device=features.device, requires_grad=True)
    biases = torch.full((count,), BIAS, device=features.device, requires_grad=True)
    optimizer = torch.optim.AdamW([rows, biases], RATE)
    given = F.linear(features, weight, bias)
    chance = (labels.bincount()[labels].double() ** -EVENNESS).cpu().numpy()
    drawn = rng("class rows", seed).choice(len(features), (STEPS, BATCH), p=chance / chance.sum())
    batches = torch.from_numpy(drawn)
    for index in batches.to(features.device):
        logits = torch.cat([given[index], F.linear(features[index], rows, biases)], dim=1)
        loss = F.cross_entropy(logits / TEMPERATURE, labels[index] + len(weight))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows.detach(), biases.detach()
