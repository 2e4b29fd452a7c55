"""Datatypes of the Open Inference Protocol, for both ends of it; NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MEDIA_TYPE = "application/octet-stream"
# What tensors of a request may hold; answers have BOOL besides.
DATATYPES: dict[str, np.dtype[Any]] = {
    f"{prefix}{8 * size}": np.dtype(f"<{kind}{size}")
    for prefix, kind, sizes in (("INT", "i", (1, 2, 4, 8)), ("UINT", "u", (1, 2, 4, 8)), ("FP", "f", (2, 4, 8)))
    for size in sizes
}
ANSWERED = {**DATATYPES, "BOOL": np.dtype(np.bool_)}
_NAMES = {dtype: name for name, dtype in ANSWERED.items()}


def datatype_of(dtype: npt.DTypeLike) -> str:
    """Name of a dtype in the protocol."""
    return _NAMES[np.dtype(dtype)]
