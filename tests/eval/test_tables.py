"""Tables of results, and the pictures beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from dixit.common import DixitError
from eval import audiences
from eval.figures import MAX_BYTES, save_small_png
from eval.tables import Cell, Row, find, find_cell, look_up, put, read_cells, read_rows, rows_of


def cell(condition: str, seed: str, command: str = "python -m x") -> Cell:
    return Cell("pairs", condition, seed, command, "0123456789ab", "abc", "def", 1.5)


def test_a_cell_is_written_read_and_replaced(tmp_path):
    first, other = cell("colour_vs_grey", "0"), cell("colour_vs_grey", "1")
    figures = {"training/gap": {"mean": 0.4, "se": 0.03, "n": 300}, "distinct_1": 0.123456789, "note, quoted": None}
    put(first, rows_of(first, "trained", figures), tmp_path)
    put(other, rows_of(other, "base", {"training/gap": {"mean": 0.1, "low": 0.0, "high": 0.2}}), tmp_path)
    rows = read_rows(tmp_path / "pairs.csv")
    assert rows[0] == Row("colour_vs_grey", "0", "trained", "training/gap", 0.4, 0.03, n=300)
    assert rows[1].mean == 0.123457 and rows[1].se is None  # six digits
    assert rows[2] == Row("colour_vs_grey", "0", "trained", "note, quoted", None)
    assert find(rows, seed="1")[0].high == 0.2 and find(rows, seed="1", figure="training/gap")[0].low == 0.0
    again = cell("colour_vs_grey", "0", "python -m y")
    put(again, rows_of(again, "trained", {"training/gap": 0.5}), tmp_path)
    assert [row.mean for row in find(read_rows(tmp_path / "pairs.csv"), seed="0")] == [0.5]
    assert find_cell("pairs", "colour_vs_grey", "0", tmp_path) == again and len(read_cells(tmp_path)) == 2
    assert find_cell("pairs", "colour_vs_grey", "2", tmp_path) is None


def test_a_figure_is_looked_up_of_one_seed_of_some_and_of_all(tmp_path):
    for seed, mean in (("0", 0.1), ("1", 0.3), ("2", 0.8)):
        one = cell("colour_vs_grey", seed)
        put(one, rows_of(one, "trained", {"training/gap": {"mean": mean, "se": 0.03, "n": 300}}), tmp_path)
    written = cell("colour_vs_grey", "")
    put(written, rows_of(written, "oracle", {"training/gap": {"mean": 0.5, "se": 0.02, "n": 300}}), tmp_path)

    def gap(seed, field: str = "mean", speaker: str = "trained", figure: str = "training/gap") -> float:
        return look_up("pairs", "colour_vs_grey", seed, speaker, figure, field, tmp_path)

    assert (gap("1"), gap("1", "se"), gap("1", "n")) == (0.3, 0.03, 300)
    assert gap("") == pytest.approx(0.4) and gap(["0", "1"]) == pytest.approx(0.2) and gap("", "n") == 3
    assert gap(["0", "1"], "se") == pytest.approx(math.hypot(0.1, 0.03))  # between seeds, and from the images
    for seed in ("", "2", ["0", "1"]):  # the same captions for every seed
        assert gap(seed, speaker="oracle") == 0.5 and gap(seed, "se", "oracle") == 0.02
    for wrong in ({"seed": "3"}, {"seed": ["0", "3"]}, {"seed": "0", "field": "low"}, {"seed": "", "speaker": "base"},
                  {"seed": "0", "figure": "gap"}):
        with pytest.raises(DixitError, match="pairs.csv has no"):
            gap(**wrong)
    summary = cell("colour_vs_grey", "0 1 2")
    put(summary, rows_of(summary, "trained", {"training/gap": 0.4}), tmp_path)
    assert gap("0 1 2") == 0.4 and gap("", "n") == 3  # a row over seeds is not a seed


def test_audiences_are_kept_by_audience_and_over_audiences(tmp_path):
    claim = {"mean": 0.3, "low": 0.2, "high": 0.4, "images": 100}
    results = {"command": "python -m eval.audiences run", "config_hash": "0123456789ab", "commit": "abc", "images": 100,
               "seeds": {"run": 2}, "wall_seconds": 3.5,
               "training": {"gap": {"all / colours": {"base": 0.1, "16 picks": 0.25}}, "claims": {
                   "unseen: 16 picks": claim, "64 picks over specialists": {"ratio": 0.9, "audiences": 4}}},
               "heldout": {"gap": {"all / colours": {"base": 0.0}}, "claims": {"unseen: 16 picks": claim}}}
    audiences.keep("audiences", results, tmp_path)

    def found(speaker: str, figure: str, field: str = "mean") -> float:
        return look_up("audiences", "audiences", "2", speaker, figure, field, tmp_path)

    assert found("16 picks", "training/gap/all / colours") == 0.25
    assert found("", "heldout/unseen: 16 picks", "low") == 0.2 and found("", "training/unseen: 16 picks", "n") == 100
    assert found("", "training/64 picks over specialists") == 0.9
    assert not find(read_rows(tmp_path / "audiences.csv"), figure="heldout/gap/all / colours")


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
    save_small_png(tmp_path / "large.png", tmp_path / "small.png")
    assert (tmp_path / "small.png").stat().st_size <= MAX_BYTES < (tmp_path / "large.png").stat().st_size
    with Image.open(tmp_path / "small.png") as small:
        assert small.width / small.height == pytest.approx(16 / 9, rel=0.02)
