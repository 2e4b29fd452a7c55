"""The real server: started as a user starts it, asked over a socket, stopped by a signal."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.serving.servers import free_port as free_port

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "service")


def start(
    *arguments: object, command: Sequence[str] = COMMAND, log: Path | None = None, **environment: str
) -> "subprocess.Popen[str]":
    """A server that was started, by that command; what it tells, and what it wrote to standard output, goes to a log.

    Without a log it goes to pipes, which hold only so much.
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "GLOW_THREADS": "1", "OMP_NUM_THREADS": "1", **environment}
    with nullcontext(subprocess.PIPE) if log is None else log.open("ab") as told:
        return subprocess.Popen(
            [*command, *map(str, arguments)],
            env=variables,
            text=True,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )


@contextmanager
def server(
    *arguments: object,
    port: int | None = None,
    command: Sequence[str] = COMMAND,
    log: Path | None = None,
    **environment: str,
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A server that is ready, and its address."""
    port = port or free_port()
    process = start(*arguments, "--port", port, command=command, log=log, **environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url, process
    finally:
        with suppress(ProcessLookupError):  # no worker outlives its test
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def wait_until_ready(url: str, process: "subprocess.Popen[str]") -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError(process.communicate(timeout=60))


def test_a_started_server_answers_and_a_signal_lets_it_finish_what_it_took(models_dir: Path) -> None:
    with server("--models", models_dir) as (url, process):
        names = [model["name"] for model in httpx.get(f"{url}/models").json()["models"]]
        assert names == ["tiny-images", "tiny-mixed", "tiny-table"]
        with (
            httpx.Client(base_url=url, timeout=60) as client,
            client.stream("GET", "/sample?n=2000&seed=1") as response,
        ):
            process.send_signal(signal.SIGTERM)
            assert response.status_code == 200
            response.read()
            assert len(response.json()["samples"]) == 2000
        assert process.wait(30) == 0


def counted(url: str) -> float:
    """Requests to /encode that were answered, by all workers."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("glow_requests_total"))


def test_workers_share_port_and_figures_and_are_started_again(models_dir: Path) -> None:
    with server("--models", models_dir / "tiny-table.pt", "--workers", "2") as (url, process):
        body = {"inputs": [[0.5, 1010.0, 3.0]]}
        before = wait_for_workers(process.pid)
        for answered in (20, 40):
            for _ in range(20):  # a connection each, so that both workers get some
                assert httpx.post(f"{url}/encode", json=body).status_code == 200
            wait_for_figures(url, answered)
            if answered == 20:
                os.kill(before[0], signal.SIGKILL)
                after = wait_for_workers(process.pid, without=before[0])
                assert before[1] in after
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/livez")


def wait_for_figures(url: str, answered: int) -> None:
    """Workers write what they have counted a few times a second."""
    for _ in range(100):
        if counted(url) == answered:
            return
        time.sleep(0.1)
    raise AssertionError(f"{counted(url)} requests counted, not {answered}")


def wait_for_workers(supervisor: int, without: int = 0) -> list[int]:
    """Process ids of two workers."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    for _ in range(300):
        found = [int(pid) for pid in children.read_text().split()]
        workers = [pid for pid in found if pid != without and b"spawn_main" in command(pid)]
        if len(workers) == 2:
            return workers
        time.sleep(0.1)
    raise AssertionError(f"{workers} of 2 workers")


def wait_until_all_listen(url: str, num: int) -> None:
    """Until so many processes listen on a port, each on a socket of its own."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    for _ in range(300):
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if sum(fields[1].endswith(port) and fields[3] == "0A" for fields in sockets) == num:
            return
        time.sleep(0.1)
    raise AssertionError(f"no {num} processes listen on {url}")


def test_workers_end_with_their_supervisor_however_it_ends(models_dir: Path) -> None:
    with server("--models", models_dir / "tiny-table.pt", "--workers", "2") as (url, process):
        process.kill()
        process.communicate(timeout=30)  # until nobody holds its pipes any more
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/livez")


def command(pid: int) -> bytes:
    """Command line of a process, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_the_head_and_the_body_of_an_answer_come_together(models_dir: Path) -> None:
    with server("--models", models_dir / "tiny-table.pt") as (url, _):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 3)  # and pipelined ones in order
            answers = b""
            while answers.count(b'{"status":"ok"}') < 3:
                part = connection.recv(2**16)
                assert part.endswith(b'{"status":"ok"}')
                answers += part
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            last = connection.recv(2**16)
            assert last.endswith(b'{"status":"ok"}')
            assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--models", "nothing.pt"], {}, "nothing.pt: No such file or directory"),
        (["--models", "{empty}"], {}, "holds no artifact"),
        (["--models", "{damaged}"], {}, "does not end in its checksum: truncated, or not an artifact"),
        ([], {"GLOW_PORT": "http"}, "GLOW_PORT: Input should be a valid integer"),
        (["--port", "http"], {}, "argument --port: invalid int value: 'http'"),
        (["--host", "0.0.0.0"], {}, "'0.0.0.0' is a public address: set GLOW_API_KEYS_FILE"),
        (["--models", "{good}"], {"GLOW_DEFAULT_MODEL": "other"}, "GLOW_DEFAULT_MODEL is 'other', but only"),
        (["--models", "{good}", "{copy}"], {}, "two artifacts are tiny-table@"),
    ],
)
def test_a_start_that_cannot_work_ends_with_one_line_and_code_2(
    models_dir: Path, tmp_path: Path, arguments: list[str], environment: dict[str, Any], message: str
) -> None:
    good = models_dir / "tiny-table.pt"
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(good.read_bytes()[:-100])
    copy = Path(shutil.copy(good, tmp_path / "copy.pt"))
    places = {"good": good, "copy": copy, "damaged": damaged, "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    process = start(*(argument.format(**places) for argument in arguments), **{"GLOW_PORT": "0", **environment})
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.count("\n") == 1, stderr
    assert message in stderr


def test_a_port_that_is_taken_ends_the_start_however_many_workers_want_it(models_dir: Path) -> None:
    for first, second in ((1, 1), (2, 2)):
        with server("--models", models_dir / "tiny-table.pt", "--workers", first) as (url, _):
            port = url.rpartition(":")[2]
            late = start("--models", models_dir / "tiny-table.pt", "--workers", second, "--port", port)
            _, stderr = late.communicate(timeout=60)
            assert late.returncode == 2
            assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in stderr


def answered(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def test_heads_are_bounded_in_time_and_size_and_what_is_no_http_gets_our_error(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOW_KEEP_ALIVE_S", "1")
    with server("--models", models_dir / "tiny-table.pt") as (url, _):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        for begun in (b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: x\r\nx: "):
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(begun)
                assert answered(connection) == b""  # closed, as a connection that stays idle is
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ")
            time.sleep(0.1)
            connection.sendall(b"a" * (2**16 + 1))
            assert b"431 Request Header Fields Too Large" in answered(connection)
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            head, _, body = answered(connection).partition(b"\r\n\r\n")
            assert b"400 Bad Request" in head
            assert json.loads(body).keys() == {"error", "code", "request_id"}
