"""What the client makes of interrupts, of settings without bounds, and of answers that are none of a Glow service."""

import subprocess
import sys

import httpx
import pytest

from service.client import Busy, DeadlineExceeded, GlowClient
from tests.test_client_steps import LOST, asked, refusal

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
