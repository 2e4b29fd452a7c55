"""How calibration scores are spread, for people to look at."""

from __future__ import annotations

import numpy as np

from service.scores.conformal import FloatArray

NUM_BINS = 40
REACH = 3.0  # interquartile ranges beyond the middle half that are still drawn to scale


def score_histogram(calibration: FloatArray) -> dict[str, list[float]]:
    """Counts of the calibration scores (m,) in bins of equal width: edges (NUM_BINS + 1,) and counts (NUM_BINS,).

    The edges end at the lowest and highest score, or at REACH interquartile ranges beyond the quartiles; scores
    beyond them are counted in the outer bins.
    """
    lower, upper = np.quantile(calibration, [0.25, 0.75])
    reach = REACH * (upper - lower)
    lowest, highest = max(calibration.min(), lower - reach), min(calibration.max(), upper + reach)
    counts, edges = np.histogram(calibration.clip(lowest, highest), NUM_BINS, (lowest, highest))
    return {"edges": edges.tolist(), "counts": counts.tolist()}
