"""The golden case: rows in the manifest, and the answers that whatever runs the program must reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.artifact.manifest import Manifest, Operation

ROUND_TRIP_TOLERANCE = 1e-2  # of decode(encode(x)), in pixel units or scales of a column; of latent codes

Array = npt.NDArray[Any]


def within_tolerance(values: Array, expected: Array) -> bool:
    """|difference| <= 1e-3 + 1e-6 |expected| nats: the one tolerance of log-likelihoods between plans and machines."""
    return bool(np.all(np.abs(values - expected) <= 1e-3 + 1e-6 * np.abs(expected)))


def golden_rows(manifest: Manifest, operation: Operation, num_rows: int | None = None) -> Array:
    """What the golden case feeds to an operation, over and over up to so many rows; once by default."""
    golden = manifest.golden
    if operation == "decode":
        rows = np.asarray(golden.latents, np.float32)
    else:
        rows = np.asarray(golden.inputs, manifest.input_dtype).reshape(-1, *manifest.shape)
    return rows if num_rows is None else np.resize(rows, (num_rows, *rows.shape[1:]))


def golden_fault(manifest: Manifest, operation: Operation, outputs: Sequence[Array]) -> str | None:
    """Tell what is wrong with an operation's outputs for ``golden_rows``, of any number of rows; None if nothing is."""
    golden, num_rows = manifest.golden, len(outputs[0])
    if operation == "decode":
        x = golden_rows(manifest, "encode", num_rows)
        return _far("decode(encode(x))", np.abs(outputs[0] - x) / manifest.unit)
    if operation == "encode":
        latents = np.resize(np.asarray(golden.latents), outputs[0].shape)
        if fault := _far("latents", np.abs(outputs[0] - latents)):
            return fault
    expected = np.asarray(golden.statistics)
    if operation == "statistics" and outputs[0].shape[1:] != expected.shape[1:]:
        return f"statistics are {outputs[0].shape[1]}, not {manifest.statistics}"
    columns = _columns(operation, outputs)
    for name, values, wanted in zip(manifest.statistics, columns, expected.T, strict=False):
        if not within_tolerance(values, np.resize(wanted, num_rows)):
            return f"{name} is {values[: len(wanted)].tolist()}, expected {wanted.tolist()}"
    return None


def _columns(operation: Operation, outputs: Sequence[Array]) -> Sequence[Array]:
    """What of the golden statistics an operation's outputs give, log_prob first."""
    if operation == "statistics":
        return list(outputs[0].T)
    return [outputs[0].sum((1, 2))] if operation == "log_prob_map" else outputs[1:]


def _far(what: str, errors: Array) -> str | None:
    worst = float(errors.max())
    return (
        None
        if worst <= ROUND_TRIP_TOLERANCE
        else f"{what} differ by {worst:.3g}, expected at most {ROUND_TRIP_TOLERANCE}"
    )
