"""Docstrings are plain text with ``literals``: what else reStructuredText would take for markup is escaped."""

import re
from typing import Any

from sphinx.application import Sphinx

_LITERAL = re.compile(r"(``.*?``)", re.DOTALL)
_MARKUP = re.compile(r"[*|\\@]|`|(?<=\w)_(?=\W|$)")
_KEPT = re.compile(r"^(\s*(?:[\w, ]+:|\*)(?=\s))", re.MULTILINE)  # names of parameters, napoleon's; bullets
_FIELD = re.compile(r"^(:ivar \w*?)\\?_:")


def _escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    parts = _LITERAL.split("\n".join(lines))
    for index in range(0, len(parts), 2):
        pieces = _KEPT.split(parts[index])
        parts[index] = "".join(
            piece if number % 2 else _MARKUP.sub(r"\\\g<0>", piece) for number, piece in enumerate(pieces)
        )
    lines[:] = "".join(parts).split("\n")


def _mend(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape the fields that napoleon made of names such as ``offset_``."""
    lines[:] = [_FIELD.sub(r"\1\_:", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Run around napoleon, which makes markup of sections."""
    app.connect("autodoc-process-docstring", _escape, priority=400)
    app.connect("autodoc-process-docstring", _mend, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
