"""Train a flow by exact maximum likelihood: ``python -m model.train RECIPE.toml``.

Every random draw of step n depends on the recipe's seed and n alone (dropout also on the process), so a resumed run
takes exactly the steps that an uninterrupted one would have taken.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

from model.checkpoint import load_checkpoint, save_checkpoint
from model.cli import Parser, run_command
from model.distributed import Processes
from model.plots import save_curves, save_sample_grid
from model.recipe import Recipe, RecipeError, load_splits, read_recipe
from model.report import write_report
from model.trainer import EVALUATION_SEED, Trainer, generator_of

NUM_GRID_SAMPLES = 64


def train(trainer: Trainer, out: Path, progress: bool = True) -> bool:
    """Run to the recipe's last step, or to the first SIGINT or SIGTERM; leave ``last.pt`` and ``best.pt`` in ``out``.

    Returns whether the run is complete. A signal lets the current step finish, so a checkpoint is never torn.
    """
    training, leads = trainer.recipe.training, trainer.processes.leads
    out.mkdir(parents=True, exist_ok=True)
    recent: list[dict[str, float]] = []
    started = time.monotonic() - trainer.seconds
    stopping = False
    quiet = not (leads and progress)
    with (
        _StopOnSignal() as stop,
        tqdm(total=training.steps, initial=trainer.step, unit="step", disable=quiet or None) as bar,
    ):
        while trainer.step < training.steps and not stopping:
            figures, stopping = trainer.train_step(stop.requested)
            recent.append(figures)
            bar.update()
            trainer.seconds = time.monotonic() - started
            if trainer.step % training.evaluate_every == 0 or trainer.step == training.steps:
                message = _evaluate(trainer, recent, out)
                recent = []
                bar.set_postfix_str(message)
                if bar.disable and not quiet:
                    print(f"step {trainer.step}/{training.steps}: {message}", flush=True)
                trainer.seconds = time.monotonic() - started
            elif trainer.step % 20 == 0:
                bar.set_postfix_str(f"loss {figures['loss']:.3f} {trainer.unit}, {_rows_per_s(trainer):.0f} rows/s")
            if leads and trainer.step % training.checkpoint_every == 0:
                save_checkpoint(trainer.checkpoint(), out / "last.pt")
    if leads:
        save_checkpoint(trainer.checkpoint(), out / "last.pt")
        if not (out / "best.pt").exists():
            save_checkpoint(trainer.checkpoint(), out / "best.pt")
    return trainer.step == training.steps


def _rows_per_s(trainer: Trainer) -> float:
    return trainer.step * trainer.recipe.training.batch_size / trainer.seconds


def _evaluate(trainer: Trainer, recent: list[dict[str, float]], out: Path) -> str:
    """Measure the averaged flow, keep it if it is the best, draw the pictures; returns a line for the log."""
    taken = [step for step in recent if not step["skipped"]] or recent
    mean = {name: sum(step[name] for step in taken) / len(taken) for name in taken[0]}
    mean["skipped"] = sum(step["skipped"] for step in recent)
    validation = trainer.evaluate()
    trainer.history.append({"step": trainer.step, **mean, "validation": validation, "rows_per_s": _rows_per_s(trainer)})
    improved = validation < trainer.best  # never where it is not a number
    if improved:
        trainer.best = validation
    if trainer.processes.leads:
        if improved:
            save_checkpoint(trainer.checkpoint(), out / "best.pt")
        save_curves(trainer.history, trainer.unit, out / "curves.png")
        if trainer.kind == "image":
            z = torch.randn(NUM_GRID_SAMPLES, math.prod(trainer.shape), generator=generator_of(EVALUATION_SEED, 2**20))
            with torch.no_grad():
                samples, _ = trainer.averaged_flow().inverse(z * trainer.recipe.artifact.temperature)
            save_sample_grid(samples.numpy(), 2**trainer.recipe.model.bits - 1, out / "samples.png")
    return f"loss {mean['loss']:.3f} validation {validation:.3f} {trainer.unit}, {_rows_per_s(trainer):.0f} rows/s"


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
    parser = Parser(prog="python -m model.train", description="Train a flow by exact maximum likelihood.")
    parser.add_argument("recipe", type=Path, help="TOML file; model/recipes/ holds examples")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change a value of the recipe"
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path(), help="folder that the recipe's file names are relative to"
    )
    parser.add_argument("--out", type=Path, help="folder of checkpoints, curves and report (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder exactly")
    args = parser.parse_args(argv)
    recipe = read_recipe(args.recipe, args.set)
    out = args.out or Path("runs") / recipe.name
    last = out / "last.pt"
    if last.exists() and not args.resume:
        raise RecipeError(f"{out} already holds a run: --resume continues it, --out names another folder")
    if args.resume and not last.exists():
        raise RecipeError(f"--resume: {last} does not exist")
    splits = load_splits(recipe.data, args.data_dir)
    processes = Processes()
    checkpoint = load_checkpoint(last) if args.resume else None
    trainer = _build(lambda: Trainer(recipe, splits, checkpoint, processes), recipe)
    complete = train(trainer, out)
    if processes.leads:
        write_report(trainer, splits, out)
        outcome = "finished" if complete else "stopped"
        print(f"{outcome} at step {trainer.step}: best validation {trainer.best:.4f} {trainer.unit}, {out}/best.pt")
    processes.finish(0 if complete else 130)


def _build(build: Callable[[], Trainer], recipe: Recipe) -> Trainer:
    try:
        return build()
    except RecipeError:
        raise
    except ValueError as error:  # what no single key of the recipe could tell: the flow does not fit the data
        raise RecipeError(f"recipe {recipe.name!r} does not fit its data: {error}") from error


if __name__ == "__main__":
    run_command(main)
