"""What idle connections cost the others: ``python -m benchmarks.serving.idle``.

Thousands of connections ask once and then stay silent while wrk measures single rows at 64 connections, in turns with
and without them. A server may close what is silent for long: how many were open from start to end is told.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.arguments import at_least
from benchmarks.serving import processes
from benchmarks.serving.bodies import MEDIA_TYPES, table_rows, write_body
from benchmarks.serving.servers import glow, running
from benchmarks.serving.wrk import Result, drive, require_wrk
from common.cli import Parser, run_command
from service.settings import EMBEDDED_ARTIFACTS

ARTIFACT = EMBEDDED_ARTIFACTS / "breast-cancer.pt"
SPARE_FILES = 500  # that a process has open besides its connections
GROUP = 500  # connections that are opened before the first of them is answered
CONNECTIONS = 64


@contextmanager
def idle_connections(base: str, num: int, ask: bool) -> Iterator[list[socket.socket]]:
    """Open so many connections to a server, of which each has had an answer from /livez if it was to ask."""
    address = urlsplit(base)
    request = f"GET /livez HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    opened: list[socket.socket] = []
    try:
        while len(opened) < num:
            group = range(min(GROUP, num - len(opened)))
            opened += [socket.create_connection((address.hostname, address.port), timeout=30) for _ in group]
            if ask:
                for connection in opened[-len(group) :]:
                    connection.sendall(request)
                for connection in opened[-len(group) :]:
                    connection.recv(65536)
        yield opened
    finally:
        for connection in opened:
            connection.close()


def is_open(connection: socket.socket) -> bool:
    """Whether the server has left a connection open."""
    connection.setblocking(False)
    try:
        return connection.recv(65536) != b""  # what is left of an answer is none of ours
    except BlockingIOError:
        return True
    except OSError:
        return False


def main(argv: list[str]) -> None:
    """Print the latencies of both, and the ratio of their medians."""
    parser = Parser(prog="python -m benchmarks.serving.idle", description=__doc__)
    parser.add_argument("--idle", type=at_least(int, 1), default=10_000, help="connections")
    parser.add_argument("--rounds", type=at_least(int, 1), default=3)
    parser.add_argument("--seconds", type=at_least(float, 1), default=6, help="of each load")
    parser.add_argument("--silent", action="store_true", help="idle connections never ask anything")
    args = parser.parse_args(argv)
    require_wrk()
    processes.allow_files(args.idle + SPARE_FILES)
    media_type = MEDIA_TYPES["json"]
    alone: list[Result] = []
    beside: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        body = write_body(Path(folder), table_rows(ARTIFACT, 1), "json")
        with running(glow(ARTIFACT), body) as started:

            def measured() -> Result:
                time.sleep(1)  # in which connections that were closed are gone
                return drive(started.url, body, media_type, CONNECTIONS, args.seconds)

            measured()
            for number in range(args.rounds):
                alone.append(measured())
                before = processes.usage(started.pid).rss
                with idle_connections(started.base, args.idle, not args.silent) as connections:
                    at_first = sum(map(is_open, connections))
                    beside.append(measured())
                    in_the_end = sum(map(is_open, connections))
                    grown = processes.usage(started.pid).rss - before
                print(
                    f"round {number + 1}: of {args.idle:,} idle connections {at_first:,} open before the load, "
                    f"{in_the_end:,} after it; RSS {grown / 1e6:+.0f} MB",
                    flush=True,
                )
    print("| connections | requests/s | p50 ms | p99 ms | refused | failed |\n|---|---|---|---|---|---|")
    for what, results in ((f"{CONNECTIONS}", alone), (f"{CONNECTIONS} beside {args.idle:,} idle", beside)):
        rps, p50, p99 = (
            statistics.median(getattr(one, name) for one in results) for name in ("rps", "p50_ms", "p99_ms")
        )
        refused, errors = sum(one.refused for one in results), sum(one.errors for one in results)
        print(f"| {what} | {rps:,.0f} | {p50:.2f} | {p99:.2f} | {refused} | {errors} |")
    ratio = statistics.median(one.p99_ms for one in beside) / statistics.median(one.p99_ms for one in alone)
    print(f"p99 with / without: {ratio:.2f}")


if __name__ == "__main__":
    run_command(main)
