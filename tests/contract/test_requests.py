"""Requests as HTTP knows them: heads and bodies, deadlines, connections, many at once and broken off."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from service.artifact import within_tolerance
from tests.contract.deployments import MAX_ROWS
from tests.keys import secret_of
from tests.test_server import answered
from tests.wire import TABLE, post

ROWS = json.dumps({"inputs": np.zeros((2, 64)).tolist()}).encode()
KEY = f"x-api-key: {secret_of('caller')}\r\n".encode()


def distinct_rows(num: int) -> list[list[float]]:
    random = np.random.default_rng(0).normal(size=num)
    return [[a, 1000 + 50 * a, float(i % 10)] for i, a in enumerate(random.tolist())]


async def test_each_of_many_requests_at_once_gets_the_answer_to_its_own_rows(client: httpx.AsyncClient) -> None:
    rows = distinct_rows(300)
    whole = await post(client, "/encode", {"model": TABLE, "inputs": rows})
    answers = await asyncio.gather(
        *(post(client, "/encode", {"model": TABLE, "inputs": rows[i : i + 3]}) for i in range(0, 300, 3))
    )
    latents = [row for answer in answers for row in answer["latents"]]
    np.testing.assert_allclose(latents, whole["latents"], atol=1e-4)
    log_likelihood = np.array([value for answer in answers for value in answer["log_likelihood"]])
    assert within_tolerance(log_likelihood, np.array(whole["log_likelihood"]))
    assert len({tuple(row) for row in latents}) == 300


async def test_whoever_answers_a_seed_gives_the_same_bytes(
    client: httpx.AsyncClient, reference: httpx.AsyncClient
) -> None:
    alone = {"connection": "close"}  # so that each may come to another process
    for path in ("/sample?n=3&seed=5", f"/sample?model={TABLE}&n=3&seed=5&temperature=0.5", "/sample?n=40&seed=9"):
        expected = (await reference.get(f"{path}&format=npy")).content
        answers = await asyncio.gather(*(client.get(f"{path}&format=npy", headers=alone) for _ in range(8)))
        assert {answer.content for answer in answers} == {expected}


async def test_whoever_answers_reproducibly_gives_the_same_bits(
    client: httpx.AsyncClient, reference: httpx.AsyncClient
) -> None:
    body = {"model": TABLE, "inputs": distinct_rows(40), "reproducible": True}
    for path in ("/log-likelihood?scores=all&explain=true", "/encode"):
        expected = await post(reference, path, body)
        answers = [await client.post(path, json=body, headers={"connection": "close"}) for _ in range(4)]
        for answer in answers:
            assert answer.json() == expected


async def test_a_body_may_come_in_pieces(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(0, len(ROWS), 100):
            yield ROWS[i : i + 100]
            await asyncio.sleep(0.001)

    response = await client.post("/encode", content=pieces(), headers={"content-type": "application/json"})
    assert response.status_code == 200
    assert len(response.json()["latents"]) == 2


async def test_a_caller_who_leaves_takes_nobody_along(client: httpx.AsyncClient) -> None:
    for seconds in (0.001, 0.02, 0.1):
        leaving = [asyncio.wait_for(client.get(f"/sample?n={MAX_ROWS}&seed={seed}"), seconds) for seed in range(4)]
        await asyncio.gather(*leaving, return_exceptions=True)
        staying = await asyncio.gather(*(client.post("/encode", content=ROWS) for _ in range(8)))
        assert [response.status_code for response in staying] == [200] * 8


async def test_an_answer_that_comes_too_late_is_504(client: httpx.AsyncClient) -> None:
    response = await client.post("/sample", json={"n": MAX_ROWS}, headers={"x-request-timeout-ms": "1"})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert "no answer within 0.001 s, its own deadline (x-request-timeout-ms)" in response.json()["error"]


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "9" * 30, "0" * 11 + "1" + "0" * 500, "٣"])
async def test_a_deadline_that_is_none_is_refused(client: httpx.AsyncClient, value: str) -> None:
    headers = {b"x-request-timeout-ms": value.encode()}
    response = await client.post("/log-likelihood", content=ROWS, headers=headers)
    assert response.status_code == 400
    assert "must be a whole number of milliseconds" in response.json()["error"]


async def test_a_caller_may_not_wait_longer_than_the_service_allows(client: httpx.AsyncClient) -> None:
    response = await client.post("/log-likelihood", content=ROWS, headers={"x-request-timeout-ms": "999999999"})
    assert response.status_code == 200


async def test_answers_and_errors_tell_where_the_time_went(client: httpx.AsyncClient) -> None:
    for body, computed in ((ROWS, True), (b"{", False)):
        response = await client.post("/encode", content=body)
        parts = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
        assert list(parts) == ["read", "queue", "compute", "total"]
        milliseconds = {name: float(text) for name, text in parts.items()}
        assert (milliseconds["compute"] > 0) is computed
        assert sum(milliseconds.values()) <= 2 * milliseconds["total"] + 0.002
    assert "server-timing" not in (await client.get("/models")).headers


async def test_options_are_few_and_their_body_is_small(client: httpx.AsyncClient) -> None:
    many = await client.get("/sample?" + "&".join(f"x{i}=1" for i in range(40)))
    assert (many.status_code, many.json()["error"]) == (422, "the query has more than 32 options")
    large = await client.post("/sample", content=b'{"n": 1, "x": [' + b" " * 2**16 + b"]}")
    assert (large.status_code, large.json()["code"]) == (413, "too_large")


async def test_head_is_answered_where_get_is(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/readyz", "/models", "/metrics", "/docs", "/", "/v2", "/sample?n=1&seed=1"):
        got, told = await client.get(path), await client.head(path)
        assert told.status_code == got.status_code == 200
        assert told.headers["content-type"] == got.headers["content-type"]
        assert told.headers["content-length"] == got.headers["content-length"] or path == "/metrics"


def test_a_connection_is_kept_and_answers_in_order_and_heads_have_no_body(address: tuple[str, int]) -> None:
    asked = [b"HEAD /models", b"GET /livez", b"GET /nothing", b"POST /decode", b"HEAD /livez", b"GET /livez"]
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"".join(line + b" HTTP/1.1\r\nhost: x\r\n" + KEY + b"\r\n" for line in asked[:-1]))
        connection.sendall(asked[-1] + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        replies = answered(connection).split(b"HTTP/1.1 ")[1:]
    heads, bodies = zip(*(reply.split(b"\r\n\r\n", 1) for reply in replies), strict=True)
    assert [head[:3] for head in heads] == [b"200", b"200", b"404", b"400", b"200", b"200"]
    assert (bodies[0], bodies[4]) == (b"", b"")
    assert bodies[1] == bodies[5] == b'{"status":"ok"}'


@pytest.mark.differs("ray", "the proxy tells it in plain text, without a request id")
@pytest.mark.parametrize("sent", [b"nonsense", b"GET /livez HTTP/1.1\r\ncontent-length: -1"])
def test_what_is_no_http_gets_an_error_of_the_one_shape(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(sent + b"\r\n\r\n")
        head, _, body = answered(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body).keys() == {"error", "code", "request_id"}


@pytest.mark.parametrize("answer_format", ["json", "npy", "arrow"])
def test_a_large_answer_comes_whole_however_slowly_it_is_read(address: tuple[str, int], answer_format: str) -> None:
    path = f"/sample?n={MAX_ROWS}&seed=1&format={answer_format}"
    with socket.create_connection(address, timeout=30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode() + KEY + b"\r\n")
        head, _, body = answered(connection).partition(b"\r\n\r\n")
    url = f"http://{address[0]}:{address[1]}{path}"
    whole = httpx.get(url, headers={"x-api-key": secret_of("caller")}, timeout=60)
    if b"transfer-encoding: chunked" in head.lower():
        assert body.endswith(b"0\r\n\r\n")
        assert len(body) > len(whole.content)
    else:
        assert body == whole.content
