"""Arrays of rows: .npy, and one of an .npz archive."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from common.formats import NPZ_NAMES
from service.artifact import Signature
from service.files.row_file import Array, FileError, Part, RowFile, Span, batch_rows, cut, starts
from service.files.tables import check_ids, table_part
from service.rows import check_shape, inputs_from_array

_NPZ_NAMES = tuple(f"{name}.npy" for name in NPZ_NAMES)


def open_npy(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    """An array, of which each batch is read from where it stands."""
    check_ids(path, [], [], ids)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_array(path, array.shape, array.dtype, manifest)
    size = batch_rows(manifest)
    read = partial(_read_npy, manifest, size)
    return RowFile(path, manifest, len(array), pa.schema([]), cut(path, len(array), size), read)


def _read_npy(manifest: Signature, size: int, span: Span) -> Iterator[Part]:
    array = np.load(span.path, mmap_mode="r", allow_pickle=False)
    for rows in starts(span, size):
        yield _array_part(np.array(array[rows]), manifest)


def open_npz(path: Path, manifest: Signature, ids: Sequence[str] | None) -> RowFile:
    """The only array of an archive, or that of a known name; compressed, so read from its beginning."""
    check_ids(path, [], [], ids)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        name = next((name for name in _NPZ_NAMES if name in names), names[0] if names else "")
        if len(names) != 1 and name not in _NPZ_NAMES:
            found = ", ".join(name.removesuffix(".npy") for name in names)
            raise FileError(f"{path}: expected one array, or one named {' or '.join(NPZ_NAMES)}, got {found or 'none'}")
        with archive.open(name) as stream:
            shape, by_columns, dtype = _read_header(archive, name, stream)
    _check_array(path, shape, dtype, manifest)
    read = partial(_read_npz, manifest, batch_rows(manifest), name, by_columns)
    return RowFile(path, manifest, shape[0], pa.schema([]), [Span(path, 0, None)], read)


def _read_npz(manifest: Signature, size: int, name: str, by_columns: bool, span: Span) -> Iterator[Part]:
    with zipfile.ZipFile(span.path) as archive, archive.open(name) as stream:
        shape, _, dtype = _read_header(archive, name, stream)
        if by_columns:  # the first row is complete only where the last column begins
            data = stream.read(math.prod(shape) * dtype.itemsize)  # no more than there is, whatever the header says
            whole = np.frombuffer(data, dtype).reshape(shape, order="F")
            for start in range(0, len(whole), size):
                yield _array_part(whole[start : start + size], manifest)
            return
        for start in range(0, shape[0], size):
            num = min(size, shape[0] - start)
            flat = np.frombuffer(stream.read(num * int(np.prod(shape[1:])) * dtype.itemsize), dtype)
            yield _array_part(flat.reshape(num, *shape[1:]), manifest)


def _read_header(archive: zipfile.ZipFile, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        major, minor = version
        raise FileError(f"{archive.filename}: {name} is of .npy version {major}.{minor}; 1.0 and 2.0 are read")
    return readers[version](stream)


def _check_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], manifest: Signature) -> None:
    if dtype.kind not in "biuf":
        raise FileError(f"{path}: expected numbers, got values of type {dtype}")
    check_shape(shape, manifest)


def _array_part(array: Array, manifest: Signature) -> Part:
    if manifest.kind == "vector":
        values = array.T.astype(np.float64)
        names = [column.name for column in manifest.columns]
        return table_part({name: pa.array(row) for name, row in zip(names, values, strict=True)}, manifest, [])
    return Part(len(array), {}, lambda chosen: inputs_from_array(array[chosen], manifest), [])
