"""Processes are killed, started again, and told to end, at random times under load."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reliability.chaos.scene import Scene
from reliability.load import status, until_well
from service.artifact import within_tolerance
from service.client import GlowClient
from tests.test_server import free_port, start, wait_for_workers, wait_until_all_listen

DRAIN_S, DEADLINE_S = 1.0, 10.0
DRAINING: dict[str, Any] = {"GLOW_DRAIN_DELAY_S": str(DRAIN_S), "GLOW_DEADLINE_S": str(DEADLINE_S)}


@pytest.mark.fault("a worker is killed")
def test_of_a_killed_worker_only_what_it_had_taken_is_lost_and_another_takes_its_place(scene: Scene) -> None:
    callers = 6
    with scene.server("--workers", 2) as (url, process):
        with scene.load(url, callers=callers) as load:
            for _ in range(3):
                before = wait_for_workers(process.pid)
                wait_until_all_listen(url, 2)
                load.wait(scene.chance.randrange(50, 200))
                ended, began = scene.ledger.ended, time.monotonic()
                killed = scene.chance.choice(before)
                os.kill(killed, signal.SIGKILL)
                wait_for_workers(process.pid, without=killed)
                wait_until_all_listen(url, 2)
                scene.recovered(time.monotonic() - began)
                assert scene.ledger.ended - ended <= callers
                load.wait(50)
        until_well(url, scene.table.ask("json", [1]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not scene.ledger.unreached
    scene.ledger.check(ended=True)


@pytest.mark.fault("the whole server is killed, and started again")
def test_whoever_retries_gets_the_right_answers_across_a_killed_server(scene: Scene) -> None:
    port, ended = free_port(), threading.Event()
    problems: list[BaseException] = []

    def call(seed: float) -> None:
        own = random.Random(seed)
        with GlowClient(
            f"http://127.0.0.1:{port}", model=scene.table.model, timeout=60, retries=None, max_rows=5
        ) as client:
            while not ended.is_set():
                which = own.sample(range(len(scene.table.rows)), own.randint(1, 20))
                scene.ledger.send()
                try:
                    scores = client.log_likelihood(scene.table.rows[which])
                except BaseException as error:
                    problems.append(error)
                    return
                values = np.asarray(scores.log_likelihood)
                right = values.shape == (len(which),) and within_tolerance(values, scene.table.expected[which])
                scene.ledger.note("200", 0.0, None if right else f"{which}: {values}")

    threads = [threading.Thread(target=call, args=(scene.chance.random(),)) for _ in range(4)]
    killed_at = 0.0
    try:
        for number in range(3):
            with scene.server(port=port) as (url, process):
                if not number:
                    for thread in threads:
                        thread.start()
                else:
                    until_well(url, scene.table.ask("json", [1]))
                    scene.recovered(time.monotonic() - killed_at)
                time.sleep(scene.chance.uniform(0.3, 1.0))
                answered, deadline = scene.ledger.ok, time.monotonic() + 30
                while scene.ledger.ok < answered + 20 and not problems:
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
    scene.ledger.check()


@pytest.mark.fault("SIGTERM at a random time under load")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_end_loses_no_request_and_ends_in_time(scene: Scene, workers: int) -> None:
    for _ in range(2):
        with scene.server("--workers", workers, **DRAINING) as (url, process):
            wait_until_all_listen(url, workers)
            with scene.load(url) as load:
                load.wait(50)
                time.sleep(scene.chance.uniform(0, 0.5))
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                if scene.chance.random() < 0.5:  # which whoever is impatient does
                    time.sleep(scene.chance.uniform(0, 0.5))
                    assert (status(url, "/livez"), status(url, "/readyz")) == (200, 503)
                assert process.wait(DRAIN_S + DEADLINE_S + 5) == 0
                scene.recovered(time.monotonic() - began)
        assert not scene.ledger.ended, scene.ledger
    scene.ledger.check()


@pytest.mark.fault("SIGTERM twice under load")
def test_a_second_signal_to_end_hurries_and_answers_what_it_took(scene: Scene) -> None:
    settings: dict[str, Any] = {**DRAINING, "GLOW_DRAIN_DELAY_S": "60"}
    with scene.server(**settings) as (url, process), scene.load(url) as load:
        load.wait(50)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        time.sleep(scene.chance.uniform(0.05, 0.5))
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S + 5) == 0
        scene.recovered(time.monotonic() - began)
    scene.ledger.check()


@pytest.mark.fault("SIGTERM during the start")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_end_during_the_start_ends_it_and_leaves_nothing(scene: Scene, workers: int) -> None:
    for _ in range(3):
        port = free_port()
        process = start(
            "--models",
            scene.artifacts,
            "--workers",
            workers,
            "--port",
            port,
            log=scene.log,
            **scene.settings,
            **DRAINING,
        )
        time.sleep(scene.chance.uniform(0, 5))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(DRAIN_S + DEADLINE_S + 20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        scene.recovered(time.monotonic() - began)
        assert code in (0, 143, -signal.SIGTERM), scene.log.read_text()[-2000:]
        assert status(f"http://127.0.0.1:{port}", "/livez") == 0
        with suppress(ProcessLookupError):
            for _ in range(100):  # what Python started beside the workers ends when they have
                os.killpg(process.pid, 0)
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("processes are left")
    assert "Traceback" not in scene.log.read_text()


@pytest.mark.fault("SIGTERM during a reload under load")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_end_during_a_reload_loses_no_request(scene: Scene, models_dir: Path, workers: int) -> None:
    folder = scene.folder / "models"
    folder.mkdir()
    os.link(scene.artifacts / "tiny-table.pt", folder / "tiny-table.pt")
    with scene.server("--workers", workers, models=folder, **DRAINING) as (url, process):
        wait_until_all_listen(url, workers)
        with scene.load(url) as load:
            load.wait(50)
            os.link(models_dir / "tiny-images.pt", folder / "tiny-images.pt")
            process.send_signal(signal.SIGHUP)
            time.sleep(scene.chance.uniform(0, 1))
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(DRAIN_S + DEADLINE_S + 5) == 0
            scene.recovered(time.monotonic() - began)
    scene.ledger.check()
