"""Requests of the Open Inference Protocol, in JSON and in binary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np

from reliability.fuzz.bodies import JSON_WORDS, alike, check_rows, gives_up
from reliability.fuzz.target import Target, replaced
from service.client import tensors
from service.client.steps import Answer
from service.errors import BadRequest
from service.headers import JSON_SIZE
from service.oip import codec
from service.oip.codec import InferRequest, Output


def read_oip(data: bytes) -> None:
    """Two bytes of a size of JSON, or 65535 for none, and a body: both ways to parse it agree; outputs come back."""
    size, body = int.from_bytes(data[:2], "big"), bytearray(data[2:])
    json_size = None if size == 0xFFFF else size

    def exact() -> InferRequest:
        with replaced(codec, "_parse_fast", gives_up):
            return codec.read(body, json_size, check_rows)

    request, same = alike(lambda: codec.read(body, json_size, check_rows), exact)
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


_WORDS = (
    *(b'"name" "datatype" "shape" "data" "parameters" "binary_data_size" "inputs" "outputs" "binary_data"'.split()),
    *(b'"id" "timeout" "content_type" "FP16" "UINT64" "priority" "triton_a" "binary_data_output"'.split()),
)
TARGETS = [
    Target("oip", read_oip, oip_seeds, words=(*JSON_WORDS, *_WORDS), repair=repair_oip, holds_json=True),
    Target("oip_raw", read_oip_raw, raw_seeds, refusals=(BadRequest,)),
]
