"""Likelihoods, their units, and the noise that turns whole numbers into densities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.bijections.base import log_normal, sum_per_input
from service.artifact import Unit, unit_of_likelihood


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Log N(z; 0, I) = -sum(z^2 + log 2 pi) / 2 of each row: (B, ...) -> (B,) nats, float64."""
    return sum_per_input(log_normal(z))


def bits_per_dim(log_prob: Tensor, num_dims: int) -> Tensor:
    """-log_prob / (D log 2): nats per input -> bits per dimension."""
    return -log_prob / (num_dims * math.log(2))


def dequantize(x: Tensor, generator: torch.Generator) -> Tensor:
    """Add uniform noise u ~ U[-0.5, 0.5) to integer values, each the centre of a bin of width 1.

    E_u[log p(x + u)] <= log P(x): training on noisy integers maximises a lower bound of their probability. Source:
    Theis et al. 2016 (arXiv:1511.01844), section 3.1.
    """
    return x + torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5


@dataclass(frozen=True)
class MeanLikelihood:
    """Likelihood of rows as it is published: bits per dimension of images, mean log-likelihood in nats of vectors."""

    value: float
    standard_error: float  # over the rows; NaN of a single one
    unit: Unit
    rows: int


def mean_likelihood(log_prob: Tensor, shape: tuple[int, ...]) -> MeanLikelihood:
    """Publish the log-likelihoods (N,), nats, of rows of one shape: (C, H, W) of images, (D,) of vectors."""
    unit = unit_of_likelihood("image" if len(shape) == 3 else "vector")
    values = bits_per_dim(log_prob, math.prod(shape)) if unit == "bits/dim" else log_prob
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return MeanLikelihood(values.mean().item(), error, unit, len(values))
