"""Tables: CSV files, Parquet files and arrays become float64 rows, batch by batch.

Every source is a sequence of record batches, so that one code checks, encodes and places the values of all of them. Of
a Parquet file no more than a few batches are in memory: its rows go straight to their places in a scratch file, which
is mapped, and which the file system forgets when the process ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from common.cli import did_you_mean
from common.dialect import column_separator, with_points
from model.dataset import Array, DataError, Dataset, Selection, release_pages
from service.artifact import listed_categories

MAX_CATEGORIES = 10_000  # a column with more different names is an identifier or free text, or numbers with a typo
_BATCH_VALUES = 2**18
_PARQUET_COLUMNS = 8  # read at a time: each takes some 2 MB for its pages and its dictionary
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_dictionary)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)  # null: all are missing


@dataclass(frozen=True)
class Table:
    """A source of record batches, which may be read several times."""

    name: str
    schema: pa.Schema
    num_rows: int
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]]  # of these columns, in the order of the file
    streamed: bool = False  # its values do not lie in memory


def csv_table(path: Path) -> Table:
    """Read a CSV file; an empty cell, NA, NaN or null is a missing value, in columns of text too.

    Where other signs than commas separate columns, those of numbers with decimal commas are numbers.
    """
    separator = column_separator(path)
    missing = csv.ConvertOptions(strings_can_be_null=True)
    table = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=separator), convert_options=missing)
    if separator != ",":
        for i, field in enumerate(table.schema):
            if pa.types.is_string(field.type):
                with suppress(pa.ArrowInvalid):  # it is text
                    table = table.set_column(i, field.name, with_points(table.column(i)).cast(pa.float64()))
    return arrow_table(str(path), table)


def arrow_table(name: str, table: pa.Table) -> Table:
    """Take a table in memory."""

    def batches(columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from table.select(columns).to_batches(_batch_rows(len(columns)))

    return Table(name, table.schema, table.num_rows, batches)


def parquet_table(path: Path) -> Table:
    """Open a Parquet file; its values are read later, batch by batch."""
    file = parquet.ParquetFile(path, memory_map=True)  # unmapped, it would read a whole row group

    def batches(columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from file.iter_batches(_batch_rows(len(columns)), columns=columns, use_threads=False)

    return Table(str(path), file.schema_arrow, file.metadata.num_rows, batches, streamed=True)


def array_table(name: str, x: Array, columns: list[str]) -> Table:
    """Take an array (N, D) for a table."""
    x = x.astype(np.float64 if x.dtype.kind == "f" else x.dtype.newbyteorder("="), copy=False)
    numbers = {column: i for i, column in enumerate(columns)}

    def batches(columns: list[str]) -> Iterator[pa.RecordBatch]:
        step = _batch_rows(len(columns))
        for start in range(0, len(x), step):
            values = [pa.array(x[start : start + step, numbers[column]]) for column in columns]
            yield pa.RecordBatch.from_arrays(values, columns)

    return Table(name, pa.schema([(column, pa.from_numpy_dtype(x.dtype)) for column in columns]), len(x), batches)


def _batch_rows(num_columns: int) -> int:
    return max(256, _BATCH_VALUES // num_columns)


def read_table(table: Table, wanted: Selection, labels: Array | None = None) -> Dataset:
    """Read the wanted rows and columns of a table, with labels (N,) where its rows have them apart.

    Raises DataError naming row and column of a missing, infinite or unknown value; rows are counted from 0, without a
    heading.
    """
    if not table.num_rows:
        raise DataError(f"{table.name}: holds no rows")
    columns, categorical = _columns(table, wanted)
    kept = _kept_rows(table, wanted, labels)
    categories = {name: (wanted.known or {}).get(name) or _categories_of(table, name, kept) for name in categorical}
    place = _places(wanted.order(int(kept.sum())))
    shape = (len(place), len(columns))
    x = _scratch(shape, table.name) if table.streamed else np.empty(shape)
    step = _PARQUET_COLUMNS if table.streamed else len(columns)
    for first in range(0, len(columns), step):
        group, done = columns[first : first + step], 0
        for rows, batch in _kept_batches(table, group, kept):
            values = [_values(table.name, name, batch.column(name), rows, categories.get(name)) for name in group]
            x[place[done : done + len(rows)], first : first + step] = np.stack(values, 1)
            done += len(rows)
        release_pages(x)
    return Dataset(x, columns, categories)


def _places(order: Array) -> Array:
    """Tell where each row goes: the inverse of a permutation (N,)."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def _kept_rows(table: Table, wanted: Selection, labels: Array | None) -> Array:
    """Mark the wanted rows: (N,)."""
    if wanted.normal_label is None:
        return np.ones(table.num_rows, np.bool_)
    name = wanted.label_column
    if name is not None:
        labels = np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in table.batches([name])])
    return wanted.is_normal(labels, table.name)


def _columns(table: Table, wanted: Selection) -> tuple[list[str], list[str]]:
    """Names of the columns to read, and of those of them that hold names of categories."""
    names: list[str] = table.schema.names
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{table.name}: two columns are named {twice[0]!r}")
    others = [*wanted.ignored, *([wanted.label_column] if wanted.label_column is not None else [])]
    columns = [name for name in names if name not in others] if wanted.known is None else list(wanted.known)
    asked = [*columns, *wanted.categorical, *others]
    for name in asked:
        if name not in names:
            raise DataError(f"{table.name}: no column {name!r}; it has {', '.join(names)}{did_you_mean(name, names)}")
    if not columns:
        raise DataError(f"{table.name}: holds no columns")
    return columns, [name for name in columns if _is_categorical(table, name, wanted)]


def _is_categorical(table: Table, name: str, wanted: Selection) -> bool:
    """Whether a column holds names of categories. Raises DataError where it holds neither those nor numbers."""
    type_ = table.schema.field(name).type
    known = None if wanted.known is None else bool(wanted.known[name])
    if known is not False and any(is_kind(type_) for is_kind in _TEXT):
        return True
    if not any(is_kind(type_) for is_kind in _NUMBERS):
        hint = "; data.ignored leaves columns out" if wanted.known is None else ""
        raise DataError(f"{table.name}: column {name!r} is of type {type_}; expected numbers{hint}")
    return name in wanted.categorical if known is None else known


def _kept_batches(table: Table, columns: list[str], kept: Array) -> Iterator[tuple[Array, pa.RecordBatch]]:
    """Iterate over the kept rows: their numbers in the file, and their values."""
    start = 0
    for batch in table.batches(columns):
        mask = kept[start : start + batch.num_rows]
        yield start + np.flatnonzero(mask), batch if mask.all() else batch.filter(pa.array(mask))
        start += batch.num_rows


def _categories_of(table: Table, name: str, kept: Array) -> list[str]:
    """Collect the names in a column."""
    found: set[str] = set()
    for rows, batch in _kept_batches(table, [name], kept):
        column = batch.column(name)
        _check_present(table.name, name, column, rows)
        found.update(_codes(column)[0])
        if len(found) > MAX_CATEGORIES:
            raise DataError(
                f"{table.name}: column {name!r} holds more than {MAX_CATEGORIES} names, too many categories"
            )
    return sorted(found)


def _values(source: str, name: str, column: pa.Array[Any], rows: Array, categories: list[str] | None) -> Array:
    """Values of a column as float64; of one with categories, their codes."""
    _check_present(source, name, column, rows)
    if categories is None:
        values: Array = column.to_numpy(zero_copy_only=False).astype(np.float64)
        return values
    names, indices = _codes(column)
    numbers = {category: code for code, category in enumerate(categories)}
    codes = np.array([numbers.get(text, -1) for text in names], np.float64)[indices]
    for i in np.flatnonzero(codes < 0)[:1]:
        value, known = names[indices[i]], listed_categories(categories)
        raise DataError(f"{source}: row {rows[i]}, column {name!r} is {value!r}, not one of its categories: {known}")
    return codes


def _codes(column: pa.Array[Any]) -> tuple[list[str], Array]:
    """Different names in a column and, for each row, which of them it holds; a number's name is its digits."""
    if pa.types.is_string_view(column.type):  # of polars; pyarrow can select none of its values
        column = column.cast(pa.large_string())
    encoded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    assert isinstance(encoded, pa.DictionaryArray)
    indices = encoded.indices.to_numpy()
    used, indices = np.unique(indices, return_inverse=True)  # a dictionary may hold more than its column
    return [_name_of(value) for value in encoded.dictionary.take(pa.array(used)).to_pylist()], indices


def _name_of(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_present(source: str, name: str, column: pa.Array[Any], rows: Array) -> None:
    """Raise DataError where a value is missing (null or NaN) or infinite."""
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        row = rows[missing.argmax()]
        raise DataError(f"{source}: row {row}, column {name!r} is missing; every value must be present")
    if pa.types.is_floating(column.type):
        values = column.to_numpy(zero_copy_only=False)
        for i in np.flatnonzero(np.isinf(values))[:1]:
            raise DataError(f"{source}: row {rows[i]}, column {name!r} is {values[i]}; every value must be finite")


def _scratch(shape: tuple[int, int], source: str) -> Array:
    """Map a file of float64 without a name, in TMPDIR; its space is reserved at once. Raises DataError."""
    size = 8 * shape[0] * shape[1]
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float64, "w+", shape=shape)
    except OSError as error:
        folder = tempfile.gettempdir()
        raise DataError(f"{source}: needs {size} bytes in {folder} (TMPDIR): {error.strerror}") from error
