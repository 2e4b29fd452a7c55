"""What a target is: a reader of bytes, what it promises, and what such bytes look like."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from reliability.fuzz.limits import MAX_GROWTH_MB, MAX_SECONDS
from service.artifact import Signature
from service.columns import Column
from service.errors import ServiceError

IMAGES = Signature(name="tiny-images", version="0" * 12, kind="image", shape=(1, 8, 8), value_range=(0, 15))
MIXED = Signature(
    name="tiny-mixed",
    version="0" * 12,
    kind="vector",
    shape=(5,),
    columns=[
        Column(name="color", type="categorical", center=1, scale=1, categories=["blue", "green", "red"]),
        Column(name="size", type="continuous", center=0, scale=1),
        Column(name="count", type="integer", center=5, scale=3),
        Column(name="fixed", type="constant", center=7, scale=0.3),
        Column(name="copy", type="duplicate", center=0, scale=1, duplicate_of="size"),
    ],
)
NAMES = [column.name for column in MIXED.columns]


class Finding(Exception):
    """A promise that was not kept."""


@dataclass(frozen=True)
class Target:
    """A reader of bytes, which takes them, its promise checked by ``read`` itself, or refuses them by its own errors.

    ``refusals`` are these; one of the service must have a status below 500. ``words`` are what its format is made of,
    and ``repair`` makes lengths and checksums fit again that a mutation broke, or nothing behind them is ever reached.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    refusals: tuple[type[Exception], ...] = (ServiceError,)
    words: tuple[bytes, ...] = ()
    repair: Callable[[bytes], bytes] | None = None
    holds_json: bool = False

    def check(self, data: bytes) -> bool:
        """Tell whether an input is taken or refused. Raises whatever is neither."""
        try:
            self.read(data)
        except self.refusals as error:
            if isinstance(error, ServiceError) and error.status >= 500:
                raise Finding(f"refused as the service's own fault: {error.status}") from error
            return False
        return True


class Budget:
    """Seconds and memory of single inputs; ``end`` raises Finding where one took too much of either."""

    def __init__(self, max_seconds: float = MAX_SECONDS, max_growth_mb: float = MAX_GROWTH_MB) -> None:
        self._max_seconds, self._max_growth_mb = max_seconds, max_growth_mb
        self.slowest_s = 0.0
        self.peak_mb = peak_mb()

    def begin(self) -> None:
        """Before an input."""
        self._begun = time.process_time()

    def end(self) -> None:
        """After it."""
        seconds, peak = time.process_time() - self._begun, peak_mb()
        growth, self.peak_mb = peak - self.peak_mb, peak
        self.slowest_s = max(self.slowest_s, seconds)
        if seconds > self._max_seconds:
            raise Finding(f"took {seconds:.1f} s of the processor; {self._max_seconds:g} is the most")
        if growth > self._max_growth_mb:
            raise Finding(f"took {growth:.0f} MB of memory; {self._max_growth_mb:g} is the most")


@contextmanager
def replaced(module: ModuleType, name: str, by: object) -> Iterator[None]:
    """Exchange a function of a module for a while, as unittest.mock does, at a hundredth of its cost."""
    original = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, original)


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_folder = tempfile.TemporaryDirectory(prefix="glow-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def as_file(data: bytes, suffix: str) -> Path:
    """Bytes as a file, which the next one of the same suffix replaces."""
    path = Path(_folder.name, f"rows{suffix}")
    path.write_bytes(data)
    return path
