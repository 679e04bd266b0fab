"""Captions of pictures that need no writer: names from made-up classes, colours from pixels.

An image embedding that lies in the text space lets a captioner learn names without images (CapDec, Nukrai et al. 2022;
DeCap, Li et al. 2023). Here a picture's name embedding is replaced by that of a made-up class posterior, and its
captions name the made-up class: at three levels (a tree frog, a frog, an animal), with or without the colours that its
pixels have. Patches stay the picture's own, so that the speaker learns to take names from the name embedding and
colours from the patches. Scenes keep their name embedding and their captions.

Leaves out the loss (warm_start.py).

Shapes: B images, n classes, F class-feature width, Dt text width, Dv patch width.
"""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dixit.common import DixitError, rng
from dixit.data.known import main_colours
from dixit.data.names import VAGUE, noun_of, phrase, things
from dixit.models.clip import Clip
from dixit.models.named import IMAGENET, name_row

CAPTIONS = 6  # made for each picture
NEIGHBOURS, OTHERS = 20, 10  # classes that are near the made-up one, and how many of them share its posterior
CONCENTRATION = 0.5  # of the Dirichlet distribution of their shares
LEAST = 0.15  # probability of the made-up class, at least
NOISE = 0.01  # standard deviation of what is added to the name embedding
COLOURED = 0.3  # fraction of captions that name colours
LEVELS = 0.55, 0.3, 0.15  # fractions of captions that name the class itself, its everyday word, its broad kind
FIRST = 0.7  # fraction of names of the class itself that are its first one


def class_levels(clip: Clip) -> list[tuple[tuple[str, ...], str, str]]:
    """Of each class of a CLIP that names things, its names, its everyday word and its broad kind. Where a kind is too
    vague to tell anything, it is the everyday word."""
    levels = [(t.names, t.basic, t.basic if t.kind in VAGUE or not t.kind else t.kind) for t in things()]
    return levels + [((label,), noun_of(label) or label, noun_of(label) or label) for label in clip.classes[IMAGENET:]]


class MadeCaptions:
    """Name embeddings and captions for the pictures of a data set, a pure function of the keys given to `draw`.

    Raises DixitError if the CLIP does not name things.
    """

    def __init__(self, clip: Clip, dataset: Dataset):
        if clip.named is None:
            raise DixitError(f"data.made_captions needs a CLIP that names things, and {clip.name} does not; set "
                             "clip.name to one that was trained with clip.names, e.g. lite0-pictures")
        self.classes, self.width = clip.named.classes, clip.named.num_features
        self.written, self.records = list(dataset["captions"]), list(dataset["record"])
        self.levels = class_levels(clip)
        further = [i for i, label in enumerate(clip.classes[IMAGENET:], IMAGENET)
                   if noun_of(label) and len(label.split()) <= 2 and label.replace(" ", "").isalpha()]
        self.usable = np.array([*range(IMAGENET), *further])
        rows = F.normalize(self.classes.weight, dim=1)
        self.near: Int[np.ndarray, "n m"] = (rows @ rows.T).fill_diagonal_(-1).topk(NEIGHBOURS).indices.cpu().numpy()
        self.colours = [[] if record else main_colours(Image.fromarray(np.asarray(row["image"])))
                        for row, record in zip(dataset, self.records, strict=True)]

    def draw(self, index: Int[np.ndarray, "B"], *key: int | str) -> tuple[Float[Tensor, "B Dv"], list[list[str]]]:
        """The name rows (NaN where an image keeps its own) and the captions of some images."""
        r = rng("made captions", *key)
        posterior = torch.zeros(len(index), len(self.classes.bias))
        captions: list[list[str]] = []
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
            else:
                captions.append([self.caption(made, self.colours[image], r) for _ in range(CAPTIONS)])
        names = self.classes.mean_embedding(posterior.to(self.classes.bias))
        noise = torch.from_numpy(r.standard_normal(names.shape)).to(names)
        rows = name_row(F.normalize(names + NOISE * noise, dim=1), self.width)[:, 0]
        return rows.masked_fill(kept[:, None].to(rows.device), torch.nan), captions

    def caption(self, made: int, colours: list[str], r: np.random.Generator) -> str:
        """One caption of a made-up class in a picture of these colours."""
        names, basic, kind = self.levels[made]
        level = r.choice(3, p=LEVELS)
        first = names[0] if r.random() < FIRST else names[int(r.integers(len(names)))]
        noun = (first, basic, kind)[level]
        said = " and ".join(colours) + " " if colours and r.random() < COLOURED else ""
        text = phrase(said + noun)
        return text[0].upper() + text[1:] + "."


def with_names(patches: Float[Tensor, "B P Dv"], rows: Float[Tensor, "B Dv"]) -> Float[Tensor, "B P Dv"]:
    """Patches with other name rows, where these are given."""
    rows = rows.to(patches)
    last = torch.where(rows.isnan(), patches[:, -1], rows)
    return torch.cat([patches[:, :-1], last[:, None]], dim=1)
