"""A million requests of every kind, and what of memory, files and threads stays: ``python -m benchmarks.serving.soak``.

wrk sends the mix; beside it callers hang up at every stage of a request, images are drawn, figures are fetched, and
two calibrations of the model take turns, a reload each.
"""

from __future__ import annotations

import itertools
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import httpx
import orjson

from benchmarks.arguments import at_least
from benchmarks.serving import processes
from benchmarks.serving.bodies import encoded, table_rows, write_body
from benchmarks.serving.lifecycle import ASKED, CONNECTIONS, OTHER, put, recalibrated, reload
from benchmarks.serving.report import growth
from benchmarks.serving.servers import KEY, glow_with_keys, running
from benchmarks.serving.wrk import Result, drive_mix, require_wrk
from common.cli import Parser, run_command

SCORE = f"/log-likelihood?model={ASKED.stem}"
LARGE = 4096  # rows of those who hang up
SAMPLE_S, HANG_UP_S, ASIDE_S = 2.0, 0.05, 2.0  # between two samples, hang-ups, scrapes and draws
SETTLING_S = 5.0


@dataclass(frozen=True)
class Load:
    """What wrk saw, and meanwhile the service's milliseconds of CPU a request, and CPUs that others kept busy."""

    seen: Result
    cpu_ms: float
    foreign_cpus: float


def request(
    method: str, path: str, body: bytes = b"", media_type: str = "application/json", **headers: object
) -> bytes:
    """One whole request."""
    given = {"host": "soak", "content-type": media_type, "content-length": len(body), "x_api_key": KEY, **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "\r\n"]).encode() + body


def mix() -> list[tuple[int, str, bytes]]:
    """How often of 100 each request comes, the status that it is to get, and the request."""
    rows = table_rows(ASKED, 64)
    one, many, name = encoded(rows[:1], "json"), encoded(rows, "npy"), ASKED.stem
    size = {"binary_data_size": rows.nbytes}
    tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP64", "parameters": size}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    infer, length = f"/v2/models/{name}/infer", {"inference_header_content_length": len(head)}
    return [
        (50, "200", request("POST", SCORE, one)),
        (20, "200", request("POST", SCORE, many, "application/x-npy")),
        (15, "200", request("POST", infer, head + rows.tobytes(), "application/octet-stream", **length)),
        (5, "200", request("POST", f"/encode?model={name}", one)),
        (1, "200", request("GET", f"/sample?model={name}&n=4")),
        (1, "200", request("GET", f"/models/{name}/drift")),
        (2, "422", request("POST", SCORE, orjson.dumps({"inputs": [[1.0, 2.0]]}))),
        (2, "404", request("POST", "/log-likelihood?model=none", one)),
        (2, "401", request("POST", SCORE, one, x_api_key="another")),
        (2, "400", request("POST", SCORE, one[:-1])),
    ]


def write_mix(folder: Path) -> tuple[list[Path], dict[str, float]]:
    """Files of 100 requests, those of a kind far from each other; the share of each status that is due."""
    turns, due = [], Counter[str]()
    for number, (times, status, content) in enumerate(mix()):
        path = folder / f"{number}.http"
        path.write_bytes(content)
        turns += [(turn / times, path) for turn in range(times)]
        due[status] += times
    return [path for _, path in sorted(turns)], {status: times / due.total() for status, times in due.items()}


def hang_up(base: str, whole: bytes, stages: Iterator[tuple[int, bool]]) -> None:
    """Leave after a part of a request, or all of it, or before any of it; politely or by a reset."""
    quarters, politely = next(stages)
    address = urlsplit(base)
    with socket.create_connection((str(address.hostname), int(address.port or 80))) as connection:
        connection.sendall(whole[: len(whole) * quarters // 4])
        if not politely:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def repeat(over: Event, every_s: float, act: Callable[[], object]) -> int:
    """Act over and over until it is over; tells how often."""
    times = 0
    while not over.wait(every_s):
        act()
        times += 1
    return times


def drift(loads: Sequence[Load]) -> str:
    """A table of the first and of the last quarter of the loads, medians over them."""
    quarter = max(1, len(loads) // 4)
    lines = ["| loads | p50 ms | p99 ms | CPU ms a request | CPUs of others |", "|---" * 5 + "|"]
    for name, part in (("first quarter", loads[:quarter]), ("last quarter", loads[-quarter:])):
        figures = [(load.seen.p50_ms, load.seen.p99_ms, load.cpu_ms, load.foreign_cpus) for load in part]
        lines.append(
            f"| {name} | {' | '.join(f'{statistics.median(ones):.2f}' for ones in zip(*figures, strict=True))} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Print what became of requests and of the process; exit code 1 where an answer was not the one that was due."""
    parser = Parser(prog="python -m benchmarks.serving.soak", description=__doc__)
    parser.add_argument("--requests", type=at_least(int, 1), default=1_000_000, help="of the mix, at least")
    parser.add_argument("--seconds", type=at_least(float, 1), default=20, help="of each load, of which there are many")
    parser.add_argument("--reload", type=at_least(float, 0.1), default=30, help="seconds between two reloads")
    parser.add_argument("--workers", type=at_least(int, 1), default=1)
    args = parser.parse_args(argv)
    require_wrk()
    loads: list[Load] = []
    over, statuses = Event(), Counter[str]()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as threads:
        folder, models = Path(name), Path(name, "models")
        models.mkdir()
        for artifact in (ASKED, OTHER):
            put(artifact, models / artifact.name)
        calibrations = itertools.cycle([recalibrated(ASKED, folder), ASKED])
        requests, due = write_mix(folder)
        whole = request("POST", SCORE, encoded(table_rows(ASKED, LARGE), "npy"), "application/x-npy")
        stages = itertools.cycle(itertools.product(range(5), (True, False)))
        server = glow_with_keys(models, folder / "keys.toml", workers=args.workers, default_model=ASKED.stem)
        with (
            running(server, write_body(folder, table_rows(ASKED, 1), "json")) as started,
            httpx.Client(base_url=started.base, headers={"x-api-key": KEY}, timeout=60, trust_env=False) as client,
        ):
            base, pid = started.base, started.pid
            drive_mix(base, requests, CONNECTIONS, 2)
            time.sleep(SETTLING_S)
            idle, began, samples = [processes.usage(pid)], time.monotonic(), list[tuple[float, processes.Usage]]()

            def exchange() -> None:
                put(next(calibrations), models / ASKED.name)
                reload(base)

            beside = {
                "samples": (SAMPLE_S, lambda: samples.append((time.monotonic() - began, processes.usage(pid)))),
                "hang-ups": (HANG_UP_S, lambda: hang_up(base, whole, stages)),
                "scrapes": (ASIDE_S, lambda: client.get("/metrics").raise_for_status()),
                "draws of images": (ASIDE_S, lambda: client.get(f"/sample?model={OTHER.stem}").raise_for_status()),
                "reloads": (args.reload, exchange),
            }
            acting = {what: threads.submit(repeat, over, *how) for what, how in beside.items()}
            try:
                while statuses.total() < args.requests:
                    meter = processes.Meter(pid)
                    seen = drive_mix(base, requests, CONNECTIONS, args.seconds)
                    cpu_s, foreign_cpus = meter.read()
                    loads.append(Load(seen, 1000 * cpu_s / max(1, seen.requests), foreign_cpus))
                    statuses.update(seen.statuses)
                    print(f"{statuses.total():,} requests", file=sys.stderr, flush=True)
            finally:
                over.set()
            counts = ", ".join(f"{what} {times.result():,}" for what, times in acting.items())
            seconds = time.monotonic() - began
            time.sleep(SETTLING_S)
            idle.append(processes.usage(pid))
    total, errors = statuses.total(), sum(load.seen.errors for load in loads)
    shares = {status: statuses[status] / total for status in sorted(statuses | due)}
    print(f"{total:,} requests in {seconds:.0f} s, {total / seconds:,.0f} a second, failed connections: {errors}")
    print(f"beside them: {counts}")
    print(
        "statuses: " + ", ".join(f"{status} {share:.4f}, due {due.get(status, 0)}" for status, share in shares.items())
    )
    print(f"\n{growth(idle, samples)}\n\n{drift(loads)}")
    unanswered = (
        CONNECTIONS * len(loads) / total
    )  # at most, as each load ended: the share of a status may be off by so much
    off = max(abs(share - due.get(status, 0)) for status, share in shares.items())
    raise SystemExit(errors > 0 or not set(statuses) <= set(due) or off > unanswered)


if __name__ == "__main__":
    run_command(main)
