"""One line of JSON for each request, on demand: what was asked for and how it went, never what was in it.

No payload, no query string; of a key its id, of a path the route that it belongs to.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson
from starlette.types import Message, Receive, Scope, Send

from service.metrics import PHASES, Phases

if TYPE_CHECKING:
    from service.call import Call
    from service.tracing import Tracer

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

_logger = logging.getLogger("service.access")
_logger.propagate = False
_logger.setLevel(logging.CRITICAL)


def begin() -> None:
    """Write this process's lines to standard output from now on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _logger.addHandler(handler)
    _logger.setLevel(logging.INFO)


def is_on() -> bool:
    """Whether lines are written."""
    return _logger.isEnabledFor(logging.INFO)


def write(**fields: object) -> None:
    """Write a line, if lines are written."""
    if is_on():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        _logger.info(orjson.dumps({"time": now, **fields}).decode())


class Seen:
    """One request, as the access log and traces tell it; made only where one of them is on."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, method: str, tracer: Tracer | None) -> None:
        self.call: Call | None = None  # that runs a model
        self.status = 0  # of an answer that was begun
        self.route = ""  # of a call
        self.phases: Phases | None = None  # of a call
        self.num_bytes = 0  # of the body, as far as it was received
        self._scope = scope
        self._receive = receive
        self._send = send
        self._method = method
        self._arrived = time.perf_counter()
        self.trace = None if tracer is None else tracer.begin(scope, method)

    async def receive(self) -> Message:
        """Receive from the caller."""
        message = await self._receive()
        self.num_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Send to the caller."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    def end(self) -> None:
        """Write what is known by now."""
        total_s, call, state = time.perf_counter() - self._arrived, self.call, self._scope["state"]
        route = self.route or getattr(self._scope.get("route"), "path", "")  # "" for what belongs to none
        code = state.get("code", "")
        model, version, num_rows = ("", "", 0) if call is None else (call.model, call.version, call.budget.num_rows)
        if self.trace is not None:
            self.trace.end(route, self.status, code, model, num_rows, self.num_bytes, call is not None)
        seconds = {"total": total_s, **dict(zip(PHASES, self.phases or (), strict=False))}
        write(
            request_id=state["request_id"],
            key=state.get("key", ""),
            method=self._method,
            route=route,
            status=self.status,
            code=code,
            model=model,
            version=version,
            rows=num_rows,
            bytes=self.num_bytes,
            seconds={name: round(value, 6) for name, value in seconds.items()},
            trace_id=self._trace_id(),
        )

    def _trace_id(self) -> str:
        """That of our trace or, without one, of the caller's."""
        if self.trace is not None:
            return self.trace.id
        header = next((value for name, value in self._scope["headers"] if name == b"traceparent"), b"")
        found = _TRACEPARENT.fullmatch(header)
        return found[1].decode() if found else ""
