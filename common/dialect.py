"""How a CSV file is written: what separates its columns, and whether numbers have decimal points or commas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import compute

Texts = TypeVar("Texts", "pa.Array[Any]", "pa.ChunkedArray[Any]")

_MOST = 2**20  # characters of a heading that are looked at


def column_separator(path: Path) -> str:
    """Comma, semicolon or tab, whichever the heading has most of outside quotes.

    Where it is no comma, numbers may have decimal commas: so spreadsheets write them in many countries. Raises
    ValueError where the beginning of the file is not in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            heading = file.readline(_MOST)
    except UnicodeDecodeError as error:
        raise ValueError("its text is not in UTF-8; save it as that, in spreadsheets as 'CSV UTF-8'") from error
    return max(",;\t", key=re.sub(r'"[^"]*"', "", heading).count)


def with_points(texts: Texts) -> Texts:
    """Texts with a decimal point in place of their only comma; what has a point already, or more commas, is kept."""
    pointed: Texts = compute.replace_substring_regex(texts, r"^([^,.]*),([^,.]*)$", r"\1.\2")
    return pointed
