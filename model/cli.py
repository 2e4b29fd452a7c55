"""What the commands share: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from model.checkpoint import CheckpointError
from model.data import DataError
from model.recipe import RecipeError
from service.artifact import ArtifactError


class UsageError(ValueError):
    """Arguments that the command does not take."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help tells more)")


class RecipeParser(Parser):
    """Of commands that train what a recipe says."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description)
        self.add_argument("recipe", type=Path, help="TOML file; model/recipes/ holds examples")
        self.add_argument(
            "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change a value of the recipe"
        )
        self.add_argument(
            "--data-dir", type=Path, default=Path(), help="folder that the recipe's file names are relative to"
        )


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command's main; wrong use ends with one line on standard error and exit code 2, no traceback."""
    try:
        main(sys.argv[1:])
    except (ArtifactError, CheckpointError, DataError, RecipeError, UsageError, OSError, MemoryError) as error:
        print("error:", *(str(error) or type(error).__name__).split(), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
