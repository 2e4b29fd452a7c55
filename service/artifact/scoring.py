"""How the named scores of a row follow from what an artifact's program answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from service.artifact.mixture import Mixture
from service.scores import (
    CALIBRATED,
    COMPLEXITY,
    LOG_PROB,
    Codec,
    FloatArray,
    ScoreName,
    bits_per_dim,
    negative_log_likelihood,
)


class Density(BaseModel):
    """The density over statistics of a row, and which these are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statistics: list[str]
    mixture: Mixture

    @model_validator(mode="after")
    def _consistent(self) -> Density:
        if len(self.statistics) != len(self.mixture.shift):
            raise ValueError(f"mixture must be over {len(self.statistics)} statistics, got {len(self.mixture.shift)}")
        return self

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

    def compute(
        self, names: Iterable[ScoreName], statistics: Mapping[str, FloatArray], num_dims: int
    ) -> dict[ScoreName, FloatArray]:
        """Scores by name of statistics by name, (B,) each: the program's and, where needed, the complexity."""
        scores: dict[ScoreName, FloatArray] = {}
        for name in names:
            if name == "negative_log_likelihood":
                scores[name] = negative_log_likelihood(statistics[LOG_PROB])
            elif name == "typicality":
                scores[name] = np.abs(negative_log_likelihood(statistics[LOG_PROB]) - self.typical)
            elif name == "complexity":
                scores[name] = statistics[COMPLEXITY]
            elif name == "complexity_corrected":
                scores[name] = bits_per_dim(statistics[LOG_PROB], num_dims) - statistics[COMPLEXITY]
            else:
                assert self.density is not None
                scores[name] = self.density.score(statistics)
        return scores

    def calibrate(self, statistics: Mapping[str, FloatArray], num_dims: int) -> dict[ScoreName, list[float]]:
        """Every score that has a direction, ascending, of held-out rows with these statistics."""
        names = [name for name in self.names if name in CALIBRATED]
        return {name: np.sort(values).tolist() for name, values in self.compute(names, statistics, num_dims).items()}
