"""PyOD's conversion of scores to a scale from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from service.scores.conformal import FloatArray

OutlierMethod = Literal["linear", "unify"]


def score_summary(calibration: FloatArray) -> dict[str, float]:
    """What ``outlier_share`` wants to know of the calibration scores (m,)."""
    return {
        "lowest": float(calibration.min()),
        "highest": float(calibration.max()),
        "mean": float(calibration.mean()),
        "std": float(calibration.std()),
    }


def outlier_share(scores: FloatArray, summary: Mapping[str, float], method: OutlierMethod = "linear") -> FloatArray:
    """PyOD's conversion of scores to [P(normal), P(outlier)], (N, 2), by a ``score_summary``.

    P(outlier) is (s - lowest) / (highest - lowest) (linear) or erf((s - mean) / (sqrt(2) std)) (unify), clipped to
    [0, 1]. Raises ValueError for another method. Source: Kriegel et al. 2011 (Interpreting and Unifying Outlier
    Scores), of which PyOD's ``predict_proba`` takes both.
    """
    lowest, highest = summary["lowest"], summary["highest"]
    if method == "linear":
        outlier = (scores.clip(lowest, highest) - lowest) / (highest - lowest or 1.0)
    elif method == "unify":
        with np.errstate(over="ignore"):  # of the lowest finite log-likelihood; erf(inf) = 1
            deviations = (scores - summary["mean"]) / (summary["std"] or 1.0) / math.sqrt(2)
        outlier = np.array([math.erf(deviation) for deviation in deviations]).clip(0.0)
    else:
        raise ValueError(f"method must be 'linear' or 'unify', got {method!r}")
    return np.stack([1 - outlier, outlier], 1)
