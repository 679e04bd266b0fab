"""Find probes: the modules of this package, or of eval.dynamics.speaker, that have a function `run`.

Leaves out running them (running.py).
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from dixit.common import DixitError, did_you_mean

from .. import dynamics
from . import speaker


def probe_names(on: str = "") -> list[str]:
    """The names of all probes, or with on="speaker" of all measurements on the speaker."""
    names = [module.name for module in pkgutil.iter_modules(speaker.__path__ if on else dynamics.__path__)]
    return sorted(name for name in names if name != "__main__" and hasattr(_load(name, on), "run"))


def find_probe(name: str, on: str = "") -> ModuleType:
    """The module of a probe. Raises DixitError, which suggests the nearest name, if there is none of this name."""
    names = probe_names(on)
    if name not in names:
        raise DixitError(f"there is no probe '{name}'{' on the speaker' if on else ''}; "
                         + did_you_mean(name, [*names, "all", "report"]))
    return _load(name, on)


def probe_of(page: str, on: str = "") -> str:
    """The name of the probe whose results a page shows: the page's name, or NAME for a variant NAME_ANYTHING."""
    names = [name for name in probe_names(on) if f"{page}_".startswith(f"{name}_")]
    return max(names, key=len, default=page)


def _load(name: str, on: str) -> ModuleType:
    return importlib.import_module(f".{on}.{name}" if on else f".{name}", __package__)
