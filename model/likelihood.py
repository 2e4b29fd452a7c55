"""Likelihoods, their units, and the noise that turns whole numbers into densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.bijections.base import log_normal, sum_per_input


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
