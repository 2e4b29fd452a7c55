"""Codecs at their limits: what is just within is read, and what is just beyond is refused by name."""

import io
import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from service.codecs import arrow, compression, json_body, npy
from service.codecs.compression import Inflater, compress
from service.errors import BadRequest, TooLarge, Unprocessable
from service.oip import codec
from service.oip.tensors import DATATYPES
from tests import wire
from tests.wire import any_rows, at_most_three


def nested(depth: int, value: Any = 1.5) -> Any:
    for _ in range(depth):
        value = [value, value]
    return value


# JSON.


@pytest.mark.parametrize("value", [1.5, 2, 1e300])
def test_numbers_of_json_are_nested_four_levels_deep_at_most(value: float) -> None:
    for depth in (1, 2, 3, 4):
        rows, _ = json_body.read_rows(json.dumps({"inputs": nested(depth, value)}).encode(), "inputs", any_rows)
        array = json_body.read_numbers(nested(depth, value), "inputs")
        np.testing.assert_array_equal(rows, array)
        assert (array.shape, array.dtype) == ((2,) * depth, np.dtype(np.float64))
    rows, _ = json_body.read_rows(json.dumps({"inputs": nested(5, value)}).encode(), "inputs", any_rows)
    with pytest.raises(Unprocessable, match="inputs is nested too deeply; 4 levels of lists are the most"):
        json_body.read_numbers(rows, "inputs")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "x must be a list, got a number"),
        ({}, "x must be a list, got an object"),
        (None, "x must be a list, got null"),
        ([[1, 2], [3, "a"]], r"x\[1\]\[1\] must be a number, got a string"),
        ([[1, 2], [3, 4, 5]], r"x is ragged: x\[1\] is a list of 3, but x\[0\] is a list of 2"),
        ([[[1], [1]], [[1], [1, 2]]], r"x is ragged: x\[1\]\[1\] is a list of 2, but x\[0\]\[0\] is a list of 1"),
        ([[1], 2], r"x\[1\] must be a list, got a number"),
        ([1, [2]], r"x\[1\] must be a number, got a list"),
        ([[True]], r"x\[0\]\[0\] must be a number, got a boolean"),
        ([1, None], r"x\[1\] must be a number, got null"),
        (["a", 1], r"x\[1\] must be a string, got a number"),
        (["a", "b"], r"x\[0\] must be a number, got a string"),
        ([{}, {}, []], r"x\[2\] must be an object, got a list"),
    ],
)
def test_the_first_wrong_number_is_named_by_its_place(value: Any, message: str) -> None:
    with pytest.raises(Unprocessable, match=f"^{message}$"):
        json_body.read_numbers(value, "x")


def test_whole_numbers_stay_whole_where_that_is_asked_for_and_they_fit() -> None:
    for value, dtype in (([1, 2**63 - 1], np.int64), ([1, 2**63], np.float64), ([1, 2.0], np.float64)):
        np.testing.assert_array_equal(json_body.read_numbers(value, "x", np.int64), np.array(value, dtype), strict=True)
    assert json_body.read_numbers([], "x").shape == (0,)
    assert json_body.read_numbers([[], []], "x").shape == (2, 0)


def test_json_is_written_as_it_is_read_also_of_arrays_that_are_not_contiguous() -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert json.loads(json_body.write({"a": array.T, "b": "x"})) == {"a": array.T.tolist(), "b": "x"}


# npy.


def with_header(text: bytes, version: tuple[int, int] = (1, 0), data: bytes = b"") -> bytes:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def header(shape: str, descr: str = "'<f8'", size: int = 0, order: bool = False) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"
    return (text.ljust(max(size - 1, len(text))) + "\n").encode()


def test_the_header_of_an_npy_file_has_4096_bytes_at_most() -> None:
    for version in ((1, 0), (2, 0)):
        assert npy.read(with_header(header("(1,)", size=4096), version, bytes(8))).tolist() == [0]
        with pytest.raises(BadRequest, match="not a NumPy file of version 1 or 2"):
            npy.read(with_header(header("(1,)", size=4097), version, bytes(8)))
    with pytest.raises(BadRequest, match="not a NumPy file of version 1 or 2"):
        npy.read(with_header(header("(1,)"), (3, 0), bytes(8)))


@pytest.mark.parametrize(
    ("head", "data", "message"),
    [
        (header("(1,)", "'<c8'"), bytes(8), "real numbers of at most 8 bytes"),
        (header("(1,)", "'<f16'"), bytes(16), "real numbers of at most 8 bytes"),
        (header("(1,)", "'|b1'"), bytes(1), "real numbers of at most 8 bytes"),
        (header("(1,)", "'|O'"), bytes(8), "real numbers of at most 8 bytes"),
        (header("(1, 1, 1, 1, 1)"), bytes(8), "at most 4 sizes, none larger than the body"),
        (header("(-1, 1)"), bytes(8), "at most 4 sizes, none larger than the body"),
        (header("(True,)"), bytes(8), "at most 4 sizes, none larger than the body"),
        (header("(99999, 0)"), b"", "at most 4 sizes, none larger than the body"),
        (header("(2,)"), bytes(15), "do not fit the 15 bytes of data that follow"),
        (header("(2,)"), bytes(17), "do not fit the 17 bytes of data that follow"),
    ],
)
def test_an_npy_array_of_another_kind_or_size_is_refused(head: bytes, data: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        npy.read(with_header(head, data=data))


def test_an_npy_array_may_have_from_none_to_four_axes_and_as_many_empty_rows_as_bytes() -> None:
    for shape in ((), (1,), (1, 1, 1, 1), (128, 0)):
        assert npy.read(wire.npy(np.zeros(shape))).shape == shape
    size = len(with_header(header("(99, 0)")))
    assert npy.read(with_header(header(f"({size}, 0)", size=len(header("(99, 0)"))))).shape == (size, 0)
    with pytest.raises(TooLarge, match="4 rows"):
        npy.read(npy.write(np.zeros((4, 1))), at_most_three)
    assert npy.read(wire.npy(np.float64(2)), at_most_three) == 2


# Compressed bodies.


@pytest.mark.parametrize("encoding", compression.ENCODINGS)
def test_a_body_may_inflate_to_the_limit_and_to_no_byte_more(encoding: str) -> None:
    for size in (1, 1000, 2**18 - 1, 2**18, 2**18 + 1, 2**20):
        packed = compress([bytes(size)], encoding)
        inflater = Inflater(encoding, size)
        inflater.feed(packed)
        assert inflater.finish() == bytes(size)
        with pytest.raises(TooLarge, match=rf"more than the limit of {size - 1} bytes \(GLOW_MAX_BODY_BYTES\)"):
            Inflater(encoding, size - 1).feed(packed)


def test_an_answer_that_repeats_itself_is_compressed_to_a_fraction() -> None:
    for encoding in compression.ENCODINGS:
        assert len(compress([b"0.25, " * 10_000], encoding)) < 60_000 / 50


def test_what_is_no_stream_or_ends_early_is_named_by_its_encoding() -> None:
    for encoding in compression.ENCODINGS:
        with pytest.raises(BadRequest, match=f"the body is not a {encoding} stream"):
            Inflater(encoding, 10).feed(b"plain text")
        with pytest.raises(BadRequest, match=f"the body ends before its {encoding} stream does"):
            Inflater(encoding, 10).finish()
    inflater = Inflater("deflate", 10)
    with pytest.raises(BadRequest, match="the deflate stream is followed by other bytes"):
        inflater.feed(zlib.compress(b"a") + zlib.compress(b"b"))


# Arrow.


def stream(table: Any, batch_rows: int = 1000) -> bytearray:
    sink = io.BytesIO()
    table = table if isinstance(table, pa.Table) else pa.table(table)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return bytearray(sink.getvalue())


def test_an_arrow_stream_may_have_64_batches() -> None:
    columns = arrow.read(stream({"a": np.arange(64.0)}, 1), any_rows)
    assert np.asarray(columns["a"]).tolist() == list(range(64))


def test_an_arrow_stream_of_no_rows_or_of_no_batch_has_empty_columns() -> None:
    kinds: dict[str, Any] = {
        "a": pa.array([], pa.int8()),
        "b": pa.array([], pa.string()),
        "c": pa.array([], pa.list_(pa.int8())),
    }
    kinds["d"] = pa.array([], pa.dictionary(pa.int8(), pa.string()))
    columns: dict[str, Any] = dict(arrow.read(stream(kinds), at_most_three))
    assert {name: len(getattr(column, "codes", column)) for name, column in columns.items()} == dict.fromkeys("abcd", 0)


def test_arrow_rows_of_all_batches_are_counted_together() -> None:
    seen: list[int] = []
    arrow.read(stream({"a": np.arange(10.0)}, 4), seen.append)
    arrow.read(stream({"a": pa.array(["x", "y", "x"]).dictionary_encode()}, 2), seen.append)
    assert seen == [10, 3]


def test_strings_of_arrow_come_as_codes_of_the_names_that_are_used() -> None:
    for column in (
        pa.array(["b", "a", "b"]),
        pa.array(["b", "a", "b"], pa.string_view()),
        pa.DictionaryArray.from_arrays([2, 0, 2], ["a", "never", "b"]),
    ):
        read = arrow.read(stream({"a": column}), any_rows)["a"]
        assert isinstance(read, arrow.Strings)
        assert [read.names[code] for code in read.codes] == ["b", "a", "b"]
        assert sorted(read.names) == ["a", "b"]


def test_arrow_columns_are_views_wherever_they_lie_and_lists_can_be_written_to() -> None:
    body = arrow.write({"a": np.arange(3.0), "b": np.arange(6.0).reshape(3, 2), "c": np.ones((3, 1), np.uint8)}, {})
    for kind, writable in ((bytearray, True), (bytes, False)):
        copy = kind(body)
        columns = arrow.read(copy, any_rows)
        for name in "abc":
            assert np.shares_memory(np.asarray(columns[name]), np.frombuffer(copy, np.uint8)), name
        for name in "bc":
            array = columns[name]
            assert isinstance(array, np.ndarray)
            assert array.flags.writeable == writable


def test_an_arrow_answer_has_batches_of_4096_rows() -> None:
    for num, batches in ((1, 1), (4096, 1), (4097, 2), (8192, 2)):
        parts = list(arrow.write_parts({"x": np.zeros(num)}, {}))
        assert len(parts) == 2 + batches
        assert pa.ipc.open_stream(b"".join(parts)).read_all().num_rows == num


def test_long_names_of_arrow_columns_are_told_by_their_first_hundred_characters() -> None:
    name = "n" * 100 + "m"
    for columns, message in (({name: [None, 1]}, "is null in row 0"), ({name: [b"x"]}, "is of type binary")):
        with pytest.raises(Unprocessable, match=f"column '{'n' * 100}' {message}"):
            arrow.read(stream(columns), any_rows)


# The Open Inference Protocol.


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
