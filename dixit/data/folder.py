"""A folder of images, with captions from a file of captions, from text files beside the images, or from their names.

Links to other folders are followed; each real folder is read once.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from dixit.common import DixitError, expand_home
from dixit.config import DataConfig
from dixit.data import decode
from dixit.data.captions import METADATA, clean, read_entries, read_text, texts
from dixit.data.decode import DEEP_SUFFIXES, SUFFIXES, open_image
from dixit.data.sources import SPLIT_NAMES, SPLITS, Source, content_hash, examples, make_row, split_of
from dixit.data.tree import list_tree

# Words in file names that cameras, phones and data sets write, and that name nothing.
NO_WORDS = set("""at camera capture coco copy dji download edit edited file foto frame gopr gopro image images img mvimg
    original photo photos pic pics picture pictures resized scan screen screenshot shot signal test train unnamed
    untitled val validation vid video whatsapp""".split())


# What phones and browsers write, and what is not read.
OTHER_IMAGES = (".heic", ".heif", ".avif", ".jxl", ".svg", ".jp2", ".psd", ".dng", ".cr2", ".nef", ".arw", ".jfif",
                ".ico", ".tga", ".exr", ".hdr")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def folder_set(data: DataConfig, split: str) -> Source:
    """The images of a split with their captions."""
    root = expand_home(data.path)
    if not data.path or not root.is_dir():
        raise DixitError(f"data.path '{data.path}' is not a folder; name a folder of images")
    tree = list_tree(root)
    files = [path for path in tree.files if not path.name.startswith(".")]
    images = sorted(path for path in files if path.suffix.lower() in SUFFIXES and path.is_file())
    tables = [] if data.captions else sorted(path for path in files if path.name.lower() in METADATA)
    text_files = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    other = [path for path in files if path.suffix.lower() in OTHER_IMAGES]
    if not images:
        raise DixitError(f"no images in {root}; put some there ({', '.join(SUFFIXES)})"
                         + (f"; {len(other)} are of kinds that are not read: {examples(other)}" if other else ""))
    notes: list[str] = []
    if other:
        notes.append(f"{root}: {len(other)} images are of kinds that are not read: {examples(other)}; convert them to "
                     "PNG or JPEG")
    stems = {path.with_suffix("") for path in images}
    unused = [] if tables or data.captions else [
        path for path in files if path.suffix.lower() in TABLES
        or (path.suffix.lower() == ".txt" and path.with_suffix("") not in stems)]
    if unused:
        notes.append(f"{root}: {len(unused)} files that may hold captions are not read: {examples(unused)}; "
                     "data.captions names a file of captions, and a text file must be called as its image")
    not_utf8: list[Path] = []
    for links, what in (tree.dead, "lead nowhere"), (tree.repeated, "lead to folders that are read already"):
        if links:
            notes.append(f"{root}: {len(links)} links {what}: {examples(links)}")
    captions, given = _from_tables(data, root, tables, images, notes, not_utf8)
    folders = {} if given else split_folders(root, data.splits)
    base, images = _in_split(root, split, folders, images, notes) if folders else (root, images)
    _add_texts(data, images, text_files, captions, notes, not_utf8)
    files = _with_captions(base, images, captions, bool(tables or data.captions), notes)
    if given:
        files = [path for path in files if given.get(path) == split]
    elif not folders:
        files = [path for path in files if split_of(path.relative_to(base).as_posix()) == split]
    if not_utf8:
        notes.append(f"{len(not_utf8)} text files are not UTF-8 and were read as Windows-1252: {examples(not_utf8)}")

    def row(i: int) -> dict:
        name = name_of(files[i], base)
        return make_row(open_image(files[i], data.image_size), captions.get(files[i]) or [name], name)

    def state(path: Path) -> list:
        status = path.stat()
        deep = [decode.VERSION] if path.suffix.lower() in DEEP_SUFFIXES else []
        return [path.relative_to(base).as_posix(), status.st_size, status.st_mtime_ns, *deep]

    class_names = [name_of(path, base) for path in files if name_of(path, base) != _words(path.stem)]
    content = content_hash([state(path) for path in files], [captions.get(path) for path in files],
                           *([class_names] if class_names else []))
    return Source(len(files), content, row, tuple(notes))


# --- which files ---


def split_folders(root: Path, splits: str) -> dict[str, Path]:
    """The folders of a sorted folder by split; empty if images are split by a hash.

    Folders train, validation and test are splits. Other names and spellings (val, dev, Train) are only so if there are
    folders for training and for another split.
    """
    if splits == "hash":
        return {}
    inside = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    found = {split: inside[name] for split, names in SPLIT_NAMES.items() for name in reversed(names) if name in inside}
    certain = any((root / split).is_dir() for split in SPLITS) or ("train" in found and len(found) > 1)
    return found if certain else {}


def _in_split(root: Path, split: str, folders: dict[str, Path], images: list[Path],
              notes: list[str]) -> tuple[Path, list[Path]]:
    """The folder of a split and the images in it; images in no split are noted, or refused if a class is likelier."""
    names = ", ".join(folder.name for folder in folders.values())
    outside = [path.relative_to(root) for path in images
               if not any(path.is_relative_to(folder) for folder in folders.values())]
    beside = sorted({path.parts[0] for path in outside if len(path.parts) > 1})
    if beside and len(folders) == 1:
        raise DixitError(f"the folder {names} in {root} was taken for a split, but {examples(beside)} lie beside it; "
                         f"if {names} is a class of images, set data.splits=hash; else sort all images into folders "
                         "train, validation and test")
    if outside:
        notes.append(f"{root}: {len(outside)} images outside of the folders {names} are in no split: "
                     f"{examples(outside)}; if these folders are classes of images, set data.splits=hash")
    base = folders.get(split, root / split)
    inside = [path for path in images if path.is_relative_to(base)]
    if not inside:
        raise DixitError(f"no images in {base}; put some there ({', '.join(SUFFIXES)}), or set data.splits=hash to "
                         f"have all images split by a hash: now the splits are the folders {names}")
    return base, inside


# --- their captions ---


def _from_tables(data: DataConfig, root: Path, tables: list[Path], images: list[Path], notes: list[str],
                 not_utf8: list[Path]) -> tuple[dict[Path, list[str]], dict[Path, str]]:
    """Captions and splits of images as files of captions name them; rows without an image are noted."""
    captions: dict[Path, list[str]] = {}
    given: dict[Path, str] = {}
    known = _Images(root, images)
    for table in [_captions_file(data, root)] if data.captions else tables:
        folder, absent = (root if data.captions else table.parent), []
        entries = read_entries(table, data, not_utf8)
        for entry in entries:
            path = next(filter(None, (known.find(folder, name, table) for name in entry.names)), None)
            if path is None:
                absent.append(entry.names[0] or "(no name)")
                continue
            captions[path] = list(dict.fromkeys(captions.get(path, []) + entry.captions))
            if entry.split and data.splits != "hash":
                given.setdefault(path, entry.split)
        if absent:
            notes.append(f"{table}: {len(absent)} of {len(entries)} rows name no image in {folder}: {examples(absent)}")
        if len(absent) == len(entries):
            raise DixitError(f"no row of {table} names an image in {folder} ({examples(absent)}); file names must be "
                             "relative to that folder")
    return captions, given


def _captions_file(data: DataConfig, root: Path) -> Path:
    path = expand_home(data.captions)
    for place in (path, root / path):
        if place.is_file():
            return place
    raise DixitError(f"data.captions '{data.captions}' is not a file; name a file of captions")


class _Images:
    """Finds images by the names that files of captions give them."""

    def __init__(self, root: Path, images: list[Path]):
        self.root = os.path.abspath(root)
        self.exact = {os.path.abspath(path): path for path in images}
        self.folded: dict[str, Path | None] = {}
        for name, path in self.exact.items():  # None: two names that differ in case only
            self.folded[self.fold(name)] = None if self.fold(name) in self.folded else path

    @staticmethod
    def fold(name: str) -> str:
        """Names that differ in case, or in how accents are coded, are one."""
        return unicodedata.normalize("NFC", name).casefold()

    def find(self, folder: Path, name: str, table: Path) -> Path | None:
        """The image called `name` in a folder; backslashes count as slashes. None if there is none."""
        for spelling in (name, name.replace("\\", "/")):
            place = os.path.abspath(os.path.join(folder, spelling))
            if place in self.exact:
                return self.exact[place]
        if os.path.commonpath([self.root, place]) != self.root or PureWindowsPath(name).drive:
            raise DixitError(f"{table}: {name} is outside of {self.root}; file names must be relative to {folder}")
        return self.folded.get(self.fold(place))


def _add_texts(data: DataConfig, images: list[Path], text_files: dict[Path, Path], captions: dict[Path, list[str]],
               notes: list[str], not_utf8: list[Path]) -> None:
    """Captions of the images without any so far: the lines of a .txt file beside each."""
    unreadable = []
    for path in images:
        text = text_files.get(path.with_suffix(""))
        if text is None or captions.get(path):
            continue
        try:
            captions[path] = texts(read_text(text, not_utf8).splitlines())
        except DixitError as error:
            if data.broken == "error":
                raise
            captions[path] = []
            unreadable.append(str(error))
    if unreadable:
        notes.append(f"{len(unreadable)} text files cannot be read: {unreadable[0]}")


def _with_captions(base: Path, images: list[Path], captions: dict[Path, list[str]], has_tables: bool,
                   notes: list[str]) -> list[Path]:
    """The images that have a caption, or a name that serves as one: without files of captions all have.

    Where only some images have a text file, the others need names of words.
    """
    bare = [path for path in images if not captions.get(path)]
    if not bare:
        return images
    if has_tables:
        left_out = bare
    elif len(bare) < len(images):
        left_out = [path for path in bare if path in captions or not _has_words(path.stem)]
        named = sorted(set(bare) - set(left_out))
        if named:
            notes.append(f"{base}: {len(named)} of {len(images)} images have no text file: the words of their file "
                         f"names serve as captions: {examples([name_of(path, base) for path in named])}")
    else:
        _note_names(base, [path for path in bare if not _has_words(path.stem)], notes)
        return images
    if left_out:
        notes.append(f"{base}: {len(left_out)} of {len(images)} images have no caption and are left out: "
                     f"{examples(left_out)}")
    gone = set(left_out)
    return [path for path in images if path not in gone]


def _note_names(base: Path, wordless: list[Path], notes: list[str]) -> None:
    """What serves as captions of images without any, whose file names hold no words."""
    by_class = [path for path in wordless if name_of(path, base) != _words(path.stem)]
    if by_class:
        classes = sorted({name_of(path, base) for path in by_class})
        notes.append(f"{base} has no captions: the names of its folders serve for {len(by_class)} images: "
                     f"{examples(classes)}")
    rest = sorted(set(wordless) - set(by_class))
    if rest:
        count = len({name_of(path, base) for path in rest})
        notes.append(f"{base} has no captions, and {len(rest)} images have names such as {rest[0].name}, which say "
                     f"nothing ({count} different captions, e.g. '{name_of(rest[0], base)}'): games need no captions, "
                     "but CLIP heads and warm starts learn nothing from these; put captions into .txt files beside the "
                     "images or into metadata.csv")


def name_of(path: Path, base: Path) -> str:
    """The words of an image's file name; if it has none (IMG_0001), of the nearest folder below `base` that has."""
    if not _has_words(path.stem):
        for folder in path.relative_to(base).parents:
            if _has_words(folder.name):
                return _words(folder.name)
    return _words(path.stem)


def _words(name: str) -> str:
    return clean(" ".join(re.findall(r"[^\W\d_]+", name))) or clean(name)


def _has_words(name: str) -> bool:
    """Whether a name holds a word: not a number, a code, or what cameras write."""
    parts: Sequence[str] = [part.strip("0123456789") for part in re.split(r"[\W_]+", name.lower())]
    return not re.fullmatch(r"[0-9a-f-]{16,}", name.lower()) and any(
        part.isalpha() and part not in NO_WORDS
        and (not part.isascii() or (len(part) > 1 and re.search("[aeiouy]", part) is not None)) for part in parts)
