"""The engine: the same rows get the same answers however they are asked for, and a lack of memory ends nothing."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.artifact import ArtifactError, Operation, golden_rows, within_tolerance
from service.catalog import Catalog, warm_catalog
from service.engine import CANONICAL_ROWS, Engine
from service.errors import OutOfMemory
from service.flows import Budget, Flows
from service.plans import Schedule
from service.runner import Plan, Runner
from service.settings import Settings

MODELS = ["tiny-images", "tiny-table"]


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Catalog:
    return warm_catalog(settings)


def inputs(engine: Catalog, model: str, num_rows: int) -> Any:
    """Different rows, all of them likely ones."""
    random = np.random.default_rng(0)
    z = random.normal(size=(num_rows, engine.find(model).manifest.num_dims)).astype(np.float32)
    (x,) = engine.find(model).run("decode", z)
    return x


@pytest.mark.parametrize("model", MODELS)
def test_rows_in_any_mixture_answer_within_the_tolerance(engine: Catalog, model: str) -> None:
    x = inputs(engine, model, 70)
    (expected,) = engine.find(model).run("statistics", x, True)
    random = np.random.default_rng(1)
    for num_rows in (1, 2, 3, 16, 31, 32, 33, 70):
        chosen = random.permutation(70)[:num_rows]
        assert within_tolerance(engine.find(model).run("statistics", x[chosen])[0], expected[chosen])
        assert within_tolerance(engine.find(model).run("encode", x[chosen])[1], expected[chosen, 0])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("operation", ["statistics", "encode", "decode"])
def test_reproducible_answers_are_the_same_bits_in_any_mixture(
    engine: Catalog, model: str, operation: Operation
) -> None:
    num_rows = CANONICAL_ROWS[engine.find(model).manifest.kind] + 5
    x = inputs(engine, model, num_rows)
    rows = engine.find(model).run("encode", x)[0] if operation == "decode" else x
    run = partial(engine.find(model).run, operation, reproducible=True)
    expected = run(rows)
    random = np.random.default_rng(1)
    for some in (1, 2, 17, num_rows):
        chosen = random.permutation(num_rows)[:some]
        for output, values in zip(run(rows[chosen]), expected, strict=True):
            np.testing.assert_array_equal(output, values[chosen])


def test_a_call_of_any_size_is_split_and_joined(engine: Catalog) -> None:
    x = inputs(engine, "tiny-table", 10_000)
    together = engine.find("tiny-table").run("statistics", x)[0]
    assert together.shape == (10_000, 3)
    assert within_tolerance(together[5_000:5_010], engine.find("tiny-table").run("statistics", x[5_000:5_010])[0])


class Cramped(Runner):
    """Has room for a pass of so many rows."""

    room = 10**9

    def run(self, operation: Operation, plan: Plan, rows: Any) -> tuple[Any, ...]:
        if len(rows) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return super().run(operation, plan, rows)


@pytest.fixture
def cramped(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setattr("service.engine.Runner", Cramped)
    return warm_catalog(settings)


def test_a_failed_allocation_halves_the_passes_and_tries_again(
    cramped: Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = cramped.find("tiny-table")
    rows = golden_rows(table.manifest, "statistics", 100)
    expected, largest = table.run("statistics", rows)[0], table.room("statistics", False, 10**4).most
    assert largest > 1
    monkeypatch.setattr(Cramped, "room", largest // 2)
    with caplog.at_level(logging.ERROR):
        assert within_tolerance(table.run("statistics", rows)[0], expected)
    assert "out of memory" in caplog.text
    assert table.room("statistics", False, 10**4).most == largest // 2


def test_threads_whose_passes_fail_together_halve_them_once(cramped: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    table = cramped.find("tiny-table")
    largest = table.room("statistics", False, 10**4).most
    assert largest > 2
    together = threading.Barrier(4, timeout=30)

    def failing(operation: Operation, rows: Any, schedule: Schedule) -> tuple[Any, ...]:
        if schedule.largest == largest:
            together.wait()  # so that all begin before one halves
            raise MemoryError
        return (schedule.largest,)

    monkeypatch.setattr(table, "_run", failing)
    with ThreadPoolExecutor(4) as pool:
        answers: list[Any] = list(pool.map(table.run, ["statistics"] * 4, [np.zeros((1, 3))] * 4))
    assert answers == [(largest // 2,)] * 4
    assert table.room("statistics", False, 10**4).most == largest // 2


def test_the_plan_of_reproducible_answers_is_kept_warm(engine: Catalog) -> None:
    for model in engine.models:
        assert model._canonical is not None
        assert model._canonical.plan.form in model._runner._forms


def test_reproducible_passes_that_do_not_fit_leave_the_others_as_they_are(
    cramped: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = cramped.find("tiny-table")
    rows = golden_rows(table.manifest, "statistics", 3)
    largest = table.room("statistics", False, 10**4).most
    monkeypatch.setattr(Cramped, "room", 128)
    with pytest.raises(OutOfMemory):
        table.run("statistics", rows, True)
    assert table.room("statistics", False, 10**4).most == largest
    assert table.room("statistics", True, 10**4).most % CANONICAL_ROWS["vector"] == 0


async def test_requests_that_share_passes_get_their_own_rows(app: FastAPI, engine: Catalog) -> None:
    flows: Flows = app.state.service.flows
    model = flows.find("tiny-images")
    x = inputs(engine, "tiny-images", 64)
    (expected,) = engine.find("tiny-images").run("statistics", x, True)
    random = np.random.default_rng(2)
    chosen = [random.permutation(64)[: random.integers(1, 40)] for _ in range(40)]
    same_bits = [bool(random.integers(2)) for _ in chosen]
    answers = await asyncio.gather(
        *(flows.log_likelihood(Budget(), model, x[rows], alike) for rows, alike in zip(chosen, same_bits, strict=True))
    )
    for rows, alike, values in zip(chosen, same_bits, answers, strict=True):
        assert within_tolerance(values, expected[rows, 0])
        if alike:
            np.testing.assert_array_equal(values, expected[rows, 0])


def test_where_that_is_not_enough_the_caller_is_told_and_the_engine_goes_on(
    cramped: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = cramped.find("tiny-table")
    rows = golden_rows(table.manifest, "statistics", 100)
    monkeypatch.setattr(Cramped, "room", 0)
    with pytest.raises(OutOfMemory, match="no memory for 100 rows of tiny-table"):
        table.run("statistics", rows)
    monkeypatch.setattr(Cramped, "room", 10**9)
    assert len(table.run("statistics", rows)[0]) == 100


def test_other_errors_are_not_taken_for_a_lack_of_memory(cramped: Catalog) -> None:
    with pytest.raises(RuntimeError):
        cramped.find("tiny-table").run("decode", np.zeros((2, 1), np.float32))


@pytest.mark.parametrize("operation", ["statistics", "encode", "decode"])
def test_numbers_that_are_not_finite_are_no_answer(
    engine: Catalog, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = inputs(engine, "tiny-table", 5)
    run = Runner.run

    def damaged(*args: Any) -> Any:
        outputs = run(*args)
        outputs[-1][2] = np.nan
        return outputs

    monkeypatch.setattr(Runner, "run", damaged)
    with pytest.raises(RuntimeError, match=rf"{operation} of tiny-table@\w+ answers numbers that are not finite"):
        engine.find("tiny-table").run(operation, x.astype(np.float32) if operation == "decode" else x)


async def test_a_lack_of_memory_is_a_503_and_then_the_service_goes_on(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    example = (await client.get("/models/tiny-images/example")).json()
    with monkeypatch.context() as patch:
        model = app.state.service.flows.find("tiny-images")
        patch.setattr(model, "_run", fail)
        patch.setattr(model, "_halved", lambda operation, failed: failed)
        response = await client.post("/log-likelihood", json={"inputs": example["inputs"]})
    assert (response.status_code, response.json()["code"]) == (503, "out_of_memory")
    assert int(response.headers["retry-after"]) >= 1
    assert (await client.post("/log-likelihood", json={"inputs": example["inputs"]})).status_code == 200


def test_a_pinned_plan_is_the_only_one(settings: Settings) -> None:
    models = warm_catalog(settings.model_copy(update={"plan": "frozen"})).models
    schedules = [schedule for model in models for schedule in model._schedules.values()]
    assert {bucket.form for schedule in schedules for bucket in schedule.buckets} == {"frozen"}


def test_a_plan_that_the_device_does_not_have_refuses_the_start(settings: Settings) -> None:
    with pytest.raises(ArtifactError, match="GLOW_PLAN is 'cuda_graph', but cpu has packed, channels_last"):
        Engine(settings.model_copy(update={"plan": "cuda_graph", "device": "cpu"}))


def test_plans_are_kept_in_the_cache_folder(settings: Settings, tmp_path: Path) -> None:
    warm_catalog(settings.model_copy(update={"cache_dir": tmp_path}))
    assert {path.name.partition("-")[0] for path in tmp_path.glob("*.json")} == {"plans"}
    assert len(list(tmp_path.glob("*.json"))) == len(list(settings.models[0].iterdir()))


def test_reproducible_answers_run_by_the_first_form_that_is_right(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unpacked(Runner):
        def run(self, operation: Operation, plan: Plan, rows: Any) -> tuple[Any, ...]:
            if plan.form == "packed":
                raise RuntimeError("no such operator")
            return super().run(operation, plan, rows)

    monkeypatch.setattr("service.engine.Runner", Unpacked)
    assert {model._canonical.plan.form for model in warm_catalog(settings).models if model._canonical} == {
        "channels_last"
    }
