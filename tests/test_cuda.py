"""A CUDA device: whatever runs there answers as the CPU does, whose sums are in float64."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch

from service.app import create_app
from service.artifact import (
    ROUND_TRIP_TOLERANCE,
    Operation,
    golden_rows,
    open_artifact,
    within_tolerance,
)
from service.plans import warm_up
from service.runner import CUDA_FORMS, Form, Plan, Runner
from service.scores import smallest_p_value
from service.settings import Settings
from tests.conftest import tiny_images, tiny_mixed, tiny_table
from tests.wire import npy, post, read_npy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

MODELS = ["tiny-images", "tiny-table", "tiny-mixed"]
SIZES = (1, 2, 7, 33)
GRAPH = Plan("cuda_graph")
NPY = {"content-type": "application/x-npy"}


@pytest.fixture(autouse=True)
def full_precision() -> None:
    """As the engine sets it."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@dataclass(frozen=True)
class Pair:
    """One model on both devices; opened twice, since a runner moves what it is given."""

    gpu: Runner
    cpu: Runner

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What is asked of the model, maps of images too."""
        return self.cpu.manifest.operations

    def rows(self, operation: Operation, num_rows: int, seed: int) -> Any:
        """Random rows, all of them likely ones."""
        random = np.random.default_rng(seed)
        z = random.normal(size=(num_rows, self.cpu.manifest.num_dims)).astype(np.float32)
        return z if operation == "decode" else np.ascontiguousarray(self.cpu.run("decode", Plan("frozen"), z)[0])

    def assert_alike(self, operation: Operation, plan: Plan, rows: Any) -> None:
        """Both answer these rows alike."""
        answers = self.gpu.run(operation, plan, rows)
        expected = self.cpu.run(operation, Plan("frozen"), rows)
        assert [(part.shape, part.dtype) for part in answers] == [(part.shape, part.dtype) for part in expected]
        if operation == "decode":
            errors = np.abs(answers[0] - expected[0]) / self.cpu.manifest.unit
            assert errors.max() <= ROUND_TRIP_TOLERANCE
        else:
            assert answers[-1].dtype == np.float64
            assert within_tolerance(answers[-1], expected[-1])
        if operation == "encode":
            np.testing.assert_allclose(answers[0], expected[0], rtol=0, atol=1e-3)


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, models_dir: Path) -> Pair:
    path = models_dir / f"{request.param}.pt"
    return Pair(Runner(open_artifact(path), torch.device("cuda")), Runner(open_artifact(path), torch.device("cpu")))


@pytest.mark.parametrize("form", CUDA_FORMS)
def test_every_form_answers_the_golden_case(pair: Pair, form: Form) -> None:
    for operation, num_rows in itertools.product(pair.operations, (1, 2, 4, 16)):
        assert warm_up(pair.gpu, operation, Plan(form), num_rows) is None
        pair.assert_alike(operation, Plan(form), golden_rows(pair.gpu.manifest, operation, num_rows))


@pytest.mark.parametrize("form", CUDA_FORMS)
def test_every_form_answers_random_rows_as_the_cpu_does(pair: Pair, form: Form) -> None:
    for operation, num_rows in itertools.product(pair.operations, SIZES):
        for seed in range(4):  # what the compiler makes of the first calls must not differ from the rest
            pair.assert_alike(operation, Plan(form), pair.rows(operation, num_rows, seed))


def test_a_graph_replays_on_new_rows_and_leaves_the_answers_to_older_ones(pair: Pair) -> None:
    for operation, num_rows in itertools.product(pair.operations, SIZES):
        first, second = (pair.rows(operation, num_rows, seed) for seed in (0, 1))
        answers = pair.gpu.run(operation, GRAPH, first)
        copies = [answer.copy() for answer in answers]
        recorded = pair.gpu._graphs[operation, num_rows]
        pair.assert_alike(operation, GRAPH, second)
        assert pair.gpu._graphs[operation, num_rows] is recorded
        for answer, copy in zip(answers, copies, strict=True):
            np.testing.assert_array_equal(answer, copy)
        pair.assert_alike(operation, GRAPH, first)


def test_graphs_share_one_pool_and_answer_in_any_order(pair: Pair) -> None:
    passes = list(itertools.product(pair.operations, SIZES))
    for operation, num_rows in passes:
        pair.gpu.run(operation, GRAPH, pair.rows(operation, num_rows, 0))
    graphs = pair.gpu._graphs
    assert set(graphs) == set(passes)
    assert len({graph.pool for graph in graphs.values()}) == 1
    random = np.random.default_rng(0)
    for seed in range(1, 4):
        for index in random.permutation(len(passes)):
            operation, num_rows = passes[index]
            pair.assert_alike(operation, GRAPH, pair.rows(operation, num_rows, seed))


def test_graphs_that_are_kept_outlive_the_others_and_the_program(pair: Pair) -> None:
    passes = list(itertools.product(pair.operations, SIZES))
    for operation, num_rows in passes:
        pair.gpu.run(operation, GRAPH, pair.rows(operation, num_rows, 0))
    kept = passes[1::3]
    pair.gpu.keep({(operation, num_rows, GRAPH) for operation, num_rows in kept})
    assert set(pair.gpu._graphs) == set(kept)
    torch.cuda.empty_cache()
    torch.full((2**22,), float("nan"), device="cuda")  # takes what was freed, if it was freed too early
    for operation, num_rows in kept:
        pair.assert_alike(operation, GRAPH, pair.rows(operation, num_rows, 1))


def test_a_graph_is_recorded_while_other_threads_use_the_device(pair: Pair) -> None:
    rows = pair.rows("statistics", 5, 0)
    with ThreadPoolExecutor(1) as pool:
        stop = threading.Event()
        busy = pool.submit(_allocate_until, stop)
        try:
            for num_rows in range(1, 6):
                pair.assert_alike("statistics", GRAPH, rows[:num_rows])
        finally:
            stop.set()
        busy.result()


def _allocate_until(stop: threading.Event) -> None:
    """What an answer's end, another model or a monitor may do at any time."""
    while not stop.is_set():
        torch.empty(2**20, pin_memory=True)
        torch.ones(2**22, device="cuda").sum().item()
        torch.cuda.empty_cache()


def unseen(model: str, num_rows: int) -> list[Any]:
    """Rows that a model was not trained on."""
    test = {"tiny-images": tiny_images, "tiny-table": tiny_table, "tiny-mixed": tiny_mixed}[model]().test
    assert test is not None
    rows: list[Any] = test.x[:num_rows].tolist()
    return rows


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service of these settings, on the GPU."""
    app = create_app(settings.model_copy(update={"device": "cuda"}))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            yield client


@pytest_asyncio.fixture(scope="module")
async def gpu_client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with served(settings) as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
async def test_the_service_answers_as_on_the_cpu(
    gpu_client: httpx.AsyncClient, client: httpx.AsyncClient, models_dir: Path, model: str
) -> None:
    manifest = open_artifact(models_dir / f"{model}.pt").manifest
    calibration = manifest.calibration
    assert calibration is not None

    async def ask(path: str, **body: object) -> tuple[dict[str, Any], dict[str, Any]]:
        of_gpu, of_cpu = [await post(one, path, {"model": model, **body}) for one in (gpu_client, client)]
        if "log_likelihood" in of_cpu:
            assert within_tolerance(np.array(of_gpu["log_likelihood"]), np.array(of_cpu["log_likelihood"]))
        return of_gpu, of_cpu

    async def assert_near(path: str, **body: object) -> None:
        of_gpu, of_cpu = [
            read_npy(await one.post(path, json={"model": model, "format": "npy", **body}))
            for one in (gpu_client, client)
        ]
        assert (np.abs(of_gpu - of_cpu) / manifest.unit).max() <= ROUND_TRIP_TOLERANCE

    samples = unseen(model, 70)
    for options in ({}, {"reproducible": True}):
        scored, expected = await ask("/log-likelihood", inputs=samples, scores="all", **options)
        moved = np.abs(np.array(scored["p_value"]) - np.array(expected["p_value"]))
        assert moved.max() <= 1.001 * smallest_p_value(calibration.num_rows)  # past one calibration score at most
        assert scored["scores"].keys() == expected["scores"].keys()
        encoded, expected = await ask("/encode", inputs=samples, **options)
        np.testing.assert_allclose(encoded["latents"], expected["latents"], rtol=0, atol=1e-3)
        await assert_near("/decode", latents=expected["latents"], **options)
    explained, expected = await ask("/log-likelihood", inputs=samples[:3], explain=True)
    np.testing.assert_allclose(explained["contributions"], expected["contributions"], rtol=0, atol=2e-3)
    await assert_near("/sample", n=70, seed=1)


@pytest.mark.parametrize("model", MODELS)
async def test_reproducible_answers_have_the_same_bits_alone_and_in_a_batch(
    gpu_client: httpx.AsyncClient, model: str
) -> None:
    body = {"model": model, "reproducible": True}
    sample = {"model": model, "n": 40, "seed": 2}
    samples = unseen(model, 40)
    scored = await post(gpu_client, "/log-likelihood", {**body, "inputs": samples})
    encoded = await post(gpu_client, "/encode", {**body, "inputs": samples})
    decoded = await post(gpu_client, "/decode", {**body, "latents": encoded["latents"]})
    rows = [{**body, "inputs": [row]} for row in samples]
    codes = [{**body, "latents": [row]} for row in encoded["latents"]]
    scores = await asyncio.gather(*(post(gpu_client, "/log-likelihood", row) for row in rows))
    latents = await asyncio.gather(*(post(gpu_client, "/encode", row) for row in rows))
    outputs = await asyncio.gather(*(post(gpu_client, "/decode", row) for row in codes))
    assert [one["log_likelihood"] for one in scores] == [[value] for value in scored["log_likelihood"]]
    assert [one["latents"] for one in latents] == [[value] for value in encoded["latents"]]
    assert [one["outputs"] for one in outputs] == [[value] for value in decoded["outputs"]]
    first, *others = await asyncio.gather(*(post(gpu_client, "/sample", sample) for _ in range(4)))
    assert all(one["samples"] == first["samples"] for one in others)


@contextmanager
def capped(num_bytes: int) -> Iterator[None]:
    """Let torch take no more than so many bytes of the GPU beside what it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + num_bytes) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.fixture
def large_batches(settings: Settings, models_dir: Path) -> Settings:
    """Passes of many images, whose memory is noticed."""
    num_rows = 2**14
    return settings.model_copy(
        update={
            "models": [models_dir / "tiny-images.pt"],
            "max_batch_rows": num_rows,
            "max_request_rows": num_rows,
            "max_queue_rows": num_rows,
            "max_body_bytes": 2**24,
        }
    )


@pytest.mark.parametrize("plan", ["frozen", "cuda_graph"])
async def test_a_request_that_does_not_fit_into_the_gpu_is_a_503_and_then_the_service_goes_on(
    large_batches: Settings, models_dir: Path, plan: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = open_artifact(models_dir / "tiny-images.pt").manifest
    content = npy(golden_rows(manifest, "statistics", large_batches.max_request_rows))
    async with served(large_batches.model_copy(update={"plan": plan})) as client:
        expected = (await client.post("/log-likelihood", content=content, headers=NPY)).json()
        with capped(0), caplog.at_level(logging.ERROR):
            response = await client.post("/log-likelihood", content=content, headers=NPY)
        if plan == "cuda_graph":  # whose memory was set aside when it was recorded
            assert response.status_code == 200
        else:
            assert (response.status_code, response.json().get("code")) in {(503, "out_of_memory"), (200, None)}
            assert "out of memory" in caplog.text
        again = (await client.post("/log-likelihood", content=content, headers=NPY)).json()
        assert within_tolerance(np.array(again["log_likelihood"]), np.array(expected["log_likelihood"]))


async def test_a_gpu_with_little_memory_left_is_served_by_smaller_passes(
    large_batches: Settings, models_dir: Path
) -> None:
    manifest = open_artifact(models_dir / "tiny-images.pt").manifest
    rows = golden_rows(manifest, "statistics", 300)
    with capped(2**26):
        async with served(large_batches) as client:
            answer = await client.post("/log-likelihood", content=npy(rows), headers=NPY)
    expected = np.resize(np.asarray(manifest.golden.statistics)[:, 0], len(rows))
    assert within_tolerance(np.array(answer.json()["log_likelihood"]), expected)
