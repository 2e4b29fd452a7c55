"""Requests and answers of the Open Inference Protocol: what Triton's client writes is read, and the reverse."""

import json
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from service.codecs import json_body
from service.errors import BadRequest, TooLarge, Unprocessable
from service.oip import codec
from service.oip.codec import InferRequest, Output
from service.oip.tensors import DATATYPES, datatype_of
from tests.wire import any_rows, at_most_three, mutated, outcome

names = st.text('abc[]{}"\\é\0 ,', min_size=1, max_size=4)
arrays = st.one_of(
    [
        hnp.arrays(
            dtype, hnp.array_shapes(max_dims=4, max_side=4), elements={"allow_nan": False, "allow_infinity": False}
        )
        if dtype.kind == "f"
        else hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=4))
        for dtype in DATATYPES.values()
    ]
)
tensors = st.dictionaries(names, st.tuples(arrays, st.booleans()), max_size=3)


def written(tensors: dict[str, tuple[Any, bool]], **others: Any) -> tuple[bytes, int | None]:
    """A request as Triton's client writes it, and how many bytes of it are JSON."""
    inputs = []
    for name, (array, binary) in tensors.items():
        tensor = InferInput(name, list(array.shape), datatype_of(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array, binary_data=binary))
    body, size = InferenceServerClient.generate_request_body(inputs, **others)
    return body, size


def read(body: bytes, size: int | None = None) -> InferRequest:
    return codec.read(body, size, any_rows)


def read_exactly(body: bytes, size: int | None = None) -> InferRequest:
    """The way that makes a Python object of each number."""
    with mock.patch.object(codec, "_parse_fast", return_value=None):
        return read(body, size)


requests = st.builds(written, tensors)


@given(tensors)
def test_tensors_are_read_as_the_client_wrote_them_aligned_and_writable(tensors: Any) -> None:
    body, size = written(tensors)
    for request in (read(body, size), read_exactly(body, size)):
        assert request.inputs.keys() == tensors.keys()
        for name, (array, _) in tensors.items():
            read_array = request.inputs[name]
            np.testing.assert_array_equal(read_array, array, strict=True)
            assert read_array.flags.aligned
            assert read_array.flags.writeable


@given(arrays)
def test_data_may_be_nested_as_the_shape_says(array: Any) -> None:
    tensor = {"name": "x", "shape": array.shape, "datatype": datatype_of(array.dtype), "data": array.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    for request in (read(body), read_exactly(body)):
        np.testing.assert_array_equal(request.inputs["x"], array, strict=True)


@given(st.dictionaries(names, st.tuples(arrays | hnp.arrays(np.bool_, 3), st.booleans()), min_size=1, max_size=3))
def test_the_client_reads_an_answer_as_it_was_written(outputs: Any) -> None:
    parts, size = codec.write({"model_name": "m"}, [Output(name, *output) for name, output in outputs.items()])
    assert (size is None) == (not any(binary for _, binary in outputs.values()))
    result = InferResult.from_response_body(b"".join(parts), header_length=size)
    assert result.get_response()["model_name"] == "m"
    for name, (array, _) in outputs.items():
        np.testing.assert_array_equal(result.as_numpy(name), array, strict=True)


@given(mutated(requests.map(lambda request: request[0])), st.none() | st.integers(0, 300))
@example(b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,[2]]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[2,1],"datatype":"FP32","data":[[1],2]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,[4]]]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[1.5]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[2.0]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT8","data":[-1]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[9223372036854775808]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[true]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[1],"data":[[2]]}]}', None)
@example(b'{"inputs":[],"inputs":{"name":"x"}}', None)
@example(b'{"inputs":[3]}', None)
@example(b'{"inputs":[],"outputs":[{"name":"y"},{"name":"y"}]}', None)
@example(b'{"inputs":[],"id":7}', None)
@example(b'{"inputs":null}', None)
@example(b'{"inputs":[{"name":"[","shape":[1],"datatype":"FP64","data":"a"}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":{},"data":[1]}]}', None)
def test_whatever_comes_is_read_one_way_or_refused(body: bytes, size: int | None) -> None:
    assert outcome(lambda: read(body, size)) == outcome(lambda: read_exactly(body, size))


@given(requests, st.data())
def test_a_request_that_is_cut_is_refused(request: tuple[bytes, int | None], data: st.DataObject) -> None:
    body, size = request
    cut = body[: data.draw(st.integers(0, len(body) - 1))]
    with pytest.raises((BadRequest, Unprocessable)):
        read(cut, size)


def test_the_rest_of_a_request_is_read() -> None:
    x = np.zeros((1, 2), np.float32)
    outputs = [InferRequestedOutput("a", binary_data=True), InferRequestedOutput("b", binary_data=False)]
    parameters = {"alpha": 0.1, "scores": "all"}
    body, size = written(
        {"x": (x, True)},
        outputs=outputs,
        request_id="7",
        timeout=1500,
        priority=3,
        sequence_id=4,
        parameters=parameters,
    )
    request = read(body, size)
    assert (request.outputs, request.id, request.timeout_s) == ({"a": True, "b": False}, "7", 0.0015)
    assert request.parameters == parameters
    assert read(*written({"x": (x, True)})).binary_output  # as the client wishes where it names no outputs


def test_a_body_of_one_tensor_needs_no_json() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    request = codec.read_raw(b"" + x.tobytes(), "x", "FP32", (2, 2))
    np.testing.assert_array_equal(request.inputs["x"], x, strict=True)
    for body in (b"", x.tobytes()[:-1]):
        with pytest.raises(BadRequest, match="rows of 16 bytes of input 'x'"):
            codec.read_raw(body, "x", "FP32", (2, 2))


TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def with_tensor(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**TENSOR, **changes}]}


def binary(size: Any, **changes: Any) -> dict[str, Any]:
    tensor = {**TENSOR, "parameters": {"binary_data_size": size}, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if key != "data"}]}


@pytest.mark.parametrize(
    ("request_json", "rest", "kind", "message"),
    [
        ({}, b"", Unprocessable, "no member 'inputs'"),
        ({"inputs": {}}, b"", Unprocessable, "inputs must be a list of objects"),
        ({"inputs": [TENSOR, TENSOR]}, b"", Unprocessable, "input 'x' is given more than once"),
        ({"inputs": [TENSOR] * 17}, b"", Unprocessable, "there are 17 inputs; 16 are the most"),
        (with_tensor(name=""), b"", Unprocessable, "a name of 1 to 100 characters"),
        (with_tensor(datatype="BYTES"), b"", Unprocessable, "must be one of INT8, .*, FP64, got 'BYTES'"),
        (with_tensor(shape=[2.0]), b"", Unprocessable, "a list of whole numbers"),
        (with_tensor(shape=[-1]), b"", Unprocessable, "a list of whole numbers"),
        (with_tensor(shape=[1] * 5), b"", Unprocessable, "1 to 4 sizes, got 5"),
        (with_tensor(shape=[0, 2], data=[]), b"", Unprocessable, r"of shape \[0, 2\] is empty"),
        (with_tensor(shape=[2**62, 2**62]), b"", TooLarge, "rows"),
        (with_tensor(shape=[1, 2**62]), b"", Unprocessable, "must be 4611686018427387904 numbers"),
        (with_tensor(shape=[2, 1], data=[[1, 2]]), b"", Unprocessable, r"nested as its shape \[2, 1\], got \[1, 2\]"),
        (with_tensor(data=[1, None]), b"", Unprocessable, r"x\[1\] must be a number, got null"),
        (with_tensor(data="AAAA"), b"", Unprocessable, "data of input 'x' must be a list, got a string"),
        ({"inputs": [{**TENSOR, "shape": [9, 2], "data": {}}]}, b"", Unprocessable, "must be a list, got an object"),
        ({**with_tensor(shape=[9, 2]), "outputs": {}}, b"", Unprocessable, "outputs must be a list"),
        ({**with_tensor(shape=[9, 2]), "parameters": 3}, b"", Unprocessable, "must be an object"),
        (binary(8, shape=[9, 2]), bytes(8), Unprocessable, "must be 72"),
        (binary(72, shape=[9, 2]), b"", TooLarge, "9 rows"),
        (
            with_tensor(datatype="INT8", data=[1, 300]),
            b"",
            Unprocessable,
            r"x\[1\] is 300.*; INT8 are whole numbers from",
        ),
        (with_tensor(parameters={"shared_memory_region": "r"}), b"", Unprocessable, "'shared_memory_region' of input"),
        (with_tensor(parameters={"binary_data_size": 8}), bytes(8), Unprocessable, "both data and binary_data_size"),
        (binary(8), b"", BadRequest, "has 8 bytes, but 0 are left behind the JSON"),
        (binary(8), bytes(7), BadRequest, "but 7 are left"),
        (binary(8), bytes(9), BadRequest, "1 bytes follow the last tensor"),
        (
            binary(True, shape=[1, 1], datatype="INT8"),
            bytes(1),
            Unprocessable,
            "binary_data_size of input 'x' must be 1",
        ),
        (binary(4), bytes(4), Unprocessable, "binary_data_size of input 'x' must be 8"),
        (binary(-8), bytes(8), Unprocessable, "must be 8"),
        ({"inputs": [{**TENSOR, "parameters": 3}]}, b"", Unprocessable, "parameters of input 'x' must be an object"),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
            b"",
            Unprocessable,
            "not offered",
        ),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
            b"",
            Unprocessable,
            "true or false",
        ),
        ({"inputs": [], "outputs": [{"name": "y"}] * 2}, b"", Unprocessable, "output 'y' is given more than once"),
        ({"inputs": [], "parameters": {str(i): i for i in range(17)}}, b"", Unprocessable, "17 parameters"),
        ({"inputs": [], "parameters": {"timeout": 0.5}}, b"", Unprocessable, "whole number of microseconds"),
        ({"inputs": [], "id": "x" * 257}, b"", Unprocessable, "at most 256 characters"),
    ],
)
def test_a_request_that_contradicts_itself_is_told_where(
    request_json: Any, rest: bytes, kind: type[Exception], message: str
) -> None:
    head = json.dumps(request_json).encode()
    with pytest.raises(kind, match=message):
        codec.read(head + rest, len(head), at_most_three)


def test_what_clients_say_of_the_kind_of_their_content_changes_nothing() -> None:
    kind = {"parameters": {"content_type": "np"}}
    request = {"inputs": [{**TENSOR, **kind}], "outputs": [{"name": "y", **kind}], **kind}
    told, plain = (read(json.dumps(body).encode()) for body in (request, {**with_tensor(), "outputs": [{"name": "y"}]}))
    np.testing.assert_array_equal(told.inputs["x"], plain.inputs["x"], strict=True)
    assert (told.outputs, told.parameters) == (plain.outputs, plain.parameters) == ({"y": False}, {})


def test_json_longer_than_the_body_is_refused() -> None:
    with pytest.raises(BadRequest, match="said to have 9 bytes, but the body has 2"):
        read(b"{}", 9)


def test_a_large_request_in_json_makes_no_object_of_a_number() -> None:
    x = np.random.default_rng(0).random((500, 64)).astype(np.float32)
    body, _ = written({"x": (x, False)})
    with (
        mock.patch.object(json_body, "read_numbers", side_effect=AssertionError),
        mock.patch.object(json_body, "read_object", side_effect=AssertionError),
    ):
        np.testing.assert_array_equal(read(body).inputs["x"], x)
