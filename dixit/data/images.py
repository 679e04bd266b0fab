"""Load images with captions from six kinds of source as a `datasets.Dataset`, made once and kept in the cache.

Columns: `image` (square RGB, padded with white), `captions` (at least one), `concept` (a class or object,
"" for scenes) and `record` (JSON of a scene's attributes, "" elsewhere).

The hash of an emoji's label decides its split; an emoji whose label or keywords share a word with the concept or
file name of any stamp is in `test` only. So loading emoji needs the stamps too, and no training set names a stamp's
concept. CIFAR-10 has no such rule: its classes occur among the stamps. Emoji flags are in no split, because captions
cannot tell them apart.

Leaves out augmentation, streaming, video, and data sets' own loading scripts: no code from a data set is run.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from dixit.common import DixitError, first_line, locked, read_json, rng, scratch_dir, sha256, write_json
from dixit.config import Config, DataConfig
from dixit.data import scenes
from dixit.data.assets import asset, cache_dir

VERSION = 2  # part of every fingerprint; raise it when a change of the code gives other rows for the same input
NAMES = ("scenes", "emoji", "cifar10", "stamps", "folder", "hub")
SPLITS = ("train", "validation", "test")
EVALUATION_SETS = ("stamps", "emoji", "cifar10", "combos")  # names that open_data takes, besides folder:PATH
MAX_PIXELS = 50_000_000  # a small file can decompress to many gigabytes
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # no EPS or PDF: Pillow reads those with a program
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
SCENE_CAPTIONS = 8
# Words in captions and file names of stamps that name no object.
STOP_WORDS = set(re.findall(r"\w+", """
    ahead and baby big black blue brown closed dead eating flying full golden green have home large left
    little new now old open part pink red silver small stand white yellow you"""))
FEATURES = datasets.Features({
    "image": datasets.Image(mode="RGB"), "captions": datasets.List(datasets.Value("string")),
    "concept": datasets.Value("string"), "record": datasets.Value("string"),
})
Row = Callable[[int], dict]  # returns row i
Source = tuple[int, str, Row]  # number of rows, a hash of their content, and the function that returns them


def load(data: DataConfig, split: str, training: bool = False) -> datasets.Dataset:
    """Load one split, from the cache after the first time. Names joined by "+" are concatenated.

    Set `training` if a model will be trained on the rows. Raises DixitError on bad input, and if `training` is set
    for a transfer or test set.
    """
    if "+" in data.name:
        parts = [load(replace(data, name=name), split, training) for name in data.name.split("+")]
        return datasets.concatenate_datasets(parts)
    _check(data, split, training)
    if data.name == "scenes":
        count, content, row = _scenes(data, split)
    elif data.name == "emoji":
        count, content, row = _emoji(data, split)
    elif data.name == "cifar10":
        count, content, row = _cifar10(data, split)
    elif data.name == "stamps":
        count, content, row = _stamps(data)
    elif data.name == "folder":
        count, content, row = _folder(data, split)
    else:
        count, content, row = _hub(data, split)
    limit = getattr(data, split) or count
    if not count:
        raise DixitError(f"split {split} of {data.path or data.name} is empty (a hash of names makes the "
                         "splits); add images, or sort them into folders train, validation and test")
    # A subset is drawn at random, the same one each time, and kept in order.
    order = list(range(count))
    if limit < count:
        order = sorted(rng("subset", data.seed, split).permutation(count)[:limit].tolist())
    digest = _hash(VERSION, data.name, split, data.seed, data.image_size, limit, data.image_column,
                data.caption_column, content)[:16]
    folder = cache_dir() / "data" / f"{data.name}-{split}-{digest}"
    if not _is_intact(folder):
        with locked(folder.with_suffix(".lock")):  # a second process waits for the first one
            if not _is_intact(folder):
                if folder.is_dir():
                    print(f"warning: {folder} is damaged; making it again", file=sys.stderr)
                    shutil.rmtree(folder)
                _materialise(folder, digest, f"{data.name} {split}", order, row)
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow and datasets raise many kinds
        raise DixitError(f"{folder} is damaged ({first_line(error)}); delete it and run again") from None


def fingerprint(dataset: datasets.Dataset) -> str:
    """A key for cached features: equal for equal rows in every process, different after any change."""
    return dataset._fingerprint


def pixels(dataset: datasets.Dataset, indices: Sequence[int] | None = None) -> UInt8[Tensor, "B 3 H W"]:
    """The decoded images of the rows at `indices` (default: all)."""
    rows = dataset[:] if indices is None else dataset[[int(i) for i in indices]]
    return torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]])).permute(0, 3, 1, 2)


def open_image(source: str | Path | io.BytesIO, size: int, name: str = "") -> Image.Image:
    """Open an image file as size x size RGB: rotated by its EXIF tag, composited on white, scaled to fit and padded.

    Reads palettes, greyscale of 8 or 16 bits, CMYK, transparency and the first frame of an animation. Raises
    DixitError, whose message begins with `name` (default: the path), if the file cannot be read completely.
    """
    name = name or str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings; what matters is an error below
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return fit(_rgb(ImageOps.exif_transpose(image)), size)
    except Image.DecompressionBombError:
        raise DixitError(f"{name} has over {MAX_PIXELS // 10**6} million pixels; make it smaller") from None
    except FileNotFoundError:
        raise DixitError(f"{name} does not exist") from None
    except Exception as error:  # a hostile file can raise almost any kind of error in Pillow's decoders
        reason = first_line(error)
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"not one of {', '.join(FORMATS)}"
            if isinstance(source, str | Path) and Path(source).stat().st_size == 0:
                reason = "the file is empty"
        raise DixitError(f"{name} is not a readable image ({reason}); replace or remove it") from None


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale an RGB image to fit into a white square of `size` pixels; the aspect ratio is kept."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    return square


def _rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, transparency composited on white."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip instead of scale
        values = np.asarray(image)
        deep = image.mode != "I" or values.max() > 255
        image = Image.fromarray((np.clip(values, 0, 65535) / 257 if deep else values).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _check(data: DataConfig, split: str, training: bool) -> None:
    def choose(what: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.0)[0]
            raise DixitError(f"unknown {what} '{value}'; did you mean '{near}'? (of {', '.join(allowed)})")

    choose("data", data.name, NAMES)
    if data.name == "stamps" and training:
        raise DixitError("stamps are the unseen transfer set and never trained on; train on other data")
    splits = {"scenes": scenes.SPLITS, "stamps": ("test",)}.get(data.name, SPLITS)
    choose(f"split of {data.name}", split, splits)
    if training and split in ("test", "combos"):
        raise DixitError(f"split {split} is for evaluation and never trained on; train on train")
    if not 16 <= data.image_size <= 1024:
        raise DixitError(f"data.image_size is {data.image_size}; choose 16 to 1024 pixels")
    if getattr(data, split) < (data.name == "scenes"):
        raise DixitError(f"data.{split} is {getattr(data, split)}; choose a positive number of images")


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _is_intact(folder: Path) -> bool:
    """Whether a cached data set is complete and unchanged; those of earlier versions have no hashes to check."""
    hashes = folder / "sha256.json"
    try:
        return folder.is_dir() and (not hashes.is_file() or
                                    all(sha256(folder / name) == value for name, value in read_json(hashes).items()))
    except (DixitError, OSError, AttributeError):
        return False


def _materialise(folder: Path, digest: str, title: str, order: Sequence[int], row: Row) -> None:
    """Write the rows to a scratch folder and rename it to `folder` when it is complete; two processes may race."""
    def rows():
        for i in tqdm(order, desc=title, unit="image"):
            yield row(i)

    noisy = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # tqdm's above knows the total
    scratch = None
    try:
        scratch = scratch_dir(folder.parent)
        dataset = datasets.Dataset.from_generator(rows, FEATURES, str(scratch / "build"), fingerprint=digest)
        dataset.save_to_disk(str(scratch / "rows"))
        write_json(scratch / "rows" / "sha256.json", {p.name: sha256(p) for p in (scratch / "rows").iterdir()})
        os.rename(scratch / "rows", folder)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DixitError):
            raise error.__cause__ from None
        raise DixitError(f"cannot make {folder}: {first_line(error.__cause__ or error)}") from error
    except OSError as error:
        if not folder.is_dir():  # else another process was first, with the same rows
            raise DixitError(f"cannot write {folder}: {error.strerror or error}; free some space or set "
                             "DIXIT_CACHE to another folder") from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        if not noisy:
            datasets.enable_progress_bars()


def _row(image: Image.Image, captions: list[str], concept: str = "", record: dict | None = None) -> dict:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)  # lossless and fast to decode
    return {"image": {"bytes": stream.getvalue(), "path": None}, "captions": captions, "concept": concept,
            "record": json.dumps(record) if record else ""}


def _scenes(data: DataConfig, split: str) -> Source:
    def row(i: int) -> dict:
        image, record = scenes.draw(data.seed, split, i, data.image_size)
        texts = scenes.captions(record, SCENE_CAPTIONS, rng("captions", data.seed, split, i))
        return _row(image, texts, record=record)

    # The hash of a few scenes changes with the renderer, so that changed code makes new rows without a new VERSION.
    probe = [row(i) for i in range(4)]
    content = _hash([hashlib.sha256(p["image"]["bytes"]).hexdigest() + p["record"] for p in probe],
                    [p["captions"] for p in probe])
    return getattr(data, split), content, row


def _labels(folder: Path) -> list[dict]:
    return json.loads((folder / "labels.json").read_text(encoding="utf-8"))


def _words(text: str) -> set[str]:
    """Content words, for comparing concepts: letters only, without a plural 's'."""
    return {word.rstrip("s") for word in re.findall(r"[a-z]{3,}", text.lower())} - STOP_WORDS


def head_noun(caption: str) -> str:
    """The head noun of a caption, e.g. "heron" for "A great blue heron." A heuristic, not a parser."""
    text = re.split(r"[.,;:!?(–—]", caption.lower().lstrip("–— "))[0]
    text = re.sub(r"\b(pair|baby|bunch|piece|slice|glass|cup) of\b", "", text).strip()
    text = re.split(r" (?:with|in|at|for|on|of|to|from|worn|covered|inside|is|are|has|that|used)\b", text)[0]
    return (re.findall(r"[^\W\d_]+", text) or [""])[-1]


def _stem(item: dict) -> str:
    """The file name of a stamp without folders, digits and punctuation."""
    stem = Path(item["file"]).stem.removeprefix(item["category"].replace("/", "-"))
    return " ".join(re.findall(r"[^\W\d_]+", stem))


def _stamps(data: DataConfig) -> Source:
    folder = asset("stamps")
    items = _labels(folder)

    def row(i: int) -> dict:
        caption, noun = items[i]["caption"], head_noun(items[i]["caption"])
        concept = noun if _words(noun) else _stem(items[i])
        return _row(open_image(folder / items[i]["file"], data.image_size), [caption], concept)

    return len(items), _hash(items), row


HUE_NAMES = ((15, "red"), (38, "orange"), (68, "yellow"), (165, "green"), (195, "cyan"), (255, "blue"), (290, "purple"),
             (345, "pink"), (360, "red"))  # (upper bound of the hue in degrees, name)


def main_colours(image: Image.Image) -> list[str]:
    """One or two names for the colours of an RGB image, the commonest first; white, black or grey if it has none.

    Computed from hue, saturation and value at 32 x 32 pixels. Dark or dull orange counts as brown, white as background.
    """
    scale = 360 / 255, 1 / 255, 1 / 255  # to degrees and to [0, 1]
    hue, saturation, value = (np.asarray(image.resize((32, 32)).convert("HSV")) * scale).reshape(-1, 3).T
    index = np.searchsorted([limit for limit, _ in HUE_NAMES], hue)
    names = np.array([name for _, name in HUE_NAMES] + ["red"], dtype=object)[index]
    names[(hue > 8) & (hue < 45) & ((value < 0.7) | (saturation < 0.5))] = "brown"
    coloured = (saturation > 0.25) & (value > 0.2)
    colours, counts = np.unique(names[coloured].astype(str), return_counts=True)
    if coloured.mean() < 0.06:
        plain = {"black": (value < 0.3).mean(), "grey": ((value >= 0.3) & (value < 0.85)).mean()}
        name, share = max(plain.items(), key=lambda item: item[1])
        return [name] if share > 0.1 else ["white"]
    order = (-counts).argsort(kind="stable")[:2]
    return [str(colours[i]) for i in order if counts[i] > 0.25 * counts[order[0]]]


def _emoji(data: DataConfig, split: str) -> Source:
    folder = asset("emoji")
    stamps = _labels(asset("stamps"))
    shared = set().union(*(_words(head_noun(s["caption"])) | _words(_stem(s)) for s in stamps))

    def split_of_item(item: dict) -> str:
        words = _words(" ".join([item["label"], *item["keywords"]]))
        return "test" if words & shared else _split_of(item["label"])

    items = [item for item in _labels(folder) if item["group"] != "flags" and split_of_item(item) == split]

    def row(i: int) -> dict:
        label, keywords = items[i]["label"], items[i]["keywords"]
        image = open_image(folder / items[i]["file"], data.image_size)
        colours = " and ".join(main_colours(image))
        texts = [label, f"an emoji of {label}", f"something {colours}"]
        if len(keywords) > 1:
            texts.append(", ".join(keywords[:4]))
        return _row(image, texts, label)

    return len(items), _hash(items), row


def _cifar10(data: DataConfig, split: str) -> Source:
    folder = asset("cifar10")
    classes = json.loads((folder / "DONE.json").read_text(encoding="utf-8"))["classes"]
    part = "test" if split == "test" else "train"
    images, labels = (np.load(folder / f"{part}_{kind}.npy", mmap_mode="r") for kind in ("images", "labels"))
    start, stop = {"train": (0, -5000), "validation": (-5000, None), "test": (0, None)}[split]
    images, labels = images[start:stop], labels[start:stop]

    def row(i: int) -> dict:
        name = classes[int(labels[i])]
        thing = ("an " if name[0] in "aeiou" else "a ") + name
        image = Image.fromarray(np.array(images[i]))
        colours = " and ".join(main_colours(image))
        texts = [thing, f"a photo of {thing}", f"something {colours}", f"a {colours} picture of {thing}"]
        return _row(fit(image, data.image_size), texts, name)

    return len(labels), _hash(classes, hashlib.sha256(labels.tobytes()).hexdigest()), row


def _split_of(name: str) -> str:
    """The split of a name by its hash (80 % train, 10 % validation, 10 % test); new names do not move others."""
    share = int(_hash(name)[:8], 16) % 10
    return "test" if share == 9 else "validation" if share == 8 else "train"


def _texts(value: object) -> list[str]:
    """A caption, or a list of them, as non-empty texts with single spaces."""
    return [" ".join(t.split()) for t in (value if isinstance(value, list) else [value])
            if isinstance(t, str) and t.strip()]


def _folder(data: DataConfig, split: str) -> Source:
    root = Path(data.path).expanduser()
    if not data.path or not root.is_dir():
        raise DixitError(f"data.path '{data.path}' is not a folder; name a folder of images")
    sorted_by_hand = any((root / s).is_dir() for s in SPLITS)
    base = root / split if sorted_by_hand else root
    files = sorted(p for p in base.rglob("*")
                   if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    if not files:
        raise DixitError(f"no images in {base}; put some there ({', '.join(SUFFIXES)})")
    captions_by_file = _metadata(base, data.caption_column) if (base / "metadata.jsonl").is_file() else {}
    if not sorted_by_hand:
        files = [p for p in files if _split_of(p.relative_to(base).as_posix()) == split]

    def row(i: int) -> dict:
        path, text = files[i], files[i].with_suffix(".txt")
        concept = " ".join(re.findall(r"[^\W\d_]+", path.stem)) or path.stem
        texts = captions_by_file.get(path.resolve(), [])
        if not texts and text.is_file():
            texts = _texts(text.read_text(encoding="utf-8", errors="replace").splitlines())
        return _row(open_image(path, data.image_size), texts or [concept], concept)

    def file_state(path: Path) -> list:
        return [path.relative_to(base).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]

    text_files = [path for path in (image.with_suffix(".txt") for image in files) if path.is_file()]
    content = _hash([file_state(p) for p in files + text_files], [captions_by_file.get(p.resolve()) for p in files])
    return len(files), content, row

def _metadata(folder: Path, column: str) -> dict[Path, list[str]]:
    """Captions by file, from metadata.jsonl by the `imagefolder` loader of datasets."""
    where, scratch = folder / "metadata.jsonl", scratch_dir(cache_dir() / "data")
    try:
        table = datasets.load_dataset("imagefolder", data_dir=str(folder), data_files={"train": "**"},
                                      split="train", drop_labels=True, cache_dir=str(scratch))
        column = column if column in table.column_names else "text"
        if column not in table.column_names:
            raise DixitError(f"{where} has no captions; set data.caption_column to one of "
                             f"{', '.join(table.column_names)}")
        table = table.cast_column("image", datasets.Image(decode=False))
        return {Path(row["image"]["path"]).resolve(): _texts(row[column]) for row in table}
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise DixitError(f"{where} cannot be used: {first_line(error.__cause__ or error)}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _hub(data: DataConfig, split: str) -> Source:
    """A data set in a local folder, else one of that name on the hub (from the hub's cache if offline)."""
    local = Path(data.path).expanduser()
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            loaded = datasets.load_from_disk(str(local))
        else:
            loaded = datasets.load_dataset(str(local) if local.is_dir() else data.path)
    except Exception as error:  # network, names, formats: each becomes one line
        raise DixitError(f"cannot load the data set '{data.path}' ({first_line(error)}); set data.path to a local "
                         "folder or a hub name, and go online for its first use") from None
    parts = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    has_splits = set(parts) != {"train"}  # otherwise the hash of row numbers makes the splits
    if has_splits and split not in parts:
        raise DixitError(f"the data set '{data.path}' has no split {split}, only {', '.join(parts)}")
    table = parts[split if has_splits else "train"]
    for key, column in ("image_column", data.image_column), ("caption_column", data.caption_column):
        if column not in table.column_names:
            raise DixitError(f"the data set '{data.path}' has no column '{column}'; set data.{key} to one of "
                             f"{', '.join(table.column_names)}")
    rows = [i for i in range(len(table)) if has_splits or _split_of(str(i)) == split]
    raw = table.cast_column(data.image_column, datasets.Image(decode=False))

    def row(i: int) -> dict:
        name, item = f"row {rows[i]} of {data.path}", raw[rows[i]]
        image, texts = item[data.image_column] or {}, _texts(item[data.caption_column])
        if not texts:
            raise DixitError(f"{name} has no caption; filter such rows out")
        source = io.BytesIO(image["bytes"]) if image.get("bytes") else image.get("path") or io.BytesIO()
        return _row(open_image(source, data.image_size, name), texts)

    return len(rows), _hash(fingerprint(table)), row


# --- data that a run was not trained on ---


def open_data(name: str, config: Config) -> datasets.Dataset:
    """Load up to eval.images images (0 = all) of stamps, emoji, cifar10, combos or folder:PATH.

    A folder without subfolders train, validation and test is loaded completely, unless the run was trained on it.
    Raises DixitError for another name, or fewer than two images.
    """
    kind, _, path = name.partition(":")
    images = config.eval.images
    data = DataConfig(name=kind, path=path, seed=config.data.seed, image_size=config.data.image_size, train=images,
                      validation=images, test=images)
    if name == "combos":
        dataset = load(config.data, "combos")
    elif name in EVALUATION_SETS:
        dataset = load(data, "test")
    elif kind != "folder":
        raise DixitError(f"--data {name}: choose of {', '.join(EVALUATION_SETS)}, or folder:PATH")
    else:
        root = Path(path).expanduser()
        trained_on = config.data.name == "folder" and root.resolve() == Path(config.data.path).expanduser().resolve()
        by_hand = any((root / split).is_dir() for split in SPLITS)
        dataset = load(data, "test") if trained_on or by_hand else _whole(data)
    if len(dataset) < 2:
        raise DixitError(f"--data {name} has only {len(dataset)} image; a pool needs at least two")
    if 0 < images < len(dataset):
        chosen = rng("transfer subset", data.seed).permutation(len(dataset))[:images]
        dataset = dataset.select(sorted(chosen.tolist()))
    return dataset


def _whole(data: DataConfig) -> datasets.Dataset:
    """All splits of a folder without subfolders; in a small folder some splits are empty."""
    parts, empty = [], None
    for split in SPLITS:
        try:
            parts.append(load(data, split))
        except DixitError as error:
            if not str(error).startswith(f"split {split} of {data.path} is empty"):
                raise
            empty = error
    if not parts and empty:
        raise empty
    return datasets.concatenate_datasets(parts)
