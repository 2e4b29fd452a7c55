"""The workers of one host, to each other: what each serves, told by a file in a folder that they share."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from common.files import write_whole
from service.errors import ReloadRefused
from service.shared import shared_folder

logger = logging.getLogger(__name__)

_CLOCKS_NS = 20_000_000  # that times of files may be behind


def served_files(folder: Path) -> list[Path]:
    """Files of workers that are or were ready; each is named by its process."""
    return list(folder.glob("serving-*[0-9]"))


class Peers:
    """Processes that serve the same as this one: here, none."""

    def announce(self, served: str) -> None:
        """Tell what this process serves from now on, or "" that it has refused to reload."""

    async def bring_along(self, seconds: float) -> int | None:
        """Have all reload, and wait until each has, and serves the same; their number, None for this process alone.

        Raises ReloadRefused where one refuses, or that takes longer.
        """
        return None


class Workers(Peers):
    """This process among the workers of its host; alone, where no supervisor started it."""

    def __init__(self) -> None:
        self._folder = None if multiprocessing.parent_process() is None else shared_folder()

    def announce(self, served: str) -> None:
        if self._folder is None:
            return
        try:
            write_whole(self._folder / f"serving-{os.getpid()}", lambda path: path.write_text(served))
        except OSError as error:  # who waits for it hears that not all have followed
            logger.error("%s: cannot be written: %s", error.filename, error.strerror)

    async def bring_along(self, seconds: float) -> int | None:
        if self._folder is None:
            return None
        since = time.time_ns() - _CLOCKS_NS
        os.kill(os.getppid(), signal.SIGHUP)  # which the supervisor passes on to all
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    files = [path for path in served_files(self._folder) if _lives(path)]
                    told = {path.read_text() for path in files if path.stat().st_mtime_ns >= since}
                    if "" in told:
                        break
                    if len(told) == 1 and all(path.stat().st_mtime_ns >= since for path in files):
                        return len(files)
                    await asyncio.sleep(0.05)
        raise ReloadRefused("not all workers have followed; their log tells why")


def _lives(path: Path) -> bool:
    return Path("/proc", path.name.partition("-")[2]).exists()
