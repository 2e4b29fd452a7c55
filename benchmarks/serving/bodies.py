"""Request bodies: rows like those of an artifact's golden case, as JSON or as npy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from service.artifact import golden_rows, open_artifact

Array = npt.NDArray[Any]
Media = Literal["json", "npy"]
MEDIA_TYPES: dict[Media, str] = {"json": "application/json", "npy": "application/x-npy"}
SPREAD = 0.05  # of the rows around golden ones, in scales of a column
DIGITS = 4  # significant ones of a measurement


def table_rows(artifact: Path, num_rows: int) -> Array:
    """Rows of a table of real numbers: golden ones, slightly moved, with the digits that a measurement has."""
    manifest = open_artifact(artifact).manifest
    rows = golden_rows(manifest, "statistics", num_rows)
    scales = np.array([column.scale for column in manifest.columns])
    moved = np.abs(rows + SPREAD * scales * np.random.default_rng(0).normal(size=rows.shape))
    return np.array([[float(f"{value:.{DIGITS}g}") for value in row] for row in moved])


def encoded(rows: Array, media: Media, **options: object) -> bytes:
    """One request body, in JSON with options of the route."""
    if media == "json":
        return orjson.dumps({"inputs": rows.tolist(), **options})
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return buffer.getvalue()


def write_body(folder: Path, rows: Array, media: Media, **options: object) -> Path:
    """Write a body to a file of its own."""
    path = folder / f"{len(rows)}-{rows.dtype}.{media}"
    path.write_bytes(encoded(rows, media, **options))
    return path
