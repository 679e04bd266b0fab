"""CLIP models, all through open_clip.

`load_clip` opens any open_clip model. `build_locked` assembles the default one: pretrained image and text
towers stay locked and only the small heads on top are trained (LiT, Zhai et al. 2022). The image tower "cnn"
is small and starts from random weights: it is trained along with its heads.

Leaves out the towers (towers.py), the caches of what a CLIP computes (features.py), the training of the heads
(training/warm_start.py) and how a listener scores with the embeddings (listeners.py).

Shapes: B images, P patches, S texts, Dv patch width, E embedding width.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from dixit.common import DixitError, atomic_path, sha256, write_json
from dixit.data.assets import asset, cache_dir
from dixit.models.perception import perceive
from dixit.models.towers import IMAGE_SIZE, TOWERS, FinePatches, tower_of

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("root").setLevel(logging.ERROR)  # open_clip logs through the root logger

TEXT_CACHE_SIZE = 4  # calls whose text embeddings a CLIP keeps, so that as many kinds of listeners can share it


@dataclass
class Clip:
    """A frozen open_clip model with its tokenizer. `key` names it in caches and changes with the weights."""

    model: Any  # open_clip's CLIP classes share no base but nn.Module
    tokenizer: Any
    key: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    text_cache: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False)  # embeddings of the last calls

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def preprocess(self, images: UInt8[Tensor, "B 3 H W"], perception: str) -> Float[Tensor, "B 3 h w"]:
        """Pixels 0..255 through a perception, then resized and normalised for this model's image tower."""
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

        The last calls are cached for the next listener that asks for the same list of texts. Caching text by text would
        make a resumed run encode other batches than the uninterrupted one, and batches differ in their rounding.
        """
        key = tuple(texts)
        if key not in self.text_cache:
            unique = sorted(set(texts), key=lambda t: (len(t), t))  # of like length together: little padding
            parts = [self._encode(self.tokens(unique[i:i + 32]))
                     for i in range(0, len(unique), 32)]
            place = {text: i for i, text in enumerate(unique)}
            if len(self.text_cache) == TEXT_CACHE_SIZE:
                del self.text_cache[next(iter(self.text_cache))]
            self.text_cache[key] = torch.cat(parts)[[place[text] for text in texts]]
        return self.text_cache[key]

    def _encode(self, ids: Int[Tensor, "S T"]) -> Float[Tensor, "S E"]:
        """Unit embeddings. A causal text tower that pools at the end token runs up to the last end token only, as later
        positions cannot matter (measured on ViT-B-32 with 13 tokens: 5.5 times as fast).
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
        """The factor that turns a cosine into a logit."""
        return float(self.model.logit_scale.detach().exp())


def clip_dir(name: str) -> Path:
    """Where a CLIP built here and called `name` is kept."""
    return cache_dir() / "models" / f"clip-{name}"


_opened: WeakValueDictionary[tuple[str, str], Clip] = WeakValueDictionary()  # by key and device


def load_clip(name: str, pretrained: str = "", device: str | torch.device = "cpu") -> Clip:
    """Open a CLIP: one built here ("lite0"), a folder with open_clip_config.json, or an open_clip name and tag.

    A process holds each CLIP once while it is in use. Raises DixitError where one is missing or damaged.
    """
    folder = clip_dir(name) if not pretrained and tower_of(name) else Path(name)
    local = folder.is_dir()
    if tower_of(name) and not pretrained and not (folder / "open_clip_model.safetensors").is_file():
        config = "clip_cnn" if tower_of(name) == "cnn" else "clip"
        raise DixitError(f"the CLIP '{name}' is not built yet; build it once with: "
                         f"dixit train {config} clip.name={name} name=clip_{name}")
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
