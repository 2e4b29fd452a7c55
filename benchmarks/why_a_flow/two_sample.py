"""How far two samples are apart: the maximum mean discrepancy."""

from __future__ import annotations

import torch
from torch import Tensor

BANDWIDTH_FACTORS = (0.5, 1.0, 2.0)


def median_distance(x: Tensor) -> float:
    """Median Euclidean distance between two different rows of x (N, D)."""
    return torch.pdist(x).median().item()


def squared_mmd(x: Tensor, y: Tensor, bandwidth: float) -> float:
    """Unbiased estimate of MMD^2 between the distributions of the rows of x (N, D) and of y (M, D); may be negative.

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over different rows, with k the mean of exp(-d^2 / 2 s^2) over
    s = bandwidth / 2, bandwidth, 2 bandwidth. Source: Gretton et al. 2012 (JMLR 13), equation 3.
    """
    return _mean_among(x, bandwidth) + _mean_among(y, bandwidth) - 2 * _kernel(x, y, bandwidth).mean().item()


def _mean_among(x: Tensor, bandwidth: float) -> float:
    """Mean of the kernel over pairs of different rows; each row's kernel with itself is 1."""
    num = len(x)
    return (_kernel(x, x, bandwidth).sum().item() - num) / (num * (num - 1))


def _kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    squares = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.stack([(-squares / (2 * (factor * bandwidth) ** 2)).exp() for factor in BANDWIDTH_FACTORS]).mean(0)
