"""What the game did to abilities that it does not reward: the base and the trained speaker on held-out images.

written_loss    nats per token of the data set's own captions, teacher-forced: how well the speaker still models them
named           pictures: the share whose greedy caption gives the thing a true name (eval/picture_metrics.py), of those
                whose concept is a noun; a caption that names nothing counts against it, unlike in true_name

`..._over_base` is the trained speaker's figure minus the base speaker's, paired: same images, same captions. A rise of
written_loss is forgetting in part and a change of style in part: the written captions are of another style than those
that the listeners reward, and than those of made warm starts.

Shapes: n images.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn

from dixit.data.names import noun_of
from dixit.data.wordnet import wordnet
from dixit.models.features import patch_features
from dixit.training.runs import LoadedRun, patch_batch

from .evaluate import kept, speakers_of
from .metrics import mean_and_error
from .picture_metrics import names_truly


@torch.no_grad()
def written_loss(run: LoadedRun, module: nn.Module, dataset: Dataset) -> list[float]:
    """-log p per token of each image's first written caption with its end token, cut at speaker.max_tokens."""
    store, speaker, size = patch_features(run.eyes, dataset, "colour"), run.speaker, run.config.eval.batch
    texts = [row[0] for row in dataset["captions"]]
    losses: list[float] = []
    for start in range(0, len(texts), size):
        tokens, mask = speaker.encode(texts[start:start + size])
        prefix = module(patch_batch(store, np.arange(start, start + len(tokens)), speaker.device))
        losses += (-(speaker.logprobs(prefix, tokens, mask) * mask).sum(1) / mask.sum(1)).tolist()
    return losses


def named(texts: list[str], concepts: list[str]) -> Float[Tensor, "n"]:
    """1 where a caption names the concept truly, for each concept that is a noun."""
    return torch.tensor([float(bool(names_truly(text, concept))) for text, concept in zip(texts, concepts, strict=True)
                         if wordnet().senses(noun_of(concept) or concept)])


def spill_over(run: LoadedRun, dataset: Dataset, captions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """speaker -> figure, of the base and the trained speaker. The losses are cached as captions are, so that the base
    speaker's is computed once for all games that start from it."""
    found: dict[str, dict[str, Tensor]] = {}
    concepts = [] if any(dataset["record"]) else list(dataset["concept"])
    for name, module in speakers_of(run).items():
        loss = kept(run, module, dataset, "-written", partial(written_loss, run, module, dataset))
        found[name] = {"written_loss": torch.tensor(loss)}
        hits = named(captions[name]["texts"], concepts) if concepts else torch.empty(0)
        if len(hits):
            found[name]["named"] = hits
    rows = {name: {key: mean_and_error(values) for key, values in own.items()} for name, own in found.items()}
    if "base" in found:
        rows["trained"] |= {f"{key}_over_base": mean_and_error(values - found["base"][key])
                            for key, values in found["trained"].items()}
    return rows
