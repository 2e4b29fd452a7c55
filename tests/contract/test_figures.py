"""What a deployment tells of itself: whoever of its processes is asked, it answers for all."""

from collections.abc import Iterator

import httpx
import pytest

from tests.contract.figures import eventually
from tests.keys import key
from tests.wire import TABLE

ROWS = {"model": TABLE, "inputs": [[0.5, 1010.0, 3.0], [0.1, 990.0, 4.0]]}
NUM = 20  # requests, a connection each, so that every process gets some


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={**key("caller"), "connection": "close"}, timeout=60) as http:
        yield http


def figure(http: httpx.Client, name: str) -> float:
    """The sum of a metric over its labels that begin so."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.differs("ray", "each replica counts what it answers")
def test_metrics_count_every_request_and_row(http: httpx.Client) -> None:
    answered = f'glow_requests_total{{model="{TABLE}",route="/decode",status="200"}}'
    rows = f'glow_rows_total{{model="{TABLE}",route="/decode"}}'
    refused = 'glow_refused_total{reason="unsupported_media_type"}'
    before = {name: figure(http, name) for name in (answered, rows, refused)}
    for _ in range(NUM):
        assert http.post("/decode", json={"model": TABLE, "latents": [[0.0] * 3] * 2}).status_code == 200
        refusal = http.post("/decode", content=b"x", headers={"content-type": "text/plain"})
        assert refusal.status_code == 415
    for name, num in ((answered, NUM), (rows, 2 * NUM), (refused, NUM)):
        eventually(lambda: figure(http, name) - before[name], lambda more: more == num)  # noqa: B023 (called in its turn of the loop)


@pytest.mark.differs("ray", "each replica watches the rows that it scores")
def test_drift_is_that_of_all_rows(http: httpx.Client) -> None:
    path = f"/models/{TABLE}/drift"
    reset = http.post(f"{path}/reset", headers=key("operator"))
    assert (reset.status_code, reset.json()["rows"]) == (200, 0)
    for i in range(NUM):
        assert http.post("/log-likelihood", json=ROWS).status_code == 200
        assert http.get(path).json()["rows"] == 2 * (i + 1)


def test_drift_is_told(http: httpx.Client) -> None:
    told = http.get(f"/models/{TABLE}/drift").json()
    assert (told["model"], told["calibration_rows"], told["delta"]) == (TABLE, 100, 0.01)
    assert {"rows", "alarm", "window", "tails", "since"} <= told.keys()
