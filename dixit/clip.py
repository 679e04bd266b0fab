"""CLIP models, all through open_clip, and the caches of what they compute.

`load_clip` opens any open_clip model. `build_locked` assembles the default one: pretrained image and text
towers stay locked and only the small heads on top are trained (LiT, Zhai et al. 2022). One image tower, "cnn", is small
and has seen nothing yet: it is trained along with its heads. Patch features, image embeddings and text features of a
dataset are computed once and memory-mapped.

Leaves out the training of the heads (warm_start.py) and what a listener makes of the embeddings (listeners.py).

Shapes: B images, P patches, S texts, Dv patch width, E embedding width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import open_clip
import timm
import torch
from datasets import Dataset
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V
from tqdm import tqdm

from dixit.assets import asset, cache_dir
from dixit.common import DixitError, atomic_path, atomic_write_text, locked, read_json, sha256, write_json
from dixit.data import fingerprint, pixels
from dixit.perception import perceive

logging.getLogger("root").setLevel(logging.ERROR)  # open_clip logs through the root logger

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
HEARD = 4  # calls whose text embeddings a CLIP keeps: as many kinds of listeners may share it


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


@dataclass
class Clip:
    """A frozen open_clip model with its tokenizer. `key` names it in caches and changes with the weights."""

    model: Any  # open_clip's CLIP classes share no base but nn.Module
    tokenizer: Any
    key: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    heard: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False)  # the last calls' text embeddings

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def preprocess(self, images: UInt8[Tensor, "B 3 H W"], perception: str) -> Float[Tensor, "B 3 h w"]:
        """Pixels 0..255 as this model's image tower wants them, seen through a perception."""
        x = perceive(images.to(self.device).float() / 255, perception)
        x = V.resize(x, [self.size, self.size], interpolation=V.InterpolationMode.BICUBIC, antialias=True)
        return V.normalize(x.clamp(0, 1), list(self.mean), list(self.std))

    @torch.no_grad()
    def patches(self, images: UInt8[Tensor, "B 3 H W"], perception: str) -> Float[Tensor, "B P Dv"]:
        """Patch features in front of the pooling: trunk maps of a timm tower, tokens of a transformer."""
        x, visual = self.preprocess(images, perception), self.model.visual
        if hasattr(visual, "trunk"):
            maps = visual.trunk(x.contiguous(memory_format=torch.channels_last))
            return maps.flatten(2).transpose(1, 2)
        visual.output_tokens = True
        try:
            return visual(x)[1]
        finally:
            visual.output_tokens = False

    @torch.no_grad()
    def embed_images(self, images: UInt8[Tensor, "B 3 H W"], perception: str) -> Float[Tensor, "B E"]:
        """Unit image embeddings."""
        x = self.preprocess(images, perception)
        if hasattr(self.model.visual, "trunk"):
            x = x.contiguous(memory_format=torch.channels_last)
        return self.model.encode_image(x, normalize=True)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Float[Tensor, "S E"]:
        """Unit text embeddings; equal texts are encoded once.

        Those of the last calls are kept for the next listener that asks just the same. Not text by text: a resumed run
        would then encode other batches than the uninterrupted one, and batches differ in their rounding.
        """
        key = tuple(texts)
        if key not in self.heard:
            unique = sorted(set(texts), key=lambda t: (len(t), t))  # of like length together: little padding
            parts = [self._encode(self.tokens(unique[i:i + 32]))
                     for i in range(0, len(unique), 32)]
            place = {text: i for i, text in enumerate(unique)}
            if len(self.heard) == HEARD:
                del self.heard[next(iter(self.heard))]
            self.heard[key] = torch.cat(parts)[[place[text] for text in texts]]
        return self.heard[key]

    def _encode(self, ids: Int[Tensor, "S T"]) -> Float[Tensor, "S E"]:
        """Unit embeddings. A causal text tower that is read at the end token runs up to the last end token only:
        nothing behind it can matter (measured on ViT-B-32 with 13 tokens: 5.5 times as fast).
        """
        model = self.model
        if not isinstance(model, open_clip.CLIP) or model.attn_mask is None or model.text_pool_type != "argmax":
            return model.encode_text(ids, normalize=True)
        last = ids.argmax(1)  # the end token has the highest number
        n = int(last.max()) + 1
        dtype = model.transformer.get_cast_dtype()
        x = model.token_embedding(ids[:, :n]).to(dtype) + model.positional_embedding[:n].to(dtype)
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:n, :n]))
        x = x[torch.arange(len(x), device=x.device), last]
        head = model.text_projection
        if head is not None:
            x = head(x) if isinstance(head, nn.Linear) else x @ head
        return F.normalize(x, dim=-1)

    def tokens(self, texts: list[str]) -> Int[Tensor, "S T"]:
        """Token ids; for text towers that mask padding, trimmed to the longest text."""
        ids = self.tokenizer(texts).to(self.device)
        if hasattr(self.model, "text") and hasattr(self.model.text, "transformer"):
            pad = getattr(getattr(self.model.text, "config", None), "pad_token_id", None)
            if pad is not None:
                ids = ids[:, : int((ids != pad).sum(1).max())]
        return ids

    @property
    def scale(self) -> float:
        """What multiplies a cosine to give a logit."""
        return float(self.model.logit_scale.detach().exp())


def tower_of(name: str) -> str:
    """The tower of a CLIP built here: "lite0" of "lite0" and of "lite0-animals"; "" for any other CLIP."""
    tower = name.split("-")[0]
    return tower if tower in TOWERS else ""


def clip_dir(name: str) -> Path:
    """Where a CLIP built here and called `name` is kept."""
    return cache_dir() / "models" / f"clip-{name}"


_opened: WeakValueDictionary[tuple[str, str], Clip] = WeakValueDictionary()  # by key and device


def load_clip(name: str, pretrained: str = "", device: str | torch.device = "cpu") -> Clip:
    """Open a CLIP: one built here ("lite0"), a folder with open_clip_config.json, or an open_clip name and tag.

    A process holds each CLIP once, for all who ask while it is in use. Raises DixitError where one is missing or
    damaged.
    """
    folder = clip_dir(name) if not pretrained and tower_of(name) else Path(name)
    local = folder.is_dir()
    if tower_of(name) and not pretrained and not (folder / "open_clip_model.safetensors").is_file():
        config = "clip_cnn" if tower_of(name) == "cnn" else "clip"
        raise DixitError(f"the CLIP '{name}' is not built yet; build it once with: "
                         f"python scripts/train.py configs/{config}.yaml clip.name={name} name=clip_{name}")
    weights = folder / "open_clip_model.safetensors"
    key = f"{name}-{pretrained}".replace("/", "-")
    if local and weights.is_file():
        key = f"{folder.name}-{sha256(weights)[:12]}"
    if (key, str(device)) in _opened:
        return _opened[key, str(device)]
    try:
        made: Any = open_clip.create_model_and_transforms(
            f"local-dir:{folder}" if local else name, pretrained=pretrained or None, device=device,
            pretrained_image=False, pretrained_text=False, require_pretrained=True)
        model = made[0]
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}" if local else name)
    except Exception as error:  # open_clip raises many kinds, each about bad input
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise DixitError(f"cannot load CLIP '{name}' {pretrained}: {line}") from None
    model.eval().requires_grad_(False)
    config = model.visual.preprocess_cfg
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]
    clip = Clip(model, tokenizer, key, size, tuple(config["mean"]), tuple(config["std"]))
    return _opened.setdefault((key, str(device)), clip)


def build_locked(name: str, width: int = 256, device: str | torch.device = "cpu", seed: int = 0) -> Clip:
    """A CLIP of pretrained, locked towers with untrained heads. Its heads are `visual.head` and `text.proj`. The image
    tower "cnn" is untrained too (`visual.trunk`). What is untrained is a function of `seed`.

    `name` is a tower, or a tower and a word of one's own: "lite0-animals". Raises DixitError for an unknown tower
    or a missing asset.
    """
    tower = tower_of(name)
    if not tower:
        raise DixitError(f"unknown tower '{name}'; choose one of {', '.join(TOWERS)}, or add a word to it: lite0-mine")
    _, mean, std = TOWERS[tower]
    mean, std = (x if isinstance(x, tuple) else (x,) * 3 for x in (mean, std))
    config = {
        "model_cfg": {
            "embed_dim": width, "custom_text": True,
            "vision_cfg": {"timm_model_name": f"dixit_{tower}", "timm_pool": "abs_attn", "timm_proj": "mlp",
                           "image_size": IMAGE_SIZE},
            "text_cfg": {"hf_model_name": str(asset("minilm")), "hf_tokenizer_name": "minilm", "hf_proj_type": "mlp",
                         "hf_pooler_type": "mean_pooler"},
        },
        "preprocess_cfg": {"size": IMAGE_SIZE, "mean": mean, "std": std, "interpolation": "bicubic",
                           "resize_mode": "squash"},
    }
    folder = clip_dir(name)
    write_json(folder / "open_clip_config.json", config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=True,
                                            device=device)
    trunk: Any = model.visual.trunk
    if isinstance(trunk, FinePatches):
        weights = load_file(asset(tower) / "model.safetensors")
        named = {f"stem.{k}" if k.startswith(("conv_stem", "bn1")) else k: v for k, v in weights.items()}
        trunk.load_state_dict({k: named[k] for k in trunk.state_dict()}, strict=True)
    model.eval().requires_grad_(False)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(asset("minilm")), context_length=77)
    return Clip(model, tokenizer, f"{tower}-towers-v1", IMAGE_SIZE, mean, std)


def save_clip(clip: Clip, name: str) -> Path:
    """Write a CLIP trained here: one JSON, one weights file and the tokenizer in one folder."""
    folder = clip_dir(name)
    clip.tokenizer.tokenizer.save_pretrained(folder)
    with atomic_path(folder / "open_clip_model.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in clip.model.state_dict().items()}, temporary)
    return folder


# --- caches -----------------------------------------------------------------------------------------------


def _cached(path: Path, shape: tuple[int, ...], dtype: str, compute: Any, label: str, batch: int) -> np.ndarray:
    """A memory-mapped .npy file, computed batch by batch on first use and put in place when complete.

    A build that was cut off goes on where it stopped; a second process waits for the first one's. A file that is not
    as it was written is made again.
    """
    if not _sound(path, shape, dtype):
        with locked(path.with_suffix(".lock")):
            if not _sound(path, shape, dtype):
                if path.is_file():
                    print(f"warning: the cache {path} is damaged; making it again", file=sys.stderr)
                    path.with_suffix(".sha256").unlink(missing_ok=True)
                    path.unlink()
                _build(path, shape, dtype, compute, label, batch)
    return np.load(path, mmap_mode="r")


def _sound(path: Path, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a cache is there and as it was written. The first use notes the hash of one that has none."""
    try:
        store = np.load(path, mmap_mode="r")
        if store.shape != shape or store.dtype != np.dtype(dtype):
            return False
        known = path.with_suffix(".sha256")
        if known.is_file():
            return known.read_text(encoding="utf-8").strip() == sha256(path)
    except (OSError, ValueError, EOFError):
        return False
    if os.access(path.parent, os.W_OK):
        atomic_write_text(known, sha256(path) + "\n")
    return True


def _build(path: Path, shape: tuple[int, ...], dtype: str, compute: Any, label: str, batch: int) -> None:
    part, count = path.with_suffix(".part.npy"), path.with_suffix(".part.json")
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        done = read_json(count)["rows"] if count.is_file() and part.is_file() else 0
        print(f"{label}: {size / 1e6:.1f} MB for {shape[0]} rows, kept in {path.parent}", file=sys.stderr)
        store = np.lib.format.open_memmap(part, mode="r+" if done else "w+", dtype=dtype, shape=shape)
        if not done:
            with part.open("r+b") as file:  # take the room now: a memory map that runs out of disk kills the process
                os.posix_fallocate(file.fileno(), 0, size)
        for start in tqdm(range(done, shape[0], batch), desc=label, unit="batch",
                          initial=done // batch, total=-(-shape[0] // batch), disable=None):
            stop = min(start + batch, shape[0])
            store[start:stop] = compute(start, stop)
            if start // batch % 8 == 7:
                store.flush()
                write_json(count, {"rows": stop})
        store.flush()
        atomic_write_text(path.with_suffix(".sha256"), sha256(part) + "\n")
        os.replace(part, path)
        count.unlink(missing_ok=True)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DixitError(f"cannot write {path} ({size / 1e6:.0f} MB): {error.strerror or error}; free some space or "
                         "set DIXIT_CACHE to another folder, then run the same command again") from None


def _cache_path(kind: str, *key: str) -> Path:
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    return cache_dir() / "features" / f"{kind}-{digest}.npy"


def patch_features(clip: Clip, dataset: Dataset, perception: str, batch: int = 64) -> np.ndarray:
    """(n, P, Dv) float16 patch features of a whole dataset, memory-mapped."""
    first = clip.patches(pixels(dataset, [0]), perception)
    locked = isinstance(getattr(clip.model.visual, "trunk", None), FinePatches) and clip.key.startswith("clip-")
    tower = clip.key.split("-")[1] + "-towers-v1" if locked else clip.key
    path = _cache_path("patches", tower, fingerprint(dataset), perception)

    def read(start: int) -> Tensor:
        return pixels(dataset, range(start, min(start + batch, len(dataset))))

    with ThreadPoolExecutor(1) as reader:
        ahead: dict[int, Future] = {}  # the next images are decoded while these go through the tower

        def compute(start: int, stop: int) -> np.ndarray:
            images = ahead.pop(start).result() if start in ahead else read(start)
            if stop < len(dataset):
                ahead[stop] = reader.submit(read, stop)
            return clip.patches(images, perception).half().cpu().numpy()

        return _cached(path, (len(dataset), *first.shape[1:]), "float16", compute, f"patches {perception}", batch)


def read_ahead(store: np.ndarray, rows: Int[np.ndarray, "B"]) -> None:
    """Have the system bring rows of a memory-mapped cache into memory meanwhile, so that the step that needs them does
    not wait for the disk (measured: 16 rows of 64 kB 106 ms from a cold disk, 1 ms so). Nothing else changes.
    """
    if isinstance(store, np.memmap) and store.filename is not None and sys.platform == "linux":
        with open(store.filename, "rb") as file:
            for row in rows:
                os.posix_fadvise(file.fileno(), store.offset + int(row) * store.strides[0], store.strides[0],
                                 os.POSIX_FADV_WILLNEED)


def image_embeddings(clip: Clip, dataset: Dataset, perception: str, batch: int = 64) -> Float[Tensor, "n E"]:
    """Unit image embeddings of a whole dataset, from the cached patches where the tower gives them."""
    path = _cache_path("images", clip.key, fingerprint(dataset), perception)
    visual = clip.model.visual
    patches = cache(lambda: patch_features(clip, dataset, perception))  # opened only if there is something to compute

    def compute(start: int, stop: int) -> np.ndarray:
        if not hasattr(visual, "trunk"):
            return clip.embed_images(pixels(dataset, range(start, stop)), perception).cpu().numpy()
        with torch.no_grad():
            return F.normalize(visual.head(as_maps(patches()[start:stop]).to(clip.device)), dim=-1).cpu().numpy()

    width = clip.embed_texts(["a"]).shape[1]
    values = _cached(path, (len(dataset), width), "float32", compute, f"images {perception}", batch)
    return torch.from_numpy(np.array(values))


def as_maps(patches: np.ndarray) -> Float[Tensor, "B Dv h w"]:
    """Cached (B, P, Dv) patches as the square feature map a pooling head expects."""
    side = int(patches.shape[1] ** 0.5)
    return torch.from_numpy(np.asarray(patches, dtype=np.float32)).transpose(1, 2).unflatten(2, (side, side))


def text_features(clip: Clip, texts: list[str]) -> Float[Tensor, "S Dt"]:
    """Features of the locked text tower in front of `text.proj`, for training the heads; cached.

    Equal texts are computed once, shortest first so that little is padding.
    """
    unique = sorted(set(texts), key=lambda t: (len(t), t))
    text = clip.model.text

    def compute(start: int, stop: int) -> np.ndarray:
        ids = clip.tokens(unique[start:stop])
        mask = torch.ne(ids, text.config.pad_token_id).long()
        with torch.no_grad():
            return text.pooler(text.transformer(input_ids=ids, attention_mask=mask), mask).cpu().numpy()

    path = _cache_path("texts", "minilm", *unique)
    values = _cached(path, (len(unique), text.transformer.config.hidden_size), "float32", compute, "texts", 256)
    place = {t: i for i, t in enumerate(unique)}
    return torch.from_numpy(np.array(values[[place[t] for t in texts]])).to(clip.device)


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
