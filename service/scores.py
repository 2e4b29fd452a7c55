"""What scores and p-values mean. Higher scores are more anomalous; p-values are small for anomalies."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def bits_per_dim(log_likelihood: FloatArray, num_dims: int) -> FloatArray:
    """-log_likelihood / (D ln 2): nats per input -> bits per dimension."""
    return -log_likelihood * np.float64(1 / (num_dims * math.log(2)))


def negative_log_likelihood(log_likelihood: FloatArray) -> FloatArray:
    """The default score: -log p(x), nats."""
    return -log_likelihood


def p_values(scores: FloatArray, calibration: FloatArray) -> FloatArray:
    """Conformal p-value of each score against m ascending held-out scores: (1 + #{s_i >= s}) / (m + 1).

    If an input is exchangeable with the calibration rows, P(p <= alpha) <= alpha for every alpha. The smallest possible
    value is 1 / (m + 1). Source: Bates et al. 2023 (arXiv:2104.08279), section 2.
    """
    at_least = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return (1 + at_least).astype(np.float64) / (len(calibration) + 1)


def smallest_p_value(num_calibration: int) -> float:
    """1 / (m + 1): no smaller alpha can ever flag anything."""
    return 1.0 / (num_calibration + 1.0)


def highest_normal_score(calibration: FloatArray, alpha: float) -> float:
    """Of the ascending calibration scores, the highest whose p-value is over alpha: scores above it are anomalies."""
    return float(calibration[p_values(calibration, calibration) > alpha].max())


def benjamini_hochberg(p_values: FloatArray, fdr: float) -> BoolArray:
    """Flag the rows of the k smallest p-values, k the largest number with p_(k) <= fdr k / n: (n,) -> (n,).

    Of what is flagged, the expected share of normal rows is at most fdr times the share of normal rows among the n, if
    these are independent of each other; that their p-values share one calibration set does no harm. Sources: Benjamini
    and Hochberg 1995; for conformal p-values, Bates et al. 2023 (arXiv:2104.08279), section 2.
    """
    num = len(p_values)
    ordered = np.sort(p_values)
    passing = np.flatnonzero(ordered <= fdr * np.arange(1, num + 1) / num)
    return p_values <= ordered[passing[-1]] if len(passing) else np.zeros(num, np.bool_)


def log_mean_exp(values: FloatArray) -> FloatArray:
    """Log of the mean of exp along the last axis, without overflow: (N, K) -> (N,).

    Over log p(x + u_k) with uniform noise u_k it estimates log P(x), the tighter the larger K.
    """
    highest = values.max(-1, keepdims=True)
    result: FloatArray = highest[..., 0] + np.log(np.exp(values - highest).mean(-1))
    return result
