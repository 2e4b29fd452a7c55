"""Scratch files: arrays that may be larger than memory, one a host, mapped by all its processes.

The file system forgets them when the processes end, however they do: they lose their names as soon as all have them.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.dataset import Array, DataError, Dataset
from model.distributed import Processes


def scratch(shape: tuple[int, ...], dtype: npt.DTypeLike, source: str, processes: Processes) -> Array:
    """Map a file in TMPDIR, the same in all processes of a host; its space is reserved at once. Raises DataError."""
    size = math.prod(shape) * np.dtype(dtype).itemsize

    def create() -> Path:
        try:
            descriptor, name = tempfile.mkstemp(prefix="glow-")
            try:
                if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process
                    os.posix_fallocate(descriptor, 0, size)
            except OSError:
                os.unlink(name)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            folder = tempfile.gettempdir()
            raise DataError(f"{source}: needs {size} bytes in {folder} (TMPDIR): {error.strerror}") from error
        return Path(name)

    path = processes.once_a_host(create)
    x = processes.together(lambda: np.memmap(path, dtype, "r+", shape=shape))
    if processes.leads_host:
        path.unlink()
    return x


def read_once(read: Callable[[], Dataset], source: str, processes: Processes) -> Dataset:
    """Read data in one process of each host; the others map what it has read."""
    if processes.size == 1:
        return read()
    data = processes.together(lambda: read() if processes.leads_host else None)
    about = None if data is None else (data.x.shape, data.x.dtype, data.columns, data.categories)
    shape, dtype, columns, categories = processes.once_a_host(lambda: about)  # type: ignore[misc]
    x = scratch(shape, dtype, source, processes)

    def fill() -> None:
        if data is not None:
            x[:] = data.x

    processes.together(fill)
    return Dataset(x, columns, categories)
