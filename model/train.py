"""Train a flow by exact maximum likelihood: ``python -m model.train RECIPE.toml``.

Every random draw of step n depends on the recipe's seed and n alone (dropout also on the process), so a resumed run
takes exactly the steps that an uninterrupted one would have taken.
"""

from __future__ import annotations

import ctypes
import math
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

from model.checkpoint import load_checkpoint, save_checkpoint
from model.cli import RecipeParser, run_command
from model.distributed import Processes
from model.divergence import DivergedError
from model.event_log import EventLog
from model.plots import sample_grid, save_curves, save_picture
from model.recipe import Recipe, RecipeError, load_splits, read_recipe
from model.report import write_report
from model.trainer import EVALUATION_SEED, Trainer, generator_of

NUM_GRID_SAMPLES = 64


def train(trainer: Trainer, out: Path, progress: bool = True) -> bool:
    """Run to the recipe's last step, out of patience, or to the first SIGINT or SIGTERM.

    Leaves ``last.pt`` and ``best.pt`` in ``out`` and returns whether the run is complete. A signal lets the current
    step finish, so a checkpoint is never torn. A run that diverges goes back to the last checkpoint that a window of
    sound steps has followed, and says so; raises DivergedError where that does not help. Without ``progress`` nothing
    is shown, and neither curves nor events are written, which take half of the time of a small table.
    """
    training, leads = trainer.recipe.training, trainer.processes.leads
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic() - trainer.seconds
    stopping = False
    quiet = not (leads and progress)
    log = None if quiet else EventLog(out / "tensorboard", trainer.step)
    with (
        _StopOnSignal() as stop,
        tqdm(total=training.steps, initial=trainer.step, unit="step", disable=quiet or None) as bar,
    ):
        while not (trainer.complete or stopping):
            figures, stopping = trainer.train_step(stop.requested)
            bar.update()
            trainer.seconds = time.monotonic() - started
            diverged = trainer.observe(figures)
            if not diverged and (trainer.step % training.evaluate_every == 0 or trainer.step == training.steps):
                diverged = _evaluate(trainer, out, log)
                message = _message(trainer)
                bar.set_postfix_str(message)
                if bar.disable and not quiet:
                    print(f"step {trainer.step}/{training.steps}: {message}", flush=True)
                trainer.seconds = time.monotonic() - started
            elif trainer.step % 20 == 0:
                bar.set_postfix_str(f"loss {figures['loss']:.3f} {trainer.unit}, {_rows_per_s(trainer):.0f} rows/s")
            if diverged:
                step = trainer.step
                trainer.roll_back(diverged)
                stopping = False
                bar.update(trainer.step - step)
                if log:
                    log.rewind(trainer.step)
                if not quiet:
                    bar.write(f"step {step}: {diverged}; going back to step {trainer.step}, learning rate halved")
            elif trainer.step % training.checkpoint_every == 0 or trainer.complete or stopping:
                checkpoint = trainer.keep()
                if leads and checkpoint:
                    save_checkpoint(checkpoint, out / "last.pt")
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
        self.requested = False
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = RecipeParser("python -m model.train", "Train a flow by exact maximum likelihood.")
    parser.add_argument("--out", type=Path, help="folder of checkpoints, curves and report (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder exactly")
    args = parser.parse_args(argv)
    recipe = read_recipe(args.recipe, args.set)
    out = args.out or Path("runs") / recipe.name
    last = out / "last.pt"
    if not args.resume and (last.exists() or (out / "best.pt").exists()):
        raise RecipeError(f"{out} already holds a run: --resume continues it, --out names another folder")
    if args.resume and not last.exists():
        raise RecipeError(f"--resume: {last} does not exist")
    splits = load_splits(recipe.data, args.data_dir)
    recipe.check_calibration(len(splits.calibration.x))
    processes = Processes(recipe.training.device)
    checkpoint = load_checkpoint(last) if args.resume else None
    trainer = _build(lambda: Trainer(recipe, splits, checkpoint, processes), recipe)
    keep_freed_memory()
    try:
        complete = train(trainer, out)
    except DivergedError as error:
        if processes.leads:
            save_checkpoint(trainer.sound, last)
            print(f"error: {error}", file=sys.stderr)
        processes.finish(1)
    if processes.leads:
        write_report(trainer, splits, out)
        early = complete and trainer.step < recipe.training.steps
        outcome = "stopped early" if early else "finished" if complete else "stopped"
        best = f"best validation {trainer.best:.4f} {trainer.unit}" if trainer.history else "not validated yet"
        print(f"{outcome} at step {trainer.step}: {best}, {out}/best.pt")
    processes.finish(0 if complete else 130)


def keep_freed_memory() -> None:
    """Let the C library keep what tensors of a step free for those of the next, where it is glibc.

    By default it returns large blocks to the system and gets them back page by page: a third of a step's time.
    """
    trim_threshold, mmap_threshold = -1, -3
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


def _build(build: Callable[[], Trainer], recipe: Recipe) -> Trainer:
    try:
        return build()
    except RecipeError:
        raise
    except ValueError as error:  # what no single key of the recipe could tell: the flow does not fit the data
        raise RecipeError(f"recipe {recipe.name!r} does not fit its data: {error}") from error


if __name__ == "__main__":
    run_command(main)
