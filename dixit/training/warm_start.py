"""What comes before the game: a CLIP's heads (and its tower "cnn"), and the speaker's two supervised warm starts.

Everything frozen is read from caches. Leaves out the loop (train.py).

Shapes: B images, N captions per image, S = B*N, K prefix tokens, W words, E embedding width.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dixit.common import rng, words
from dixit.config import ATTRIBUTES, Config
from dixit.data import scenes
from dixit.data.images import load, pixels
from dixit.data.scenes import WORD_CLASSES
from dixit.models.clip import build_locked
from dixit.models.features import patch_features, prefetch, text_features, to_feature_maps
from dixit.models.towers import FinePatches
from dixit.training import game
from dixit.training.loop import Task, local_slice, share_bounds
from dixit.training.runs import patch_batch, speaker_and_patches

Reader = Callable[[np.ndarray], Tensor]  # rows of a dataset -> (B, c, h, w)


class ClipHeads(nn.Module):
    """The trained parts of a CLIP built here: pooling and projection heads, the logit scale, and a trunk that is not
    locked. Where the trunk is locked, images are its maps (B, Dv, h, w).
    """

    def __init__(self, model: Any, locked: bool):
        super().__init__()
        self.image, self.text, self.scale = model.visual.head, model.text.proj, model.logit_scale
        self.trunk = nn.Identity() if locked else model.visual.trunk
        self.requires_grad_(True)

    def forward(self, images: Float[Tensor, "B c h w"], texts: Float[Tensor, "B Dt"]) -> tuple[Tensor, ...]:
        image = self.image(self.trunk(images))
        return F.normalize(image, dim=-1), F.normalize(self.text(texts), dim=-1), self.scale.exp()


class ClipTask(Task):
    """Locked-image tuning with the symmetric CLIP loss (Radford et al. 2021), on cached tower features; a trunk that is
    not locked is trained along, from pixels.

    Each step takes one dataset through one perception, by turns, so that distractors are of the same kind.
    """

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.clip = build_locked(config.clip.name, config.clip.width, accelerator.device, config.seed)
        self.locked = isinstance(self.clip.model.visual.trunk, FinePatches)
        self.trained: nn.Module = ClipHeads(self.clip.model, self.locked)
        self.sets: list[tuple[Reader, list[list[int]]]] = []
        self.held: list[tuple[Reader, list[int], str]] = []
        texts: dict[str, int] = {}
        for data in (config.data, *config.extra_data):
            train_set, held_set = load(data, "train", training=True), load(data, "validation")
            rows = [[texts.setdefault(t, len(texts)) for t in row[:4]] for row in train_set["captions"]]
            held = [texts.setdefault(row[0], len(texts)) for row in held_set["captions"]]
            for perception in config.clip.perceptions:
                self.sets.append((self.reader(train_set, perception), rows))
                self.held.append((self.reader(held_set, perception), held, f"{data.name}_{perception}"))
        self.texts = text_features(self.clip, list(texts))

    def reader(self, dataset: Dataset, perception: str) -> Reader:
        """Gives rows of a dataset as the trained part takes them: cached maps, or pixels for a trunk not locked."""
        if not self.locked:
            return lambda rows: self.clip.preprocess(pixels(dataset, rows.tolist()), perception)
        patches = patch_features(self.clip, dataset, perception)
        return lambda rows: to_feature_maps(patches[rows]).to(self.accelerator.device)

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        seed, batch, parts = self.config.seed, self.config.train.batch, self.config.train.accumulate
        read, rows = self.sets[step % len(self.sets)]
        index = game.batch_indices(seed, step, batch, len(rows))
        choice = rng("caption", seed, step).random(len(index))
        text = [rows[i][int(c * len(rows[i]))] for i, c in zip(index, choice, strict=True)]
        mine = local_slice(batch, parts, part, self.accelerator)
        image, heard, scale = self.trained(read(index[mine]), self.texts[text[mine]])
        # Other processes' embeddings are candidates too; each process takes the loss of its own rows.
        places = share_bounds(batch, parts, part, self.accelerator.num_processes)
        images, all_heard = (_gather_with_gradients(x, places) for x in (image, heard))
        target = torch.arange(len(image), device=image.device) + mine.start - places[0]
        loss = (F.cross_entropy(scale * image @ all_heard.T, target)
                + F.cross_entropy(scale * heard @ images.T, target)) / 2
        return loss, {"scale": float(scale.detach())}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Recall at 1 among 10 of validation captions, per dataset and perception."""
        figures = {}
        for read, text, name in self.held:
            parts = [np.arange(len(text))[i:i + 256] for i in range(0, len(text), 256)]
            image = torch.cat([self.trained(read(rows), self.texts[text[rows[0]:rows[-1] + 1]])[0] for rows in parts])
            heard = F.normalize(self.clip.model.text.proj(self.texts[text]), dim=-1)
            everyone = np.arange(len(text))
            pools = game.draw_candidates(everyone, everyone, 10, "observe")
            logits = torch.einsum("se,sce->sc", heard, image[pools])
            figures[f"r1_of_10/{name}"] = float(game.hits(logits[None]).mean())
        return figures


def _gather_with_gradients(x: Float[Tensor, "b E"], places: list[int]) -> Float[Tensor, "B E"]:
    """All processes' rows in order, with gradients to every one (as open_clip's gather_with_grad).

    `places` says where the batch is cut; shorter shares are padded on the way.
    """
    counts = [stop - start for start, stop in zip(places, places[1:], strict=False)]
    if len(counts) == 1:
        return x
    from torch.distributed.nn.functional import all_gather
    padded = all_gather(F.pad(x, (0, 0, 0, max(counts) - len(x))))
    return torch.cat([rows[:count] for rows, count in zip(padded, counts, strict=True)])


class WordTask(Task):
    """First warm start, without running the LLM: prefix vectors learn to lie near the embeddings of the words that
    captions of the image use.

    Each prefix vector gives a softmax p_k over the captions' tokens by its inner products with their frozen
    embeddings. The loss is -sum_w q_w log(1 - prod_k (1 - p_kw)): each word of the image wants one vector of its
    own. q is inverse document frequency, normalised. It teaches the adapter to see, and to write what the LLM can
    read, at a fraction of the price of the LLM's gradients.
    """

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.data, self.held = load(config.data, "train", training=True), load(config.data, "validation")
        self.speaker, self.store, self.validation_store = speaker_and_patches(config, self.data, self.held,
                                                                        accelerator.device)
        self.trained = self.speaker.trained
        bags = [set(self.tokens(row)) for row in self.data["captions"]]
        counts = Counter(token for bag in bags for token in bag)
        self.column = {token: i for i, token in enumerate(sorted(counts))}
        embedding = self.speaker.llm.get_input_embeddings().weight
        self.words = embedding[sorted(counts)].detach()  # (W, D)
        self.weight = torch.tensor([math.log(len(bags) / counts[t]) for t in sorted(counts)])
        self.targets, self.validation_targets = self.target(bags), self.target(
            [set(self.tokens(row)) for row in self.held["captions"]])

    def tokens(self, captions: list[str]) -> list[int]:
        return [token for ids in self.speaker.tokenizer(captions, add_special_tokens=False)["input_ids"]
                for token in ids]

    def target(self, bags: list[set[int]]) -> Float[Tensor, "n W"]:
        """A distribution over the words of each image: inverse document frequency, normalised."""
        rows = torch.zeros(len(bags), len(self.column))
        for i, bag in enumerate(bags):
            known = [self.column[token] for token in bag if token in self.column]
            rows[i, known] = self.weight[known]
        return rows / rows.sum(1, keepdim=True).clamp(min=1e-6)

    def _loss(self, store: Any, targets: Tensor, index: np.ndarray) -> Float[Tensor, "B"]:
        prefix = self.trained(patch_batch(store, index, self.speaker.device))  # (B, K, D)
        p = (prefix.float() @ self.words.T).softmax(-1)  # (B, K, W)
        some = 1 - (1 - p.clamp(max=1 - 1e-6)).log().sum(1).exp()  # (B, W): at least one vector says it
        return -(targets[index].to(some.device) * some.clamp(min=1e-6).log()).sum(1)

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        settings = self.config.train
        index = game.batch_indices(self.config.seed, step, settings.batch, len(self.data))
        if part == 0:
            prefetch(self.store, game.batch_indices(self.config.seed, step + 1, settings.batch, len(self.data)))
        mine = local_slice(settings.batch, settings.accumulate, part, self.accelerator)
        return self._loss(self.store, self.targets, index[mine]).mean(), {}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Validation cross-entropy."""
        index = np.arange(min(256, len(self.held)))
        return {"loss": float(self._loss(self.validation_store, self.validation_targets, index).mean())}


UNTOLD = 0.25  # share of the captions whose topics are not told


class CaptionTask(Task):
    """Supervised warm start: next-token loss on captions. No caption is used after this stage.

    With `speaker.audience_width` the adapter is told which attributes a caption names, so that it learns to name what it is
    asked for; a share of the captions it is told nothing of.
    """

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.data, self.held = load(config.data, "train", training=True), load(config.data, "validation")
        self.speaker, self.store, self.validation_store = speaker_and_patches(config, self.data, self.held,
                                                                        accelerator.device)
        self.captions = [self.fitting(row) for row in self.data["captions"]]
        self.validation_captions = [self.fitting(row) for row in self.held["captions"]]
        self.trained = self.speaker.trained

    def fitting(self, captions: list[str]) -> list[str]:
        """The captions that fit into `speaker.max_tokens` with their end token; else the shortest one, cut."""
        most = self.config.speaker.max_tokens - 1
        lengths = [len(ids) for ids in self.speaker.tokenizer(captions, add_special_tokens=False)["input_ids"]]
        fit = [text for text, length in zip(captions, lengths, strict=True) if length <= most]
        return fit or [captions[lengths.index(min(lengths))]]

    def _loss(self, store: Any, captions: list[list[str]], index: np.ndarray, choice: np.ndarray,
              told: np.ndarray | None = None) -> Tensor:
        """Nats of each caption, for the images `index` (B,), draws `choice` (B, N) in [0, 1), and whether the speaker
        is `told` (B, N) the caption's topics."""
        texts = [captions[i][int(c * len(captions[i]))] for i, row in zip(index, choice, strict=True) for c in row]
        patches = patch_batch(store, index, self.speaker.device)
        if told is None:
            prefix = self.trained(patches)
        else:
            topics = torch.tensor([scenes.named(text) for text in texts]) * torch.from_numpy(told.reshape(-1, 1))
            prefix = self.trained(patches.repeat_interleave(choice.shape[1], 0), topics=topics.to(patches))
        tokens, mask = self.speaker.encode(texts)
        return -self.speaker.logprobs(prefix, tokens, mask).sum(1)

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        seed, settings = self.config.seed, self.config.train
        index = game.batch_indices(seed, step, settings.batch, len(self.data))
        if part == 0:
            prefetch(self.store, game.batch_indices(seed, step + 1, settings.batch, len(self.data)))
        choice = rng("caption", seed, step).random((len(index), self.config.policy.samples))
        mine = local_slice(settings.batch, settings.accumulate, part, self.accelerator)
        told = rng("told", seed, step).random(choice.shape) >= UNTOLD if self.config.speaker.audience_width else None
        return self._loss(self.store, self.captions, index[mine], choice[mine],
                          None if told is None else told[mine]).mean(), {}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Validation loss (nats per caption), how many words of each class greedy captions get right, and, with topics,
        how many of them name what alone was asked for and nothing else."""
        index = np.arange(min(128, len(self.held)))
        loss = self._loss(self.validation_store, self.validation_captions, index, np.zeros((len(index), 1)))
        said = [row[0] for row in self.speaker.caption(patch_batch(self.validation_store, index, self.speaker.device))]
        figures = {"loss": float(loss.mean())}
        for name, recall in word_recall(said, self.held["record"][: len(said)]).items():
            figures[f"recall/{name}"] = recall
        if self.config.speaker.audience_width:
            asked = 2 * torch.eye(len(ATTRIBUTES))[index % len(ATTRIBUTES)] - 1
            patches = patch_batch(self.validation_store, index, self.speaker.device)
            prefix = self.accelerator.unwrap_model(self.trained)(patches, topics=asked.to(patches))
            told = self.speaker.decode(*self.speaker.sample(prefix)[:2])
            right = (torch.tensor([scenes.named(text) for text in told]) == asked).all(1).float()
            figures["obeys"] = float(right.mean())
        return figures


def word_recall(texts: list[str], records: list[str]) -> dict[str, float]:
    """The share of each attribute's words in scene captions that are true of the scene (nothing elsewhere)."""
    right: dict[str, list[float]] = {"colour": [], "shape": []}
    for text, record in zip(texts, records, strict=True):
        if record:
            objects = json.loads(record)["objects"]
            for name, hit in right.items():
                true = {item[name] for item in objects}
                hit += [float(w in true) for w in words(text) if w in WORD_CLASSES[name]]
    return {name: sum(hit) / len(hit) for name, hit in right.items() if hit}
