"""eval.dynamics.theory: pure functions that import nothing of the simulations, each with its equation in words."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from eval.dynamics.find import probe_names
from eval.dynamics.theory import bias_free

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "eval" / "dynamics" / "theory").glob("*.py"))
ALLOWED = {"__future__", "collections", "dataclasses", "dixit.common", "jaxtyping", "numpy", "scipy"}


def imports(path: Path) -> set[str]:
    """What a module imports: whole names of the project's modules and the first name of others; relative ones as
    ".module"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {"." * node.level + (node.module or alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name if name.startswith((".", "dixit", "eval")) else name.split(".")[0] for name in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_theory_imports_no_simulation(path):
    beside = {f".{module.stem}" for module in MODULES}
    assert imports(path) <= ALLOWED | beside


def test_other_imports_are_noticed(tmp_path):
    lines = ("import torch.nn", "from ..probe import Claim", "from .. import ocs", "from dixit.config import Config",
             "from eval.dynamics.probe import Claim")
    for number, line in enumerate(lines):
        path = tmp_path / f"{number}.py"
        path.write_text(f"import numpy as np\n{line}\n")
        assert len(imports(path) - ALLOWED - {".teacher_student"}) == 1, line


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_public_function_of_theory_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    public = [tree] + [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
                       and not node.name.startswith("_") and node in _members(tree)]
    assert [getattr(node, "name", path.stem) for node in public if not ast.get_docstring(node)] == []
    assert path.stem == "__init__" or "Shapes:" in (ast.get_docstring(tree) or "")


def _members(tree: ast.Module) -> list[ast.stmt]:
    """The functions and classes of a module, and the methods of these classes."""
    return [*tree.body, *(member for node in tree.body if isinstance(node, ast.ClassDef) for member in node.body)]


def test_every_theory_is_that_of_a_probe_and_no_probe_itself():
    names = {path.stem for path in MODULES} - {"__init__", "steps"}  # finite steps concern several probes
    assert names == set(probe_names()) - {"rich_applied"}  # which has no theory of its own


def test_theory_is_computed_in_float64():
    times = np.linspace(0, 5, 6)
    assert bias_free.strength(times, 1.0, 0.1).dtype == bias_free.strength(times, 1.0, 0.1, depth=3).dtype == np.float64
