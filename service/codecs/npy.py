"""The NumPy file format, version 1 to 3, without pickled objects and without trusting the header's size."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import BadRequest

MEDIA_TYPE = "application/x-npy"
_MAX_HEADER_BYTES = 4096


def read(body: bytes | bytearray) -> npt.NDArray[Any]:
    """View the body as the array it holds. Raises BadRequest."""
    stream = io.BytesIO(body[: _MAX_HEADER_BYTES + 16])
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
    except Exception as error:  # the header is a Python literal: evaluating a hostile one can raise nearly anything
        raise BadRequest("the body is not a NumPy file of version 1 or 2") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BadRequest(f"the array must hold real numbers of at most 8 bytes, got dtype {str(dtype)[:40]}")
    if any(size < 0 for size in shape):
        raise BadRequest("the array's shape holds a negative size")
    expected, actual = math.prod(shape) * dtype.itemsize, len(body) - stream.tell()
    if expected != actual:
        raise BadRequest(f"the header announces {expected} bytes of data, but {actual} follow")
    return np.frombuffer(body, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")


def write(array: npt.NDArray[Any]) -> bytes:
    """Serialise an array, version 1.0."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()
