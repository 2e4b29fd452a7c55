"""JSON: objects to options and arrays, and arrays to JSON, without a Python object per number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from service.codecs import MAX_DIMS
from service.errors import BadRequest, TooLarge, Unprocessable

MEDIA_TYPE = "application/json"
_OTHER_VALUES = 2**16  # beside those of rows
_HOLE = "\0"  # stands for the rows where the rest is parsed; see _split


def read_object(body: bytes | bytearray) -> dict[str, Any]:
    """Parse a JSON object. Raises BadRequest; NaN, Infinity and numbers over 1.8e308 are not JSON."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"the body must be a JSON object, got {kind_of(value)}")
    return value


def check_values(body: bytes | bytearray, size: int, max_rows: int, num_dims: int) -> None:
    """Raise TooLarge where the first bytes of a body hold more values as JSON than so many rows, before it is parsed.

    Parsed, a value may take a hundred bytes. Each follows a comma, or begins a list or an object.
    """
    limit = 2 * max_rows * num_dims + _OTHER_VALUES  # 2: pixels in lists of their own
    if size > limit and (most := sum(body.count(sign, 0, size) for sign in (b",", b"[", b"{"))) > limit:
        raise TooLarge(
            f"JSON of up to {most} values is over the limit of {limit}, twice those of {max_rows} rows of {num_dims} "
            "(GLOW_MAX_REQUEST_ROWS)"
        )


def read_rows(body: bytes | bytearray, field: str, check_rows: Callable[[int], None]) -> tuple[object, dict[str, Any]]:
    """Parse a JSON object into the rows that one member holds and its other members, the options.

    Nested lists of numbers that are no ragged ones come as an array of float64. Everything else, strings, records and
    what is wrong, comes as Python objects, for ``read_numbers`` to name the first wrong position. Of members of the
    same name the last counts. ``check_rows`` gets the number of rows before they are converted, and may raise. Raises
    BadRequest for what is no JSON object, Unprocessable where it has no such member.
    """
    split = _split(body, field)
    if split is not None:
        array = _fast_numbers(body, *split[:2], check_rows)
        if array is not None:
            return array, split[2]
    values = read_object(body)
    if field not in values:
        raise Unprocessable(f"the body has no member {field!r}")
    rows = values.pop(field)
    if isinstance(rows, list):
        check_rows(len(rows))
    return rows, values


def read_numbers(value: object, name: str, whole: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """Turn nested lists of numbers into an array: float64, or ``whole`` where all are whole and fit.

    Raises Unprocessable naming the first wrong position.
    Goes through the lists level by level and looks at the types of a level at once, before NumPy sees any of it: a
    string among numbers would make an array of strings as long as the longest, and a boolean would pass for a number.
    """
    if not isinstance(value, list):
        raise Unprocessable(f"{name} must be a list, got {kind_of(value)}")
    level, shape = value, [len(value)]
    while set(map(type, level)) == {list}:
        lengths = list(map(len, level))
        if lengths.count(lengths[0]) != len(lengths):
            first = next(i for i, length in enumerate(lengths) if length != lengths[0])
            raise Unprocessable(
                f"{name} is ragged: {_path(name, first, shape)} is a list of {lengths[first]}, "
                f"but {_path(name, 0, shape)} is a list of {lengths[0]}"
            )
        if len(shape) == MAX_DIMS:
            raise Unprocessable(f"{name} is nested too deeply; {MAX_DIMS} levels of lists are the most")
        shape.append(lengths[0])
        level = list(chain.from_iterable(level))
    types = set(map(type, level))
    if not types <= {int, float}:
        if type(level[0]) in (list, dict, str):  # then it is rather what differs from the first that is wrong
            first = next((i for i, item in enumerate(level) if type(item) is not type(level[0])), 0)
            wanted = kind_of(level[0]) if first else "a number"
        else:
            first = next(i for i, item in enumerate(level) if type(item) not in (int, float))
            wanted = "a number"
        raise Unprocessable(f"{_path(name, first, shape)} must be {wanted}, got {kind_of(level[first])}")
    if types == {int}:
        with contextlib.suppress(OverflowError):
            return np.array(level, whole).reshape(shape)
    return np.array(level, np.float64).reshape(shape)


def _split(body: bytes | bytearray, field: str) -> tuple[int, int, dict[str, Any]] | None:
    """Where the lists that ``field`` is begin and end, and the other members; None where that is not plain to see.

    What lies between the first ``[[`` and the last ``]]`` is replaced by a string of one NUL, which JSON can write by
    an escape alone: where the rest has no other escape, the member that reads as NUL is what was replaced.
    """
    start, end = body.find(b"[["), body.rfind(b"]]") + 2
    if not 0 <= start < end:
        return None
    rest = b'"\\u0000"'.join((body[:start], body[end:]))
    if rest.count(b"\\") != 1:
        return None
    try:
        members = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(members, dict) or members.pop(field, None) != _HOLE:
        return None
    return start, end, members


def _fast_numbers(
    body: bytes | bytearray, start: int, end: int, check_rows: Callable[[int], None]
) -> npt.NDArray[np.float64] | None:
    """Nested lists of numbers, all of one length a level, as an array; None for anything else, and for empty ones.

    The parser flattens whatever lists it is given, so the lists are measured here. Every call has a parser of its own:
    it costs 0.2 microseconds, and a kept one would serve one thread alone and hold the memory of the largest body.
    """
    try:
        array: Any = simdjson.Parser().parse(memoryview(body)[start:end])
        check_rows(len(array))
        form = measure(array)
        if form is None or body.count(b"[", start, end) != form[1]:  # a list among the numbers of a row
            return None
        return np.frombuffer(array.as_buffer(of_type="d")).reshape(form[0])
    except (ValueError, TypeError, IndexError, RuntimeError, MemoryError):  # the exact way tells what is wrong where
        return None


def measure(array: simdjson.Array) -> tuple[list[int], int] | None:
    """Shape of nested lists and how many lists they are; None for ragged ones.

    Looks at the first entry of a level alone, so that lists among numbers show in the number of lists alone. Raises
    IndexError for lists that are empty.
    """
    shape: list[int] = []
    level: list[Any] = [array]
    num_lists = 0
    while len(shape) < MAX_DIMS:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            return None
        shape.append(lengths.pop())
        num_lists += len(level)
        if not isinstance(level[0][0], simdjson.Array):
            break
        level = list(chain.from_iterable(level))
    return shape, num_lists


def write(values: dict[str, Any]) -> bytes:
    """Serialise an object whose values may be arrays."""
    ready = {
        key: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value for key, value in values.items()
    }
    return orjson.dumps(ready, option=orjson.OPT_SERIALIZE_NUMPY)


def write_error(text: str, code: str, request_id: str) -> bytes:
    """The one shape that all errors have."""
    return write({"error": text, "code": code, "request_id": request_id})


def _path(name: str, index: int, shape: list[int]) -> str:
    """Name the item at an index of the flattened lists."""
    return name + "".join(f"[{i}]" for i in np.unravel_index(index, shape))


def kind_of(value: object) -> str:
    """Name what a JSON value is."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
