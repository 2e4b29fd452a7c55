"""What data are: rows of one kind, and what a recipe or an artifact wants of a source of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import MADV_DONTNEED, mmap
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.errors import UsageError
from model.distributed import ALONE, Processes

Array = npt.NDArray[Any]
Kind = Literal["image", "vector"]
_PIECE_BYTES = 2**22  # looked at together, where all values are


class DataError(UsageError):
    """Data that cannot be used; the message names the file, the rule and what was found."""


@dataclass(frozen=True)
class Selection:
    """What is wanted of a source: which rows, which columns, and in what order the rows."""

    label_column: str | None = None  # csv, parquet: a column that is not a feature
    normal_label: int | None = None  # only rows with this label
    ignored: list[str] = field(default_factory=list)  # csv, parquet: more columns that are not features
    categorical: list[str] = field(default_factory=list)  # columns of numbers that are names of categories
    known: Mapping[str, list[str]] | None = None  # only these columns, in this order, each with its categories if any
    shuffle_seed: int | None = None  # None: the source's own order

    def order(self, num_rows: int) -> Array:
        """Tell which row comes i-th: (N,)."""
        rows = np.arange(num_rows)
        return rows if self.shuffle_seed is None else np.random.default_rng(self.shuffle_seed).permutation(num_rows)

    def is_normal(self, labels: Array | None, source: str) -> Array:
        """Mark the rows that are wanted by their labels: (N,). Raises DataError."""
        if labels is None:
            raise DataError(f"{source}: normal_label = {self.normal_label}, but the data carry no labels")
        normal: Array = np.asarray(labels == self.normal_label)
        if not normal.any():
            raise DataError(f"{source}: no row is labelled {self.normal_label}")
        return normal


@dataclass(frozen=True)
class Dataset:
    """Rows of one kind: images (N, C, H, W) uint8, or vectors (N, D) float64 with a name per column."""

    x: Array  # a categorical column holds its codes: k for the k-th of its categories
    columns: list[str]  # empty for images
    categories: Mapping[str, list[str]] = field(default_factory=dict)  # of the categorical columns, sorted

    @property
    def kind(self) -> Kind:
        return "image" if self.x.ndim == 4 else "vector"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]

    @property
    def known(self) -> dict[str, list[str]]:
        """The columns, each with its categories if any, as a Selection names them."""
        return {name: self.categories.get(name, []) for name in self.columns}

    @property
    def digest(self) -> str:
        """SHA-256 of the values, their shape and the names of the categories."""
        categories = f"{sorted(self.categories.items())}" if self.categories else ""
        digest = hashlib.sha256(f"{self.x.dtype.str}{self.x.shape}{categories}".encode())
        for piece in self._pieces():
            digest.update(piece.tobytes())
        return digest.hexdigest()

    def value_probabilities(self, num_values: int, uniform_share: float = 0.1, processes: Processes = ALONE) -> Array:
        """Frequency of each pixel value 0..num_values-1, mixed with a share of equal ones so that none is rare.

        Several processes count a part each.
        """
        counted = np.zeros(num_values, np.int64)
        for piece in self.take(processes.part(len(self.x)))._pieces():
            counted += np.bincount(piece.ravel(), minlength=num_values)
        counts = np.sum(processes.gather(counted), 0)
        probabilities: Array = (1 - uniform_share) * counts / counts.sum() + uniform_share / num_values
        return probabilities

    def check_pixels(self, highest: float, source: str) -> None:
        """Raise DataError where an image holds a value over the highest that the model knows."""
        for piece in self._pieces() if self.kind == "image" else ():
            if piece.max() > highest:
                raise DataError(
                    f"{source}: holds pixel {piece.max()}, over {highest:.0f}, the most that the model takes"
                )

    def _pieces(self) -> Iterator[Array]:
        """Iterate over all rows, of which few are in memory."""
        step = max(1, _PIECE_BYTES // max(1, self.x[:1].nbytes))
        for start in range(0, len(self.x), step):
            yield self.x[start : start + step]
        release_pages(self.x)

    def take(self, rows: Array | slice) -> Dataset:
        """Select rows by index or by mask; a slice is a view."""
        return Dataset(self.x[rows], self.columns, self.categories)


def release_pages(x: Array) -> None:
    """Unmap the pages of a mapped file that were touched; they stay in the file and come back when they are read."""
    base: object = x
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap):
        base.madvise(MADV_DONTNEED)
