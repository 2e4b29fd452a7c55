"""The application: ``create_app(settings)`` puts routes, errors and lifespan together."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import api, openapi
from service.engine import Engine
from service.errors import ServiceError
from service.flows import Flows
from service.settings import Settings

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Build the application around verified models; they are warmed when it starts, before it is ready.

    Raises ArtifactError where the settings name an artifact that cannot be served.
    """
    engine = Engine(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.flows = await asyncio.to_thread(Flows, settings, engine)
        yield
        flows, app.state.flows = app.state.flows, None
        await asyncio.to_thread(flows.close)

    # The same as FastAPI(...), with the scripts of /docs served from here instead of a CDN.
    app = FastAPIOffline(
        title="Glow service", summary=openapi.SUMMARY, version=openapi.VERSION, lifespan=lifespan, redoc_url=None
    )
    app.state.settings = settings
    app.state.flows = None
    app.include_router(api.router)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _internal_error)
    app.add_middleware(RequestId)

    def document() -> dict[str, Any]:
        flows: Flows | None = app.state.flows
        if flows is None:
            return openapi.document(app, {})
        if app.openapi_schema is None:
            app.openapi_schema = openapi.document(app, flows.manifests)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return app


class RequestId:
    """Pure ASGI middleware: takes the caller's ``X-Request-ID`` if it is a plain one, else makes one; returns it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("x-request-id", "")
        request_id = wanted if _REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


def _error(request: Request, status: int, code: str, text: str, headers: dict[str, str] | None = None) -> Response:
    content = orjson.dumps({"error": text, "code": code, "request_id": request.state.request_id})
    return Response(content, status, headers, "application/json")


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    headers = None if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    return _error(request, error.status, error.code, str(error), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods(request)))  # the router names those of one route only
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
    return _error(request, error.status_code, code, str(error.detail), headers)


def _methods(request: Request) -> set[str]:
    """Methods of all routes of a path."""
    routes = [route for route in api.router.routes if isinstance(route, Route)]
    return {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}


async def _client_left(request: Request, error: Exception) -> Response:
    """The caller hung up while sending its body: nobody reads this answer, and it is no error of ours."""
    return _error(request, 400, "bad_request", "the connection closed before the body was complete")


async def _internal_error(request: Request, error: Exception) -> Response:
    """A bug of ours: the log has the exception, the caller an id to quote."""
    request_id = request.state.request_id
    logger.error("request %s failed", request_id, exc_info=error)
    text = "internal error; quote the request_id to the operator"
    return _error(request, 500, "internal_error", text, {"x-request-id": request_id})  # outside the middleware
