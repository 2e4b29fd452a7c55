"""Processes are killed, started again, and told to end, at random times under load."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reliability.chaos.conftest import Told
from reliability.load import Load, Rows, status, until_well
from service.artifact import within_tolerance
from service.client import GlowClient
from tests.test_server import free_port, server, start, wait_for_workers, wait_until_all_listen

DRAIN_S, DEADLINE_S = 1.0, 10.0
DRAINING: dict[str, Any] = {"GLOW_DRAIN_DELAY_S": str(DRAIN_S), "GLOW_DEADLINE_S": str(DEADLINE_S)}


@pytest.mark.fault("a worker is killed")
def test_of_a_killed_worker_only_what_it_had_taken_is_lost_and_another_takes_its_place(
    artifacts: Path, table: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    callers = 6
    with server("--models", artifacts, "--workers", 2, log=tmp_path / "log", **quick) as (url, process):
        with Load(url, table.asks(chance), told.ledger, chance, callers) as load:
            for _ in range(3):
                before = wait_for_workers(process.pid)
                wait_until_all_listen(url, 2)
                load.wait(chance.randrange(50, 200))
                ended, began = told.ledger.ended, time.monotonic()
                killed = chance.choice(before)
                os.kill(killed, signal.SIGKILL)
                wait_for_workers(process.pid, without=killed)
                wait_until_all_listen(url, 2)
                told.recovered(time.monotonic() - began)
                assert told.ledger.ended - ended <= callers
                load.wait(50)
        until_well(url, table.ask("json", [1]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not told.ledger.unreached
    told.ledger.check(ended=True)


@pytest.mark.fault("the whole server is killed, and started again")
def test_whoever_retries_gets_the_right_answers_across_a_killed_server(
    artifacts: Path, table: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    port, ended = free_port(), threading.Event()
    problems: list[BaseException] = []

    def call(seed: float) -> None:
        own = random.Random(seed)
        with GlowClient(f"http://127.0.0.1:{port}", model=table.model, timeout=60, retries=None, max_rows=5) as client:
            while not ended.is_set():
                which = own.sample(range(len(table.rows)), own.randint(1, 20))
                try:
                    scores = client.log_likelihood(table.rows[which])
                except BaseException as error:
                    problems.append(error)
                    return
                values = np.asarray(scores.log_likelihood)
                right = values.shape == (len(which),) and within_tolerance(values, table.expected[which])
                told.ledger.note("200", 0.0, None if right else f"{which}: {values}")

    arguments = ("--models", artifacts)
    threads = [threading.Thread(target=call, args=(chance.random(),)) for _ in range(4)]
    killed_at = 0.0
    try:
        for number in range(3):
            with server(*arguments, port=port, log=tmp_path / "log", **quick) as (url, process):
                if not number:
                    for thread in threads:
                        thread.start()
                else:
                    until_well(url, table.ask("json", [1]))
                    told.recovered(time.monotonic() - killed_at)
                time.sleep(chance.uniform(0.3, 1.0))
                answered, deadline = told.ledger.ok, time.monotonic() + 30
                while told.ledger.ok < answered + 20 and not problems:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                if number == 2:
                    ended.set()
                    for thread in threads:
                        thread.join()
                process.kill()
                process.wait()
                killed_at = time.monotonic()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not problems
    told.ledger.check()


@pytest.mark.fault("SIGTERM at a random time under load")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_end_loses_no_request_and_ends_in_time(
    artifacts: Path,
    table: Rows,
    quick: dict[str, Any],
    tmp_path: Path,
    chance: random.Random,
    told: Told,
    workers: int,
) -> None:
    for _ in range(2):
        with server("--models", artifacts, "--workers", workers, log=tmp_path / "log", **quick, **DRAINING) as (
            url,
            process,
        ):
            wait_until_all_listen(url, workers)
            with Load(url, table.asks(chance), told.ledger, chance) as load:
                load.wait(50)
                time.sleep(chance.uniform(0, 0.5))
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                if chance.random() < 0.5:  # which whoever is impatient does
                    time.sleep(chance.uniform(0, 0.5))
                    assert (status(url, "/livez"), status(url, "/readyz")) == (200, 503)
                assert process.wait(DRAIN_S + DEADLINE_S + 5) == 0
                told.recovered(time.monotonic() - began)
        assert not told.ledger.ended, told.ledger
    told.ledger.check()


@pytest.mark.fault("SIGTERM twice under load")
def test_a_second_signal_to_end_hurries_and_answers_what_it_took(
    artifacts: Path, table: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    settings: dict[str, Any] = {**DRAINING, "GLOW_DRAIN_DELAY_S": "60"}
    with (
        server("--models", artifacts, log=tmp_path / "log", **quick, **settings) as (url, process),
        Load(url, table.asks(chance), told.ledger, chance) as load,
    ):
        load.wait(50)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        time.sleep(chance.uniform(0.05, 0.5))
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S + 5) == 0
        told.recovered(time.monotonic() - began)
    told.ledger.check()


@pytest.mark.fault("SIGTERM during the start")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_end_during_the_start_ends_it_and_leaves_nothing(
    artifacts: Path, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told, workers: int
) -> None:
    for _ in range(3):
        port = free_port()
        process = start(
            "--models", artifacts, "--workers", workers, "--port", port, log=tmp_path / "log", **quick, **DRAINING
        )
        time.sleep(chance.uniform(0, 5))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(DRAIN_S + DEADLINE_S + 20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        told.recovered(time.monotonic() - began)
        assert code in (0, 143, -signal.SIGTERM), (tmp_path / "log").read_text()[-2000:]
        assert status(f"http://127.0.0.1:{port}", "/livez") == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.fault("SIGTERM during a reload under load")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_end_during_a_reload_loses_no_request(
    artifacts: Path,
    models_dir: Path,
    table: Rows,
    quick: dict[str, Any],
    tmp_path: Path,
    chance: random.Random,
    told: Told,
    workers: int,
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    os.link(artifacts / "tiny-table.pt", folder / "tiny-table.pt")
    with server("--models", folder, "--workers", workers, log=tmp_path / "log", **quick, **DRAINING) as (url, process):
        wait_until_all_listen(url, workers)
        with Load(url, table.asks(chance), told.ledger, chance) as load:
            load.wait(50)
            os.link(models_dir / "tiny-images.pt", folder / "tiny-images.pt")
            process.send_signal(signal.SIGHUP)
            time.sleep(chance.uniform(0, 1))
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(DRAIN_S + DEADLINE_S + 5) == 0
            told.recovered(time.monotonic() - began)
    told.ledger.check()
