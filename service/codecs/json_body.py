"""JSON: objects to options and arrays, without a Python object per number on the way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from service.errors import BadRequest, Unprocessable

MEDIA_TYPE = "application/json"
_MAX_DEPTH = 6  # (B, C, H, W), and some to see that a body is deeper


def read_object(body: bytes | bytearray) -> dict[str, Any]:
    """Parse a JSON object. Raises BadRequest; NaN, Infinity and numbers over 1.8e308 are not JSON."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"the body must be a JSON object, got {_kind(value)}")
    return value


def read_numbers(value: object, name: str) -> npt.NDArray[np.float64]:
    """Turn nested lists of numbers into an array. Raises Unprocessable naming the first wrong position."""
    if not isinstance(value, list):
        raise Unprocessable(f"{name} must be a list, got {_kind(value)}")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # ragged
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf" and array.size + len(value) > 0:
        raise Unprocessable(_explain(value, name))
    return array.astype(np.float64)


def may_hide_booleans(body: bytes | bytearray, options: dict[str, Any]) -> bool:
    """Whether the text holds more booleans than its options do; NumPy would take one among numbers for 0 or 1."""
    return body.count(b"true") + body.count(b"false") > sum(isinstance(option, bool) for option in options.values())


def refuse_booleans(value: object, name: str) -> None:
    """Raise Unprocessable naming the first boolean in nested lists."""
    for level in _levels(value, name):
        for path, item in level:
            if isinstance(item, bool):
                raise Unprocessable(f"{path} must be a number, got {_kind(item)}")


def write(values: dict[str, Any]) -> bytes:
    """Serialise an object whose values may be arrays."""
    ready = {
        key: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value for key, value in values.items()
    }
    return orjson.dumps(ready, option=orjson.OPT_SERIALIZE_NUMPY)


def _explain(value: list[Any], name: str) -> str:
    """Find what keeps nested lists from being an array of numbers."""
    for level in _levels(value, name):
        lists = [(path, item) for path, item in level if isinstance(item, list)]
        for path, item in level:
            if not isinstance(item, list | int | float) or isinstance(item, bool):
                return f"{path} must be a number, got {_kind(item)}"
            if lists and (not isinstance(item, list) or len(item) != len(lists[0][1])):
                length = f"a list of {len(item)}" if isinstance(item, list) else "a number"
                return f"{name} is ragged: {path} is {length}, but {lists[0][0]} is a list of {len(lists[0][1])}"
    return f"{name} is nested too deeply"


def _levels(value: object, name: str) -> Iterator[list[tuple[str, Any]]]:
    """Walk nested lists breadth first, each item with its path, as deep as any array goes."""
    level: list[tuple[str, Any]] = [(name, value)]
    for _ in range(_MAX_DEPTH):
        yield level
        level = [
            (f"{path}[{i}]", item) for path, items in level if isinstance(items, list) for i, item in enumerate(items)
        ]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
