"""Supervised trainings before the game: a CLIP's heads (and its tower "cnn"), and the speaker's two warm starts.

Features of frozen models are read from caches. Leaves out the loop (loop.py).

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

from dixit.common import DixitError, rng, words
from dixit.config import Config
from dixit.config_perception import Perception, perception_label
from dixit.data.images import load, pixels
from dixit.data.scenes import WORD_CLASSES, oracle_caption
from dixit.models.clip import Clip, build_locked
from dixit.models.features import (
    class_features,
    grid_features,
    patch_features,
    prefetch,
    text_features,
    to_feature_maps,
    tower_texts,
)
from dixit.models.named import joined
from dixit.models.towers import SmallCnn
from dixit.training import game
from dixit.training.candidates import draw_candidates
from dixit.training.class_rows import train_rows
from dixit.training.loop import Task, local_slice, share_bounds
from dixit.training.made_captions import MadeCaptions, WrittenCaptions, with_names
from dixit.training.requests import RequestedPictures, RequestedScenes
from dixit.training.runs import SpeakerAndImages, patch_batch, speaker_and_images

CANDIDATES = 10  # of a CLIP's validation
LONG = 0.5  # fraction of a CLIP's made captions that are longer: its heads learn that names weigh most in most texts
Reader = Callable[[np.ndarray], Any]  # indices of images -> what ClipHeads takes


class ClipHeads(nn.Module):
    """The trained parts of a CLIP: pooling and projection heads, the logit scale, and the trunk unless it is locked.

    With a locked trunk, `images` are its feature maps (B, Dv, h, w); of a NamedTower, name embeddings and feature maps.
    """

    def __init__(self, clip: Clip):
        super().__init__()
        model, self.is_named = clip.model, clip.named is not None
        self.image = clip.named.attributes if clip.named else model.visual.head
        self.text, self.scale = model.text.proj, model.logit_scale
        self.trunk = model.visual.trunk if isinstance(model.visual.trunk, SmallCnn) else nn.Identity()
        self.requires_grad_(True)

    def forward(self, images: Any, texts: Float[Tensor, "B Dt"]) -> tuple[Tensor, ...]:
        if self.is_named:
            names, maps = images
            image = joined(names, self.image(maps))
        else:
            image = self.image(self.trunk(images))
        return F.normalize(image, dim=-1), F.normalize(self.text(texts), dim=-1), self.scale.exp()


class ClipTask(Task):
    """Locked-image tuning with the symmetric CLIP loss (Radford et al. 2021), on cached tower features; a trunk that is
    not locked is trained along, from pixels.

    Steps alternate between datasets and perceptions, so that all candidates of a step are of the same kind. A
    NamedTower first gets a class for each concept of the images.
    """

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.clip = build_locked(config.clip.name, config.clip.width, accelerator.device, config.seed,
                                 config.clip.names)
        sources = (config.data, *config.extra_data)
        train_sets = [load(data, "train", training=True) for data in sources]
        if self.clip.named:
            self.add_classes(train_sets)
        self.trained: nn.Module = ClipHeads(self.clip)
        self.sets: list[tuple[Reader, MadeCaptions | WrittenCaptions]] = []
        self.validation: list[tuple[Reader, list[str], str]] = []
        for data, train_set in zip(sources, train_sets, strict=True):
            validation_set = load(data, "validation")
            captions = MadeCaptions(self.clip, train_set, list, LONG) if self.clip.named else WrittenCaptions(
                [row[:4] for row in train_set["captions"]])
            first = [row[0] for row in validation_set["captions"]]
            for perception in config.clip.perceptions:
                self.sets.append((self.reader(train_set, perception), captions))
                name = f"{data.name}_{perception_label(perception)}"
                self.validation.append((self.reader(validation_set, perception), first, name))
            if len(validation_set) < CANDIDATES:
                raise DixitError(f"data.validation of {data.name} has {len(validation_set)} images; a CLIP's "
                                 f"validation needs at least {CANDIDATES}, from which it tells a caption's image")
        known = [text for _, captions in self.sets for row in captions.written for text in row[:4]]
        texts = [*dict.fromkeys([*known, *(text for _, first, _ in self.validation for text in first)])]
        self.texts = dict(zip(texts, text_features(self.clip, texts), strict=True))

    def features(self, texts: list[str]) -> Float[Tensor, "S Dt"]:
        """The text tower's features of texts. Those of made captions are not kept, so that a resumed run encodes the
        same batches as the uninterrupted one."""
        new = sorted({text for text in texts if text not in self.texts})
        made = dict(zip(new, tower_texts(self.clip, new), strict=True)) if new else {}
        return torch.stack([made[text] if text in made else self.texts[text] for text in texts])

    def add_classes(self, train_sets: list[Dataset]) -> None:
        """Give the NamedTower a class for each concept of the training images."""
        named = self.clip.named
        assert named is not None
        with_concepts = [images for images in train_sets if all(images["concept"])]
        concepts = sorted({concept for images in with_concepts for concept in images["concept"]})
        if concepts:
            features = torch.cat([torch.from_numpy(class_features(self.clip, images, "colour").astype(np.float32))
                                  for images in with_concepts]).to(self.clip.device)
            place = {concept: i for i, concept in enumerate(concepts)}
            labels = torch.tensor([place[concept] for images in with_concepts for concept in images["concept"]])
            rows = train_rows(features, labels.to(self.clip.device), named.classes.weight, named.classes.bias,
                              self.config.seed)
            named.classes.add(*rows, self.clip.embed_names(concepts))
            self.clip.classes += tuple(concepts)

    def reader(self, dataset: Dataset, perception: Perception) -> Reader:
        """Reads images as the trained part takes them: cached feature maps (of a NamedTower also name embeddings), or
        pixels for a trunk that is trained."""
        device, named = self.accelerator.device, self.clip.named
        if named:
            grid = grid_features(self.clip, dataset, perception)
            with torch.no_grad():
                features = torch.from_numpy(class_features(self.clip, dataset, perception).astype(np.float32))
                names = torch.cat([named.classes(part.to(device)) for part in features.split(256)])
            return lambda index: (names[torch.from_numpy(index).to(device)], to_feature_maps(grid[index]).to(device))
        if isinstance(self.clip.model.visual.trunk, SmallCnn):
            return lambda index: self.clip.preprocess(pixels(dataset, index.tolist()), perception)
        patches = patch_features(self.clip, dataset, perception)
        return lambda index: to_feature_maps(patches[index]).to(device)

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        seed, batch, accumulate = self.config.seed, self.config.train.batch, self.config.train.accumulate
        read, captions = self.sets[step % len(self.sets)]
        index = game.batch_indices(seed, step, batch, len(captions.written))
        choice = rng("caption", seed, step).random(len(index))
        names, own = captions.draw(index, seed, step)
        texts = [row[int(c * min(len(row), 4))] for row, c in zip(own, choice, strict=True)]
        mine = local_slice(batch, accumulate, micro_batch, self.accelerator)
        seen = read(index[mine])
        if names is not None:
            seen = torch.where(names[mine].isnan(), seen[0], names[mine]), seen[1]
        image, caption, scale = self.trained(seen, self.features(texts[mine]))
        # Embeddings of other processes are candidates too; each process computes the loss of its own images.
        bounds = share_bounds(batch, accumulate, micro_batch, self.accelerator.num_processes)
        images, captions_of_all = (_gather_with_gradients(x, bounds) for x in (image, caption))
        target = torch.arange(len(image), device=image.device) + mine.start - bounds[0]
        loss = (F.cross_entropy(scale * image @ captions_of_all.T, target)
                + F.cross_entropy(scale * caption @ images.T, target)) / 2
        return loss, {"scale": float(scale.detach())}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Recall at 1 among 10 of validation captions, per dataset and perception."""
        figures = {}
        for read, text, name in self.validation:
            parts = [np.arange(len(text))[i:i + 256] for i in range(0, len(text), 256)]
            features = self.features(text)
            image = torch.cat([self.trained(read(part), features[part[0]:part[-1] + 1])[0] for part in parts])
            caption = F.normalize(self.clip.model.text.proj(features), dim=-1)
            everyone = np.arange(len(text))
            pools = draw_candidates(everyone, everyone, CANDIDATES, "observe")
            logits = torch.einsum("se,sce->sc", caption, image[pools])
            figures[f"r1_of_10/{name}"] = float(game.hits(logits[None]).mean())
        return figures


def _gather_with_gradients(x: Float[Tensor, "b E"], bounds: list[int]) -> Float[Tensor, "B E"]:
    """The embeddings of all processes in order, with gradients to every process (as open_clip's gather_with_grad).

    `bounds` are those of the processes' shares; shorter shares are padded in transit.
    """
    counts = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
    if len(counts) == 1:
        return x
    from torch.distributed.nn.functional import all_gather
    padded = all_gather(F.pad(x, (0, 0, 0, max(counts) - len(x))))
    return torch.cat([rows[:count] for rows, count in zip(padded, counts, strict=True)])


def word_loss(logits: Float[Tensor, "B K W"], target: Float[Tensor, "B W"]) -> Float[Tensor, "B"]:
    """-sum_w target_w log(1 - prod_k (1 - p_kw)) with p = softmax(logits), in float32 whatever the logits are in (in
    bfloat16 a word with p = 0.999 would have a gradient of 0/0)."""
    p = logits.softmax(-1, dtype=torch.float32)
    # at least one vector has the word; exact for small p, so that rare words are learned too
    some = -torch.expm1(torch.log1p(-p.clamp(max=1 - 1e-6)).sum(1))
    return -(target * some.clamp(min=1e-30).log()).sum(1)


class WordTask(Task):
    """First warm start, without running the LLM: prefix vectors learn to lie near the embeddings of the words that
    captions of the image use.

    Each prefix vector gives a softmax p_k over the captions' tokens by its inner products with their frozen
    embeddings. The loss is -sum_w q_w log(1 - prod_k (1 - p_kw)): each word of the image needs one vector of its own.
    q is inverse document frequency, normalised. The adapter learns what is in an image, and to express it in the LLM's
    embedding space, at a fraction of the cost of gradients through the LLM.
    """

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        start = speaker_and_images(config, accelerator.device)
        self.speaker, self.data, self.validation = start.speaker, start.data, start.validation
        self.store, self.validation_store = start.store, start.validation_store
        self.trained = self.speaker.trained
        self.captions, self.validation_captions = caption_sources(config, start, list)
        bags = [set(self.tokens(captions)) for captions in self.captions.documents()]
        counts = Counter(token for bag in bags for token in bag)
        self.column = {token: i for i, token in enumerate(sorted(counts))}
        self.columns: dict[str, list[int]] = {}  # of each caption's tokens
        embedding = self.speaker.llm.get_input_embeddings().weight
        self.words = embedding[sorted(counts)].detach().float()  # (W, D)
        self.weight = torch.tensor([math.log(len(bags) / counts[t]) for t in sorted(counts)])

    def tokens(self, captions: list[str]) -> list[int]:
        return [token for ids in self.speaker.tokenizer(captions, add_special_tokens=False)["input_ids"]
                for token in ids]

    def target(self, captions: list[list[str]]) -> Float[Tensor, "B W"]:
        """A distribution over the words of each image: inverse document frequency, normalised."""
        rows = torch.zeros(len(captions), len(self.column))
        for i, own in enumerate(captions):
            for text in own:
                if text not in self.columns:
                    self.columns[text] = [self.column[t] for t in self.tokens([text]) if t in self.column]
                rows[i, self.columns[text]] = self.weight[self.columns[text]]
        return rows / rows.sum(1, keepdim=True).clamp(min=1e-6)

    def _loss(self, patches: Float[Tensor, "B P Dv"], captions: list[list[str]]) -> Float[Tensor, "B"]:
        target = self.target(captions).to(patches.device)
        return word_loss(self.trained(patches).float() @ self.words.T, target)

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        seed, settings = self.config.seed, self.config.train
        index = game.batch_indices(seed, step, settings.batch, len(self.data))
        if micro_batch == 0:
            prefetch(self.store, game.batch_indices(seed, step + 1, settings.batch, len(self.data)))
        mine = local_slice(settings.batch, settings.accumulate, micro_batch, self.accelerator)
        names, captions = self.captions.draw(index, seed, step)
        patches = patch_batch(self.store, index[mine], self.speaker.device)
        return self._loss(with_names(patches, None if names is None else names[mine]), captions[mine]).mean(), {}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Validation cross-entropy."""
        index = np.arange(min(256, len(self.validation)))
        names, captions = self.validation_captions.draw(index, "validation")
        patches = patch_batch(self.validation_store, index, self.speaker.device)
        return {"loss": float(self._loss(with_names(patches, names), captions).mean())}


def caption_sources(config: Config, start: SpeakerAndImages,
                    fit: Callable[[list[str]], list[str]]) -> tuple[Any, Any]:
    """Captions of the training and of the validation images, MadeCaptions if the config asks for them, else
    WrittenCaptions, which name just `data.attributes` if there are any; `fit` makes a list of captions from each
    image's."""
    def source(images: Dataset) -> MadeCaptions | WrittenCaptions:
        if config.data.made_captions:
            assert isinstance(start.eyes, Clip)
            return MadeCaptions(start.eyes, images, fit)
        if config.data.attributes:
            named = frozenset(config.data.attributes)
            return WrittenCaptions([fit([oracle_caption(json.loads(record), named)]) for record in images["record"]])
        return WrittenCaptions([fit(row) for row in images["captions"]])

    return source(start.data), source(start.validation)


def chosen(captions: list[list[str]], choice: np.ndarray) -> list[list[str]]:
    """N of each image's captions, by draws (B, N) in [0, 1)."""
    return [[own[int(c * len(own))] for c in row] for own, row in zip(captions, choice, strict=True)]


UNCONDITIONAL = 0.25  # fraction of captions without requested attributes


class CaptionTask(Task):
    """Supervised warm start: next-token loss on captions. No caption is used after this stage.

    With `speaker.audience_width` the adapter gets the request that a caption obeys as an input, so that it learns to
    name requested attributes (requests.py); a fraction of the captions is trained without that input.
    """

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        start = speaker_and_images(config, accelerator.device)
        self.speaker, self.data, self.validation = start.speaker, start.data, start.validation
        self.store, self.validation_store = start.store, start.validation_store
        self.captions, self.validation_captions = caption_sources(config, start, self.that_fit)
        self.requested: tuple[Any, Any] | None = None  # of the training and of the validation images
        if config.speaker.audience_width and config.data.made_captions:
            assert isinstance(start.eyes, Clip)
            self.requested = (RequestedPictures(start.eyes, start.data, self.captions),
                              RequestedPictures(start.eyes, start.validation, self.validation_captions))
        elif config.speaker.audience_width:
            self.requested = RequestedScenes(self.captions), RequestedScenes(self.validation_captions)
        self.trained = self.speaker.trained

    def that_fit(self, captions: list[str]) -> list[str]:
        """The captions that fit into `speaker.max_tokens` with their end token; else the shortest one, cut."""
        most = self.config.speaker.max_tokens - 1
        lengths = [len(ids) for ids in self.speaker.tokenizer(captions, add_special_tokens=False)["input_ids"]]
        fit = [text for text, length in zip(captions, lengths, strict=True) if length <= most]
        return fit or [captions[lengths.index(min(lengths))]]

    def _loss(self, patches: Float[Tensor, "B P Dv"], captions: list[list[str]], choice: np.ndarray,
              requests: Float[Tensor, "B N a"] | None = None) -> Tensor:
        """Nats of each caption, for the captions of B images, draws `choice` (B, N) in [0, 1), and the requests that
        the adapter gets with them."""
        texts = [text for own in chosen(captions, choice) for text in own]
        if requests is None:
            prefix = self.trained(patches)
        else:
            signs = requests.flatten(0, 1).to(patches)
            prefix = self.trained(patches.repeat_interleave(choice.shape[1], 0), attributes=signs)
        tokens, mask = self.speaker.encode(texts)
        return -self.speaker.logprobs(prefix, tokens, mask).sum(1)

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        seed, settings = self.config.seed, self.config.train
        index = game.batch_indices(seed, step, settings.batch, len(self.data))
        if micro_batch == 0:
            prefetch(self.store, game.batch_indices(seed, step + 1, settings.batch, len(self.data)))
        choice = rng("caption", seed, step).random((len(index), self.config.policy.samples))
        mine = local_slice(settings.batch, settings.accumulate, micro_batch, self.accelerator)
        requests = None
        if self.requested is None:
            names, captions = self.captions.draw(index, seed, step)
        else:
            names, captions, wanted = self.requested[0].draw(index, seed, step)
            requests = torch.tensor([[own[text] for text in texts]
                                     for own, texts in zip(wanted, chosen(captions, choice), strict=True)])
            conditioned = rng("told", seed, step).random(choice.shape) >= UNCONDITIONAL
            requests = requests * torch.from_numpy(conditioned)[..., None]
        patches = with_names(patch_batch(self.store, index[mine], self.speaker.device),
                             None if names is None else names[mine])
        return self._loss(patches, captions[mine], choice[mine],
                          None if requests is None else requests[mine]).mean(), {}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Validation loss (nats per caption), the precision of greedy captions' words for each word class, and, with an
        audience input, the fraction of captions that name what is requested and nothing else."""
        index = np.arange(min(128, len(self.validation)))
        patches = patch_batch(self.validation_store, index, self.speaker.device)
        source = self.validation_captions if self.requested is None else self.requested[1]
        names, captions, *_ = source.draw(index, "validation")
        loss = self._loss(with_names(patches, names), captions, np.zeros((len(index), 1)))
        texts = [row[0] for row in self.speaker.caption(patches)]
        figures = {"loss": float(loss.mean())}
        for name, recall in word_recall(texts, self.validation["record"][: len(texts)]).items():
            figures[f"recall/{name}"] = recall
        if self.requested is not None:
            wanted = source.to_obey(index)
            prefix = self.accelerator.unwrap_model(self.trained)(patches, attributes=torch.tensor(wanted).to(patches))
            texts = self.speaker.decode(*self.speaker.sample(prefix)[:2])
            right = [source.obeys(text, int(i), one) for text, i, one in zip(texts, index, wanted, strict=True)]
            figures["obeys"] = float(torch.tensor(right).float().mean())
        return figures


def word_recall(texts: list[str], records: list[str]) -> dict[str, float]:
    """The fraction of each attribute's words in scene captions that are true of the scene; empty for other images."""
    right: dict[str, list[float]] = {"colour": [], "shape": []}
    for text, record in zip(texts, records, strict=True):
        if record:
            objects = json.loads(record)["objects"]
            for name, hit in right.items():
                true = {item[name] for item in objects}
                hit += [float(w in true) for w in words(text) if w in WORD_CLASSES[name]]
    return {name: sum(hit) / len(hit) for name, hit in right.items() if hit}
