"""Tables to files: Parquet, CSV, or NumPy's structured arrays, written a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet, types

from common.errors import UsageError


def write_parquet(path: Path, schema: pa.Schema, num_rows: int, tables: Iterator[pa.Table]) -> None:
    """One row group a table; real numbers, of which hardly any is there twice, get no dictionaries."""
    repeated: Any = [field.name for field in schema if field.name == "p_value" or not types.is_floating(field.type)]
    with parquet.ParquetWriter(path, schema, compression="lz4", use_dictionary=repeated) as writer:
        for table in tables:
            writer.write_table(table)


def write_csv(path: Path, schema: pa.Schema, num_rows: int, tables: Iterator[pa.Table]) -> None:
    """With a heading; numbers with all their digits."""
    with csv.CSVWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)


def write_npy(path: Path, schema: pa.Schema, num_rows: int, tables: Iterator[pa.Table]) -> None:
    """A structured array (n,) of which each column is a field."""
    kind = np.dtype([(field.name, field.type.to_pandas_dtype()) for field in schema])
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (num_rows,)}
        np.lib.format.write_array_header_1_0(file, header)
        for table in tables:
            records = np.empty(table.num_rows, kind)
            for name in schema.names:
                records[name] = table[name].to_numpy()
            file.write(records.tobytes())


Sink = Callable[[Path, pa.Schema, int, Iterator[pa.Table]], None]
SINKS: dict[str, Sink] = {".parquet": write_parquet, ".csv": write_csv, ".npy": write_npy}


def sink_of(out: Path) -> Sink:
    """What writes a file of such a name. Raises UsageError."""
    if out.suffix not in SINKS:
        raise UsageError(f"{out}: unknown kind of file; expected {', '.join(SINKS)}")
    return SINKS[out.suffix]


_NOT_TEXT = (
    types.is_nested,
    types.is_binary,
    types.is_large_binary,
    types.is_fixed_size_binary,
    types.is_interval,
)


def check_ids(out: Path, ids: pa.Schema, taken: Collection[str]) -> None:
    """Raise UsageError for a column that the kind of file cannot hold, or whose name is one that others have."""
    for field in ids:
        if field.name in taken:
            raise UsageError(
                f"the file has a column {field.name!r}, as the answers or the rejected rows have; choose others (--id)"
            )
        if out.suffix == ".npy":
            raise UsageError(
                f"{out}: holds numbers by the row alone; name no columns (--id), or write .parquet or .csv"
            )
        if out.suffix == ".csv" and any(check(field.type) for check in _NOT_TEXT):
            raise UsageError(
                f"{out}: cannot hold column {field.name!r}, {field.type}; choose others (--id) or .parquet"
            )
