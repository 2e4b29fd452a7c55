"""Train a flow by exact maximum likelihood: ``python -m model.train RECIPE.toml``.

Every random draw of step n depends on the recipe's seed and n alone (dropout also on the process), so a resumed run
takes exactly the steps that an uninterrupted one would have taken.
"""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import torch

from common.cli import (
    DONE,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    WRONG_USE,
    Parser,
    Progress,
    listing,
    note,
    run_command,
    tell,
)
from common.errors import UsageError
from common.machine import keep_freed_memory
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.cli import add_recipe
from model.distributed import Processes, join, may_restart
from model.divergence import DivergedError
from model.event_log import EventLog
from model.plots import sample_grid, save_curves, save_picture
from model.recipe import Recipe, RecipeError, Splits, load_splits, read_recipe
from model.report import write_report
from model.trainer import EVALUATION_SEED, Trainer, generator_of
from service.artifact import Unit, as_published

NUM_GRID_SAMPLES = 64
_KEPT_BYTES = 2**31 - 1  # of what a step frees


def train(trainer: Trainer, out: Path, progress: bool = True) -> bool:
    """Run to the recipe's last step, out of patience, or to the first SIGINT or SIGTERM.

    Leaves ``last.pt`` and ``best.pt`` in ``out`` and returns whether the run is complete. A signal lets the current
    step finish, so a checkpoint is never torn. A run that diverges goes back to the last checkpoint that a window of
    sound steps has followed, and says so; raises DivergedError where that does not help. Without ``progress`` nothing
    is shown, and neither curves nor events are written, which take half of the time of a small table.
    """
    training, leads = trainer.recipe.training, trainer.processes.leads
    if leads:
        out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic() - trainer.seconds
    stopping = False
    quiet = not (leads and progress)
    log = None if quiet else EventLog(out / "tensorboard", trainer.step)
    with (
        _StopOnSignal() as stop,
        Progress("trained", training.steps, "step", trainer.step, shown=not quiet, every_s=math.inf) as bar,
    ):
        while not (trainer.complete or stopping):
            figures, stopping = trainer.train_step(stop.requested)
            bar.update(1)
            trainer.seconds = time.monotonic() - started
            diverged = trainer.observe(figures)
            if not diverged and (trainer.step % training.evaluate_every == 0 or trainer.step == training.steps):
                diverged = _evaluate(trainer, out, log)
                bar.update(0, _message(trainer), at_once=True)
                trainer.seconds = time.monotonic() - started
            elif trainer.step % 20 == 0:
                bar.update(0, f"loss {figures['loss']:.3f} {trainer.unit}, {_rows_per_s(trainer):.0f} rows/s")
            if diverged:
                step = trainer.step
                trainer.roll_back(diverged)
                stopping = False
                bar.update(trainer.step - step)
                if log:
                    log.rewind(trainer.step)
                if not quiet:
                    note(f"step {step}: {diverged}; going back to step {trainer.step}, learning rate halved")
            elif trainer.step % training.checkpoint_every == 0 or trainer.complete or stopping:
                checkpoint = trainer.keep()
                if leads and checkpoint:
                    save_checkpoint(checkpoint, out / "last.pt")
    trainer.stopped_by = stop.number
    if log:
        log.close()
    if leads and not (out / "best.pt").exists():
        save_checkpoint(trainer.checkpoint(), out / "best.pt")
    return trainer.complete


def _rows_per_s(trainer: Trainer) -> float:
    return trainer.step * trainer.recipe.training.batch_size / trainer.seconds


def _evaluate(trainer: Trainer, out: Path, log: EventLog | None) -> str | None:
    """Measure the averaged flow, keep it if it is the best, draw and log; returns what diverged, if anything."""
    taken = [step for step in trainer.figures if not step["skipped"]] or trainer.figures
    mean = {name: sum(step[name] for step in taken) / len(taken) for name in taken[0]}
    mean["skipped"] = sum(step["skipped"] for step in trainer.figures)
    trainer.figures = []
    mean |= {"validation": trainer.evaluate(), "rows_per_s": _rows_per_s(trainer), "rollbacks": trainer.rollbacks}
    trainer.history.append({"step": trainer.step, **mean})
    improved = mean["validation"] < trainer.best  # never where it is not a number
    if improved:
        trainer.best = mean["validation"]
        if trainer.processes.leads:
            save_checkpoint(trainer.checkpoint(), out / "best.pt")
    if log:
        save_curves(trainer.history, trainer.unit, out / "curves.png")
        log.scalars(mean, trainer.step)
        if trainer.kind == "image":
            z = torch.randn(NUM_GRID_SAMPLES, math.prod(trainer.shape), generator=generator_of(EVALUATION_SEED, 2**20))
            with torch.no_grad():
                z = z.to(trainer.device) * trainer.recipe.artifact.temperature
                samples, _ = trainer.averaged_flow().inverse(z)
            grid = sample_grid(samples.cpu().numpy(), 2**trainer.recipe.model.bits - 1)
            save_picture(grid, out / "samples.png")
            log.picture("samples", grid, trainer.step)
    return None if math.isfinite(mean["validation"]) else f"the validation loss is {mean['validation']}"


def _message(trainer: Trainer) -> str:
    """The last evaluation, as a line of the log."""
    last = trainer.history[-1]
    figures = f"loss {last['loss']:.3f} validation {last['validation']:.3f} {trainer.unit}"
    return f"{figures}, {last['rows_per_s']:.0f} rows/s"


class _StopOnSignal:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one acts as usual."""

    def __enter__(self) -> _StopOnSignal:
        self.requested, self.number = False, signal.SIGINT
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.number = True, signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


@dataclass(frozen=True)
class Outcome:
    """What a run has come to."""

    name: str
    state: Literal["finished", "stopped early", "stopped"]  # early: out of patience; stopped: by a signal
    step: int
    steps: int
    seconds: float  # of training
    unit: Unit  # of likelihoods: bits/dim of images (lower is better), nats of tables (higher is better)
    validation: float | None  # lowest validation loss: bits/dim, or nats below 0; None before the first evaluation
    split: str  # rows of the likelihood: test or, where there are none, validation
    likelihood: float | None  # of the best checkpoint; None where it is not finite
    standard_error: float | None
    warnings: list[str]
    checkpoint: str
    report: str
    next: str  # command

    @property
    def headline(self) -> str:
        """How it ended."""
        best = (
            "not validated yet"
            if self.validation is None
            else f"best validation loss {self.validation:.4f} {self.unit}"
        )
        return f"{self.state} at step {self.step}: {best}"

    def __str__(self) -> str:
        facts = {"checkpoint": self.checkpoint, "report": self.report, "next": self.next}
        if self.likelihood is not None:
            facts = {self.split: as_published(self.likelihood, self.standard_error, self.unit), **facts}
        return f"{self.headline}\n{listing(facts)}"


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m model.train",
        "Train a flow on your data by exact maximum likelihood. Leaves checkpoints, report.md and pictures in "
        "runs/NAME.",
        examples=[
            "python -m model.train my-table.toml",
            "python -m model.train my-table.toml --set training.steps=9000 --resume",
            "python -m model.train model/recipes/breast-cancer.toml --out runs/again --json",
            "torchrun --nproc-per-node 2 -m model.train my-table.toml --data-dir data",
        ],
        outcome=Outcome,
        codes=(DONE, FAILED, WRONG_USE, INTERRUPTED, TERMINATED),
    )
    add_recipe(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of checkpoints, pictures and report (default: runs/NAME)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder exactly")
    return parser


def prepare(
    recipe: Recipe, data_dir: Path, out: Path, resume: bool | None, processes: Processes
) -> tuple[Trainer, Splits]:
    """Load data and build what trains on it; ``resume`` a run that ``out`` has to hold, must not, or may hold (None).

    Raises UsageError.
    """
    last = out / "last.pt"
    held = any(processes.gather(last.exists() or (out / "best.pt").exists()))
    if resume is False and held:
        raise RecipeError(f"{out} already holds a run: --resume continues it, --out names another folder")
    checkpoint = None if resume is False else newest_checkpoint(out, processes)
    if resume and checkpoint is None:
        raise RecipeError(f"--resume: {last} does not exist")
    if resume is None and checkpoint and processes.leads:
        note(f"going on from step {checkpoint.step} of {last}")
    splits = load_splits(recipe.data, data_dir, processes)
    recipe.check_calibration(len(splits.calibration.x))
    try:
        return Trainer(recipe, splits, checkpoint, processes), splits
    except UsageError:
        raise
    except ValueError as error:  # what no single key of the recipe could tell: the flow does not fit the data
        raise RecipeError(f"recipe {recipe.name!r} does not fit its data: {error}") from error


def newest_checkpoint(out: Path, processes: Processes) -> Checkpoint | None:
    """Return the newest last.pt of any host in all processes, and leave the leading one the best.pt beside it.

    So it is enough that one host holds the folder, and not the one whose process leads now.
    """

    def read(name: str) -> Checkpoint | None:
        path = out / name
        return load_checkpoint(path) if processes.leads_host and path.exists() else None

    last, best = processes.together(lambda: (read("last.pt"), read("best.pt")))
    ages = processes.gather((-1, -1) if last is None else (last.rollbacks, last.step))
    source = ages.index(max(ages))
    last, best = processes.give((last, best), source)
    if processes.leads and source != processes.rank and best is not None:
        save_checkpoint(best, out / "best.pt")
    return last


def run(trainer: Trainer, splits: Splits, data_dir: Path, out: Path, again: str) -> tuple[Outcome, int]:
    """Train to the end or to a signal, from where the command ``again`` goes on; returns the outcome and the exit code.

    Only the leading process comes back. The others end with it, and training that diverges ends all.
    """
    recipe, processes = trainer.recipe, trainer.processes
    keep_freed_memory(_KEPT_BYTES)
    try:
        complete = train(trainer, out)
    except DivergedError as error:
        if processes.leads:
            save_checkpoint(trainer.sound, out / "last.pt")
            note(f"error: {error}")
        processes.finish(FAILED)
    code = DONE if complete else 128 + trainer.stopped_by
    if not processes.leads:
        processes.finish(code)
    note("measuring the best checkpoint, for the report")
    report = write_report(trainer, splits, out)
    likelihood = report["likelihood"]
    early = complete and trainer.step < recipe.training.steps
    export = ["python", "-m", "model.export", str(out / "best.pt"), f"{recipe.name}.pt"]
    if data_dir != Path():
        export += ["--data-dir", str(data_dir)]
    outcome = Outcome(
        name=recipe.name,
        state="stopped early" if early else "finished" if complete else "stopped",
        step=trainer.step,
        steps=recipe.training.steps,
        seconds=round(trainer.seconds, 3),
        unit=trainer.unit,
        validation=report["validation"],
        split=likelihood["split"],
        likelihood=likelihood["value"],
        standard_error=likelihood["standard_error"],
        warnings=report["warnings"],
        checkpoint=str(out / "best.pt"),
        report=str(out / "report.md"),
        next=shlex.join(export) if complete else again,
    )
    return outcome, code


def main(argv: list[str]) -> None:
    """Run the command."""
    processes = join()

    def start() -> tuple[argparse.Namespace, Path, Trainer, Splits]:
        args = parser().parse_args(argv)
        recipe = read_recipe(args.recipe, args.set)
        out = args.out or Path("runs") / recipe.name
        resume = None if may_restart() else args.resume
        return args, out, *prepare(recipe, args.data_dir, out, resume, processes)

    args, out, trainer, splits = processes.together(start)
    again = shlex.join(["python", "-m", "model.train", *argv, *([] if args.resume else ["--resume"])])
    outcome, code = run(trainer, splits, args.data_dir, out, again)
    tell(outcome, args.json)
    processes.finish(code)


if __name__ == "__main__":
    run_command(main)
