"""The columns of a table: what each is taken for, its scale, and the noise that gives it a density."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from model.bijections import Standardize
from model.data import DataError, Dataset
from service.artifact import Column

CONSTANT_STD = 1e-3  # of a column that never changes, relative to its value: it needs some width to have a density


def describe_columns(data: Dataset) -> list[Column]:
    """Tell the type, mean and standard deviation of each column of a table (N, D) from its rows."""
    columns = []
    for name, values in zip(data.columns, data.x.T, strict=True):
        mean, std = float(values.mean()), float(values.std())
        if not (math.isfinite(std) and math.isfinite(mean)) or (std < 1e-150 and values.min() != values.max()):
            raise DataError(f"column {name!r} has mean {mean} and standard deviation {std}, beyond what can be scaled")
        if values.min() == values.max():
            columns.append(Column(name=name, type="constant", mean=mean, std=CONSTANT_STD * max(abs(mean), 1.0)))
        elif np.array_equal(values, np.round(values)):
            # A column of whole numbers has the variance of its bin of width 1 on top of its own.
            columns.append(Column(name=name, type="integer", mean=mean, std=(std**2 + 1 / 12) ** 0.5))
        else:
            columns.append(Column(name=name, type="continuous", mean=mean, std=std))
    return columns


def unit_of(columns: list[Column]) -> Tensor:
    """What errors of inputs are measured in: the standard deviation of each column; 1, a pixel value, of images."""
    return torch.tensor([column.std for column in columns] or 1.0, dtype=torch.float64)


def standardizer(columns: list[Column]) -> Standardize:
    """Build the first layer of a table's flow."""
    mean, std = (
        torch.tensor([getattr(column, name) for column in columns], dtype=torch.float64) for name in ("mean", "std")
    )
    return Standardize(mean[:, None, None], std[:, None, None])


def add_column_noise(x: Tensor, columns: list[Column], smoothing: float, generator: torch.Generator) -> Tensor:
    """Give every column a density: (B, D) -> (B, D).

    Integers become uniform over their bin of width 1, constants Gaussian with their floor, and with ``smoothing`` every
    column is blurred by that many of its standard deviations.
    """
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5
    normal = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    std = torch.tensor([column.std for column in columns], dtype=x.dtype)
    integer = torch.tensor([column.type == "integer" for column in columns], dtype=x.dtype)
    constant = torch.tensor([column.type == "constant" for column in columns], dtype=x.dtype)
    return x + integer * uniform + (constant**2 + smoothing**2) ** 0.5 * std * normal
