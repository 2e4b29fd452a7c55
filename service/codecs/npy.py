"""The NumPy file format, versions 1 and 2, without pickled objects and without trusting the header's size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from service.codecs import MAX_DIMS
from service.errors import BadRequest

MEDIA_TYPE = "application/x-npy"
_MAX_HEADER_BYTES = 4096


def read(body: bytes | bytearray, check_rows: Callable[[int], None] | None = None) -> npt.NDArray[Any]:
    """View the body as the array it holds. Raises BadRequest.

    ``check_rows`` gets the first size of the header's shape, and may raise.
    """
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
        raise BadRequest("the array must hold real numbers of at most 8 bytes")
    if len(shape) > MAX_DIMS or not all(type(size) is int and 0 <= size <= len(body) for size in shape):
        raise BadRequest(f"the array's shape must be at most {MAX_DIMS} sizes, none larger than the body")
    if check_rows is not None and shape:
        check_rows(shape[0])
    actual = len(body) - stream.tell()
    if math.prod(shape) * dtype.itemsize != actual:
        raise BadRequest(f"the header's shape and dtype do not fit the {actual} bytes of data that follow")
    flat = np.frombuffer(body, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


def write(array: npt.NDArray[Any]) -> bytes:
    """Serialise an array, version 1.0."""
    return b"".join(write_parts(array))


def write_parts(array: npt.NDArray[Any]) -> list[bytes | memoryview]:
    """Serialise an array to a header and a view of its data, which is copied where it is not contiguous."""
    contiguous = np.ascontiguousarray(array)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(contiguous))
    return [stream.getvalue(), contiguous.ravel().view(np.uint8).data]
