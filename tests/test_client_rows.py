"""What callers have becomes rows, or is refused by name before anything is sent."""

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from service.client import InvalidRequest, ServiceFailed
from service.client.rows import numbers_of, table_of

ABOUT = {
    "name": "m",
    "columns": [
        {"name": "color", "type": "categorical", "categories": ["blue", "red"]},
        {"name": "size", "type": "continuous"},
    ],
}
ROWS = [[1.0, 2.5], [0.0, 3.0]]


class Frame:
    """A data frame of a library that nobody knows: names of columns, and a column for a name."""

    columns = ("size", "id", "color")

    def __getitem__(self, name: str) -> list[Any]:
        columns: dict[str, list[Any]] = {"size": [2.5, 3], "id": ["a", "b"], "color": ["red", "blue"]}
        return columns[name]


@pytest.mark.parametrize(
    "x",
    [
        Frame(),
        pd.DataFrame({"size": [Decimal("2.5"), 3], "color": ["red", "blue"]}),
        pd.DataFrame({"size": [2.5, 3], "color": pd.Categorical(["red", "blue"]), "when": pd.Timestamp(0)}),
        pd.DataFrame({"size": [2.5, 3], "color": [1, 0], "columns": 0, "column_names": 0}),
        pa.RecordBatch.from_pydict({"color": ["red", "blue"], "size": [2.5, 3]}),
        pa.table({"color": [1, 0], "size": pa.array([2.5, 3], pa.float32())}),
        [{"size": 2.5, "color": "red", "other": None}, {"color": 0, "size": 3}],
        [["red", 2.5], ["blue", 3]],
        np.array([["red", 2.5], [0, 3]], object),
    ],
)
def test_columns_are_found_by_name_and_categories_by_name_or_code(x: Any) -> None:
    assert numbers_of(x, "x") is None
    np.testing.assert_array_equal(table_of(x, ABOUT, "x"), ROWS)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (pd.DataFrame({"id": [1]}), "^x lacks column 'color', 'size'; model m takes 2 columns$"),
        ([{"color": 1, "size": 1}, {"color": 1}], r"^x\[1\] lacks column 'size'"),
        ([{"color": 1, "size": 1}, [1, 1]], r"^x\[1\] must be a record, as x\[0\] is, got list"),
        (
            pa.table({"color": ["red", "pink"], "size": [1, 2]}),
            r"^x\[1\]\['color'\] must be one of blue, red, got 'pink'",
        ),
        (pa.table({"color": ["red", None], "size": [1, 2]}), r"^x\[1\]\['color'\] must be one of blue, red, got None"),
        (pa.table({"color": ["red"], "size": ["1.5"]}), r"^x\[0\]\['size'\] must be a number, got '1.5'"),
        (pd.DataFrame({"color": [1], "size": pd.Timestamp(0)}), r"^x\['size'\] must be numbers, got datetime64"),
        (pd.DataFrame([[1, 2, 3]], columns=["color", "size", "size"]), "^x has more than one column 'size'$"),
        (pa.table([[1], [2], [3]], names=["color", "size", "size"]), "^x has more than one column 'size'$"),
        ([["red", 1, 2]], r"^x must be of shape \(N, 2\) for model m, got \(1, 3\)"),
        (["red"], r"^x must be of shape \(N, 2\) for model m, got \(1,\)"),
    ],
)
def test_what_is_missing_or_wrong_is_named(x: Any, message: str) -> None:
    assert numbers_of(x, "x") is None
    with pytest.raises(InvalidRequest, match=message):
        table_of(x, ABOUT, "x")


@pytest.mark.parametrize(
    "columns", [5, "ab", ["a"], [{}], [{"name": 1}], {"name": "a"}, [{"name": "a", "categories": 5}]], ids=repr
)
def test_columns_that_no_service_describes_so_are_its_fault(columns: object) -> None:
    with pytest.raises(ServiceFailed, match="the columns of model m are not those of a Glow service"):
        table_of([{"a": 1}], {"name": "m", "columns": columns}, "x")


def test_arrays_of_numbers_go_as_they_are() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert numbers_of(image, "x") is image
    for array, dtype in (
        (image > 2, np.uint8),
        (image.astype(">f4"), "<f4"),
        (image.astype(np.longdouble), np.float64),
    ):
        found = numbers_of(array, "x")
        assert found is not None
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)
    for wrong in (7, None, {"a": 1}):
        with pytest.raises(InvalidRequest, match=r"^x must be rows: an array, a data frame or a list of records"):
            numbers_of(wrong, "x")
    with pytest.raises(InvalidRequest, match=r"^x must be an array, a data frame or a list of records: "):
        numbers_of([[1, 2], [3]], "x")
    hidden = np.ma.masked_equal([[1.0, 2.0]], 2)
    with pytest.raises(InvalidRequest, match=r"^x has masked values; every value must be there$"):
        numbers_of(hidden, "x")
    np.testing.assert_array_equal(numbers_of(hidden[:, :1], "x"), [[1]])
