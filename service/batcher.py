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
class _Request(Generic[Key]):
    """Rows of one caller: the first ``taken`` are with the engine or answered, in ``parts``."""

    key: Key
    rows: Array
    taken: int = 0
    parts: list[Arrays] = field(default_factory=list)
    future: Future[Arrays] = field(default_factory=Future)

    @property
    def left(self) -> int:
        return len(self.rows) - self.taken


class Batcher(Generic[Key]):
    """Runs ``run(key, rows) -> arrays`` on a thread of its own, for whatever waits the moment it is free.

    Requests with equal keys share a call of at most ``max_batch_rows(key)`` rows; nothing is ever delayed to wait for
    more. A request that does not fit gives a part and queues again behind the others, so that a single row never waits
    for the whole of a large request. Each output array must have one entry per row. At most ``max_queue_rows`` wait.
    """

    def __init__(
        self,
        run: Callable[[Key, Array], Arrays],
        max_batch_rows: Callable[[Key], int],
        max_queue_rows: int,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._prepare = prepare
        self._prepared: Future[None] = Future()
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._queue: deque[_Request[Key]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until it has run ``prepare``. Raises what that raised."""
        self._thread.start()
        self._prepared.result()

    def close(self) -> None:
        """Finish what is queued, refuse what comes after, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    async def submit(self, key: Key, rows: Array) -> Arrays:
        """Run rows and return their outputs, one entry per row, in order.

        Cancelling drops what the engine has not taken. Raises QueueFull, Unavailable, or what ``run`` raised.
        """
        request = _Request(key, rows)
        self._enqueue(request)
        try:
            return await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            with self._changed:
                if request in self._queue:
                    self._queue.remove(request)
            raise

    def _enqueue(self, request: _Request[Key]) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable("the service is stopping")
            waiting = sum(queued.left for queued in self._queue)
            if waiting + len(request.rows) > self._max_queue_rows:
                raise QueueFull(
                    f"{waiting} rows are waiting and {len(request.rows)} more would exceed the queue's "
                    f"{self._max_queue_rows} (GLOW_MAX_QUEUE_ROWS)"
                )
            self._queue.append(request)
            self._changed.notify()

    def _take(self) -> list[tuple[_Request[Key], Array]]:
        """Wait for work; take rows of the oldest request and of those behind it that can share its call.

        Empty when the batcher is closed and nothing waits.
        """
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            key = self._queue[0].key
            room = self._max_batch_rows(key)
            batch: list[tuple[_Request[Key], Array]] = []
            passed: list[_Request[Key]] = []
            unfinished: list[_Request[Key]] = []
            while self._queue and room:
                request = self._queue.popleft()
                if request.key != key:
                    passed.append(request)
                    continue
                rows = request.rows[request.taken : request.taken + room]
                request.taken += len(rows)
                room -= len(rows)
                batch.append((request, rows))
                if request.left:
                    unfinished.append(request)
            self._queue.extendleft(reversed(passed))
            self._queue.extend(unfinished)
            return batch

    def _loop(self) -> None:
        try:
            self._prepare()
        except BaseException as error:
            self._prepared.set_exception(error)
            return
        self._prepared.set_result(None)
        while batch := self._take():
            try:
                rows = batch[0][1] if len(batch) == 1 else np.concatenate([rows for _, rows in batch])
                outputs = self._run(batch[0][0].key, rows)
                wrong = [len(output) for output in outputs if len(output) != len(rows)]
                if wrong:
                    raise RuntimeError(f"the engine answered {wrong[0]} rows for {len(rows)}")
            except Exception as error:
                logger.exception("a batch of %d requests failed", len(batch))
                self._fail([request for request, _ in batch], error)
                continue
            start = 0
            for request, rows in batch:
                end = start + len(rows)
                request.parts.append(tuple(output[start:end] for output in outputs))
                start = end
                if not request.left and request.future.set_running_or_notify_cancel():
                    request.future.set_result(_join(request.parts))

    def _fail(self, requests: list[_Request[Key]], error: Exception) -> None:
        with self._changed:
            self._queue = deque(request for request in self._queue if request not in requests)
        for request in requests:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)


def _join(parts: list[Arrays]) -> Arrays:
    return parts[0] if len(parts) == 1 else tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))
