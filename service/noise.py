"""Random numbers that belong to a request: row i of a seed has a generator of its own.

So a seed gives the same rows whatever else is in the batch, n = 4 is a prefix of n = 16, and a request may be divided.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps


def row_generator(seed: int, row: int) -> np.random.Generator:
    """Philox with the key (seed, row)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, row], np.uint64)))


def random_seed() -> int:
    """Pick a seed for a request that names none."""
    return secrets.randbelow(MAX_SEED + 1)


def latent_noise(seed: int, num_rows: int, num_dims: int, first: int = 0) -> npt.NDArray[np.float32]:
    """Standard normal latents (n, D) of the rows from ``first`` on."""
    rows = range(first, first + num_rows)
    return np.stack([row_generator(seed, row).standard_normal(num_dims, np.float32) for row in rows])


def dequantization_noise(
    seed: int, num_rows: int, num_samples: int, num_dims: int, first: int = 0
) -> npt.NDArray[np.float64]:
    """Uniform noise U[-0.5, 0.5) of K samples of each row from ``first`` on: (n, K, D)."""
    rows = range(first, first + num_rows)
    return np.stack([row_generator(seed, row).random((num_samples, num_dims)) - 0.5 for row in rows])
