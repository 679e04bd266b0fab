"""The report of a run that was also evaluated on other images."""

from __future__ import annotations

import json
import shutil

from eval import commands, report


def test_a_report_shows_images_of_other_sets(game_run, home, tmp_path, monkeypatch):
    run = shutil.copytree(game_run, tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["evaluate", str(run)])
    commands.evaluate()
    page = report.write_report(run, 3).read_text()
    assert page.count('class="sheet"') == 1 and "Zero-shot" not in page
    monkeypatch.setattr("sys.argv", ["transfer", str(run), "--data", "combos", "--pools", "1", "eval.images=6"])
    commands.transfer()
    captions = json.loads((run / "transfer_captions.json").read_text())
    captions["combos"][0]["trained"][5] = "<script>the last one"
    (run / "transfer_captions.json").write_text(json.dumps(captions))
    page = report.write_report(run, 3).read_text()
    sheet = page.split("<h2>combos</h2>")[1]
    assert "<h2>Zero-shot</h2><table>" in page and sheet.count("<img ") == 3
    assert sheet.count("<h3>base: ") == 3 and "trained: &lt;script&gt;the last one" in sheet and "<script>" not in page
