"""Tables: CSV files, Parquet files and arrays become float64 rows, batch by batch.

Every source is a sequence of record batches, so that one code checks, encodes and places the values of all of them. Of
Parquet files no more than a few batches are in memory: their rows go straight to their places in a scratch file, and
several processes of a host read some of the row groups each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from common.cli import did_you_mean
from common.dialect import column_separator, with_points
from model.dataset import Array, DataError, Dataset, Selection, release_pages
from model.distributed import ALONE, Processes
from model.scratch import scratch
from service.artifact import listed_categories

MAX_CATEGORIES = 10_000  # a column with more different names is an identifier or free text, or numbers with a typo
_BATCH_VALUES = 2**18
_PARQUET_COLUMNS = 8  # read at a time: each takes some 2 MB for its pages and its dictionary
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_dictionary)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)  # null: all are missing


@dataclass(frozen=True)
class Part:
    """Rows of a table that are read together: a row group of a Parquet file, or all of them."""

    source: str  # its file
    rows: range  # their numbers in the table
    first_in_source: int  # number of the first one in the file
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]]  # of these columns, in the order of the rows


@dataclass(frozen=True)
class Table:
    """A source of record batches, which may be read several times."""

    name: str
    schema: pa.Schema
    parts: list[Part]
    streamed: bool = False  # its values do not lie in memory

    @property
    def num_rows(self) -> int:
        return self.parts[-1].rows.stop if self.parts else 0


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

    return Table(name, table.schema, [Part(name, range(table.num_rows), 0, batches)])


def parquet_table(name: str, paths: list[Path]) -> Table:
    """Open Parquet files, whose rows follow each other; values are read later, batch by batch.

    Raises DataError where a file's columns are not those of the first, or are of other types.
    """
    schema: pa.Schema | None = None
    parts: list[Part] = []
    first = 0
    for path in paths:
        file = parquet.ParquetFile(path)
        if schema is None:
            schema = file.schema_arrow
        _check_schema(path, file.schema_arrow, paths[0], schema)
        first_in_file = 0
        for number in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(number).num_rows
            read = partial(_read_row_group, path, file.metadata, number)
            parts.append(Part(str(path), range(first, first + num_rows), first_in_file, read))
            first, first_in_file = first + num_rows, first_in_file + num_rows
    assert schema is not None
    return Table(name, schema, parts, streamed=True)


def _read_row_group(
    path: Path, metadata: parquet.FileMetaData, number: int, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    file = parquet.ParquetFile(path, metadata=metadata, memory_map=True)  # unmapped, it would read a whole row group
    yield from file.iter_batches(_batch_rows(len(columns)), row_groups=[number], columns=columns, use_threads=False)


def _check_schema(path: Path, schema: pa.Schema, first: Path, expected: pa.Schema) -> None:
    for name in expected.names:
        if name not in schema.names:
            raise DataError(f"{path}: no column {name!r}, which {first} has")
    for field in schema:
        if field.name not in expected.names:
            raise DataError(f"{path}: column {field.name!r} is not in {first}")
        if (type_ := expected.types[expected.names.index(field.name)]) != field.type:
            raise DataError(f"{path}: column {field.name!r} is of type {field.type}, but {type_} in {first}")


def array_table(name: str, x: Array, columns: list[str]) -> Table:
    """Take an array (N, D) for a table."""
    x = x.astype(np.float64 if x.dtype.kind == "f" else x.dtype.newbyteorder("="), copy=False)
    numbers = {column: i for i, column in enumerate(columns)}

    def batches(columns: list[str]) -> Iterator[pa.RecordBatch]:
        step = _batch_rows(len(columns))
        for start in range(0, len(x), step):
            values = [pa.array(x[start : start + step, numbers[column]]) for column in columns]
            yield pa.RecordBatch.from_arrays(values, columns)

    schema = pa.schema([(column, pa.from_numpy_dtype(x.dtype)) for column in columns])
    return Table(name, schema, [Part(name, range(len(x)), 0, batches)])


def _batch_rows(num_columns: int) -> int:
    return max(256, _BATCH_VALUES // num_columns)


def read_table(table: Table, wanted: Selection, labels: Array | None = None, processes: Processes = ALONE) -> Dataset:
    """Read the wanted rows and columns of a table, with labels (N,) where its rows have them apart.

    Raises DataError naming file, row and column of a missing, infinite or unknown value; rows are counted from 0,
    without a heading.
    """
    if not table.num_rows:
        raise DataError(f"{table.name}: holds no rows")
    columns, categorical = _columns(table, wanted)
    kept = _kept_rows(table, wanted, labels)
    categories = _categories(table, categorical, kept, wanted, processes)
    place = _places(wanted.order(int(kept.sum())), kept)
    shape = (int(kept.sum()), len(columns))
    x = scratch(shape, np.float64, table.name, processes) if table.streamed else np.empty(shape)
    step = _PARQUET_COLUMNS if table.streamed else len(columns)
    units = [(first, part) for first in range(0, len(columns), step) for part in table.parts]

    def fill() -> None:
        for first, part in processes.local_share(units):
            group = columns[first : first + step]
            for rows, batch in _kept_batches(part, group, kept):
                values = [_values(part, name, batch.column(name), rows, categories.get(name)) for name in group]
                x[place[rows], first : first + step] = np.stack(values, 1)
            release_pages(x)

    processes.together(fill)
    return Dataset(x, columns, categories)


def _places(order: Array, kept: Array) -> Array:
    """Tell where each row of a table goes: (N,) from which of the kept ones comes i-th; of others, anything."""
    places = np.zeros(len(kept), order.dtype)
    places[np.flatnonzero(kept)[order]] = np.arange(len(order))
    return places


def _kept_rows(table: Table, wanted: Selection, labels: Array | None) -> Array:
    """Mark the wanted rows: (N,)."""
    if wanted.normal_label is None:
        return np.ones(table.num_rows, np.bool_)
    name = wanted.label_column
    if name is not None:
        batches = (batch for part in table.parts for batch in part.batches([name]))
        labels = np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in batches])
    return wanted.is_normal(labels, table.name)


def _columns(table: Table, wanted: Selection) -> tuple[list[str], list[str]]:
    """Names of the columns to read, and of those of them that hold names of categories."""
    names: list[str] = table.schema.names
    twice = [name for name, times in Counter(names).items() if times > 1]
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


def _kept_batches(part: Part, columns: list[str], kept: Array) -> Iterator[tuple[Array, pa.RecordBatch]]:
    """Iterate over the kept rows: their numbers in the table, and their values.

    Raises DataError where there are other rows than a file announces.
    """
    start = part.rows.start
    for batch in part.batches(columns):
        mask = kept[start : start + batch.num_rows]
        yield start + np.flatnonzero(mask), batch if mask.all() else batch.filter(pa.array(mask))
        start += batch.num_rows
    if start != part.rows.stop:
        found = start - part.rows.start
        raise DataError(f"{part.source}: {len(part.rows)} rows are announced, but column {columns[0]!r} has {found}")


def _categories(
    table: Table, names: list[str], kept: Array, wanted: Selection, processes: Processes
) -> dict[str, list[str]]:
    """Collect the names of categories in columns, or take those that are known."""
    known = {name: (wanted.known or {}).get(name) for name in names}
    units = [(name, part) for name in names if not known[name] for part in table.parts]
    found: dict[str, set[str]] = {name: set() for name in names}

    def add(name: str, more: set[str]) -> None:
        found[name] |= more
        if len(found[name]) > MAX_CATEGORIES:
            raise DataError(
                f"{table.name}: column {name!r} holds more than {MAX_CATEGORIES} names, too many categories"
            )

    def collect() -> None:
        for name, part in processes.local_share(units):
            for rows, batch in _kept_batches(part, [name], kept):
                column = batch.column(name)
                _check_present(part, name, column, rows)
                add(name, set(_codes(column)[0]))

    def merge(others: list[dict[str, set[str]]]) -> dict[str, list[str]]:
        for name, more in ((name, more) for other in others for name, more in other.items()):
            add(name, more)
        return {name: known[name] or sorted(found[name]) for name in names}

    processes.together(collect)
    others = processes.gather(found)
    return processes.together(lambda: merge(others))


def _values(part: Part, name: str, column: pa.Array[Any], rows: Array, categories: list[str] | None) -> Array:
    """Values of a column as float64; of one with categories, their codes."""
    _check_present(part, name, column, rows)
    if categories is None:
        values: Array = column.to_numpy(zero_copy_only=False).astype(np.float64)
        return values
    names, indices = _codes(column)
    numbers = {category: code for code, category in enumerate(categories)}
    codes = np.array([numbers.get(text, -1) for text in names], np.float64)[indices]
    for i in np.flatnonzero(codes < 0)[:1]:
        value, known = names[indices[i]], listed_categories(categories)
        raise DataError(f"{_row(part, rows[i])}, column {name!r} is {value!r}, not one of its categories: {known}")
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


def _check_present(part: Part, name: str, column: pa.Array[Any], rows: Array) -> None:
    """Raise DataError where a value is missing (null or NaN) or infinite."""
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        row = _row(part, rows[missing.argmax()])
        raise DataError(f"{row}, column {name!r} is missing; every value must be present")
    if pa.types.is_floating(column.type):
        values = column.to_numpy(zero_copy_only=False)
        for i in np.flatnonzero(np.isinf(values))[:1]:
            raise DataError(f"{_row(part, rows[i])}, column {name!r} is {values[i]}; every value must be finite")


def _row(part: Part, number: int) -> str:
    """Name a row of a table by its file and its place there."""
    return f"{part.source}: row {number - part.rows.start + part.first_in_source}"
