"""The storeys of the package: no module imports from a storey above its own, and the wheel names every package."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STOREYS = {**dict.fromkeys(("dixit.common", "dixit.config", "dixit.config_checks", "dixit.config_perception",
                             "dixit.interrupts", "dixit.yaml_files"), 0), "dixit.data": 1, "dixit.models": 2,
           "dixit.training": 3, "dixit.play": 4, "eval": 5}
MODULES = [path for path in sorted((ROOT / "dixit").rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")]


def storey(module: str) -> int | None:
    """The storey of a module; None for what is no part of this project, and for the bare package `dixit`."""
    parts = module.split(".")
    return STOREYS.get(".".join(parts[:2]) if parts[0] == "dixit" else parts[0])


def imported(path: Path) -> set[str]:
    """All modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports inside dixit/ are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_imports_from_a_storey_above(path):
    own = storey(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
    assert own is not None, "every module stands on a storey"
    above = {name for name in imported(path) if (storey(name) or 0) > own}
    assert not above, f"imports from a storey above: {sorted(above)}"


def test_the_ground_needs_no_model_library():
    for name in "common", "config", "config_perception":
        assert not {module.split(".")[0] for module in imported(ROOT / "dixit" / f"{name}.py")} & {
            "torch", "transformers", "open_clip", "datasets", "accelerate"}


def test_the_tests_follow_the_same_folders():
    folders = {path.name for path in (ROOT / "dixit").iterdir() if (path / "__init__.py").is_file()}
    assert folders == {"data", "models", "training", "play"} <= {path.name for path in (ROOT / "tests").iterdir()}


def test_the_wheel_has_every_package_and_nothing_called_eval_at_its_top():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"dixit", "dixit.configs"}
    for top, prefix in ("dixit", ""), ("eval", "dixit."):
        found |= {prefix + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
                  for path in (ROOT / top).rglob("__init__.py")}
    found |= {f"dixit.{path.parent.relative_to(ROOT).as_posix().replace('/', '.')}"
              for path in (ROOT / "configs").rglob("*.yaml")}
    assert listed == found
