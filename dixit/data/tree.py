"""List the files under a folder, and under the folders that links in it lead to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from dixit.common import DixitError


@dataclass
class Tree:
    """What lies under a folder. Paths begin with the folder's own, also those under a link."""

    files: list[Path] = field(default_factory=list)  # without links that lead nowhere
    followed: list[Path] = field(default_factory=list)  # links to folders
    repeated: list[Path] = field(default_factory=list)  # links to folders that are read already
    dead: list[Path] = field(default_factory=list)  # links that lead nowhere


def list_tree(root: Path) -> Tree:
    """Each real folder is read once, so loops of links end. Raises DixitError for a folder that may not be read."""
    tree, waiting, seen = Tree(), [root], set()
    above = Path(os.path.realpath(root)).parents
    while waiting:  # folders come before links, so that a folder is read under its own name
        top = waiting.pop(0)
        real = os.path.realpath(top)
        if real in seen or Path(real) in above:
            tree.repeated.append(top)
            continue
        if top != root:
            tree.followed.append(top)
        for parent, folders, names in os.walk(top, onerror=_refuse):
            seen.add(os.path.realpath(parent))
            inside = [Path(parent, name) for name in sorted(folders)]
            waiting += [path for path in inside if path.is_symlink()]
            folders[:] = [path.name for path in inside if not path.is_symlink() and os.path.realpath(path) not in seen]
            for path in (Path(parent, name) for name in sorted(names)):
                (tree.files if path.exists() else tree.dead).append(path)
    return tree


def _refuse(error: OSError) -> None:
    raise DixitError(f"cannot read the folder {error.filename}: {error.strerror}")
