"""Text as people save it: encodings, byte-order marks, line ends, delimiters."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dixit.common import DixitError
from dixit.config import DataConfig
from dixit.data.captions import read_entries, read_text, texts
from dixit.data.images import load

TEXT = "ein Kätzchen – süß\r\n\r\nzwei Kätzchen\r\n"
CAPTIONS = ["ein Kätzchen – süß", "zwei Kätzchen"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"])
def test_text_files_in_common_encodings(encoding, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "cache"))
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "cat.png")
    (tmp_path / "train" / "cat.txt").write_bytes((mark + TEXT).encode(encoding))
    assert load(DataConfig(name="folder", path=str(tmp_path), image_size=16), "train")["captions"][:] == [CAPTIONS]
    assert ("read as Windows-1252" in capsys.readouterr().err) == (encoding == "cp1252")


@pytest.mark.parametrize("content", ["a cat".encode("utf-16-le"), b"a\0cat", b"\x81\xff", b"\xff\xfea\xd8\xd8"])
def test_what_is_no_text_is_one_line(content, tmp_path):
    path = tmp_path / "cat.txt"
    path.write_bytes(content)
    with pytest.raises(DixitError, match="UTF-8") as error:
        read_text(path, [])
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def entries(path: Path, content: bytes) -> list[tuple[str, list[str]]]:
    path.write_bytes(content)
    return [(entry.names[0], entry.captions) for entry in read_entries(path, DataConfig(), [])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_as_spreadsheets_write_them(encoding, delimiter, end, tmp_path):
    rows = [["file_name", "text"], ["a.png", '"süß, klein; rot | 1"'], ["b.png", '"[""one"", ""two""]"'], ["", ""]]
    text = end.join(delimiter.join(row) for row in rows)
    assert entries(tmp_path / "metadata.csv", text.encode(encoding)) == [
        ("a.png", ["süß, klein; rot | 1"]), ("b.png", ["one", "two"])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines_with_marks_and_odd_characters(encoding, tmp_path):
    text = '{"file_name": "a.png", "text": "one\u2028line"}\r\n\r\n{"file_name": "b.png", "text": null}\r\n'
    assert entries(tmp_path / "m.jsonl", text.encode(encoding)) == [("a.png", ["one line"]), ("b.png", [])]
    for damaged in (b"{not json", b"[1, 2]", b'"text"', b"[" * 100_000):
        with pytest.raises(DixitError, match=r"m\.jsonl"):
            entries(tmp_path / "m.jsonl", damaged)
    with pytest.raises(DixitError, match="not a readable Parquet"):
        entries(tmp_path / "m.parquet", b"PAR1")


def test_captions_are_clean():
    assert texts("\ufeff a\0cat \n sleeps ") == ["a cat sleeps"]
    assert texts([{"raw": "one"}, "two", ["three"], None, 4, " ", "two"]) == ["one", "two", "three"]
    assert texts({"caption": ["one", "two"]}) == ["one", "two"]
    assert texts("half \ud800 pair") == ["half ? pair"] and texts({"other": "x"}) == []
