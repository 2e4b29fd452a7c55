"""Arrow streams: the rows are those of the same table in JSON, and an error names the column that is not read."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.artifact import Manifest, open_artifact
from service.codecs import arrow
from service.errors import BadRequest, TooLarge, Unprocessable
from service.rows import inputs_from_arrow, inputs_from_json, latents_from_arrow
from tests.wire import IMAGES, MIXED, TABLE, any_rows, at_most_three, mutated, outcome

ROWS = [["red", 0.5, 3, 7.0, 0.5], ["blue", -1.5, 4, 7.0, -1.5], ["green", 2.0, 5, 7.0, 2.0]]
NAMES = ["color", "size", "count", "fixed", "copy"]
COLUMNS: dict[str, Any] = {name: [row[j] for row in ROWS] for j, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def manifests(models_dir: Path) -> dict[str, Manifest]:
    return {name: open_artifact(models_dir / f"{name}.pt").manifest for name in (IMAGES, MIXED, TABLE)}


def stream(columns: Any, batch_rows: int = 1000, schema: pa.Schema | None = None, **options: Any) -> bytearray:
    """Serialise by the library's own writer."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return bytearray(sink.getvalue())


@pytest.mark.parametrize("batch_rows", [1000, 2])
@pytest.mark.parametrize(
    "change",
    [
        lambda columns: columns,
        lambda columns: dict(reversed(columns.items())),
        lambda columns: {**columns, "color": pa.array(columns["color"]).dictionary_encode()},
        lambda columns: {**columns, "color": pa.array(columns["color"], pa.large_string())},
        lambda columns: {**columns, "color": [2, 0, 1]},
        lambda columns: {**columns, "color": pa.array([2, 0, 1]).dictionary_encode()},
        lambda columns: {**columns, "size": pa.array(columns["size"], pa.float32())},
        lambda columns: {**columns, "count": pa.array(columns["count"], pa.uint8())},
    ],
)
def test_a_table_in_arrow_is_the_table_in_json(
    manifests: dict[str, Manifest], change: Callable[[Any], Any], batch_rows: int
) -> None:
    expected = inputs_from_json([list(row) for row in ROWS], manifests[MIXED])
    columns = arrow.read(stream(change(COLUMNS), batch_rows), any_rows)
    np.testing.assert_array_equal(inputs_from_arrow(columns, manifests[MIXED]), expected, strict=True)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 64), pa.list_(pa.float64()), pa.large_list(pa.uint8())])
def test_images_and_latents_are_one_column_of_lists(manifests: dict[str, Manifest], kind: pa.DataType) -> None:
    x = np.arange(128).reshape(2, 64) % 16
    for batch_rows in (1, 2):
        inputs = arrow.read(stream({"inputs": pa.array(x.tolist(), kind)}, batch_rows), any_rows)
        np.testing.assert_array_equal(
            inputs_from_arrow(inputs, manifests[IMAGES]), x.reshape(2, 1, 8, 8).astype(np.float32), strict=True
        )
        latents = arrow.read(stream({"latents": pa.array(x.tolist(), kind)}, batch_rows), any_rows)
        np.testing.assert_array_equal(latents_from_arrow(latents, manifests[IMAGES]), x.astype(np.float32), strict=True)


def test_lists_of_the_right_type_are_a_view_that_torch_takes(manifests: dict[str, Manifest]) -> None:
    body = bytearray(arrow.write({"inputs": np.ones((2, 64), np.float32)}, {}))
    rows = inputs_from_arrow(arrow.read(body, any_rows), manifests[IMAGES])
    assert np.shares_memory(rows, np.frombuffer(body, np.uint8))
    assert torch.from_numpy(rows).sum() == 128


def test_booleans_are_zeros_and_ones() -> None:
    columns = arrow.read(stream({"a": [True, False]}), any_rows)
    np.testing.assert_array_equal(np.asarray(columns["a"], np.float64), [1, 0])


@given(
    st.dictionaries(
        st.text(max_size=5),
        hnp.arrays(
            hnp.integer_dtypes(endianness="=") | hnp.floating_dtypes(endianness="=") | st.just(np.dtype(bool)),
            st.sampled_from([(5,), (5, 1), (5, 3)]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
def test_what_is_written_is_read(columns: dict[str, Any], metadata: dict[str, str]) -> None:
    body = arrow.write(columns, metadata)
    for name, array in arrow.read(body, any_rows).items():
        np.testing.assert_array_equal(array, columns[name], strict=True)
    with pa.ipc.open_stream(body) as reader:
        assert reader.schema.metadata == {key.encode(): value.encode() for key, value in metadata.items()}


def test_an_answer_comes_in_batches_and_arrays_of_more_axes_are_flattened() -> None:
    images = np.random.default_rng(0).normal(size=(5000, 1, 2, 2))
    parts = list(arrow.write_parts({"outputs": images, "log_likelihood": images[:, 0, 0, 0]}, {"model": "a"}))
    assert len(parts) == 4  # the schema, two batches, the end
    table = pa.ipc.open_stream(b"".join(parts)).read_all()
    assert table.schema.field("outputs").type == pa.list_(pa.float64(), 4)
    np.testing.assert_array_equal(table["outputs"].to_pylist(), images.reshape(5000, 4))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0, None]}, "column 'a' is null in row 1"),
        ({"a": ["x", None]}, "column 'a' is null in row 1"),
        ({"a": pa.array(["x", None]).dictionary_encode()}, "column 'a' is null in row 1"),
        ({"a": pa.DictionaryArray.from_arrays([0, 1], ["x", None])}, "the dictionary of column 'a' holds a null"),
        ({"a": [[1.0], None]}, "column 'a' is null in row 1"),
        ({"a": [[1.0, 2.0], [3.0, None]]}, "column 'a' holds a null in row 1"),
        ({"a": [[1.0, 2.0], [3.0]]}, "column 'a' is ragged: row 1 is a list of 1, but row 0 is a list of 2"),
        ({"a": [[[1.0]]]}, "column 'a' is of type list<item: list<item: double>>; integers, floats"),
        ({"a": [["x"]]}, "column 'a' is of type list<item: string>"),
        ({"a": [{"b": 1}]}, "column 'a' is of type struct<b: int64>"),
        ({"a": pa.array([1], pa.timestamp("s"))}, r"column 'a' is of type timestamp\[s\]"),
        ({"a": pa.array([1], pa.decimal128(5))}, r"column 'a' is of type decimal128\(5, 0\)"),
        ({"a": [b"x"]}, "column 'a' is of type binary"),
        ({"a": [None]}, "column 'a' is of type null"),
    ],
)
def test_a_column_that_is_not_read_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(Unprocessable, match=message):
        arrow.read(stream(columns), any_rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, "inputs lacks column 'size'; model tiny-mixed takes 5 columns"),
        ({"other": [1, 2, 3]}, "inputs has an unknown column 'other'"),
        ({"size": ["a", "b", "c"]}, r"inputs\[0\]\['size'\] must be a number, got a string"),
        ({"size": [[1.0], [2.0], [3.0]]}, r"inputs\[0\]\['size'\] must be a number, got a list"),
        ({"color": ["red", "violet", "red"]}, r"inputs\[1\]\['color'\] is 'violet', neither a category nor"),
        ({"color": [0, 1, 7]}, r"inputs\[2\]\['color'\] is 7, neither a category nor"),
    ],
)
def test_columns_that_are_not_the_models_are_named(
    manifests: dict[str, Manifest], change: dict[str, Any], message: str
) -> None:
    columns = {name: values for name, values in {**COLUMNS, **change}.items() if values is not None}
    with pytest.raises(Unprocessable, match=message):
        inputs_from_arrow(arrow.read(stream(columns), any_rows), manifests[MIXED])


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"inputs": [[1.0] * 63]}, Unprocessable, r"or \(B, 64\) or .* got \(1, 63\)"),
        ({"inputs": [[float("nan")] * 64]}, BadRequest, r"inputs\[0\]\[0\] is nan"),
        ({"other": [[1.0] * 64]}, Unprocessable, "must have one column 'inputs', of lists of 64 numbers"),
        ({"inputs": [[1.0] * 64], "b": [1]}, Unprocessable, "must have one column 'inputs'"),
        ({"inputs": ["x"]}, Unprocessable, "must have one column 'inputs'"),
        ({"inputs": pa.array([], pa.list_(pa.float32(), 64))}, Unprocessable, "inputs is empty"),
    ],
)
def test_what_is_no_column_of_images_is_refused(
    manifests: dict[str, Manifest], columns: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        inputs_from_arrow(arrow.read(stream(columns), any_rows), manifests[IMAGES])


def overlapping() -> bytearray:
    """A stream whose two columns claim the bytes of both."""
    body = stream({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    return body.replace(struct.pack("<qqqq", 0, 0, 0, 16), struct.pack("<qqqq", 0, 0, 0, 32))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (bytearray(), "not a readable Arrow IPC stream"),
        (bytearray(b"ARROW1\0\0"), "not a readable Arrow IPC stream"),
        (stream(COLUMNS)[:-100], "not a readable Arrow IPC stream"),
        (stream(COLUMNS) + b"x", "followed by other bytes"),
        (stream(COLUMNS, compression="zstd"), "compressed Arrow buffers are not read"),
        (stream(COLUMNS, compression="lz4"), "compressed Arrow buffers are not read"),
        (stream({"a": np.zeros(65)}, 1), "more than 64 batches"),
        (overlapping(), "the buffers of an Arrow batch overlap"),
        (stream(pa.table([pa.array([1]), pa.array([2])], ["a", "a"])), "column 'a' 2 times"),
        (
            stream(pa.table({"a": pa.chunked_array([pa.array([t]).dictionary_encode() for t in "xy"])})),
            "more than one dictionary",
        ),
    ],
)
def test_a_stream_that_is_broken_or_could_grow_is_refused(body: bytearray, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        arrow.read(body, any_rows)


def test_the_rows_of_a_stream_are_counted_before_they_are_read() -> None:
    with pytest.raises(TooLarge, match="4 rows"):
        arrow.read(stream({"a": np.zeros(4)}, 2), at_most_three)


streams = st.sampled_from(
    [
        stream(COLUMNS, 2),
        stream({"color": pa.array(["a", "b", "a"]).dictionary_encode()}, 2),
        stream({"inputs": pa.array([[1.0, 2.0], [3.0, 4.0]])}),
        stream({"inputs": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))}),
    ]
).map(bytes)


@given(mutated(streams))
def test_any_bytes_are_a_table_or_an_error_of_the_service(body: bytes) -> None:
    outcome(lambda: arrow.read(body, at_most_three))
