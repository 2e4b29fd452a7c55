"""What callers may send and how: bounded in bytes, pixels, depth and time, and the service answers the next one."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from service.protocol import MAX_HEADERS, MAX_WAITING, _Joining
from tests.test_server import answered, server
from tests.wire import IMAGES, TABLE

ROW = b'{"inputs":[[0.5,1010.0,3.0]]}'


def png_bomb(width: int, height: int) -> bytes:
    """A picture of few bytes and many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((width + 1) * min(height, 2000)), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (8, 10**6), (2000, 2000)])
async def test_a_picture_of_many_pixels_is_refused_by_its_head(
    client: httpx.AsyncClient, width: int, height: int
) -> None:
    bomb = (
        png_bomb(min(width, 20_000), height)
        if width < 10**6
        else png_bomb(16, 16)[:16] + struct.pack(">II", width, height) + png_bomb(16, 16)[24:]
    )
    for content, headers in (
        (bomb, {"content-type": "image/png"}),
        (
            json.dumps({"model": IMAGES, "inputs": [base64.b64encode(bomb).decode()]}).encode(),
            {"content-type": "application/json"},
        ),
    ):
        tracemalloc.start()
        response = await client.post("/encode", content=content, headers=headers)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert response.status_code in (400, 413, 422), response.text
        assert peak < 16 * 2**20


@pytest.mark.parametrize("values", [b"0,", b"[0],", b"[],", b"{},", b'"",', b'{"a":0},'])
@pytest.mark.parametrize("before", [b'{"inputs":[', b'{"inputs":[[', b'{"inputs":[[0.5,1010.0,3.0]],"x":['])
async def test_json_of_many_values_is_refused_before_they_are_parsed(
    client: httpx.AsyncClient, before: bytes, values: bytes
) -> None:
    """A value of two bytes takes a hundred once it is parsed."""
    body = before + values * (2**20 // len(values) - 100) + b"0]}"
    for path in ("/encode", f"/v2/models/{TABLE}/infer", "/v2/repository/index"):
        tracemalloc.start()
        response = await client.post(path, content=body, headers={"content-type": "application/json"})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert response.status_code == 413, response.text
        assert peak < 4 * 2**20


@pytest.fixture(scope="module")
def address(models_dir: Path) -> Iterator[tuple[str, int]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("DEADLINE_S", "1"), ("KEEP_ALIVE_S", "1"), ("MAX_BODY_BYTES", str(2**20))):
            patch.setenv(f"GLOW_{name}", value)
        with server("--models", models_dir / f"{TABLE}.pt") as (url, _):
            yield "127.0.0.1", int(url.rpartition(":")[2])


def ask(address: tuple[str, int], *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send parts, and read until the server closes."""
    with socket.create_connection(address, timeout=20) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # closed
                break
            time.sleep(pause_s)
        try:
            return answered(connection)
        except ConnectionResetError:
            return b""


def works(address: tuple[str, int]) -> bool:
    head = b"POST /encode HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return b"200 OK" in ask(address, head + b"content-length: %d\r\n\r\n" % len(ROW) + ROW)


def test_a_slow_body_is_given_up_at_the_deadline(address: tuple[str, int]) -> None:
    head = b"POST /encode HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n"
    began = time.monotonic()
    reply = ask(address, head, *[b"{"] * 8, pause_s=0.4)
    assert b"504 " in reply
    assert b'"code":"deadline_exceeded"' in reply
    assert time.monotonic() - began < 10
    assert works(address)


def test_a_body_that_never_ends_is_cut_off_at_the_limit(address: tuple[str, int]) -> None:
    chunk = b"10000\r\n" + b"1" * 2**16 + b"\r\n"
    head = b"POST /encode HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    reply = ask(address, head, *[chunk] * 64)
    assert reply == b"" or b"413 " in reply  # unread input may reset the connection
    packed = gzip.compress(bytes(2**26))
    bomb = (
        b"POST /encode HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
    )
    reply = ask(address, bomb % len(packed) + packed)
    assert reply == b"" or b"413 " in reply
    assert works(address)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 2**17 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"POST /encode HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x00" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_request_ends_its_connection_alone(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address, timeout=20) as other:
        reply = ask(address, sent)
        assert reply == b"" or (reply.startswith(b"HTTP/1.1 4") and b"\r\nx-request-id: " in reply), reply[:200]
        other.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert b"200 OK" in answered(other)
    assert works(address)


POST = b"POST /encode HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def closes(connection: socket.socket, within_s: float = 15.0) -> bool:
    """Whether the server closes a connection of which nothing more is asked."""
    connection.settimeout(within_s)
    try:
        while connection.recv(2**16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",  # answered at once
        b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
        b"POST /v2/repository/index HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
        b"POST /v2/models/tiny-table/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
        b"POST /admin/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
    ],
)
def test_a_body_that_does_not_come_holds_no_connection(address: tuple[str, int], begun: bytes) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(begun + b"{")
        assert closes(connection)
    assert works(address)


def test_what_comes_behind_a_body_is_dropped_and_ends(address: tuple[str, int]) -> None:
    chunked = POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(ROW), ROW)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(chunked + b"x: y\r\n\r\n" + b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        reply = answered(connection)
        assert reply.count(b"HTTP/1.1 200 OK") == 2
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(chunked)
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 15:
                connection.sendall(b"x: y\r\n" * 1000)
        assert time.monotonic() - began < 14
    assert works(address)


def test_whoever_does_not_read_is_cut_off(address: tuple[str, int]) -> None:
    request, num = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n", 20
    size = len(ask(address, request + b"connection: close\r\n\r\n"))
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall((request + b"\r\n") * num)
        time.sleep(4)  # longer than the deadline
        connection.settimeout(15)
        received = 0
        with suppress(ConnectionResetError):
            while part := connection.recv(2**20):
                received += len(part)
        assert received < num * size / 2  # what the system holds
    assert works(address)


UPGRADE = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


def test_a_wish_for_another_protocol_hides_no_request_and_loses_none(address: tuple[str, int]) -> None:
    """As Java's own client sends with its first request; a body taken for a request gets round what is before us."""
    last = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    hidden = b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"
    asked = POST + UPGRADE + b"content-length: %d\r\n\r\n"
    for body, statuses in ((ROW, [b"200", b"200"]), (hidden, [b"400", b"200"])):
        head = asked % len(body)
        for parts in ([head + body + last], [head, body, last]):
            replies = ask(address, *parts, pause_s=0.05).split(b"HTTP/1.1 ")[1:]
            assert [reply[:3] for reply in replies] == statuses
    chunked = POST + UPGRADE + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(ROW), ROW)
    bare = b"GET /livez HTTP/1.1\r\nhost: x\r\n" + UPGRADE.replace(b"h2c", b"websocket") + b"\r\n"
    replies = ask(address, chunked + bare + last).split(b"HTTP/1.1 ")[1:]
    assert [reply[:3] for reply in replies] == [b"200"] * 3
    assert b"400 " in ask(address, b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n")


def test_headers_and_requests_that_wait_are_few(address: tuple[str, int]) -> None:
    """Each costs a hundred times its bytes in memory, also of a caller without a key."""
    head = b"GET /livez HTTP/1.1\r\nconnection: close\r\n"
    assert b" 200 " in ask(address, head + b"a:\r\n" * (MAX_HEADERS - 1) + b"\r\n")
    assert b" 431 " in ask(address, head + b"a:\r\n" * MAX_HEADERS + b"\r\n")
    request = b"GET /livez HTTP/1.1\r\n%s\r\n"
    few = request % b"" * MAX_WAITING + request % b"connection: close\r\n"
    assert ask(address, few).count(b" 200 ") == MAX_WAITING + 1
    assert ask(address, request % b"" + few) == b""
    upgrade = request % b"upgrade: h2c\r\nconnection: upgrade\r\n"
    assert b" 431 " in ask(address, upgrade + head + b"a:\r\n" * MAX_HEADERS + b"\r\n")
    assert ask(address, upgrade + few) == b""
    assert works(address)


@pytest.mark.parametrize("path", ["/", "/playground/app.js", "/sample", "/nothing"])
async def test_nobody_gets_a_web_socket(app: FastAPI, path: str) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": path, "headers": [], "query_string": b""}, receive, send)
    assert sent == [{"type": "websocket.close"}]


async def test_what_is_written_to_a_connection_that_is_gone_is_dropped() -> None:
    """Else every caller who breaks off makes the service write an error to its log."""
    wire = mock.Mock(spec=asyncio.Transport, **{"is_closing.return_value": False})
    joining = _Joining(wire, asyncio.get_running_loop(), 1.0)
    joining.write(b"held")
    wire.is_closing.return_value = True
    await asyncio.sleep(0)
    joining.write(b"small")
    joining.write(bytes(2**16))
    await asyncio.sleep(0)
    wire.write.assert_not_called()
    wire.writelines.assert_not_called()
