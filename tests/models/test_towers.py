"""Batch norms folded into convolutions: the same function of images, without the batch norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dixit.models.named import NamedTower
from dixit.models.towers import TOWERS, FinePatches, SmallCnn, folded


def with_statistics(make: Callable[[], Any]) -> Any:
    """A tower of random weights whose batch norms have seen images."""
    torch.manual_seed(0)
    tower = make()
    with torch.no_grad():
        for norm in (part for part in tower.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_(0, 0.2)
            norm.momentum = None
        tower.train()(torch.randn(8, 3, 64, 64))
    return tower.eval().double()


@torch.no_grad()
def compare(tower: Any, apply: Callable[[Any, Tensor], Tensor]) -> None:
    images, quick = torch.randn(2, 3, 64, 64).double(), folded(tower)
    assert any(isinstance(part, nn.BatchNorm2d) for part in tower.modules())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in quick.modules())
    before, after = apply(tower, images), apply(quick, images)
    torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-9)
    assert float(before.std()) > 0


@pytest.mark.parametrize("name", [timm_name for timm_name, *_ in TOWERS.values() if timm_name])
def test_a_folded_trunk_gives_the_same_patches(name):
    compare(with_statistics(lambda: FinePatches(name)), lambda tower, images: tower(images))


def test_a_folded_tower_gives_the_same_class_features_and_patches():
    tower = with_statistics(lambda: NamedTower("tf_efficientnet_lite0", 640))
    compare(tower, lambda tower, images: tower.class_features(images))
    compare(tower, lambda tower, images: tower.patch_maps(images))


def test_a_tower_is_folded_once_and_one_without_batch_norms_is_itself():
    tower = FinePatches("mobilenetv2_100").eval()
    assert folded(tower) is folded(tower) is not tower
    small = SmallCnn()
    assert folded(small) is small
