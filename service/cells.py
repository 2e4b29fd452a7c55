"""Cells of a column in a file: numbers, names or text become what ``service.rows`` takes, or a reason why not.

A number in a categorical column is the name of a category where all names of that column are numbers, and its code
otherwise; so is text that is no name but a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from service.codecs import arrow
from service.columns import Column

_WORDS = {"true": 1.0, "false": 0.0}
_MISSING = "is missing; every value must be present"


@dataclass(frozen=True)
class Cells:
    """Values of B rows; of those with a fault they mean nothing."""

    values: arrow.Column
    faults: dict[int, str]  # "is missing; every value must be present"


def is_readable(kind: pa.DataType, column: Column) -> bool:
    """Whether a file's column of this type can hold the values of a model's column."""
    kind = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    if _is_text(kind):
        return column.type == "categorical"
    return any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_boolean, types.is_null))


def read_cells(array: pa.Array[Any], column: Column) -> Cells:
    """Read cells of integers, floats, booleans or text, or dictionaries of these."""
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    is_text = _is_text(array.type)
    if is_text and column.type == "categorical":
        nulls = np.asarray(array.is_null().to_numpy(zero_copy_only=False))
        return Cells(_names(array, column), dict.fromkeys(np.flatnonzero(nulls).tolist(), _MISSING))
    array, faults = _numbers(array) if is_text else (array, {})
    if array.type != pa.float64():
        array = array.cast(pa.float64(), safe=False)
    values = np.asarray(array.to_numpy(zero_copy_only=False))  # null is NaN
    if not np.isfinite(values).all():
        for i in np.flatnonzero(~np.isfinite(values)).tolist():
            faults.setdefault(i, _MISSING if math.isnan(values[i]) else f"is {values[i]}; every value must be finite")
    by_number = _names_by_number(column)
    if by_number:
        found, codes = np.unique(values, return_inverse=True)
        return Cells(arrow.Strings(codes, [by_number.get(value, f"{value:g}") for value in found.tolist()]), faults)
    return Cells(values, faults)


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _names(texts: pa.Array[Any], column: Column) -> arrow.Strings:
    encoded: Any = texts.cast(pa.large_string()).dictionary_encode()
    by_number = _names_by_number(column)
    names = [_name(text, column, by_number) for text in encoded.dictionary.to_pylist()]
    return arrow.Strings(encoded.indices.fill_null(0).to_numpy().astype(np.int64), names)


def _name(text: str, column: Column, by_number: dict[float, str]) -> str:
    """Name of the category that a text means; the text itself where it means none."""
    number = None if text in column.codes else _number(text)
    if number is None:
        return text
    if by_number:
        return by_number.get(number, text)
    return column.categories[int(number)] if number in range(len(column.categories)) else text


def _names_by_number(column: Column) -> dict[float, str]:
    """Names of categories by the numbers that they are; none where one of them is no number, or two are the same."""
    if not column.categories:
        return {}
    numbers = {_number(name): name for name in column.categories}
    return {} if len(numbers) < len(column.categories) else {k: name for k, name in numbers.items() if k is not None}


def _numbers(texts: pa.Array[Any]) -> tuple[pa.Array[Any], dict[int, str]]:
    """Numbers that texts are, null where they are none, and what is wrong with these."""
    try:
        return texts.cast(pa.float64()), {}
    except pa.ArrowInvalid:
        written = texts.to_pylist()
    values = [None if text is None else _number(text) for text in written]
    wrong = [i for i, value in enumerate(values) if value is None and written[i] is not None]
    faults = {i: f"is {str(written[i])[:100]!r}; expected a number" for i in wrong}
    return pa.array(values, pa.float64()), faults


def _number(text: str) -> float | None:
    """The number that a text is; words for true and false are 1 and 0."""
    text = text.strip().lower()
    if text in _WORDS:
        return _WORDS[text]
    try:
        number = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return None if math.isnan(number) else number
