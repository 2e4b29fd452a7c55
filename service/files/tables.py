"""Tables: Parquet, one file or the files of a folder, and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv, parquet

from common.cli import did_you_mean
from common.dialect import column_separator, with_points
from service.artifact import Signature
from service.cells import is_readable, read_cells
from service.codecs import arrow
from service.files.row_file import (
    SPAN_BATCHES,
    Array,
    FileError,
    Part,
    Positions,
    RowFile,
    Span,
    batch_rows,
    guarded,
    plain_type,
    without,
)
from service.rows import inputs_from_arrow

_BUFFER_BYTES = 2**16  # of each column of a large Parquet file; without one, a row group is read whole,
_LARGE_BYTES = 2**26  # and with one, memory is taken for whatever size a page claims to have
CSV_BLOCK_BYTES = 2**22  # no line of a CSV file may be longer
_MISSING = pa.array(csv.ConvertOptions().null_values or [], pa.large_string())  # how CSV files write it


def open_parquet(
    path: Path, manifest: Signature, ids: Sequence[str] | None, files: Sequence[Path] | None = None
) -> RowFile:
    """One file, or several of one schema, whose rows come one file after the other."""
    files = files or [path]
    spans: list[Span] = []
    size = batch_rows(manifest)
    schema = None
    for file in files:
        with guarded(file), parquet.ParquetFile(file) as opened:
            found = opened.schema_arrow
            schema = schema or found
            _check_same(files[0], schema, file, found)
            spans += _spans(file, spans[-1].stop or 0 if spans else 0, opened.metadata, size)
    assert schema is not None
    names = _check_names(path, schema.names, manifest)
    for column in manifest.columns:
        type_ = schema.field(column.name).type
        if not is_readable(type_, column):
            raise FileError(f"{path}: column {column.name!r} is of type {type_}; expected numbers")
    ids = check_ids(path, schema.names, names, ids)
    of_ids = pa.schema([pa.field(name, plain_type(schema.field(name).type)) for name in ids])
    num_rows = spans[-1].stop if spans else 0
    return RowFile(path, manifest, num_rows, of_ids, spans, partial(_read_parquet, manifest, names, ids, size))


def _check_same(first: Path, schema: pa.Schema, file: Path, found: pa.Schema) -> None:
    """Raise FileError where files of a folder have different columns, in whatever order."""
    expected, types = ({field.name: field.type for field in columns} for columns in (schema, found))
    for name in [*expected, *types]:
        kinds = [f"is of type {columns[name]}" if name in columns else "is missing" for columns in (types, expected)]
        if kinds[0] != kinds[1]:
            raise FileError(f"{file}: column {name!r} {kinds[0]}, but {kinds[1]} in {first}; expected one schema")


def _spans(file: Path, start: int, metadata: parquet.FileMetaData, size: int) -> Iterator[Span]:
    """As many row groups each as some batches have room for; longer ones are cut between batches."""
    size *= SPAN_BATCHES
    first = rows = 0
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if sum(groups) != metadata.num_rows:
        raise FileError(f"{file}: its row groups have {sum(groups)} rows, but it announces {metadata.num_rows}")
    for group, num_rows in enumerate([*groups, size]):  # which has no room beside any row
        if rows and rows + num_rows > size:
            for skipped in range(0, rows, size):
                stop = start + min(rows, skipped + size)
                yield Span(file, start + skipped, stop, range(first, group), skipped)
            first, start, rows = group, start + rows, 0
        rows += num_rows


def _read_parquet(
    manifest: Signature, names: Sequence[str], ids: Sequence[str], size: int, span: Span
) -> Iterator[Part]:
    wanted = list(dict.fromkeys([*names, *ids]))
    at = span.start - span.skipped
    buffer_size = _BUFFER_BYTES if span.path.stat().st_size > _LARGE_BYTES else 0
    with parquet.ParquetFile(span.path, buffer_size=buffer_size, pre_buffer=False) as file:
        for batch in file.iter_batches(size, row_groups=[*span.row_groups], columns=wanted, use_threads=False):
            if at >= span.start:
                yield table_part(dict(zip(batch.schema.names, batch.columns, strict=True)), manifest, ids)
            at += batch.num_rows
            if at == span.stop:
                return


def open_csv(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    """Text, whose lines are found by reading those before them."""
    parse_options = csv.ParseOptions(delimiter=column_separator(path), invalid_row_handler=lambda _: "skip")
    with csv.open_csv(path, _read_options(), parse_options) as reader:
        found = reader.schema.names
    names = _check_names(path, found, manifest)
    ids = check_ids(path, found, names, ids)
    of_ids = pa.schema([(name, pa.large_string()) for name in ids])
    read = partial(_read_csv, manifest, found, names, ids, batch_rows(manifest))
    return RowFile(path, manifest, None, of_ids, [Span(path, 0, None)], read)


def _read_options() -> csv.ReadOptions:
    return csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False)  # threads do not count lines


def _read_csv(
    manifest: Signature, found: Sequence[str], names: Sequence[str], ids: Sequence[str], size: int, span: Span
) -> Iterator[Part]:
    ragged: dict[int, str] = {}  # by position

    def skip(row: csv.InvalidRow) -> Literal["skip"]:
        assert row.number is not None  # from 1, the heading's
        ragged[row.number - 2] = f"has {row.actual_columns} values; expected {row.expected_columns}"
        return "skip"

    separator = column_separator(span.path)
    parse_options = csv.ParseOptions(delimiter=separator, invalid_row_handler=skip)
    as_text = csv.ConvertOptions(  # a type that the first lines suggest may not fit the others
        column_types={name: pa.large_string() for name in found}, include_columns=list(dict.fromkeys([*names, *ids]))
    )

    def part(batch: pa.RecordBatch, gaps: dict[int, str]) -> Part:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        cells = {name: _without_missing(columns[name]) for name in names}
        if separator != ",":
            for column in manifest.columns:
                if column.type != "categorical":
                    cells[column.name] = with_points(cells[column.name])
        return table_part(columns | cells, manifest, ids, gaps)

    at = 0
    with csv.open_csv(span.path, _read_options(), parse_options, as_text) as reader:
        for block in reader:
            for start in range(0, block.num_rows, size):
                batch, gaps = _with_gaps(block.slice(start, size), ragged, at)
                at += batch.num_rows
                yield part(batch, gaps)
        if ragged:  # at the end of the file
            none = pa.record_batch([pa.array([], field.type) for field in reader.schema], schema=reader.schema)
            yield part(*_with_gaps(none, ragged, at))


def _with_gaps(batch: pa.RecordBatch, ragged: dict[int, str], at: int) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Rows from position ``at`` of a file, nulls in place of ragged lines among and behind them; these are told."""
    gaps: dict[int, str] = {}
    while ragged and (position := next(iter(ragged)) - at) <= batch.num_rows + len(gaps):
        gaps[position] = ragged.pop(position + at)
    if not gaps:
        return batch, gaps
    rows = np.full(batch.num_rows + len(gaps), -1)
    rows[without(len(rows), gaps)] = np.arange(batch.num_rows)
    return batch.take(pa.array(rows, mask=rows < 0)), gaps


def _without_missing(texts: pa.Array[Any]) -> pa.Array[Any]:
    """Null in place of what means that."""
    present: pa.Array[Any] = compute.if_else(compute.is_in(texts, _MISSING), None, texts)
    return present


def check_ids(path: Path, found: list[str], names: list[str], ids: Sequence[str] | None) -> list[str]:
    """Names of the columns that come along; each must be there once."""
    ids = [name for name in found if name not in names] if ids is None else list(dict.fromkeys(ids))
    for name in ids:
        if found.count(name) != 1:
            number = "no column" if name not in found else f"{found.count(name)} columns"
            raise FileError(f"{path}: has {number} {name!r} to identify rows by; it has {', '.join(found)}")
    return ids


def _check_names(path: Path, found: list[str], manifest: Signature) -> list[str]:
    """Names of the model's columns, in their order; each must be there once."""
    if manifest.kind == "image":
        raise FileError(f"{path}: is a table, but {manifest.name} takes images: .npy, .npz or a folder of them")
    names = [column.name for column in manifest.columns]
    for name in names:
        if found.count(name) != 1:
            number = "no column" if name not in found else f"{found.count(name)} columns"
            hint = "" if name in found else did_you_mean(name, set(found) - set(names), "is it the file's")
            raise FileError(f"{path}: has {number} {name!r}; {manifest.name} takes {', '.join(names)}{hint}")
    return names


def table_part(
    columns: Mapping[str, pa.Array[Any]], manifest: Signature, ids: Sequence[str], gaps: dict[int, str] | None = None
) -> Part:
    """Columns of a table as rows of a model; ``gaps`` are what is known to be wrong."""
    cells = {column.name: read_cells(columns[column.name], column) for column in manifest.columns}
    faults: dict[int, str] = {}
    for name, column in cells.items():
        for i, text in column.faults.items():
            faults.setdefault(i, f"column {name!r} {text}")

    def read(chosen: Positions) -> Array:
        return inputs_from_arrow({name: _chosen(column.values, chosen) for name, column in cells.items()}, manifest)

    return Part(len(next(iter(columns.values()))), faults | (gaps or {}), read, [columns[name] for name in ids])


def _chosen(values: arrow.Column, rows: Positions) -> arrow.Column:
    return arrow.Strings(values.codes[rows], values.names) if isinstance(values, arrow.Strings) else values[rows]
