"""What the workers of one host share: a folder of files that each of them has in its memory."""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def shared_folder() -> Path | None:
    """Where the workers of one host keep what they share; None for the only one."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return None if folder is None else Path(folder)


def allocate(file: int, num_bytes: int) -> None:
    """Have the disk hold so many bytes of a file, zeros at first. Raises OSError where it is full.

    A write to memory of a file that the disk has no room for ends the process instead, by SIGBUS.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, num_bytes)
    else:  # of macOS
        os.ftruncate(file, max(num_bytes, os.fstat(file).st_size))


def shared_record(layout: np.dtype[Any], path: Path | None) -> tuple[AbstractContextManager[object], npt.NDArray[Any]]:
    """One record of a structured type, zeros at first, and the lock of it; in a file that others open too, if given."""
    memory: mmap.mmap | bytearray = bytearray(layout.itemsize)
    lock: AbstractContextManager[object] = nullcontext()
    if path is not None:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        allocate(file, layout.itemsize)
        lock, memory = _FileLock(file), mmap.mmap(file, layout.itemsize)
    return lock, np.frombuffer(memory, layout)


class _FileLock:
    """Holds a file's lock, which ends with its process."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def __del__(self) -> None:
        os.close(self._file)
