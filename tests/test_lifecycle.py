"""From start to end: what /livez and /readyz tell, and that no request is lost on the way."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from benchmarks.serving.callers import Caller, calling
from service import workers
from service.app import create_app
from service.artifact import ArtifactError
from service.errors import Unavailable
from service.settings import Settings
from tests.conftest import client_of, tiny_recipe, tiny_table, train_and_export, with_training
from tests.contract.figures import eventually
from tests.keys import entry, key
from tests.test_server import free_port, server, start, wait_for_workers, wait_until_ready
from tests.wire import TABLE

BODY = {"inputs": [[0.5, 1010.0, 3.0]]}


@contextmanager
def load(url: str, num_callers: int = 4) -> Iterator[Counter[str]]:
    """Callers who ask one after the other, on connections that they keep: the versions and errors that they see."""
    seen: Counter[str] = Counter()

    def ask() -> Caller:
        with httpx.Client(base_url=url, timeout=30) as client:
            while True:
                yield
                try:
                    response = client.post("/log-likelihood", json=BODY)
                except httpx.ConnectError:  # nobody listens: nothing was sent that could be lost
                    seen["refused"] += 1
                    time.sleep(0.01)
                except httpx.TransportError as error:
                    seen[repr(error)] += 1
                else:
                    seen[response.json()["version"] if response.status_code == 200 else response.text] += 1

    with calling(*(ask() for _ in range(num_callers))):
        yield seen


def status(url: str, path: str) -> int:
    return httpx.get(f"{url}{path}").status_code


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_signal_lets_balancers_notice_and_loses_no_request(
    models_dir: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOW_DRAIN_DELAY_S", "6")
    with server("--models", models_dir / f"{TABLE}.pt", "--workers", num_workers) as (url, process):
        wait_for_workers(process.pid) if num_workers == 2 else None
        with load(url) as seen:
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: {status(url, "/readyz") for _ in range(8)}, lambda told: told == {503}, 5)  # all workers
            assert (status(url, "/livez"), status(url, "/models")) == (200, 200)
            answer = httpx.post(f"{url}/encode", json=BODY)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            process.wait(30)
        answered = sum(num for what, num in seen.items() if len(what) == 12)
        assert set(seen) - {"refused"} == {what for what in seen if len(what) == 12}, seen
        assert answered > 20
        assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can drop what begins a connection")
def test_a_port_lets_nobody_in_when_it_is_about_to_close(settings: Settings) -> None:
    """Whoever has connected and is not yet accepted when it closes would have an answer that breaks off."""
    got_in: list[bool] = []

    class Caller(logging.Handler):
        """Comes at the last moment: uvicorn writes this line, and closes the port."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "Shutting down":
                with socket.socket() as late:
                    late.setblocking(False)
                    late.connect_ex(address)
                    got_in.append(bool(select.select([], [late], [], 0.1)[1]))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        raise NotImplementedError

    log, caller = logging.getLogger("uvicorn.error"), Caller()
    app.state = argparse.Namespace(service=None)  # type: ignore[attr-defined]
    server = workers._Server(cast(FastAPI, app), settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        thread = threading.Thread(target=server.run, args=([listening],))
        log.addHandler(caller)
        try:
            thread.start()
            socket.create_connection(address).close()
            server.should_exit = True
            thread.join(30)
        finally:
            log.removeHandler(caller)
    assert got_in == [False]


def test_an_interrupt_ends_at_once_what_asks_nothing(models_dir: Path) -> None:
    with server("--models", models_dir / f"{TABLE}.pt") as (url, process), httpx.Client(base_url=url) as client:
        assert client.get("/livez").status_code == 200  # and its connection stays open
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert time.monotonic() - began < 4  # less than the drain delay


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_hangup_exchanges_the_models_of_a_server_under_load(
    models_dir: Path, tmp_path: Path, num_workers: int
) -> None:
    path = tmp_path / f"{TABLE}.pt"
    shutil.copy(models_dir / f"{TABLE}.pt", path)
    with server("--models", path, "--workers", num_workers) as (url, process):
        if num_workers == 2:
            wait_for_workers(process.pid)
        before = httpx.get(f"{url}/models").json()["models"][0]["version"]
        with load(url) as seen:
            time.sleep(0.3)
            path.write_bytes(b"broken")
            process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            train_and_export(with_training(tiny_recipe(TABLE), steps=15), tiny_table(), tmp_path / "new.pt")
            (tmp_path / "new.pt").replace(path)
            process.send_signal(signal.SIGHUP)
            versions = eventually(
                lambda: {httpx.get(f"{url}/models").json()["models"][0]["version"] for _ in range(8)},
                lambda versions: before not in versions,
                30,
            )
            time.sleep(0.3)
        assert len(seen) == 2, seen
        assert before in seen
        assert seen.keys() - {before} == versions


def test_workers_reload_together_before_the_answer(models_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    path, keys = tmp_path / f"{TABLE}.pt", tmp_path / "keys.toml"
    shutil.copy(models_dir / f"{TABLE}.pt", path)
    keys.write_text(entry("ops", ["admin", "infer"]))
    monkeypatch.setenv("GLOW_API_KEYS_FILE", str(keys))
    with server("--models", path, "--workers", 2) as (url, process):
        wait_for_workers(process.pid)
        train_and_export(with_training(tiny_recipe(TABLE), steps=15), tiny_table(), tmp_path / "new.pt")
        (tmp_path / "new.pt").replace(path)
        answer = eventually(
            lambda: httpx.post(f"{url}/admin/reload", headers=key("ops"), timeout=60).json(),
            lambda answer: answer["workers"] == 2,  # when both listen
            30,
        )
        (new,) = {reference.partition("@")[2] for reference in answer["models"]}
        for _ in range(20):  # a connection each, so that both are asked
            assert httpx.get(f"{url}/models", headers=key("ops")).json()["models"][0]["version"] == new
        path.write_bytes(b"broken")
        refused = httpx.post(f"{url}/admin/reload", headers=key("ops"), timeout=60)
        assert (refused.status_code, refused.json()["code"]) == (409, "reload_refused")


def test_a_process_lives_before_it_is_ready(models_dir: Path) -> None:
    port = free_port()
    process = start("--models", models_dir, "--port", port)
    url = f"http://127.0.0.1:{port}"
    seen: list[tuple[int, int]] = []
    try:
        while not seen or seen[-1] != (200, 200):
            assert process.poll() is None
            try:
                seen.append((status(url, "/livez"), status(url, "/readyz")))
                refused = httpx.post(f"{url}/encode", json=BODY)
                if seen[-1][1] == 503 and refused.status_code == 503:
                    assert int(refused.headers["retry-after"]) >= 1
            except httpx.TransportError:
                pass
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert {live for live, _ in seen} == {200}
    assert seen[0] == (200, 503)


async def test_models_that_cannot_be_warmed_up_end_the_process(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("service.app.os.kill", lambda pid, number: ended.append(number))
    monkeypatch.setattr("service.engine.warm_up", lambda *_: "is off")
    app = create_app(settings, load_first=False)
    async with app.router.lifespan_context(app):
        for _ in range(500):
            await asyncio.sleep(0.02)
            if ended:
                break
    assert ended == [signal.SIGINT]
    assert not app.state.service.has_started
    first = create_app(settings)
    with pytest.raises(ArtifactError, match="golden case"):
        await first.router.lifespan_context(first).__aenter__()


async def test_an_engine_that_is_stuck_turns_liveness_red(
    settings: Settings, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"models": [models_dir / f"{TABLE}.pt"], "default_model": None, "stall_s": 0.2}
    app: FastAPI = create_app(settings.model_copy(update=changes))
    free = threading.Event()
    async with (
        app.router.lifespan_context(app),
        client_of(app) as client,
    ):
        model = app.state.service.flows.find(None)
        run = model.run
        monkeypatch.setattr(model, "run", lambda *args: free.wait(30) and run(*args))
        waiting = asyncio.create_task(client.post("/encode", json=BODY))
        await asyncio.sleep(0.1)
        assert (await client.get("/livez")).status_code == 200
        await asyncio.sleep(0.3)
        stuck = await client.get("/livez")
        assert (stuck.status_code, stuck.json()["code"]) == (503, "stuck")
        assert app.state.service.is_stuck
        assert (await client.get("/readyz")).status_code == 503
        free.set()
        assert (await waiting).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        await asyncio.sleep(0.3)  # idle for longer than that
        assert (await client.get("/livez")).status_code == 200


def test_a_process_whose_engine_is_stuck_ends_to_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    class Stuck:
        looks = 0

        @property
        def is_stuck(self) -> bool:
            self.looks += 1
            return self.looks in (3, 5, 6)

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("service.workers.time.sleep", lambda _: None)
    monkeypatch.setattr("service.workers.os._exit", end)
    service: Any = Stuck()
    with pytest.raises(Ended, match="1"):
        workers._end_if_stuck(service, 2)
    assert service.looks == 6


async def test_nothing_is_served_before_the_models_are_there(settings: Settings) -> None:
    app = create_app(settings)
    async with client_of(app) as client:
        assert (await client.get("/livez")).status_code == 200
        for path in ("/readyz", "/models", "/sample", "/models/tiny-table/drift"):
            response = await client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert (await client.get("/openapi.json")).status_code == 200
    with pytest.raises(Unavailable):
        await app.state.service.reload_all()


def test_workers_go_on_without_one_that_cannot_start_again_until_it_can(models_dir: Path, tmp_path: Path) -> None:
    path, aside = tmp_path / f"{TABLE}.pt", tmp_path / "aside"
    shutil.copy(models_dir / f"{TABLE}.pt", path)
    with server("--models", path, "--workers", 2) as (url, process):
        before = wait_for_workers(process.pid)
        path.rename(aside)
        os.kill(before[0], signal.SIGKILL)
        time.sleep(4)  # in which another tries
        assert {status(url, "/readyz") for _ in range(8)} == {200}
        aside.rename(path)
        assert before[1] in wait_for_workers(process.pid, without=before[0])


def test_workers_that_could_never_start_end_the_service() -> None:
    code = (
        "from service import workers; from service.settings import Settings\n"
        "with workers._bind('127.0.0.1', 0, True) as bound:\n"
        "    raise SystemExit(not workers.serve_with_workers(Settings(workers=2), bound, {'models': 'nothing.pt'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "nothing.pt: No such file or directory" in done.stderr
    assert "cannot serve; ending" in done.stderr


def test_a_signal_that_comes_early_is_not_lost(models_dir: Path, tmp_path: Path) -> None:
    shutil.copy(models_dir / f"{TABLE}.pt", tmp_path)
    port = free_port()
    process = start("--models", tmp_path, "--port", port)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if status(url, "/livez") == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.02)
        shutil.copy(models_dir / "tiny-mixed.pt", tmp_path)
        process.send_signal(signal.SIGHUP)
        wait_until_ready(url, process)
        eventually(lambda: httpx.get(f"{url}/models").json()["models"], lambda models: len(models) == 2, 30)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
