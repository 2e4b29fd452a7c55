"""Deadlines and callers that hang up: nobody waits in vain, and nothing runs for nobody."""

import asyncio
import gc
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.types import Message

from service.errors import ClientLeft
from service.room import BodyRoom, Share
from service.row_queue import Array, Arrays
from tests.wire import IMAGES

ROWS = json.dumps({"inputs": np.zeros((2, 64)).tolist()}).encode()


@pytest.fixture
def busy(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An engine that finishes nothing until the event is set."""
    free = threading.Event()
    batcher = app.state.service.flows._batcher
    run = batcher._run

    def wait_and_run(key: object, rows: Array) -> Arrays:
        free.wait(10)
        answer: Arrays = run(key, rows)
        return answer

    monkeypatch.setattr(batcher, "_run", wait_and_run)
    batcher._paces.clear()
    yield free
    free.set()
    while not batcher._idle:  # it learns from what was held up, too
        time.sleep(0.001)
    batcher._paces.clear()


async def call(app: FastAPI, messages: AsyncIterator[Message], path: str = "/log-likelihood") -> tuple[int, Any]:
    """Run the application by hand; returns status and JSON of its answer."""
    sent: list[Message] = []

    async def receive() -> Message:
        return await anext(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"x-request-timeout-ms", b"1000")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


async def whole_body(then: Message | None = None, after_s: float = 0.0) -> AsyncIterator[Message]:
    yield {"type": "http.request", "body": ROWS, "more_body": False}
    await asyncio.sleep(after_s)
    if then is not None:
        yield then
    await asyncio.sleep(60)


async def test_a_deadline_that_passes_is_answered_at_once_though_the_engine_is_busy(
    client: httpx.AsyncClient, busy: threading.Event, app: FastAPI
) -> None:
    started = time.perf_counter()
    response = await client.post("/log-likelihood", content=ROWS, headers={"x-request-timeout-ms": "150"})
    assert time.perf_counter() - started < 5
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert (
        "no answer within 0.15 s, its own deadline (x-request-timeout-ms) or GLOW_DEADLINE_S"
        in response.json()["error"]
    )


async def test_what_has_passed_its_deadline_does_not_wait_for_the_engine_any_more(
    client: httpx.AsyncClient, busy: threading.Event, app: FastAPI
) -> None:
    batcher = app.state.service.flows._batcher
    requests = [client.post("/log-likelihood", content=ROWS, headers={"x-request-timeout-ms": "200"}) for _ in range(3)]
    assert [response.status_code for response in await asyncio.gather(*requests)] == [504] * 3
    assert batcher.waiting_rows == 0


async def test_a_body_that_does_not_come_ends_with_the_deadline(app: FastAPI) -> None:
    async def half_a_body() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": ROWS[:50], "more_body": True}
        await asyncio.sleep(60)

    status, answer = await call(app, half_a_body())
    assert (status, answer["code"]) == (504, "deadline_exceeded")


async def test_bodies_that_are_many_have_no_more_room_than_there_is_and_give_it_back(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = app.state.service.room
    monkeypatch.setattr(room, "num_bytes", len(ROWS) + 50)

    refused, never = asyncio.Event(), asyncio.Event()

    async def slow_body(goes_on: asyncio.Event) -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": ROWS[:60], "more_body": True}
        await goes_on.wait()
        yield {"type": "http.request", "body": ROWS[60:], "more_body": False}

    first = asyncio.create_task(call(app, slow_body(refused)))
    while room.taken < 60:
        await asyncio.sleep(0)
    status, answer = await call(app, whole_body())
    assert (status, answer["code"]) == (429, "queue_full")
    assert "GLOW_MAX_BODIES_BYTES" in answer["error"]
    refused.set()
    assert (await first)[0] == 200
    assert (await call(app, slow_body(never)))[0] == 504
    assert room.taken == 0
    packed = gzip.compress(ROWS + b" " * 51)
    answer = await client.post("/log-likelihood", content=packed, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert (await call(app, whole_body()))[0] == 200
    assert room.taken == 0


def test_a_request_that_is_over_takes_no_room_though_a_thread_still_inflates_its_body() -> None:
    room = BodyRoom(10)
    share = Share(room)
    share.take(4)
    share.close()
    with pytest.raises(ClientLeft):
        share.take(1)
    assert room.taken == 0


async def test_what_waits_for_a_caller_who_hung_up_is_dropped(app: FastAPI, busy: threading.Event) -> None:
    batcher = app.state.service.flows._batcher
    running = asyncio.create_task(call(app, whole_body()))
    await asyncio.sleep(0.05)
    before = batcher.waiting_rows
    status, answer = await call(app, whole_body({"type": "http.disconnect"}, after_s=0.05))
    assert (status, answer["code"]) == (499, "client_left")
    assert batcher.waiting_rows == before
    busy.set()
    assert (await running)[0] == 200


async def test_a_caller_who_hangs_up_in_the_middle_of_a_body_is_no_error_of_ours(app: FastAPI) -> None:
    async def broken_off() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": ROWS[:50], "more_body": True}
        yield {"type": "http.disconnect"}

    status, answer = await call(app, broken_off())
    assert (status, answer["code"]) == (499, "client_left")


async def test_a_task_that_someone_else_cancels_stays_cancelled(app: FastAPI, busy: threading.Event) -> None:
    task = asyncio.create_task(call(app, whole_body()))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert app.state.service.flows._batcher.waiting_rows == 0


async def test_the_metrics_tell_what_was_answered_and_what_was_refused(client: httpx.AsyncClient) -> None:
    async def figure(name: str) -> float:
        text = (await client.get("/metrics")).text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    answered = f'glow_requests_total{{model="{IMAGES}",route="/encode",status="200"}}'
    rows = f'glow_rows_total{{model="{IMAGES}",route="/encode"}}'
    phase = f'glow_phase_duration_seconds_count{{model="{IMAGES}",phase="compute",route="/encode"}}'
    refused = 'glow_refused_total{reason="bad_request"}'
    names = (answered, rows, phase, refused)
    before = [await figure(name) for name in names]
    await client.post("/encode", content=ROWS)
    await client.post("/encode", content=b"{")
    assert [await figure(name) for name in names] == [before[0] + 1, before[1] + 2, before[2] + 1, before[3] + 1]
    assert await figure("glow_pass_rows_sum") > 0
    assert await figure("glow_queue_rows") == 0


async def test_requests_leave_nothing_for_the_garbage_collector(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made to run seldom, so that what requests hold must not wait for it."""

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    async def answered(
        status: int, body: bytes = ROWS, timeout: bytes = b"1000", path: str = "/log-likelihood"
    ) -> None:
        async def receive() -> Message:
            if received:
                await asyncio.sleep(60)
            received.append(True)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            assert message.get("status", status) == status

        received: list[bool] = []
        headers = [(b"content-type", b"application/json"), (b"x-request-timeout-ms", timeout)]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await app(scope, receive, send)

    async def all_kinds() -> None:
        await answered(200)
        await answered(200, b'{"n": 2}', path="/sample")
        tensor = b'{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [' + b"0," * 63 + b"0]}"
        await answered(200, b'{"inputs": [' + tensor + b"]}", path=f"/v2/models/{IMAGES}/infer")
        await answered(422, b'{"inputs": []}', path=f"/v2/models/{IMAGES}/infer")
        await answered(400, b"{")
        await answered(422, b'{"inputs": [[1]]}')
        with monkeypatch.context() as patch:
            patch.setattr(app.state.service.flows._batcher, "_run", fail)
            await answered(500)
        with monkeypatch.context() as patch:
            patch.setattr(app.state.service.flows._batcher, "_run", lambda *_: time.sleep(0.2))
            await answered(504, timeout=b"50")
            await asyncio.sleep(0.3)

    await all_kinds()
    gc.collect()
    gc.disable()
    try:
        await all_kinds()
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_an_engine_that_has_stopped_is_not_ready(app: FastAPI, client: httpx.AsyncClient) -> None:
    batcher = app.state.service.flows._batcher
    batcher._closed = True
    try:
        assert (await client.get("/readyz")).status_code == 503
    finally:
        batcher._closed = False
    assert (await client.get("/readyz")).status_code == 200
