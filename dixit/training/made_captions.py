"""The captions of a warm start: written ones, or ones made of classes' names and of pixels' colours.

An image embedding that lies in the text space lets a captioner learn names without images (CapDec, Nukrai et al. 2022;
DeCap, Li et al. 2023). Here a picture's name embedding is replaced by that of a made-up class posterior, and its
captions name the made-up class: at three levels (a tree frog, a frog, an animal), with or without the colours that its
pixels have. Patches and the attributes of the image embedding stay the picture's own, so that the speaker learns to
take names from the name embedding and colours from the others. Scenes keep their name embedding and their captions.

For a speaker that learns to name requested attributes, each caption comes with the request that it obeys: a written one
of a scene with the attributes that it names, a made one with a random request, which was there first
(picture_attributes.py).

Leaves out the losses (warm_start.py).

Shapes: B images, n classes, F class-feature width, Dt text width, Dv patch width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dixit.common import DixitError, rng
from dixit.config import ATTRIBUTES
from dixit.data.known import COLOUR_NAMES, main_colours
from dixit.data.names import VAGUE, noun_of, phrase, thing_senses, things
from dixit.data.scenes import mentioned_attributes
from dixit.models.clip import Clip
from dixit.models.features import class_features
from dixit.models.named import ATTRIBUTE_WIDTH, IMAGENET, image_row
from dixit.training.picture_attributes import (
    KINDS,
    PICTURE_ATTRIBUTES,
    REQUESTED,
    class_kinds,
    mentioned,
    request,
    requested_caption,
)

CAPTIONS = 6  # made for each picture
NEIGHBOURS, OTHERS = 20, 10  # classes that are near the made-up one, and how many of them share its posterior
CONCENTRATION = 0.5  # of the Dirichlet distribution of their shares
LEAST = 0.15  # probability of the made-up class, at least
NOISE = 0.01  # standard deviation of what is added to the name embedding
COLOURED, BOTH = 0.35, 0.25  # fraction of captions that name colours; of these, fraction that name two if there are two
LEVELS = 0.55, 0.3, 0.15  # fractions of captions that name the class itself, its everyday word, its broad kind
FIRST = 0.7  # fraction of names of the class itself that are its first one


def class_levels(clip: Clip) -> list[tuple[tuple[str, ...], str, str]]:
    """Of each class of a CLIP that names things, its names, its everyday word and its broad kind. Where a kind is too
    vague to tell anything, it is the everyday word."""
    levels = [(t.names, t.basic, t.basic if t.kind in VAGUE or not t.kind else t.kind) for t in things()]
    return levels + [((label,), noun_of(label) or label, noun_of(label) or label) for label in clip.classes[IMAGENET:]]


Request = tuple[float, ...]  # for each attribute, above 0 where it is to be named
Requests = list[dict[str, Request]]  # of each image, caption -> the request that it obeys


class WrittenCaptions:
    """The captions that a data set has; with `requests`, these are of scenes."""

    def __init__(self, dataset: Dataset, requests: bool = False):
        self.captions, self.with_requests = list(dataset["captions"]), requests

    def documents(self) -> list[list[str]]:
        """Captions to count words in: those of each image."""
        return self.captions

    def draw(self, index: Int[np.ndarray, "B"], *_: int | str) -> tuple[None, list[list[str]], Requests | None]:
        """No name embeddings, the captions of some images, and their requests."""
        captions = [self.captions[i] for i in index]
        if not self.with_requests:
            return None, captions, None
        return None, captions, [{text: mentioned_attributes(text) for text in own} for own in captions]

    def validation_requests(self, index: Int[np.ndarray, "B"]) -> tuple[list[Request], list[Request]]:
        """A request for one attribute of each image, in turn, and what `mentioned` finds in a caption that obeys."""
        wanted = [tuple(1.0 if i % len(ATTRIBUTES) == a else -1.0 for a in range(len(ATTRIBUTES))) for i in index]
        return wanted, wanted

    mentioned = staticmethod(mentioned_attributes)


class MadeCaptions:
    """Name embeddings and captions for the pictures of a data set, a pure function of the keys given to `draw`.

    Raises DixitError if the CLIP does not name things.
    """

    def __init__(self, clip: Clip, dataset: Dataset, requests: bool = False):
        if clip.named is None:
            raise DixitError(f"data.made_captions needs a CLIP that names things, and {clip.name} does not; set "
                             "clip.name to one that was trained with clip.names, e.g. lite0-pictures")
        self.clip, self.dataset, self.classes, self.with_requests = clip, dataset, clip.named.classes, requests
        self.written, self.records = list(dataset["captions"]), list(dataset["record"])
        self.levels = class_levels(clip)
        further = [i for i, label in enumerate(clip.classes[IMAGENET:], IMAGENET) if label.replace(" ", "").isalpha()
                   and thing_senses(label)]
        self.usable = np.array([*range(IMAGENET), *further])
        rows = F.normalize(self.classes.weight, dim=1)
        self.near: Int[np.ndarray, "n m"] = (rows @ rows.T).fill_diagonal_(-1).topk(NEIGHBOURS).indices.cpu().numpy()
        self.colours = [[] if record else main_colours(Image.fromarray(np.asarray(row["image"])))
                        for row, record in zip(dataset, self.records, strict=True)]

    def documents(self) -> list[list[str]]:
        """Captions to count words in: each class's names at all levels, each colour, and the captions of scenes."""
        scenes = [own for own, record in zip(self.written, self.records, strict=True) if record]
        named = [[*names, basic, kind] for names, basic, kind in (self.levels[i] for i in self.usable)]
        return scenes + named + [[colour] for colour in sorted(COLOUR_NAMES)]

    def draw(self, index: Int[np.ndarray, "B"],
             *key: int | str) -> tuple[Float[Tensor, "B Dt"], list[list[str]], Requests | None]:
        """The name embeddings (NaN where an image keeps its own), the captions of some images, and their requests."""
        r = rng("made captions", *key)
        posterior = torch.zeros(len(index), len(self.classes.bias))
        captions: list[list[str]] = []
        requests: Requests = []
        kept = torch.zeros(len(index), dtype=torch.bool)
        for i, image in enumerate(index):
            made = int(r.choice(self.usable))
            share = r.uniform(LEAST, 1)
            others = r.choice(self.near[made], size=OTHERS, replace=False)
            posterior[i, torch.from_numpy(others)] = torch.from_numpy(
                (1 - share) * r.dirichlet(np.full(OTHERS, CONCENTRATION))).float()
            posterior[i, made] += share
            if self.records[image]:
                kept[i] = True
                captions.append(self.written[image])
            elif self.with_requests:
                requests.append(dict(self.requested(made, self.colours[image], r) for _ in range(CAPTIONS)))
                captions.append(list(requests[-1]))
            else:
                captions.append([self.caption(made, self.colours[image], r) for _ in range(CAPTIONS)])
        names = self.classes.mean_embedding(posterior.to(self.classes.bias))
        noise = torch.from_numpy(r.standard_normal(names.shape)).to(names)
        names = F.normalize(names + NOISE * noise, dim=1)
        return (names.masked_fill(kept[:, None].to(names.device), torch.nan), captions,
                requests if self.with_requests else None)

    def caption(self, made: int, colours: list[str], r: np.random.Generator) -> str:
        """One caption of a made-up class in a picture of these colours."""
        names, basic, kind = self.levels[made]
        level = r.choice(3, p=LEVELS)
        first = own_name(names, r)
        noun = (first, basic, kind)[level]
        said = " and ".join(colours[:1 + (r.random() < BOTH)]) + " " if colours and r.random() < COLOURED else ""
        text = phrase(said + noun)
        return text[0].upper() + text[1:] + "."

    def requested(self, made: int, colours: list[str], r: np.random.Generator) -> tuple[str, Request]:
        """A caption of a made-up class in a picture of these colours, and the random request that it obeys."""
        names, basic, _ = self.levels[made]
        wanted = tuple(np.where(r.random(len(REQUESTED)) < REQUESTED, 1.0, -1.0).tolist())
        said = colours[:1 + (r.random() < BOTH)]
        return requested_caption(wanted, self.kinds[made], own_name(names, r), basic, said), wanted

    @cached_property
    def kinds(self) -> list[int]:
        """Which of picture_attributes.KINDS each class is of."""
        return class_kinds(self.clip)

    @cached_property
    def likeliest(self) -> list[int]:
        """The likeliest class of each image."""
        features = torch.from_numpy(np.array(class_features(self.clip, self.dataset, "colour"), dtype=np.float32))
        logits = F.linear(features.to(self.classes.weight), self.classes.weight, self.classes.bias)
        return logits.argmax(1).tolist()

    def obeying(self, image: int, wanted: Sequence[float]) -> str:
        """The caption of a picture that does what a request says, by its likeliest class and its colours."""
        made = self.likeliest[image]
        names, basic, _ = self.levels[made]
        return requested_caption(wanted, self.kinds[made], names[0], basic, self.colours[image])

    def validation_requests(self, index: Int[np.ndarray, "B"]) -> tuple[list[Request], list[tuple[bool, bool, bool]]]:
        """A request for each picture, and what `mentioned` finds in a caption that obeys: in turn to name the kind of
        thing that it shows, to do so by the thing's own name, or with colours, and to name only other kinds."""
        wanted = []
        for i in index:
            kind = KINDS[self.kinds[self.likeliest[i]]]
            turns = (kind,), (kind, "name"), (kind, "colour"), tuple(set(PICTURE_ATTRIBUTES) - {kind})
            wanted.append(request(turns[i % len(turns)]))
        return wanted, [mentioned(self.obeying(int(i), w)) for i, w in zip(index, wanted, strict=True)]

    mentioned = staticmethod(mentioned)


def own_name(names: tuple[str, ...], r: np.random.Generator) -> str:
    """Mostly the first of a class's names."""
    return names[0] if r.random() < FIRST else names[int(r.integers(len(names)))]


def with_names(patches: Float[Tensor, "B P Dv"], names: Float[Tensor, "B Dt"] | None) -> Float[Tensor, "B P Dv"]:
    """Patches whose image embedding has other names, where these are given."""
    if names is None:
        return patches
    width = names.shape[1]
    row = image_row(F.pad(names, (0, ATTRIBUTE_WIDTH)), patches.shape[2]).to(patches)[:, 0, :width]
    changed = patches.clone()
    changed[:, -1, :width] = torch.where(row.isnan(), patches[:, -1, :width], row)
    return changed
