"""The comparison of servers: what could be wrong without showing, and one short run."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import __main__ as serving
from benchmarks.serving import lifecycle, processes
from benchmarks.serving.bodies import table_rows, write_body
from benchmarks.serving.callers import Caller, calling
from benchmarks.serving.client import Client, Outcome
from benchmarks.serving.idle import idle_connections, is_open
from benchmarks.serving.overload import due_times, report
from benchmarks.serving.report import Reading, ratios, slope, table
from benchmarks.serving.servers import KEY, glow, glow_with_keys, log_likelihoods, running
from benchmarks.serving.wrk import parse
from common.cli import run_command
from service.artifact import open_artifact

BURN = "import time\nwhile time.process_time() < 0.5: pass\n"
READING = Reading(rps=1, p50_ms=1, p99_ms=1, rows_per_s=1, cpu_s=1, rss_mb=1)


def test_the_result_of_wrk_is_the_one_line_that_the_script_prints() -> None:
    line = (
        '{"rps": 5.5, "p50_ms": 1.25, "p99_ms": 9.5, "max_ms": 30, "requests": 12, "refused": 1, '
        '"connect": 0, "read": 2, "write": 0, "timeout": 1, "statuses": {"200": 11, "422": 1}}'
    )
    result = parse(f"Running 1s test @ http://host\n  Latency  1.00ms\nRESULT {line}\n")
    assert (result.rps, result.p50_ms, result.p99_ms, result.max_ms) == (5.5, 1.25, 9.5, 30)
    assert (result.requests, result.refused, result.errors) == (12, 1, 3)
    assert result.statuses == {"200": 11, "422": 1}
    for output in ("", f"RESULT {line}\nRESULT {line}\n"):
        with pytest.raises(ValueError, match="unpack"):
            parse(output)


def test_what_ends_a_caller_ends_the_run_and_the_others_close_what_they_opened() -> None:
    closed, called = [], threading.Event()

    def going_on() -> Caller:
        try:
            while True:
                yield
        finally:
            closed.append(True)

    def failing() -> Caller:
        yield
        called.set()
        raise RuntimeError("a defect of the caller")

    with pytest.raises(RuntimeError, match="a defect of the caller"), calling(going_on(), failing()):
        assert called.wait(10)
    assert closed == [True]


def start(code: str) -> "subprocess.Popen[bytes]":
    """A process that leads its session, once it has said that it is ready."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def test_a_tree_of_processes_has_the_time_of_its_living_and_of_its_ended_ones() -> None:
    process = start(
        "import subprocess, sys, time\n"
        f"subprocess.run([sys.executable, '-c', {BURN!r}])\n"
        f"living = {BURN + 'print(flush=True); time.sleep(60)'!r}\n"
        "child = subprocess.Popen([sys.executable, '-c', living], stdout=subprocess.PIPE, start_new_session=True)\n"
        f"child.stdout.readline()\n{BURN}"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    try:
        used = processes.usage(process.pid)
        assert 1.4 < used.cpu_s < 2.5
        assert len(processes.tree(process.pid)) == 2
        assert 5e6 < used.rss < used.peak_rss * 1.05 < 2e8
    finally:
        processes.stop(process)


def test_what_neither_the_server_nor_the_benchmark_runs_is_foreign() -> None:
    server = start(f"print('ready', flush=True)\n{BURN}time.sleep(60)\n")
    try:
        ours, meter, foreigner = processes.waited_for_s(), processes.Meter(server.pid), processes.Meter(1 << 30)
        subprocess.run([sys.executable, "-c", BURN], check=True)
        while processes.usage(server.pid).cpu_s < 0.4:
            time.sleep(0.01)
        used, rest = meter.read()
        nothing, rest_and_used = foreigner.read()
    finally:
        processes.stop(server)
    assert processes.waited_for_s() - ours > 0.45
    assert 0.3 < used < 0.7
    assert nothing == 0
    assert rest_and_used > rest  # to whom the server is one of the others


def test_a_stop_ends_also_those_that_left_the_session_and_ignore_the_signal() -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = start(
        "import subprocess, sys, time\n"
        f"command = [sys.executable, '-c', {stubborn!r}]\n"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    pids = [member.pid for member in processes.tree(process.pid)]
    assert len(pids) == 2
    processes.stop(process)
    assert process.returncode == -signal.SIGTERM
    assert not set(pids) & {member.pid for member in processes.all_processes() if member.state != "Z"}


def test_ratios_are_of_medians() -> None:
    ours = [replace(READING, rps=rps) for rps in (10, 40, 1000)]
    theirs = [replace(READING, rps=rps) for rps in (1, 20, 30)]
    assert ratios(ours, theirs)["rps"] == 2  # the median of the ratios is 10, the ratio of the means 20.6
    lines = table("load", {"glow": ours, "other": [replace(one, refused=3) for one in theirs]}).splitlines()
    assert lines[2].startswith("| glow | 40 | ")
    assert lines[3].endswith("| 9 | 0 |")
    assert lines[4].startswith("| glow / other | 2 | 1 | ")


def test_the_open_loop_counts_from_when_a_request_was_due() -> None:
    """A server that answers one at a time, slower than they come: each waits longer than the one before."""

    async def run() -> list[Outcome]:
        busy = asyncio.Lock()
        answers = iter([b"200 OK"] * 15 + [b"429 Too Many Requests"] * 5)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\nbody"):
                    async with busy:
                        await asyncio.sleep(0.03)
                        writer.write(b"HTTP/1.1 " + next(answers) + b"\r\nContent-Length: 4\r\n\r\ndone")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = Client(f"http://127.0.0.1:{port}/path?a=b", b"body", "text/plain", timeout_s=30)
            outcomes = await client.run(due_times(100, 0.2, poisson=False))
            await asyncio.sleep(0.05)  # in which the server sees that its connections are closed
            return outcomes

    outcomes = asyncio.run(run())
    assert [outcome.status for outcome in outcomes] == ["200"] * 15 + ["429"] * 5
    assert [outcome.scheduled for outcome in outcomes] == pytest.approx(np.arange(20) / 100)
    assert all(outcome.latency >= 0.03 * (i + 1) - 0.01 * i - 0.001 for i, outcome in enumerate(outcomes))
    text = report(outcomes, seconds=0.2, peak=30, deadline_s=60)
    assert "statuses: 200 15, 429 5" in text
    assert sum(outcome.done <= 0.2 for outcome in outcomes) <= 6


def test_arrivals_have_the_rate_and_memory_the_slope_that_was_asked() -> None:
    assert due_times(4, 1, poisson=False) == [0, 0.25, 0.5, 0.75]
    times = due_times(100, 50, poisson=True)
    assert abs(len(times) - 5000) < 4 * 5000**0.5
    assert np.diff(times).std() == pytest.approx(0.01, rel=0.1)
    assert 0 <= times[0] < times[-1] < 50
    assert slope([(t, 50 + t / 6) for t in range(60)]) == pytest.approx(10)


def test_a_connection_that_the_server_closed_is_not_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with idle_connections(base, 2, ask=False) as connections:
            accepted = [listener.accept()[0] for _ in connections]
            assert [is_open(connection) for connection in connections] == [True, True]
            accepted[0].close()
            kept = next(i for i, one in enumerate(connections) if one.getsockname() == accepted[1].getpeername())
            assert [is_open(connection) for connection in connections] == [i == kept for i in range(2)]
            accepted[1].close()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_the_service_is_measured_for_a_second(models_dir: Path, tmp_path: Path) -> None:
    artifact = models_dir / "tiny-table.pt"
    rows = table_rows(artifact, 16)
    load, body = serving.Load(16, "json", 2), write_body(tmp_path, rows, "json")
    with running(glow(artifact, threads=1, cache_dir=tmp_path / "cache"), body) as server:
        reading = serving.measure(server, load, body, seconds=1)
        answers = log_likelihoods(server, body)
        pids = {member.pid for member in processes.tree(server.pid)}
    assert (reading.refused, reading.errors) == (0, 0)
    assert reading.rows_per_s == 16 * reading.rps > 16
    assert 0 < reading.p50_ms <= reading.p99_ms < 1000
    assert 0 < reading.cpu_s * reading.rps / 1000 < 4  # cores
    assert reading.rss_mb > 50
    assert not pids & {member.pid for member in processes.all_processes()}
    golden = [row[0] for row in open_artifact(artifact).manifest.golden.statistics]
    assert len(answers) == 16
    assert np.abs(np.subtract(answers, np.resize(golden, 16))).max() < 5  # rows like the golden ones


def test_a_closed_loop_tells_refused_connections_from_answers_that_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal closes the port, and cuts off what is being answered."""
    monkeypatch.setattr(lifecycle, "BEFORE_S", 0.1)

    async def run() -> list[Outcome]:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await reader.readuntil(b"\r\n\r\nbody"):
                    await asyncio.sleep(0.01)
                    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
                    writer.write(whole[:-1] if ended.is_set() else whole)
                    if ended.is_set():
                        break
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", b"body", "text/plain", timeout_s=30)
        asking = asyncio.create_task(lifecycle.until_closed(client, 2, os.getpid()))
        await ended.wait()
        server.close()
        return await asking

    result = lifecycle.result_of(asyncio.run(run()))
    assert (result.refused, result.connect, result.read, result.write, result.timeout) == (0, 2, 2, 0, 0)
    assert result.requests > 2
    assert result.p50_ms >= 10


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_reload_and_the_end_are_measured_under_load(models_dir: Path, tmp_path: Path) -> None:
    artifact, models = models_dir / "tiny-table.pt", tmp_path / "models"
    models.mkdir()
    lifecycle.put(artifact, models / artifact.name)
    body = write_body(tmp_path, table_rows(artifact, 1), "json")
    settings = {"threads": 1, "plan": "optimized", "cache_dir": tmp_path / "cache", "drain_delay_s": 0.2}
    with running(glow_with_keys(models, tmp_path / "keys.toml", **settings), body) as server:
        broken = lifecycle.Event("", lambda: (models / artifact.name).write_bytes(b"broken"), status=409)
        served, took_s = lifecycle.under_load(server, body, 2, broken)
        client = Client(server.url, body.read_bytes(), "application/json", timeout_s=30, key=KEY)
        ended = lifecycle.result_of(asyncio.run(lifecycle.until_closed(client, 4, server.pid)))
    assert (served.refused, served.errors) == (0, 0)
    assert (ended.refused, ended.errors, ended.connect) == (0, 4, 4)  # each stops at its first refusal
    assert min(served.requests, ended.requests) > 10
    assert 0 < took_s < 2


@pytest.mark.parametrize(
    ("arguments", "path", "message"),
    [
        (["--only=triton"], None, "must be some of glow,fastapi,litserve,bentoml, got 'triton'"),
        (["--only=fastapi", "--loads=npy-4096-c4"], None, "only glow is measured under these"),
        (["--rounds=0"], None, "must be a whole number of at least 1, got 0"),
        (["--rounds=x"], None, "must be a whole number of at least 1, got x"),
        ([], "", "wrk is not installed: apt-get install wrk"),
    ],
)
def test_wrong_use_ends_with_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    path: str | None,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", *arguments])
    if path is not None:
        monkeypatch.setenv("PATH", path)
    with pytest.raises(SystemExit) as raised:
        run_command(serving.main)
    assert raised.value.code == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1
