"""What is counted: every request once, whatever it was noted with, and what the machine tells of the processes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.batcher import Pass
from service.machine import memory_limit
from service.metrics import Metrics
from tests.wire import IMAGES, TABLE, post

INPUT = [0.5, 1010.0, 3.0]
ROW = {"model": TABLE, "inputs": [INPUT]}


def figures(text: bytes | str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a text, by name and labels."""
    families = text_string_to_metric_families(text if isinstance(text, str) else text.decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def figure(text: bytes | str, name: str, **labels: str) -> float:
    return figures(text)[name, frozenset(labels.items())]


async def scrape(client: httpx.AsyncClient) -> str:
    return (await client.get("/metrics")).text


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40))
def test_many_values_are_counted_as_one_by_one(values: list[float]) -> None:
    def counted(at_once: bool) -> dict[str, float]:
        registry = CollectorRegistry()
        histogram = metrics._Histogram("x", "x", buckets=[-8, -0.5, 0, 0.5, 16], registry=registry)
        if at_once:
            histogram.observe_all(np.array(values))
        for value in () if at_once else values:
            histogram.observe(value)
        return {
            f"{one.name}{one.labels}": one.value
            for family in registry.collect()
            for one in family.samples
            if not one.name.endswith("_created")
        }

    one_by_one = counted(at_once=False)
    assert counted(at_once=True) == pytest.approx(one_by_one)


def test_what_is_noted_is_counted_by_the_next_look_and_none_is_lost_before() -> None:
    counts = Metrics()
    for number in range(3 * metrics._MOST_NOTED + 7):
        counts.answered("/encode", f"m{number % 2}", 3, (0.1, 0.2, 0.3, 0.4))
        counts.computed("m0", "encode", Pass("key", 2, 6, 0.0, 0.5, 9, []), 8)
    text, num = counts.text(), 3 * metrics._MOST_NOTED + 7
    requests = [value for (name, _), value in figures(text).items() if name == "glow_requests_total"]
    assert sorted(requests) == [num // 2, num - num // 2]
    assert figure(text, "glow_request_duration_seconds_sum", route="/encode") == pytest.approx(num)
    assert (
        figure(text, "glow_phase_duration_seconds_count", route="/encode", model="m0", phase="queue")
        == num // 2 + num % 2
    )
    assert figure(text, "glow_pass_rows_sum", model="m0", operation="encode") == 6 * num
    assert figure(text, "glow_pass_slots_total", model="m0", operation="encode") == 8 * num
    assert figure(text, "glow_queue_rows") == 9
    assert counts.text() == text or figures(counts.text())["glow_queue_rows", frozenset()] == 9


async def test_scored_rows_are_counted_by_p_value_and_bits(app: FastAPI, client: httpx.AsyncClient) -> None:
    labels = {("model", TABLE), ("version", app.state.service.flows.find(TABLE).version)}

    async def rows(name: str) -> float:
        return figures(await scrape(client)).get((name, frozenset(labels)), 0.0)

    before = await rows("glow_p_value_count"), await rows("glow_bits_per_dim_count")
    answer = await post(client, "/log-likelihood", {**ROW, "inputs": [INPUT] * 7})
    await post(client, "/sample", {"model": TABLE, "n": 3})  # scored, too, but nobody's rows
    assert await rows("glow_p_value_count") == before[0] + 7
    assert await rows("glow_bits_per_dim_count") == before[1] + 7
    least = next(bound for bound in metrics._P_VALUES if answer["p_value"][0] <= bound)
    bucket = frozenset({*labels, ("le", str(least))})
    assert figures(await scrape(client))["glow_p_value_bucket", bucket] >= 7


async def test_slots_are_the_rows_that_a_pass_runs(app: FastAPI) -> None:
    model = app.state.service.flows.find(IMAGES)
    for reproducible in (False, True):
        assert all(model.slots("encode", reproducible, num) >= num for num in (1, 3, 16, 40))
    assert model.slots("encode", True, 17) == 32


async def test_requests_are_in_flight_until_they_are_answered(app: FastAPI, client: httpx.AsyncClient) -> None:
    task = asyncio.create_task(client.post("/log-likelihood", json=ROW))
    while not app.state.service.metrics.in_flight:
        await asyncio.sleep(0)
    assert figure(app.state.service.metrics.text(), "glow_requests_in_flight") == 1
    await task
    await client.post("/log-likelihood", content=b"{")
    assert figure(app.state.service.metrics.text(), "glow_requests_in_flight") == 0


async def test_what_is_served_is_told(app: FastAPI, client: httpx.AsyncClient) -> None:
    text = await scrape(client)
    version = app.state.service.flows.find(TABLE).version
    assert figure(text, "glow_model_info", model=TABLE, version=version, device="cpu") == 1
    assert figure(text, "glow_ready") == 1
    assert figure(text, "glow_gpu_memory_bytes") == 0
    assert figure(text, "glow_memory_limit_bytes") == memory_limit() > figure(text, "process_resident_memory_bytes") > 0
    assert figure(Metrics().text(), "glow_ready") == 0


async def test_a_late_event_loop_is_noticed() -> None:
    counts = Metrics()
    async with counts.sampling():
        await asyncio.sleep(0)
        while figure(counts.text(), "glow_event_loop_lag_seconds_count") < 1:
            await asyncio.sleep(0.01)
    assert figure(counts.text(), "glow_event_loop_lag_seconds_sum") >= 0


async def test_passes_without_memory_are_counted(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    model, counts = app.state.service.flows.find(TABLE), app.state.service.metrics
    before = figure(counts.text(), "glow_out_of_memory_total")
    tries: list[int] = []

    def run(*_: object) -> tuple[np.ndarray, ...]:
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError
        return (np.zeros(1),)

    with monkeypatch.context() as patch:
        patch.setattr(model, "_run", run)
        model.run("encode", np.zeros((1, 3)), True)
    assert figure(counts.text(), "glow_out_of_memory_total") == before + 1


def test_the_memory_limit_is_the_least_of_machine_and_cgroup(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = memory_limit(tmp_path, own)
    (tmp_path / "memory.max").write_text("4096\n")
    assert memory_limit(tmp_path, own) == 4096 < unlimited


@pytest.fixture
def other_worker(tmp_path: Path) -> Iterator[Path]:
    """A folder with the figures of another process, which lives on."""
    code = (
        "import sys; from service.metrics import Metrics; m = Metrics(); m.in_flight = 2\n"
        "m.answered('/encode', 'm', 1, (0.1, 0.1, 0.1, 0.1)); m.text(); print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield tmp_path
    process.communicate(b"", timeout=60)


def test_workers_are_told_together(other_worker: Path) -> None:
    """In a process of its own: prometheus_client looks at the folder when it is imported."""
    code = (
        "from service.metrics import Metrics; m = Metrics(); m.in_flight = 3\n"
        "m.answered('/encode', 'm', 1, (0.1, 0.1, 0.1, 0.1)); print(m.text().decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(other_worker)}
    text = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert figure(text.stdout, "glow_requests_in_flight") == 5
    assert figure(text.stdout, "glow_requests_total", route="/encode", model="m", status="200") == 2
    assert figure(text.stdout, "process_resident_memory_bytes") > 100 * 2**20  # of two with torch
    assert figure(text.stdout, "process_open_fds") < figure(text.stdout, "process_max_fds")
    assert figure(text.stdout, "glow_ready") == 0
