"""All targets by name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliability.fuzz.target import Target

CORPUS = Path(__file__).with_name("corpus")
_MODULES = [
    f"reliability.fuzz.{name}"
    for name in ("bodies", "pictures", "oip", "options", "answers", "artifacts", "files", "wire")
]


@cache
def targets() -> dict[str, Target]:
    """All targets; what they read with is imported no sooner than they are asked for."""
    return {target.name: target for module in _MODULES for target in import_module(module).TARGETS}


def module_of(name: str) -> str:
    """The module that a target stands in."""
    return next(module for module in _MODULES if any(target.name == name for target in import_module(module).TARGETS))


def kept(name: str) -> list[Path]:
    """Inputs of a target that are kept: those that reached code that no other did, and those that broke something."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
