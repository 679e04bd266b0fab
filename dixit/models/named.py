"""An image tower that names what it sees: an ImageNet classifier whose classes have text embeddings.

The image embedding is two blocks side by side. The first is the mean text embedding of the likeliest classes, weighted
by their probability (ConSE, Norouzi et al. 2014; the text space as the target is DeViSE's, Frome et al. 2013). It needs
no pair of image and text and knows no colour, place or number. Those are in the second block, a pooling head on the
patches that is trained (training/warm_start.py). Texts have the same two blocks: the text tower's own embedding, and a
head on it that is trained. A cosine of two such embeddings is a weighted sum of the blocks'.

Besides ImageNet's 1,000 classes there may be further ones, for the concepts of images that it is trained on.

Shapes: B images, S texts, P patches, Dv patch width, F class-feature width, n classes, Dt text width, W attribute
width, E = Dt + W.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from jaxtyping import Bool, Float
from open_clip.timm_model import AbsAttentionPool2d
from timm.data import ImageNetInfo
from timm.layers import Mlp
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.models.towers import PATCHES, FinePatches

IMAGENET = 1000  # classes
NAME_SIZE = 192  # pixels of a side for the classifier; the patches are read at towers.IMAGE_SIZE. Recall at 1 of 10 of
# emoji (train) by their labels, lite0: .22 at 128, .25 at 160, .27 at 192, .29 at 224 pixels, in 5, 8, 12, 19 ms
ATTRIBUTE_WIDTH = 256  # of the second block
ATTRIBUTE_WEIGHT = 1.0  # of the second block beside the first, in images; texts learn theirs (TextHead)
TEMPERATURE = 2.0  # of the class probabilities
LIKELIEST = 20  # classes that an embedding is the mean of
FURTHER_SHARE = 0.1  # of the probability, at most, that further classes share. They know drawings and CIFAR-10's
# small pictures, of which ImageNet's classes name too few, but would win all photographs of things that have no class


class Classes(nn.Module):
    """A linear classifier and the unit text embedding of each class (`prototypes`). Weights of any number of classes
    can be loaded into it."""

    weight: Tensor
    bias: Tensor
    prototypes: Tensor

    def __init__(self, features: int, text_width: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(IMAGENET, features))
        self.register_buffer("bias", torch.zeros(IMAGENET))
        self.register_buffer("prototypes", torch.zeros(IMAGENET, text_width))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in ("weight", "bias", "prototypes"):
            given = state_dict.get(prefix + name)
            if given is not None and given.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, getattr(self, name).new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def add(self, weight: Float[Tensor, "m F"], bias: Float[Tensor, "m"], prototypes: Float[Tensor, "m Dt"]) -> None:
        """Append further classes."""
        self.weight, self.bias = torch.cat([self.weight, weight]), torch.cat([self.bias, bias])
        self.prototypes = torch.cat([self.prototypes, prototypes])

    def forward(self, features: Float[Tensor, "B F"], known: Bool[Tensor, "n"] | None = None) -> Float[Tensor, "B Dt"]:
        """Unit embeddings of the names of images; with `known`, of one who knows these classes only."""
        return self.mean_embedding(self.posterior(features, known))

    def posterior(self, features: Float[Tensor, "B F"], known: Bool[Tensor, "n"] | None = None) -> Float[Tensor, "B n"]:
        """The probability of each class. Where further classes have more than FURTHER_SHARE of it beside ImageNet's,
        they are scaled down to that."""
        logits = F.linear(features, self.weight, self.bias) / TEMPERATURE
        if known is None:
            known = torch.ones_like(self.bias, dtype=torch.bool)
        logits = logits.masked_fill(~known, -torch.inf)
        if not (known[:IMAGENET].any() and known[IMAGENET:].any()):
            return logits.softmax(-1)
        share = logits.softmax(-1)[:, IMAGENET:].sum(1, keepdim=True).clamp(max=FURTHER_SHARE)
        return torch.cat([(1 - share) * logits[:, :IMAGENET].softmax(-1), share * logits[:, IMAGENET:].softmax(-1)], 1)

    def mean_embedding(self, posterior: Float[Tensor, "B n"]) -> Float[Tensor, "B Dt"]:
        """The unit mean of the likeliest classes' prototypes under a distribution over classes."""
        p, likeliest = posterior.topk(min(LIKELIEST, posterior.shape[1]), dim=1)
        return F.normalize((p[..., None] * self.prototypes[likeliest]).sum(1), dim=-1)


class NamedTower(nn.Module):
    """A timm EfficientNet-like model with its classifier, read as patches (FinePatches) and as class features.

    Takes images of NAME_SIZE; gives joined embeddings (B, Dt + W).
    """

    def __init__(self, name: str, width: int):
        super().__init__()
        model: Any = timm.create_model(name, pretrained=False)
        self.fine = FinePatches(name)  # its stem and blocks are the classifier's too
        self.conv_head, self.bn2, self.pool = model.conv_head, model.bn2, model.global_pool
        self.num_features = self.fine.num_features
        self.classes = Classes(model.classifier.in_features, width - ATTRIBUTE_WIDTH)
        self.attributes = nn.Sequential(
            AbsAttentionPool2d(self.num_features, feat_size=PATCHES, out_features=ATTRIBUTE_WIDTH),
            Mlp(ATTRIBUTE_WIDTH, 2 * ATTRIBUTE_WIDTH, ATTRIBUTE_WIDTH, bias=(True, False)))
        self.default_cfg: dict[str, Any] = {}  # read by open_clip's TimmModel

    def class_features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """The pooled features in front of the classifier."""
        return self.pool(self.bn2(self.conv_head(self.fine.blocks(self.fine.stem(images)))))

    def patch_maps(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Dv h w"]:
        """The feature maps of the patches."""
        side = 16 * PATCHES
        return self.fine(F.interpolate(images, size=(side, side), mode="bicubic", antialias=True, align_corners=False))

    def join(self, names: Float[Tensor, "B Dt"], maps: Float[Tensor, "B Dv h w"]) -> Float[Tensor, "B E"]:
        """Embeddings of both blocks, from unit embeddings of names and from patches."""
        return joined(names, self.attributes(maps))

    def forward(self, images: Float[Tensor, "B 3 H W"],
                known: Bool[Tensor, "n"] | None = None) -> Float[Tensor, "B E"]:
        return self.join(self.classes(self.class_features(images), known), self.patch_maps(images))


def joined(names: Float[Tensor, "B Dt"], attributes: Float[Tensor, "B W"]) -> Float[Tensor, "B E"]:
    """Image embeddings of two blocks, from unit embeddings of names and embeddings of attributes of any length."""
    return torch.cat([names, ATTRIBUTE_WEIGHT * F.normalize(attributes, dim=-1)], dim=1)


def image_rows(images: Float[Tensor, "B E"], width: int) -> Float[Tensor, "B r Dv"]:
    """Image embeddings of two blocks as r = ceil(E / Dv) more patches of `width`, at the scale of the patches: what a
    speaker reads beside them."""
    return F.pad(images * images.shape[1] ** 0.5, (0, -images.shape[1] % width)).unflatten(1, (-1, width))


def row_count(embedding_width: int, width: int) -> int:
    """The number r of such rows; 0 for no embedding."""
    return -(-embedding_width // width)


class TextHead(nn.Module):
    """Texts' embeddings of two blocks: what the text tower gives, as it is, and an MLP of it, which also weighs the
    blocks by the length of its output."""

    def __init__(self, text_width: int):
        super().__init__()
        hidden = (text_width + ATTRIBUTE_WIDTH) // 2  # as open_clip's
        self.attributes = nn.Sequential(nn.Linear(text_width, hidden, bias=False), nn.GELU(),
                                        nn.Linear(hidden, ATTRIBUTE_WIDTH, bias=False))

    def forward(self, texts: Float[Tensor, "S Dt"]) -> Float[Tensor, "S E"]:
        return torch.cat([texts, self.attributes(texts)], dim=1)


def imagenet_texts() -> list[list[str]]:
    """Of each ImageNet class, in the classifier's order, its names and each name with its definition."""
    info = ImageNetInfo()
    texts = []
    for i in range(IMAGENET):
        names = [name.strip() for name in info.index_to_description(i).split(",")]
        definition = info.index_to_description(i, detailed=True).split(":", 1)[1].strip()
        texts.append([*names, *(f"a {name}: {definition}" for name in names)])
    return texts


def imagenet_synsets() -> list[str]:
    """WordNet's id of each ImageNet class, e.g. n01440764, in the classifier's order."""
    return ImageNetInfo().label_names()


# num_classes is the CLIP's embedding width: open_clip asks for a classifier of that width where it adds no head itself.


@register_model
def dixit_lite0_named(pretrained: bool = False, num_classes: int = 640, **_: Any) -> NamedTower:
    return NamedTower("tf_efficientnet_lite0", num_classes)


@register_model
def dixit_lite1_named(pretrained: bool = False, num_classes: int = 640, **_: Any) -> NamedTower:
    return NamedTower("tf_efficientnet_lite1", num_classes)


@register_model
def dixit_lite2_named(pretrained: bool = False, num_classes: int = 640, **_: Any) -> NamedTower:
    return NamedTower("tf_efficientnet_lite2", num_classes)


@register_model
def dixit_mobilenetv2_named(pretrained: bool = False, num_classes: int = 640, **_: Any) -> NamedTower:
    return NamedTower("mobilenetv2_100", num_classes)
