"""Train and export in one command that goes on where it was stopped: ``python -m model.pipeline RECIPE.toml``."""

from __future__ import annotations

import os
from pathlib import Path

from model import export, train
from model.cli import RecipeParser, UsageError, run_command
from model.recipe import read_recipe


def main(argv: list[str]) -> None:
    """Run the command; a run that is stopped before its last step exports nothing, and ends as the training does."""
    parser = RecipeParser("python -m model.pipeline", "Train a flow, or go on training it, and export it.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs; this one's is RUNS/NAME")
    parser.add_argument("--models", type=Path, default=Path(), help="folder of artifacts; this one's is MODELS/NAME.pt")
    args = parser.parse_args(argv)
    name = read_recipe(args.recipe, args.set).name
    if not (args.models.is_dir() and os.access(args.models, os.W_OK)):  # now, not after hours
        raise UsageError(f"--models: {args.models} must be a folder that user {os.getuid()} may write to")
    run = args.runs / name
    arguments = [str(args.recipe), *(f"--set={change}" for change in args.set), f"--out={run}"]
    arguments += ["--resume"] if (run / "last.pt").exists() else []
    data = f"--data-dir={args.data_dir}"
    train.main([*arguments, data])
    export.main([str(run / "best.pt"), str(args.models / f"{name}.pt"), data])


if __name__ == "__main__":
    run_command(main)
