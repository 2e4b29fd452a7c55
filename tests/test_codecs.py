"""Bytes to arrays and back: what is read is what was written, and what cannot be read is an error with a meaning."""

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.codecs import json_body
from service.errors import BadRequest, ServiceError, TooLarge, Unprocessable

Body = bytes | bytearray


def any_rows(_: int) -> None:
    """No limit of rows."""


def at_most_three(num: int) -> None:
    if num > 3:
        raise TooLarge(f"{num} rows")


def mutated(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Valid bytes with some of them cut, changed or followed by others."""
    cuts = st.tuples(st.integers(0, 10**6), st.integers(0, 8), st.binary(max_size=8))

    def cut(data: bytes, start: int, length: int, patch: bytes) -> bytes:
        start %= len(data) + 1
        return data[:start] + patch + data[start + length :]

    return st.builds(lambda data, where: cut(data, *where), valid, cuts) | st.binary(max_size=200)


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)


@st.composite
def nested(draw: st.DrawFn) -> list[Any]:
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    flat: list[Any] = draw(st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)))
    for size in reversed(shape[1:]):
        flat = [flat[i : i + size] for i in range(0, len(flat), size)]
    return flat


def outcome(read: Callable[[], object]) -> object:
    """What a reader gives, or the error that it raises; any but a ServiceError is raised on."""
    try:
        return repr(read())
    except ServiceError as error:
        return type(error), str(error)


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
    assert rest == others


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
