"""What the tests of bulk scoring share: rows, and files read back."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tests.conftest import tiny_table

ANSWERS = ["log_likelihood", "bits_per_dim", "score", "p_value", "is_anomaly"]


def rows_of_table(num: int) -> pa.Table:
    x = tiny_table(4 * num).fit.x
    columns = dict(zip(("a", "b", "count"), x.T, strict=True))
    return pa.table({"name": [f"row {i}" for i in range(num)], **columns, "batch": np.arange(num) // 7})


def bad_rows_of_table(num: int) -> pa.Table:
    rows = rows_of_table(num)
    return rows.set_column(1, "a", pa.array(rows["a"].to_numpy(), mask=np.arange(num) % 11 == 5))


def read(path: Path) -> dict[str, list[Any]]:
    """Columns of a file of scores; all of CSV is text but the answers."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pydict()
    if path.suffix == ".npy":
        array = np.load(path)
        return {name: array[name].tolist() for name in array.dtype.names}
    with path.open(newline="") as file:
        heading, *lines = csv.reader(file)
    columns: dict[str, list[Any]] = dict(zip(heading, map(list, zip(*lines, strict=True)), strict=True))
    for name in ANSWERS:
        columns[name] = [text == "true" if name == "is_anomaly" else float(text) for text in columns[name]]
    return columns
