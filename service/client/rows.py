"""From what a caller has, arrays, data frames or records, to one array of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.client.errors import InvalidRequest, ServiceFailed

Array = npt.NDArray[Any]
_NUMBERS = "biuf"  # kinds of dtypes
_LISTED = 20  # names in a message


def numbers_of(x: Any, name: str) -> Array | None:  # noqa: ANN401 (whatever a caller has)
    """View rows as an array of numbers; None for what can only be read with a model's columns.

    Those are data frames, records, and arrays or lists that hold text or other objects. Raises InvalidRequest.
    """
    if _column_names(x) is not None or _are_records(x):
        return None
    if np.ma.is_masked(x):
        raise InvalidRequest(f"{name} has masked values; every value must be there")
    try:
        array = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"{name} must be an array, a data frame or a list of records: {error}") from error
    if array.ndim == 0:
        raise InvalidRequest(
            f"{name} must be rows: an array, a data frame or a list of records; got {type(x).__name__}"
        )
    if array.dtype.kind not in _NUMBERS:
        return None
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.itemsize > 8:  # of 80 or 128 bits
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def table_of(x: Any, about: Mapping[str, Any], name: str) -> Array:  # noqa: ANN401 (whatever a caller has)
    """Read rows by the columns that a model says it has, the answer of /models/NAME: (N, D) float64.

    Columns of frames and members of records are found by name, others are ignored; categories come by name or by
    code. Raises InvalidRequest, naming what is missing or wrong, and ServiceFailed where ``about`` is none of a model.
    """
    columns = _columns(about)
    model = about["name"]
    if not columns:
        raise InvalidRequest(f"{name}: model {model} takes images, as an array of numbers")
    names = [column["name"] for column in columns]
    values: Sequence[Array] | Array
    found = _column_names(x)
    if found is not None:
        _check_names(name, names, found, model)
        for column in names:
            if found.count(column) > 1:
                raise InvalidRequest(f"{name} has more than one column {column!r}")
        values = [np.asarray(x[column]) for column in names]
    elif _are_records(x):
        for i, record in enumerate(x):
            if not isinstance(record, Mapping):
                raise InvalidRequest(f"{name}[{i}] must be a record, as {name}[0] is, got {type(record).__name__}")
            _check_names(f"{name}[{i}]", names, record, model)
        values = [_objects([record[column] for record in x]) for column in names]
    else:
        array = x if isinstance(x, np.ndarray) else np.array(x, object)  # or numbers beside text would become text
        if array.ndim != 2 or array.shape[1] != len(names):
            raise InvalidRequest(f"{name} must be of shape (N, {len(names)}) for model {model}, got {array.shape}")
        values = array.T
    rows = np.empty((len(values[0]), len(names)))
    for j, (column, array) in enumerate(zip(columns, values, strict=True)):
        rows[:, j] = _column(array, column, name)
    return rows


def _columns(about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    columns = about.get("columns") or []
    try:
        told = [text for column in columns for text in (column["name"], *column.get("categories", ()))]
    except (KeyError, TypeError, AttributeError):
        told = [None]
    if not all(isinstance(text, str) for text in told):
        raise ServiceFailed(f"the columns of model {about['name']} are not those of a Glow service")
    return list(columns)


def _column_names(x: Any) -> list[Any] | None:  # noqa: ANN401 (whatever a caller has)
    """Names of a data frame's columns: of pandas, polars, pyarrow and all that have the same attributes."""
    # By the class, as frames of pandas have their columns as attributes, too.
    names = x.column_names if hasattr(type(x), "column_names") else getattr(x, "columns", None)
    return None if names is None else list(names)


def _are_records(x: object) -> bool:
    return isinstance(x, list | tuple) and len(x) > 0 and isinstance(x[0], Mapping)


def _check_names(what: str, names: Sequence[str], found: Sequence[Any] | Mapping[Any, Any], model: str) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidRequest(
            f"{what} lacks column {_list([*map(repr, missing)])}; model {model} takes {len(names)} columns"
        )


def _objects(values: list[Any]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _column(values: Array, column: Mapping[str, Any], name: str) -> Array:
    """Numbers of one column (N,), the names of categories replaced by their codes."""
    if values.dtype.kind in _NUMBERS:
        return values
    if values.dtype.kind not in "OUT":
        raise InvalidRequest(f"{name}[{column['name']!r}] must be numbers, got {values.dtype}")
    codes = {category: code for code, category in enumerate(column.get("categories", ()))}
    numbers = np.empty(len(values))
    for i, value in enumerate(values.tolist()):
        try:
            numbers[i] = codes[value] if isinstance(value, str) else float(value)
        except (KeyError, TypeError, ValueError):
            wanted = f"one of {_list(list(codes))}" if codes else "a number"
            got = repr(value) if isinstance(value, str) else str(value)
            raise InvalidRequest(f"{name}[{i}][{column['name']!r}] must be {wanted}, got {got[:100]}") from None
    return numbers


def _list(names: list[str]) -> str:
    return ", ".join([*names[:_LISTED], *(["..."] if len(names) > _LISTED else [])])
