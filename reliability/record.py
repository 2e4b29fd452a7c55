"""The figures that the parts leave: a JSON file of each, with the day and the machine."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import orjson

from common.files import write_whole
from common.machine import available_cpus, processor

FIGURES = Path(__file__).with_name("figures")


def keep(part: str, figures: dict[str, Any], path: Path | None = None) -> Path:
    """Write what a part measured, as a whole or not at all, in place of what it had left; ``path`` for elsewhere."""
    path = path or FIGURES / f"{part}.json"
    told = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {available_cpus()} cores",
        **figures,
    }
    content = orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    write_whole(path, lambda partial: partial.write_bytes(content))
    return path


def read(part: str) -> dict[str, Any]:
    """What a part left last."""
    figures: dict[str, Any] = orjson.loads((FIGURES / f"{part}.json").read_bytes())
    return figures
