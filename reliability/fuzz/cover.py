"""A small corpus: of many inputs the smallest that lead everywhere in our code where any of them leads."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

from reliability.fuzz.code import PACKAGES, ROOT
from reliability.fuzz.target import Target

_FOLDERS = tuple(f"{ROOT / package}/" for package in PACKAGES)

Steps = set[tuple[CodeType, int, int]]  # from line to line


def steps_of(target: Target, data: bytes) -> Steps:
    """Steps that reading an input takes in our code, on this thread."""
    steps: Steps = set()

    def enter(frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401 (as sys.settrace has it)
        if not frame.f_code.co_filename.startswith(_FOLDERS):
            return None
        code, last = frame.f_code, 0

        def step(frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401 (as sys.settrace has it)
            nonlocal last
            steps.add((code, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        with suppress(Exception):
            target.check(data)
    finally:
        sys.settrace(before)
    return steps


def smallest(target: Target, inputs: Iterable[bytes]) -> list[bytes]:
    """Those of the inputs, the smallest first, that take a step that none before them takes."""
    reached: Steps = set()
    chosen = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        steps = steps_of(target, data)
        if not steps <= reached:
            reached |= steps
            chosen.append(data)
    return chosen
