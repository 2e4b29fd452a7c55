"""Files of rows, read in batches of bounded size: what the commands that score files share.

Tables (.parquet, .csv) give their columns by name, in any order, and may have others beside them, which can come along
to identify rows; arrays (.npy, .npz) give them by position; a folder holds PNG and JPEG images, which come in the order
of their paths and are identified by these. Rows are counted from 0, without a heading, and checked as those of a
request are.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import compute, csv, parquet

from common.cli import did_you_mean
from common.dialect import column_separator, with_points
from common.errors import UsageError
from service.artifact import Signature
from service.cells import is_readable, read_cells
from service.codecs import arrow, image
from service.errors import ServiceError
from service.rows import check_shape, inputs_from_array, inputs_from_arrow

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
_NPZ_NAMES = ("X.npy", "x.npy", "images.npy")  # of the array of rows, where there are others
_BATCH_VALUES = 2**20
_BATCH_ROWS = 2**14
_BUFFER_BYTES = 2**16  # of each column of a Parquet file; without one, a row group is read whole
_CSV_BLOCK_BYTES = 2**22  # no line of a CSV file may be longer
_MISSING = pa.array(csv.ConvertOptions().null_values or [], pa.large_string())  # how CSV files write it
_FILE = "file"  # what identifies an image of a folder

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]
Item = TypeVar("Item")


class FileError(UsageError):
    """A file that cannot be read, or not for this model; the message names the file, the rule and the value."""


@dataclass(frozen=True)
class Batch:
    """Rows of a file that stand next to each other: those that the model takes, and why it does not take the others."""

    num_rows: int
    rows: Array  # (K, *shape), as the engine takes them
    positions: Positions  # of these in the file: (K,), ascending
    refused: dict[int, str]  # by position in the file, ascending: which column holds what, and the rule
    start: int  # of the first row in the file
    ids: pa.RecordBatch  # columns that came along, of all its rows


@dataclass(frozen=True)
class RowFile:
    """A file of rows for one model, which may be read several times."""

    path: Path
    manifest: Signature
    num_rows: int | None  # None where only reading it tells
    ids: pa.Schema  # of the columns that come along; those of CSV files are text as it stands there
    _parts: Callable[[], Iterator[_Part]]

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Read it, but for batches before a row that one begins with. Raises FileError where it breaks off."""
        skipped, start = start, 0
        for part in _guarded(self.path, self._parts):
            if start < skipped:
                start += part.num_rows
                if start > skipped:
                    break
                continue
            taken, faults = _sift(part.read, _without(part.num_rows, part.faults))
            faults = part.faults | faults
            refused = {start + i: text for i, text in sorted(faults.items())}
            positions = _without(part.num_rows, faults)
            none = np.zeros((0, *self.manifest.shape), self.manifest.input_dtype)
            rows = taken[0] if len(taken) == 1 else np.concatenate([none, *taken])
            ids = pa.record_batch([_plain(column) for column in part.ids], schema=self.ids)
            yield Batch(part.num_rows, rows, start + positions, refused, start, ids)
            start += part.num_rows
            skipped = start
        if start != skipped:
            raise FileError(f"{self.path}: no batch begins with row {skipped}; --restart begins afresh")


@dataclass(frozen=True)
class _Part:
    """Some rows, numbered from 0."""

    num_rows: int
    faults: dict[int, str]  # what is known to be wrong with some
    read: Callable[[Positions], Array]  # those of such numbers, or ServiceError where the model does not take one
    ids: list[pa.Array[Any]]


def open_rows(path: Path, manifest: Signature, ids: Sequence[str] | None = ()) -> RowFile:
    """Open a file for a model; columns ``ids`` come along, for None all that are not the model's.

    Raises FileError where it is not one of rows that the model could take, or lacks such a column.
    """
    if not path.exists():
        raise FileError(f"{path}: no such file or folder")
    openers = {".parquet": _open_parquet, ".csv": _open_csv, ".npy": _open_npy, ".npz": _open_npz}
    opener = _open_folder if path.is_dir() else openers.get(path.suffix)
    if opener is None:
        raise FileError(f"{path}: unknown kind of file; expected .parquet, .csv, .npy, .npz or a folder of images")
    opened = next(_guarded(path, lambda: iter([opener(path, manifest, ids)])))
    if opened.num_rows == 0:
        raise FileError(f"{path}: holds no rows")
    return opened


def _guarded(path: Path, items: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    try:
        yield from items()
    except (FileError, MemoryError):
        raise
    except ServiceError as error:
        raise FileError(f"{path}: {error}") from error
    except Exception as error:  # the readers raise nearly anything on files that are not what their name says
        raise FileError(f"{path}: cannot be read: {str(error).strip() or type(error).__name__}") from error


def _without(num_rows: int, faults: Mapping[int, str]) -> Positions:
    """Numbers of rows without faults, ascending."""
    return np.delete(np.arange(num_rows), np.fromiter(faults, np.int64))


def _sift(read: Callable[[Positions], Array], candidates: Positions) -> tuple[list[Array], dict[int, str]]:
    """Rows that the model takes, in parts, and the reasons against the others, each found by halving."""
    if not len(candidates):
        return [], {}
    try:
        return [read(candidates)], {}
    except ServiceError as error:
        if len(candidates) == 1:
            return [], {int(candidates[0]): _reason(error)}
    (first, faults), (second, more) = (_sift(read, half) for half in np.array_split(candidates, 2))
    return first + second, faults | more


def _reason(error: ServiceError) -> str:
    """What an error says of the only row that it was raised for."""
    text = str(error).removeprefix("inputs[0]")
    named = re.match(r"\[(['\"].*?['\"])\] ", text)
    return f"column {named[1]} {text[named.end() :]}" if named else f"pixel {text}"


def _batch_rows(manifest: Signature) -> int:
    """A power of two, as passes are, which are all full then."""
    most = _BATCH_VALUES // manifest.num_dims
    return min(_BATCH_ROWS, 1 << max(0, most.bit_length() - 1))


def _starts(num_rows: int, manifest: Signature) -> range:
    return range(0, num_rows, _batch_rows(manifest))


def _open_parquet(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    schema = file.schema_arrow
    names = _check_names(path, schema.names, manifest)
    for column in manifest.columns:
        type_ = schema.field(column.name).type
        if not is_readable(type_, column):
            raise FileError(f"{path}: column {column.name!r} is of type {type_}; expected numbers")
    ids = _check_ids(path, schema.names, names, ids)

    def parts() -> Iterator[_Part]:
        wanted = list(dict.fromkeys([*names, *ids]))
        for batch in file.iter_batches(_batch_rows(manifest), columns=wanted, use_threads=False):
            yield _table_part(dict(zip(batch.schema.names, batch.columns, strict=True)), manifest, ids)

    of_ids = pa.schema([pa.field(name, _plain_type(schema.field(name).type)) for name in ids])
    return RowFile(path, manifest, file.metadata.num_rows, of_ids, parts)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Without dictionaries, which batches need not share, and views, which cannot be taken from or written."""
    if isinstance(kind, pa.DictionaryType):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _plain(array: pa.Array[Any]) -> pa.Array[Any]:
    kind = _plain_type(array.type)
    return array if array.type == kind else array.cast(kind)


def _open_csv(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    read_options = csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False)  # threads do not count lines
    ragged: dict[int, str] = {}  # by position

    def skip(row: csv.InvalidRow) -> Literal["skip"]:
        assert row.number is not None  # from 1, the heading's
        ragged[row.number - 2] = f"has {row.actual_columns} values; expected {row.expected_columns}"
        return "skip"

    separator = column_separator(path)
    parse_options = csv.ParseOptions(delimiter=separator, invalid_row_handler=skip)
    with csv.open_csv(path, read_options, parse_options) as reader:
        found = reader.schema.names
    names = _check_names(path, found, manifest)
    ids = _check_ids(path, found, names, ids)
    as_text = csv.ConvertOptions(  # a type that the first lines suggest may not fit the others
        column_types={name: pa.large_string() for name in found}, include_columns=list(dict.fromkeys([*names, *ids]))
    )

    def part(batch: pa.RecordBatch, gaps: dict[int, str]) -> _Part:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        cells = {name: _without_missing(columns[name]) for name in names}
        if separator != ",":
            for column in manifest.columns:
                if column.type != "categorical":
                    cells[column.name] = with_points(cells[column.name])
        return _table_part(columns | cells, manifest, ids, gaps)

    def parts() -> Iterator[_Part]:
        ragged.clear()
        at = 0
        with csv.open_csv(path, read_options, parse_options, as_text) as reader:
            for block in reader:
                for start in _starts(block.num_rows, manifest):
                    batch, gaps = _with_gaps(block.slice(start, _batch_rows(manifest)), ragged, at)
                    at += batch.num_rows
                    yield part(batch, gaps)
            if ragged:  # at the end of the file
                none = pa.record_batch([pa.array([], field.type) for field in reader.schema], schema=reader.schema)
                yield part(*_with_gaps(none, ragged, at))

    return RowFile(path, manifest, None, pa.schema([(name, pa.large_string()) for name in ids]), parts)


def _with_gaps(batch: pa.RecordBatch, ragged: dict[int, str], at: int) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Rows from position ``at`` of a file, nulls in place of ragged lines among and behind them; these are told."""
    gaps: dict[int, str] = {}
    while ragged and (position := next(iter(ragged)) - at) <= batch.num_rows + len(gaps):
        gaps[position] = ragged.pop(position + at)
    if not gaps:
        return batch, gaps
    rows = np.full(batch.num_rows + len(gaps), -1)
    rows[_without(len(rows), gaps)] = np.arange(batch.num_rows)
    return batch.take(pa.array(rows, mask=rows < 0)), gaps


def _without_missing(texts: pa.Array[Any]) -> pa.Array[Any]:
    """Null in place of what means that."""
    present: pa.Array[Any] = compute.if_else(compute.is_in(texts, _MISSING), None, texts)
    return present


def _check_ids(path: Path, found: list[str], names: list[str], ids: Sequence[str] | None) -> list[str]:
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
        raise FileError(f"{path}: is a table, but {manifest.name} takes images: .npy, .npz or a folder")
    names = [column.name for column in manifest.columns]
    for name in names:
        if found.count(name) != 1:
            number = "no column" if name not in found else f"{found.count(name)} columns"
            hint = "" if name in found else did_you_mean(name, set(found) - set(names), "is it the file's")
            raise FileError(f"{path}: has {number} {name!r}; {manifest.name} takes {', '.join(names)}{hint}")
    return names


def _table_part(
    columns: Mapping[str, pa.Array[Any]], manifest: Signature, ids: Sequence[str], gaps: dict[int, str] | None = None
) -> _Part:
    cells = {column.name: read_cells(columns[column.name], column) for column in manifest.columns}
    faults: dict[int, str] = {}
    for name, column in cells.items():
        for i, text in column.faults.items():
            faults.setdefault(i, f"column {name!r} {text}")

    def read(chosen: Positions) -> Array:
        return inputs_from_arrow({name: _chosen(column.values, chosen) for name, column in cells.items()}, manifest)

    return _Part(len(next(iter(columns.values()))), faults | (gaps or {}), read, [columns[name] for name in ids])


def _chosen(values: arrow.Column, rows: Positions) -> arrow.Column:
    return arrow.Strings(values.codes[rows], values.names) if isinstance(values, arrow.Strings) else values[rows]


def _open_npy(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    ids = _check_ids(path, [], [], ids)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_array(path, array.shape, array.dtype, manifest)

    def parts() -> Iterator[_Part]:
        for start in _starts(len(array), manifest):
            yield _array_part(np.array(array[start : start + _batch_rows(manifest)]), manifest)

    return RowFile(path, manifest, len(array), pa.schema([]), parts)


def _open_npz(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    ids = _check_ids(path, [], [], ids)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        name = next((name for name in _NPZ_NAMES if name in names), names[0] if names else "")
        if len(names) != 1 and name not in _NPZ_NAMES:
            found = ", ".join(name.removesuffix(".npy") for name in names)
            raise FileError(f"{path}: expected one array, or one named X, x or images, got {found or 'none'}")
        with archive.open(name) as stream:
            shape, by_columns, dtype = _read_header(stream)
    _check_array(path, shape, dtype, manifest)

    def parts() -> Iterator[_Part]:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            if by_columns:  # the first row is complete only where the last column begins
                whole = np.lib.format.read_array(stream, allow_pickle=False)
            else:
                _read_header(stream)
            for start in _starts(shape[0], manifest):
                num = min(_batch_rows(manifest), shape[0] - start)
                if by_columns:
                    rows = whole[start : start + num]
                else:
                    flat = np.frombuffer(stream.read(num * int(np.prod(shape[1:])) * dtype.itemsize), dtype)
                    rows = flat.reshape(num, *shape[1:])
                yield _array_part(rows, manifest)

    return RowFile(path, manifest, shape[0], pa.schema([]), parts)


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:  # noqa: ANN401 (zipfile's own class)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return readers[version](stream)


def _check_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], manifest: Signature) -> None:
    if dtype.kind not in "biuf":
        raise FileError(f"{path}: expected numbers, got values of type {dtype}")
    check_shape(shape, manifest)


def _array_part(array: Array, manifest: Signature) -> _Part:
    if manifest.kind == "vector":
        values = array.T.astype(np.float64)
        names = [column.name for column in manifest.columns]
        return _table_part({name: pa.array(row) for name, row in zip(names, values, strict=True)}, manifest, [])
    return _Part(len(array), {}, lambda chosen: inputs_from_array(array[chosen], manifest), [])


def image_files(folder: Path) -> list[Path]:
    """Images in a folder and those below it, in the order of their paths."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


def _open_folder(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    ids = _check_ids(path, [_FILE], [], ids)
    value_range = manifest.value_range
    if value_range is None or not manifest.is_picture:
        raise FileError(f"{path}: is a folder, but {manifest.name} takes no pictures; expected a file")
    files = image_files(path)
    if not files:
        raise FileError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)})")

    def parts() -> Iterator[_Part]:
        for start in _starts(len(files), manifest):
            group = files[start : start + _batch_rows(manifest)]
            names = [str(file.relative_to(path)) for file in group]
            pixels, faults = np.zeros((len(group), *manifest.shape), np.float32), {}
            for i, file in enumerate(group):
                try:
                    pixels[i] = image.read(file.read_bytes(), manifest.shape, value_range, names[i])
                except ServiceError as error:
                    faults[i] = str(error)
            yield _Part(len(group), faults, pixels.__getitem__, [pa.array(names)] if ids else [])

    return RowFile(path, manifest, len(files), pa.schema([(name, pa.string()) for name in ids]), parts)
