"""The application: ``create_app(settings)`` puts routes, errors and lifespan together."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Route

from service import api, openapi
from service.engine import Engine
from service.errors import ServiceError
from service.flows import Flows
from service.front import Front, error_response, write_error
from service.metrics import Metrics
from service.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Build the application around verified models; they are warmed when it starts, before it is ready.

    Raises ArtifactError where the settings name an artifact that cannot be served.
    """
    engine, metrics = Engine(settings), Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        flows = Flows(settings, engine, metrics)
        await flows.start()
        _tune_interpreter()
        app.state.flows = flows
        yield
        app.state.flows = None
        await flows.close()

    # The same as FastAPI(...), with the scripts of /docs served from here instead of a CDN.
    app = FastAPIOffline(
        title="Glow service",
        summary=openapi.SUMMARY,
        version=openapi.VERSION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # would lead to http behind a proxy that speaks https
        telemetry={"tracing": False, "metrics": False, "logs": False},  # looks for providers at every request
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.flows = None
    app.include_router(api.router)
    for kind in (ServiceError, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(HTTPException, _http_error)

    def document() -> dict[str, Any]:
        flows: Flows | None = app.state.flows
        if flows is None:
            return openapi.document(app, {})
        if app.openapi_schema is None:
            app.openapi_schema = openapi.document(app, flows.manifests)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    app.middleware_stack = Front(app.build_middleware_stack(), metrics)
    return app


def _tune_interpreter() -> None:
    """Spare requests what Python stops them for.

    A garbage collection that looks through all of torch's modules, or at thousands of connections, takes 0.1 s and
    more. What is loaded by now stays and is left out; requests leave no cycles behind, so that looking for some can be
    rare. And the engine, which needs the interpreter between two passes, gets it from a busy event loop after 2 ms
    instead of 5; still shorter turns cost more than they give.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(0.002)


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(request, error)[0]


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods(request)))  # the router names those of one route only
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
    return write_error(request, error.status_code, code, str(error.detail), headers)


def _methods(request: Request) -> set[str]:
    """Methods of all routes of a path."""
    routes = [route for route in (*request.app.routes, *api.router.routes) if isinstance(route, Route)]
    methods = {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}
    return methods | {"HEAD"} if "GET" in methods else methods
