"""Image towers: those of the CLIPs built here, and the patch grid of any open_clip tower.

Built here are pretrained timm trunks read at several stages, and a small CNN. Importing this module registers them
with timm under the names `dixit_lite0` and so on, by which open_clip finds them. Leaves out the CLIP around a tower
(clip.py).

Shapes: B images, P patches, Dv patch width, h x w the patch grid.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import timm
import torch
from jaxtyping import Float
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

# Tower name -> (timm model, image mean, image standard deviation). One without a timm model is trained from scratch.
TOWERS = {
    "cnn": ("", 0.5, 0.5),
    "lite0": ("tf_efficientnet_lite0", 127 / 255, 128 / 255),
    "lite1": ("tf_efficientnet_lite1", 127 / 255, 128 / 255),
    "lite2": ("tf_efficientnet_lite2", 127 / 255, 128 / 255),
    "mobilenetv2": ("mobilenetv2_100", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
STAGES = (3, 4, 6)  # two stages at stride 16, where small objects are still apart, and the last at stride 32
IMAGE_SIZE = 128
PATCHES = IMAGE_SIZE // 16


class FinePatches(nn.Module):
    """A timm MobileNet-like trunk that gives its stages 3, 4 and 6 side by side on the stride-16 grid.

    Each stage is normalised over channels, and zeros fill the width up to a multiple of 64 (an attention
    head). The classifier and the last convolution are dropped: object parts and places are what the game needs.
    """

    def __init__(self, name: str):
        super().__init__()
        model: Any = timm.create_model(name, pretrained=False)
        self.stem = nn.Sequential(OrderedDict(conv_stem=model.conv_stem, bn1=model.bn1))
        self.blocks: nn.Sequential = model.blocks
        with torch.no_grad():
            width = self.eval()._stages(torch.zeros(1, 3, 64, 64)).shape[1]
        self.num_features = -(-width // 64) * 64
        self.default_cfg = {"pool_size": (PATCHES, PATCHES)}  # read by open_clip's TimmModel

    def reset_classifier(self, num_classes: int, global_pool: str = "") -> None:
        """open_clip asks for this; there is no classifier to reset."""

    def _stages(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in STAGES:
                normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)
                maps.append(normed if not maps else F.interpolate(normed, size=maps[0].shape[-2:]))
        return torch.cat(maps, dim=1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Dv h w"]:
        maps = self._stages(images)
        return F.pad(maps, (0, 0, 0, 0, 0, self.num_features - maps.shape[1]))


def folded(tower: nn.Module) -> Any:
    """A copy of a frozen tower whose batch norms are folded into the convolutions in front of them: the same function
    of images up to rounding, in 0.7 of the time. For evaluation only; its weights have other names. Made once for each
    tower; one without batch norms is returned as it is, for it may be trained."""
    if not any(isinstance(part, nn.BatchNorm2d) for part in tower.modules()):
        return tower
    if tower not in _folded:
        _folded[tower] = _fold(copy.deepcopy(tower).eval())
    return _folded[tower]


_folded: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def _fold(tower: nn.Module) -> nn.Module:
    for parent in list(tower.modules()):
        for (name, layer), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                after = [part for part in norm.children() if not isinstance(part, nn.Identity)]  # timm's activation
                setattr(parent, norm_name, nn.Sequential(*after))
    return tower


class SmallCnn(nn.Module):
    """A trunk to be trained from random weights: convolutions down to the same grid as FinePatches."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(8, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]
        self.default_cfg = {"pool_size": (PATCHES, PATCHES)}  # read by open_clip's TimmModel

    def reset_classifier(self, num_classes: int, global_pool: str = "") -> None:
        """open_clip asks for this; there is no classifier to reset."""

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Dv h w"]:
        return self.layers(images)


@register_model
def dixit_cnn(pretrained: bool = False, **_: Any) -> SmallCnn:
    return SmallCnn()


@register_model
def dixit_lite0(pretrained: bool = False, **_: Any) -> FinePatches:
    return FinePatches("tf_efficientnet_lite0")


@register_model
def dixit_lite1(pretrained: bool = False, **_: Any) -> FinePatches:
    return FinePatches("tf_efficientnet_lite1")


@register_model
def dixit_lite2(pretrained: bool = False, **_: Any) -> FinePatches:
    return FinePatches("tf_efficientnet_lite2")


@register_model
def dixit_mobilenetv2(pretrained: bool = False, **_: Any) -> FinePatches:
    return FinePatches("mobilenetv2_100")


def tower_of(name: str) -> str:
    """The tower of a CLIP built here: "lite0" of "lite0" and of "lite0-animals"; "" for any other CLIP."""
    tower = name.split("-")[0]
    return tower if tower in TOWERS else ""


def build_command(name: str) -> str:
    """The command that builds a CLIP of this name here."""
    config = "clip_cnn" if tower_of(name) == "cnn" else "pictures/clip" if name.endswith("-pictures") else "clip"
    return f"dixit train {config} clip.name={name} name=clip_{name}"


def patch_grid(visual: Any, images: Tensor) -> Tensor:
    """The (B, P, Dv) patches of an open_clip image tower as they enter its pooling, row by row of the grid.

    Class and register tokens are left out. Raises an error for a tower without a grid, or one that does not say which
    of its tokens are patches.
    """
    if not hasattr(visual, "trunk"):  # a tower of open_clip itself
        # A transformer normalises the tokens first, except where its pooling comes before the norm.
        pools_first = getattr(visual, "final_ln_after_pool", False)
        if getattr(visual, "attn_pool", None) is not None:
            pools_first = visual.attn_pool_contrastive is None
        maps = visual.forward_intermediates(images, indices=1, intermediates_only=True,
                                            normalize_intermediates=not pools_first)["image_intermediates"][0]
        return maps.flatten(2).transpose(1, 2)
    trunk = visual.trunk  # of timm
    images = images.contiguous(memory_format=torch.channels_last)
    maps = trunk(images) if is_built_here(visual) else trunk.forward_features(images)
    if maps.ndim == 3:
        return maps[:, trunk.num_prefix_tokens:]
    return maps.flatten(1, 2) if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else maps.flatten(2).transpose(1, 2)


def is_built_here(visual: Any) -> bool:
    """Whether the pooling and the projection of an image tower are all in `visual.head`, after `visual.trunk`."""
    return isinstance(getattr(visual, "trunk", None), FinePatches | SmallCnn)
