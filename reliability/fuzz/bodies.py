"""Bodies of requests: JSON, npy, Arrow, and compressed ones."""

from __future__ import annotations

import ast
import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from reliability.fuzz.target import IMAGES, MIXED, NAMES, Target, replaced
from service.codecs import arrow, compression, json_body, npy
from service.errors import ServiceError, TooLarge
from service.rows import (
    inputs_from_array,
    inputs_from_arrow,
    inputs_from_json,
    latents_from_array,
    latents_from_arrow,
    latents_from_json,
)

MAX_ROWS = 64
_ROW = ["green", 0.5, 3, 7, 0.5]


def check_rows(num: int) -> None:
    """Refuse more rows than a service of these limits takes."""
    if num > MAX_ROWS:
        raise TooLarge(f"{num} rows")


def check_inputs(rows: Any, shape: tuple[int, ...]) -> None:  # noqa: ANN401 (any array)
    """Assert what every model may rely on."""
    assert shape in (MIXED.shape, IMAGES.shape), shape
    assert rows.shape[1:] == shape, rows.shape
    assert 0 < len(rows) <= MAX_ROWS, len(rows)
    assert rows.dtype in (np.float32, np.float64), rows.dtype
    assert np.isfinite(rows).all()


def read_json(body: bytes) -> None:
    """The fast way takes nothing that the exact one reads otherwise, nor any that Python's own reader does."""

    def fast() -> tuple[object, dict[str, Any]]:
        return json_body.read_rows(body, "inputs", check_rows)

    def exact() -> tuple[object, dict[str, Any]]:
        with replaced(json_body, "_split", gives_up):
            return json_body.read_rows(body, "inputs", check_rows)

    (rows, others), (same, same_others) = alike(fast, exact)
    with suppress(RecursionError):  # of Python's reader
        python = json.loads(body, parse_int=_as_orjson)
        assert python.pop("inputs") == same
        assert python == others == same_others
    if isinstance(rows, np.ndarray):
        np.testing.assert_array_equal(rows, json_body.read_numbers(same, "inputs").astype(np.float64), strict=True)
    _check_rows_of(
        lambda: inputs_from_json(fast()[0], MIXED),
        lambda: inputs_from_json(fast()[0], IMAGES),
        lambda: latents_from_json(fast()[0], MIXED),
    )


def gives_up(*_: object) -> None:
    """Stands for a fast way to read."""


def _as_orjson(text: str) -> int | float:
    """A whole number, which is a float where 64 bits are not enough."""
    return int(text) if len(text) <= 20 and -(2**63) <= int(text) < 2**64 else float(text)


def _check_rows_of(*readers: Callable[[], Any]) -> None:
    """Check whatever rows come of it. Raises the last ServiceError where none come."""
    refused, taken = None, False
    for read in readers:
        try:
            rows = read()
        except ServiceError as error:
            refused = error
        else:
            check_inputs(rows, rows.shape[1:])
            taken = True
    if refused is not None and not taken:
        raise refused


def alike(*readers: Callable[[], Any]) -> list[Any]:
    """Results of ways to read one thing, all of which must refuse it if one does. Raises that ServiceError."""
    results, refused = [], []
    for read in readers:
        try:
            results.append(read())
        except ServiceError as error:
            refused.append(error)
    assert not refused or not results, f"one way reads what the other refuses: {refused}"
    if refused:
        assert len(set(map(repr, refused))) == 1, refused
        raise refused[0]
    return results


def read_npy(body: bytes) -> None:
    """An array is what NumPy itself reads, and is written as it was read."""
    array = npy.read(bytearray(body), check_rows)
    own = np.load(io.BytesIO(body), allow_pickle=False)
    assert (array.dtype, array.shape) == (own.dtype, own.shape)
    assert array.tobytes() == own.tobytes()
    assert npy.read(npy.write(array)).tobytes() == array.tobytes()
    _check_rows_of(
        lambda: inputs_from_array(array, MIXED),
        lambda: inputs_from_array(array, IMAGES),
        lambda: latents_from_array(array, MIXED),
    )


def repair_npy(body: bytes) -> bytes:
    """Let the length of the header be that of its line, and the data as long as it says."""
    end = body.find(b"\n", 10) + 1
    if not body.startswith(b"\x93NUMPY\1\0") or not end:
        return body
    try:
        about = ast.literal_eval(body[10:end].decode("latin-1"))
        size = int(np.prod(about["shape"])) * np.dtype(about["descr"]).itemsize
    except Exception:
        size = len(body) - end
    size = min(max(0, size), 4096)
    return body[:8] + struct.pack("<H", end - 10) + body[10:end] + body[end : end + size].ljust(size, b"\0")


def read_arrow(body: bytes) -> None:
    """Columns are as long as each other and what Arrow reads, and those of numbers are written as they were read."""
    columns = arrow.read(bytearray(body), check_rows)
    with pa.ipc.open_stream(body) as reader:
        table = reader.read_all()
    assert list(columns) == table.column_names
    arrays = {}
    for name, column in columns.items():
        values = np.array(column.names, object)[column.codes] if isinstance(column, arrow.Strings) else column
        assert len(values) == table.num_rows <= MAX_ROWS
        if not isinstance(column, arrow.Strings) and column.size:
            arrays[name] = column
        elif isinstance(column, arrow.Strings):
            assert values.tolist() == [str(value) for value in table[name].to_pylist()]
    for name, again in arrow.read(arrow.write(arrays, {}), check_rows).items() if arrays else ():
        np.testing.assert_array_equal(again, arrays[name], strict=True)
    _check_rows_of(
        lambda: inputs_from_arrow(columns, MIXED),
        lambda: inputs_from_arrow(columns, IMAGES),
        lambda: latents_from_arrow(columns, MIXED),
    )


def read_compressed(data: bytes) -> None:
    """What is inflated does not depend on how it arrives, is what zlib makes of it, and is within the limit."""
    encoding, body = compression.ENCODINGS[bool(data[:1] > b"\x7f")], data[1:]

    def inflated(step: int) -> bytes:
        inflater = compression.Inflater(encoding, 2**16)
        for start in range(0, len(body), step):
            inflater.feed(body[start : start + step])
        return bytes(inflater.finish())

    whole, same = alike(lambda: inflated(2**20), lambda: inflated(7))
    assert whole == same == (gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body))
    assert len(whole) <= 2**16
    again = compression.Inflater(encoding, 2**16)
    again.feed(compression.compress([whole], encoding))
    assert again.finish() == whole


def repair_gzip(data: bytes) -> bytes:
    """Let the checksum and the size of a gzip stream be those of what it inflates to."""
    try:
        plain = zlib.decompressobj(31).decompress(data[1:-8], 2**17)
    except zlib.error:
        return data
    return data[:-8] + struct.pack("<II", zlib.crc32(plain), len(plain))


def json_seeds() -> Iterator[bytes]:
    """Bodies that the service answers, and some near them."""
    records = [dict(zip(NAMES, _ROW, strict=True))] * 2
    yield json.dumps({"inputs": [[1, 0.5, 3, 7, 0.5]]}).encode()
    yield json.dumps({"model": "tiny-mixed", "inputs": [_ROW, _ROW], "alpha": 0.1, "scores": ["all"]}).encode()
    yield json.dumps({"inputs": records, "explain": True}, indent=1).encode()
    yield json.dumps({"inputs": np.arange(64).reshape(1, 8, 8).clip(0, 15).tolist()}).encode()
    yield json.dumps({"dequantization": {"samples": 2, "seed": 1}, "inputs": [[[[1.5] * 8] * 8]]}).encode()
    yield b'{"inputs": [[1e308, -1.5E-3, 9007199254740993, -0, true], [null, "\\u00e9\\ud83d\\ude00", [], {}, 2]]}'
    yield b'{"a": "[[", "inputs": [[1], [2, 3]], "inputs": [[4]], "\\u0000": "]]"}'


def npy_seeds() -> Iterator[bytes]:
    """Arrays of most kinds."""
    for dtype in ("<f8", ">f4", "<f2", "|u1", "<i8", "|b1", "<U2"):
        yield npy_bytes(np.zeros((2, 5), dtype))
    yield npy_bytes(np.asfortranarray(np.arange(10.0).reshape(2, 5)))
    yield npy_bytes(np.ones((1, 1, 8, 8), np.uint8))
    yield npy_bytes(np.float64(3))


def npy_bytes(array: Any) -> bytes:  # noqa: ANN401 (what NumPy takes)
    """An array as NumPy writes it."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def arrow_bytes(table: pa.Table, **options: Any) -> bytes:  # noqa: ANN401 (of many kinds)
    """A table as Arrow writes it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue())


def table_of_rows(num: int = 3) -> pa.Table:
    """Rows of the mixed model."""
    return pa.table({name: [value] * num for name, value in zip(NAMES, _ROW, strict=True)})


def arrow_seeds() -> Iterator[bytes]:
    """Tables, images, codes, and what is refused."""
    table = table_of_rows()
    yield arrow_bytes(table)
    yield arrow_bytes(table.set_column(0, "color", table["color"].dictionary_encode()))
    yield arrow_bytes(table.set_column(0, "color", table["color"].cast(pa.string_view())))
    yield arrow_bytes(table, compression="lz4")
    yield arrow.write({"latents": np.ones((2, 5), np.float32)}, {"model": "m"})
    yield arrow.write({"inputs": np.ones((1, 64), np.uint8)}, {})
    yield arrow_bytes(pa.table({"inputs": [[1.0] * 5, [2.0] * 5]}))
    yield arrow_bytes(pa.table({"a": [True, None], "b": pa.array([1, 2], pa.float16())}))


def compressed_seeds() -> Iterator[bytes]:
    """Streams of both encodings, of several members, and one that inflates to more than the limit."""
    for body in (b"", b'{"inputs": [[1, 2]]}', bytes(2**16), bytes(2**18)):
        yield b"\0" + gzip.compress(body)
        yield b"\xff" + zlib.compress(body)
    yield b"\0" + gzip.compress(b"a") + gzip.compress(b"b" * 300)


JSON_WORDS = (b'{"inputs": [[', b"]]", b"], [", b"true", b"null", b"1e400", b"-0", b"\\u0000", b"\\ud800", b'"model"')
TARGETS = [
    Target("json", read_json, json_seeds, words=(*JSON_WORDS, b'"color"', b'"green"'), holds_json=True),
    Target(
        "npy",
        read_npy,
        npy_seeds,
        words=(b"\x93NUMPY\1\0", b"'descr': '<f8'", b"'fortran_order': True", b"'shape': (2, 5), ", b"(", b",)", b"-1"),
        repair=repair_npy,
    ),
    Target("arrow", read_arrow, arrow_seeds, words=(b"\xff\xff\xff\xff", b"ARROW:extension:name", b"\xff\xff\xff\x7f")),
    Target("compressed", read_compressed, compressed_seeds, repair=repair_gzip),
]
