"""What calls return: named NumPy arrays of all rows, and which model they are of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.scores import BoolArray, FloatArray, p_value_column

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Scores:
    """How likely rows are. All arrays are (N,) but ``contributions``; None what the model or the call does not have.

    Attributes:
        log_likelihood: nats.
        bits_per_dim: -log_likelihood / (D ln 2).
        score: the artifact's default score; higher is more anomalous.
        p_value: the share of calibration scores that are at least the row's own.
        is_anomaly: whether it is flagged: p_value <= ``alpha`` (or ``level``), or by Benjamini-Hochberg at ``fdr``.
        alpha: what rows were flagged by; None with ``fdr``.
        level: with the guarantee "conditional", the p-value up to which rows are flagged, which keeps to ``alpha``.
        fdr: as it was asked for.
        scores: those asked for, by name.
        p_values: theirs, of those that are calibrated.
        contributions: nats that sum to -log_likelihood, by pixel (N, H, W) or column (N, D).
        model: name of the model.
        version: of the model.
    """

    log_likelihood: FloatArray
    bits_per_dim: FloatArray
    score: FloatArray | None
    p_value: FloatArray | None
    is_anomaly: BoolArray | None
    alpha: float | None
    level: float | None
    fdr: float | None
    scores: dict[str, FloatArray]
    p_values: dict[str, FloatArray]
    contributions: FloatArray | None
    model: str
    version: str

    def columns(self) -> dict[str, Array]:
        """One column (N,) for each figure, as for a data frame; p-values of named scores are ``p_value_NAME``."""
        default = {
            "log_likelihood": self.log_likelihood,
            "bits_per_dim": self.bits_per_dim,
            "score": self.score,
            "p_value": self.p_value,
            "is_anomaly": self.is_anomaly,
        }
        columns: dict[str, Array] = {name: array for name, array in default.items() if array is not None}
        return {**columns, **self.scores, **{p_value_column(name): array for name, array in self.p_values.items()}}


@dataclass(frozen=True, eq=False)
class Codes:
    """Latent codes (N, D) of inputs, standard normal under the model, and the inputs' log-likelihoods (N,), nats."""

    latents: npt.NDArray[np.float32]
    log_likelihood: FloatArray
    model: str
    version: str


@dataclass(frozen=True, eq=False)
class Outputs:
    """Inputs (N, *shape) that latent codes are of, in the model's units, not rounded."""

    outputs: Array
    model: str
    version: str


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples (n, *shape), their log-likelihoods (n,) under the model, nats, and the seed that gives them again."""

    samples: Array
    log_likelihood: FloatArray
    seed: int
    model: str
    version: str
