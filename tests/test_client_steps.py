"""What the client does when a service is busy, slow, away or another: retries, deadlines, errors, what runs at once."""

import asyncio
import itertools
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from email.utils import formatdate
from typing import Any

import httpx
import numpy as np
import pytest

from service import headers
from service.client import (
    AsyncGlowClient,
    Busy,
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    GlowClient,
    GlowError,
    InvalidRequest,
    NotFound,
    ServiceFailed,
    TooLarge,
    Unauthorized,
    Unavailable,
    VersionGone,
    steps,
)
from service.client.steps import Answer, Asking, Deadline, Pause, Send
from service.oip import codec
from service.oip.codec import Output

LOST = ConnectionFailed("lost")
FINE = Answer(200, {}, bytearray(b"{}"))
VERSION = "0123456789ab"


def refusal(status: int, retry_after: object = None) -> Answer:
    return Answer(status, {} if retry_after is None else {"retry-after": str(retry_after)}, bytearray(b""))


def asked(
    came: list[Answer | ConnectionFailed], *, retries: int | None = 4, timeout: float | None = None, slow: float = 0.0
) -> tuple[list[float], list[Send], Answer | GlowError]:
    """Pauses, requests and the end of an ask that gets these answers, each after ``slow`` seconds of a false clock."""
    now = [100.0]
    pauses, sent = [], []
    deadline = Deadline(timeout, lambda: now[0])
    asking = Asking(retries, {"authorization": "Bearer secret"}, uniform=lambda low, high: high)
    call, reply = asking.ask("POST", "/x", deadline), None
    answers: Iterator[Answer | ConnectionFailed] = itertools.chain(came, itertools.repeat(came[-1]))
    try:
        while True:
            step = call.send(reply)
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                now[0] += step.seconds
            else:
                assert isinstance(step, Send)
                sent.append(step)
                now[0] += slow
                reply = next(answers)
    except StopIteration as stop:
        return pauses, sent, stop.value
    except GlowError as error:
        return pauses, sent, error


def test_what_is_not_now_is_asked_again_after_longer_and_longer_pauses_at_random() -> None:
    pauses, sent, end = asked([refusal(429), refusal(502), refusal(503), refusal(504), LOST, FINE], retries=5)
    assert end is FINE
    assert pauses == [0.25, 0.5, 1, 2, 4]  # the upper bounds of what is drawn
    assert len(sent) == 6
    pauses, _, end = asked([refusal(503)], retries=12)
    assert max(pauses) == steps.LONGEST_PAUSE_S
    assert isinstance(end, Unavailable)
    drawn = [next_pause() for _ in range(200)]
    assert 0 <= min(drawn) < 0.05 < 0.2 < max(drawn) <= 0.25


def next_pause() -> float:
    call = Asking(1).ask("GET", "/", Deadline(None))
    next(call)
    pause = call.send(LOST)
    assert isinstance(pause, Pause)
    return pause.seconds


def test_retries_end_with_the_last_error() -> None:
    for retries in (0, 2):
        pauses, sent, end = asked([refusal(429)], retries=retries)
        assert isinstance(end, Busy)
        assert (len(pauses), len(sent)) == (retries, retries + 1)
    _, sent, end = asked([refusal(400)])
    assert isinstance(end, InvalidRequest)
    assert len(sent) == 1


def test_a_service_is_left_alone_for_as_long_as_it_wants() -> None:
    soon = formatdate(time.time() + 30, usegmt=True)
    pauses, _, end = asked([refusal(429, 3), refusal(503, soon), refusal(503, "soon"), refusal(429, 0), FINE])
    assert end is FINE
    assert pauses[0] == 3
    assert 27 < pauses[1] <= 30
    assert pauses[2:] == [1, 0]
    pauses, _, end = asked([refusal(429, 3600)])  # longer than anybody would wait unasked
    assert pauses == []
    assert isinstance(end, Busy)
    assert end.retry_after_s == 3600
    assert asked([refusal(429, 90), FINE], timeout=100)[0] == [90]


def test_no_try_and_no_pause_goes_beyond_the_deadline() -> None:
    pauses, sent, end = asked([refusal(503, 2)], timeout=5, retries=None)
    assert pauses == [2, 2]
    assert len(sent) == 3
    assert isinstance(end, DeadlineExceeded)
    assert isinstance(end, TimeoutError)
    assert str(end) == "no answer within 5 s: Service Unavailable"
    assert isinstance(end.__cause__, Unavailable)
    assert (end.status, end.retry_after_s) == (503, 2)
    _, sent, end = asked([LOST], timeout=5, slow=6)
    assert isinstance(end, DeadlineExceeded)
    assert len(sent) == 1
    for timeout in (0, -1, float("nan")):
        with pytest.raises(InvalidRequest, match="timeout must be a positive number of seconds"):
            GlowClient(timeout=timeout)


def test_the_service_is_told_what_is_left_of_the_deadline() -> None:
    _, sent, _ = asked([refusal(503, 1), FINE], timeout=5, slow=0.5)
    assert [step.headers[headers.TIMEOUT] for step in sent] == ["5000", "3500"]
    (step,) = asked([FINE])[1]
    assert headers.TIMEOUT not in step.headers
    assert "secret" not in repr(step)


def of(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(base_url="http://glow", transport=httpx.MockTransport(handler))


def test_errors_have_the_codes_and_ids_of_the_service() -> None:
    body = {"error": "no", "code": "its_code", "request_id": "7f"}
    for status, kind in {
        **dict.fromkeys((400, 406, 415, 422), InvalidRequest),
        401: Unauthorized,
        403: Forbidden,
        404: NotFound,
        413: TooLarge,
        429: Busy,
        500: ServiceFailed,
        502: Unavailable,
        503: Unavailable,
        504: DeadlineExceeded,
        408: DeadlineExceeded,
        409: GlowError,
        302: GlowError,
    }.items():
        client = GlowClient(of(lambda _, status=status: httpx.Response(status, json=body)), retries=0)  # type: ignore[misc]
        with pytest.raises(kind) as raised:
            client.models()
        error = raised.value
        assert type(error) is kind
        assert (error.message, error.code, error.status, error.request_id) == ("no", "its_code", status, "7f")
        assert str(error) == "no (request 7f)"
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 (what was pickled here)
        assert (type(again), again.code, again.status, str(again)) == (kind, "its_code", status, str(error))


def test_what_is_no_glow_service_is_told() -> None:
    for answer in (httpx.Response(200, text="<html>"), httpx.Response(200, json=[]), httpx.Response(200, json={})):
        client = GlowClient(of(lambda _: answer))  # noqa: B023 (called in its turn of the loop)
        with pytest.raises(ServiceFailed, match="/models is not that of a Glow service"):
            client.model()
        with pytest.raises(ServiceFailed, match="something else than tensors"):
            client.log_likelihood([[1.0]], model="m")
    proxy = GlowClient(of(lambda _: httpx.Response(502, text="<html>")), retries=0)
    with pytest.raises(Unavailable, match=r"^Bad Gateway$") as raised:
        proxy.models()
    assert raised.value.code == "bad_gateway"


def test_a_client_is_wrong_from_the_start() -> None:
    for wrong, message in (
        ({"service": "localhost:8000"}, "must begin with http:// or https://"),
        ({"service": "http://a:b"}, "must be a URL"),
        ({"service": httpx.Client()}, "must begin with"),
        ({"service": "http://"}, "must begin with"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"api_key": "secret\n"}, "^api_key must be printable ASCII without spaces around it$"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            GlowClient(**wrong)


def test_a_key_is_sent_and_shown_nowhere() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        raise httpx.ConnectError("refused")

    client = GlowClient(of(handler), api_key="se-cret", retries=0)
    with pytest.raises(ConnectionFailed, match=r"^http://glow: refused$") as raised:
        client.models()
    assert not client.ready()
    assert seen == ["Bearer se-cret"] * 2
    assert "se-cret" not in repr(client) + repr(raised.value) + repr(vars(raised.value))
    assert "password" not in repr(GlowClient("http://user:password@host:1/prefix/"))
    assert GlowClient("http://user:password@host:1/prefix/").address == "http://host:1/prefix"


def scored(num: int, version: str = VERSION) -> httpx.Response:
    tensors = [Output(name, np.zeros(num), binary=True) for name in ("log_likelihood", "bits_per_dim")]
    parts, size = codec.write({"model_name": "m", "model_version": version}, tensors)
    return httpx.Response(200, headers={headers.JSON_SIZE: str(size)}, content=b"".join(parts))


def x_of(request: httpx.Request) -> Any:
    return codec.read(request.content, int(request.headers[headers.JSON_SIZE]), lambda _: None).inputs["x"]


def rows_of(request: httpx.Request) -> int:
    return len(x_of(request))


def describe(request: httpx.Request) -> httpx.Response | None:
    about = {"name": "m", "version": VERSION, "default": "m"}
    return httpx.Response(200, json=about) if request.method == "GET" else None


def test_one_version_answers_all_rows_or_none() -> None:
    paths: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if (about := describe(request)) is not None:
            return about
        paths.append(request.url.path)
        if len(paths) < 3:
            return scored(rows_of(request))
        return httpx.Response(404, json={"error": "no model", "code": "model_not_found", "request_id": "1"})

    client = GlowClient(of(handler), max_rows=2, concurrency=1)
    with pytest.raises(VersionGone, match=f"m@{VERSION} is served no more: no model") as raised:
        client.log_likelihood(np.zeros((9, 1)))
    assert raised.value.code == "version_gone"
    assert paths == [f"/v2/models/m/versions/{VERSION}/infer"] * 3


def test_a_limit_that_was_met_is_kept_to() -> None:
    sizes: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if (about := describe(request)) is not None:
            return about
        sizes.append(rows_of(request))
        return httpx.Response(413) if sizes[-1] > 3 else scored(sizes[-1])

    client = GlowClient(of(handler), max_rows=8, concurrency=1)
    assert len(client.log_likelihood(np.zeros((9, 1))).log_likelihood) == 9
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    sizes.clear()
    client.log_likelihood(np.zeros((4, 1)))
    assert sizes == [2, 2]


def test_requests_of_one_call_run_at_once_but_no_more_than_wanted() -> None:
    together = threading.Barrier(3)

    def handler(request: httpx.Request) -> httpx.Response:
        if (about := describe(request)) is not None:
            return about
        together.wait(30)  # none is answered before three have come
        return scored(rows_of(request))

    told: list[tuple[int, int]] = []
    thread = threading.get_ident()

    def progress(done: int, total: int) -> None:
        assert threading.get_ident() == thread
        told.append((done, total))

    client = GlowClient(of(handler), max_rows=1, concurrency=3)
    client.log_likelihood(np.zeros((6, 1)), progress=progress)
    assert told == [(done, 6) for done in range(1, 7)]


async def test_tasks_of_one_call_run_at_once_but_no_more_than_wanted() -> None:
    running, most = 0, 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        if (about := describe(request)) is not None:
            return about
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return scored(rows_of(request))

    http = httpx.AsyncClient(base_url="http://glow", transport=httpx.MockTransport(handler))
    async with AsyncGlowClient(http, max_rows=1, concurrency=3) as client:
        await client.log_likelihood(np.zeros((9, 1)))
    assert most == 3
    with pytest.raises(ConnectionFailed, match="the client is closed"):
        await client.models()
    assert not http.is_closed


def test_the_first_error_ends_a_call_and_what_waits_for_it() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if (about := describe(request)) is not None:
            return about
        return httpx.Response(422) if x_of(request)[0] else httpx.Response(429, headers={"retry-after": "60"})

    x = np.zeros((4, 1))
    x[0] = 1
    client = GlowClient(of(handler), max_rows=1, concurrency=4)
    before = set(threading.enumerate())
    with pytest.raises(InvalidRequest, match="Unprocessable"):
        client.log_likelihood(x)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_closing_ends_what_waits_in_other_threads() -> None:
    client = GlowClient(of(lambda _: httpx.Response(429, headers={"retry-after": "60"})))
    found: list[BaseException] = []

    def ask() -> None:
        try:
            client.models()
        except ConnectionFailed as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    client.close()
    thread.join(30)
    assert [str(error) for error in found] == ["http://glow: the client is closed"]


class Dribble(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body without end, of which a byte comes every second of a false clock."""

    def __init__(self, now: list[float]) -> None:
        self._now = now

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self._now[0] += 1
            yield b" "

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


async def test_an_answer_that_never_ends_is_not_waited_for() -> None:
    now = [0.0]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Dribble(now)))
    client = GlowClient(httpx.Client(base_url="http://glow", transport=transport), timeout=5)
    twin = AsyncGlowClient(httpx.AsyncClient(base_url="http://glow", transport=transport), timeout=5)
    client._calls._clock = twin._calls._clock = lambda: now[0]
    with pytest.raises(DeadlineExceeded, match="no answer within 5 s: http://glow: the answer is not complete"):
        client.models()
    with pytest.raises(DeadlineExceeded, match="no answer within 5 s"):
        await twin.models()


def test_readiness_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(200)]

    def handler(_: httpx.Request) -> httpx.Response:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    monkeypatch.setattr("service.client.calls.READY_PAUSE_S", 0.0)
    GlowClient(of(handler)).wait_until_ready()
    assert answers == []
    now = iter(range(1000))
    client = GlowClient(of(lambda _: httpx.Response(503)))
    client._calls._clock = lambda: float(next(now))
    with pytest.raises(DeadlineExceeded, match="no answer within 20 s: Service Unavailable"):
        client.wait_until_ready(20)
    with pytest.raises(NotFound):
        GlowClient(of(lambda _: httpx.Response(404))).ready()
