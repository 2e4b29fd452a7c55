"""Requests and answers of the Open Inference Protocol: bytes to named arrays and back.

An object of JSON, behind which binary tensors follow in the order in which it names them: little-endian, row-major,
without padding (Triton's extension binary_tensor_data). Knows neither HTTP nor what models take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from service.codecs import MAX_DIMS, json_body
from service.errors import BadRequest, Unprocessable
from service.headers import JSON_SIZE
from service.oip.tensors import DATATYPES, datatype_of

Array = npt.NDArray[Any]
Body = bytes | bytearray

MAX_ENTRIES = 16  # inputs, outputs and parameters, of each
MAX_NAME, MAX_ID = 100, 256  # characters
CONTENT_TYPE = "content_type"  # by which KServe's other servers tell arrays from texts; there are arrays alone here
# Parameters that the protocol keeps for itself; those that are no business of a model without a state are ignored.
_IGNORED = ("sequence_id", "sequence_start", "sequence_end", "priority", "headers", CONTENT_TYPE)
_IGNORED_PREFIX = "triton_"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What is asked: arrays by name, options, and outputs by name, each binary or not; None for all that there are."""

    inputs: dict[str, Array]
    outputs: dict[str, bool] | None
    parameters: dict[str, Any]
    id: str | None = None
    timeout_s: float | None = None
    binary_output: bool = False  # of outputs that are not named


class Output(NamedTuple):
    """An array of an answer."""

    name: str
    array: Array
    binary: bool


class _Numbers(NamedTuple):
    """Numbers that simdjson has read, and how their lists are nested."""

    array: Any  # simdjson.Array
    shape: list[int]


class _Tensor(NamedTuple):
    """An input before its numbers are read."""

    dtype: np.dtype[Any]
    shape: list[int]
    data: list[Any] | _Numbers | None  # None: in binary behind the JSON


def read(body: Body, json_size: int | None, check_rows: Callable[[int], None]) -> InferRequest:
    """Read a request whose first ``json_size`` bytes are JSON, all of them where it is None.

    Arrays are aligned and writable; those of binary tensors are copied at most once. ``check_rows`` gets the first size
    of each tensor's shape once the form of the request is known to be right, and may raise; numbers are converted
    then. Members that the protocol does not know are ignored. Raises BadRequest for bytes that are no request,
    Unprocessable for one that contradicts itself.
    """
    if json_size is None:
        json_size = len(body)
    elif json_size > len(body):
        raise BadRequest(f"the JSON is said to have {json_size} bytes, but the body has {len(body)}")
    members = _parse(body, json_size)
    tensors: dict[str, _Tensor] = {}
    for entry in members["inputs"]:
        name = _name(entry, "input", tensors)
        tensors[name] = _tensor(entry, name)
    request = _request(members)
    for tensor in tensors.values():
        check_rows(tensor.shape[0])
    start = json_size
    for name, tensor in tensors.items():
        if tensor.data is not None:
            request.inputs[name] = _from_json(tensor.data, name, tensor.dtype, tensor.shape)
            continue
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        if start + size > len(body):
            raise BadRequest(
                f"input {name!r} has {size} bytes, but {len(body) - start} are left behind the JSON, whose size "
                f"{JSON_SIZE.title()} tells"
            )
        request.inputs[name] = _from_bytes(body, tensor.dtype, tensor.shape, start)
        start += size
    if start != len(body):
        raise BadRequest(f"{len(body) - start} bytes follow the last tensor")
    return request


def read_raw(body: Body, name: str, datatype: str, row_shape: Sequence[int]) -> InferRequest:
    """Read a body that is one tensor without JSON, of as many rows as it has bytes for. Raises BadRequest."""
    dtype = DATATYPES[datatype]
    row_size = math.prod(row_shape) * dtype.itemsize
    num_rows, rest = divmod(len(body), row_size)
    if rest or not num_rows:
        raise BadRequest(f"a body without JSON must be rows of {row_size} bytes of input {name!r}; it has {len(body)}")
    return InferRequest({name: _from_bytes(body, dtype, [num_rows, *row_shape], 0)}, None, {})


def write(about: Mapping[str, object], outputs: Iterable[Output]) -> tuple[list[bytes | memoryview], int | None]:
    """Write an answer: its parts, and how many bytes of it are JSON, None where all are.

    Binary tensors are views of contiguous arrays; others are lists of numbers, flat.
    """
    tensors, buffers = [], []
    for name, array, binary in outputs:
        flat = np.ascontiguousarray(array).ravel()
        tensor: dict[str, object] = {"name": name, "datatype": datatype_of(array.dtype), "shape": array.shape}
        if binary:
            tensor["parameters"] = {"binary_data_size": flat.nbytes}
            buffers.append(flat.view(np.uint8).data)
        else:
            tensor["data"] = flat
        tensors.append(tensor)
    head = orjson.dumps({**about, "outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return [head, *buffers], len(head) if buffers else None


def _parse(body: Body, size: int) -> dict[str, Any]:
    """Parse the JSON; ``inputs`` are a list of objects, whose data are _Numbers where that is plain to see."""
    members = _parse_fast(body, size)
    if members is not None:
        return members
    members = json_body.read_object(body[:size])
    if "inputs" not in members:
        raise Unprocessable("the request has no member 'inputs'")
    members["inputs"] = _entries(members, "inputs")
    return members


def _parse_fast(body: Body, size: int) -> dict[str, Any] | None:
    """Parse without a Python object per number; None for anything that is wrong or odd.

    That a list is among the numbers of another shows in the number of brackets alone.
    """
    try:
        members = _members(simdjson.Parser().parse(memoryview(body)[:size]))
        tensors = members["inputs"]
        if not isinstance(tensors, simdjson.Array) or max(len(tensors), len(members.get("outputs", ()))) > MAX_ENTRIES:
            return None
        members["inputs"] = [_members(tensor) for tensor in tensors]
        num_lists = 1 + isinstance(members.get("outputs"), simdjson.Array)
        for tensor in members["inputs"]:
            num_lists += isinstance(tensor.get("shape"), simdjson.Array)
            for key in tensor.keys() - {"data"}:
                tensor[key] = _plain(tensor[key])
            if "data" in tensor:
                form = json_body.measure(tensor["data"]) if isinstance(tensor["data"], simdjson.Array) else None
                if form is None:
                    return None
                tensor["data"] = _Numbers(tensor["data"], form[0])
                num_lists += form[1]
        for key in members.keys() - {"inputs"}:
            members[key] = _plain(members[key])
        return members if body.count(b"[", 0, size) == num_lists else None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError, MemoryError):
        return None


def _members(value: object) -> dict[str, Any]:
    """Members of an object, lists and objects as simdjson has them. Raises ValueError where a name is there twice."""
    if not isinstance(value, simdjson.Object):
        raise TypeError("not an object")
    names = list(value.keys())
    if len(set(names)) != len(names):
        raise ValueError("a name is there twice")
    return {name: value[name] for name in names}


def _plain(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _tensor(entry: dict[str, Any], name: str) -> _Tensor:
    """Check the form of an input."""
    dtype, shape, parameters = _dtype(entry, name), _shape(entry, name), _object(entry, f"input {name!r}")
    _known(parameters, ("binary_data_size",), f"input {name!r}")
    if "binary_data_size" not in parameters:
        if "data" not in entry:
            raise Unprocessable(f"input {name!r} has neither data nor the parameter binary_data_size")
        if not isinstance(entry["data"], list | _Numbers):
            raise Unprocessable(f"data of input {name!r} must be a list, got {json_body.kind_of(entry['data'])}")
        return _Tensor(dtype, shape, entry["data"])
    if "data" in entry:
        raise Unprocessable(f"input {name!r} has both data and binary_data_size")
    size = math.prod(shape) * dtype.itemsize
    if type(parameters["binary_data_size"]) is not int or parameters["binary_data_size"] != size:
        raise Unprocessable(
            f"binary_data_size of input {name!r} must be {size}, the bytes of shape {shape} in {datatype_of(dtype)}"
        )
    return _Tensor(dtype, shape, None)


def _request(members: dict[str, Any]) -> InferRequest:
    """Check all but the inputs, which are left out."""
    parameters = _object(members, "the request")
    if len(parameters) > MAX_ENTRIES:
        raise Unprocessable(f"the request has {len(parameters)} parameters; {MAX_ENTRIES} are the most")
    for name in [name for name in parameters if name in _IGNORED or name.startswith(_IGNORED_PREFIX)]:
        del parameters[name]
    identity = members.get("id")
    if identity is not None and not (isinstance(identity, str) and len(identity) <= MAX_ID):
        raise Unprocessable(f"id must be a string of at most {MAX_ID} characters")
    timeout = parameters.pop("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise Unprocessable("timeout must be a whole number of microseconds, 0 for none")
    binary = _boolean(parameters.pop("binary_data_output", False), "binary_data_output")
    outputs: dict[str, bool] = {}
    for tensor in _entries(members, "outputs"):
        name = _name(tensor, "output", outputs)
        wanted = _object(tensor, f"output {name!r}")
        _known(wanted, ("binary_data",), f"output {name!r}")
        outputs[name] = _boolean(wanted.get("binary_data", binary), f"binary_data of output {name!r}")
    return InferRequest({}, outputs or None, parameters, identity, timeout / 1e6 if timeout else None, binary)


def _entries(members: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Objects of a list."""
    entries = members.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Unprocessable(f"{key} must be a list of objects")
    if len(entries) > MAX_ENTRIES:
        raise Unprocessable(f"there are {len(entries)} {key}; {MAX_ENTRIES} are the most")
    return entries


def _object(members: dict[str, Any], of: str) -> dict[str, Any]:
    parameters = members.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise Unprocessable(f"parameters of {of} must be an object, got {json_body.kind_of(parameters)}")
    return parameters


def _known(parameters: dict[str, Any], known: tuple[str, ...], of: str) -> None:
    for name in parameters.keys() - {*known, CONTENT_TYPE}:
        raise Unprocessable(f"parameter {name[:100]!r} of {of} is not offered; {', '.join(known)} is")


def _boolean(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise Unprocessable(f"{name} must be true or false, got {json_body.kind_of(value)}")
    return value


def _name(tensor: dict[str, Any], what: str, others: Iterable[str]) -> str:
    name = tensor.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise Unprocessable(f"each {what} must have a name of 1 to {MAX_NAME} characters")
    if name in others:
        raise Unprocessable(f"{what} {name!r} is given more than once")
    return name


def _dtype(tensor: dict[str, Any], name: str) -> np.dtype[Any]:
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        got = repr(datatype[:20]) if isinstance(datatype, str) else json_body.kind_of(datatype)
        raise Unprocessable(f"datatype of input {name!r} must be one of {', '.join(DATATYPES)}, got {got}")
    return DATATYPES[datatype]


def _shape(tensor: dict[str, Any], name: str) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Unprocessable(f"shape of input {name!r} must be a list of whole numbers")
    if not 1 <= len(shape) <= MAX_DIMS:
        raise Unprocessable(f"shape of input {name!r} must have 1 to {MAX_DIMS} sizes, got {len(shape)}")
    if 0 in shape:
        raise Unprocessable(f"input {name!r} of shape {shape} is empty; at least one row is needed")
    return shape


def _from_bytes(body: Body, dtype: np.dtype[Any], shape: list[int], start: int) -> Array:
    flat = np.frombuffer(body, dtype, math.prod(shape), start)
    return np.require(flat, requirements=("ALIGNED", "WRITEABLE")).reshape(shape)


def _from_json(data: list[Any] | _Numbers, name: str, dtype: np.dtype[Any], shape: list[int]) -> Array:
    wide = np.dtype(f"{dtype.kind}8")
    array = _fast_numbers(data, wide) if isinstance(data, _Numbers) else None
    if array is None:
        array = json_body.read_numbers(data.array.as_list() if isinstance(data, _Numbers) else data, name, wide)
    if list(array.shape) not in (shape, [math.prod(shape)]):
        raise Unprocessable(
            f"data of input {name!r} must be {math.prod(shape)} numbers, flat or nested as its shape {shape}, got "
            f"{list(array.shape)}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype, copy=False)
    if dtype.kind != "f":
        for index in np.argwhere(converted != array)[:1].tolist():
            limits = np.iinfo(dtype)
            raise Unprocessable(
                f"{name}{''.join(f'[{i}]' for i in index)} is {array[tuple(index)]}; {datatype_of(dtype)} are whole "
                f"numbers from {limits.min} to {limits.max}"
            )
    return np.require(converted, requirements=("WRITEABLE",)).reshape(shape)


def _fast_numbers(data: _Numbers, wide: np.dtype[Any]) -> Array | None:
    """Numbers as the widest dtype of their kind; None where something else is among them."""
    try:
        buffer = data.array.as_buffer(of_type="d" if wide.kind == "f" else wide.kind)
        return np.frombuffer(buffer, wide).reshape(data.shape)
    except (ValueError, TypeError, RuntimeError, MemoryError):  # the exact way tells what is wrong where
        return None
