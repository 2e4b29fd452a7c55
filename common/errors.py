"""Errors whose text is all that their reader needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Explained(Exception):
    """A fault that is not ours: a command that it ends shows its text, in one line, and no traceback."""


class UsageError(Explained, ValueError):
    """What a command does not take: arguments, settings, or files that they name."""


def line_of(fault: ErrorDetails, name: Callable[[str], str] = str, quote: Callable[[object], str] = repr) -> str:
    """What pydantic finds wrong, in one line: where, as ``name`` writes it, the rule, and the value.

    A value that has parts of its own names is not quoted.
    """
    place, value = ".".join(str(part)[:100] for part in fault["loc"]), fault["input"]
    where = f"{name(place)}: " if place else ""
    got = quote(value) if place and not isinstance(value, dict) and not is_dataclass(value) else ""
    return f"{where}{fault['msg'].removeprefix('Value error, ')}{got and f', got {got}'}"


def unquoted(_: object) -> str:
    """No value, where it may be a secret or of any length."""
    return ""
