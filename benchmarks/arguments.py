"""Types of arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable

from common.cli import number


def at_least(kind: type[float], lowest: float) -> Callable[[str], float]:
    """A finite number, at least the lowest."""
    rule = f"a {'whole ' if kind is int else ''}number of at least {lowest:g}"
    return lambda text: number(text, kind, rule, lambda value: lowest <= value < math.inf)


def some_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Names with commas between them, in the order of ``names``."""
    known = list(names)

    def parse(text: str) -> list[str]:
        given = text.split(",")
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"must be some of {','.join(known)}, got {unknown[0]!r}")
        return [name for name in known if name in given]

    return parse
