"""uvicorn's HTTP protocol, with limits on a request's head, our errors, and an answer's head and body in one write."""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import access_log
from service.codecs import json_body
from service.errors import code_of

MAX_HEAD_BYTES = 2**16
MAX_HEADERS = 256  # of a request: one of two bytes costs a hundred
MAX_WAITING = 64  # requests that a caller sends without awaiting answers: one of thirty bytes costs a thousand
_REST_S = 2.0  # for what is left of a body that has its answer
_LAST_S = 0.25  # in which what a caller has sent arrives
_SMALL = 4096  # bytes that are worth holding back for the next ones


class _TooManyHeaders(Exception):
    """A request has more than MAX_HEADERS."""


class _TooManyWaiting(Exception):
    """More than MAX_WAITING requests wait for the answers to those before them."""


class Protocol(HttpToolsProtocol):
    """What uvicorn runs for a connection. A head must be complete within the time that a connection may be idle.

    A wish to speak another protocol (``Upgrade``) is not heard: the request is answered as one without it.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joining(transport, self.loop, self._patience_s))  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:  # still, after what came before
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()
                return
        elif len(data) > MAX_HEAD_BYTES and self._expects_head and b"\r\n\r\n" not in data[:MAX_HEAD_BYTES]:
            self._refuse_head()
            return
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._in_head:
            self._await_head()

    def _parse(self, data: bytes) -> None:
        """As uvicorn does, but that callers cannot make it write lines of log, nor lose what follows an Upgrade."""
        rest: bytes | None = None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            (end_of_head,) = upgrade.args
            if self.parser.get_method() == b"CONNECT":
                self.send_400_response("CONNECT is for proxies")
            else:
                rest = data[end_of_head:]
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooManyHeaders):
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"there are more than {MAX_HEADERS} headers")
            elif isinstance(error.__context__, _TooManyWaiting):
                self.transport.abort()
            else:
                self.send_400_response("Invalid HTTP request received.")
        if rest is not None:  # not while that exception is handled: it would be the context of those that follow
            self._parse_without_upgrade(rest)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse a head again without its Upgrade, and what follows: the parser takes a body for another protocol's."""
        version = self.parser.get_http_version().encode()
        headers = b"".join(b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade")
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (self.parser.get_method(), self.url, version, headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._parse(head + rest)

    @property
    def _expects_head(self) -> bool:
        """Whether what comes next begins a request."""
        return self.cycle is None or not self.cycle.more_body

    def _refuse_head(self) -> None:
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head is over {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            raise _TooManyHeaders
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if len(self.pipeline) >= MAX_WAITING:
            raise _TooManyWaiting
        self._in_head = False
        self._head_arrived()
        super().on_headers_complete()
        self.headers = _NoTrailers()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if self.cycle.response_complete:  # of which super would not take note
            self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:  # who sends on what has its answer may end, soon
            self.loop.call_later(_REST_S, self._end_unless_whole, self.cycle)

    def _end_unless_whole(self, cycle: object) -> None:
        if self.cycle is cycle and self.cycle.more_body:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    @property
    def _patience_s(self) -> float:
        """Seconds that a caller may take to read what waits for it."""
        return self.config.timeout_graceful_shutdown or 60

    def shutdown(self) -> None:
        """End the connection, but not on a request that is on its way: one that asks nothing now has a moment more."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LAST_S, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer without the application, and close."""
        code = code_of(status)
        request_id = secrets.token_hex(16)
        access_log.write(request_id=request_id, status=status.value, code=code)
        body = json_body.write_error(text, code, request_id)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _NoTrailers(list[tuple[bytes, bytes]]):
    """Where headers go that come behind a body: nobody reads them, and there may be no end of them."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Drop it."""


class _Joining:
    """A transport that holds a small write back until the next one, or until the event loop turns.

    uvicorn writes an answer's head and body one after the other, and a system call costs more than all that a handler
    does for a row. What is held is small, so that backpressure stays the transport's own.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, patience_s: float) -> None:
        self._transport = transport
        self._patience_s = patience_s
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever a transport has)
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():  # uvloop raises for what comes after an abort or a reset
            return
        if self._held:
            held, self._held = self._held, b""
            self._transport.writelines([held, data])
        elif len(data) <= _SMALL:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()
        if self._transport.get_write_buffer_size():  # and nobody may ever read it
            self._loop.call_later(self._patience_s, self._transport.abort)

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.write(data)
