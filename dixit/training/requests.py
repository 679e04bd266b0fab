"""Requests: which attributes a caption is to name. Captions with their requests teach a speaker to obey them.

A request is a number for each attribute, above 0 where it is wanted. Attributes of scenes are their objects' (colour,
shape, ...), and each written caption of a scene obeys the request for what it names. A picture shows one thing, so its
attributes are which kinds of things are named at all (animals, food, others), whether by their own names or by
everyday words, and whether with their colours. The request for ("animal", "other") names animals and other things by
everyday words, and of food the colours only. Audiences that differ in what they know, in their words or in colours are
each served by a request. Of pictures the request is drawn first, and a made caption obeys it (made_captions.py).

Leaves out broad kinds ("an animal"), and requests for scenes and pictures in one training.

Shapes: B images, n classes of a CLIP, Dt text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from dixit.common import rng, sentence, words
from dixit.config import ATTRIBUTES, KnowledgeConfig, ListenerConfig
from dixit.data.known import COLOUR_NAMES
from dixit.data.names import is_basic, noun_of, phrase
from dixit.data.scenes import mentioned_attributes
from dixit.models.clip import Clip
from dixit.models.features import class_features
from dixit.models.listeners import known_classes
from dixit.training.made_captions import BOTH, CAPTIONS, MadeCaptions, WrittenCaptions

Request = tuple[float, ...]
Requests = list[dict[str, Request]]  # of each image, caption -> a request that it obeys
KINDS = ("animal", "food", "other")  # of things, by WordNet; other: neither
PICTURE_ATTRIBUTES = (*KINDS, "name", "colour")  # name: the thing's own name instead of the everyday word
REQUESTED = (0.7, 0.7, 0.7, 0.5, 0.4)  # fraction of the requests in training that want each attribute


def request(attributes: Sequence[str]) -> Request:
    """The request for these attributes of pictures and no others."""
    return tuple(1.0 if a in attributes else -1.0 for a in PICTURE_ATTRIBUTES)


def request_for(attribute: str) -> Request:
    """The request for one attribute. Own names are wanted of every kind of things, colours alone of none."""
    return request((*KINDS, "name") if attribute == "name" else (attribute,))


def requested_caption(wanted: Request, kind: str, name: str, word: str, colours: list[str]) -> str:
    """The caption that obeys a request, of a thing of a kind with a name of its own and an everyday word.

    Where things of this kind are not to be named, it names the colours only: "A red thing."
    """
    asked = {attribute for attribute, value in zip(PICTURE_ATTRIBUTES, wanted, strict=True) if value > 0}
    noun = "thing" if kind not in asked else name if "name" in asked else word
    return sentence(phrase(" and ".join(colours) + f" {noun}" if kind not in asked or "colour" in asked else noun))


def mentioned(caption: str) -> tuple[bool, bool, bool]:
    """Whether a caption names a thing, whether by a name that is no everyday word, and whether it names a colour."""
    noun = noun_of(caption)
    return bool(noun), bool(noun) and not is_basic(noun), not COLOUR_NAMES.isdisjoint(words(caption))


class RequestedScenes:
    """Written captions of scenes, each with the request for what it names."""

    def __init__(self, captions: WrittenCaptions):
        self.captions = captions

    def draw(self, index: Int[np.ndarray, "B"], *key: int | str) -> tuple[None, list[list[str]], Requests]:
        """No name embeddings, the captions of some images, and their requests."""
        _, captions = self.captions.draw(index, *key)
        return None, captions, [{text: mentioned_attributes(text) for text in own} for own in captions]

    def to_obey(self, index: Int[np.ndarray, "B"]) -> list[Request]:
        """A request for each image, to see whether a speaker obeys it: for one attribute, in turn."""
        return [tuple(1.0 if i % len(ATTRIBUTES) == a else -1.0 for a in range(len(ATTRIBUTES))) for i in index]

    def obeys(self, caption: str, image: int, wanted: Request) -> bool:
        """Whether a caption names what is wanted and nothing else."""
        return mentioned_attributes(caption) == wanted


class RequestedPictures:
    """Made captions of pictures that obey random requests, and what obeys a request by the classes that a CLIP sees."""

    def __init__(self, clip: Clip, dataset: Dataset, made: MadeCaptions):
        self.clip, self.dataset, self.made = clip, dataset, made
        animal, food = (known_classes(clip, ListenerConfig(kind, knows=KnowledgeConfig(eyes=kind)))
                        for kind in KINDS[:2])
        assert animal is not None and food is not None
        self.kinds = ["animal" if a else "food" if f else "other"  # of each class
                      for a, f in zip(animal.tolist(), food.tolist(), strict=True)]

    def draw(self, index: Int[np.ndarray, "B"],
             *key: int | str) -> tuple[Float[Tensor, "B Dt"], list[list[str]], Requests]:
        """The name embeddings, the captions of some images, and their requests."""
        r = rng("requested captions", *key)
        classes, posteriors = zip(*(self.made.made_up(r) for _ in index), strict=True)
        requests = [dict(self.requested(made, self.made.colours[image], r) for _ in range(CAPTIONS))
                    for image, made in zip(index, classes, strict=True)]
        return self.made.embed(torch.stack(posteriors), r), [self.made.fit(list(own)) for own in requests], requests

    def requested(self, made: int, colours: list[str], r: np.random.Generator) -> tuple[str, Request]:
        """The caption of a made-up class in a picture of these colours, and the random request that it obeys."""
        wanted = tuple(np.where(r.random(len(REQUESTED)) < REQUESTED, 1.0, -1.0).tolist())
        return self.caption(wanted, made, colours[:1 + (r.random() < BOTH)]), wanted

    def caption(self, wanted: Request, made: int, colours: list[str]) -> str:
        """The caption of a class and colours that obeys a request."""
        names, word, _ = self.made.levels[made]
        return requested_caption(wanted, self.kinds[made], names[0], word, colours)

    @cached_property
    def likeliest(self) -> list[int]:
        """The likeliest class of each picture."""
        classes = self.made.classes
        features = torch.from_numpy(np.array(class_features(self.clip, self.dataset, "colour"), dtype=np.float32))
        return classes.posterior(features.to(classes.weight)).argmax(1).tolist()

    def obeying(self, image: int, wanted: Request) -> str:
        """The caption of a picture's likeliest class that obeys a request."""
        return self.caption(wanted, self.likeliest[image], self.made.colours[image])

    def to_obey(self, index: Int[np.ndarray, "B"]) -> list[Request]:
        """A request for each picture, to see whether a speaker obeys it: in turn to name things of its kind, to do so
        by their own names, or with colours, and to name only things of other kinds."""
        kinds = [self.kinds[self.likeliest[i]] for i in index]
        return [request(((kind,), (kind, "name"), (kind, "colour"), [k for k in KINDS if k != kind])[i % 4])
                for i, kind in zip(index, kinds, strict=True)]

    def obeys(self, caption: str, image: int, wanted: Request) -> bool:
        """Whether a caption names what the obeying one does: a thing, by its own name or not, and colours or not."""
        return mentioned(caption) == mentioned(self.obeying(image, wanted))
