"""Figures of a log-likelihood."""

from __future__ import annotations

import math

import numpy as np

from service.scores.conformal import FloatArray


def bits_per_dim(log_likelihood: FloatArray, num_dims: int) -> FloatArray:
    """-log_likelihood / (D ln 2): nats per input -> bits per dimension."""
    return -log_likelihood * np.float64(1 / (num_dims * math.log(2)))


def negative_log_likelihood(log_likelihood: FloatArray) -> FloatArray:
    """The default score: -log p(x), nats."""
    return -log_likelihood


def log_mean_exp(values: FloatArray) -> FloatArray:
    """Log of the mean of exp of each row, without overflow: (N, K) -> (N,).

    Over log p(x + u_k) with uniform noise u_k it estimates log P(x), the tighter the larger K.
    """
    highest = values.max(1)
    result: FloatArray = highest + np.log(np.exp(values - highest[:, None]).mean(1))
    return result
