"""One target under atheris, in a process of its own: ``python -m reliability.fuzz.campaign TARGET FINDINGS ...``.

What follows are arguments of libFuzzer. Inputs that break a promise are written to the folder FINDINGS, one for each
place in the code, and fuzzing goes on; those that end the process or never end are libFuzzer's to write.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import sys
import traceback
from pathlib import Path
from random import Random

import atheris

from reliability.fuzz import trees

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "model", "service")
_OF_TREES, _REPAIRED = 0.5, 0.8  # shares of mutations
_LIBRARIES = ["numpy.lib._format_impl", "zipfile", "tomllib"]  # read for us, and can be followed


def main(name: str, findings: Path, arguments: list[str]) -> None:
    """Fuzz a target until libFuzzer ends."""
    with atheris.instrument_imports(include=[*PACKAGES, *_LIBRARIES]):
        from reliability.fuzz.table import find
        from reliability.fuzz.target import Budget

        target = find(name)
    print(f"code: {_digest_of_code()}", file=sys.stderr)
    logging.disable(logging.WARNING)
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
            print(f"slowest_ms: {1e3 * slowest_s:.1f}", file=sys.stderr)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if target.holds_json and random.random() < _OF_TREES:
            mutated = trees.mutate(data, random)[:max_size]
        else:
            mutated = atheris.Mutate(data, max_size)
        if target.repair is not None and random.random() < _REPAIRED:
            mutated = target.repair(mutated)[:max_size]
        return mutated

    again = shlex.join([sys.executable, "-m", __spec__.name, name, str(findings)])  # to merge, libFuzzer runs itself
    atheris.Setup([again, *arguments], take, custom_mutator=mutate)
    atheris.Fuzz()


def _digest_of_code() -> str:
    """Digest of those of our modules that were imported, among them all that a target can reach."""
    files = {Path(getattr(module, "__file__", None) or "") for module in sys.modules.values()}
    ours = sorted(file for file in files if any(file.is_relative_to(ROOT / package) for package in PACKAGES))
    return hashlib.sha256(b"".join(file.read_bytes() for file in ours)).hexdigest()[:12]


def _note(findings: Path, data: bytes, error: Exception) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
    place = "".join(f"{frame.filename}:{frame.lineno}" for frame in where[-2:]) + type(error).__name__
    path = findings / f"{type(error).__name__}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    if not path.exists():
        path.write_bytes(data)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))
        print(f"finding: {path}: {error}"[:300], file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
