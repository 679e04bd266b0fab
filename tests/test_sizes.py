"""The repository stays small: results, pictures, modules."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "eval" / "results"


def files(folder: Path, *suffixes: str) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in suffixes]


def test_results_are_small():
    texts = [path.read_bytes() for path in files(RESULTS, ".csv", ".json", ".md")]
    assert sum(map(len, texts)) <= 1_000_000
    assert sum(text.count(b"\n") for text in texts) <= 12_000


def test_pictures_are_small():
    pictures = files(RESULTS, ".png", ".jpg", ".svg", ".webp") + files(ROOT / "docs", ".png", ".jpg", ".svg", ".webp")
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in pictures}
    assert not {name: size for name, size in sizes.items() if size > 100_000}
    assert sum(sizes.values()) <= 2_000_000


def test_nothing_else_lies_among_the_results():
    known = {".csv", ".json", ".md", ".png"}
    assert not [path for path in RESULTS.rglob("*") if path.is_file() and path.suffix not in known
                and not path.name.startswith(".")]


def test_no_module_is_long():
    folders = ("dixit", "eval", "scripts", "tests")
    modules = [path for folder in folders for path in files(ROOT / folder, ".py", ".js", ".css")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in modules}
    assert len(lengths) > 50
    assert not {name: length for name, length in lengths.items() if length > 500}
