"""Codecs at their limits: what is just within is read, and what is just beyond is refused by name."""

import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from service.codecs import arrow, compression, json_body, npy
from service.codecs.compression import Inflater, compress
from service.errors import BadRequest, TooLarge, Unprocessable
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


def test_values_of_json_are_counted_before_they_are_parsed_and_may_be_twice_those_of_the_rows() -> None:
    """65,536 more are left to options; what is no longer than so many bytes is not counted."""
    limit = 2 * 100 * 30 + 65_536
    for sign in (b",", b"[", b"{"):
        json_body.check_values(sign * limit + b"." * 10, limit + 10, 100, 30)
        json_body.check_values(b"." + sign * limit, limit + 1, 100, 30)
        json_body.check_values(sign * (limit + 1), limit, 100, 30)  # the rest is not JSON
        with pytest.raises(
            TooLarge, match=f"JSON of up to {limit + 1} values is over the limit of {limit}, .* 100 rows of 30"
        ):
            json_body.check_values(sign * (limit + 1), limit + 1, 100, 30)


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


NAME = "n" * 100


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({NAME + "m": [None, 1]}, f"column '{NAME}' is null in row 0"),
        ({NAME + "m": [b"x"]}, f"column '{NAME}' is of type binary"),
        ({NAME + "m": [[1], [1, 2]]}, f"column '{NAME}' is ragged"),
        ({"a": pa.array([{"b" * 200: 1}])}, f"column 'a' is of type struct<{'b' * 93}; integers, floats"),
    ],
)
def test_long_names_and_types_of_arrow_are_told_by_their_first_hundred_characters(columns: Any, message: str) -> None:
    with pytest.raises(Unprocessable, match=message):
        arrow.read(stream(columns), any_rows)


def test_each_arrow_column_may_have_a_dictionary_of_its_own_of_strings_or_numbers() -> None:
    table = {"a": pa.array(["x", "y"]).dictionary_encode(), "b": pa.array([7.5, 2.0]).dictionary_encode()}
    columns = arrow.read(stream({**table, "c": table["a"]}), any_rows)
    assert isinstance(columns["a"], arrow.Strings)
    assert isinstance(columns["c"], arrow.Strings)
    assert (columns["a"].names, columns["c"].names) == (["x", "y"], ["x", "y"])
    np.testing.assert_array_equal(columns["b"], [7.5, 2.0], strict=True)


def test_lists_of_no_numbers_are_rows_of_none() -> None:
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 0)):
        for num in (0, 1, 3):
            columns: dict[str, Any] = dict(arrow.read(stream({"a": pa.array([[]] * num, kind)}), any_rows))
            assert columns["a"].shape == (num, 0)


def test_a_file_of_arrow_is_told_from_a_stream_and_from_other_bytes() -> None:
    sink = io.BytesIO()
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for body, hint in ((sink.getvalue(), "; it is a file, send a stream"), (b"ARROW", ""), (b"x" * 99, "")):
        with pytest.raises(BadRequest, match=f"^the body is not a readable Arrow IPC stream{hint}$"):
            arrow.read(body, any_rows)


@pytest.mark.parametrize(
    ("column", "valid", "hostile"),
    [
        (["x", "y", "z"], (0, 1, 2, 3), (0, 99_999, 2, 3)),  # ends of strings
        (["x", "y", "z"], (0, 1, 2, 3), (0, -1, 2, 3)),
        (pa.DictionaryArray.from_arrays(pa.array([2, 0, 1], pa.int32()), list("xyz")), (2, 0, 1), (2, 9, 1)),
        ([[1.5], [2.5], [3.5]], (0, 1, 2, 3), (0, 99_999, 2, 3)),  # ends of lists
    ],
)
def test_arrow_that_points_beyond_its_own_bytes_is_refused(column: Any, valid: Any, hostile: Any) -> None:
    whole = bytes(stream({"a": column}))
    before, after = (struct.pack(f"<{len(valid)}i", *numbers) for numbers in (valid, hostile))
    assert whole.count(before) == 1
    with pytest.raises(BadRequest, match="not a readable Arrow IPC stream"):
        arrow.read(whole.replace(before, after), any_rows)
