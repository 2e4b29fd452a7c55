"""Bodies of requests: JSON, npy, Arrow, pictures, compressed ones, and those of the Open Inference Protocol."""

from __future__ import annotations

import ast
import base64
import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from PIL import Image

from reliability.fuzz.target import IMAGES, MIXED, NAMES, Target
from service.client import tensors
from service.client.steps import Answer
from service.codecs import arrow, compression, image, json_body, npy
from service.errors import BadRequest, ServiceError, TooLarge
from service.headers import JSON_SIZE
from service.oip import codec
from service.oip.codec import InferRequest, Output
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
_RANGE = (0.0, 255.0)  # in which a picture's bytes are the values


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
        with mock.patch.object(json_body, "_split", _nothing):
            return json_body.read_rows(body, "inputs", check_rows)

    (rows, others), (same, same_others) = _alike(fast, exact)
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


def _nothing(*_: object) -> None:
    """Stands for a fast way that gives up."""


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


def _alike(*readers: Callable[[], Any]) -> list[Any]:
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


def read_picture(data: bytes) -> None:
    """A picture is of the wanted size, and its bytes are those that are written of it."""
    for shape in ((1, 8, 8), (3, 8, 8)):
        pixels = image.read(data, shape, _RANGE, "the image")
        assert pixels.shape == shape
        assert pixels.dtype == np.float32
        assert np.isin(pixels, np.arange(256)).all()
        np.testing.assert_array_equal(image.read(image.write_grid(pixels[None], _RANGE), shape, _RANGE, ""), pixels)


def repair_png(data: bytes) -> bytes:
    """Let the checksums of a PNG's chunks fit what is in them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        size = min(int.from_bytes(data[at : at + 4], "big"), max(0, len(data) - at - 12))
        chunk = data[at + 4 : at + 8 + size]
        parts.append(struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        at += 12 + size
    return b"".join(parts)


def read_pictures_in_json(text: bytes) -> None:
    """Strings are pictures in base64, or refused; what they are is what the picture alone is."""
    rows = inputs_from_json(text.decode("utf-8", "replace").split("\n"), IMAGES)
    check_inputs(rows, IMAGES.shape)
    for row, each in zip(rows, text.split(b"\n"), strict=True):
        np.testing.assert_array_equal(image.read(base64.b64decode(each), (1, 8, 8), (0, 15), ""), row)


def read_compressed(data: bytes) -> None:
    """What is inflated does not depend on how it arrives, is what zlib makes of it, and is within the limit."""
    encoding, body = compression.ENCODINGS[bool(data[:1] > b"\x7f")], data[1:]

    def inflated(step: int) -> bytes:
        inflater = compression.Inflater(encoding, 2**16)
        for start in range(0, len(body), step):
            inflater.feed(body[start : start + step])
        return bytes(inflater.finish())

    whole, same = _alike(lambda: inflated(2**20), lambda: inflated(7))
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


def read_oip(data: bytes) -> None:
    """Two bytes of a size of JSON, or 65535 for none, and a body: both ways to parse it agree; outputs come back."""
    size, body = int.from_bytes(data[:2], "big"), bytearray(data[2:])
    json_size = None if size == 0xFFFF else size

    def exact() -> InferRequest:
        with mock.patch.object(codec, "_parse_fast", _nothing):
            return codec.read(body, json_size, check_rows)

    request, same = _alike(lambda: codec.read(body, json_size, check_rows), exact)
    for name in ("outputs", "parameters", "id", "timeout_s", "binary_output"):
        assert getattr(request, name) == getattr(same, name), name
    assert request.inputs.keys() == same.inputs.keys()
    outputs = []
    for name, array in request.inputs.items():
        np.testing.assert_array_equal(array, same.inputs[name], strict=True)
        assert array.flags.writeable
        assert array.flags.aligned
        outputs.append(Output(name, array, True))
    parts, start = codec.write({"model_name": "a", "model_version": "1"}, outputs)
    if outputs:
        read = tensors.read(Answer(200, {JSON_SIZE: str(start)}, bytearray(b"".join(parts))))
        for name, array in request.inputs.items():
            assert read.arrays[name].tobytes() == array.tobytes()


def repair_oip(data: bytes) -> bytes:
    """Let the size of the JSON be where it ends."""
    if data[:2] == b"\xff\xff":
        return data
    body = data[2:]
    try:
        end = json.JSONDecoder().raw_decode(body.decode("latin-1"))[1]
    except (ValueError, RecursionError):
        end = body.rfind(b"}") + 1
    end += len(body[end:]) - len(body[end:].lstrip(b" "))
    return end.to_bytes(2, "big") + body


def read_oip_raw(body: bytes) -> None:
    """A body that is one tensor is as many rows as it has bytes for."""
    for datatype in ("FP64", "UINT8", "FP16"):
        array = codec.read_raw(body, "x", datatype, [5]).inputs["x"]
        assert array.tobytes() == body
        assert array.shape[1:] == (5,)


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


def npy_bytes(array: Any) -> bytes:  # noqa: ANN401
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


def picture_bytes(mode: str, kind: str, size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    """A picture of some pixels."""
    stream = io.BytesIO()
    grey = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1]) * 3)
    grey.convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def picture_seeds() -> Iterator[bytes]:
    """PNG and JPEG of all modes that are read, and some that are not."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield picture_bytes(mode, "PNG")
    for mode in ("L", "RGB", "CMYK"):
        yield picture_bytes(mode, "JPEG")
    yield picture_bytes("L", "JPEG", progressive=True)
    yield picture_bytes("L", "PNG", transparency=3, optimize=True)
    yield picture_bytes("L", "PNG", (9, 8))


def picture_texts() -> Iterator[bytes]:
    """Pictures in base64, one a line."""
    texts = [base64.b64encode(data) for data in picture_seeds()]
    yield from texts[:4]
    yield b"\n".join(texts[1:3])


def compressed_seeds() -> Iterator[bytes]:
    """Streams of both encodings, of several members, and one that inflates to more than the limit."""
    for body in (b"", b'{"inputs": [[1, 2]]}', bytes(2**16), bytes(2**18)):
        yield b"\0" + gzip.compress(body)
        yield b"\xff" + zlib.compress(body)
    yield b"\0" + gzip.compress(b"a") + gzip.compress(b"b" * 300)


def oip_seeds() -> Iterator[bytes]:
    """Requests in JSON and in binary."""
    x = np.ones((2, 5))
    body, headers = tensors.write({"x": x}, {"alpha": 0.1, "scores": "all"})
    yield int(headers[JSON_SIZE]).to_bytes(2, "big") + body
    body, headers = tensors.write({"n": np.array([2]), "temperature": np.array([0.5], np.float32)}, {"seed": 1})
    yield int(headers[JSON_SIZE]).to_bytes(2, "big") + body
    tensor = {"name": "x", "datatype": "FP64", "shape": [2, 5], "data": x.tolist()}
    outputs = [{"name": "score", "parameters": {"binary_data": True}}]
    about = {"timeout": 10, "priority": 1, "triton_a": 1, "binary_data_output": False}
    for request in (
        {"id": "a", "inputs": [tensor], "outputs": outputs, "parameters": about},
        {"inputs": [{**tensor, "data": x.ravel().tolist(), "parameters": {"content_type": "np"}}]},
        {"inputs": [{**tensor, "datatype": "INT8", "data": [[1, -2, 3, 4, 127]] * 2}]},
        {"inputs": [{**tensor, "datatype": "UINT64", "shape": [1], "data": [2**64 - 1]}]},
    ):
        yield b"\xff\xff" + json.dumps(request).encode()


def raw_seeds() -> Iterable[bytes]:
    """Rows of numbers."""
    return [np.arange(10.0).tobytes(), np.arange(5.0).tobytes(), b"\0" * 40]


_JSON_WORDS = (b'{"inputs": [[', b"]]", b"], [", b"true", b"null", b"1e400", b"-0", b"\\u0000", b"\\ud800", b'"model"')
_OIP_WORDS = (
    *(b'"name" "datatype" "shape" "data" "parameters" "binary_data_size" "inputs" "outputs" "binary_data"'.split()),
    *(b'"id" "timeout" "content_type" "FP16" "UINT64" "priority" "triton_a" "binary_data_output"'.split()),
)
TARGETS = [
    Target("json", read_json, json_seeds, words=(*_JSON_WORDS, b'"color"', b'"green"'), holds_json=True),
    Target(
        "npy",
        read_npy,
        npy_seeds,
        words=(b"\x93NUMPY\1\0", b"'descr': '<f8'", b"'fortran_order': True", b"'shape': (2, 5), ", b"(", b",)", b"-1"),
        repair=repair_npy,
    ),
    Target("arrow", read_arrow, arrow_seeds, words=(b"\xff\xff\xff\xff", b"ARROW:extension:name", b"\xff\xff\xff\x7f")),
    Target("picture", read_picture, picture_seeds, words=(b"IHDR", b"PLTE", b"tRNS", b"zTXt"), repair=repair_png),
    Target("picture_base64", read_pictures_in_json, picture_texts, words=(b"iVBORw0KGgo", b"=", b"\n")),
    Target("compressed", read_compressed, compressed_seeds, repair=repair_gzip),
    Target("oip", read_oip, oip_seeds, words=(*_JSON_WORDS, *_OIP_WORDS), repair=repair_oip, holds_json=True),
    Target("oip_raw", read_oip_raw, raw_seeds, refusals=(BadRequest,)),
]
