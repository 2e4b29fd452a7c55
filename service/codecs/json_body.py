"""JSON: objects to options and arrays, and arrays to JSON without a Python object per number."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from service.errors import BadRequest, Unprocessable

MEDIA_TYPE = "application/json"
_MAX_DIMS = 4  # (B, C, H, W)


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
    """Turn nested lists of numbers into an array. Raises Unprocessable naming the first wrong position.

    Goes through the lists level by level and looks at the types of a level at once, before NumPy sees any of it: a
    string among numbers would make an array of strings as long as the longest, and a boolean would pass for a number.
    """
    if not isinstance(value, list):
        raise Unprocessable(f"{name} must be a list, got {_kind(value)}")
    level, shape = value, [len(value)]
    while set(map(type, level)) == {list}:
        lengths = list(map(len, level))
        if lengths.count(lengths[0]) != len(lengths):
            first = next(i for i, length in enumerate(lengths) if length != lengths[0])
            raise Unprocessable(
                f"{name} is ragged: {_path(name, first, shape)} is a list of {lengths[first]}, "
                f"but {_path(name, 0, shape)} is a list of {lengths[0]}"
            )
        if len(shape) == _MAX_DIMS:
            raise Unprocessable(f"{name} is nested too deeply; {_MAX_DIMS} levels of lists are the most")
        shape.append(lengths[0])
        level = list(chain.from_iterable(level))
    if not set(map(type, level)) <= {int, float}:
        first = next(i for i, item in enumerate(level) if type(item) not in (int, float))
        raise Unprocessable(f"{_path(name, first, shape)} must be a number, got {_kind(level[first])}")
    return np.array(level, np.float64).reshape(shape)


def write(values: dict[str, Any]) -> bytes:
    """Serialise an object whose values may be arrays."""
    ready = {
        key: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value for key, value in values.items()
    }
    return orjson.dumps(ready, option=orjson.OPT_SERIALIZE_NUMPY)


def _path(name: str, index: int, shape: list[int]) -> str:
    """Name the item at an index of the flattened lists."""
    return name + "".join(f"[{i}]" for i in np.unravel_index(index, shape))


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
