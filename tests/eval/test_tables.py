"""Tables of results, and the pictures beside them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dixit.common import DixitError
from eval.figures import MOST_BYTES, keep_picture
from eval.tables import Cell, Row, find, find_cell, put, read_cells, read_rows, rows_of


def cell(condition: str, seed: str, command: str = "python -m x") -> Cell:
    return Cell("pairs", condition, seed, command, "0123456789ab", "abc", "def", 1.5)


def test_a_cell_is_written_read_and_replaced(tmp_path):
    first, other = cell("colour_vs_grey", "0"), cell("colour_vs_grey", "1")
    figures = {"training/gap": {"mean": 0.4, "se": 0.03, "n": 300}, "distinct_1": 0.123456789, "note, quoted": None}
    put(first, rows_of(first, "trained", figures), tmp_path)
    put(other, rows_of(other, "base", {"training/gap": {"mean": 0.1, "low": 0.0, "high": 0.2}}), tmp_path)
    rows = read_rows(tmp_path / "pairs.csv")
    assert rows[0] == Row("pairs", "colour_vs_grey", "0", "trained", "training/gap", 0.4, 0.03, n=300)
    assert rows[1].mean == 0.123457 and rows[1].se is None  # six digits
    assert rows[2] == Row("pairs", "colour_vs_grey", "0", "trained", "note, quoted", None)
    assert find(rows, seed="1")[0].high == 0.2 and find(rows, seed="1", figure="training/gap")[0].low == 0.0
    again = cell("colour_vs_grey", "0", "python -m y")
    put(again, rows_of(again, "trained", {"training/gap": 0.5}), tmp_path)
    assert [row.mean for row in find(read_rows(tmp_path / "pairs.csv"), seed="0")] == [0.5]
    assert find_cell("pairs", "colour_vs_grey", "0", tmp_path) == again and len(read_cells(tmp_path)) == 2
    assert find_cell("pairs", "colour_vs_grey", "2", tmp_path) is None


def test_rows_of_another_cell_are_refused(tmp_path):
    with pytest.raises(ValueError, match="of the cell"):
        put(cell("a", "0"), rows_of(cell("b", "0"), "base", {"gap": 1.0}), tmp_path)
    assert not list(tmp_path.glob("*.csv"))


def test_a_damaged_table_is_one_line(tmp_path):
    put(cell("a", "0"), rows_of(cell("a", "0"), "base", {"gap": 1.0}), tmp_path)
    path = tmp_path / "pairs.csv"
    path.write_text(path.read_text().replace("1", "one"))
    with pytest.raises(DixitError, match="damaged"):
        read_rows(path)


def test_a_large_picture_is_kept_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, size=(900, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    keep_picture(tmp_path / "large.png", tmp_path / "small.png")
    assert (tmp_path / "small.png").stat().st_size <= MOST_BYTES < (tmp_path / "large.png").stat().st_size
    with Image.open(tmp_path / "small.png") as small:
        assert small.width / small.height == pytest.approx(16 / 9, rel=0.02)
