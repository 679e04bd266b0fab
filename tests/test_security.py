"""Files that users may download or be sent run no code, leave their folder nowhere, and are only ever shown as text."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dixit.common import DixitError
from dixit.models.clip import load_clip
from dixit.models.llm import load_llm

ROOT = Path(__file__).resolve().parents[1]


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self):
        return (Path.touch, (self.sign,))


def trap(path: Path, sign: Path) -> None:
    torch.save({"weight": Trap(sign)}, path)
    torch.load(path, weights_only=False)
    sign.unlink()  # the trap works: a careless reader runs it


def test_a_clip_with_a_pickle_for_weights_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny.clip, tmp_path / "eye"))
    (folder / "open_clip_model.safetensors").unlink()
    for name in ("open_clip_pytorch_model.bin", "pytorch_model.bin"):
        trap(folder / name, tmp_path / "ran")
    with pytest.raises(DixitError, match="cannot load CLIP"):
        load_clip(str(folder))
    assert not (tmp_path / "ran").exists()


def test_an_llm_with_a_pickle_for_weights_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny.llm, tmp_path / "llm"))
    (folder / "model.safetensors").unlink()
    trap(folder / "pytorch_model.bin", tmp_path / "ran")
    with pytest.raises(DixitError, match="cannot load the LLM"):
        load_llm(str(folder))
    assert not (tmp_path / "ran").exists()


def test_an_llm_that_brings_code_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny.llm, tmp_path / "llm"))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    about = json.loads((folder / "config.json").read_text())
    about |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(DixitError, match="cannot load the LLM"):
        load_llm(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"half", b"\x80\x02garbage" * 50])
def test_a_damaged_llm_is_one_line(tiny, tmp_path, content):
    folder = Path(shutil.copytree(tiny.llm, tmp_path / "llm"))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DixitError, match="cannot load the LLM"):
        load_llm(str(folder))


def test_nothing_in_the_tree_unpickles_or_runs_what_it_reads():
    """By name: no pickle, no eval or exec of text, torch.load only of plain weights, no shell, no remote code."""
    for path in [p for folder in ("dixit", "eval", "scripts") for p in (ROOT / folder).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bimport (c?[pP]ickle|dill|joblib|shelve)\b|allow_pickle ?= ?True|"
                             r"yaml\.(unsafe_)?load\(|(?<![\w.])(eval|exec)\(|shell ?= ?True|os\.system\(|"
                             r"trust_remote_code ?= ?True", text), path
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^\n]*", text)), path
        assert all("tempfile.mktemp" not in line for line in text.splitlines()), path


def test_a_cache_that_is_a_pickle_is_made_again(home, tmp_path, monkeypatch, capsys):
    import numpy as np

    from dixit.models.features import _cached

    path = tmp_path / "features" / "a.npy"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    made = _cached(path, 4, lambda a, b: np.ones((b - a, 2), np.float32), "ones", 2)
    assert (made == 1).all() and not (tmp_path / "ran").exists()
    assert "is damaged; making it again" in capsys.readouterr().err


def test_a_report_escapes_all_text(game_run, home, tmp_path):
    from eval.report import write_report

    run, evil = Path(shutil.copytree(game_run, tmp_path / "run")), "<script>alert('&')</script>|\u202e"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["name"] = config["listeners"][0]["name"] = evil
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    captions = {"texts": [evil] * 2, "pick": [[0, 1]] * 2, "p_target": [[0.5, 0.5]] * 2}
    (run / "results_captions.json").write_text(json.dumps(
        {"pools": [[0, 1, 2, 3]] * 2, "base": captions, "trained": captions}))
    figures = {evil: {f"training/accuracy/{evil}": {"mean": 0.5, "se": 0.1}}}
    (run / "results.json").write_text(json.dumps({
        "figures": figures, "command": evil, "commit": evil, "config_hash": evil, "seeds": {"run": evil}}))
    page = write_report(run).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
