"""What every model answers, and how each is trained: for the same CPU time, under the same schedule."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.why_a_flow.images import Images
from model.likelihood import bits_per_dim
from model.recipe import TrainingRecipe
from model.trainer import learning_rate

Net = TypeVar("Net", bound=nn.Module)

BATCH_SIZE = 32
EVALUATION_BATCH = 250
WARM_STEPS, TIMED_STEPS = 3, 10  # of the throwaway run that sizes the schedule
NUM_VALIDATIONS = 10


class Sampler(ABC):
    """A trained model."""

    @abstractmethod
    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw images of whole pixel values: (num, C, H, W)."""


class Density(Sampler):
    """A trained model that knows how probable an image is, exactly or by a lower bound."""

    exact = False  # whether every weight is P(x) itself

    @abstractmethod
    def log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Log of an unbiased estimate of P(x): (B, C, H, W) whole pixel values -> (B,) nats, float64."""

    @torch.inference_mode()
    def bits(self, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Bits per dimension of -log of the mean of so many weights: (N, C, H, W) -> (N,).

        In expectation at least -log P(x), the closer the more draws; equal to it where the weight is exact. Source:
        Burda et al. 2016 (arXiv:1509.00519).
        """
        nats = []
        for batch in torch.split(x.float(), EVALUATION_BATCH):
            weights = torch.stack([self.log_weight(batch, generator) for _ in range(draws)])
            nats.append(weights.logsumexp(0) - math.log(draws))
        return bits_per_dim(torch.cat(nats), x[0].numel())


class Learner(ABC):
    """A model in training, made anew for a number of steps, which sizes its schedule."""

    num_parameters: int

    @abstractmethod
    def step(self) -> None:
        """Take one optimisation step."""

    @abstractmethod
    def model(self) -> Sampler:
        """The model with its averaged weights; it changes with later steps."""


@dataclass(frozen=True)
class Fitted:
    """A trained model and what its training took."""

    model: Sampler
    num_parameters: int
    steps: int
    seconds: float  # of CPU time


def fit(build: Callable[[int], Learner], images: Images, seconds: float) -> Fitted:
    """Train for so many seconds of CPU time, or the steps that fit in them by a throwaway run, whichever ends first.

    Of a density, the best of ten validations is kept, so that no model pays for overfitting; of others the last.
    Building, sizing and validation are not counted.
    """
    steps = max(1, int(seconds / _seconds_per_step(build(1000))))
    learner = build(steps)
    best, lowest = learner.model(), math.inf
    done, used = 0, 0.0
    while done < steps and used < seconds:
        started = time.process_time()
        learner.step()
        used += time.process_time() - started
        done += 1
        if done % -(-steps // NUM_VALIDATIONS) == 0 or done == steps or used >= seconds:
            model = learner.model()
            loss = validation_bits(model, images) if isinstance(model, Density) else -float(done)
            if loss < lowest:
                best, lowest = copy.deepcopy(model), loss
    return Fitted(best, learner.num_parameters, done, used)


def _seconds_per_step(learner: Learner) -> float:
    for _ in range(WARM_STEPS):
        learner.step()
    started = time.process_time()
    for _ in range(TIMED_STEPS):
        learner.step()
    return (time.process_time() - started) / TIMED_STEPS


def validation_bits(model: Density, images: Images) -> float:
    """Mean bits per dimension of the validation images, under the same noise every time."""
    return model.bits(images.validation, 1, torch.Generator().manual_seed(0)).mean().item()


def schedule(steps: int, rate: float) -> TrainingRecipe:
    """The project's own schedule, scaled to a number of steps: warm-up, half a cosine, averaged weights."""
    return TrainingRecipe(
        steps=steps,
        batch_size=BATCH_SIZE,
        learning_rate=rate,
        warmup_steps=min(200, steps // 10),
        ema_decay=min(0.999, max(0.0, 1 - 20 / steps)),
    )


def endless_batches(x: Tensor) -> Iterator[Tensor]:
    """Batches of rows as float, every epoch a new shuffle (torch's global generator)."""
    while True:
        for rows in torch.split(torch.randperm(len(x)), BATCH_SIZE):
            yield x[rows].float()


def channels_last(module: Net) -> Net:
    """Give a network the layout that oneDNN convolves fastest."""
    moved: Net = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def size_of(*modules: nn.Module) -> int:
    """The number of parameters of modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def averaged(module: nn.Module, training: TrainingRecipe) -> AveragedModel:
    """An exponential moving average of the weights and statistics of a module."""
    average = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
    return AveragedModel(module, multi_avg_fn=average, use_buffers=True)


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, step: int, training: TrainingRecipe) -> None:
    """Descend along the clipped gradient at the schedule's rate."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, training)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
    optimizer.step()


class TrainableDensity(nn.Module, Density):
    """A density that is trained by descending its own loss."""

    @abstractmethod
    def loss(self, x: Tensor, progress: float) -> Tensor:
        """Mean bits per dimension of a batch of whole pixel values; ``progress`` runs from 0 to 1 over the training."""


class DensityLearner(Learner):
    """Adam on the loss of a density."""

    def __init__(self, density: TrainableDensity, x: Tensor, training: TrainingRecipe) -> None:
        self.training = training
        self.density = channels_last(density)
        self.averaged = averaged(self.density, training)
        self.optimizer = torch.optim.Adam(density.parameters(), betas=(0.9, 0.99))
        self.batches = endless_batches(x)
        self.num_parameters = size_of(density)
        self.done = 0

    def step(self) -> None:
        loss = self.density.loss(next(self.batches), self.done / self.training.steps)
        take_step(self.optimizer, loss, self.done, self.training)
        self.averaged.update_parameters(self.density)
        self.done += 1

    def model(self) -> Sampler:
        density = self.averaged.module
        assert isinstance(density, TrainableDensity)
        return density
