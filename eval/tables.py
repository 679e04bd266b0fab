"""Read and write the tables of results: a row per figure in eval/results/EXPERIMENT.csv, a row per cell in cells.csv.

A cell is one (experiment, condition, seed), measured by one command. `put` writes a cell with its rows and replaces an
earlier one of the same name. Pages such as eval/RESULTS.md are generated from these tables, and `look_up` finds a
figure in them.

Leaves out how figures are computed and shown.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, cast

from dixit.common import DixitError, atomic_write_text, locked

from .metrics import mean_and_error

RESULTS = Path(__file__).parent / "results"
TRUTH = {"True": True, "False": False}
RowType = TypeVar("RowType")


@dataclass(frozen=True)
class Row:
    """One figure of one cell: a mean, its standard error or its 95 % interval, and the number of values behind it."""

    condition: str
    seed: str  # of the run; "0 1 2" for a figure over several, "" where there is none
    speaker: str  # or what else is compared: a CLIP, a program
    figure: str
    mean: float | None
    se: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Cell:
    """Command, config, commits and cost of the rows of one (experiment, condition, seed)."""

    experiment: str
    condition: str
    seed: str
    command: str
    config_hash: str  # of pairs and ceilings: settings_hash, which says if the cell is current; else config_hash
    commit: str  # of the evaluation
    training_commit: str = ""
    seconds: float | None = None  # wall time of the evaluation; in pairs, of training and evaluation
    note: str = ""


def read_rows(path: Path) -> list[Row]:
    """The rows of a table, in order; none if there is no such file. Raises DixitError if it is damaged."""
    return read_table(path, Row)


def read_cells(folder: Path = RESULTS) -> list[Cell]:
    """All cells in FOLDER/cells.csv, in order."""
    return read_table(folder / "cells.csv", Cell)


def find_cell(experiment: str, condition: str, seed: str, folder: Path = RESULTS) -> Cell | None:
    """The cell of that name, or None if it has not been run."""
    return next((cell for cell in read_cells(folder)
                 if (cell.experiment, cell.condition, cell.seed) == (experiment, condition, seed)), None)


def find(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """The rows whose fields are as wanted, e.g. find(rows, condition="colour_vs_grey", figure="training/gap")."""
    return [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]


def rows_of(cell: Cell, speaker: str, figures: dict[str, Any]) -> list[Row]:
    """A speaker's figures as rows of a cell: numbers, or {"mean", "se", "n"} with "low" and "high" where there are."""
    made = []
    for name, value in figures.items():
        value = value if isinstance(value, dict) else {"mean": value}
        made.append(Row(cell.condition, cell.seed, speaker, name,
                        *(value.get(key) for key in ("mean", "se", "low", "high", "n"))))
    return made


def over_seeds(rows: Sequence[Row], speaker: str, figure: str) -> dict[str, float] | None:
    """{"mean", "se", "n"}: the mean of a figure over the seeds of `rows`, which are of one condition.

    All seeds are evaluated on the same images, so more seeds do not reduce the error from the images: `se` combines
    the standard error between seeds with the mean of the standard errors within them. A row without a seed (seed "") is
    returned as it is. None if the figure is missing for a seed.
    """
    found = find(rows, speaker=speaker, figure=figure)
    seeds = {row.seed for row in rows if row.seed}
    means = [row.mean for row in found if row.mean is not None]
    if not means or {row.seed for row in found} not in (seeds, {""}):
        return None
    over = mean_and_error(means)
    within = math.sqrt(sum((row.se or 0.0) ** 2 for row in found) / len(found))
    return over | {"se": math.hypot(over["se"], within)}


def look_up(experiment: str, condition: str, seed: str | Sequence[str], speaker: str, figure: str,
            field: str = "mean", folder: Path = RESULTS) -> float:
    """One number of the tables, e.g. look_up("pairs", "colour_vs_grey", "0", "trained", "training/gap").

    `seed` is the seed of a row: "0", or "0 1 2" where a figure over several seeds is kept as a row. A list of seeds,
    or "" for all there are, gives the mean over their rows and its error (`over_seeds`). Ground-truth and oracle
    captions of `pairs` are the same for every seed; their one row is found with any. `field` is "mean", "se" or "n",
    and for a single row also "low" or "high". Raises DixitError if there is no such number.
    """
    path = folder / f"{experiment}.csv"
    rows = find(_rows_at(path, path.stat().st_mtime_ns if path.is_file() else 0), condition=condition)
    wanted = ([seed] if isinstance(seed, str) else list(seed)) if seed else sorted(
        {row.seed for row in rows if row.seed and " " not in row.seed})
    some = [row for row in rows if row.seed in ("", *wanted)]
    found = find(some, speaker=speaker, figure=figure)
    value = None
    if {row.seed for row in found} in ({""}, set(wanted)):
        value = getattr(found[0], field) if len(found) == 1 else (over_seeds(some, speaker, figure) or {}).get(field)
    if value is None:
        raise DixitError(f"{path} has no {field} of {figure} of '{speaker}' in {condition}, seed {seed or 'any'}")
    return float(value)


def put(cell: Cell, rows: Sequence[Row], folder: Path = RESULTS) -> None:
    """Write a cell and its rows; one of the same experiment, condition and seed is replaced."""
    def same(row: Row) -> bool:
        return (row.condition, row.seed) == (cell.condition, cell.seed)

    if not all(same(row) for row in rows):
        raise ValueError("every row must be of the cell")
    replace_rows(folder / f"{cell.experiment}.csv", Row, same, rows, ("condition", "seed"))
    replace_rows(folder / "cells.csv", Cell, lambda other: (other.experiment, other.condition, other.seed) == (
        cell.experiment, cell.condition, cell.seed), [cell], ("experiment", "condition", "seed"))


def replace_rows(path: Path, kind: type[RowType], old: Callable[[RowType], bool], new: Sequence[RowType],
                 order: tuple[str, ...]) -> None:
    """Remove the rows for which `old` is true from a table of the dataclass `kind`, add `new` ones, sort by `order`."""
    with locked(path.parent / ".tables.lock"):  # several processes may write cells
        kept = [row for row in read_table(path, kind) if not old(row)]
        _write(path, kind, sorted([*kept, *new], key=attrgetter(*order)))


def read_table(path: Path, kind: type[RowType]) -> list[RowType]:
    """The rows of a table of the dataclass `kind`, whose fields are str, bool, int, float, or a number or None.

    An empty list if there is no such file. Raises DixitError if it is damaged.
    """
    if not path.is_file():
        return []
    parse: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": lambda word: TRUTH[word]}
    numbers = {field.name: parse[str(field.type).partition(" ")[0]] for field in fields(cast(Any, kind))
               if field.type != "str"}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [kind(**{key: (numbers[key](value) if value else None) if key in numbers else value
                            for key, value in line.items()}) for line in csv.DictReader(file, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DixitError(f"{path} is damaged ({error}); restore it, or delete it and make it again") from None


@lru_cache(maxsize=8)
def _rows_at(path: Path, modified: int) -> list[Row]:
    """The rows of a table; cached by its modification time, for many look-ups."""
    return read_rows(path)


def _write(path: Path, kind: Any, items: Sequence[Any]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows([_short(value) for value in astuple(item)] for item in items)
    atomic_write_text(path, text.getvalue())


def _short(value: Any) -> Any:
    """Numbers are rounded to six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else value
