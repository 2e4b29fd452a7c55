"""The application: ``create_app(settings)`` puts routes, errors and lifespan together."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from service import api, headers, openapi
from service.access import DOCS_FILES, PLAYGROUND
from service.artifact import ArtifactError
from service.errors import ServiceError, code_of
from service.front import Front, error_response, write_error
from service.oip import routes as oip
from service.peers import Peers
from service.service import Service
from service.settings import Settings

_ROUTERS = (api.router, oip.router)

logger = logging.getLogger(__name__)


def create_app(settings: Settings, *, load_first: bool = True, peers: Peers | None = None) -> FastAPI:
    """Build the application around verified models; ``app.state.service`` is what it serves.

    They are warmed up when it starts: before anything is answered or, without ``load_first``, while /livez and /readyz
    already are, and all else is refused. ``peers`` reload with this process: the workers of its host, if no others are
    given. Raises ArtifactError where the settings name an artifact that cannot be
    served, SettingsError for wrong keys, or where traces are wanted that cannot be made.
    """
    service = Service(settings, peers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.metrics.sampling(), _reload_on_signal(service), _started(service, load_first):
            yield

    # The same as FastAPI(...), with the scripts of /docs served from here instead of a CDN.
    app = FastAPIOffline(
        docs_url=None,  # ours asks for a key
        static_url=DOCS_FILES.rstrip("/"),
        title="Glow service",
        summary=openapi.SUMMARY,
        version=openapi.VERSION,
        lifespan=lifespan,
        generate_unique_id_function=openapi.operation_id,
        redoc_url=None,
        redirect_slashes=False,  # would lead to http behind a proxy that speaks https
        telemetry={"tracing": False, "metrics": False, "logs": False},  # looks for providers at every request
    )
    app.state.service = service
    for router in _ROUTERS:
        app.include_router(router)
    app.mount(PLAYGROUND, StaticFiles(directory=api.PLAYGROUND))
    for kind in (ServiceError, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(HTTPException, _http_error)
    described: list[tuple[object, dict[str, Any]]] = []  # the document, and of what

    def document() -> dict[str, Any]:
        of = service.catalog, bool(service.access.keys)
        if not described or described[0][0] != of:
            described[:] = [(of, openapi.document(app, *of))]
        return described[0][1]

    app.openapi = document  # type: ignore[method-assign]
    front: ASGIApp = Front(app.build_middleware_stack(), service)
    if settings.cors_origins:
        front = CORSMiddleware(
            front,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                *("authorization", "content-type", "content-encoding", "traceparent", "x-api-key", "x-request-id"),
                *(headers.TIMEOUT, headers.JSON_SIZE),
            ],
            expose_headers=[
                *("x-request-id", "retry-after", "server-timing", headers.JSON_SIZE),
                *map(headers.told, headers.TOLD),
            ],
        )
    app.middleware_stack = front
    return app


@asynccontextmanager
async def _started(service: Service, load_first: bool) -> AsyncIterator[None]:
    """Load models, before or beside what follows, and stop in the end."""
    loading = asyncio.create_task(_load(service))
    if load_first:
        await loading
    else:
        loading.add_done_callback(_end_if_failed)
    try:
        yield
    finally:
        loading.cancel()
        await service.close()


async def _load(service: Service) -> None:
    await service.start()
    _tune_interpreter()


def _end_if_failed(loading: asyncio.Task[None]) -> None:
    """End the process as a signal does, where it has nothing to serve."""
    if not loading.cancelled() and (error := loading.exception()) is not None:
        logger.critical("error: %s", error, exc_info=None if isinstance(error, ArtifactError) else error)
        os.kill(os.getpid(), signal.SIGINT)


@asynccontextmanager
async def _reload_on_signal(service: Service) -> AsyncIterator[None]:
    """Take SIGHUP as a wish to reload, where signals come to this thread."""
    tasks: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with suppress(ServiceError):  # the log tells
            await service.reload()

    def begin() -> None:
        logger.info("reloading, as SIGHUP wants")
        task = asyncio.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for task in tasks:
            task.cancel()


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
    return write_error(request, error.status_code, code_of(HTTPStatus(error.status_code)), str(error.detail), headers)


def _methods(request: Request) -> set[str]:
    """Methods of all routes of a path."""
    routes = [
        route
        for routes in (request.app.routes, *(router.routes for router in _ROUTERS))
        for route in routes
        if isinstance(route, Route)
    ]
    methods = {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}
    return methods | {"HEAD"} if "GET" in methods else methods or {"GET", "HEAD"}  # of files, which are no route
