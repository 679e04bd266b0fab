"""A data set in a local folder that the `datasets` library reads (also tar files of WebDataset), or one on the hub.

No code of a data set is run.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path

import datasets
from pyarrow import compute

from dixit.common import DixitError, expand_home, first_line, locked
from dixit.config import DataConfig
from dixit.data import decode
from dixit.data.assets import cache_dir
from dixit.data.captions import CAPTION_COLUMNS, texts
from dixit.data.decode import open_image
from dixit.data.sources import Source, content_hash, examples, make_row, split_of
from dixit.data.tree import list_tree

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")


def hub_set(data: DataConfig, split: str) -> Source:
    """The rows of a split that have a caption. Without given splits a hash of row numbers makes them."""
    parts = _load(data)
    has_splits = set(parts) != {"train"} and data.splits != "hash"
    if has_splits and split not in parts:
        raise DixitError(f"the data set '{data.path}' has no split {split}, only {', '.join(parts)}; set "
                         "data.splits=hash to have all its rows split by a hash")
    table = parts[split] if has_splits else datasets.concatenate_datasets(list(parts.values())) \
        if len(parts) > 1 else next(iter(parts.values()))
    image = _column(data, table, "image_column", (data.image_column, *IMAGE_COLUMNS))
    caption = _column(data, table, "caption_column", (data.caption_column, *CAPTION_COLUMNS, "txt", "json"))
    try:
        raw = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except Exception as error:  # pyarrow raises many kinds
        raise DixitError(f"column '{image}' of the data set '{data.path}' holds no images ({first_line(error)}); set "
                         f"data.image_column to one of {', '.join(table.column_names)}") from None
    captions = _captions(table, caption)
    with_captions = [i for i, found in enumerate(captions) if found]
    if captions and not with_captions:
        raise DixitError(f"no row of '{data.path}' has a caption in column '{caption}'; set data.caption_column to one "
                         f"of {', '.join(table.column_names)}")
    rows = [i for i in with_captions if has_splits or split_of(str(i)) == split]
    bare = [i for i, found in enumerate(captions) if not found]
    notes = [f"{data.path}: {len(bare)} of {len(captions)} images have no caption and are left out: rows "
             f"{examples(bare)}"] if bare else []

    def row(i: int) -> dict:
        item, name = raw[rows[i]][image] or {}, f"row {rows[i]} of {data.path}"
        source = io.BytesIO(item["bytes"]) if item.get("bytes") else item.get("path") or io.BytesIO()
        return make_row(open_image(source, data.image_size, name), captions[rows[i]])

    content = content_hash(table._fingerprint, decode.VERSION, image, caption, has_splits, _file_states(raw, image))
    return Source(len(rows), content, row, tuple(notes))


def _load(data: DataConfig) -> dict[str, datasets.Dataset]:
    """The splits of the data set by name."""
    local = expand_home(data.path)
    try:
        if local.is_dir():
            tree = list_tree(local)
            if tree.followed or not re.fullmatch(r"[\w./ -]*", str(local.absolute())):
                local = _mirror(local, tree.files)
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            loaded = datasets.load_from_disk(str(local))
        else:
            loaded = datasets.load_dataset(str(local) if local.is_dir() else data.path)
    except DixitError:
        raise
    except Exception as error:  # network, names, formats: each becomes one line
        reason = first_line(error.__cause__ or error)
        raise DixitError(f"cannot load the data set '{data.path}' ({reason}); set data.path to a local folder or a hub "
                         "name, and go online for its first use") from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _mirror(folder: Path, files: list[Path]) -> Path:
    """A folder in the cache with links to the files of another one.

    For `datasets` takes brackets in a path for patterns, and leaves out what lies under links to folders.
    """
    source = str(folder.absolute())
    mirror = cache_dir() / "links" / hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
    with locked(mirror.with_suffix(".lock")):
        wanted = {mirror / path.relative_to(folder): path.absolute() for path in files}
        for link in mirror.rglob("*"):
            if link.is_symlink() and link not in wanted:
                link.unlink()
        for link, path in wanted.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path)
            changed = path.stat().st_mtime_ns  # by which `datasets` sees a change
            os.utime(link, ns=(changed, changed), follow_symlinks=False)
    return mirror


def _column(data: DataConfig, table: datasets.Dataset, key: str, names: tuple[str, ...]) -> str:
    found = next((name for name in names if name in table.column_names), None)
    if found is None:
        raise DixitError(f"the data set '{data.path}' has no column '{names[0]}'; set data.{key} to one of "
                         f"{', '.join(table.column_names)}")
    return found


def _captions(table: datasets.Dataset, column: str) -> list[list[str]]:
    """The captions of each row; the names of classes where the column holds classes."""
    feature, values = table.features[column], table.select_columns([column])[:][column]
    if isinstance(feature, datasets.ClassLabel):
        return [texts(feature.int2str(value).replace("_", " ")) if value is not None and value >= 0 else []
                for value in values]
    return [texts(value) for value in values]


def _file_states(raw: datasets.Dataset, image: str) -> list[tuple[str, int, int]]:
    """Path, size and time of the image files that rows name instead of holding them."""
    column = raw.with_format("arrow")[:][image]
    named = compute.filter(compute.struct_field(column, "path"), compute.is_null(compute.struct_field(column, "bytes")))
    found = [(path, os.stat(path)) for path in named.to_pylist() if path and os.path.isfile(path)]
    return [(path, status.st_size, status.st_mtime_ns) for path, status in found]
