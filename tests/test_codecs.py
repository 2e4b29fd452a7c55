"""Bytes to arrays and back: what is read is what was written, and what cannot be read is an error with a meaning."""

import contextlib
import gzip
import io
import json
import math
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.codecs import ANY_BINARY, arrow, image, json_body, npy, sniff
from service.codecs.compression import Inflater, compress
from service.errors import BadRequest, ServiceError, TooLarge, Unprocessable
from tests import wire
from tests.wire import any_rows, at_most_three, mutated, outcome

Body = bytes | bytearray


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (npy.write(np.ones((2, 3))), npy.MEDIA_TYPE),
        (arrow.write({"x": np.ones(2)}, {}), arrow.MEDIA_TYPE),
        (image.write_grid(np.ones((1, 1, 2, 2)), (0.0, 1.0)), "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
        (b'{"inputs": [[1.0]]}', ANY_BINARY),
        (b"", ANY_BINARY),
    ],
)
def test_a_file_is_told_by_its_first_bytes(body: bytes, media_type: str) -> None:
    assert sniff(body) == sniff(bytearray(body)) == media_type


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)


@st.composite
def nested(draw: st.DrawFn) -> list[Any]:
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    flat: list[Any] = draw(st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)))
    for size in reversed(shape[1:]):
        flat = [flat[i : i + size] for i in range(0, len(flat), size)]
    return flat


def as_lists(parsed: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """Numbers as lists of floats whichever way they were read."""
    rows, others = parsed
    with contextlib.suppress(ServiceError):
        rows = (rows if isinstance(rows, np.ndarray) else json_body.read_numbers(rows, "inputs")).tolist()
    return rows, others


def exactly(body: bytes) -> tuple[Any, dict[str, Any]]:
    values = json_body.read_object(body)
    if "inputs" not in values:
        raise Unprocessable("the body has no member 'inputs'")
    return as_lists((values.pop("inputs"), values))


json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(["", "a", "[[", "]]", "\0", "\\", "é", '"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "inputs", "\0"]), inner),
    max_leaves=8,
)
options = st.dictionaries(st.sampled_from(["a", "[[", "]]", "model", "\0", "\\"]), json_values, max_size=3)
objects = st.builds(lambda rows, others: {**others, "inputs": rows}, nested() | json_values, options)
json_bodies = st.builds(
    lambda value, ascii, separators: json.dumps(value, ensure_ascii=ascii, separators=separators).encode(),
    objects,
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")]),
)


@given(nested(), options)
def test_json_lists_of_numbers_are_the_array_that_python_reads_and_options_stay(rows: Any, others: Any) -> None:
    array, rest = json_body.read_rows(json.dumps({**others, "inputs": rows}).encode(), "inputs", any_rows)
    expected = np.array(rows, np.float64)
    if not isinstance(array, np.ndarray):  # the options are such that it is not plain where the rows end
        array = json_body.read_numbers(array, "inputs")
    np.testing.assert_array_equal(array, expected, strict=True)
    assert np.array_equal(np.signbit(array), np.signbit(expected))
    assert rest == json_body.read_object(json.dumps(others).encode())


@given(json_bodies | mutated(json_bodies))
@example(b'{"inputs": [[1, 2], [3, [4]]]}')
@example(b'{"inputs": [[1, 2], 3, [4]]}')
@example(b'{"inputs": [[1, 2], [3], [4, 5, 6]]}')
@example(b'{"inputs": [[[1], 2]]}')
@example(b'{"inputs": [[[1, 2]], [[3], [4]]]}')
@example(b'{"inputs": [[1]], "inputs": [[[2]]]}')
@example(b'{"inputs": [[1]], "inputs": "\\u0000"}')
@example(b'{"a": [[1]], "inputs": "\\u0000"}')
@example(b'{"a": {"inputs": [[1]]}}')
@example(b'{"inputs": "[[1]]"}')
@example(b'\xef\xbb\xbf{"inputs": [[1]]}')
@example(b'{"inputs": [[1]]} [[1]]')
@example(b'{"inputs": [[1, true], [2, null]]}')
def test_the_fast_way_through_json_takes_nothing_that_the_exact_way_reads_otherwise(body: bytes) -> None:
    assert outcome(lambda: as_lists(json_body.read_rows(body, "inputs", any_rows))) == outcome(lambda: exactly(body))


@pytest.mark.parametrize("shape", [(1, 30), (5, 3), (3, 1, 4, 4), (1, 1), (2, 1, 1)])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_json_rows_of_numbers_come_as_an_array(shape: tuple[int, ...], kind: type[Body]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    for text in (orjson.dumps(values.tolist()), json.dumps(values.tolist()).encode()):
        for body in (b'{"model":"a","inputs":%b}' % text, b'{"inputs":%b, "scores": ["all"]}' % text):
            rows, _ = json_body.read_rows(kind(body), "inputs", any_rows)
            assert isinstance(rows, np.ndarray)
            np.testing.assert_array_equal(rows, values, strict=True)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", BadRequest, "not valid JSON"),
        (b"[[1]]", BadRequest, "must be a JSON object, got a list"),
        (b'{"inputs": [[1]]', BadRequest, "not valid JSON"),
        (b'{"inputs": [[1]]}}', BadRequest, "not valid JSON"),
        (b'{"inputs": [[1e400]]}', BadRequest, "not valid JSON"),
        (b'{"inputs": [[NaN]]}', BadRequest, "not valid JSON"),
        (b'{"inputs": [[Infinity]]}', BadRequest, "not valid JSON"),
        (b'{"inputs": [[1]], "a": "\xff"}', BadRequest, "not valid JSON"),
        (b'{"inputs": ' + b"[[" * 10_000 + b"]]" * 10_000 + b"}", BadRequest, "not valid JSON"),
        (b'{"a": [[1]]}', Unprocessable, "the body has no member 'inputs'"),
    ],
)
def test_a_body_that_is_no_json_object_with_rows_is_refused(body: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        json_body.read_rows(body, "inputs", any_rows)


@pytest.mark.parametrize("rows", [[[1.0]] * 4, ["a"] * 4, [{"a": 1}] * 4])
def test_the_rows_of_json_are_counted_before_they_are_converted(rows: list[Any]) -> None:
    with pytest.raises(TooLarge, match="4 rows"):
        json_body.read_rows(orjson.dumps({"inputs": rows}), "inputs", at_most_three)


def test_large_numbers_of_json_are_the_nearest_floats() -> None:
    body = b'{"inputs": [[9007199254740993, 18446744073709551616, -0, 1e-400, %b]]}' % (b"9" * 300)
    rows, _ = json_body.read_rows(body, "inputs", any_rows)
    array = rows if isinstance(rows, np.ndarray) else json_body.read_numbers(rows, "inputs")
    np.testing.assert_array_equal(array, [[2.0**53, 2.0**64, 0.0, 0.0, 1e300]])


real_arrays = hnp.arrays(
    hnp.integer_dtypes(sizes=(8, 16, 32, 64)) | hnp.floating_dtypes(sizes=(16, 32, 64)),
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
)


@given(real_arrays)
def test_an_npy_array_is_read_as_it_was_written(array: Any) -> None:
    for body in (npy.write(array), wire.npy(array), wire.npy(np.asfortranarray(array))):
        read = npy.read(bytearray(body))
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()
    np.testing.assert_array_equal(np.load(io.BytesIO(npy.write(array))), array, strict=True)


@given(mutated(st.builds(npy.write, real_arrays)))
def test_any_bytes_are_an_npy_array_or_an_error_of_the_service(body: bytes) -> None:
    outcome(lambda: npy.read(body, at_most_three))


def test_the_data_of_an_npy_answer_is_a_view() -> None:
    array = np.arange(12.0).reshape(3, 4)
    header, data = npy.write_parts(array)
    assert np.shares_memory(np.frombuffer(data), array)
    assert bytes(header) + bytes(data) == wire.npy(array)


def test_the_rows_of_an_npy_array_are_counted_by_its_header() -> None:
    with pytest.raises(TooLarge, match="4 rows"):
        npy.read(npy.write(np.zeros((4, 2)))[:-8], at_most_three)


def inflated(body: bytes, encoding: str, limit: int, step: int) -> bytearray:
    inflater = Inflater(encoding, limit)
    for start in range(0, len(body), step):
        inflater.feed(body[start : start + step])
    return inflater.finish()


DEFLATED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
encodings = st.sampled_from(["gzip", "deflate"])
long = st.builds(lambda piece, times: piece * times, st.binary(max_size=20), st.sampled_from([1, 10, 2**14, 2**18]))


@given(encodings, long, st.sampled_from([1000, 2**16, 2**30]))
def test_a_compressed_body_is_inflated_however_it_arrives(encoding: str, data: bytes, step: int) -> None:
    assert inflated(DEFLATED[encoding](data), encoding, len(data), step) == data
    assert inflated(compress([data[:3], data[3:]], encoding), encoding, len(data), step) == data


@given(encodings, long.filter(bool), st.integers(0, 10**7))
def test_a_body_that_inflates_beyond_the_limit_is_refused(encoding: str, data: bytes, limit: int) -> None:
    with pytest.raises(TooLarge, match=r"limit of \d+ bytes \(GLOW_MAX_BODY_BYTES\)"):
        inflated(DEFLATED[encoding](data), encoding, limit % len(data), 2**30)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.integers(1, 40))
def test_the_members_of_a_gzip_body_are_one_body(parts: list[bytes], step: int) -> None:
    assert inflated(b"".join(map(gzip.compress, parts)), "gzip", 250, step) == b"".join(parts)


@given(encodings, long, st.integers(0, 10**6), st.integers(1, 2**16))
def test_a_compressed_body_that_is_cut_or_has_a_tail_is_refused(
    encoding: str, data: bytes, cut: int, step: int
) -> None:
    whole = DEFLATED[encoding](data)
    for wrong in (whole[: cut % len(whole)], whole + b"x", whole + b"\0"):
        with pytest.raises(BadRequest):
            inflated(wrong, encoding, len(data), max(step, len(wrong) // 100))


@given(encodings, mutated(st.builds(gzip.compress, st.binary(max_size=50))))
def test_any_bytes_are_inflated_or_an_error_of_the_service(encoding: str, body: bytes) -> None:
    outcome(lambda: inflated(body, encoding, 60, 7))


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(2**26))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        inflated(bomb, "gzip", 2**20, 2**30)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()
