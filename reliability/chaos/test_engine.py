"""The engine goes wrong: it raises, answers nonsense, takes all memory, hangs, or its thread ends."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import pytest

from reliability.chaos.flows import HANGS, IS_NAN, RAISES, TAKES_ALL_MEMORY
from reliability.chaos.scene import Scene
from reliability.load import ENCODINGS, Ask, Caller, is_well, status, until_well
from tests.test_server import wait_for_workers


def poisoned(scene: Scene, number: float, code: str) -> list[Ask]:
    return [scene.spoilt.ask(encoding, scene.chance.sample(range(50), 3), [code], number) for encoding in ENCODINGS]


@pytest.mark.fault("the engine raises")
def test_rows_that_make_the_engine_raise_are_refused_and_all_others_answered(scene: Scene) -> None:
    _answers_all_but(scene, RAISES, "internal_error")


@pytest.mark.fault("the engine answers NaN")
def test_numbers_that_are_none_reach_nobody_and_all_others_are_answered(scene: Scene) -> None:
    _answers_all_but(scene, IS_NAN, "internal_error")


@pytest.mark.fault("a pass needs more memory than there is")
def test_rows_without_memory_for_them_are_refused_and_all_others_answered(scene: Scene) -> None:
    _answers_all_but(scene, TAKES_ALL_MEMORY, "out_of_memory")


def _answers_all_but(scene: Scene, number: float, code: str) -> None:
    asks = scene.table.asks(scene.chance) + scene.spoilt.asks(scene.chance) + 5 * poisoned(scene, number, code)
    with scene.server() as (url, process):
        with scene.load(url, asks) as load:
            load.wait(500)
            assert is_well(url, scene.table.ask("json", [1]))
        scene.recovered(until_well(url, scene.spoilt.ask("json", [1])))
        assert process.poll() is None
    scene.ledger.check(least=300)
    assert scene.ledger.refused.total() > 20


STALL: dict[str, Any] = {"GLOW_STALL_S": "2", "GLOW_DEADLINE_S": "4"}
WHILE_STUCK = ("deadline_exceeded", "queue_full", "unavailable", "stuck")


@pytest.mark.fault("the engine hangs, in one process")
def test_a_process_whose_engine_hangs_says_so_refuses_in_time_and_ends(scene: Scene) -> None:
    asks = scene.spoilt.asks(scene.chance, codes=WHILE_STUCK)
    hang = scene.spoilt.ask("json", [0], WHILE_STUCK, HANGS)
    with scene.server(**STALL) as (url, process), scene.load(url, asks, patience_s=15) as load:
        load.wait(200)
        began = time.monotonic()
        with Caller(url, scene.ledger, 15) as caller:
            caller.ask(hang)
        assert (status(url, "/livez"), status(url, "/readyz")) in [(503, 503), (503, 0), (0, 0)]
        assert process.wait(20) == 1
        scene.recovered(time.monotonic() - began)
    assert "the engine or the event loop is stuck" in scene.log.read_text()
    scene.ledger.check(ended=True, least=150)
    assert scene.ledger.slowest_s < 10


@pytest.mark.fault("the engine hangs, in one of two workers")
def test_a_worker_whose_engine_hangs_is_replaced_while_the_other_answers(scene: Scene) -> None:
    asks = scene.spoilt.asks(scene.chance, codes=WHILE_STUCK)
    hang = scene.spoilt.ask("json", [0], WHILE_STUCK, HANGS)
    with scene.server("--workers", 2, **STALL) as (url, process):
        before = wait_for_workers(process.pid)
        with scene.load(url, asks, patience_s=15) as load:
            load.wait(200)
            began = time.monotonic()
            with Caller(url, scene.ledger, 15) as caller:
                caller.ask(hang)
            while set(before) <= set(workers := wait_for_workers(process.pid)):
                assert time.monotonic() < began + 30
                time.sleep(0.1)
            assert set(before) & set(workers)
            scene.recovered(time.monotonic() - began)
            load.wait(200)
        for _ in range(8):  # a connection each
            until_well(url, scene.spoilt.ask("json", [1]))
    scene.ledger.check(ended=True, least=300)


@pytest.mark.fault("the engine's thread ends")
def test_a_process_without_its_engine_says_so_leaves_nobody_waiting_and_ends(scene: Scene) -> None:
    _ends(scene, signal.SIGUSR1)
    assert "the engine's thread has ended" in scene.log.read_text()
    assert scene.ledger.refused["503"] > 0


@pytest.mark.fault("the event loop is blocked")
def test_a_process_whose_event_loop_is_blocked_ends_to_be_started_again(scene: Scene) -> None:
    _ends(scene, signal.SIGUSR2)


def _ends(scene: Scene, fault: signal.Signals) -> None:
    """Let it happen under load: the process ends by itself, in about twice GLOW_STALL_S, and until then says why."""
    asks = scene.table.asks(scene.chance, codes=["unavailable"])
    launcher = (sys.executable, "-m", "reliability.chaos.launcher")
    with (
        scene.server(command=launcher, **STALL) as (url, process),
        scene.load(url, asks, patience_s=15) as load,
    ):
        load.wait(200)
        began = time.monotonic()
        process.send_signal(fault)
        time.sleep(0.5)
        assert (status(url, "/livez", 1), status(url, "/readyz", 1)) in [(503, 503), (0, 0)]
        assert process.wait(20) == 1
        scene.recovered(time.monotonic() - began)
    scene.ledger.check(ended=True, least=150)
