"""What the client keeps to between the requests of a call, and between calls."""

import asyncio
import json
import logging
import threading
from typing import Any

import httpx
import numpy as np
import pytest

from service import headers
from service.client import (
    AsyncGlowClient,
    ConnectionFailed,
    DeadlineExceeded,
    GlowClient,
    InvalidRequest,
    NotFound,
    VersionGone,
)
from service.client.steps import Asking, Deadline, Pause
from tests.test_client_steps import asked, describe, of, refusal, rows_of, scored, x_of


def parameters_of(request: httpx.Request) -> dict[str, Any]:
    head = json.loads(request.content[: int(request.headers[headers.JSON_SIZE])])
    return dict(head["parameters"])


def test_the_default_model_is_asked_for_once() -> None:
    paths: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return describe(request) or scored(rows_of(request))

    client = GlowClient(of(handler))
    for _ in range(2):
        client.log_likelihood([[1.0]])
    assert paths == ["/models", "/v2/models/m/infer", "/v2/models/m/infer"]


def test_a_version_that_nobody_has_answered_with_is_not_said_to_be_gone() -> None:
    client = GlowClient(of(lambda _: httpx.Response(404)), model="m@0123")
    with pytest.raises(NotFound) as raised:
        client.log_likelihood([[1.0]])
    assert not isinstance(raised.value, VersionGone)


def test_each_kind_of_call_has_its_own_limit_of_rows() -> None:
    sizes: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if (about := describe(request)) is not None:
            return about
        sizes.append(rows_of(request))
        heavy = {"explain", "dequantization_samples"} & parameters_of(request).keys()
        return httpx.Response(413) if heavy and sizes[-1] > 2 else scored(sizes[-1])

    client = GlowClient(of(handler), max_rows=8, concurrency=1)
    client.log_likelihood(np.zeros((4, 1)), explain=True)
    assert sizes == [4, 2, 2]
    client.log_likelihood(np.zeros((4, 1)))
    assert sizes[3:] == [4]
    client.log_likelihood(np.zeros((4, 1)), dequantization=3)  # 8 rows of a request are 2 with 3 noisy copies each
    assert sizes[4:] == [2, 2]


def test_options_may_be_scalars_of_numpy_and_tensors_are_aligned() -> None:
    seen: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert int(request.headers[headers.JSON_SIZE]) % 8 == 0
        seen.append(parameters_of(request))
        return scored(rows_of(request))

    client = GlowClient(of(handler), model="m")
    scalars: list[Any] = [np.float32(0.25), np.float64(0.125), 0.1]
    for alpha in scalars:
        client.log_likelihood([[1.0]], alpha=alpha)
    assert [told["alpha"] for told in seen] == [0.25, 0.125, 0.1]


def test_nothing_is_sent_when_time_is_up_and_no_more_told_than_the_header_can_say() -> None:
    now = 0.0
    call = Asking(4).ask("GET", "/", Deadline(1, lambda: now))
    now = 1.0
    with pytest.raises(DeadlineExceeded, match=r"^no answer within 1 s$"):
        next(call)
    assert asked([refusal(200)], timeout=1e8)[1][0].headers[headers.TIMEOUT] == "999999999"


def test_a_long_pause_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "service.client"):
        asked([refusal(429, 1), refusal(429, 2), refusal(200)])
    assert caplog.messages == ["Too Many Requests: asking again in 2 s"]


def test_between_questions_whether_a_service_is_ready_there_is_a_pause() -> None:
    call = GlowClient(of(refused))._calls.wait_until_ready(5)
    next(call)
    assert isinstance(call.send(refusal(503)), Pause)


def refused(_: httpx.Request) -> httpx.Response:
    return httpx.Response(429, headers={"retry-after": "60"})


def test_closing_ends_a_call_of_many_requests() -> None:
    paused = threading.Event()

    def handler(request: httpx.Request) -> httpx.Response:
        paused.set()
        return refused(request)

    client = GlowClient(of(handler), model="m@v", max_rows=1)
    found: list[str] = []

    def ask() -> None:
        try:
            client.log_likelihood(np.zeros((9, 1)))
        except ConnectionFailed as error:
            found.append(error.code)

    thread = threading.Thread(target=ask)
    thread.start()
    assert paused.wait(30)
    client.close()
    thread.join(30)
    assert found == ["closed"]
    assert not client._groups


async def test_connections_of_its_own_are_closed() -> None:
    with GlowClient("http://127.0.0.1:9") as client:
        assert not client._http.is_closed
    assert client._http.is_closed
    async with AsyncGlowClient("http://127.0.0.1:9") as twin:
        assert not twin._http.is_closed
    assert twin._http.is_closed


async def test_the_first_error_ends_all_tasks_of_a_call() -> None:
    ended: list[int] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        row = int(x_of(request)[0, 0])
        if row == 2:
            return httpx.Response(422)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(row)
        raise AssertionError

    http = httpx.AsyncClient(base_url="http://glow", transport=httpx.MockTransport(handler))
    client = AsyncGlowClient(http, model="m@v", max_rows=1, concurrency=3)
    with pytest.raises(InvalidRequest):
        await asyncio.wait_for(client.log_likelihood(np.arange(9).reshape(9, 1)), 30)
    assert sorted(ended) == [0, 1]


async def test_a_task_pauses_between_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)
    answers = [httpx.Response(429, headers={"retry-after": "60"}), httpx.Response(200, json={})]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    await AsyncGlowClient(httpx.AsyncClient(base_url="http://glow", transport=transport)).models()
    assert pauses == [60]
