"""What a figure does over hours, by the median of the slopes between its values, which single outliers do not move."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import theilslopes

HOUR_S = 3600.0


class Trend(NamedTuple):
    """Change of a figure in an hour, and what holds it with a probability of 95 %."""

    an_hour: float
    low: float
    high: float


def trend(seconds: Sequence[float], values: Sequence[float]) -> Trend | None:
    """The slope of Theil and Sen (Sen, 1968), in the figure's units an hour; None for fewer than three values."""
    if len(values) < 3:
        return None
    slope, _, low, high = theilslopes(values, seconds, 0.95)
    return Trend(HOUR_S * float(slope), HOUR_S * float(low), HOUR_S * float(high))


def relative(seconds: Sequence[float], values: Sequence[float]) -> Trend | None:
    """The same in per cent of the median."""
    median = statistics.median(values) if values else 0.0
    found = trend(seconds, values)
    return None if found is None or not median else Trend(*(100 * part / median for part in found))
