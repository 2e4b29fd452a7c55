"""Why a row of a table is unlikely: nats by column whose sum is -log p(x), found by repairing the row.

Every column in turn gets each of four alternative values, the quantiles 1/8, 3/8, 5/8 and 7/8 of what the model itself
draws for it, the other columns as they are. What its best alternative takes off -log p is its gain, at least 0. The
column of the largest gain is credited with it and keeps that alternative; then the others are tried again, beside the
repaired one, ROUNDS times in all. Columns that were not repaired are credited with their last gain, and what then is
left of -log p is shared equally by all columns: the contributions sum to -log p exactly.

    contribution_j = gain_j + (-log p(x) - sum of all gains) / D

A gain asks how odd a value is beside all others of its row, so that a value which is common by itself but contradicts
them is found, and a column that merely follows an odd one gets little. Repairing before going on keeps two odd columns
from hiding each other. ``benchmarks.explanations`` measures it beside ablation, paths and z-scores.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from service.artifact import Manifest

Array = npt.NDArray[Any]
Score = Callable[[Array], Awaitable[Array]]  # rows (N, D) -> log p (N,)

ROUNDS = 3
NUM_ALTERNATIVES = 4
NUM_DRAWS = 256  # of the model, whose quantiles the alternatives are; one reproducible pass
_BLOCK_VALUES = 2**20  # of rows that are made at once


def num_passes(manifest: Manifest) -> int:
    """Rows that explaining one input runs through the model: 1 for an image's map, 12 D for a row of D > 2 columns."""
    if manifest.kind == "image":
        return 1
    return min(ROUNDS, manifest.num_dims) * NUM_ALTERNATIVES * manifest.num_dims


def alternatives(draws: Array, manifest: Manifest) -> Array:
    """Values to try in each column, from draws (N, D) of the model: (NUM_ALTERNATIVES, D).

    Whole numbers and codes of categories are rounded, codes to those that there are.
    """
    values: Array = np.quantile(draws, (np.arange(NUM_ALTERNATIVES) + 0.5) / NUM_ALTERNATIVES, axis=0)
    values = np.where(manifest.quantized, np.round(values), values)
    for j in manifest.categorical:
        values[:, j] = values[:, j].clip(0, len(manifest.columns[j].categories) - 1)
    return values


async def explain(x: Array, log_prob: Array, values: Array, score: Score, block_rows: int) -> Array:
    """Contributions (B, D) of rows x (B, D) whose log_prob (B,) is known, trying ``values`` (K, D); nats.

    ``score`` is asked for at most ``block_rows`` rows at a time. It must give a row the same bits whatever stands
    beside it; then so does this.
    """
    rows, (_, num_columns) = np.arange(len(x)), x.shape
    repaired, nats = x.copy(), -log_prob
    gains, is_repaired = np.zeros(x.shape), np.zeros(x.shape, np.bool_)
    for _ in range(min(ROUNDS, num_columns)):
        least, best = await _best_alternatives(repaired, values, score, block_rows)
        gains = np.where(is_repaired, gains, np.maximum(nats[:, None] - least, 0))
        column = np.where(is_repaired, -1, gains).argmax(1)
        gain = gains[rows, column]
        repaired[rows, column] = np.where(gain > 0, best[rows, column], repaired[rows, column])
        is_repaired[rows, column] = True
        nats = np.where(gain > 0, least[rows, column], nats)
        if not (gain > 0).any():  # nothing was repaired, so another round would tell the same
            break
    # Divided first, for the lowest finite log_prob has the largest finite negative.
    shared = -log_prob / num_columns - (gains / num_columns).sum(1)
    contributions: Array = gains + shared[:, None]
    return contributions


async def _best_alternatives(x: Array, values: Array, score: Score, block_rows: int) -> tuple[Array, Array]:
    """Least -log p that another value of each column gives, and that value: (B, D) both."""
    shape = (*x.shape, len(values))
    size = max(1, min(block_rows, _BLOCK_VALUES // x.shape[1]))
    parts = []
    for start in range(0, math.prod(shape), size):
        row, column, choice = np.unravel_index(np.arange(start, min(start + size, math.prod(shape))), shape)
        changed = x[row]
        changed[np.arange(len(row)), column] = values[choice, column]
        parts.append(-await score(changed))
    nats = np.concatenate(parts).reshape(shape)
    return nats.min(2), values[nats.argmin(2), np.arange(x.shape[1])]
