"""The columns of a table: what each is taken for, its scale, and the noise that gives it a density."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from model.bijections import Standardize
from model.dataset import Array, DataError, Dataset, release_pages
from model.distributed import ALONE, Processes
from service.artifact import NOISE_FLOOR, Column, listed_categories

TAIL = 3.0  # scales from its centre at which a table's values begin to be drawn in
_COLUMN_BYTES = 2**28  # of columns that are read together
_BIN_VARIANCE = 1 / 12  # of uniform noise in a bin of width 1
_QUARTILES_OF_NORMAL = 1.349  # standard deviations between the quartiles of a normal distribution
_INNER_NINE_TENTHS_OF_NORMAL = 3.290


def describe_columns(data: Dataset, processes: Processes = ALONE) -> list[Column]:
    """Tell what each column of a table (N, D) is, and its centre and scale, from its rows.

    Columns are read some at a time, so that neither all values come to lie in memory nor all pages of a mapped file are
    read once a column. Several processes describe some of the columns each.
    """
    num_rows, num_columns = data.x.shape
    step = max(1, min(_COLUMN_BYTES // (8 * num_rows), num_columns // 8))

    def describe(first: int) -> dict[str, tuple[Column, bytes]]:
        group = np.add(data.x[:, first : first + step].T, 0.0, order="C")  # + 0.0: the zero without a sign
        release_pages(data.x)
        return {
            name: (_describe(name, values, data.categories.get(name, [])), hashlib.sha256(values.tobytes()).digest())
            for name, values in zip(data.columns[first:], group, strict=False)
        }

    def describe_mine() -> dict[str, tuple[Column, bytes]]:
        firsts = range(step * processes.rank, num_columns, step * processes.size)
        return {name: found for first in firsts for name, found in describe(first).items()}

    described = {k: v for part in processes.gather(processes.together(describe_mine)) for k, v in part.items()}
    columns: list[Column] = []
    first_with: dict[bytes, str] = {}  # digest of the values of a continuous column -> its name
    for column, digest in (described[name] for name in data.columns):
        if column.type == "continuous":
            original = first_with.setdefault(digest, column.name)
            if original != column.name:
                column = column.model_copy(update={"type": "duplicate", "duplicate_of": original})
        columns.append(column)
    return columns


def _describe(name: str, values: Array, categories: list[str]) -> Column:
    constant = values.min() == values.max()
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        mean, std = (float(values[0]), 0.0) if constant else (float(values.mean()), float(values.std()))
    if not (math.isfinite(std) and math.isfinite(mean)) or (std < 1e-150 and not constant):
        raise DataError(f"column {name!r} has mean {mean} and standard deviation {std}, beyond what can be scaled")
    center, scale = robust_location(values, std)
    binned = (scale**2 + _BIN_VARIANCE) ** 0.5  # a column of bins has their variance on top of its own
    if categories:
        return Column(name=name, type="categorical", center=center, scale=binned, categories=categories)
    if constant:
        column = Column(name=name, type="constant", center=mean, scale=NOISE_FLOOR * max(abs(mean), 1.0))
        return column.model_copy(update={"scale": _BIN_VARIANCE**0.5}) if column.quantized else column
    if np.array_equal(values, np.round(values)):
        return Column(name=name, type="integer", center=center, scale=binned)
    return Column(name=name, type="continuous", center=center, scale=scale)


def robust_location(values: Array, std: float) -> tuple[float, float]:
    """Return the median and the distance of the quartiles, in standard deviations of a normal distribution.

    Wild values, up to one in twenty at either end, move neither. Where the quartiles lie within a tenth of what the
    inner nine tenths of the values tell, a tenth of that decides, and where at least half of the values are equal, the
    standard deviation: rare values that are not wild are not to be drawn in as if they were.
    """
    bottom, low, median, high, top = (float(value) for value in np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]))
    spread = (high - low) / _QUARTILES_OF_NORMAL
    return median, max(spread, (top - bottom) / _INNER_NINE_TENTHS_OF_NORMAL / 10) if spread > 0 else std


def treatment(column: Column, smoothing: float) -> str:
    """Tell what a column becomes in training with so much smoothing, in scales, in a line for the reader."""
    noise = f"Gaussian noise of std {column.noise_std:.4g}"
    if column.type == "categorical":
        listed = listed_categories(column.categories)
        what = f"{len(column.categories)} categories ({listed}): their codes, uniform noise in bins of width 1"
    elif column.type == "constant":
        what = f"constant {column.center:.10g}: {'uniform noise in a bin of width 1' if column.quantized else noise}"
    elif column.type == "duplicate":
        what = f"equal to column {column.duplicate_of!r} in every row: {noise}, so that both have a joint density"
    else:
        what = "whole numbers: uniform noise in bins of width 1" if column.quantized else "real numbers"
    blurred = f"; smoothed by Gaussian noise of {smoothing:g} scales" if smoothing else ""
    return f"{what}{blurred}; drawn in beyond {TAIL:g} scales of {column.scale:.4g} from {column.center:.6g}"


def unit_of(columns: list[Column]) -> Tensor:
    """What errors of inputs are measured in: the scale of each column; 1, a pixel value, of images."""
    return torch.tensor([column.scale for column in columns] or 1.0, dtype=torch.float64)


def standardizer(columns: list[Column]) -> Standardize:
    """Build the first layer of a table's flow."""
    center, scale = (
        torch.tensor([getattr(column, name) for column in columns], dtype=torch.float64) for name in ("center", "scale")
    )
    return Standardize(center[:, None, None], scale[:, None, None], TAIL)


def add_column_noise(x: Tensor, columns: list[Column], smoothing: float, generator: torch.Generator) -> Tensor:
    """Give every column a density: (B, D) -> (B, D).

    Whole numbers and codes become uniform over their bin of width 1, constants and duplicates Gaussian with their
    floor, and with ``smoothing`` every column is blurred by that many of its scales; a duplicate as the column that it
    repeats, since blurring the two apart would make their small distance as large as the blur.
    """
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5
    normal = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    scale = torch.tensor([column.scale for column in columns], dtype=x.dtype)
    quantized = torch.tensor([column.quantized for column in columns], dtype=x.dtype)
    floor = torch.tensor([column.noise_std / column.scale for column in columns], dtype=x.dtype)
    noise = (floor**2 + smoothing**2) ** 0.5 * scale * normal
    numbers = {column.name: i for i, column in enumerate(columns)}
    for i, column in enumerate(columns):
        if column.duplicate_of is not None:
            original = numbers[column.duplicate_of]
            noise[:, i] = smoothing * scale[original] * normal[:, original] + floor[i] * scale[i] * normal[:, i]
    return x + quantized * uniform + noise
