"""The images that every model is given, divided once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.data import Array, DataError, load

SPLIT_SEED = 0
TRAIN_FILE, TEST_FILE = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"


@dataclass(frozen=True)
class Images:
    """Disjoint sets of whole pixel values 0..2^bits - 1, each (N, 1, H, W) uint8."""

    name: str
    bits: int
    fit: Tensor
    validation: Tensor  # chooses the checkpoint of every model that has a likelihood
    test: Tensor  # measures likelihoods, and samples are compared with it
    other: Tensor  # as many held-out images again, so that real ones can be compared with real ones

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.fit.shape[1], self.fit.shape[2], self.fit.shape[3]


def load_images(folder: Path | None, rows: int) -> Images:
    """Scikit-learn's digits, or an MNIST-like folder's images at half their size.

    At most ``rows`` images in each of ``test`` and ``other``. Raises DataError.
    """
    if folder is None:
        held_out, fit = np.split(_shuffled(load("sklearn:digits").x), [600])
        return _divide("digits 8x8", fit, held_out, rows, num_validation=150)
    fit, held_out = (_shuffled(_halved(load(name, folder).x)) for name in (TRAIN_FILE, TEST_FILE))
    return _divide(f"{folder.name} averaged to {fit.shape[2]}x{fit.shape[3]}", fit, held_out, rows, num_validation=1000)


def _shuffled(x: Array) -> Array:
    order = np.random.default_rng(SPLIT_SEED).permutation(len(x))
    shuffled: Array = x[order]
    return shuffled


def _halved(x: Array) -> Array:
    """Average squares of 2x2 pixels and round: (N, C, H, W) -> (N, C, H/2, W/2), which the flow halves again."""
    num, channels, height, width = x.shape
    if height % 4 or width % 4:
        raise DataError(f"image sides must be divisible by 4, got {height}x{width}")
    means = x.reshape(num, channels, height // 2, 2, width // 2, 2).mean((3, 5))
    halved: Array = np.rint(means).astype(np.uint8)
    return halved


def _divide(name: str, fit: Array, held_out: Array, rows: int, num_validation: int) -> Images:
    rows = min(rows, len(held_out) // 2)
    return Images(
        name=name,
        bits=int(fit.max()).bit_length(),
        fit=torch.from_numpy(fit[num_validation:]),
        validation=torch.from_numpy(fit[:num_validation]),
        test=torch.from_numpy(held_out[:rows]),
        other=torch.from_numpy(held_out[rows : 2 * rows]),
    )
