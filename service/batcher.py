"""Batching: rows of many requests in one call, on one thread. Knows neither torch nor HTTP."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from service.errors import QueueFull, Unavailable

Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]
Key = TypeVar("Key", bound=Hashable)

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Chunk(Generic[Key]):
    """Rows of one request that run together; its future belongs to that request alone."""

    key: Key
    rows: Array
    future: Future[Arrays] = field(default_factory=Future)


class Batcher(Generic[Key]):
    """Runs ``run(key, rows) -> arrays`` on a thread of its own, for whatever waits the moment it is free.

    Chunks with equal keys share a call of at most ``max_batch_rows`` rows; nothing is ever delayed to wait for more.
    Each output array must have one entry per row. At most ``max_queue_rows`` rows wait.
    """

    def __init__(self, run: Callable[[Key, Array], Arrays], max_batch_rows: int, max_queue_rows: int) -> None:
        self._run = run
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._queue: deque[_Chunk[Key]] = deque()
        self._queued_rows = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Finish what is queued, refuse what comes after, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def queued_rows(self) -> int:
        """Rows that wait now."""
        return self._queued_rows

    async def submit(self, key: Key, rows: Array) -> Arrays:
        """Run rows and return their outputs, one entry per row.

        More rows than fit a batch are split and joined again. Cancelling drops what has not started. Raises QueueFull,
        Unavailable, or what ``run`` raised.
        """
        chunks = [
            _Chunk(key, rows[start : start + self._max_batch_rows])
            for start in range(0, len(rows), self._max_batch_rows)
        ]
        self._enqueue(chunks, len(rows))
        results = await asyncio.gather(*(asyncio.wrap_future(chunk.future) for chunk in chunks))
        return results[0] if len(results) == 1 else tuple(np.concatenate(parts) for parts in zip(*results, strict=True))

    def _enqueue(self, chunks: list[_Chunk[Key]], num_rows: int) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable("the service is stopping")
            if self._queued_rows + num_rows > self._max_queue_rows:
                raise QueueFull(
                    f"{self._queued_rows} rows are waiting and {num_rows} more would exceed the queue's "
                    f"{self._max_queue_rows} (GLOW_MAX_QUEUE_ROWS)"
                )
            self._queue.extend(chunks)
            self._queued_rows += num_rows
            self._changed.notify()

    def _take(self) -> list[_Chunk[Key]]:
        """Wait for work; take the oldest chunk and those behind it that can share its call. Empty: closed."""
        with self._changed:
            while True:
                while not self._queue:
                    if self._closed:
                        return []
                    self._changed.wait()
                batch: list[_Chunk[Key]] = []
                left: deque[_Chunk[Key]] = deque()
                room = self._max_batch_rows
                for chunk in self._queue:
                    if batch and (chunk.key != batch[0].key or len(chunk.rows) > room):
                        left.append(chunk)
                        continue
                    self._queued_rows -= len(chunk.rows)
                    if chunk.future.set_running_or_notify_cancel():
                        batch.append(chunk)
                        room -= len(chunk.rows)
                self._queue = left
                if batch:
                    return batch

    def _loop(self) -> None:
        while batch := self._take():
            try:
                rows = batch[0].rows if len(batch) == 1 else np.concatenate([chunk.rows for chunk in batch])
                outputs = self._run(batch[0].key, rows)
                wrong = [len(output) for output in outputs if len(output) != len(rows)]
                if wrong:
                    raise RuntimeError(f"the engine answered {wrong[0]} rows for {len(rows)}")
            except Exception as error:
                logger.exception("a batch of %d requests failed", len(batch))
                for chunk in batch:
                    chunk.future.set_exception(error)
                continue
            start = 0
            for chunk in batch:
                end = start + len(chunk.rows)
                chunk.future.set_result(tuple(output[start:end] for output in outputs))
                start = end
