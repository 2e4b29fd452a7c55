"""What the commands share: one-line errors and plain-or-bar progress."""

from __future__ import annotations

import sys
from collections.abc import Callable

from model.checkpoint import CheckpointError
from model.data import DataError
from model.recipe import RecipeError
from service.artifact import ArtifactError

USAGE_ERRORS = (ArtifactError, CheckpointError, DataError, RecipeError)


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command's main; wrong use ends with one line on standard error and exit code 2, no traceback."""
    try:
        main(sys.argv[1:])
    except USAGE_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
