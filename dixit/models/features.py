"""Features of frozen models, computed once per dataset and memory-mapped from the cache folder.

Leaves out the models themselves (clip.py).

Shapes: n images of a dataset, B images, P patches, S texts, Dv patch width, Dt text width, E embedding width.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dixit.common import DixitError, atomic_write_text, locked, read_json, sha256, write_json
from dixit.config_perception import Perception, perception_label
from dixit.data.assets import cache_dir
from dixit.data.images import fingerprint, pixels
from dixit.models.clip import Clip
from dixit.models.named import image_rows
from dixit.models.perception import perception_key
from dixit.models.towers import folded, is_built_here
from dixit.models.vlm_speaker import VlmEyes

Eyes = Clip | VlmEyes  # what a speaker sees with
AT_ONCE = 16  # images through a convolutional tower on a CPU, whose caches hold the maps of few images. Measured,
# lite0: 0.76 of the time of 64
VERSION = 1  # part of every cache's name; raise it when a change of the code gives other features for the same input


def _cached(path: Path, rows: int, compute: Callable[[int, int], np.ndarray], label: str, batch: int) -> np.ndarray:
    """A memory-mapped .npy file of so many rows, computed batch by batch on first use and renamed into place when
    complete. `compute(start, stop)` gives some rows.

    An interrupted build is resumed; a second process waits for the first one's. A file that differs from what was
    written is made again.
    """
    if not _intact(path, rows):
        with locked(path.with_suffix(".lock")):
            if not _intact(path, rows):
                if path.is_file():
                    print(f"warning: the cache {path} is damaged; making it again", file=sys.stderr)
                    path.with_suffix(".sha256").unlink(missing_ok=True)
                    path.unlink()
                _build(path, rows, compute, label, batch)
    return np.load(path, mmap_mode="r")


def _intact(path: Path, rows: int) -> bool:
    """Whether a cache exists and has the content that was written. The first use records the hash of one without."""
    try:
        store = np.load(path, mmap_mode="r")
        if store.shape[:1] != (rows,):
            return False
        known = path.with_suffix(".sha256")
        if known.is_file():
            return known.read_text(encoding="utf-8").strip() == sha256(path)
    except (OSError, ValueError, EOFError):
        return False
    if os.access(path.parent, os.W_OK):
        atomic_write_text(known, sha256(path) + "\n")
    return True


def _build(path: Path, rows: int, compute: Callable[[int, int], np.ndarray], label: str, batch: int) -> None:
    part, count = path.with_suffix(".part.npy"), path.with_suffix(".part.json")
    size = 0
    try:
        done = read_json(count)["rows"] if count.is_file() and part.is_file() else 0
        first = None if done else compute(0, min(batch, rows))  # shows the shape of a row
        size = part.stat().st_size if first is None else rows * first[0].nbytes
        print(f"{label}: {size / 1e6:.1f} MB for {rows} rows, kept in {path.parent}", file=sys.stderr)
        store = np.lib.format.open_memmap(part, mode="r+") if first is None else np.lib.format.open_memmap(
            part, mode="w+", dtype=first.dtype, shape=(rows, *first.shape[1:]))
        if not done:
            with part.open("r+b") as file:  # reserve the space: a memory map that finds the disk full kills us
                os.posix_fallocate(file.fileno(), 0, size)
        try:
            for start in tqdm(range(done, rows, batch), desc=label, unit="batch",
                              initial=done // batch, total=-(-rows // batch), disable=None):
                stop = min(start + batch, rows)
                store[start:stop] = compute(start, stop) if first is None else first
                first = None
                done = stop
                if start // batch % 8 == 7:
                    store.flush()
                    write_json(count, {"rows": done})
        except KeyboardInterrupt:
            store.flush()
            write_json(count, {"rows": done})
            raise
        store.flush()
        atomic_write_text(path.with_suffix(".sha256"), sha256(part) + "\n")
        os.replace(part, path)
        count.unlink(missing_ok=True)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DixitError(f"cannot write {path} ({size / 1e6:.0f} MB): {error.strerror or error}; free some space or "
                         "set DIXIT_CACHE to another folder, then run the same command again") from None


def _cache_path(kind: str, *key: str) -> Path:
    digest = hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest()[:20]
    return cache_dir() / "features" / f"{kind}-{digest}.npy"


def patch_features(eyes: Eyes, dataset: Dataset, perception: Perception, batch: int = 64) -> np.ndarray:
    """(n, P, Dv) float16 patch features of a whole dataset, what a speaker sees of it, memory-mapped.

    CLIPs of one image tower share them, but for the image embeddings that a NamedTower adds.
    """
    if isinstance(eyes, VlmEyes):
        path = _cache_path("vision_tokens", eyes.key, fingerprint(dataset), perception_key(perception))
        return _of_pixels(path, dataset, lambda images: eyes.patches(images, perception),
                          f"vision tokens {perception_label(perception)}", batch)
    clip, named = eyes, eyes.named
    if named is None:
        return grid_features(clip, dataset, perception, batch)
    grid, features = grid_features(clip, dataset, perception, batch), class_features(clip, dataset, perception, batch)

    @torch.no_grad()
    def compute(start: int, stop: int) -> np.ndarray:
        names = named.classes(_as_tensor(features[start:stop]).to(clip.device))
        rows = image_rows(named.join(names, to_feature_maps(grid[start:stop]).to(clip.device)), grid.shape[2])
        return np.concatenate([grid[start:stop], rows.half().cpu().numpy()], axis=1)

    path = _cache_path("named", clip.key, fingerprint(dataset), perception_key(perception))
    return _cached(path, len(dataset), compute, f"named patches {perception_label(perception)}", batch)


def grid_features(clip: Clip, dataset: Dataset, perception: Perception, batch: int = 64) -> np.ndarray:
    """(n, P, Dv) float16 patches of the grid alone."""
    path = _cache_path("patches", clip.tower_key, fingerprint(dataset), perception_key(perception))
    label = f"patches {perception_label(perception)}"
    if clip.named is None and not is_built_here(clip.model.visual):
        return _of_pixels(path, dataset, lambda images: clip.patches(images, perception), label, batch)
    maps = _of_tower(clip, perception, "patch_maps" if clip.named else "forward")
    return _of_pixels(path, dataset, lambda images: maps(images).flatten(2).transpose(1, 2), label, batch)


def class_features(clip: Clip, dataset: Dataset, perception: Perception, batch: int = 64) -> np.ndarray:
    """(n, F) float16 features of a whole dataset in front of a NamedTower's classifier, memory-mapped."""
    path = _cache_path("classes", clip.tower_key, fingerprint(dataset), perception_key(perception))
    return _of_pixels(path, dataset, _of_tower(clip, perception, "class_features"),
                      f"class features {perception_label(perception)}", batch)


def _of_tower(clip: Clip, perception: Perception, method: str) -> Callable[[Tensor], Tensor]:
    """A method of a tower that was built here, as a function of pixels."""
    apply = getattr(folded(clip.model.visual.trunk), method)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        x = clip.preprocess(images, perception).contiguous(memory_format=torch.channels_last)
        return torch.cat([apply(part) for part in x.split(AT_ONCE if x.device.type == "cpu" else len(x))])

    return features


def _of_pixels(path: Path, dataset: Dataset, apply: Callable[[Tensor], Tensor], label: str, batch: int) -> np.ndarray:
    """A cache of what a function makes of all images; the next images are decoded while it works."""
    def read(start: int) -> Tensor:
        return pixels(dataset, range(start, min(start + batch, len(dataset))))

    with ThreadPoolExecutor(1) as reader:
        ahead: dict[int, Future] = {}

        def compute(start: int, stop: int) -> np.ndarray:
            images = ahead.pop(start).result() if start in ahead else read(start)
            if stop < len(dataset):
                ahead[stop] = reader.submit(read, stop)
            return apply(images).half().cpu().numpy()

        return _cached(path, len(dataset), compute, label, batch)


def prefetch(store: np.ndarray, rows: Int[np.ndarray, "B"]) -> None:
    """Ask the system to read rows of a memory-mapped cache ahead, so that the next step does not wait for the disk.

    Measured: 16 rows of 64 kB took 106 ms from a cold disk, 1 ms when prefetched.
    """
    if isinstance(store, np.memmap) and store.filename is not None and sys.platform == "linux":
        with open(store.filename, "rb") as file:
            for row in rows:
                os.posix_fadvise(file.fileno(), store.offset + int(row) * store.strides[0], store.strides[0],
                                 os.POSIX_FADV_WILLNEED)


def image_embeddings(clip: Clip, dataset: Dataset, perception: Perception, batch: int = 64,
                     known: Bool[Tensor, "n_classes"] | None = None) -> Float[Tensor, "n E"]:
    """Unit image embeddings of a whole dataset, from the cached patches if the tower was built here.

    `known`: the classes that a NamedTower tells apart, if not all.
    """
    more = [] if known is None else [hashlib.sha256(known.numpy().tobytes()).hexdigest()]
    path = _cache_path("images", clip.key, fingerprint(dataset), perception_key(perception), *more)
    visual, named = clip.model.visual, clip.named
    # opened only if there is something to compute
    patches = cache(lambda: grid_features(clip, dataset, perception, batch))
    features = cache(lambda: class_features(clip, dataset, perception, batch))

    def compute(start: int, stop: int) -> np.ndarray:
        if named is None and not is_built_here(visual):
            return clip.embed_images(pixels(dataset, range(start, stop)), perception).cpu().numpy()
        with torch.no_grad():
            maps = to_feature_maps(patches()[start:stop]).to(clip.device)
            if named is None:
                return F.normalize(visual.head(maps), dim=-1).cpu().numpy()
            names = named.classes(_as_tensor(features()[start:stop]).to(clip.device), known)
            return F.normalize(named.join(names, maps), dim=-1).cpu().numpy()

    values = _cached(path, len(dataset), compute, f"images {perception_label(perception)}", batch)
    return torch.from_numpy(np.array(values))


def _as_tensor(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(rows, dtype=np.float32))


def to_feature_maps(patches: np.ndarray) -> Float[Tensor, "B Dv h w"]:
    """Cached (B, P, Dv) patches as the square feature map a pooling head expects."""
    side = int(patches.shape[1] ** 0.5)
    return _as_tensor(patches).transpose(1, 2).unflatten(2, (side, side))


@torch.no_grad()
def tower_texts(clip: Clip, texts: list[str]) -> Float[Tensor, "S Dt"]:
    """What the text tower gives in front of `text.proj`."""
    text, ids = clip.model.text, clip.tokens(texts)
    mask = torch.ne(ids, text.config.pad_token_id).long()
    return text.pooler(text.transformer(input_ids=ids, attention_mask=mask), mask)


def text_features(clip: Clip, texts: list[str]) -> Float[Tensor, "S Dt"]:
    """Features of the locked text tower in front of `text.proj`, for training the heads; cached.

    Equal texts are computed once, shortest first so that little is padding.
    """
    unique = sorted(set(texts), key=lambda t: (len(t), t))

    def compute(start: int, stop: int) -> np.ndarray:
        return tower_texts(clip, unique[start:stop]).cpu().numpy()

    values = _cached(_cache_path("texts", clip.text_key, *unique), len(unique), compute, "texts", 256)
    place = {t: i for i, t in enumerate(unique)}
    return torch.from_numpy(np.array(values[[place[t] for t in texts]])).to(clip.device)
