"""The engine goes wrong: it raises, answers nonsense, takes all memory, hangs, or its thread ends."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reliability.chaos.conftest import Told
from reliability.chaos.flows import HANGS, IS_NAN, RAISES, TAKES_ALL_MEMORY
from reliability.load import ENCODINGS, Ask, Caller, Load, Rows, is_well, status, until_well
from tests.test_server import server, wait_for_workers


def poisoned(spoilt: Rows, chance: random.Random, number: float, code: str) -> list[Ask]:
    return [spoilt.ask(encoding, chance.sample(range(50), 3), [code], number) for encoding in ENCODINGS]


@pytest.mark.fault("the engine raises")
def test_rows_that_make_the_engine_raise_are_refused_and_all_others_answered(
    artifacts: Path, table: Rows, spoilt: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    _answers_all_but(RAISES, "internal_error", artifacts, table, spoilt, quick, tmp_path, chance, told)


@pytest.mark.fault("the engine answers NaN")
def test_numbers_that_are_none_reach_nobody_and_all_others_are_answered(
    artifacts: Path, table: Rows, spoilt: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    _answers_all_but(IS_NAN, "internal_error", artifacts, table, spoilt, quick, tmp_path, chance, told)


@pytest.mark.fault("a pass needs more memory than there is")
def test_rows_without_memory_for_them_are_refused_and_all_others_answered(
    artifacts: Path, table: Rows, spoilt: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    _answers_all_but(TAKES_ALL_MEMORY, "out_of_memory", artifacts, table, spoilt, quick, tmp_path, chance, told)


def _answers_all_but(
    number: float,
    code: str,
    artifacts: Path,
    table: Rows,
    spoilt: Rows,
    quick: dict[str, Any],
    tmp_path: Path,
    chance: random.Random,
    told: Told,
) -> None:
    asks = table.asks(chance) + spoilt.asks(chance) + 5 * poisoned(spoilt, chance, number, code)
    with server("--models", artifacts, log=tmp_path / "log", **quick) as (url, process):
        with Load(url, asks, told.ledger, chance) as load:
            load.wait(500)
            assert is_well(url, table.ask("json", [1]))
        told.recovered(until_well(url, spoilt.ask("json", [1])))
        assert process.poll() is None
    told.ledger.check(least=300)
    assert told.ledger.refused.total() > 20


STALL: dict[str, Any] = {"GLOW_STALL_S": "2", "GLOW_DEADLINE_S": "4"}
WHILE_STUCK = ("deadline_exceeded", "queue_full", "unavailable", "stuck")


@pytest.mark.fault("the engine hangs, in one process")
def test_a_process_whose_engine_hangs_says_so_refuses_in_time_and_ends(
    artifacts: Path, spoilt: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    asks = spoilt.asks(chance, codes=WHILE_STUCK)
    hang = spoilt.ask("json", [0], WHILE_STUCK, HANGS)
    with (
        server("--models", artifacts, log=tmp_path / "log", **quick, **STALL) as (url, process),
        Load(url, asks, told.ledger, chance, patience_s=15) as load,
    ):
        load.wait(200)
        began = time.monotonic()
        with Caller(url, told.ledger, 15) as caller:
            caller.ask(hang)
        assert (status(url, "/livez"), status(url, "/readyz")) in [(503, 503), (503, 0), (0, 0)]
        assert process.wait(20) == 1
        told.recovered(time.monotonic() - began)
    assert "the engine or the event loop is stuck" in (tmp_path / "log").read_text()
    told.ledger.check(ended=True, least=150)
    assert told.ledger.slowest_s < 10


@pytest.mark.fault("the engine hangs, in one of two workers")
def test_a_worker_whose_engine_hangs_is_replaced_while_the_other_answers(
    artifacts: Path, spoilt: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    asks = spoilt.asks(chance, codes=WHILE_STUCK)
    hang = spoilt.ask("json", [0], WHILE_STUCK, HANGS)
    with server("--models", artifacts, "--workers", 2, log=tmp_path / "log", **quick, **STALL) as (url, process):
        before = wait_for_workers(process.pid)
        with Load(url, asks, told.ledger, chance, patience_s=15) as load:
            load.wait(200)
            began = time.monotonic()
            with Caller(url, told.ledger, 15) as caller:
                caller.ask(hang)
            while set(before) <= set(workers := wait_for_workers(process.pid)):
                assert time.monotonic() < began + 30
                time.sleep(0.1)
            assert set(before) & set(workers)
            told.recovered(time.monotonic() - began)
            load.wait(200)
        for _ in range(8):  # a connection each
            until_well(url, spoilt.ask("json", [1]))
    told.ledger.check(ended=True, least=300)


@pytest.mark.fault("the engine's thread ends")
def test_a_process_without_its_engine_says_so_leaves_nobody_waiting_and_ends(
    artifacts: Path, table: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    _ends(signal.SIGUSR1, artifacts, table, quick, tmp_path, chance, told)
    assert "the engine's thread has ended" in (tmp_path / "log").read_text()
    assert told.ledger.refused["503"] > 0


@pytest.mark.fault("the event loop is blocked")
def test_a_process_whose_event_loop_is_blocked_ends_to_be_started_again(
    artifacts: Path, table: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    _ends(signal.SIGUSR2, artifacts, table, quick, tmp_path, chance, told)


def _ends(
    fault: signal.Signals,
    artifacts: Path,
    table: Rows,
    quick: dict[str, Any],
    tmp_path: Path,
    chance: random.Random,
    told: Told,
) -> None:
    """Let it happen under load: the process ends by itself, in about twice GLOW_STALL_S, and until then says why."""
    asks = table.asks(chance, codes=["unavailable"])
    launcher = (sys.executable, "-m", "reliability.chaos.launcher")
    with (
        server("--models", artifacts, command=launcher, log=tmp_path / "log", **quick, **STALL) as (url, process),
        Load(url, asks, told.ledger, chance, patience_s=15) as load,
    ):
        load.wait(200)
        began = time.monotonic()
        process.send_signal(fault)
        time.sleep(0.5)
        assert (status(url, "/livez", 1), status(url, "/readyz", 1)) in [(503, 503), (0, 0)]
        assert process.wait(20) == 1
        told.recovered(time.monotonic() - began)
    told.ledger.check(ended=True, least=150)
