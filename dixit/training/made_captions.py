"""The captions of a warm start: written ones, or ones made of classes' names and of pixels' colours.

An image embedding that lies in the text space lets a captioner learn names without images (CapDec, Nukrai et al. 2022;
DeCap, Li et al. 2023). Here a picture's name embedding is replaced by that of a made-up class posterior, and its
captions name the made-up class: at three levels (a tree frog, a frog, an animal), with or without the colours that its
pixels have. Patches and the attributes of the image embedding stay the picture's own, so that the speaker learns to
take names from the name embedding and colours from the others. Scenes keep their name embedding and their captions.

Leaves out the losses (warm_start.py).

Shapes: B images, n classes, F class-feature width, Dt text width, Dv patch width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dixit.common import DixitError, rng, sentence
from dixit.data.known import COLOUR_NAMES, row_colours
from dixit.data.names import VAGUE, noun_of, phrase, thing_senses, things
from dixit.models.clip import Clip
from dixit.models.named import ATTRIBUTE_WIDTH, IMAGENET, image_rows

CAPTIONS = 6  # made for each picture
NEIGHBOURS, OTHERS = 20, 10  # classes that are near the made-up one, and how many of them share its posterior
CONCENTRATION = 0.5  # of the Dirichlet distribution of their shares
LEAST = 0.15  # probability of the made-up class, at least
NOISE = 0.01  # standard deviation of what is added to the name embedding
COLOURED, BOTH = 0.2, 0.25  # fraction of captions that name colours; of these, fraction that name two if there are two
NAMELESS = 0.05  # fraction of captions with colours that name nothing else: A red thing.
LEVELS = 0.55, 0.3, 0.15  # fractions of captions that name the class itself, its everyday word, its broad kind
DEFINED = 0.4  # fraction of longer captions that are definitions; the others are of these forms
FORMS = ("a photo of {}", "a drawing of {}", "this is {}", "{}, seen from the side", "there is {} in the middle",
         "{} without anything else", "{} that somebody took a picture of")
FIRST = 0.7  # fraction of names of the class itself that are its first one


def class_levels(clip: Clip) -> list[tuple[tuple[str, ...], str, str]]:
    """Of each class of a CLIP that names things, its names, its everyday word and its broad kind. Where a kind is too
    vague to tell anything, it is the everyday word."""
    levels = [(t.names, t.basic, t.basic if t.kind in VAGUE or not t.kind else t.kind) for t in things()]
    return levels + [((label,), noun_of(label) or label, noun_of(label) or label) for label in clip.classes[IMAGENET:]]


class WrittenCaptions:
    """The captions that a data set has, a list for each image."""

    def __init__(self, captions: list[list[str]]):
        self.written = captions

    def select(self, index: Sequence[int] | Int[np.ndarray, "n"]) -> WrittenCaptions:
        """The captions of some images."""
        return WrittenCaptions([self.written[i] for i in index])

    def documents(self) -> list[list[str]]:
        """Captions to count words in: those of each image."""
        return self.written

    def draw(self, index: Int[np.ndarray, "B"], *_: int | str) -> tuple[None, list[list[str]]]:
        """No name embeddings, and the captions of some images."""
        return None, [self.written[i] for i in index]


class MadeCaptions:
    """Name embeddings and captions for the pictures of a data set, a pure function of the keys given to `draw`.

    `fit` makes a list of captions from one, e.g. those that are short enough. A fraction `long` of the captions of
    ImageNet's classes are longer: a name in a phrase, or with its definition. Raises DixitError if the CLIP does
    not name things.
    """

    def __init__(self, clip: Clip, dataset: Dataset, fit: Callable[[list[str]], list[str]], long: float = 0.0):
        if clip.named is None:
            raise DixitError(f"data.made_captions needs a CLIP that names things, and {clip.name} does not; set "
                             "clip.name to one that was trained with clip.names, e.g. lite0-pictures")
        self.classes, self.long = clip.named.classes, long
        self.fit, self.records = fit, list(dataset["record"])
        self.written = [own if record else [] for own, record in zip(dataset["captions"], self.records, strict=True)]
        self.levels = class_levels(clip)
        further = [i for i, label in enumerate(clip.classes[IMAGENET:], IMAGENET) if label.replace(" ", "").isalpha()
                   and thing_senses(label)]
        self.usable = np.array([*range(IMAGENET), *further])
        rows = F.normalize(self.classes.weight, dim=1)
        self.near: Int[np.ndarray, "n m"] = (rows @ rows.T).fill_diagonal_(-1).topk(NEIGHBOURS).indices.cpu().numpy()
        self.colours = [[] if record else row_colours(row)
                        for row, record in zip(dataset, self.records, strict=True)]

    def documents(self) -> list[list[str]]:
        """Captions to count words in: each class's names at all levels, each colour, and the captions of scenes."""
        scenes = [own for own in self.written if own]
        named = [[*names, basic, kind] for names, basic, kind in (self.levels[i] for i in self.usable)]
        return scenes + named + [[colour] for colour in sorted(COLOUR_NAMES)]

    def draw(self, index: Int[np.ndarray, "B"], *key: int | str) -> tuple[Float[Tensor, "B Dt"], list[list[str]]]:
        """The name embeddings (NaN where an image keeps its own) and the captions of some images."""
        r = rng("made captions", *key)
        posterior = torch.zeros(len(index), len(self.classes.bias))
        captions: list[list[str]] = []
        kept = torch.zeros(len(index), dtype=torch.bool)
        for i, image in enumerate(index):
            made, posterior[i] = self.made_up(r)
            if self.records[image]:
                kept[i] = True
                captions.append(self.written[image])
            else:
                captions.append([self.caption(made, self.colours[image], r) for _ in range(CAPTIONS)])
        names = self.embed(posterior, r)
        return names.masked_fill(kept[:, None].to(names.device), torch.nan), [self.fit(own) for own in captions]

    def made_up(self, r: np.random.Generator) -> tuple[int, Float[Tensor, "n"]]:
        """A class, and a distribution over it and classes that are near it."""
        made, posterior = int(r.choice(self.usable)), torch.zeros(len(self.classes.bias))
        share = r.uniform(LEAST, 1)
        others = r.choice(self.near[made], size=OTHERS, replace=False)
        posterior[torch.from_numpy(others)] = torch.from_numpy(
            (1 - share) * r.dirichlet(np.full(OTHERS, CONCENTRATION))).float()
        posterior[made] += share
        return made, posterior

    def embed(self, posterior: Float[Tensor, "B n"], r: np.random.Generator) -> Float[Tensor, "B Dt"]:
        """Name embeddings of distributions over classes, with noise."""
        names = self.classes.mean_embedding(posterior.to(self.classes.bias))
        noise = torch.from_numpy(r.standard_normal(names.shape)).to(names)
        return F.normalize(names + NOISE * noise, dim=1)

    def caption(self, made: int, colours: list[str], r: np.random.Generator) -> str:
        """One caption of a made-up class in a picture of these colours."""
        names, basic, kind = self.levels[made]
        if self.long and made < IMAGENET and r.random() < self.long:
            own = phrase(names[int(r.integers(len(names)))])
            form = FORMS[int(r.integers(len(FORMS)))]
            return f"{own}: {things()[made].definition}" if r.random() < DEFINED else form.format(own)
        level = r.choice(3, p=LEVELS)
        first = names[0] if r.random() < FIRST else names[int(r.integers(len(names)))]
        noun = (first, basic, kind)[level]
        said = ""
        if colours and r.random() < COLOURED:
            said = " and ".join(colours[:1 + (r.random() < BOTH)]) + " "
            noun = "thing" if r.random() < NAMELESS else noun
        return sentence(phrase(said + noun))


def with_names(patches: Float[Tensor, "B P Dv"], names: Float[Tensor, "B Dt"] | None) -> Float[Tensor, "B P Dv"]:
    """Patches whose image embedding has other names, where these are given."""
    if names is None:
        return patches
    rows = image_rows(F.pad(names.to(patches), (0, ATTRIBUTE_WIDTH), value=torch.nan), patches.shape[2])
    own = patches[:, -rows.shape[1]:]
    return torch.cat([patches[:, :-rows.shape[1]], torch.where(rows.isnan(), own, rows)], dim=1)
