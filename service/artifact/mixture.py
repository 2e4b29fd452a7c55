"""A mixture of Gaussians, as an artifact holds it."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.scores.conformal import FloatArray

_FAR = 1e100  # standard deviations: further out nothing changes, and nothing overflows


class Mixture(BaseModel):
    """p(t) = sum_k w_k N(t; m_k, (A_k A_k^T)^-1) over d statistics, each scaled to u = (t - shift) / scale first.

    The density is that of u. Source of the fit: ``model.density``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    shift: list[float]  # (d,)
    scale: list[float]  # (d,)
    weights: list[float] = Field(min_length=1)  # (K,)
    means: list[list[float]]  # (K, d), of u
    factors: list[list[list[float]]]  # (K, d, d): A_k

    @model_validator(mode="after")
    def _consistent(self) -> Mixture:
        k, d = len(self.weights), len(self.shift)
        shapes = [np.shape(part) for part in (self.scale, self.means, self.factors)]
        if shapes != [(d,), (k, d), (k, d, d)]:
            raise ValueError(f"scale, means and factors must be of {k} components and {d} statistics, got {shapes}")
        if min(self.scale) <= 0 or min(self.weights) <= 0 or not np.isfinite(self._log_heights).all():
            raise ValueError("scales and weights must be positive, and factors invertible")
        return self

    @cached_property
    def _log_heights(self) -> FloatArray:
        heights: FloatArray = np.log(self.weights) + np.linalg.slogdet(np.asarray(self.factors))[1]
        return heights - 0.5 * math.log(2 * math.pi) * len(self.shift)

    @cached_property
    def _arrays(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        return np.asarray(self.shift), np.asarray(self.scale), np.asarray(self.means), np.asarray(self.factors)

    def log_prob(self, t: FloatArray) -> FloatArray:
        """Log-density of statistics (B, d): (B,). Each row's bits are its own, whatever its neighbours are."""
        shift, scale, means, factors = self._arrays
        with np.errstate(over="ignore"):
            u = np.clip((t - shift) / scale, -_FAR, _FAR)
        whitened = np.zeros((len(t), *means.shape))
        for j in range(len(shift)):  # a matrix product's rounding depends on the number of rows
            whitened += (u[:, None, j, None] - means[:, j, None]) * factors[:, j]
        terms = self._log_heights - 0.5 * (whitened * whitened).sum(2)
        highest = terms.max(1)
        log_prob: FloatArray = highest + np.log(np.exp(terms - highest[:, None]).sum(1))
        return log_prob
