"""All targets by name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

from reliability.fuzz.target import Target

CORPUS = Path(__file__).with_name("corpus")
_MODULES = (
    "bodies",
    "pictures",
    "oip",
    "options",
    "answers",
    "artifacts",
    "files",
    "wire",
)  # the soonest imported first


def find(name: str) -> Target:
    """A target, for which no module behind its own is imported. Raises KeyError."""
    for module in _MODULES:
        for target in _of(module):
            if target.name == name:
                return target
    raise KeyError(name)


@cache
def targets() -> dict[str, Target]:
    """All of them."""
    return {target.name: target for module in _MODULES for target in _of(module)}


def _of(module: str) -> list[Target]:
    found: list[Target] = import_module(f"reliability.fuzz.{module}").TARGETS
    return found


def kept(name: str) -> list[Path]:
    """Inputs of a target that are kept: those that reached code that no other did, and those that broke something."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
