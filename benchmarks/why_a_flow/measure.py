"""What is measured of each trained model."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.why_a_flow.images import Images
from benchmarks.why_a_flow.learning import Density, Fitted, Sampler
from benchmarks.why_a_flow.two_sample import median_distance, squared_mmd

DRAWS = 64
TIMED_IMAGES, TIMED_REPEATS = 16, 3
NUM_HALVINGS = 20
NOISE_SEED = 2**31  # of evaluation: the same noise for every model and every seed


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension of the test images."""

    single: float  # one draw for each image
    tight: float  # the mean of ``DRAWS`` weights for each image
    standard_error: float  # of ``single``, over the images


@dataclass(frozen=True)
class Run:
    """One trained model, measured."""

    fitted: Fitted
    likelihood: Likelihood | None  # of a model that has one
    squared_mmd: float  # between its samples and the test images
    milliseconds: float  # of CPU time to draw one image, when drawing 16


class Yardstick:
    """The distance of a sample from the test images, and what real images score on it."""

    def __init__(self, images: Images) -> None:
        self.highest = 2**images.bits - 1
        self.test, self.held_out = self._rows(images.test), self._rows(torch.cat([images.test, images.other]))
        self.bandwidth = median_distance(self.held_out)

    def _rows(self, images: Tensor) -> Tensor:
        rows: Tensor = images.flatten(1).double() / self.highest
        return rows

    def distance(self, samples: Tensor) -> float:
        """Squared MMD between samples and the test images, pixels scaled to [0, 1]."""
        return squared_mmd(self._rows(samples), self.test, self.bandwidth)

    def real(self) -> list[float]:
        """Squared MMD between the halves of the held-out images, halved at random many times."""
        generator = torch.Generator().manual_seed(NOISE_SEED)
        halvings = (torch.randperm(len(self.held_out), generator=generator).chunk(2) for _ in range(NUM_HALVINGS))
        return [squared_mmd(self.held_out[a], self.held_out[b], self.bandwidth) for a, b in halvings]


def likelihood(model: Density, images: Images) -> Likelihood:
    """Measure the test images under noise that is the same for every model."""
    single = model.bits(images.test, 1, torch.Generator().manual_seed(NOISE_SEED))
    tight = single if model.exact else model.bits(images.test, DRAWS, torch.Generator().manual_seed(NOISE_SEED))
    return Likelihood(single.mean().item(), tight.mean().item(), single.std().item() / len(single) ** 0.5)


def measure(fitted: Fitted, images: Images, yardstick: Yardstick, seed: int) -> Run:
    """Measure a trained model: as many samples as there are test images, drawn by ``seed``."""
    model = fitted.model
    samples = model.sample(len(images.test), torch.Generator().manual_seed(seed))
    return Run(
        fitted=fitted,
        likelihood=likelihood(model, images) if isinstance(model, Density) else None,
        squared_mmd=yardstick.distance(samples),
        milliseconds=_milliseconds_per_image(model),
    )


def _milliseconds_per_image(model: Sampler) -> float:
    generator = torch.Generator().manual_seed(0)
    times = []
    for _ in range(1 + TIMED_REPEATS):
        started = time.process_time()
        model.sample(TIMED_IMAGES, generator)
        times.append(time.process_time() - started)
    return 1000 * statistics.median(times[1:]) / TIMED_IMAGES
