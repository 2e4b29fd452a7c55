"""Reading data: files, folders and scikit-learn's small sets become one array of rows."""

from __future__ import annotations

import gzip
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

Array = npt.NDArray[Any]
Kind = Literal["image", "vector"]
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SKLEARN_SETS = {"sklearn:digits": "load_digits", "sklearn:breast-cancer": "load_breast_cancer"}


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the rule and what was found."""


@dataclass(frozen=True)
class Dataset:
    """Rows of one kind: images (N, C, H, W) uint8, or vectors (N, D) float64 with a name per column."""

    x: Array
    columns: list[str]  # empty for images
    labels: Array | None = None  # (N,), where the source has them

    @property
    def kind(self) -> Kind:
        return "image" if self.x.ndim == 4 else "vector"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]

    @property
    def digest(self) -> str:
        """SHA-256 of the values and their shape."""
        header = f"{self.x.dtype.str}{self.x.shape}".encode()
        return hashlib.sha256(header + np.ascontiguousarray(self.x).tobytes()).hexdigest()

    def value_probabilities(self, num_values: int, uniform_share: float = 0.1) -> Array:
        """Frequency of each pixel value 0..num_values-1, mixed with a share of equal ones so that none is rare."""
        counts = np.bincount(self.x.ravel(), minlength=num_values)
        probabilities: Array = (1 - uniform_share) * counts / counts.sum() + uniform_share / num_values
        return probabilities

    def columns_like(self, names: list[str], source: str) -> Dataset:
        """The columns of these names in this order; arrays without names are taken by position.

        Raises DataError naming a column that is missing.
        """
        if self.kind == "image" or self.columns in (names, unnamed_columns(len(names))):
            return self
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise DataError(f"{source}: has no column {missing[0]!r}; it has {', '.join(self.columns)}")
        return Dataset(self.x[:, [self.columns.index(name) for name in names]], names, self.labels)

    def check_pixels(self, highest: float, source: str) -> None:
        """Raise DataError where an image holds a value over the highest that the model knows."""
        if self.kind == "image" and self.x.max() > highest:
            raise DataError(f"{source}: holds pixel {self.x.max()}, over {highest:.0f}, the most that the model takes")

    def take(self, rows: Array) -> Dataset:
        """Select rows by index or by mask."""
        return Dataset(self.x[rows], self.columns, None if self.labels is None else self.labels[rows])


def unnamed_columns(num: int) -> list[str]:
    """Names of columns that have none."""
    return [f"x{i}" for i in range(num)]


def load(source: str, base: Path = Path(), label_column: str | None = None) -> Dataset:
    """Read a data set by the form of its name.

    ``*.idx``, ``*ubyte``, either with ``.gz`` (the MNIST format); ``.npy``; ``.npz`` (array ``X`` or ``x``, labels
    ``y``, else its only array); ``.csv`` and ``.parquet`` (numeric columns; ``label_column`` is set apart); a folder of
    images of one size; ``sklearn:digits`` and ``sklearn:breast-cancer``. Arrays of two dimensions are vectors, those of
    three (N, H, W) or four (N, C, H, W) are images of whole numbers 0..255. Raises DataError.
    """
    if source in SKLEARN_SETS:
        return _load_sklearn(source)
    path = base / source
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    labels: Array | None = None
    columns: list[str] = []
    try:
        if path.is_dir():
            x = _read_folder(path)
        elif path.name.removesuffix(".gz").endswith((".idx", "ubyte")):
            x = _read_idx(path)
        elif path.suffix == ".npy":
            x = np.load(path, allow_pickle=False)
        elif path.suffix == ".npz":
            x, labels = _read_npz(path)
        elif path.suffix in (".csv", ".parquet"):
            x, columns, labels = _read_table(path, label_column)
        else:
            raise DataError(f"{path}: unknown kind of file; expected idx, npy, npz, csv, parquet or a folder of images")
    except DataError:
        raise
    except Exception as error:  # the readers raise nearly anything on files that are not what their name says
        raise DataError(f"{path}: cannot be read: {str(error).strip() or type(error).__name__}") from error
    return _checked(str(path), x, columns, labels)


def _checked(name: str, x: Array, columns: list[str], labels: Array | None) -> Dataset:
    if not isinstance(x, np.ndarray) or x.ndim == 0:
        raise DataError(f"{name}: expected an array of rows")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: expected numbers, got values of type {x.dtype}")
    if len(x) == 0 or x.size == 0:
        raise DataError(f"{name}: holds no rows")
    if labels is not None and labels.shape != (len(x),):
        raise DataError(f"{name}: expected one label per row, got {labels.shape} labels for {len(x)} rows")
    if x.ndim == 2:
        columns = columns or unnamed_columns(x.shape[1])
        if len(set(columns)) != len(columns):
            raise DataError(f"{name}: two columns are named {next(c for c in columns if columns.count(c) > 1)!r}")
        x = x.astype(np.float64)
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            row, column = bad[0]
            raise DataError(
                f"{name}: row {row}, column {columns[column]!r} is {x[row, column]}; every value must be finite"
            )
        return Dataset(x, columns, labels)
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        raise DataError(f"{name}: images must have 1 or 3 channels, got shape {x.shape}; expected (N, C, H, W)")
    if x.ndim != 4:
        raise DataError(f"{name}: expected vectors (N, D) or images (N, H, W) or (N, C, H, W), got shape {x.shape}")
    wrong = np.argwhere(~((x >= 0) & (x <= 255) & (x == np.floor(x))))
    if len(wrong):
        raise DataError(f"{name}: image {wrong[0][0]} holds {x[tuple(wrong[0])]}; pixels must be whole numbers 0..255")
    return Dataset(x.astype(np.uint8), [], labels)


def _read_idx(path: Path) -> Array:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 8 or raw[3] == 0 or raw[:3] != b"\0\0\x08":
        raise DataError(
            f"{path}: not an idx file of bytes: it starts with {raw[:4].hex() or 'nothing'}, expected 000008"
        )
    dims = struct.unpack_from(f">{raw[3]}I", raw, 4)
    start = 4 + 4 * len(dims)
    if len(raw) - start != np.prod(dims):
        raise DataError(f"{path}: its header announces {'x'.join(map(str, dims))} bytes, but {len(raw) - start} follow")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(dims)


def _read_npz(path: Path) -> tuple[Array, Array | None]:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        name = next((name for name in ("X", "x", "images") if name in names), None)
        if name is None:
            if len(names) != 1:
                raise DataError(f"{path}: expected an array X, x or images, got {', '.join(names) or 'none'}")
            name = names[0]
        return archive[name], archive["y"].ravel() if "y" in names and name != "y" else None


def _read_folder(path: Path) -> Array:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    images: list[Array] = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                    raise DataError(f"{file}: is of mode {image.mode}, expected 8 bits per channel")
                grey = image.mode in ("1", "L")
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{file}: cannot be read as an image: {error}") from error
        images.append(pixels[None] if grey else pixels.transpose(2, 0, 1))
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{file}: every image must be of one size, got {images[-1].shape} after {images[0].shape} (C, H, W)"
            )
    if not images:
        raise DataError(f"{path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return np.stack(images)


def _read_table(path: Path, label_column: str | None) -> tuple[Array, list[str], Array | None]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    table: pa.Table = csv.read_csv(path) if path.suffix == ".csv" else parquet.read_table(path)
    if table.num_rows == 0:
        raise DataError(f"{path}: holds no rows")
    labels = None
    if label_column is not None:
        if label_column not in table.column_names:
            raise DataError(f"{path}: no column {label_column!r}; it has {', '.join(table.column_names)}")
        labels = table.column(label_column).to_numpy()
        table = table.drop_columns([label_column])
    values = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            row = next(i for i, value in enumerate(column) if not value.is_valid)
            raise DataError(f"{path}: row {row}, column {name!r} is missing; every value must be present")
        if not (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
        ):
            raise DataError(f"{path}: column {name!r} is of type {column.type}; expected numbers")
        values.append(column.to_numpy().astype(np.float64))
    if not values:
        raise DataError(f"{path}: holds no columns")
    return np.stack(values, 1), list(table.column_names), labels


def _load_sklearn(source: str) -> Dataset:
    from sklearn import datasets

    bunch = getattr(datasets, SKLEARN_SETS[source])()
    if source == "sklearn:digits":
        return Dataset(bunch.images[:, None].astype(np.uint8), [], bunch.target)
    return Dataset(bunch.data.astype(np.float64), [str(name) for name in bunch.feature_names], bunch.target)
