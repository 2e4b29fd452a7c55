"""Floors: the likelihood of a flow's data under simple densities, which a flow that is worth its cost must beat."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from model.data import Array, Dataset
from model.evaluate import noisy
from model.recipe import Splits
from service.artifact import Column

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

FIT_ROWS, HELD_OUT_ROWS = 20_000, 5_000  # at most: more would cost minutes and hardly move a mean
RIDGES = [1e-6, 1e-3, 1e-2, 1e-1]  # shares of its variance that a column's variance is raised by
COMPONENTS = [2, 4, 8, 16]
FULL_COVARIANCE_DIMS = 64  # a mixture in more dimensions has diagonal covariances
GAUSSIAN_DIMS = 1024  # and one Gaussian in more than these: a full one takes gigabytes and minutes
CODECS: dict[str, dict[str, Any]] = {"PNG": {"optimize": True}, "WebP": {"lossless": True, "method": 4}}


@dataclass(frozen=True)
class Floor:
    """A simple density, in words, and the log-likelihood of each held-out row under it: (N,) nats, float64."""

    name: str
    what: str
    log_prob: Tensor


def choose_rows(total: int, most: int) -> Array:
    """Indices of all rows, or of so many: chosen at random, but always the same."""
    return np.sort(np.random.default_rng(0).permutation(total)[:most])


def measure_floors(splits: Splits, held_out: Dataset, x: Tensor, columns: list[Column]) -> list[Floor]:
    """Measure every floor on held-out rows, whose noisy values x (N, *shape) are those that the flow is measured on.

    The densities are fitted to at most ``FIT_ROWS`` fit rows, under the noise that held-out rows have. The smoothing
    that a flow is trained with is its own remedy against too few rows; that of the densities is the ridge.
    """
    fit = splits.fit.take(choose_rows(len(splits.fit.x), FIT_ROWS))
    validation = splits.validation.take(choose_rows(len(splits.validation.x), HELD_OUT_ROWS))
    densities = density_floors(
        *(rows.flatten(1).double().numpy() for rows in (noisy(fit, columns), noisy(validation, columns), x))
    )
    return densities if held_out.kind == "vector" else [*densities, *codec_floors(held_out.x)]


def density_floors(fit: Array, validation: Array, held_out: Array) -> list[Floor]:
    """Fit one Gaussian and a mixture of Gaussians to rows (N, D), and measure held-out ones.

    Columns are standardised, log p(x) = log p((x - mean) / std) - sum(log std), and their variances are raised by a
    share of themselves, the ridge, so that duplicate columns and few rows have a density too. Validation rows choose
    the Gaussian's ridge, which a mixture of full covariances takes over, and the mixture's number of components. A
    density that the fit rows are too few for, fewer than two a component, is left out.
    """
    mean, std = fit.mean(0), fit.std(0)
    std[std == 0] = 1
    fit, validation, held_out = ((rows - mean) / std for rows in (fit, validation, held_out))
    words = {"full": "full", "diag": "diagonal"}
    covariance = "full" if fit.shape[1] <= FULL_COVARIANCE_DIMS else "diag"
    of_gaussian = "full" if fit.shape[1] <= GAUSSIAN_DIMS else "diag"
    gaussian = _likeliest(fit, validation, [(1, of_gaussian, ridge) for ridge in RIDGES])
    ridge = gaussian.reg_covar if gaussian and covariance == "full" else RIDGES[0]
    mixture = _likeliest(fit, validation, [(number, covariance, ridge) for number in COMPONENTS])
    return [
        Floor(
            name,
            f"{what.format(density)}, fitted to {len(fit)} rows",
            torch.from_numpy(density.score_samples(held_out) - np.log(std).sum()),
        )
        for name, what, density in (
            ("gaussian", f"one Gaussian of {words[of_gaussian]} covariance", gaussian),
            ("mixture", f"a mixture of {{0.n_components}} Gaussians of {words[covariance]} covariance", mixture),
        )
        if density is not None
    ]


def _likeliest(fit: Array, validation: Array, candidates: list[tuple[int, str, float]]) -> GaussianMixture | None:
    """Fit mixtures of (components, covariance, ridge); return the one under which validation rows are the likeliest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    fitted = []
    for number, covariance, ridge in tqdm(candidates, desc="floors", leave=False, disable=None):
        if len(fit) >= 2 * number:
            mixture = GaussianMixture(number, covariance_type=covariance, reg_covar=ridge, max_iter=30, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged is good enough for a floor
                fitted.append(mixture.fit(fit))
    return max(fitted, key=lambda mixture: mixture.score(validation), default=None)


def codec_floors(images: Array) -> list[Floor]:
    """Compress each image (N, C, H, W) uint8 to a lossless file of its own, whose bits are a code length like any.

    They include the container, which weighs most on small images: 57 bytes and more of PNG.
    """
    pictures = [Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)) for image in images]
    floors = []
    for codec, options in CODECS.items():
        nats = [-8 * math.log(2) * _file_size(picture, codec, options) for picture in pictures]
        what = f"a lossless {codec} file an image, container included"
        floors.append(Floor(codec.lower(), what, torch.tensor(nats, dtype=torch.float64)))
    return floors


def _file_size(picture: Image.Image, codec: str, options: dict[str, Any]) -> int:
    file = io.BytesIO()
    picture.save(file, codec, **options)
    return file.tell()
