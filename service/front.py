"""The outermost layer: request ids, keys, errors, metrics, logs and traces, and the routes that run models.

It calls these routes itself: Starlette's and FastAPI's ways to them cost as much as all that they do for one row.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time

from fastapi import Request, Response
from starlette._utils import get_route_path
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import access_log
from service.access import Caller
from service.access_log import Seen
from service.api import ENDPOINTS, Endpoint
from service.call import Call, Watch
from service.codecs import json_body
from service.errors import NotFound, ServiceError
from service.metrics import Phases
from service.oip import routes as oip
from service.service import Service

# No answer is to be taken for another type or kept; a page, besides, runs no more than it says, and in no other page.
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_PAGE_HEADERS = [*_HEADERS, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

logger = logging.getLogger(__name__)


class Front:
    """Pure ASGI middleware before all of Starlette's; ``app`` answers what runs no model."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._metrics = service.metrics
        self._prefix = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._watch = Watch()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # of servers that offer it; no key would be asked for
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # servers leave out the body by themselves
        self._name(scope)
        if self._service.tracer is None and not access_log.is_on():
            await self._answer(scope, receive, send)
            return
        seen = Seen(scope, receive, send, method, self._service.tracer)
        try:
            await self._answer(scope, seen.receive, seen.send, seen)
        finally:
            seen.end()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, seen: Seen | None = None) -> None:
        arrived, route = time.perf_counter(), get_route_path(scope)
        try:
            if _CONTROL.search(route):  # which routes may take for the end of a path, and we do not
                raise NotFound("no such path")
            caller = self._service.access.check(scope["method"], route, scope["headers"])
        except ServiceError as error:
            response, code = error_response(Request(scope), error)
            self._metrics.refused("", "", response.status_code, code, time.perf_counter() - arrived)
            await self._send(response, scope, receive, send)
            return
        scope["state"]["key"] = caller.id
        endpoint = ENDPOINTS.get((scope["method"], route))
        if endpoint is None:
            endpoint, route = oip.find_endpoint(scope, route)
        if endpoint is not None:
            await self._run(endpoint, route, caller, arrived, scope, receive, send, seen)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = scope["state"]["request_id"]
                is_page = headers.get("content-type", "").startswith("text/html")
                own_policy = "content-security-policy" in headers
                message["headers"] += _PAGE_HEADERS if is_page and not own_policy else _HEADERS
            await send(message)

        await self._app(scope, receive, send_with_headers)

    async def _send(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        response.raw_headers += ((b"x-request-id", scope["state"]["request_id"].encode()), *_HEADERS)
        await response(scope, receive, send)

    def _name(self, scope: Scope) -> None:
        """Give a request its id: the caller's own, if it is a plain one, else one of ours."""
        wanted = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        if wanted is None or not _REQUEST_ID.fullmatch(wanted):
            wanted = f"{self._prefix}{next(self._numbers):08x}".encode()
        scope.setdefault("state", {})["request_id"] = wanted.decode()

    async def _run(
        self,
        endpoint: Endpoint,
        route: str,
        caller: Caller,
        arrived: float,
        scope: Scope,
        receive: Receive,
        send: Send,
        seen: Seen | None,
    ) -> None:
        """Answer a call, with what it asks for or with an error."""
        call, code = None, ""
        self._metrics.in_flight += 1
        try:
            try:
                call = Call(scope, receive, self._watch, caller.bucket)
                if seen is not None:
                    seen.call, call.budget.trace = call, seen.trace
                with call:
                    response = await endpoint(call)
            except Exception as error:
                response, code = error_response(Request(scope), error)
                if call is not None:
                    call.budget.give_back()
            read_s, queue_s, compute_s, rest_s = _phases(call, arrived)
            timing = b"read;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f, total;dur=%.3f" % (
                *(1e3 * read_s, 1e3 * queue_s, 1e3 * compute_s),
                1e3 * (read_s + queue_s + compute_s + rest_s),
            )
            response.raw_headers.append((b"server-timing", timing))
            await self._send(response, scope, receive, send)
        finally:
            self._metrics.in_flight -= 1
            phases = _phases(call, arrived)
            model, route = ("", route) if call is None else (call.model, call.route or route)
            if seen is not None:
                seen.route, seen.phases = route, phases
        if code or call is None:
            self._metrics.refused(route, model, response.status_code, code, sum(phases))
        else:
            self._metrics.answered(route, model, call.budget.num_rows, phases)


def _phases(call: Call | None, arrived: float) -> Phases:
    """Where the time since a call's arrival went, so far: all of it is reading until its rows are there."""
    total_s = time.perf_counter() - arrived
    if call is None or not call.read_at:
        return total_s, 0.0, 0.0, 0.0
    budget, read_s = call.budget, call.read_at - arrived
    return read_s, budget.queue_s, budget.compute_s, total_s - read_s - budget.queue_s - budget.compute_s


def error_response(request: Request, error: Exception) -> tuple[Response, str]:
    """What a caller is told of an error, and its code. The text of a defect of ours stays in the log."""
    if isinstance(error, ServiceError):
        headers = dict(error.headers)
        if error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
        return write_error(request, error.status, error.code, str(error), headers), error.code
    logger.error("request %s failed", request.state.request_id, exc_info=error)
    text = "internal error; quote the request_id to the operator"
    return write_error(request, 500, "internal_error", text), "internal_error"


def write_error(request: Request, status: int, code: str, text: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that is an error."""
    request.state.code = code  # for the access log
    return Response(json_body.write_error(text, code, request.state.request_id), status, headers, "application/json")
