"""One HTTP request that runs a model: its headers and body, and when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import itertools
import time
from types import TracebackType

from fastapi import Request
from starlette.types import Receive, Scope

from service import headers
from service.codecs import compression, json_body
from service.engine import Model
from service.errors import (
    BadRequest,
    ClientLeft,
    DeadlineExceeded,
    ServiceError,
    TooLarge,
    UnsupportedMediaType,
)
from service.flows import Budget, Flows
from service.negotiation import read_ratings
from service.quota import TokenBucket
from service.room import Share
from service.service import Service
from service.settings import Settings

WATCHFUL_AFTER_S = 0.1  # most requests are over by then, and cost no task that watches for their callers to leave

_SMALL_PART = 2**10  # bytes that inflate to no more than a megabyte

Body = bytes | bytearray


class Watch:
    """Has an eye on calls that go on for a while; one timer for all, since one each is a cost that all would notice."""

    def __init__(self) -> None:
        self._calls: dict[Call, None] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, call: Call) -> None:
        """Watch a call, once it is WATCHFUL_AFTER_S old, or from the start where its deadline is near."""
        if call.timeout_s <= 2 * WATCHFUL_AFTER_S:
            call.watch()
            return
        self._calls[call] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WATCHFUL_AFTER_S, self._look)

    def end(self, call: Call) -> None:
        """Forget a call."""
        self._calls.pop(call, None)

    def _look(self) -> None:
        self._timer = None
        for call in list(itertools.takewhile(lambda call: call.age_s >= WATCHFUL_AFTER_S, self._calls)):
            del self._calls[call]
            call.watch()
        if self._calls:
            self._timer = asyncio.get_running_loop().call_later(WATCHFUL_AFTER_S, self._look)


class Call(Request):
    """A request; inside of ``with call``, work is ended when the deadline passes or the caller hangs up.

    Raises BadRequest for a deadline that is none.
    """

    def __init__(
        self, scope: Scope, receive: Receive, watch: Watch | None = None, bucket: TokenBucket | None = None
    ) -> None:
        super().__init__(scope, receive)
        self.service: Service = scope["app"].state.service
        self.settings: Settings = self.service.settings
        self._header_values: dict[bytes, bytes] = dict(scope["headers"])
        self.timeout_s = self._read_timeout_s()
        self.budget = Budget(deadline=time.perf_counter() + self.timeout_s, bucket=bucket)
        self.model = self.version = ""
        self.route = ""  # in the metrics, where it is not what front takes it for
        self.read_at = 0.0  # time.perf_counter() when its rows had been read
        self._share = Share(self.service.room)
        self._has_body = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._watch = watch
        self._watcher: asyncio.Task[None] | None = None
        self._ending: ServiceError | None = None

    @property
    def flows(self) -> Flows:
        """The served models. Raises Unavailable before they are warm and after they have stopped."""
        return self.service.flows

    @property
    def query(self) -> bytes:
        """The query string, as it came."""
        query: bytes = self.scope["query_string"]
        return query

    def begin(self, model: Model, num_rows: int) -> None:
        """Note for the metrics what is asked for, now that it is known."""
        self.model, self.version, self.read_at = model.name, model.version, time.perf_counter()
        self.budget.num_rows = num_rows

    def header(self, name: str) -> str:
        """Values of a header, joined by commas; "" where there is none."""
        value = self._header_values.get(name.encode())
        if value is None:
            return ""
        if len(self._header_values) == len(self.scope["headers"]):  # each is there once
            return value.decode("latin-1")
        return ",".join(self.headers.getlist(name))

    @property
    def media_type(self) -> str:
        """Media type of the body; JSON where none is named."""
        return (self.header("content-type") or json_body.MEDIA_TYPE).partition(";")[0].strip().lower()

    def _read_timeout_s(self) -> float:
        """Seconds that the caller waits, at most those that the service allows itself."""
        text = self.header(headers.TIMEOUT)
        if not text:
            return self.settings.deadline_s
        if not (text.isdecimal() and len(text) <= 9 and int(text) > 0):
            raise BadRequest(
                f"{headers.TIMEOUT} is {text[:100]!r}; it must be a whole number of milliseconds below 10^9"
            )
        return min(int(text) / 1000, self.settings.deadline_s)

    @property
    def accepted_encoding(self) -> str:
        """How the answer may be compressed: the encoding rated highest, gzip of equals; "" where none is accepted."""
        ratings = read_ratings(self.header("accept-encoding"))
        best = max(compression.ENCODINGS, key=lambda encoding: ratings.get(encoding, ratings.get("*", 0.0)))
        return best if ratings.get(best, ratings.get("*", 0.0)) > 0 else ""

    def expire_after(self, seconds: float) -> None:
        """Take the deadline back to so many seconds after the request's arrival, where that is sooner."""
        if seconds >= self.timeout_s:
            return
        self.budget.deadline += seconds - self.timeout_s
        self.timeout_s = seconds
        if self._watcher is not None or seconds <= 2 * WATCHFUL_AFTER_S:  # else its turn to be watched comes in time
            assert self._watch is not None
            self._watch.end(self)
            if self._watcher is not None:
                self._watcher.cancel()
            self.watch()

    async def read_body(self) -> Body:
        """Read the body, never more of it than the limit, before and after it is inflated.

        Raises TooLarge, QueueFull where other bodies leave no room, UnsupportedMediaType for an unknown encoding, and
        BadRequest for what is not of a known one.
        """
        announced = self.header("content-length")
        if announced.isdecimal():
            self._check_size(int(announced[:20]))
        encoding = self.header("content-encoding").strip().lower()
        body = await (self._read_plain() if encoding in ("", "identity") else self._read_inflated(encoding))
        self._has_body = True
        return body

    async def _read_plain(self) -> Body:
        body, more = await self._receive_part()
        self._check_size(len(body))
        self._share.take(len(body))
        if not more:
            return body
        whole = bytearray(body)
        while more:
            part, more = await self._receive_part()
            self._check_size(len(whole) + len(part))
            self._share.take(len(part))
            whole += part
        return whole

    def _check_size(self, num_bytes: int) -> None:
        limit = self.settings.max_body_bytes
        if num_bytes > limit:
            raise TooLarge(f"a body of {num_bytes} bytes or more is over the limit of {limit} (GLOW_MAX_BODY_BYTES)")

    async def _read_inflated(self, encoding: str) -> bytearray:
        if encoding not in compression.ENCODINGS:
            known = " or ".join(compression.ENCODINGS)
            raise UnsupportedMediaType(f"Content-Encoding is {encoding[:100]!r}; it must be {known}")
        inflater = compression.Inflater(encoding, self.settings.max_body_bytes, self._share.take)
        more = True
        while more:
            part, more = await self._receive_part()
            if len(part) <= _SMALL_PART:
                inflater.feed(part)
            else:
                await asyncio.to_thread(inflater.feed, part)
        return inflater.finish()

    async def _receive_part(self) -> tuple[Body, bool]:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft("the connection closed before the body was complete")
        return message.get("body", b""), message.get("more_body", False)

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        assert self._watch is not None
        self._watch.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watch is not None
        self._watch.end(self)
        self._share.close()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._ending is not None and isinstance(error, asyncio.CancelledError):
            assert self._task is not None
            if self._task.uncancel() > self._cancelling:  # someone else wants it to end, too
                return
            try:
                raise self._ending from None
            finally:
                self._ending = None  # a cycle otherwise, that holds the body

    @property
    def age_s(self) -> float:
        """Seconds since it came."""
        return time.perf_counter() - self.budget.deadline + self.timeout_s

    def watch(self) -> None:
        """Begin to wait for what ends the work."""
        self._watcher = asyncio.ensure_future(self._wait_for_the_end())

    async def _wait_for_the_end(self) -> None:
        """Cancel the work when the deadline passes or the caller hangs up, whichever is first."""
        try:
            async with asyncio.timeout(max(0.0, self.budget.deadline - time.perf_counter())):
                while not self._has_body:  # which is being received elsewhere
                    await asyncio.sleep(WATCHFUL_AFTER_S)
                while (await self.receive())["type"] != "http.disconnect":
                    pass
            self._ending = ClientLeft("the caller has hung up")
        except TimeoutError:
            self._ending = DeadlineExceeded(
                f"no answer within {self.timeout_s:g} s, its own deadline ({headers.TIMEOUT}) or GLOW_DEADLINE_S"
            )
        assert self._task is not None
        self._task.cancel()


def service_of(request: Request) -> Service:
    """What the application is an application of."""
    service: Service = request.app.state.service
    return service


def flows_of(request: Request) -> Flows:
    """The served models. Raises Unavailable before they are warm and after they have stopped."""
    return service_of(request).flows
