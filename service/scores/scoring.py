"""The named scores of an artifact: what they are, and how they follow from what its program answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from service.scores.complexity import Codec, codec_bytes
from service.scores.conformal import FloatArray
from service.scores.likelihood import bits_per_dim, negative_log_likelihood
from service.scores.mixture import Mixture

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


class Density(BaseModel):
    """The density over statistics of a row, and which these are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statistics: list[str]
    mixture: Mixture

    def score(self, statistics: Mapping[str, FloatArray]) -> FloatArray:
        """-log q(t) of the statistics by name, each (B,): (B,) nats."""
        return -self.mixture.log_prob(np.stack([statistics[name] for name in self.statistics], 1))


class Scoring(BaseModel):
    """What the scores of an artifact need beside its program; fitted on normal rows that it was not trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    default: ScoreName
    typical: float  # H: mean of -log p, nats
    codec: Codec | None = None  # of pictures
    density: Density | None = None

    @cached_property
    def names(self) -> list[ScoreName]:
        """The scores that the artifact has."""
        names: list[ScoreName] = ["negative_log_likelihood", "typicality"]
        names += ["complexity", "complexity_corrected"] if self.codec else []
        return [*names, "density"] if self.density else names

    def needs_codec(self, names: Iterable[ScoreName]) -> bool:
        """Whether any of the scores depends on the size of a picture file."""
        over_complexity = self.density is not None and COMPLEXITY in self.density.statistics
        wanted = set(names)
        return bool(wanted & {"complexity", "complexity_corrected"}) or (over_complexity and "density" in wanted)


def compute_scores(
    scoring: Scoring, names: Iterable[ScoreName], statistics: Mapping[str, FloatArray], num_dims: int
) -> dict[ScoreName, FloatArray]:
    """Scores by name, each (B,), of statistics by name, each (B,): the program's and, where needed, the complexity."""
    scores: dict[ScoreName, FloatArray] = {}
    for name in names:
        if name == "negative_log_likelihood":
            scores[name] = negative_log_likelihood(statistics[LOG_PROB])
        elif name == "typicality":
            scores[name] = np.abs(negative_log_likelihood(statistics[LOG_PROB]) - scoring.typical)
        elif name == "complexity":
            scores[name] = statistics[COMPLEXITY]
        elif name == "complexity_corrected":
            scores[name] = bits_per_dim(statistics[LOG_PROB], num_dims) - statistics[COMPLEXITY]
        else:
            assert scoring.density is not None
            scores[name] = scoring.density.score(statistics)
    return scores


def calibration_scores(
    scoring: Scoring, statistics: Mapping[str, FloatArray], num_dims: int
) -> dict[ScoreName, list[float]]:
    """Every score that has a direction, ascending, of held-out rows with these statistics."""
    names = [name for name in scoring.names if name in CALIBRATED]
    scores = compute_scores(scoring, names, statistics, num_dims)
    return {name: np.sort(values).tolist() for name, values in scores.items()}


def complexity(codec: Codec, images: npt.NDArray[Any]) -> FloatArray:
    """L(x) = 8 bytes(x) / D in bits/dim of images (B, C, H, W): (B,)."""
    return codec_bytes(codec, images) * np.float64(8 / images[0].size)
