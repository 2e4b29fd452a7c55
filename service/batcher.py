"""Batching: rows of many requests in one call, on one thread. Knows neither torch nor HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from service.errors import QueueFull, TooLarge, Unavailable
from service.row_queue import Array, Arrays, Job, Part, Room, RowQueue

Key = TypeVar("Key", bound=Hashable)

SMALL_LAST_S = 1.0  # how long after a small request passes are kept brief
_FORGETTING = 0.9  # weight of what a pass took, one pass later

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """Outputs, one entry a row, and where the time went."""

    outputs: Arrays
    submitted: float  # of time.perf_counter
    queue_s: float  # from then until the first row left the queue
    compute_s: float  # from then until the last one was answered


class Pass(NamedTuple, Generic[Key]):
    """One call of the engine, for the metrics."""

    key: Key
    num_requests: int
    num_rows: int
    started: float  # of time.perf_counter
    seconds: float
    waiting_rows: int  # by the time it ended
    tags: list[object]  # of the requests that have one


@dataclass(eq=False, slots=True, kw_only=True)
class _Request(Job):
    """A job, and who waits for it since when."""

    future: asyncio.Future[Arrays]
    submitted: float
    tag: object = None
    started: float = field(init=False)  # once its first rows were
    finished: float = field(init=False)
    error: Exception | None = None


class _Pace:
    """Seconds a row, over the last passes."""

    def __init__(self) -> None:
        self._seconds = self._rows = 0.0

    def add(self, num_rows: int, seconds: float) -> None:
        self._seconds = _FORGETTING * self._seconds + seconds
        self._rows = _FORGETTING * self._rows + num_rows

    @property
    def seconds_per_row(self) -> float:
        return self._seconds / self._rows


class Batcher(Generic[Key]):
    """Runs ``run(key, rows) -> arrays`` on a thread of its own, for whatever waits the moment it is free.

    Requests with equal keys share a call; nothing is ever delayed to wait for more. ``room(key, waiting)`` says how
    many rows a call may have, given how many wait; a request with more is split, streamed through and joined. Each
    output array must have one entry per row. A call that fails is tried again in halves, so that only the requests that
    make it fail are failed by it. At most ``max_queue_rows`` wait. ``observe`` is told of each call, on the event loop.
    Keys of one ``kind`` have rows that cost alike.
    """

    def __init__(
        self,
        run: Callable[[Key, Array], Arrays],
        room: Callable[[Key, int], Room],
        max_queue_rows: int,
        prepare: Callable[[], None] = lambda: None,
        observe: Callable[[Pass[Key]], None] = lambda done: None,
        kind: Callable[[Key], Hashable] = lambda key: key,
    ) -> None:
        self._run = run
        self._max_queue_rows = max_queue_rows
        self._prepare = prepare
        self._observe = observe
        self._kind = kind
        self._lock = threading.Lock()  # guards what follows
        self._queue: RowQueue[_Request] = RowQueue(room)
        self._paces: dict[Hashable, _Pace] = {}
        self._small_at = -math.inf
        self._leaves_rows: bool  # whether rows are left behind by the current call
        self._idle = False
        self._closed = False
        self._beside: deque[tuple[Iterator[None], asyncio.Future[None]]] = deque()
        self._beside_at = -math.inf  # when its next step may run although rows wait
        self._busy_since = math.inf  # when the engine began its call; inf between two, and in steps of other work
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ended: asyncio.Future[None]
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """Start the thread and wait until it has run ``prepare``. Raises what that raised."""
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        prepared: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._work, args=(prepared,), name="engine", daemon=True).start()
        await prepared

    async def run_beside(self, steps: Iterator[None]) -> None:
        """Take steps of other work on the engine's thread, between its calls: for half of its time while rows wait.

        Raises what a step raises, and Unavailable when the thread ends before.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        with self._lock:
            if self._closed:
                raise Unavailable("the service is stopping")
            self._beside.append((steps, done))
        self._wake.put(None)
        await done

    async def close(self) -> None:
        """Finish what is queued, refuse what comes after, and end the thread."""
        with self._lock:
            self._closed = True
        self._wake.put(None)
        await self._ended

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    @property
    def busy_s(self) -> float:
        """Seconds that the engine has been at its call; 0 between two. What ``run_beside`` takes may take long."""
        return max(0.0, time.perf_counter() - self._busy_since)

    @property
    def waiting_rows(self) -> int:
        """Rows that no call has taken yet."""
        with self._lock:
            return self._queue.num_waiting

    async def submit(self, key: Key, rows: Array, patience_s: float = math.inf, tag: object = None) -> Answer:
        """Run rows and return their outputs, one entry per row, in order; ``observe`` sees the tag with each call.

        Cancelling drops what the engine has not taken. Raises TooLarge for more rows than may ever wait, QueueFull for
        more than may wait now, or where what waits is likely to take longer than ``patience_s``, Unavailable, or what
        ``run`` raised for these rows.
        """
        future: asyncio.Future[Arrays] = self._loop.create_future()
        request = _Request(key=key, rows=rows, future=future, submitted=time.perf_counter(), tag=tag)
        with self._lock:
            self._admit(request, patience_s)
            self._queue.push(request)
            was_idle, self._idle = self._idle, False
        if was_idle:
            self._wake.put(None)
        try:
            outputs = await future
        except asyncio.CancelledError:
            with self._lock:
                self._queue.drop(request)
            raise
        except Exception:
            del request  # it holds the error, whose traceback holds this frame
            raise
        finally:
            del future  # it, too
        submitted, started = request.submitted, request.started
        return Answer(outputs, submitted, started - submitted, request.finished - started)

    def _admit(self, request: _Request, patience_s: float) -> None:
        num_rows, limit = len(request.rows), self._max_queue_rows
        if self._closed:
            raise Unavailable("the service is stopping")
        if num_rows > limit:
            raise TooLarge(f"{num_rows} rows are more than the queue may hold, {limit} (GLOW_MAX_QUEUE_ROWS)")
        waiting = self._queue.num_waiting
        drain_s = self._seconds(self._queue.waiting)
        excess = waiting + num_rows - limit
        if excess > 0:
            raise QueueFull(
                f"{waiting} rows are waiting and {num_rows} more would exceed the queue's {limit} "
                "(GLOW_MAX_QUEUE_ROWS)",
                retry_after_s=drain_s * excess / waiting,
            )
        if drain_s > patience_s > 0:
            ahead = self._queue.num_ahead(request.key, num_rows)
            wait_s = self._seconds(ahead)
            if wait_s > patience_s:
                raise QueueFull(
                    f"{sum(ahead.values())} rows are ahead, about {wait_s:.1f} s of work, and the request may wait for "
                    f"{patience_s:.1f} s (its deadline, or GLOW_MAX_WAIT_S)",
                    retry_after_s=wait_s - patience_s,
                )
        if self._queue.is_small(request.key, num_rows):
            self._small_at = request.submitted

    def _seconds(self, num_rows: Mapping[Any, int]) -> float:
        """Seconds that so many rows of each key will take, at the pace at which the last ones of a queue left."""
        paces = [(num, self._paces.get(self._kind(key))) for key, num in num_rows.items()]
        return sum(num * pace.seconds_per_row for num, pace in paces if pace is not None)

    def _work(self, prepared: asyncio.Future[None]) -> None:
        """Prepare, then answer until closed: the engine's thread."""
        try:
            self._prepare()
        except BaseException as error:
            self._tell(_fail, prepared, error)
            return
        self._tell(_finish, prepared)
        parts: list[Part[_Request]] | None = []
        try:
            while (parts := self._next_parts()) is not None:
                if parts:
                    self._answer(parts)
                elif not self._beside:
                    self._wake.get()
                if self._beside and not (parts and time.perf_counter() < self._beside_at):
                    self._step()
        except BaseException:  # a defect of ours; better to refuse than to let callers wait for a thread that is gone
            logger.critical("the engine's thread has ended", exc_info=True)
        with self._lock:
            self._closed = True
            abandoned = [*self._queue.clear(), *(part.job for part in parts or [])]
            futures = [*(request.future for request in abandoned), *(done for _, done in self._beside)]
        self._tell(self._end, futures)

    def _step(self) -> None:
        """Take one step of the other work, and leave as much time to calls as it took."""
        steps, done = self._beside[0]
        started = time.perf_counter()
        try:
            next(steps)
        except StopIteration:
            self._beside.popleft()
            self._tell(_finish, done)
        except Exception as error:
            self._beside.popleft()
            self._tell(_fail, done, error.with_traceback(None))
        ended = time.perf_counter()
        self._beside_at = 2 * ended - started

    def _next_parts(self) -> list[Part[_Request]] | None:
        """Rows for the next call; none where nothing waits, None at the end."""
        with self._lock:
            parts = self._queue.take(brief=time.perf_counter() - self._small_at < SMALL_LAST_S)
            self._idle = not parts
            self._leaves_rows = bool(parts) and parts[0].job.key in self._queue.waiting
            return None if self._closed and not parts else parts

    def _answer(self, parts: list[Part[_Request]]) -> None:
        """Run rows and tell their callers; once more in halves where that fails, down to the one that makes it fail."""
        started = self._busy_since = time.perf_counter()
        error = self._try(parts)
        seconds = time.perf_counter() - started
        self._busy_since = math.inf
        if error is not None and len(parts) > 1:
            logger.warning("a call for %d requests failed; trying each half", len(parts))
            self._answer(parts[: len(parts) // 2])
            self._answer(parts[len(parts) // 2 :])
            return
        key = parts[0].job.key
        num_rows = sum(part.stop - part.start for part in parts)
        finished: list[_Request] = []
        with self._lock:
            if error is None:
                self._learn(self._kind(key), num_rows, seconds)
            for job, start, _ in parts:
                if start == 0:
                    job.started = started
                job.error = job.error or error
                if job.error is not None:
                    self._queue.drop(job)
                if job.error is not None or job.answered == len(job.rows):
                    job.finished = started + seconds
                    finished.append(job)
            waiting = self._queue.num_waiting
        tags = [part.job.tag for part in parts if part.job.tag is not None]
        self._tell(self._deliver, finished, Pass(key, len(parts), num_rows, started, seconds, waiting, tags))

    def _learn(self, kind: Hashable, num_rows: int, seconds: float) -> None:
        """Note the pace of a queue: of calls that leave rows behind, or that show that rows cost less than was noted.

        Others, of few rows, would tell what a call costs, not what a row does.
        """
        pace = self._paces.get(kind)
        if self._leaves_rows or (pace is not None and seconds < num_rows * pace.seconds_per_row):
            self._paces.setdefault(kind, _Pace()).add(num_rows, seconds)

    def _try(self, parts: list[Part[_Request]]) -> Exception | None:
        """Run rows and hand each job its outputs; returns what went wrong."""
        try:
            rows = parts[0].rows if len(parts) == 1 else np.concatenate([part.rows for part in parts])
            outputs = self._run(parts[0].job.key, rows)
            wrong = [len(output) for output in outputs if len(output) != len(rows)]
            if wrong:
                raise RuntimeError(f"the engine answered {wrong[0]} rows for {len(rows)}")
        except Exception as error:
            if len(parts) == 1:
                logger.exception("a call for one request failed")
            return error.with_traceback(None)  # which would keep what the call had allocated
        begin = 0
        for job, start, stop in parts:
            end = begin + stop - start
            try:
                job.answer(tuple(output[begin:end] for output in outputs))
            except Exception as error:  # no memory to join its parts
                job.error = error.with_traceback(None)
            begin = end
        return None

    def _tell(self, callback: Callable[..., object], *args: object) -> None:
        """Call back on the event loop, if there still is one."""
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            logger.warning("the event loop has ended before the engine")

    def _deliver(self, finished: list[_Request], done: Pass[Key]) -> None:
        for request in finished:
            future = request.future
            if future.done():
                continue
            if request.error is None:
                future.set_result(request.outputs)
            else:
                future.set_exception(request.error)
        self._observe(done)

    def _end(self, abandoned: list[asyncio.Future[Any]]) -> None:
        for future in abandoned:
            _fail(future, Unavailable("the engine has stopped"))
        _finish(self._ended)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None] | asyncio.Future[Arrays], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
