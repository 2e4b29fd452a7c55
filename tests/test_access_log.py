"""The access log: one line a request, on demand, that tells what was asked for and never what was in it."""

import json
import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import access_log
from tests.test_server import free_port, start, wait_until_ready
from tests.wire import TABLE

ROW = {"model": TABLE, "inputs": [[0.5, 1010.25, 3.0]]}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FIELDS = {
    *("time", "request_id", "method", "route", "status", "code", "model", "version", "rows", "bytes", "seconds"),
    *("key", "trace_id"),
}


class Lines(logging.Handler):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def last(self) -> Any:
        return json.loads(self.texts[-1])


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    handler = Lines()
    access_log._logger.addHandler(handler)
    access_log._logger.setLevel(logging.INFO)
    yield handler
    access_log._logger.setLevel(logging.CRITICAL)
    access_log._logger.removeHandler(handler)


async def test_a_call_is_told_with_what_it_asked_for(app: FastAPI, client: httpx.AsyncClient, lines: Lines) -> None:
    response = await client.post("/log-likelihood", json=ROW, headers={"traceparent": f"00-{TRACE}-{'1' * 16}-01"})
    line = lines.last()
    assert line.keys() == FIELDS
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["method"], line["route"], line["status"], line["code"]) == ("POST", "/log-likelihood", 200, "")
    assert (line["model"], line["version"]) == (TABLE, app.state.service.flows.find(TABLE).version)
    assert (line["rows"], line["bytes"]) == (1, len(response.request.content))
    assert line["trace_id"] == TRACE
    seconds = line["seconds"]
    assert seconds.keys() == {"total", "read", "queue", "compute", "rest"}
    parts = sum(seconds[name] for name in ("read", "queue", "compute", "rest"))
    assert 0 < parts <= seconds["total"] + 1e-5


async def test_nothing_of_a_body_a_query_or_a_header_is_told(client: httpx.AsyncClient, lines: Lines) -> None:
    secret = "5ecre7"  # noqa: S105 (of nothing)
    headers = {"authorization": f"Bearer {secret}", "user-agent": secret, "traceparent": secret}
    for response in (
        await client.post(f"/log-likelihood?x={secret}", json={**ROW, "inputs": [[secret]]}, headers=headers),
        await client.post("/log-likelihood", json={**ROW, "model": secret}, headers=headers),
        await client.get(f"/models/{secret}?{secret}", headers=headers),
        await client.get(f"/{secret}", headers=headers),
        await client.get("/models", headers=headers),
    ):
        assert response.status_code in (200, 404, 422)
    assert len(lines.texts) == 5
    assert secret not in "".join(lines.texts)
    assert "1010.25" not in "".join(lines.texts)


@pytest.mark.parametrize(
    ("method", "path", "body", "route", "status", "code"),
    [
        ("GET", "/models/tiny-table", b"", "/models/{name}", 200, ""),
        ("HEAD", "/livez", b"", "/livez", 200, ""),
        ("GET", "/models/none/example", b"", "/models/{name}/example", 404, "model_not_found"),
        ("GET", "/nowhere/at/all", b"", "", 404, "not_found"),
        ("GET", "/encode", b"", "/encode", 405, "method_not_allowed"),
        ("DELETE", "/models", b"", "/models", 405, "method_not_allowed"),
        ("POST", "/encode", b"{", "/encode", 400, "bad_request"),
    ],
)
async def test_every_kind_of_request_has_a_line(
    client: httpx.AsyncClient, lines: Lines, method: str, path: str, body: bytes, route: str, status: int, code: str
) -> None:
    await client.request(method, path, content=body)
    (line,) = map(json.loads, lines.texts)
    found = line["method"], line["route"], line["status"], line["code"], line["bytes"]
    assert found == (method, route, status, code, len(body))


async def test_nothing_is_written_unless_it_is_wanted(
    client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    await client.post("/log-likelihood", json=ROW)
    assert capsys.readouterr() == ("", "")


def test_lines_of_a_server_go_to_standard_output(models_dir: Path) -> None:
    port = free_port()
    process = start("--models", models_dir / "tiny-table.pt", "--port", port, GLOW_ACCESS_LOG="true")
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process)
    assert httpx.post(f"{url}/encode", json=ROW).status_code == 200
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert b" 400 " in connection.recv(4096)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    told = [json.loads(line) for line in output.splitlines()]
    assert ("/encode", 200) in [(line.get("route"), line["status"]) for line in told]
    assert (told[-1]["status"], told[-1]["code"]) == (400, "bad_request")
    assert "serving on" in errors
