"""What the client makes of interrupts, of settings without bounds, and of answers that are none of a Glow service."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
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
    GlowClient,
    ServiceFailed,
    Unavailable,
)
from tests.test_client_steps import LOST, asked, of, refusal

INTERRUPTED = """
import threading
import httpx
from service.client import GlowClient

def handler(request):
    if not request.content.endswith(bytes(8)):
        raise KeyboardInterrupt
    threading.Event().wait()

http = httpx.Client(base_url="http://glow", transport=httpx.MockTransport(handler))
GlowClient(http, model="m@v", max_rows=1).log_likelihood([[0.0], [0.0], [1.0]])
"""


def test_a_program_ends_without_the_requests_of_a_call_that_is_over() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("KeyboardInterrupt\n"), done.stderr


def test_who_wants_no_more_tries_is_told_the_fault_and_not_of_a_deadline() -> None:
    end = asked([refusal(429, 30)], timeout=5, retries=0)[2]
    assert isinstance(end, Busy)
    assert (str(end), end.retry_after_s) == ("Too Many Requests", 30)
    assert isinstance(asked([LOST], timeout=5, retries=0, slow=5)[2], DeadlineExceeded)


@pytest.mark.parametrize("wanted", ["9" * 400, "Mon, 01 Jan 2024 00:00:00 +99999999999999", "-5", "1e3", "٣"])
def test_no_wait_that_a_service_wants_is_beyond_the_client(wanted: str) -> None:
    assert isinstance(asked([refusal(429, wanted)], retries=1)[2], Busy)
    assert isinstance(asked([refusal(429, wanted)], retries=None, timeout=5)[2], DeadlineExceeded)


def test_an_exchange_takes_no_longer_than_the_deadline_and_than_a_connection_may_be_silent() -> None:
    told: list[dict[str, float]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        told.append(request.extensions["timeout"])
        return httpx.Response(200, json={})

    transport = httpx.MockTransport(handler)
    for own, timeout, silence in (
        (httpx.Timeout(300, connect=10), 5, 5),
        (httpx.Timeout(300, connect=10), 1000, 300),
        (httpx.Timeout(300, connect=10), 1e12, 300),
        (httpx.Timeout(None), 1000, 1000),
        (httpx.Timeout(None), float("inf"), None),
        (httpx.Timeout(None), sys.maxsize, None),
    ):
        GlowClient(httpx.Client(base_url="http://glow", transport=transport, timeout=own), timeout=timeout).models()
        assert told[-1]["read"] == (None if silence is None else pytest.approx(silence, abs=1))
        assert (told[-1]["connect"] or 1000) == pytest.approx(min(own.connect or 1000, timeout), abs=1)
    assert GlowClient()._http.timeout == httpx.Timeout(300, connect=10)


def of_tensors(**changes: Any) -> httpx.Response:
    """An answer to one row whose first tensor, and what stands beside it, is changed."""
    tensors: list[dict[str, Any]] = [
        {"name": name, "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}
        for name in ("log_likelihood", "bits_per_dim")
    ]
    members = {"outputs": tensors, "model_version": "v"}
    for name, value in changes.items():
        (members if name in ("parameters", "outputs") else tensors[0])[name] = value
    head = json.dumps(members).encode()
    return httpx.Response(200, headers={headers.JSON_SIZE: str(len(head))}, content=head + bytes(16))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text=DEEP),
        httpx.Response(200, text=DEEP, headers={headers.JSON_SIZE: str(len(DEEP))}),
        of_tensors(shape=[10**30]),
        of_tensors(shape=[]),
        of_tensors(shape=[-1]),
        of_tensors(shape=None),
        of_tensors(name="score"),
        of_tensors(datatype="TEXT"),
        of_tensors(datatype=[]),
        of_tensors(parameters=["none"]),
        of_tensors(outputs=[]),
        of_tensors(outputs=[0]),
    ],
)
def test_any_other_answer_is_the_fault_of_who_gave_it(answer: httpx.Response) -> None:
    client = GlowClient(of(lambda _: answer), model="m@v", max_rows=1)
    for rows in (1, 2):
        with pytest.raises(ServiceFailed):
            client.log_likelihood(np.zeros((rows, 1)), fdr=0.5)
    if not answer.headers.get(headers.JSON_SIZE):
        with pytest.raises(ServiceFailed):
            client.models()


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


ENDLESS = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
NO_ARRAYS = {
    "empty": b"",
    "archive": _written(lambda file: np.savez(file, x=np.ones((1, 3)))),
    "endless": _written(lambda file: np.lib.format.write_array_header_1_0(file, ENDLESS)),
    "cut archive": b"PK\3\4",
    "cut header": b"\x93NUMPY\1\0\x10\0{'descr': '<f8', ",
    "no literal": b"\x93NUMPY\1\0\2\0((",
    "another version": b"\x93NUMPY\7\7\2\0{}",
}


@pytest.mark.parametrize("content", NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_an_example_that_is_no_array_is_the_fault_of_who_gave_it(content: bytes) -> None:
    client = GlowClient(of(lambda _: httpx.Response(200, content=content)), model="m@v")
    with pytest.raises(ServiceFailed, match="is no NumPy file"):
        client.example()


def test_an_example_is_an_array() -> None:
    content = _written(lambda file: np.save(file, np.ones((1, 3))))
    client = GlowClient(of(lambda _: httpx.Response(200, content=content)), model="m@v")
    assert client.example().tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("status", [500, 502, 520])
def test_a_server_error_in_other_words_than_the_services_is_asked_again(status: int) -> None:
    answers = iter([httpx.Response(status, text=DEEP), httpx.Response(200, json={"default": "m", "models": []})])
    assert GlowClient(of(lambda _: next(answers)), retries=1).models()["models"] == []
    with pytest.raises(Unavailable) as raised:
        GlowClient(of(lambda _: httpx.Response(status, text="lost")), retries=0).models()
    assert raised.value.status == status


def test_rates_of_false_discoveries_need_p_values() -> None:
    client = GlowClient(of(lambda _: of_tensors()), model="m@v", max_rows=1)
    with pytest.raises(ServiceFailed, match="the answer lacks 'p_value'"):
        client.log_likelihood(np.zeros((2, 1)), fdr=0.5)


async def test_connections_that_their_owner_has_closed_are_told() -> None:
    http = httpx.Client(base_url="http://glow")
    http.close()
    with pytest.raises(ConnectionFailed, match=r"^http://glow: the client is closed$"):
        GlowClient(http).models()
    twin = httpx.AsyncClient(base_url="http://glow")
    await twin.aclose()
    with pytest.raises(ConnectionFailed, match=r"^http://glow: the client is closed$"):
        await AsyncGlowClient(twin).models()
