"""Whole connections: bytes that a caller may send, through the protocol, the application and the models."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator, MutableMapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from reliability.fuzz import bodies, oip, pictures
from reliability.fuzz.target import Finding, Target
from service.headers import JSON_SIZE, TIMEOUT
from service.protocol import Protocol

MAX_WAIT_S = 20.0
MAX_BODY_BYTES = 2**20


class Connections:
    """An application, running, behind connections that are none; ``take`` is told what comes in on one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._config = uvicorn.Config(
            self._seen,
            http=Protocol,
            ws="none",
            interface="asgi3",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
        )
        self._statuses: list[int] = []
        self._log = _Records(logging.ERROR)

    async def _seen(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._statuses.append(message["status"])
            await send(message)

        await self._app({**scope, "app": self._app}, receive, noting)

    async def take(self, data: bytes) -> None:
        """Send bytes, wait for the answers, and hang up. Raises Finding for what no caller should see or cause."""
        self._statuses.clear()
        self._log.records.clear()
        state, loop = ServerState(), asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, about: self._log.records.append(repr(about)))
        logging.getLogger().addHandler(self._log)
        protocol = Protocol(self._config, state, {}, loop)
        protocol.connection_made(_Transport())
        try:
            protocol.data_received(data)
            for _ in range(5):
                await asyncio.sleep(0)
            if protocol.cycle is not None and protocol.cycle.more_body:  # nothing more comes
                protocol.connection_lost(None)
            if state.tasks and (await asyncio.wait(set(state.tasks), timeout=MAX_WAIT_S))[1]:
                raise Finding(f"no answer in {MAX_WAIT_S} s")
        finally:
            if protocol.parser is not None:
                protocol.connection_lost(None)
            logging.getLogger().removeHandler(self._log)
            loop.set_exception_handler(None)
        held = _held(self._app)
        if held:
            raise Finding(f"what is over still holds {held}")
        if self._log.records:
            raise Finding(f"the log has errors: {self._log.records[0]}")
        allowed = {504} if TIMEOUT.encode() in data.lower() or b"timeout" in data else set()
        for status in self._statuses:
            if status >= 500 and status not in allowed:
                raise Finding(f"an answer of status {status}")


def _held(app: ASGIApp) -> dict[str, int]:
    """What requests under way hold of an application of ours."""
    service = getattr(getattr(app, "state", None), "service", None)
    held = {"bytes": service.room.taken, "requests": service.metrics.in_flight} if service is not None else {}
    return {name: num for name, num in held.items() if num}


class _Records(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


class _Transport(asyncio.Transport):
    """Takes whatever is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 8000)})
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop it."""

    def writelines(self, list_of_data: Any) -> None:  # noqa: ANN401 (of any bytes)
        """Drop them."""

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """What was sent was sent at once."""

    def resume_reading(self) -> None:
        """What was sent was sent at once."""


def read_connection(data: bytes) -> None:
    """Whatever is sent, no answer is a server error, none fails to come, and nothing is wrong in the log."""
    loop, connections, _ = _served()
    loop.run_until_complete(connections.take(data))


@cache
def _served() -> tuple[asyncio.AbstractEventLoop, Connections, object]:
    """The tiny models of the tests, served in this process until it ends."""
    from service.app import create_app
    from service.settings import Settings
    from tests.conftest import tiny_images, tiny_mixed, tiny_recipe, train_and_export

    with TemporaryDirectory() as name:
        folder = Path(name)
        recipe = tiny_recipe("tiny-images", num_levels=2, bits=4)
        train_and_export(recipe, tiny_images(), folder / "tiny-images.pt")
        train_and_export(tiny_recipe("tiny-mixed"), tiny_mixed(), folder / "tiny-mixed.pt")
        settings = Settings(
            models=[folder],
            default_model="tiny-mixed",
            device="cpu",
            threads=1,
            plan="frozen",
            max_batch_rows=32,
            max_request_rows=64,
            max_queue_rows=2048,
            max_explanation_rows=2048,
            max_body_bytes=MAX_BODY_BYTES,
        )
        app = create_app(settings)
    loop = asyncio.new_event_loop()
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())
    return loop, Connections(app), lifespan  # which ends when nobody holds it


def seeds() -> Iterator[bytes]:
    """Requests of every route and kind of body."""
    for path in ("/models", "/models/tiny-mixed/example?n=2&format=arrow", "/models/tiny-images/drift", "/metrics"):
        yield request("GET", path)
    for path in (
        "/v2",
        "/v2/models/tiny-mixed/config",
        "/v2/models/stats",
        "/livez",
        "/readyz",
        "/playground/",
        "/docs",
    ):
        yield request("GET", path)
    for path in ("/sample?n=2&seed=1&format=png&model=tiny-images", "/sample?temperature=0.5&first=3"):
        yield request("GET", path)
    yield request("POST", "/sample", b'{"n": 3, "seed": 9007199254740991, "first": 9007199254740991}')
    for body in bodies.json_seeds():
        yield request("POST", "/log-likelihood?alpha=0.1&scores=all", body, accept="application/json;q=0.5, */*")
    yield request("POST", "/encode", b'{"inputs": [[1, 0.5, 3, 7, 0.5]]}', accept="application/x-npy")
    yield request("POST", "/decode", b'{"latents": [[1, 0.5, 3, 7, 0.5]], "reproducible": true}')
    kinds = {
        "application/x-npy": list(bodies.npy_seeds())[:2],
        "application/vnd.apache.arrow.stream": list(bodies.arrow_seeds())[:1],
        "image/png": list(pictures.picture_seeds())[1:2],
        "application/octet-stream": list(pictures.picture_seeds())[7:8],
    }
    for kind, examples in kinds.items():
        for body in examples:
            model = "tiny-images" if body[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0") else "tiny-mixed"
            yield request("POST", f"/log-likelihood?model={model}&explain=true", body, **{"content-type": kind})
    for body in bodies.compressed_seeds():
        encoding = "deflate" if body[0] else "gzip"
        yield request("POST", "/encode?format=json", body[1:], **{"content-encoding": encoding, TIMEOUT: "5000"})
    for body in oip.oip_seeds():
        size = int.from_bytes(body[:2], "big")
        about = {} if size == 0xFFFF else {JSON_SIZE: str(size)}
        yield request("POST", "/v2/models/tiny-mixed/infer", body[2:], **about)
    raw = np.ones(5).tobytes()
    yield request("POST", "/v2/models/tiny-mixed.encode/infer", raw, **{JSON_SIZE: "0", "accept-encoding": "gzip"})
    yield b"POST /v2/repository/index HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    upgrade = {"connection": "upgrade", "upgrade": "websocket"}
    yield request("POST", "/encode", b'{"inputs": [[1, 0.5, 3, 7, 0.5]]}', **upgrade) + request("GET", "/livez")
    yield request("POST", "/sample", b'{"n": 1}', expect="100-continue", traceparent="00-1-2-3")
    yield request("CONNECT", "a:80") + request("OPTIONS", "*")
    yield request("GET", "/livez") + request("HEAD", "/models") + b"GET / HTTP/1.0\r\n\r\n"


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as it is sent."""
    lines = [f"{method} {path} HTTP/1.1", "host: a", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def repair(data: bytes) -> bytes:
    """Let the length of the body be what follows the head."""
    head, end, body = data.partition(b"\r\n\r\n")
    return re.sub(rb"(?i)\r\ncontent-length: *\d*", b"\r\ncontent-length: %d" % len(body), head) + end + body


_WORDS = (
    *(b"/log-likelihood /encode /decode /sample /models/ /v2/models/ /infer /versions/ ?model= &format=".split()),
    *(b"&alpha= &scores= &dequantization_samples= &n= &seed= &first= &temperature= &explain=true &fdr=".split()),
    *(b"tiny-mixed tiny-images npy arrow png json %00 %f0 %ed%a0%80 deflate gzip application/json */*;q= ".split()),
    *(f"\r\n{name}: ".encode() for name in ("accept", "content-type", "content-encoding", TIMEOUT, JSON_SIZE)),
    *(f"\r\n{name}: ".encode() for name in ("x-request-id", "transfer-encoding", "authorization", "expect", "upgrade")),
    json.dumps({"samples": 2, "seed": 1}).encode(),
)
TARGETS = [Target("http", read_connection, seeds, words=_WORDS, repair=repair, holds_json=True)]
