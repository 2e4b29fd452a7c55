"""Train and export in one command that goes on where it was stopped: ``python -m model.pipeline RECIPE.toml``."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from common.cli import DONE, FAILED, INTERRUPTED, TERMINATED, WRONG_USE, Parser, run_command, tell
from common.errors import UsageError
from model import export, train
from model.checkpoint import load_checkpoint
from model.cli import add_recipe
from model.distributed import join
from model.recipe import Splits, read_recipe
from model.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """What both have come to."""

    training: train.Outcome
    artifact: export.Outcome | None  # None where training was stopped

    def __str__(self) -> str:
        return str(self.training) if self.artifact is None else f"{self.training.headline}\n{self.artifact}"


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m model.pipeline",
        "Train a flow, or go on training it, and export it: one command that may be stopped and run again.",
        examples=[
            "python -m model.pipeline my-table.toml",
            "python -m model.pipeline my-table.toml --data-dir data --models models --json",
        ],
        outcome=Outcome,
        codes=(DONE, FAILED, WRONG_USE, INTERRUPTED, TERMINATED),
    )
    add_recipe(parser)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs; this one's is RUNS/NAME"
    )
    parser.add_argument(
        "--models", type=Path, default=Path(), metavar="DIR", help="folder of artifacts; this one's is MODELS/NAME.pt"
    )
    return parser


def main(argv: list[str]) -> None:
    """Run the command; a run that is stopped before its last step exports nothing, and ends as the training does."""
    processes = join()

    def start() -> tuple[argparse.Namespace, Path, Trainer, Splits]:
        args = parser().parse_args(argv)
        recipe = read_recipe(args.recipe, args.set)
        if processes.leads and not (args.models.is_dir() and os.access(args.models, os.W_OK)):  # now, not after hours
            raise UsageError(f"--models: {args.models} must be a folder that user {os.getuid()} may write to")
        out = args.runs / recipe.name
        return args, out, *train.prepare(recipe, args.data_dir, out, None, processes)

    args, out, trainer, splits = processes.together(start)
    again = shlex.join(["python", "-m", "model.pipeline", *argv])
    training, code = train.run(trainer, splits, args.data_dir, out, again)
    artifact = None
    if code == DONE:
        artifact = export.run(load_checkpoint(out / "best.pt"), splits, args.models / f"{training.name}.pt")
    tell(Outcome(training, artifact), args.json)
    processes.finish(code)


if __name__ == "__main__":
    run_command(main)
