"""Serving: one process, or several that share a port, their figures and what they measured."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from service.app import create_app
from service.artifact import ArtifactError
from service.protocol import Protocol
from service.settings import Settings, SettingsError, read_settings

BACKLOG = 2048  # connections that wait to be accepted
_START_S = 30  # within which a worker has to show that it lives: it is busy with importing and measuring

logger = logging.getLogger(__name__)


@contextmanager
def taken_port(settings: Settings) -> Iterator[socket.socket]:
    """Take the port before the models are loaded, so that no second service does. Raises SettingsError.

    One process listens at once: callers wait until the models are there. Of several, each listens when it is ready, and
    until then callers are refused.
    """
    with ExitStack() as stack:
        try:
            bound = stack.enter_context(_bind(settings.host, settings.port))
            bound.listen(BACKLOG)
            if settings.workers > 1:  # it was free: now for others of ours, too
                port = bound.getsockname()[1]
                bound.close()
                if sys.platform == "linux":  # a name that is free again when this process ends, however it does
                    lock = stack.enter_context(socket.socket(socket.AF_UNIX))
                    lock.bind(f"\0glow-service-{port}")
                bound = stack.enter_context(_bind(settings.host, port, shared=True))
        except OSError as error:
            raise SettingsError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
        yield bound


def _bind(host: str, port: int, shared: bool = False) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound


class _Share:
    """Becomes a socket on the same port in the worker that it is sent to.

    With one socket for all, the first worker to wake up takes all connections that wait; with one each, the system
    deals them out, to workers that are ready.
    """

    def __init__(self, bound: socket.socket) -> None:
        self._address = bound.getsockname()[:2]

    def __reduce__(self) -> tuple[object, ...]:
        return _bind, (*self._address, True)


def serve(app: FastAPI, settings: Settings, bound: socket.socket) -> None:
    """Run this process's app until SIGINT or SIGTERM; requests in flight are answered first."""
    _begin(settings, bound)
    uvicorn.Server(_config(app, settings)).run(sockets=[bound])


def serve_with_workers(settings: Settings, bound: socket.socket, given: Mapping[str, object]) -> bool:
    """The same in ``settings.workers`` processes, each started again if it ends; tells whether all could start.

    ``given`` are the settings that did not come from the environment, from which workers take theirs.
    """
    _begin(settings, bound)
    with tempfile.TemporaryDirectory(prefix="glow-") as folder:
        figures = Path(folder, "metrics")
        figures.mkdir()
        environment = {f"GLOW_{name.upper()}": _as_text(value) for name, value in given.items()}
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(figures)
        if settings.cache_dir is None:  # or each would measure, all at once
            environment["GLOW_CACHE_DIR"] = folder
        os.environ.update(environment)  # before workers start: prometheus_client looks at it when it is imported
        config = _config("service.workers:create_worker", settings)
        supervisor = Multiprocess(config, sockets=[_Share(bound)])  # type: ignore[list-item]
        supervisor.run()
        return all(process.exitcode != STARTUP_FAILURE for process in supervisor.processes)


def create_worker() -> FastAPI:
    """Build a worker's app from the environment alone."""
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        settings = read_settings()
        log_to_stderr(settings)
        return create_app(settings)
    except (SettingsError, ArtifactError) as error:  # an artifact was exchanged since the start
        logger.error("%s", error)
        sys.exit(STARTUP_FAILURE)


def _end_with_supervisor() -> None:
    """End this process as by a signal when its supervisor is gone, and nobody can stop it or start it again."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)


def log_to_stderr(settings: Settings) -> None:
    """Write log records of this process, one a line."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    )


def _begin(settings: Settings, bound: socket.socket) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one a connection, idle ones too
    address, port = bound.getsockname()[:2]
    logger.info("serving on %s port %d, %d workers", address, port, settings.workers)


def _config(app: FastAPI | str, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=settings.workers,
        loop="uvloop",
        http=Protocol,
        ws="none",
        access_log=False,
        log_level=settings.log_level,
        proxy_headers=False,  # nothing depends on the caller's address
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=math.ceil(settings.deadline_s),
        timeout_worker_healthcheck=_START_S,
    )


def _as_text(value: object) -> str:
    return os.pathsep.join(map(str, value)) if isinstance(value, list) else str(value)
