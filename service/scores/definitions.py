"""The named scores of a row: what each is, and what its values mean."""

from __future__ import annotations

from typing import Literal, NamedTuple

ScoreName = Literal["negative_log_likelihood", "typicality", "complexity", "complexity_corrected", "density"]
LOG_PROB = "log_prob"  # the first of a program's statistics
COMPLEXITY = "complexity"  # the statistic that is not the program's but a codec's


class Definition(NamedTuple):
    """What a score is: unit, formula, and what a high value means."""

    unit: str
    formula: str
    direction: str


_ANOMALOUS = "higher = more anomalous"
DEFINITIONS: dict[ScoreName, Definition] = {
    "negative_log_likelihood": Definition("nats", "-log p(x)", _ANOMALOUS),
    "typicality": Definition(
        "nats", "|-log p(x) - H|, H the mean of -log p over held-out normal rows; two-sided", _ANOMALOUS
    ),
    "complexity": Definition(
        "bits/dim", "L(x) = 8 bytes(x) / D, the size of x as a lossless picture file", "neither is: a fact of the image"
    ),
    "complexity_corrected": Definition(
        "bits/dim", "S(x) = bits_per_dim(x) - L(x): log-likelihood ratio against the codec", _ANOMALOUS
    ),
    "density": Definition(
        "nats", "-log q(t(x)), q a mixture of Gaussians over the statistics that the manifest lists", _ANOMALOUS
    ),
}
CALIBRATED: tuple[ScoreName, ...] = tuple(name for name, what in DEFINITIONS.items() if what.direction == _ANOMALOUS)


def p_value_column(name: str) -> str:
    """Name of the column that a score's p-values have in a table of answers."""
    return f"p_value_{name}"
