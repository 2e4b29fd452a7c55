"""One target under atheris, in a process that libFuzzer ends.

Inputs that break a promise are written to a folder of findings, one for each place in the code, and fuzzing goes on;
those that end the process or never end are libFuzzer's to write.
"""

from __future__ import annotations

import gc
import hashlib
import io
import sys
import traceback
from contextlib import redirect_stderr
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import atheris

from reliability.fuzz import trees
from reliability.fuzz.code import PACKAGES, ROOT
from reliability.fuzz.table import targets

if TYPE_CHECKING:
    from reliability.fuzz.target import Target

_OF_TREES, _REPAIRED = 0.5, 0.8  # shares of mutations
_LIBRARIES = ["numpy.lib._format_impl", "zipfile", "tomllib"]  # read for us, and can be followed


def load() -> dict[str, Target]:
    """Import all targets, so that libFuzzer learns which of our code an input has reached."""
    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=[*PACKAGES, *_LIBRARIES]):
        found = targets()
    gc.collect()
    gc.freeze()  # or a collection would look through all of torch's modules, and an input seem slow
    return found


def fuzz(target: Target, findings: Path, arguments: list[str]) -> None:
    """Fuzz a target as libFuzzer's arguments say, which ends the process."""
    from reliability.fuzz.target import Budget

    for seed in target.seeds():  # what is loaded when it is first needed is no input's
        target.check(seed)
    budget = Budget()
    slowest_s = 0.0

    def take(data: bytes) -> None:
        nonlocal slowest_s
        budget.begin()
        try:
            target.check(data)
            budget.end()
        except Exception as error:
            _note(findings, data, error)
        if budget.slowest_s > slowest_s:
            slowest_s = budget.slowest_s
            print(f"slowest_ms: {1e3 * slowest_s:.1f}", file=sys.stderr, flush=True)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if target.holds_json and random.random() < _OF_TREES:
            mutated = trees.mutate(data, random)[:max_size]
        else:
            mutated = atheris.Mutate(data, max_size)
        if target.repair is not None and random.random() < _REPAIRED:
            mutated = target.repair(mutated)[:max_size]
        return mutated

    atheris.Setup([sys.argv[0], *arguments], take, custom_mutator=mutate)
    atheris.Fuzz()


def _note(findings: Path, data: bytes, error: Exception) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
    place = "".join(f"{frame.filename}:{frame.lineno}" for frame in where[-2:]) + type(error).__name__
    path = findings / f"{type(error).__name__}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    if not path.exists():
        path.write_bytes(data)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))
        print(f"finding: {path}: {error}"[:300], file=sys.stderr, flush=True)
