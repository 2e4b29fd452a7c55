"""Quotas: so many rows a second for each key, by token buckets that all workers of a host share."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from service.errors import QuotaExceeded, TooLarge
from service.shared import shared_record

_LAYOUT = np.dtype([("rows", "f8"), ("at", "f8")])  # what it held, and when: seconds of the system's monotonic clock


class TokenBucket:
    """Fills with ``rate`` rows a second up to ``burst``; empty, it refuses. Full at first."""

    def __init__(self, owner: str, rate: float, burst: int, folder: Path | None = None) -> None:
        self.name = f"quota-{owner}-{rate!r}-{burst}"
        self._owner = owner
        self._rate = rate
        self._burst = burst
        self._lock, record = shared_record(_LAYOUT, None if folder is None else folder / self.name)
        self._state = record[0]

    def take(self, num_rows: int) -> None:
        """Take rows. Raises TooLarge for more than ever fit, QuotaExceeded for more than there are, and takes none."""
        if num_rows > self._burst:
            raise TooLarge(f"{num_rows} rows are more than key {self._owner} may have at once, {self._burst}")
        with self._lock:
            held = self._fill()
            if held < num_rows:
                raise QuotaExceeded(
                    f"key {self._owner} may have {self._rate:g} rows a second; {int(held)} are left, and {num_rows} "
                    "are wanted",
                    retry_after_s=(num_rows - held) / self._rate,
                )
            self._state["rows"] = held - num_rows

    def give_back(self, num_rows: int) -> None:
        """Put rows back that were taken for nothing."""
        with self._lock:
            self._state["rows"] = self._fill() + num_rows

    def check(self) -> None:
        """Raise QuotaExceeded where not even one row is left."""
        with self._lock:
            held = self._fill()
        if held < 1:
            raise QuotaExceeded(
                f"key {self._owner} may have {self._rate:g} rows a second; none is left",
                retry_after_s=(1 - held) / self._rate,
            )

    def _fill(self) -> float:
        now, state = time.monotonic(), self._state
        held = float(self._burst)
        if state["at"]:
            held = min(held, float(state["rows"]) + self._rate * (now - float(state["at"])))
        state["rows"], state["at"] = held, now
        return held
