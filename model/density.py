"""Fit the scores that an artifact carries beside the likelihood, on normal rows that the flow was not trained on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from service.artifact import Density, Mixture, Scoring
from service.scores import COMPLEXITY, LOG_PROB, Codec, FloatArray, ScoreName

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

MIXTURE = 12  # Gaussians, at most
ROWS_A_GAUSSIAN = 400  # of the fit, at least
ROWS_A_STATISTIC = 10  # below them there is no density
RIDGE = 1e-3  # of the variances, which are 1


def fit_scoring(statistics: dict[str, FloatArray], default: ScoreName | None, codec: Codec | None) -> Scoring:
    """Fit H and the density to statistics by name, each (N,), complexity among them where there is a codec.

    log_prob is the sum of its parts, so the density has the parts alone; and |z|^2 is a multiple of log N(z). Without
    ``default``, pictures are scored by the density, where there are rows enough for one, and all else by -log p: the
    likelihood of images favours what is simple, that of tables does not.
    """
    names = [name for name in statistics if name != LOG_PROB]
    density = None
    if names and len(statistics[LOG_PROB]) >= ROWS_A_STATISTIC * len(names):
        values = np.stack([statistics[name] for name in names], 1)
        density = Density(statistics=names, mixture=fit_mixture(values))
    favoured: ScoreName = "density" if COMPLEXITY in names and density else "negative_log_likelihood"
    typical = float(-statistics[LOG_PROB].mean())
    return Scoring(default=default or favoured, typical=typical, codec=codec, density=density)


def fit_mixture(values: FloatArray) -> Mixture:
    """Fit a mixture of Gaussians to statistics (N, d), whitened first so that one ridge suits all."""
    shift, scale = values.mean(0), np.maximum(values.std(0), 1e-9)
    scaled = (values - shift) / scale
    variances, directions = np.linalg.eigh(np.cov(scaled.T).reshape(len(shift), -1))
    whitening = directions / np.sqrt(variances + 1e-6 * variances.max())
    mixture = fit_gaussians(scaled @ whitening, MIXTURE, ROWS_A_GAUSSIAN, max_iter=200)
    return Mixture(
        shift=shift.tolist(),
        scale=scale.tolist(),
        weights=mixture.weights_.tolist(),
        means=np.linalg.solve(whitening.T, mixture.means_.T).T.tolist(),
        factors=(whitening @ mixture.precisions_cholesky_).tolist(),
    )


def fit_gaussians(rows: FloatArray, most: int, rows_each: int, **options: float) -> GaussianMixture:
    """Fit one Gaussian for so many rows (N, d) of unit variance, ``most`` at most; always the same."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    num = max(1, min(most, len(rows) // rows_each))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is good enough
        return GaussianMixture(num, reg_covar=RIDGE, random_state=0, **options).fit(rows)
