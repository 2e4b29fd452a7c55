"""What the commands that train share; what all commands share is in ``common.cli``."""

from __future__ import annotations

from pathlib import Path

from common.cli import Parser


def add_recipe(parser: Parser) -> None:
    """Add a recipe, and what changes it."""
    parser.add_argument("recipe", metavar="RECIPE.toml", type=Path, help="what to train; model/recipes/ has examples")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="change a value of the recipe, such as training.steps=2000; may be repeated",
    )
    add_data_dir(parser)


def add_data_dir(parser: Parser) -> None:
    """Add the folder that a recipe's file names are relative to."""
    parser.add_argument(
        "--data-dir", type=Path, default=Path(), metavar="DIR", help="folder that the recipe's files are relative to"
    )
