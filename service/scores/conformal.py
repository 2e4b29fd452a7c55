"""P-values of scores, and which rows they flag. Scores are higher, and p-values smaller, for anomalies."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
CONFIDENCE = 0.95  # of the guarantee over calibration sets
_ROUNDING = 1e-9  # of sums over calibration rows, which must not refuse the alpha that is named as the least


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
    distinct, counts = np.unique(p_values, return_counts=True)
    return p_values <= benjamini_hochberg_threshold(distinct, counts, fdr)


def benjamini_hochberg_threshold(distinct: FloatArray, counts: npt.NDArray[np.int64], fdr: float) -> float:
    """The p_(k) of ``benjamini_hochberg``, given the ascending p-values and how many rows have each; else -inf.

    The p-values of m held-out scores are at most m + 1 different ones, however many rows there are.
    """
    k = np.cumsum(counts)  # of rows that share a p-value, the last one passes first
    passing = distinct[distinct <= fdr * k / k[-1:]]
    return float(passing[-1]) if len(passing) else -math.inf


def smallest_conditional_alpha(num_calibration: int) -> float:
    """The smallest alpha that ``conditional_level`` has an answer for: 1 - 0.05^(1 / m), rounded up."""
    return -math.expm1(math.log1p(-CONFIDENCE) / num_calibration) * (1 + _ROUNDING)


@lru_cache(256)
def conditional_level(alpha: float, num_calibration: int) -> float | None:
    """The largest k / (m + 1) such that P(p <= k / (m + 1) | calibration set) <= alpha for 95 % of calibration sets.

    From one calibration set to the next, the share of normal rows that a level k / (m + 1) flags is distributed as
    Beta(k, m + 1 - k), whose mean alone is k / (m + 1); P(Beta(k, m + 1 - k) <= alpha) is the probability of k or more
    successes in m trials of probability alpha. None where not even k = 1 will do: m is then below
    ln(0.05) / ln(1 - alpha), see ``smallest_conditional_alpha``. Source: Vovk 2012 (arXiv:1209.2673), proposition 2a.
    """
    counts = np.arange(num_calibration + 1)
    log_factorials = np.log(np.maximum(counts, 1)).cumsum()
    log_choices = log_factorials[-1] - log_factorials - log_factorials[::-1]
    log_probabilities = log_choices + counts * math.log(alpha) + counts[::-1] * math.log1p(-alpha)
    at_least = np.exp(log_probabilities)[::-1].cumsum()[::-1]  # P(k or more successes)
    enough = np.flatnonzero(at_least >= CONFIDENCE * (1 - _ROUNDING))
    k = int(enough[-1])
    return k / (num_calibration + 1) if k else None
