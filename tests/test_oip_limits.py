"""Requests of the Open Inference Protocol at their limits, and as they are where they leave something out."""

import json
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest

from service.codecs import json_body
from service.errors import BadRequest, Unprocessable
from service.oip import codec
from service.oip.tensors import DATATYPES
from tests.wire import any_rows

NAME = "n" * 100


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], **changes}


def read(request: dict[str, Any], rest: bytes = b"") -> codec.InferRequest:
    head = json.dumps(request).encode()
    return codec.read(head + rest, len(head), any_rows)


@pytest.mark.parametrize(
    ("request_of", "most", "message"),
    [
        (lambda num: {"inputs": [tensor(name=str(i)) for i in range(num)]}, 16, "there are 17 inputs; 16 are the most"),
        (lambda num: {"inputs": [], "outputs": [{"name": str(i)} for i in range(num)]}, 16, "there are 17 outputs"),
        (lambda num: {"inputs": [], "parameters": {str(i): i for i in range(num)}}, 16, "17 parameters; 16 are the"),
        (lambda num: {"inputs": [tensor(name="n" * num)]}, 100, "a name of 1 to 100 characters"),
        (lambda num: {"inputs": [], "outputs": [{"name": "n" * num}]}, 100, "each output must have a name of 1 to 100"),
        (lambda num: {"inputs": [], "id": "i" * num}, 256, "id must be a string of at most 256 characters"),
        (lambda num: {"inputs": [tensor(shape=[1] * (num - 1) + [2])]}, 4, "1 to 4 sizes, got 5"),
        (lambda num: {"inputs": [tensor(shape=[num], data=[1] * num, datatype="INT8")]}, 300, None),
    ],
)
def test_a_request_may_have_so_many_of_each_and_no_more(
    request_of: Callable[[int], dict[str, Any]], most: int, message: str | None
) -> None:
    read(request_of(most))
    if message:
        with pytest.raises(Unprocessable, match=message):
            read(request_of(most + 1))


@pytest.mark.parametrize("datatype", ["INT8", "UINT8", "INT64", "UINT64"])
def test_whole_numbers_of_a_tensor_reach_to_the_ends_of_its_datatype(datatype: str) -> None:
    limits = np.iinfo(DATATYPES[datatype])
    for data in ([limits.min, limits.max], [0, 1]):
        read_array = read({"inputs": [tensor(shape=[2], datatype=datatype, data=data)]}).inputs["x"]
        np.testing.assert_array_equal(read_array, np.array(data, DATATYPES[datatype]), strict=True)
    below = -(2**63) - 2000 if limits.min == -(2**63) else limits.min - 1  # the next number that a float64 has
    for wrong in (below, limits.max + 1, 0.5):
        with pytest.raises(Unprocessable, match=rf"x\[1\] is .*; {datatype} are whole numbers from {limits.min} to"):
            read({"inputs": [tensor(shape=[2], datatype=datatype, data=[0, wrong])]})


def test_numbers_beyond_a_float_datatype_are_infinite() -> None:
    assert read({"inputs": [tensor(shape=[1], data=[1e300])]}).inputs["x"].tolist() == [math.inf]


def test_binary_tensors_follow_each_other_and_what_follows_them_is_refused() -> None:
    x, y = np.arange(3, dtype=np.int16), np.arange(2, dtype=np.float64)
    inputs = [
        {"name": "x", "shape": [3], "datatype": "INT16", "parameters": {"binary_data_size": 6}},
        tensor(name="z"),
        {"name": "y", "shape": [2, 1], "datatype": "FP64", "parameters": {"binary_data_size": 16}},
    ]
    request = read({"inputs": inputs}, x.tobytes() + y.tobytes())
    assert [request.inputs[name].flatten().tolist() for name in "xyz"] == [[0, 1, 2], [0, 1], [1, 2]]
    with pytest.raises(BadRequest, match="input 'y' has 16 bytes, but 15 are left behind the JSON"):
        read({"inputs": inputs}, (x.tobytes() + y.tobytes())[:-1])
    with pytest.raises(BadRequest, match="1 bytes follow the last tensor"):
        read({"inputs": inputs}, x.tobytes() + y.tobytes() + b"\0")


def test_what_a_request_leaves_out_is_as_if_it_said_so() -> None:
    request = read({"inputs": []})
    assert request == codec.InferRequest({}, None, {}, None, None, False)
    assert read({"inputs": [], "parameters": {"timeout": 0}}).timeout_s is None
    assert read({"inputs": [], "parameters": {"timeout": 1}}).timeout_s == 1e-6
    assert read({"inputs": [], "id": "", "outputs": []}) == codec.InferRequest({}, None, {}, "", None, False)
    with pytest.raises(Unprocessable, match="timeout must be a whole number"):
        read({"inputs": [], "parameters": {"timeout": -1}})
    with pytest.raises(Unprocessable, match="timeout must be a whole number"):
        read({"inputs": [], "parameters": {"timeout": True}})


def test_a_request_of_as_many_inputs_and_outputs_as_there_may_be_makes_no_object_of_a_number() -> None:
    request = {
        "inputs": [tensor(name=str(i)) for i in range(16)],
        "outputs": [{"name": str(i), "parameters": {"binary_data": True}} for i in range(16)],
    }
    with mock.patch.object(json_body, "read_object", side_effect=AssertionError):
        assert len(read(request).inputs) == 16


def test_long_names_of_parameters_are_told_by_their_first_hundred_characters() -> None:
    with pytest.raises(Unprocessable, match=f"parameter '{NAME}' of input 'x' is not offered; binary_data_size is"):
        read({"inputs": [tensor(parameters={NAME + "m": 1})]})


def test_outputs_are_binary_as_they_say_or_else_as_the_request_says() -> None:
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}, {"name": "c", "parameters": None}]
    request = read({"inputs": [], "outputs": outputs, "parameters": {"binary_data_output": True}})
    assert (request.outputs, request.binary_output) == ({"a": True, "b": False, "c": True}, True)
    with pytest.raises(Unprocessable, match="binary_data_output must be true or false, got a number"):
        read({"inputs": [], "parameters": {"binary_data_output": 1}})


def test_what_the_protocol_keeps_for_itself_is_ignored_and_all_else_is_kept() -> None:
    ignored = {"sequence_id": 1, "sequence_start": True, "sequence_end": True, "priority": 1, "headers": {}}
    parameters = {**ignored, "content_type": "np", "triton_x": 1, "triton": 2, "alpha": 0.1}
    assert read({"inputs": [], "parameters": parameters}).parameters == {"triton": 2, "alpha": 0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "each input must have a name of 1 to 100 characters"),
        ({"datatype": 3}, "must be one of .*, got a number"),
        ({"datatype": "D" * 30}, f"got '{'D' * 20}'$"),
        ({"shape": 3}, "shape of input 'x' must be a list of whole numbers"),
        ({"shape": [True, 2]}, "shape of input 'x' must be a list of whole numbers"),
        ({"shape": []}, "shape of input 'x' must have 1 to 4 sizes, got 0"),
        ({"shape": [2, 0]}, r"input 'x' of shape \[2, 0\] is empty; at least one row is needed"),
        ({"data": [1]}, r"data of input 'x' must be 2 numbers, flat or nested as its shape \[1, 2\], got \[1\]"),
        ({"data": [[1], [2]]}, r"got \[2, 1\]"),
    ],
)
def test_what_is_wrong_with_an_input_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Unprocessable, match=message):
        read({"inputs": [tensor(**change)]})


def test_an_input_without_data_is_told() -> None:
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}
    with pytest.raises(Unprocessable, match="input 'x' has neither data nor the parameter binary_data_size"):
        read(request)


def test_a_body_of_one_tensor_may_be_one_row() -> None:
    assert codec.read_raw(bytes(8), "x", "FP32", (2,)).inputs["x"].tolist() == [[0, 0]]


def test_an_answer_in_json_has_no_size_and_one_with_binary_tensors_that_of_its_json() -> None:
    array = np.arange(4, dtype=np.float32).reshape(2, 2)
    parts, size = codec.write({"id": "7"}, [codec.Output("a", array.T, False)])
    assert size is None
    assert json.loads(b"".join(parts)) == {
        "id": "7",
        "outputs": [{"name": "a", "datatype": "FP32", "shape": [2, 2], "data": [0, 2, 1, 3]}],
    }
    parts, size = codec.write({}, [codec.Output("a", array, True), codec.Output("b", array, False)])
    body = b"".join(parts)
    assert size == len(parts[0])
    assert body[size:] == array.tobytes()
    assert json.loads(body[:size])["outputs"][0]["parameters"] == {"binary_data_size": 16}
