"""Train a flow by exact maximum likelihood: ``python -m model.train RECIPE.toml``.

Every random draw of step n (rows, dequantization noise, dropout) depends on the recipe's seed and n alone, so a resumed
run takes exactly the steps that an uninterrupted one would have taken.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from model.bijections import Bijection, Pixels
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.cli import run_command
from model.columns import add_column_noise, describe_columns, standardizer
from model.data import Kind
from model.distributed import Processes
from model.glow import Glow, build_glow
from model.likelihood import bits_per_dim, dequantize, standard_normal_log_prob
from model.plots import save_curves, save_sample_grid
from model.recipe import Recipe, RecipeError, Splits, TrainingRecipe, load_splits, read_recipe
from service.artifact import Column

INITIALIZATION_ROWS = 1024
EVALUATION_BATCH = 256
EVALUATION_SEED = 2**31  # outside the range of recipe seeds and of steps: the same noise at every evaluation
NUM_GRID_SAMPLES = 64


class Trainer:
    """One run: the flow, its averaged copy, the optimizer and the history, from step 0 or from a checkpoint."""

    def __init__(
        self, recipe: Recipe, splits: Splits, checkpoint: Checkpoint | None = None, processes: Processes | None = None
    ) -> None:
        self.recipe = recipe
        self.processes = processes or Processes()
        if recipe.training.batch_size % self.processes.size:
            raise RecipeError(
                f"training.batch_size must be a multiple of the {self.processes.size} processes, "
                f"got {recipe.training.batch_size}"
            )
        self.shape = splits.fit.shape
        self.kind: Kind = splits.fit.kind
        self.unit = "bits/dim" if self.kind == "image" else "nats"
        self.data_digest = splits.fit.digest
        self.columns: list[Column] = describe_columns(splits.fit) if self.kind == "vector" else []
        self.fit = torch.from_numpy(splits.fit.x)
        self.validation = torch.from_numpy(splits.validation.x)
        training = recipe.training
        torch.manual_seed(training.seed)
        if self.kind == "image":
            inputs: Bijection = Pixels(torch.from_numpy(splits.fit.value_probabilities(2**recipe.model.bits)))
        else:
            inputs = standardizer(self.columns)
        self.flow = build_glow(self.shape, recipe.model, inputs)
        if self.kind == "image":
            self.flow = self.flow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # oneDNN convolves it 1.1x to 1.3x faster
        if checkpoint is None:
            self.flow.initialize(self.noisy(self.fit[:INITIALIZATION_ROWS], _generator(training.seed, 0)))
        average = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.flow, multi_avg_fn=average)
        self.optimizer = torch.optim.AdamW(
            self.flow.parameters(),
            lr=training.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.history: list[dict[str, float]] = []
        if checkpoint is not None:
            self._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.data_digest != self.data_digest:
            raise RecipeError("--resume: the data differ from those the checkpoint was trained on")
        if (checkpoint.recipe.model, checkpoint.recipe.data) != (self.recipe.model, self.recipe.data):
            raise RecipeError("--resume: the recipe's [model] and [data] must be those of the checkpoint")
        self.flow.load_state_dict(checkpoint.flow)
        self.averaged.load_state_dict(checkpoint.averaged)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.step, self.seconds, self.best = checkpoint.step, checkpoint.seconds, checkpoint.best
        self.history = checkpoint.history

    def checkpoint(self) -> Checkpoint:
        """Return the state of the run."""
        return Checkpoint(
            recipe=self.recipe,
            shape=self.shape,
            columns=self.columns,
            data_digest=self.data_digest,
            step=self.step,
            seconds=self.seconds,
            flow=self.flow.state_dict(),
            averaged=self.averaged.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=self.history,
            best=self.best,
        )

    def noisy(self, rows: Tensor, generator: torch.Generator, smoothing: float = 0.0) -> Tensor:
        """Dequantize rows: (B, *shape) in the user's units, as the flow takes them."""
        if self.kind == "image":
            return dequantize(rows.float(), generator)
        return add_column_noise(rows, self.columns, smoothing, generator)

    def loss(self, log_prob: Tensor) -> Tensor:
        """Negative log-likelihood, mean over the batch: bits/dim of images, nats of vectors."""
        return (bits_per_dim(log_prob, math.prod(self.shape)) if self.kind == "image" else -log_prob).mean()

    def train_step(self, stop: bool = False) -> tuple[dict[str, float], bool]:
        """Take one step; a step whose gradient is not finite changes nothing but the count.

        Returns its figures, and whether any process was asked to ``stop``: all must do so after the same step.
        """
        training = self.recipe.training
        generator = _generator(training.seed, self.step + 1)
        torch.manual_seed(training.seed + 2**20 * self.step + self.processes.rank)  # dropout
        noisy = self.noisy(self.fit[self._batch_rows()], generator, training.noise)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, training)
        self.flow.train()
        z, log_det = self.flow(self.processes.share(noisy))
        log_normal = standard_normal_log_prob(z)
        loss = self.loss(log_normal + log_det)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        figures = torch.stack(
            [loss.detach(), log_normal.mean().detach(), log_det.mean().detach(), loss.new_tensor(stop)]
        )
        figures = figures.float()
        self.processes.average(
            [figures, *(parameter.grad for parameter in self.flow.parameters() if parameter.grad is not None)]
        )
        grad_norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), training.max_grad_norm)
        finite = bool(torch.isfinite(grad_norm))
        if finite:
            self.optimizer.step()
            self.averaged.update_parameters(self.flow)
        self.step += 1
        mean_loss, mean_log_normal, mean_log_det, stopping = figures.tolist()
        return {
            "loss": mean_loss,
            "log_normal": mean_log_normal,
            "log_det": mean_log_det,
            "grad_norm": grad_norm.item(),
            "skipped": float(not finite),
        }, stopping > 0

    def _batch_rows(self) -> Tensor:
        """Pick the rows of this step: every epoch is a new shuffle, and a batch may span two epochs."""
        size, total = self.recipe.training.batch_size, len(self.fit)
        first = self.step * size
        rows: list[Tensor] = []
        epoch = first // total
        while sum(len(part) for part in rows) < size:
            shuffled = torch.randperm(total, generator=_generator(self.recipe.training.seed + 2**31, epoch))
            begin = max(first - epoch * total, 0)
            rows.append(shuffled[begin : first + size - epoch * total])
            epoch += 1
        return torch.cat(rows)

    def averaged_flow(self) -> Glow:
        """The flow with the averaged weights, ready to be evaluated."""
        flow = self.averaged.module.eval()
        assert isinstance(flow, Glow)
        return flow

    @torch.no_grad()
    def evaluate(self) -> float:
        """Validation loss of the averaged flow, under the same noise every time."""
        flow = self.averaged_flow()
        total = torch.zeros((), dtype=torch.float64)
        for batch, rows in enumerate(torch.split(self.validation, EVALUATION_BATCH)):
            if batch % self.processes.size == self.processes.rank:
                noisy = self.noisy(rows, _generator(EVALUATION_SEED, batch))
                total += self.loss(flow.log_prob(noisy)) * len(rows)
        self.processes.average([total])
        return total.item() * self.processes.size / len(self.validation)


def learning_rate(step: int, training: TrainingRecipe) -> float:
    """Linear warm-up to ``learning_rate``, then half a cosine down to its ``final_learning_rate`` fraction."""
    warmup = min(1.0, (step + 1) / max(1, training.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / training.steps))
    return (
        training.learning_rate * warmup * (training.final_learning_rate + (1 - training.final_learning_rate) * cosine)
    )


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 2**31 + step)


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
    mean = {name: sum(step[name] for step in recent) / len(recent) for name in recent[0]}
    mean["skipped"] = sum(step["skipped"] for step in recent)
    validation = trainer.evaluate()
    trainer.history.append({"step": trainer.step, **mean, "validation": validation, "rows_per_s": _rows_per_s(trainer)})
    improved, trainer.best = validation < trainer.best, min(validation, trainer.best)
    if trainer.processes.leads:
        if improved:
            save_checkpoint(trainer.checkpoint(), out / "best.pt")
        save_curves(trainer.history, trainer.unit, out / "curves.png")
        if trainer.kind == "image":
            z = torch.randn(NUM_GRID_SAMPLES, math.prod(trainer.shape), generator=_generator(EVALUATION_SEED, 2**20))
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


def write_report(trainer: Trainer, splits: Splits, out: Path) -> None:
    """Write ``report.json``: what was trained, on what, for how long, and how well it fits."""
    report = {
        "recipe": trainer.recipe.model_dump(),
        "unit": trainer.unit,
        "validation": trainer.best,
        "rows": {
            "fit": len(splits.fit.x),
            "validation": len(splits.validation.x),
            "calibration": len(splits.calibration.x),
        },
        "data_digest": trainer.data_digest,
        "columns": [column.model_dump() for column in trainer.columns],
        "num_parameters": sum(parameter.numel() for parameter in trainer.flow.parameters()),
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "skipped_steps": sum(entry["skipped"] for entry in trainer.history),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch_version": torch.__version__,
        "history": trainer.history,
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m model.train", description="Train a flow by exact maximum likelihood."
    )
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
    processes.close()
    if not processes.leads:
        return
    write_report(trainer, splits, out)
    outcome = "finished" if complete else "stopped"
    print(f"{outcome} at step {trainer.step}: best validation {trainer.best:.4f} {trainer.unit}, {out}/best.pt")
    if not complete:
        raise SystemExit(130)


def _build(build: Callable[[], Trainer], recipe: Recipe) -> Trainer:
    try:
        return build()
    except RecipeError:
        raise
    except ValueError as error:  # what no single key of the recipe could tell: the flow does not fit the data
        raise RecipeError(f"recipe {recipe.name!r} does not fit its data: {error}") from error


if __name__ == "__main__":
    run_command(main)
