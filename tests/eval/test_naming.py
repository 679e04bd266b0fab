"""How a speaker names pictures, on tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from dixit.common import DixitError
from eval import commands


def pictures(folder: Path) -> Path:
    for i in range(12):
        (folder / "dog").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * i, 255 - 20 * i, 40)).save(folder / "dog" / f"{i}.png")
    return folder


def test_a_table_of_both_speakers_and_a_clear_refusal(caption_run, home, tmp_path, monkeypatch, capsys):
    folder = pictures(tmp_path / "pictures")
    words = ["naming", str(caption_run), "--data", f"folder:{folder}", "--eyes", str(home.clip)]
    monkeypatch.setattr(sys, "argv", words)
    commands.naming()
    printed = capsys.readouterr().out
    figures = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines() if line.startswith("| ")}
    assert {f"found/{home.clip}", "english", "file_name", "perplexity"} <= set(figures)
    assert "ground truth" in figures["figure"] and "trained" in figures["figure"]
    share = float(figures[f"found/{home.clip}"].split(" | ")[1].split(" ± ")[0])
    assert 0 <= share <= 1
    monkeypatch.setattr(sys, "argv", [*words[:-1], "no-such-clip"])
    with pytest.raises(DixitError, match="no-such-clip"):
        commands.naming()
