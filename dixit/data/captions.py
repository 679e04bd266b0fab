"""Read captions of image files: from text files, tables (CSV, JSON lines, Parquet), COCO and Karpathy JSON.

Leaves out matching file names with images (folder.py).
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dixit.common import DixitError, first_line
from dixit.config import DataConfig
from dixit.data.sources import SPLIT_NAMES

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as the imagefolder loader of datasets takes them
FILE_COLUMNS = ("file_name", "filename", "image", "image_name", "file", "image_path", "path")
CAPTION_COLUMNS = ("text", "caption", "captions", "raw", "sentences", "comment")
KNOWN_SPLITS = {alias: split for split, aliases in SPLIT_NAMES.items() for alias in aliases}
DELIMITERS = ",;\t|"
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
                    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True)
class Entry:
    """Captions that a file gives to an image."""

    names: tuple[str, ...]  # where the image may be, relative to its folder
    captions: list[str]
    split: str = ""  # "" if the file names none


def texts(value: object) -> list[str]:
    """A caption, a mapping that holds one, or a list of them, as distinct non-empty texts with single spaces."""
    found = []
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict):
            part = next((part[key] for key in CAPTION_COLUMNS if part.get(key)), None)
        for text in part if isinstance(part, list) else [part]:
            if isinstance(text, str):
                found.append(clean(text))
    return [text for text in dict.fromkeys(found) if text]


def clean(text: str) -> str:
    """Single spaces, without byte-order marks, NUL characters and halves of surrogate pairs."""
    return " ".join(text.translate({0xFEFF: None, 0: " "}).encode("utf-8", "replace").decode().split())


def read_text(path: Path, not_utf8: list[Path]) -> str:
    """The text of a file in UTF-8, in UTF-16 or UTF-32 with a byte-order mark, or else in Windows-1252.

    Appends the path to `not_utf8` if Windows-1252 had to be assumed. Raises DixitError for anything else.
    """
    try:
        data = path.read_bytes()
        for mark, encoding in BYTE_ORDER_MARKS:
            if data.startswith(mark):
                return data[len(mark):].decode(encoding)
        if b"\0" in data:
            raise DixitError(f"{path} has NUL bytes and no byte-order mark, so it is not text; save it as UTF-8")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
            not_utf8.append(path)
            return text
    except OSError as error:
        raise DixitError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DixitError(f"{path} is not text ({first_line(error)}); save it as UTF-8") from None


def read_entries(path: Path, data: DataConfig, not_utf8: list[Path]) -> list[Entry]:
    """The captions in a file of captions. Raises DixitError if its format is none of those above."""
    kind = path.suffix.lower()
    if kind == ".json":
        tree = parse_json(read_text(path, not_utf8), str(path))
        if isinstance(tree, dict):
            return _from_tree(tree, path)
        rows = tree
    elif kind == ".jsonl":
        lines = enumerate(read_text(path, not_utf8).split("\n"), 1)
        rows = [parse_json(line, f"{path}, line {number},") for number, line in lines if line.strip()]
    elif kind == ".parquet":
        rows = _parquet(path)
    elif kind in (".csv", ".tsv", ".txt"):
        rows = _csv(read_text(path, not_utf8), path)
    else:
        raise DixitError(f"{path} is no file of captions; give .csv, .tsv, .jsonl, .parquet, or .json of COCO or "
                         "Karpathy")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DixitError(f"{path} must hold one mapping for each row, with a file name and a caption")
    return _from_rows(rows, path, data)


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DixitError(f"{where} is not valid JSON ({first_line(error)})") from None


def _csv(text: str, path: Path) -> list[dict]:
    """Rows of a CSV file, whose delimiter is that of the header: a comma, semicolon, tab or bar."""
    try:
        table = io.StringIO(text, newline="")
        headers = {d: next(csv.reader(io.StringIO(text, newline=""), delimiter=d), []) for d in DELIMITERS}
        delimiter = max(DELIMITERS, key=lambda d: len(headers[d]))
        lines = csv.reader(table, delimiter=delimiter, strict=True)
        header = [clean(name) for name in next(lines, [])]
        twice = next((name for name in header if name and header.count(name) > 1), None)
        if twice:
            raise DixitError(f"{path} has two columns '{twice}'; rename or remove one")
        rows = []
        for cells in lines:
            if any(cell.strip() for cell in cells[len(header):]):
                raise DixitError(f"{path}, line {lines.line_num}, has {len(cells)} cells, but the header "
                                 f"{len(header)}; put captions with commas in quotes")
            if any(cells):
                rows.append(dict(zip(header, map(_cell, cells), strict=False)))
        return rows or [dict.fromkeys(header)]
    except csv.Error as error:
        raise DixitError(f"{path} is not a valid CSV file (line {lines.line_num}: {error})") from None


def _cell(text: str) -> object:
    """The text of a cell, or the list that it holds as JSON."""
    if text.startswith("["):
        try:
            value = json.loads(text)
            return value if isinstance(value, list) else text
        except (ValueError, RecursionError):
            pass
    return text


def _parquet(path: Path) -> list[dict]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow raises many kinds
        raise DixitError(f"{path} is not a readable Parquet file ({first_line(error)})") from None


def _from_rows(rows: list[dict], path: Path, data: DataConfig) -> list[Entry]:
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))

    def column(wanted: str, usual: tuple[str, ...], key: str, what: str) -> str:
        found = next((name for name in (wanted, *usual) if name in columns), None)
        if found is None:
            raise DixitError(f"{path} has no {what}; set data.{key} to one of its columns: "
                             f"{', '.join(columns) or '(none)'}")
        return found

    name = column("file_name", (data.image_column, *FILE_COLUMNS), "image_column", "file names")
    caption = column(data.caption_column, CAPTION_COLUMNS, "caption_column", "captions")
    splits = [str(row.get("split") or "").strip().lower() for row in rows]
    unknown = sorted({split for split in splits if split not in KNOWN_SPLITS})
    if data.splits != "hash" and unknown and len(unknown) < len(set(splits)):
        raise DixitError(f"{path}: the column split has train, val or test in some rows, but '{unknown[0]}' in others; "
                         "mend these, or set data.splits=hash")
    return [Entry((str(row.get(name) or ""),), texts(row.get(caption)), "" if unknown else KNOWN_SPLITS[split])
            for row, split in zip(rows, splits, strict=True)]


def _from_tree(tree: dict, path: Path) -> list[Entry]:
    try:
        images = tree["images"]
        if "annotations" in tree:
            return _coco(images, tree["annotations"])
        return [_karpathy(image) for image in images]
    except (KeyError, TypeError, AttributeError) as error:
        raise DixitError(f"{path} is neither COCO captions (images with id and file_name, annotations with image_id "
                         "and caption) nor a Karpathy split (images with filename, split and sentences): "
                         f"{type(error).__name__} {first_line(error)}") from None


def _coco(images: list[dict], annotations: list[dict]) -> list[Entry]:
    captions = defaultdict(list)
    for annotation in annotations:
        captions[annotation["image_id"]].append(annotation["caption"])
    known = [Entry((str(image["file_name"] or ""),), texts(captions.pop(image["id"], []))) for image in images]
    return known + [Entry((f"image_id {key}",), texts(rest)) for key, rest in captions.items()]


def _karpathy(image: dict) -> Entry:
    """COCO's images lie in folders val2014 and train2014 (`filepath`), those of Flickr in one."""
    name = str(image["filename"] or "")
    places = (f"{image['filepath']}/{name}", name) if image.get("filepath") else (name,)
    return Entry(places, texts(image["sentences"]), KNOWN_SPLITS[image["split"]])
