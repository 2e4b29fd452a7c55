"""One line of JSON for each request, on demand: what was asked for and how it went, never what was in it.

No payload, no key, no query string; of a path only the route that it belongs to.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson
from starlette.types import Message, Receive, Scope

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

    def __init__(self, scope: Scope, receive: Receive, method: str, tracer: Tracer | None) -> None:
        self.call: Call | None = None  # that runs a model
        self.status = 0  # of an answer that was begun
        self.phases: Phases | None = None  # of a call
        self.num_bytes = 0  # of the body, as far as it was received
        self._scope = scope
        self._receive = receive
        self._method = method
        self._arrived = time.perf_counter()
        self.trace = None if tracer is None else tracer.begin(scope, method)

    async def receive(self) -> Message:
        """Receive from the caller."""
        message = await self._receive()
        self.num_bytes += len(message.get("body", b""))
        return message

    @property
    def route(self) -> str:
        """The route that answered; "" for what belongs to none."""
        if self.call is not None:
            return self.call.route
        return getattr(self._scope.get("route"), "path", "")

    def end(self) -> None:
        """Write what is known by now."""
        total_s = time.perf_counter() - self._arrived
        code = self._scope["state"].get("code", "")
        model, version, num_rows = self._asked_for()
        if self.trace is not None:
            self.trace.end(self.route, self.status, code, model, num_rows, self.num_bytes, self.call)
        seconds = {"total": total_s, **dict(zip(PHASES, self.phases or (), strict=False))}
        write(
            request_id=self._scope["state"]["request_id"],
            method=self._method,
            route=self.route,
            status=self.status,
            code=code,
            key=self._scope["state"].get("key", ""),
            model=model,
            version=version,
            rows=num_rows,
            bytes=self.num_bytes,
            seconds={name: round(value, 6) for name, value in seconds.items()},
            trace_id=self._trace_id(),
        )

    def _asked_for(self) -> tuple[str, str, int]:
        """Model, version and number of rows, as far as they are known."""
        if self.call is None or not self.call.model:
            return "", "", 0
        return self.call.model, self.call.version, self.call.budget.num_rows

    def _trace_id(self) -> str:
        """That of our trace or, without one, of the caller's."""
        if self.trace is not None:
            return self.trace.id
        header = next((value for name, value in self._scope["headers"] if name == b"traceparent"), b"")
        found = _TRACEPARENT.fullmatch(header)
        return found[1].decode() if found else ""
