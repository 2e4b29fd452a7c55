"""The client's end of the Open Inference Protocol: named arrays to a body, and an answer's body to named arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service import headers
from service.client.errors import InvalidRequest, ServiceFailed
from service.client.steps import Answer
from service.oip.tensors import ANSWERED, MEDIA_TYPE, datatype_of

Array = npt.NDArray[Any]
_ALIGNED = 8  # bytes; then the service copies nothing


def _plain(value: object) -> object:
    """A scalar of NumPy as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is none of them")


_ENCODER = json.JSONEncoder(allow_nan=False, default=_plain)


class Tensors(NamedTuple):
    """An answer: arrays by name, what was said beside them, and the version of the model."""

    arrays: dict[str, Array]
    parameters: dict[str, Any]
    version: str


def write(inputs: Mapping[str, Array], parameters: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A request for all outputs in binary: body and headers. Raises InvalidRequest for options that are no JSON."""
    tensors, buffers = [], []
    for name, array in inputs.items():
        about = {"name": name, "datatype": datatype_of(array.dtype), "shape": array.shape}
        tensors.append({**about, "parameters": {"binary_data_size": array.nbytes}})
        buffers.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    members = {"inputs": tensors, "parameters": {"binary_data_output": True, **parameters}}
    try:
        head = _ENCODER.encode(members).encode()
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"options must be finite numbers, names and lists of names: {error}") from error
    head += b" " * (-len(head) % _ALIGNED)
    return b"".join([head, *buffers]), {headers.JSON_SIZE: str(len(head)), "content-type": MEDIA_TYPE}


def read(answer: Answer) -> Tensors:
    """Named arrays of an answer, which are views of it. Raises ServiceFailed."""
    try:
        start = int(answer.headers[headers.JSON_SIZE])
        members = json.loads(answer.content[:start])
        arrays = {}
        for tensor in members["outputs"]:
            dtype, shape = ANSWERED[tensor["datatype"]], tensor["shape"]
            arrays[tensor["name"]] = np.frombuffer(answer.content, dtype, math.prod(shape), start).reshape(shape)
            start += tensor["parameters"]["binary_data_size"]
        return Tensors(arrays, dict(members.get("parameters", {})), str(members["model_version"]))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ServiceFailed("the answer holds something else than tensors", status=answer.status) from error
