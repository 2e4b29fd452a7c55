"""From what a caller sent to the rows a model takes, or an error that says what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.artifact import Signature
from service.codecs import arrow, image, json_body
from service.columns import Column, listed_categories
from service.errors import BadRequest, Unprocessable

Array = npt.NDArray[Any]


def inputs_from_json(value: object, manifest: Signature) -> Array:
    """Read ``inputs``, an array or nested lists, base64 images or records, to (B, *shape) in the model's dtype."""
    if isinstance(value, np.ndarray):
        return inputs_from_array(value, manifest)
    if isinstance(value, list) and value:
        if manifest.value_range is not None and manifest.is_picture and all(isinstance(item, str) for item in value):
            return image.read_base64(value, manifest.shape, manifest.value_range)
        if manifest.kind == "vector":
            rows = _from_records(value, manifest) if all(isinstance(item, dict) for item in value) else value
            value = _with_codes(rows, manifest)
    return inputs_from_array(json_body.read_numbers(value, "inputs"), manifest)


def inputs_from_array(array: Array, manifest: Signature, name: str = "inputs") -> Array:
    """Check and shape an array of inputs. Raises Unprocessable, or BadRequest where a value is not finite."""
    _refuse_empty(array, name)
    check_shape(array.shape, manifest, name)
    _refuse_non_finite(array, name)
    if manifest.value_range is not None:
        low, high = manifest.value_range[0] - 0.5, manifest.value_range[1] + 0.5
        outside = (array < low) | (array > high)
        if outside.any():
            position = np.argwhere(outside)[0]
            raise Unprocessable(
                f"{_path(name, position)} is {array[tuple(position)]}; pixels must lie in [{low}, {high}]"
            )
    for j in manifest.categorical:
        _check_codes(array[:, j], manifest.columns[j], name)
    return np.ascontiguousarray(array, manifest.input_dtype).reshape(-1, *manifest.shape)


def check_shape(shape: tuple[int, ...], manifest: Signature, name: str = "inputs") -> None:
    """Raise Unprocessable for an array of inputs of a shape that the model does not take."""
    if shape[1:] not in manifest.row_shapes:
        wanted = " or ".join(_shape(("B", *row)) for row in manifest.row_shapes)
        raise Unprocessable(f"{name} must be of shape {wanted} for model {manifest.name}, got {_shape(shape)}")


def inputs_from_arrow(columns: Mapping[str, arrow.Column], manifest: Signature) -> Array:
    """Read the columns of a table by name, in any order, or images from one column ``inputs`` of lists."""
    if manifest.kind == "image":
        return inputs_from_array(_only_column(columns, ("inputs", "samples", "outputs"), manifest), manifest)
    if columns.keys() != {column.name for column in manifest.columns}:
        raise _wrong_names("inputs", columns, manifest)
    arrays = []
    for column in manifest.columns:
        value = columns[column.name]
        array = _codes(value, column) if isinstance(value, arrow.Strings) else value
        if array.ndim > 1:
            raise Unprocessable(f"inputs[0][{column.name!r}] must be a number, got a list")
        arrays.append(array)
    return inputs_from_array(np.stack(arrays, 1, dtype=np.float64, casting="unsafe"), manifest)


def latents_from_json(value: object, manifest: Signature) -> Array:
    """Read ``latents``, an array or nested lists, to (B, D) float32."""
    array = value if isinstance(value, np.ndarray) else json_body.read_numbers(value, "latents")
    return latents_from_array(array, manifest)


def latents_from_arrow(columns: Mapping[str, arrow.Column], manifest: Signature) -> Array:
    """Read one column ``latents`` of lists to (B, D) float32."""
    return latents_from_array(_only_column(columns, ("latents",), manifest), manifest)


def latents_from_array(array: Array, manifest: Signature, name: str = "latents") -> Array:
    """Check an array of latent codes: (B, D) float32."""
    _refuse_empty(array, name)
    if array.shape[1:] != (manifest.num_dims,):
        wanted = _shape(("B", manifest.num_dims))
        raise Unprocessable(f"{name} must be of shape {wanted} for model {manifest.name}, got {_shape(array.shape)}")
    _refuse_non_finite(array, name)
    limit = np.finfo(np.float32).max
    return np.clip(array, -limit, limit).astype(np.float32)


def _from_records(records: list[dict[str, Any]], manifest: Signature) -> list[list[object]]:
    """Order the values of records by column."""
    names = [column.name for column in manifest.columns]
    named = set(names)
    for i, record in enumerate(records):
        if record.keys() != named:
            raise _wrong_names(f"inputs[{i}]", record, manifest)
    rows = [[record[name] for name in names] for record in records]
    for j, column in enumerate(manifest.columns):
        of_numbers = column.type != "categorical"
        taken = {int, float} if of_numbers else {int, float, str}
        if not {type(row[j]) for row in rows} <= taken:
            i = next(i for i, row in enumerate(rows) if type(row[j]) not in taken)
            wanted = "a number" if of_numbers else "a category or a number"
            got = json_body.kind_of(rows[i][j])
            raise Unprocessable(f"inputs[{i}][{column.name!r}] must be {wanted}, got {got}")
    return rows


def _wrong_names(what: str, values: Mapping[str, object], manifest: Signature) -> Unprocessable:
    """Say which name the values lack, or have beyond those of the model's columns."""
    names = dict.fromkeys(column.name for column in manifest.columns)
    missing = [name for name in names if name not in values]
    extra = [name for name in values if name not in names]
    fault = f"lacks column {missing[0]!r}" if missing else f"has an unknown column {extra[0][:100]!r}"
    return Unprocessable(f"{what} {fault}; model {manifest.name} takes {len(names)} columns")


def _only_column(columns: Mapping[str, arrow.Column], names: Sequence[str], manifest: Signature) -> Array:
    """The array of the one column that there must be; beside it may stand what our own answers have."""
    found = [value for name, value in columns.items() if name != "log_likelihood"]
    if len(found) != 1 or isinstance(found[0], arrow.Strings) or not columns.keys() & set(names):
        raise Unprocessable(
            f"the Arrow stream must have one column {names[0]!r}, of lists of {manifest.num_dims} numbers, "
            f"for model {manifest.name}"
        )
    return found[0]


def _codes(strings: arrow.Strings, column: Column) -> Array:
    """Codes of the names of categories."""
    if column.type != "categorical":
        raise Unprocessable(f"inputs[0][{column.name!r}] must be a number, got a string")
    codes = np.array([column.codes.get(name, -1) for name in strings.names], np.int64)[strings.codes]
    for i in np.flatnonzero(codes < 0)[:1]:
        raise _unknown_category(int(i), column, repr(strings.names[strings.codes[i]][:100]))
    return codes


def _with_codes(rows: list[Any], manifest: Signature) -> list[Any]:
    """Replace the names of categories by their codes. Raises Unprocessable for a name that the model does not know."""
    for j, column in enumerate(manifest.columns):
        if column.type == "categorical":
            for i, row in enumerate(rows):
                if isinstance(row, list) and j < len(row) and isinstance(row[j], str):
                    if row[j] not in column.codes:
                        raise _unknown_category(i, column, repr(row[j][:100]))
                    row[j] = column.codes[row[j]]
    return rows


def _check_codes(values: Array, column: Column, name: str) -> None:
    """Raise Unprocessable where a value lies in the bin of no category's code, as decoded ones do off its centre."""
    wrong = (values < -0.5) | (values >= len(column.categories) - 0.5)
    for i in np.flatnonzero(wrong)[:1]:
        raise _unknown_category(int(i), column, f"{values[i]:g}", name)


def _unknown_category(row: int, column: Column, value: str, name: str = "inputs") -> Unprocessable:
    return Unprocessable(
        f"{name}[{row}][{column.name!r}] is {value}, neither a category nor the code, 0 to "
        f"{len(column.categories) - 1}, of one: {listed_categories(column.categories)}"
    )


def _refuse_empty(array: Array, name: str) -> None:
    if array.size == 0:
        raise Unprocessable(f"{name} is empty; at least one row is needed")


def _refuse_non_finite(array: Array, name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        position = np.argwhere(~finite)[0]
        raise BadRequest(f"{_path(name, position)} is {array[tuple(position)]}; every value must be finite")


def _path(name: str, position: npt.NDArray[np.intp]) -> str:
    return name + "".join(f"[{i}]" for i in position)


def _shape(shape: tuple[object, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
