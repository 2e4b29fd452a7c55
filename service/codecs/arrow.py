"""Arrow IPC streams: columns by name, read as views of the body and written in batches without a copy of the whole.

Read are integers, floats, booleans (as 0 and 1), strings, dictionaries of these, and lists of numbers, all of one
length; no column may hold nulls. Not read is what lets a small body ask for much memory or time: compressed buffers,
whose size the library takes from the body unseen, many batches, each of which checks the dictionaries anew, and bytes
or dictionaries that columns share.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from service.errors import BadRequest, ServiceError, Unprocessable

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_BATCH_ROWS = 4096  # of an answer
_MAX_BATCHES = 64  # of a body
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_DICTIONARY, _RECORD = 2, 3  # types of messages
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_SIGNED = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_NUMBERS = {kind.id for kind in (pa.bool_(), *_UNSIGNED, *_SIGNED, pa.float16(), pa.float32(), pa.float64())}
_STRINGS = {pa.string().id, pa.large_string().id, pa.string_view().id}
_LISTS = {kind.id for kind in (pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 1))}


@dataclass(frozen=True)
class Strings:
    """A column of strings: names[codes[i]] is that of row i; a name may be there twice."""

    codes: npt.NDArray[np.int64]
    names: list[str]


Column = npt.NDArray[Any] | Strings


def read(body: bytes | bytearray, check_rows: Callable[[int], None]) -> dict[str, Column]:
    """Read numbers (B,), lists of numbers (B, D) and strings by column.

    Arrays of one batch view the body, and those of lists can be written to where it can. ``check_rows`` gets the
    number of rows before they are read, and may raise. Raises BadRequest, or Unprocessable for what is not read.
    """
    try:
        source = pa.py_buffer(body)
        stream = pa.BufferReader(source)
        with pa.ipc.open_stream(stream) as reader:
            _check_schema(reader.schema)
            check_rows(_count_rows(source, reader.schema))
            table = reader.read_all()
        if stream.read(1):
            raise BadRequest("the Arrow stream is followed by other bytes")
        table.validate(full=True)
        table = _plain(table)
        return {
            name: _read_column(name, column, body)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    except ServiceError:
        raise
    except Exception as error:  # readers of hostile bytes raise nearly anything
        hint = "; it is a file, send a stream" if body[:6] == b"ARROW1" else ""
        raise BadRequest(f"the body is not a readable Arrow IPC stream{hint}") from error


def write_parts(columns: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    """Serialise arrays of B rows, a part at a time: the schema with its metadata, then batches of rows.

    Arrays (B,) become plain columns, all others fixed-size lists (B, D), their other axes flattened.
    """
    arrays = {name: _as_arrow(np.ascontiguousarray(array)) for name, array in columns.items()}
    table = pa.table(arrays, metadata=dict(metadata))
    yield memoryview(table.schema.serialize())
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield memoryview(batch.serialize())
    yield memoryview(_END_OF_STREAM)


def write(columns: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The parts in one."""
    return b"".join(write_parts(columns, metadata))


def _as_arrow(array: npt.NDArray[Any]) -> pa.Array[Any]:
    values: pa.Array[Any] = pa.array(array.ravel())
    return values if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, math.prod(array.shape[1:]))


def _count_rows(source: pa.Buffer, schema: pa.Schema) -> int:
    """Number of rows that the batches announce. Raises BadRequest for batches that are not read.

    The library shows neither before it has decompressed a batch, so they are looked up in the FlatBuffers of the
    format (Message.fbs: Message, DictionaryBatch, RecordBatch), which the library has verified.
    """
    num_rows = num_batches = 0
    dictionaries = set()
    for message in pa.ipc.MessageReader.open_stream(source):
        data = memoryview(message.metadata)
        root = _follow(data, 0)
        kind, batch = data[_field(data, root, 1)], _follow(data, _field(data, root, 2))
        if kind == _DICTIONARY:
            dictionary = _int64(data, batch, 0)
            if dictionary in dictionaries:
                raise BadRequest("a column of the Arrow stream has more than one dictionary; unify them")
            dictionaries.add(dictionary)
            batch = _follow(data, _field(data, batch, 1))
        if kind in (_DICTIONARY, _RECORD):
            _check_buffers(data, batch, len(message.body or b""))
        if kind == _RECORD:
            num_rows += _int64(data, batch, 0)
            num_batches += 1
            if num_batches > _MAX_BATCHES:
                raise BadRequest(f"the Arrow stream has more than {_MAX_BATCHES} batches; combine them")
    if num_batches and sum(types.is_dictionary(field.type) for field in schema) > len(dictionaries):
        raise BadRequest("each column of the Arrow stream must have a dictionary of its own")
    return num_rows


def _check_buffers(data: memoryview, batch: int, body_size: int) -> None:
    """Refuse buffers that are compressed or overlap, given the RecordBatch and the size of the body of its message."""
    if _field(data, batch, 3):
        raise BadRequest("compressed Arrow buffers are not read; send them plain, or compress the whole body")
    vector = _field(data, batch, 2)
    if vector:
        vector = _follow(data, vector)
        num = _unpack("<I", data, vector)
        sizes = np.frombuffer(data, "<i8", 2 * num, vector + 4)[1::2]
        if sizes.size and (sizes.min() < 0 or sizes.sum(dtype=np.float64) > body_size):
            raise BadRequest("the buffers of an Arrow batch overlap")


def _unpack(form: str, data: memoryview, position: int) -> int:
    (value,) = struct.unpack_from(form, data, position)
    return int(value)


def _follow(data: memoryview, position: int) -> int:
    """Position of the table that an offset points to."""
    return position + _unpack("<I", data, position)


def _field(data: memoryview, table: int, number: int) -> int:
    """Position of a field of a table; 0 where it has its default."""
    fields = table - _unpack("<i", data, table)
    size, slot = _unpack("<H", data, fields), 4 + 2 * number
    offset = _unpack("<H", data, fields + slot) if slot < size else 0
    return table + offset if offset else 0


def _int64(data: memoryview, table: int, number: int) -> int:
    """Value of a field of a table."""
    position = _field(data, table, number)
    return _unpack("<q", data, position) if position else 0


def _column(name: str) -> str:
    """Tell a column in an error."""
    return f"column {name[:100]!r}"


def _check_schema(schema: pa.Schema) -> None:
    """Refuse columns of the same name and of types that are not read."""
    for name, times in Counter(schema.names).most_common(1):
        if times > 1:
            raise BadRequest(f"the Arrow stream has {_column(name)} {times} times")
    for field in schema:
        kind = _storage(field.type)
        inner = kind.value_type if kind.id in _LISTS or types.is_dictionary(kind) else kind
        if inner.id not in _NUMBERS and (kind.id in _LISTS or inner.id not in _STRINGS):
            raise Unprocessable(
                f"{_column(field.name)} is of type {str(kind)[:100]}; "
                "integers, floats, booleans, strings and lists of numbers are read"
            )


def _plain(table: pa.Table) -> pa.Table:
    """Tensors as lists, and views of strings as strings."""
    for i, field in enumerate(table.schema):
        kind = _storage(field.type)
        kind = pa.large_string() if kind == pa.string_view() else kind
        if kind != field.type:
            table = table.set_column(i, field.name, table.column(i).cast(kind))
    return table


def _storage(kind: Any) -> Any:  # noqa: ANN401 (pyarrow's types know less of themselves than the library)
    """The type itself, or the one that an extension such as a tensor is made of."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _read_column(name: str, column: pa.ChunkedArray[Any], body: bytes | bytearray) -> Column:
    kind = column.type
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise Unprocessable(f"{_column(name)} is null in row {row}; every value must be present")
    if kind.id in _NUMBERS:
        return np.asarray(column.to_numpy())
    if kind.id in _LISTS:
        return _read_lists(name, column, body)
    chunks: list[Any] = (column.dictionary_encode() if kind.id in _STRINGS else column).chunks
    codes = np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in chunks)], dtype=np.int64)
    used, codes = np.unique(codes, return_inverse=True)  # a dictionary may be larger than the rows
    values: list[Any] = chunks[0].dictionary.take(pa.array(used)).to_pylist() if chunks else []  # all share one
    if None in values:
        raise Unprocessable(f"the dictionary of {_column(name)} holds a null; every value must be present")
    of_strings = kind.id in _STRINGS or kind.value_type.id in _STRINGS
    return Strings(codes, values) if of_strings else np.array(values, np.float64)[codes]


def _read_lists(name: str, column: pa.ChunkedArray[Any], body: bytes | bytearray) -> npt.NDArray[Any]:
    """Lists of numbers to (B, D). Raises Unprocessable where they are not of one length or hold nulls."""
    chunks: list[Any] = column.chunks
    lengths = [np.zeros(0, np.int64)]
    parts = []
    for chunk in chunks:
        fixed = types.is_fixed_size_list(chunk.type)
        lengths.append(np.full(len(chunk), chunk.type.list_size) if fixed else chunk.value_lengths().to_numpy())
        parts.append(chunk.flatten())
    sizes = np.concatenate(lengths)
    for row in np.flatnonzero(sizes != sizes[:1])[:1]:
        raise Unprocessable(
            f"{_column(name)} is ragged: row {row} is a list of {sizes[row]}, but row 0 is a list of {sizes[0]}"
        )
    values: Any = pa.chunked_array(parts, column.type.value_type)
    size = int(sizes.max(initial=0))
    if values.null_count:
        position = int(values.is_null().to_numpy().argmax())
        raise Unprocessable(f"{_column(name)} holds a null in row {position // size}; every value must be present")
    array: npt.NDArray[Any] = values.to_numpy()
    whole = np.frombuffer(body, np.uint8)
    if np.may_share_memory(array, whole):  # Arrow's own views are read-only: torch warns of those
        array = np.frombuffer(body, array.dtype, array.size, array.ctypes.data - whole.ctypes.data)
    return array.reshape(len(column), size)
