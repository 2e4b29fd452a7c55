"""A training run: its state, its steps, its evaluation and its checkpoints."""

from __future__ import annotations

import copy
import math
import signal
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.bijections import Bijection, Pixels
from model.checkpoint import Checkpoint
from model.columns import add_column_noise, describe_columns, standardizer
from model.data import DataError, Kind
from model.distributed import ALONE, Processes
from model.divergence import WINDOW, DivergedError, Watch
from model.glow import Glow, build_glow
from model.likelihood import bits_per_dim, dequantize, standard_normal_log_prob
from model.nets import ConvNet
from model.recipe import Recipe, RecipeError, Splits, TrainingRecipe
from service.artifact import Column, unit_of_likelihood

INITIALIZATION_ROWS = 1024
EVALUATION_BATCH = 256
MAX_ROLLBACKS = 5
EVALUATION_SEED = 2**31  # no recipe has it: the same noise at every evaluation, whatever the seed


class Trainer:
    """One run: the flow, its averaged copy, the optimizer and the history, from step 0 or from a checkpoint."""

    def __init__(
        self, recipe: Recipe, splits: Splits, checkpoint: Checkpoint | None = None, processes: Processes = ALONE
    ) -> None:
        self.recipe = recipe
        self.processes = processes
        self.device = device_of(recipe.training.device, processes)
        if recipe.training.batch_size < processes.size:
            raise RecipeError(
                f"training.batch_size must be at least the {processes.size} processes, got {recipe.training.batch_size}"
            )
        self.shape = splits.fit.shape
        self.kind: Kind = splits.fit.kind
        self.unit = unit_of_likelihood(self.kind)
        self.data_digest = processes.once_a_host(lambda: splits.fit.digest)
        if len(set(processes.gather(self.data_digest))) > 1:
            raise DataError(f"{recipe.data.train}: the hosts hold different data")
        self.columns: list[Column] = describe_columns(splits.fit, processes) if self.kind == "vector" else []
        self.fit = torch.from_numpy(splits.fit.x)
        self.validation = torch.from_numpy(splits.validation.x)
        splits.check_pixels(2**recipe.model.bits - 1, processes)
        training = recipe.training
        torch.manual_seed(training.seed)
        if self.kind == "image":
            probabilities = splits.fit.value_probabilities(2**recipe.model.bits, processes=processes)
            inputs: Bijection = Pixels(torch.from_numpy(probabilities))
        else:
            inputs = standardizer(self.columns)
        self.flow = build_glow(self.shape, recipe.model, inputs).to(self.device)
        if self.kind == "image":  # oneDNN convolves this layout 1.1 to 1.3 times as fast
            self.flow = self.flow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if checkpoint is None:
            if self.processes.leads:
                rows = self.noisy(self.fit[:INITIALIZATION_ROWS], generator_of(training.seed, 0))
                self.flow.initialize(rows.to(self.device))
            self.processes.broadcast(self.flow)
        average = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.flow, multi_avg_fn=average)
        if training.precision == "bfloat16":
            lower_precision(self.flow, self.device.type)
        self.optimizer = torch.optim.AdamW(
            self.flow.parameters(),
            lr=training.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.step, self.seconds, self.best, self.rollbacks, self.skipped = 0, 0.0, math.inf, 0, 0
        self.stopped_by = signal.SIGINT  # what ended it before its last step, if anything did
        self._order: tuple[tuple[int, int], Tensor] = (-1, -1), torch.empty(0)
        self.history: list[dict[str, float]] = []
        self.figures: list[dict[str, float]] = []
        self.watch = Watch(self._margin)
        if checkpoint is not None:
            self._check_resumable(checkpoint)
            self._restore(checkpoint)
        self.sound = copy.deepcopy(self.checkpoint())  # to go back to
        self.kept: Checkpoint | None = None  # a later one, not yet known to be sound

    @property
    def _margin(self) -> float:
        """One nat per dimension, in the unit of the loss: a rise that no learning rate makes by itself."""
        return 1 / math.log(2) if self.kind == "image" else float(math.prod(self.shape))

    def _check_resumable(self, checkpoint: Checkpoint) -> None:
        """Raise RecipeError where a run cannot go on from a checkpoint."""
        if checkpoint.data_digest != self.data_digest:
            raise RecipeError("--resume: the data differ from those the checkpoint was trained on")
        if (checkpoint.recipe.model, checkpoint.recipe.data) != (self.recipe.model, self.recipe.data):
            raise RecipeError("--resume: the recipe's [model] and [data] must be those of the checkpoint")
        if (checkpoint.recipe.name, checkpoint.recipe.artifact) != (self.recipe.name, self.recipe.artifact):
            raise RecipeError("--resume: the recipe's name and [artifact] must be those of the checkpoint")
        may_change = {"steps", "accumulation", "evaluate_every", "checkpoint_every", "patience", "device"}
        for name, value in checkpoint.recipe.training.model_dump(exclude=may_change).items():
            if getattr(self.recipe.training, name) != value:
                raise RecipeError(f"--resume: training.{name} must be that of the checkpoint, {value}")
        if checkpoint.step > self.recipe.training.steps:
            raise RecipeError(
                f"--resume: training.steps is {self.recipe.training.steps}, but {checkpoint.step} are already done"
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.flow.load_state_dict(checkpoint.flow)
        self.averaged.load_state_dict(checkpoint.averaged)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.step, self.seconds, self.best = checkpoint.step, checkpoint.seconds, checkpoint.best
        self.history, self.figures = list(checkpoint.history), list(checkpoint.figures)
        self.rollbacks, self.skipped = checkpoint.rollbacks, checkpoint.skipped
        self.watch = Watch(self._margin, checkpoint.recent)

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
            history=list(self.history),
            best=self.best,
            recent=self.watch.recent,
            rollbacks=self.rollbacks,
            figures=list(self.figures),
            skipped=self.skipped,
        )

    def observe(self, figures: dict[str, float]) -> str | None:
        """Take note of a step's figures; returns what diverged, if anything did.

        Where nothing did, the last state kept is the one to go back to once a window of steps has followed it.
        """
        self.figures.append(figures)
        self.skipped += int(figures["skipped"])
        diverged = self.watch.observe(figures["loss"], figures["skipped"] > 0)
        if not diverged and self.kept is not None and self.step - self.kept.step >= WINDOW:
            self.sound, self.kept = self.kept, None
            self.watch.trust(self.sound.recent)
        return diverged

    def keep(self) -> Checkpoint | None:
        """Return the checkpoint of this state, which later steps do not touch; None where the last step was a bad one.

        Every process remembers its own, so that none has to see another's files.
        """
        if self.watch.alarmed:
            return None
        checkpoint = copy.deepcopy(self.checkpoint())
        self.kept = self.kept or checkpoint
        return checkpoint

    def roll_back(self, reason: str) -> None:
        """Go back to the last sound state, halve the learning rate and draw other batches and noise from there on.

        Raises DivergedError after ``MAX_ROLLBACKS`` times.
        """
        if self.rollbacks == MAX_ROLLBACKS:
            raise DivergedError(
                f"step {self.step}: {reason}, and the run has gone back {MAX_ROLLBACKS} times already; "
                f"the last sound state is that of step {self.sound.step}"
            )
        self.kept = None
        self._restore(
            replace(
                copy.deepcopy(self.sound),
                seconds=self.seconds,
                best=self.best,
                rollbacks=self.rollbacks + 1,
                skipped=self.skipped,
            )
        )

    def noisy(self, rows: Tensor, generator: torch.Generator, smoothing: float = 0.0) -> Tensor:
        """Dequantize rows: (B, *shape) in the user's units, as the flow takes them."""
        if self.kind == "image":
            return dequantize(rows.float(), generator)
        return add_column_noise(rows, self.columns, smoothing, generator)

    def _noisy_share(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Read this process's share of the rows of a batch, and dequantize it by its share of the batch's noise.

        Noise is drawn for the whole batch, and zeros stand for the rows of others, so that it depends on the step
        alone: that takes 0.24 ms of CPU time where a step of 64 images takes 302 (``make bench-ddp``).
        """
        part = self.processes.part(len(rows))
        batch = self.fit.new_zeros(len(rows), *self.shape)
        batch[part] = self.fit[rows[part]]
        return self.noisy(batch, generator, self.recipe.training.noise)[part]

    def loss(self, log_prob: Tensor) -> Tensor:
        """Negative log-likelihood, mean over the batch: bits/dim of images, nats of vectors."""
        return (bits_per_dim(log_prob, math.prod(self.shape)) if self.kind == "image" else -log_prob).mean()

    @property
    def complete(self) -> bool:
        """Whether the last step is done, or no evaluation of the last ``patience`` was better than one before."""
        training = self.recipe.training
        validations = [entry["validation"] for entry in self.history]
        since_best = len(validations) - 1 - validations.index(min(validations)) if validations else 0
        return self.step == training.steps or 0 < training.patience <= since_best

    def train_step(self, stop: bool = False) -> tuple[dict[str, float], bool]:
        """Take one step; a step whose gradient is not finite changes nothing but the count.

        Returns its figures, and whether any process was asked to ``stop``: all must do so after the same step.
        """
        training = self.recipe.training
        generator = generator_of(training.seed, self.step + 1, self.rollbacks)
        torch.manual_seed(stream_of(training.seed, self.step, self.rollbacks, 1 + self.processes.rank))  # dropout
        noisy = self._noisy_share(self._batch_rows(), generator)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, training) / 2**self.rollbacks
        self.flow.train()
        self.optimizer.zero_grad()
        figures = torch.tensor([0.0, 0.0, 0.0, stop], device=self.device)
        for rows in noisy.chunk(training.accumulation):
            # So that the mean over the processes is one over rows.
            share = len(rows) * self.processes.size / training.batch_size
            z, log_det = self.flow(rows.to(self.device))
            log_normal = standard_normal_log_prob(z)
            loss = self.loss(log_normal + log_det)
            (share * loss).backward()  # type: ignore[no-untyped-call]
            means = torch.stack([loss.detach(), log_normal.mean().detach(), log_det.mean().detach()])
            figures[:3] += share * means
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

    def advance(self, step: int) -> None:
        """Train until so many steps are done, going back where that diverges. Raises DivergedError."""
        while self.step < step:
            if diverged := self.observe(self.train_step()[0]):
                self.roll_back(diverged)
            elif self.step % self.recipe.training.checkpoint_every == 0:
                self.keep()
        self.figures = []

    def _batch_rows(self) -> Tensor:
        """Pick the rows of this step: every epoch is a new shuffle, and a batch may span two epochs."""
        size, total = self.recipe.training.batch_size, len(self.fit)
        first = self.step * size
        rows: list[Tensor] = []
        epoch = first // total
        while sum(len(part) for part in rows) < size:
            begin = max(first - epoch * total, 0)
            rows.append(self._shuffled(epoch, self.rollbacks)[begin : first + size - epoch * total])
            epoch += 1
        return torch.cat(rows)

    def _shuffled(self, epoch: int, attempt: int) -> Tensor:
        """Rows in the order of an epoch. The last order is remembered: a million rows take 8 ms to shuffle."""
        if self._order[0] != (epoch, attempt):
            generator = generator_of(self.recipe.training.seed, epoch, attempt)
            self._order = (epoch, attempt), torch.randperm(len(self.fit), generator=generator)
        return self._order[1]

    def averaged_flow(self) -> Glow:
        """The flow with the averaged weights, ready to be evaluated."""
        flow = self.averaged.module.eval()
        assert isinstance(flow, Glow)
        return flow

    @torch.no_grad()
    def evaluate(self) -> float:
        """Validation loss of the averaged flow, under the same noise every time."""
        flow = self.averaged_flow()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, rows in enumerate(torch.split(self.validation, EVALUATION_BATCH)):
            if batch % self.processes.size == self.processes.rank:
                noisy = self.noisy(rows, generator_of(EVALUATION_SEED, batch)).to(self.device)
                total += self.loss(flow.log_prob(noisy)) * len(rows)
        self.processes.average([total])
        return total.item() * self.processes.size / len(self.validation)


def device_of(wanted: Literal["auto", "cpu", "cuda"], processes: Processes) -> torch.device:
    """Choose the device of a process. Raises RecipeError where a GPU is wanted and none is there."""
    if wanted == "cpu" or not torch.cuda.is_available():
        if wanted == "cuda":
            raise RecipeError("training.device is 'cuda', but torch finds no GPU")
        return torch.device("cpu")
    device = torch.device("cuda", processes.local_rank)
    torch.cuda.set_device(device)
    return device


def learning_rate(step: int, training: TrainingRecipe) -> float:
    """Linear warm-up to ``learning_rate``, then half a cosine down to its ``final_learning_rate`` fraction."""
    warmup = min(1.0, (step + 1) / max(1, training.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / training.steps))
    return (
        training.learning_rate * warmup * (training.final_learning_rate + (1 - training.final_learning_rate) * cosine)
    )


def generator_of(seed: int, index: int, attempt: int = 0) -> torch.Generator:
    """Make the generator of a step's noise, or of an epoch's shuffle, after so many times of going back.

    A step and the epoch of the same number share a stream, of which one makes noise and the other an order of rows.
    """
    return torch.Generator().manual_seed(stream_of(seed, index, attempt))


def stream_of(seed: int, index: int, attempt: int = 0, purpose: int = 0) -> int:
    """Number a random stream: torch's generator on the CPU takes 32 bits of a seed and ignores the rest.

    Multiples of odd constants keep the streams of small seeds, attempts and purposes some ten million indices apart.
    """
    return (index + 0x9E3779B1 * seed + 0x85EBCA77 * attempt + 0xC2B2AE3D * purpose) % 2**32


def lower_precision(flow: Glow, device_type: str) -> None:
    """Compute the features of convolutional conditioners, most of the work, in bfloat16 from now on.

    Heads, and all that a log-determinant is made of, keep float32; so do copies of the flow that were made before.
    """
    for module in flow.modules():
        if isinstance(module, ConvNet):
            module.features.forward = torch.autocast(device_type, torch.bfloat16)(module.features.forward)  # type: ignore[method-assign]
