"""Tables of the pages that commands write: each stands between the comments ``table: NAME`` and ``end of NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def place_of(page: str, name: str) -> slice:
    """Where in a page the table of that name stands."""
    begin, end = f"<!-- table: {name} -->\n\n", f"\n\n<!-- end of {name} -->"
    start = page.index(begin) + len(begin)
    return slice(start, page.index(end, start))


def write(path: Path, tables: Mapping[str, str]) -> None:
    """Put tables, by name, in place of those that a page has."""
    page = path.read_text()
    for name, table in tables.items():
        place = place_of(page, name)
        page = page[: place.start] + table + page[place.stop :]
    path.write_text(page)
