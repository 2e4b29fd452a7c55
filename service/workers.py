"""Serving: one process, or several that share a port; signals, and what becomes of requests under way."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import math
import multiprocessing
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TextIO

import uvicorn
from fastapi import FastAPI
from tqdm import tqdm
from uvicorn.config import STARTUP_FAILURE

from service import access_log
from service.app import create_app
from service.artifact import ArtifactError
from service.peers import served_files
from service.protocol import Protocol
from service.service import Service
from service.settings import Settings, SettingsError, read_settings

BACKLOG = 2048  # connections that wait to be accepted
_AGAIN_S, _LONG_S = 0.5, 30.0  # until a worker that ended is started again: at first, and where none lasts
_LOOK_S = 1.0  # between two looks at whether this worker is stuck
_HANDSHAKE_S = 0.25  # in which a connection that has begun is made
_SO_ATTACH_FILTER = 26  # of Linux, which takes a program in classic BPF:
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the flags of the TCP header
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone: next line, else skip it
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # take all of it
)

logger = logging.getLogger(__name__)


@contextmanager
def taken_port(settings: Settings) -> Iterator[socket.socket]:
    """Take the port before the models are loaded, so that no second service does. Raises SettingsError.

    One process listens at once. Of several, each listens when it is ready, and until then callers are refused.
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
            text = f"cannot listen on {settings.host} port {settings.port}: {error.strerror}"
            if error.errno == errno.EADDRINUSE:
                text += "; choose another by --port or GLOW_PORT (make serve: PORT=)"
            raise SettingsError(text) from error
        yield bound


def _bind(host: str, port: int, shared: bool = False) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound


def serve(app: FastAPI, settings: Settings, bound: socket.socket) -> bool:
    """Run this process's app until SIGINT or SIGTERM; tells whether its models could be served.

    SIGTERM: /readyz answers 503 and all else as before, for ``settings.drain_delay_s``, in which whoever sends requests
    here is to notice. Then, or after SIGINT at once, no connection is accepted, and what was asked is answered.
    """
    _allow_connections()
    # Who runs a single process sees /livez red before it ends; of several workers, it asks one of the others.
    num_looks = 2 if settings.workers > 1 else 2 + math.ceil(settings.stall_s / _LOOK_S)
    threading.Thread(target=_end_if_stuck, args=(app.state.service, num_looks), daemon=True).start()
    server = _Server(app, settings)
    with suppress(KeyboardInterrupt):  # which the server raises again once it has ended
        server.run(sockets=[bound])
    return server.has_served


class _Server(uvicorn.Server):
    """uvicorn, which closes its port the moment that SIGTERM comes, with a while of warning before."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(_config(app, settings))
        self._service: Service = app.state.service
        self._delay_s = settings.drain_delay_s
        self._drain_until = math.inf

    @property
    def has_served(self) -> bool:
        """Whether models were ready at any time."""
        return self._service.has_started

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM or not self.started or self._service.draining:
            super().handle_exit(sig, frame)
            return
        logger.info("draining for %g s (GLOW_DRAIN_DELAY_S)", self._delay_s)
        self._service.draining = True
        self._drain_until = time.monotonic() + self._delay_s
        # Answers from now on ask for another connection, which whoever balances the load opens elsewhere.
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers.append((b"connection", b"close"))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Whoever the system has let in when the port closes is thrown out with it, so that first nobody must come.
        for listening in sockets or []:
            _let_nobody_in(listening)
        await asyncio.sleep(_HANDSHAKE_S)
        while select.select(sockets or [], [], [], 0)[0]:  # the loop accepts one a turn
            await asyncio.sleep(0)
        await super().shutdown(sockets)
        self._captured_signals.clear()  # which uvicorn raises again, to end a process that has nothing left to do

    async def on_tick(self, counter: int) -> bool:
        if time.monotonic() >= self._drain_until:
            self.should_exit = True
        return await super().on_tick(counter)


def _let_nobody_in(listening: socket.socket) -> None:
    """Have the system drop what begins a connection, where it can; it accepts those that are half open.

    Callers try again after a second, and find another server or a closed port.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
        pointer = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
        with suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def serve_with_workers(settings: Settings, bound: socket.socket, given: Mapping[str, object]) -> bool:
    """The same in ``settings.workers`` processes, each started again if it ends; tells whether they could serve.

    ``given`` are the settings that did not come from the environment, from which workers take theirs.
    """
    _allow_connections()
    with tempfile.TemporaryDirectory(prefix="glow-") as folder:
        shared = Path(folder, "shared")
        shared.mkdir()
        environment = {f"GLOW_{name.upper()}": _as_text(value) for name, value in given.items()}
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
        if settings.cache_dir is None:  # or each would measure, all at once
            environment["GLOW_CACHE_DIR"] = folder
        os.environ.update(environment)  # before workers start: prometheus_client looks at it when it is imported
        return _Supervisor(settings.workers, bound, shared).run()


class _Supervisor:
    """Starts workers, and again those that end; passes on SIGHUP, to reload, and SIGTERM and SIGINT, to end.

    Workers that cannot start end the others only where none was ever ready: what they found wrong may be mended.
    """

    def __init__(self, num_workers: int, bound: socket.socket, shared: Path) -> None:
        self._shared = shared
        self._num_workers = num_workers
        self._address = bound.getsockname()[:2]
        self._workers: dict[BaseProcess, float] = {}  # and when each was started
        self._start_at = -math.inf  # when the next worker may start
        self._pause_s = _AGAIN_S / 2
        self._signals: list[int] = []
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def run(self) -> bool:
        """Until a signal ends it, or a worker that cannot start; tells whether all could."""
        for awaited in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(awaited, self._note)
        ending = failed = False
        while self._workers or not ending:
            pause_s = self._start_at - time.monotonic()
            if not ending and pause_s <= 0 and len(self._workers) < self._num_workers:
                self._start()
                continue
            lacking = not ending and len(self._workers) < self._num_workers
            sentinels = [worker.sentinel for worker in self._workers]
            ready = wait([self._wake, *sentinels], pause_s if lacking else None)
            if self._wake in ready:
                os.read(self._wake, 1024)
            while self._signals:
                number = self._signals.pop(0)
                ending = ending or number != signal.SIGHUP
                # Workers in a terminal have had SIGINT by themselves, and a second one would cut requests off.
                self._tell(signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)
            for worker in [worker for worker in self._workers if worker.sentinel in ready]:
                worker.join()
                age_s = time.monotonic() - self._workers.pop(worker)
                if ending:
                    continue
                if worker.exitcode == STARTUP_FAILURE and not served_files(self._shared):
                    logger.error("worker %d cannot serve; ending", worker.pid)
                    ending = failed = True
                    self._tell(signal.SIGTERM)
                    continue
                self._pause_s = _AGAIN_S if age_s > _LONG_S else min(2 * self._pause_s, _LONG_S)
                self._start_at = time.monotonic() + self._pause_s
                logger.error(
                    "worker %d has ended with %s; starting another in %g s", worker.pid, worker.exitcode, self._pause_s
                )
        return not failed

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        with suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def _start(self) -> None:
        worker = multiprocessing.get_context("spawn").Process(target=_work, args=self._address)
        worker.start()
        self._workers[worker] = time.monotonic()

    def _tell(self, number: int) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, number)


def _work(host: str, port: int) -> None:
    """Run a worker, from the environment alone.

    It listens once it is ready, by a socket of its own on the port: with one socket for all, the first worker to wake
    up takes all connections that wait; with one each, the system deals them out.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is ready to reload; what it reads now is new anyway
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        settings = read_settings()
        begin_logs(settings)
        app = create_app(settings)
    except (SettingsError, ArtifactError) as error:  # an artifact was exchanged since the start
        logger.error("%s", error)
        sys.exit(STARTUP_FAILURE)
    with _bind(host, port, shared=True) as bound:
        serve(app, settings, bound)


def _end_with_supervisor() -> None:
    """End this process as by a signal when its supervisor is gone, and nobody can stop it or start it again."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _end_if_stuck(service: Service, num_looks: int) -> None:
    """End this process where its engine or its event loop makes no progress, to be started again.

    Seen several times in a row: after it was stopped for a while, it has made no progress either.
    """
    seen = 0
    while seen < num_looks:
        time.sleep(_LOOK_S)
        seen = seen + 1 if service.is_stuck else 0
    logger.critical("the engine or the event loop is stuck (GLOW_STALL_S); ending")
    os._exit(1)


def begin_logs(settings: Settings) -> None:
    """Write log records of this process to stderr and, where wanted, its requests to stdout, each on one line."""
    if settings.access_log:
        access_log.begin()
    on_terminal = sys.stderr.isatty()
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(levelname)s %(message)s"
        if on_terminal
        else "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s",
        handlers=[_BesideBars()],
    )
    # Which tell by three lines each that a process has begun and ended.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno > logging.INFO)


class _BesideBars(logging.StreamHandler[TextIO]):
    """Writes to standard error without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(sys.stderr):
            super().emit(record)


def _allow_connections() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one a connection, idle ones too


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        log_level=settings.log_level,
        proxy_headers=False,  # nothing depends on the caller's address
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=math.ceil(settings.deadline_s),
    )


def _as_text(value: object) -> str:
    return os.pathsep.join(map(str, value)) if isinstance(value, list) else str(value)
