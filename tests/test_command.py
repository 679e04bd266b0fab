"""The console command `dixit`, in a clone and from an installed wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dixit import common
from dixit.__main__ import COMMANDS
from dixit.common import DixitError
from dixit.config import find_config

ROOT = Path(__file__).resolve().parents[1]


def dixit(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "dixit", *map(str, words)], cwd=cwd, capture_output=True, text=True,
                          timeout=120, env=os.environ | environment)


def test_help_fits_a_screen_and_names_every_command():
    done = dixit("--help")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 24 and max(map(len, lines)) <= 100
    assert all(name in done.stdout for name in COMMANDS)
    assert dixit("--version").stdout.strip()


def test_an_unknown_command_is_one_line():
    done = dixit("trian")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "'trian' is no command" in done.stderr


PROGRAMS = [f"dixit {name}" for name in COMMANDS] + [
    f"eval.{path.stem}" for path in sorted((ROOT / "eval").glob("*.py"))
    if "__main__" in path.read_text()] + ["eval.dynamics"]


@pytest.mark.parametrize("program", ["dixit", *PROGRAMS])
def test_every_command_has_help_that_imports_no_model_library(program):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", *program.split(), "--help"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
    assert done.stdout.startswith(f"usage: {program} ") or not program.startswith("dixit")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported
    assert not {name.split(".")[0] for name in imported} & {
        "accelerate", "datasets", "matplotlib", "open_clip", "scipy", "timm", "torch", "transformers"}


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    assert find_config("colour_vs_grey") == ROOT / "configs" / "colour_vs_grey.yaml"
    assert find_config("pairs/colour_vs_grey") == ROOT / "configs" / "pairs" / "colour_vs_grey.yaml"
    assert find_config("english_vs_german") == find_config("configs/pairs/english_vs_german.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("task: game\n")
    assert find_config("mine.yaml") == Path("mine.yaml")
    assert find_config("configs/clip.yaml") == ROOT / "configs" / "clip.yaml"  # as the docs write it, from anywhere
    with pytest.raises(DixitError, match="no config color_vs_grey, .*; did you mean 'colour_vs_grey'"):
        find_config("color_vs_grey")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which the project's wheel has been installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files beside the sources
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in files:
        if name.startswith(("dixit/", "eval/", "configs/")) and not name.startswith("eval/results") \
                or name in ("pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                    "--no-index", "--target", folder / "site", source], check=True, capture_output=True, text=True)
    return folder / "site"


def test_a_wheel_is_of_use_without_a_clone(installed, tmp_path):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"dixit", "bin"}
    assert (installed / "bin" / "dixit").is_file()
    path = {"PYTHONPATH": str(installed)}
    place = {"cwd": tmp_path, "DIXIT_CACHE": str(tmp_path / "cache"), **path}
    where = subprocess.run([sys.executable, "-c", "import dixit, dixit.eval.transfer; print(dixit.__file__)"],
                           capture_output=True, text=True, cwd=tmp_path, env=os.environ | path)
    assert where.stdout.strip() == str(installed / "dixit" / "__init__.py"), where.stderr
    done = dixit("train", "colour_vs_grey", "train.stesp=1", **place)  # the config is found, and its keys are checked
    assert done.returncode == 2 and "unknown key 'train.stesp'; did you mean 'train.steps'" in done.stderr
    for name in COMMANDS:
        done = dixit(name, "--help", **place)
        assert done.returncode == 0, done.stderr


def test_a_commit_is_marked_if_more_than_results_has_changed(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("dixit/common.py", "eval/results/pairs.csv", "eval/RESULTS.md")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(common, "__file__", str(files[0]))
    for file in files[1:]:
        file.write_text("two")
    clean = common.git_commit()
    files[0].write_text("two")
    assert len(clean) == 12 and common.git_commit() == clean + "+"
