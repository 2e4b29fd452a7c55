"""What the commands of the serving half share: one-line errors, exit codes and progress."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from service.artifact import ArtifactError
from service.errors import ServiceError
from service.settings import SettingsError

_REPORT_S = 5.0  # between lines where there is no terminal


class UsageError(ValueError):
    """Arguments, or files that they name, that a command does not take."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, and whose help keeps the lines of its example."""

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help tells more)")


def check_output(out: Path, **inputs: Path) -> None:
    """Raise UsageError for what is no file name in a folder that exists, or one of the inputs, given by what it is."""
    if not out.parent.is_dir() or out.is_dir() or not out.name:
        raise UsageError(f"{out}: must be a file name in a folder that exists")
    for what, path in inputs.items():
        if out.exists() and path.exists() and out.samefile(path):
            raise UsageError(f"{out}: is the {what} itself, which is not overwritten; name another file")


class Progress(AbstractContextManager["Progress"]):
    """Rows done: a bar on a terminal, else a line on standard error every few seconds."""

    def __init__(self, verb: str, total: int | None) -> None:
        self._verb, self._total = verb, total
        self._bar = tqdm(total=total, unit="row", unit_scale=True, desc=verb, disable=None)
        self._done, self._told = 0, time.monotonic()

    def update(self, num_rows: int) -> None:
        """So many more."""
        self._done += num_rows
        self._bar.update(num_rows)
        if self._bar.disable and time.monotonic() - self._told >= _REPORT_S:
            of_all = "" if self._total is None else f" of {self._total}"
            print(f"{self._verb} {self._done}{of_all} rows", file=sys.stderr, flush=True)
            self._told = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command's main; wrong use ends with one line on standard error and exit code 2, no traceback."""
    try:
        main(sys.argv[1:])
    except (ArtifactError, ServiceError, SettingsError, UsageError, OSError, MemoryError) as error:
        print("error:", *(str(error) or type(error).__name__).split(), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
