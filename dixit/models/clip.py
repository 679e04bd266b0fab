"""CLIP models, all through open_clip.

`load_clip` opens any open_clip model. `build_locked` assembles the default one: pretrained image and text
towers stay locked and only the small heads on top are trained (LiT, Zhai et al. 2022). The image tower "cnn"
is small and starts from random weights: it is trained along with its heads.

Leaves out the towers (towers.py), the caches of what a CLIP computes (features.py), the training of the heads
(training/warm_start.py) and how a listener scores with the embeddings (listeners.py).

Shapes: B images, P patches, S texts, Dv patch width, E embedding width.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import open_clip
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Bool, Float, Int, UInt8
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from dixit.common import DixitError, atomic_path, read_json, write_json
from dixit.config_perception import Perception
from dixit.data.assets import asset, cache_dir
from dixit.models.hf_clip import open_hf_clip
from dixit.models.named import (
    ATTRIBUTE_WIDTH,
    NAME_SIZE,
    NamedTower,
    TextHead,
    image_rows,
    imagenet_synsets,
    imagenet_texts,
)
from dixit.models.perception import perceive
from dixit.models.towers import IMAGE_SIZE, TOWERS, SmallCnn, build_command, patch_grid, tower_of

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("root").setLevel(logging.ERROR)  # open_clip logs through the root logger

TEXT_CACHE_SIZE = 4  # calls whose text embeddings a CLIP keeps, so that as many kinds of listeners can share it
MAX_IMAGE_SIZE = 2048  # pixels of a side that an image tower may ask for
HUB_HINT = ("take open_clip's copy of the weights, by name and tag (openai/clip-vit-base-patch32 is "
            "ViT-B-32-quickgelu, openai; google/siglip-base-patch16-224 is ViT-B-16-SigLIP, webli), or a repository in "
            "open_clip's format as hf-hub:OWNER/NAME")
CLASSES = "classes.json"  # of a NamedTower
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")


@dataclass
class Clip:
    """A frozen open_clip model with its tokenizer, open_clip's config of it, and how it takes images."""

    model: Any  # open_clip's CLIP classes share no base but nn.Module
    tokenizer: Any
    name: str
    config: dict[str, Any]
    preprocessing: PreprocessCfg
    classes: tuple[str, ...] = ()  # of a NamedTower: WordNet's ids of ImageNet's classes, then names of further ones
    text_cache: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False)  # embeddings of the last calls

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def named(self) -> NamedTower | None:
        """The image tower, if it is one that names what it sees."""
        trunk = getattr(self.model.visual, "trunk", None)
        return trunk if isinstance(trunk, NamedTower) else None

    @property
    def name_width(self) -> int:
        """The width of the names' block of embeddings; 0 if images are embedded as a whole."""
        return self.named.classes.prototypes.shape[1] if self.named else 0

    @property
    def row_width(self) -> int:
        """The width of the image embedding that `patches` gives as its last rows; 0 if it gives none."""
        return self.name_width and self.name_width + ATTRIBUTE_WIDTH

    @cached_property
    def key(self) -> str:
        """The name and a hash of all that `embed_images` depends on."""
        return f"{self.name}-{digest(self.model.visual, self.config, asdict(self.preprocessing))}"

    @cached_property
    def tower_key(self) -> str:
        """A hash of all that the grid of `patches` depends on: equal for CLIPs with the same image tower under other
        heads."""
        named = self.named
        tower = nn.ModuleList([named.fine, named.conv_head, named.bn2]) if named else getattr(
            self.model.visual, "trunk", self.model.visual)
        return digest(tower, self.config["vision_cfg"], self.config.get("quick_gelu"), asdict(self.preprocessing))

    @cached_property
    def text_key(self) -> str:
        """A hash of all that the features in front of `text.proj` depend on, the tokenizer included."""
        return digest(self.model.text.transformer, self.config["text_cfg"], _facts(self.tokenizer))

    def preprocess(self, images: UInt8[Tensor, "B 3 H W"], perception: Perception) -> Float[Tensor, "B 3 h w"]:
        """Pixels 0..255 through a perception, then resized and normalised for this model's image tower."""
        x = fit_to_tower(perceive(images.to(self.device).float() / 255, perception), self.preprocessing)
        return V.normalize(x, list(self.preprocessing.mean), list(self.preprocessing.std))

    @torch.no_grad()
    def patches(self, images: UInt8[Tensor, "B 3 H W"], perception: Perception) -> Float[Tensor, "B P Dv"]:
        """Patch features in front of the pooling: the cells of a CNN's last map, the tokens of a transformer.

        A tower that names what it sees gives more, its image embedding (named.image_rows).
        """
        return self._patches(self.preprocess(images, perception))

    def _patches(self, x: Tensor) -> Tensor:
        if self.named is None:
            return patch_grid(self.model.visual, x)
        maps = self.named.patch_maps(x)
        image = self.named.join(self.named.classes(self.named.class_features(x)), maps)
        return torch.cat([maps.flatten(2).transpose(1, 2), image_rows(image, maps.shape[1])], dim=1)

    @torch.no_grad()
    def embed_images(self, images: UInt8[Tensor, "B 3 H W"], perception: Perception,
                     known: Bool[Tensor, "n"] | None = None) -> Float[Tensor, "B E"]:
        """Unit image embeddings. `known`: the classes that a NamedTower tells apart, if not all."""
        x, named = self.preprocess(images, perception), self.named
        return self._embed(x) if named is None or known is None else F.normalize(named(x, known.to(x.device)), dim=-1)

    def _embed(self, x: Tensor) -> Tensor:
        if hasattr(self.model.visual, "trunk"):
            x = x.contiguous(memory_format=torch.channels_last)
        embedded = self.model.encode_image(x, normalize=True)
        # an attentional pooling with one query gives (B, 1, E)
        return embedded[:, 0] if embedded.ndim == 3 and embedded.shape[1] == 1 else embedded

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Float[Tensor, "S E"]:
        """Unit text embeddings; equal texts are encoded once.

        The last calls are cached for the next listener that asks for the same list of texts. Caching text by text would
        make a resumed run encode other batches than the uninterrupted one, and batches differ in their rounding.
        """
        key = tuple(texts)
        if key not in self.text_cache:
            if len(self.text_cache) == TEXT_CACHE_SIZE:
                del self.text_cache[next(iter(self.text_cache))]
            self.text_cache[key] = self._each_once(texts, self._encode)
        return self.text_cache[key]

    def _each_once(self, texts: list[str], encode: Callable[[Tensor], Tensor]) -> Tensor:
        """What `encode` makes of the tokens of texts; equal texts are encoded once."""
        unique = sorted(set(texts), key=lambda t: (len(t), t))  # of like length together: little padding
        parts = [encode(self.tokens(unique[i:i + 32])) for i in range(0, len(unique), 32)]
        place = {text: i for i, text in enumerate(unique)}
        return torch.cat(parts)[[place[text] for text in texts]]

    @torch.no_grad()
    def embed_names(self, names: list[str]) -> Float[Tensor, "S Dt"]:
        """Unit embeddings of names in the first block of a NamedTower's CLIP."""
        return F.normalize(self._each_once(names, self.model.encode_text)[:, :self.name_width], dim=-1)

    def _encode(self, ids: Int[Tensor, "S T"]) -> Tensor:
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
                used = (ids != pad).any(0).nonzero()
                ids = ids[:, : int(used.max()) + 1 if len(used) else 1]
        return ids

    @property
    def scale(self) -> float:
        """The factor that turns a cosine into a logit."""
        return float(self.model.logit_scale.detach().exp())


def fit_to_tower(pixels: Tensor, config: PreprocessCfg) -> Tensor:
    """Resize (B, 3, H, W) pixels in [0, 1] as open_clip's own transform does PIL images, which it rounds to 8 bits.

    `resize_mode` squash changes the aspect ratio; shortest keeps it and crops what juts out; longest keeps it and fills
    the margins with `fill_color`.
    """
    (height, width), (h, w) = pixels.shape[-2:], _pair(config.size)
    bilinear = config.interpolation == "bilinear"
    if config.resize_mode == "squash":
        size = [h, w]
    elif config.resize_mode == "shortest" and h == w:
        size = [h]  # of the shorter side
    else:
        shrink = (max if config.resize_mode == "longest" else min)(height / h, width / w)
        size = [round(height / shrink), round(width / shrink)]
        bilinear &= config.resize_mode == "longest"  # open_clip is always bicubic here
    mode = V.InterpolationMode.BILINEAR if bilinear else V.InterpolationMode.BICUBIC
    x = V.resize(pixels, size, interpolation=mode, antialias=True).clamp(0, 1)
    down, right = max(h - x.shape[-2], 0), max(w - x.shape[-1], 0)
    if down or right:
        fill = [value / 255 for value in _triple(config.fill_color)]
        x = V.pad(x, [right // 2, down // 2, (right + 1) // 2, (down + 1) // 2], fill=fill)
    return x if tuple(x.shape[-2:]) == (h, w) else V.center_crop(x, [h, w])


def _pair(size: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _triple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * 3


def digest(module: nn.Module, *facts: Any) -> str:
    """A hash of a module's weights and of further facts. Measured: 1.4 GB of weights per second."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def _facts(tokenizer: Any) -> list[str]:
    """All that the tokens of an open_clip tokenizer depend on."""
    settings = [f"{k}={getattr(v, '__name__', v)}" for k, v in sorted(vars(tokenizer).items())
                if hasattr(v, "__name__") or isinstance(v, str | int | None)]
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers
    if inner is None:
        return settings
    # the part in front of the vocabulary is the padding and truncation of the last call
    vocabulary = (inner.backend_tokenizer.to_str().split('"added_tokens"', 1)[-1] if inner.is_fast
                  else str(sorted(inner.get_vocab().items())))
    return [*settings, hashlib.sha256(vocabulary.encode()).hexdigest()]


def clip_dir(name: str) -> Path:
    """Where a CLIP built here and called `name` is kept."""
    return cache_dir() / "models" / f"clip-{name}"


_opened: WeakValueDictionary[tuple[Any, ...], Clip] = WeakValueDictionary()  # by place, device and the state of files


def load_clip(name: str, pretrained: str = "", device: str | torch.device = "cpu") -> Clip:
    """Open a CLIP: one built here ("lite0"), a folder with open_clip_config.json, or an open_clip name and tag.

    A process holds each CLIP once while it is in use. Raises DixitError where one is missing or damaged, or does not
    give what the project needs.
    """
    folder = clip_dir(name) if not pretrained and tower_of(name) else Path(name)
    local = folder.is_dir() and not pretrained
    if tower_of(name) and not pretrained and not (folder / WEIGHTS[0]).is_file():
        raise DixitError(f"the CLIP '{name}' is not built yet; build it once with: {build_command(name)}")
    files = [(p.name, s.st_size, s.st_mtime_ns) for p in sorted(folder.iterdir()) for s in [p.stat()]] if local else []
    place = (str(folder.resolve()) if local else name, pretrained, str(device), *files)
    if place in _opened:
        return _opened[place]
    try:
        clip = _open_folder(folder, device) if local else _open_named(name, pretrained, device)
        clip.model.eval().requires_grad_(False)
        _check(clip)
    except Exception as error:  # open_clip raises many kinds, each about bad input
        line = " ".join(str(error).split())[:500] or type(error).__name__
        raise DixitError(f"cannot load CLIP '{name}'{pretrained and f' ({pretrained})'}: {line}") from None
    return _opened.setdefault(place, clip)


def _open_folder(folder: Path, device: str | torch.device) -> Clip:
    """A CLIP in open_clip's folder format. Only safetensors are read. Raises ValueError where the folder is damaged."""
    path = folder / "open_clip_config.json"
    if not path.is_file():
        kind = _transformers_type(folder)
        if kind != "clip":
            what = f"holds a model of transformers ({kind}), not one of open_clip; {HUB_HINT}" if kind else \
                "has no open_clip_config.json"
            raise ValueError(f"the folder {what}")
        taken, tokenizer, about = open_hf_clip(folder, device)
        return Clip(taken, tokenizer, folder.resolve().name, about, _preprocessing(taken))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    model_config = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model_config, dict):
        raise ValueError(f"{path} has no section 'model_cfg'")
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if not isinstance(model_config.get(key), int if key == "embed_dim" else dict):
            raise ValueError(f"{path} lacks model_cfg.{key}")
    size = model_config["vision_cfg"].get("image_size", 224)
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(isinstance(side, int) and 1 <= side <= MAX_IMAGE_SIZE for side in sides):
        raise ValueError(f"{path}: model_cfg.vision_cfg.image_size is {size}; it must be one number of pixels or a "
                         f"height and a width, from 1 to {MAX_IMAGE_SIZE}")
    weights = [folder / file for file in WEIGHTS if (folder / file).is_file()] or sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"it has no {WEIGHTS[0]}; weights in other formats are not read, since pickles can run code")
    model = _create(folder, device, text=False)
    try:
        open_clip.load_checkpoint(model, str(weights[0]))
    except RuntimeError as error:
        problem = [line.strip() for line in str(error).splitlines() if line.strip()][:2][-1]
        raise ValueError(f"the weights in {weights[0].name} do not fit its open_clip_config.json: {problem}") from None
    labels = tuple(read_json(folder / CLASSES)) if (folder / CLASSES).is_file() else ()
    named = getattr(model.visual, "trunk", None)
    if isinstance(named, NamedTower) and len(labels) != len(named.classes.bias):
        raise ValueError(f"{folder / CLASSES} must list its {len(named.classes.bias)} classes; build it anew")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return Clip(model, tokenizer, folder.resolve().name, model_config, _preprocessing(model), labels)


def _create(folder: Path, device: str | torch.device, text: bool) -> Any:
    """A model by the open_clip_config.json of a folder, without weights but, if wanted, those of the text tower."""
    model: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False, device=device, pretrained_text=text)
    if isinstance(getattr(model.visual, "trunk", None), NamedTower):
        model.text.proj = TextHead(model.text.config.hidden_size).to(device)
    return model


def _transformers_type(folder: Path) -> str:
    """The kind of model of transformers that a folder holds, e.g. "clip"; empty if it holds none."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _downloaded(name: str) -> Path | None:
    """The local folder of a model on the hub, downloaded if it can be; None if it cannot."""
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (OSError, ValueError, HfHubHTTPError):  # there is none, or no hub is reachable
        return None


def _open_named(name: str, pretrained: str, device: str | torch.device) -> Clip:
    """A CLIP by open_clip's name and tag, or from a hub in open_clip's format. Raises ValueError for unknown names."""
    asked, name = name, name if name.startswith("hf-hub:") else name.replace("/", "-")
    if not name.startswith("hf-hub:"):
        known = open_clip.list_models()
        if name not in known and "/" in asked and not pretrained and (folder := _downloaded(asked)):
            return _open_folder(folder, device)
        if name not in known:
            near = difflib.get_close_matches(name, [*TOWERS, *known], n=3, cutoff=0.0)
            hint = f"; if it is a model of transformers, {HUB_HINT}" if "/" in asked else ""
            raise ValueError(f"no such folder or open_clip model; the nearest names are {', '.join(near)}{hint}")
        is_file = Path(pretrained).is_file() and pretrained.endswith(".safetensors")
        if not is_file and not open_clip.is_pretrained_cfg(name, pretrained):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "a .safetensors file"
            raise ValueError(f"unknown tag; choose one for `pretrained`: {tags}")
    model = open_clip.create_model(name, pretrained or None, device=device, pretrained_text=False,
                                   require_pretrained=True)
    return Clip(model, open_clip.get_tokenizer(name), "-".join(filter(None, (name, pretrained))).replace("/", "-"),
                open_clip.get_model_config(name), _preprocessing(model))


def _preprocessing(model: Any) -> PreprocessCfg:
    """How a model takes images, with open_clip's defaults. Raises ValueError for what open_clip does not know."""
    c = PreprocessCfg(**model.visual.preprocess_cfg)
    made = PreprocessCfg(_pair(c.size), c.mode, _triple(c.mean or OPENAI_DATASET_MEAN),
                         _triple(c.std or OPENAI_DATASET_STD), c.interpolation or "bicubic",
                         c.resize_mode or "shortest", c.fill_color)
    for key, known in ("interpolation", ("bicubic", "bilinear", "random")), (
            "resize_mode", ("shortest", "longest", "squash")):
        if getattr(made, key) not in known:
            raise ValueError(f"preprocess_cfg.{key} is {getattr(made, key)}; it must be one of {', '.join(known)}")
    for key in ("mean", "std", "fill_color"):
        value = _triple(getattr(made, key))
        if len(value) != 3 or not all(isinstance(x, int | float) for x in value):
            raise ValueError(f"preprocess_cfg.{key} is {value}; it must be three numbers")
    return made


@torch.no_grad()
def _check(clip: Clip) -> None:
    """Raise ValueError unless a blank image gives a grid of patches, and it and two texts give one vector each."""
    blank = clip.preprocess(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), "colour")
    try:
        patches = clip._patches(blank)
    except (AttributeError, AssertionError, IndexError, TypeError) as error:
        tower = type(getattr(clip.model.visual, "trunk", clip.model.visual)).__name__
        raise ValueError(f"its image tower {tower} does not give a grid of patches ({error})") from None
    width = getattr(getattr(clip.model.visual, "trunk", None), "num_features", patches.shape[-1])
    if patches.ndim != 3 or patches.shape[1] < 2 or patches.shape[2] != width:
        raise ValueError(f"its image tower does not give a grid of patches, but {list(patches.shape)}")
    image, text = clip._embed(blank), clip._encode(clip.tokens(["a", "a " * 200]))
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(f"images and texts must be embedded as one vector each of one width; a single image gives "
                         f"{list(image.shape)}, two texts {list(text.shape)}")
    for what, found in ("patches", patches), ("image embedding", image), ("text embeddings", text):
        if not found.isfinite().all():
            raise ValueError(f"the {what} of a blank image and two texts hold NaN or infinity; its weights are damaged")


def build_locked(name: str, width: int = 256, device: str | torch.device = "cpu", seed: int = 0,
                 names: bool = False) -> Clip:
    """A CLIP of pretrained, locked towers with untrained heads. Its heads are `visual.head` and `text.proj`. The image
    tower "cnn" is untrained too (`visual.trunk`). What is untrained is a function of `seed`.

    `name` is a tower, or a tower and a word of one's own: "lite0-animals". With `names` the image tower is a
    NamedTower: its heads are `visual.trunk.attributes` and `text.proj`, a TextHead. Raises DixitError for an unknown
    tower or a missing asset.
    """
    tower = tower_of(name)
    if not tower:
        raise DixitError(f"unknown tower '{name}'; choose one of {', '.join(TOWERS)}, or add a word to it: lite0-mine")
    if names and (tower == "cnn" or width != ATTRIBUTE_WIDTH):
        raise DixitError(f"clip.names needs a tower with an ImageNet classifier and clip.width {ATTRIBUTE_WIDTH}, not "
                         f"'{tower}' and {width}")
    mean, std = map(_triple, TOWERS[tower][1:])
    text_width = read_json(asset("minilm") / "config.json")["hidden_size"]
    size = NAME_SIZE if names else IMAGE_SIZE
    vision = {"timm_model_name": f"dixit_{tower}_named", "timm_pool": "", "timm_proj": ""} if names else {
        "timm_model_name": f"dixit_{tower}", "timm_pool": "abs_attn", "timm_proj": "mlp"}
    config = {
        "model_cfg": {
            "embed_dim": width + text_width * names, "custom_text": True,
            "vision_cfg": {**vision, "image_size": size},
            "text_cfg": {"hf_model_name": str(asset("minilm")), "hf_tokenizer_name": "minilm",
                         "hf_proj_type": "linear" if names else "mlp", "hf_pooler_type": "mean_pooler"},
        },
        "preprocess_cfg": {"size": size, "mean": mean, "std": std, "interpolation": "bicubic",
                           "resize_mode": "squash"},
    }
    folder = clip_dir(name)
    write_json(folder / "open_clip_config.json", config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _create(folder, device, text=True)
    trunk: Any = model.visual.trunk
    if not isinstance(trunk, SmallCnn):
        weights = load_file(asset(tower) / "model.safetensors")
        named = {f"stem.{k}" if k.startswith(("conv_stem", "bn1")) else k: v for k, v in weights.items()}
        fine = trunk.fine if names else trunk
        fine.load_state_dict({k: named[k] for k in fine.state_dict()}, strict=True)
    model.eval().requires_grad_(False)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(asset("minilm")), context_length=77)
    clip = Clip(model, tokenizer, folder.name, config["model_cfg"], _preprocessing(model))
    if names:
        for part in ("conv_head", "bn2"):
            getattr(trunk, part).load_state_dict({k.removeprefix(f"{part}."): v for k, v in weights.items()
                                                  if k.startswith(f"{part}.")}, strict=True)
        _name_classes(clip, weights)
    return clip


@torch.no_grad()
def _name_classes(clip: Clip, weights: dict[str, Tensor]) -> None:
    """Give a NamedTower ImageNet's classifier and the text embeddings of its classes."""
    classes, texts = clip.model.visual.trunk.classes, imagenet_texts()
    classes.weight.copy_(weights["classifier.weight"])
    classes.bias.copy_(weights["classifier.bias"])
    embedded = clip.embed_names([text for row in texts for text in row])
    classes.prototypes.copy_(torch.stack([F.normalize(part.mean(0), dim=0)
                                          for part in embedded.split([len(row) for row in texts])]))
    clip.classes = tuple(imagenet_synsets())


def save_clip(clip: Clip, name: str) -> Path:
    """Write a CLIP trained here: one JSON, one weights file and the tokenizer in one folder."""
    folder = clip_dir(name)
    clip.tokenizer.tokenizer.save_pretrained(folder)
    if clip.classes:
        write_json(folder / CLASSES, list(clip.classes))
    with atomic_path(folder / "open_clip_model.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in clip.model.state_dict().items()}, temporary)
    return folder
