"""Reload and stop the service under load, and count what is lost: ``python -m benchmarks.serving.lifecycle``.

wrk asks for single rows while files of the models folder are exchanged. As it takes connections that were refused for
answers that broke off, the last load, which goes on until the port is closed, is a closed loop that tells them apart.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import uvloop

from benchmarks.arguments import at_least
from benchmarks.serving.bodies import MEDIA_TYPES, table_rows, write_body
from benchmarks.serving.client import Client, Outcome
from benchmarks.serving.servers import KEY, START_S, Running, glow_with_keys, running
from benchmarks.serving.wrk import Result, drive, require_wrk
from common.cli import Parser, run_command
from service.artifact import open_artifact
from service.calibrate import calibrate
from service.settings import EMBEDDED_ARTIFACTS, Settings

ASKED, OTHER = (EMBEDDED_ARTIFACTS / f"{name}.pt" for name in ("breast-cancer", "fashion-mnist"))
CONNECTIONS = 64
BEFORE_S = 1.0  # of each load, before anything happens to it
CALIBRATION_ROWS = 2000
PATIENCE_S = 30.0  # of the closed loop, for an answer
KINDS = {"ConnectionRefusedError": "connect", "BrokenPipeError": "write", "timeout": "timeout"}  # others broke off
HEADINGS = (
    "load",
    "event s",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "max ms",
    "non-2xx",
    "connect",
    "read",
    "write",
    "timeout",
)


@dataclass(frozen=True)
class Event:
    """What happens to the files during a load, and what a reload is to answer then; None: none happens."""

    name: str
    change: Callable[[], object] = lambda: None
    status: int | None = 200


def recalibrated(artifact: Path, folder: Path) -> Path:
    """The same flow with other rows as its calibration, so of the same version and another digest."""
    rows, out = folder / "rows.npy", folder / f"{artifact.stem}-recalibrated.pt"
    np.save(rows, table_rows(artifact, CALIBRATION_ROWS))
    calibrate(artifact, rows, out)
    return out


def put(source: Path, target: Path) -> None:
    """Exchange a file by renaming a whole one."""
    beside = target.with_suffix(".part")
    shutil.copy(source, beside)
    beside.replace(target)


def reload(base: str, status: int = 200) -> None:
    """Have the service read its files anew. Raises RuntimeError where it answers another status."""
    answer = httpx.post(f"{base}/admin/reload", headers={"x-api-key": KEY}, timeout=START_S, trust_env=False)
    if answer.status_code != status:
        raise RuntimeError(f"the reload was answered with {answer.status_code}, not {status}: {answer.text}")


def under_load(server: Running, body: Path, seconds: float, event: Event) -> tuple[Result, float]:
    """What wrk sees while files change and are reloaded, and how long that took."""
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(drive, server.url, body, MEDIA_TYPES["json"], CONNECTIONS, seconds, KEY)
        time.sleep(BEFORE_S)
        began = time.monotonic()
        event.change()
        if event.status is not None:
            reload(server.base, event.status)
        took_s = time.monotonic() - began
        return load.result(), took_s


async def until_closed(client: Client, connections: int, pid: int) -> list[Outcome]:
    """Ask on so many connections, end the service after a while, and go on until connections are refused."""
    clock, outcomes = asyncio.get_running_loop().time, list[Outcome]()

    async def ask() -> None:
        status = ""
        while status != "ConnectionRefusedError":
            began = clock()
            status = await client.ask()
            outcomes.append(Outcome(began, began, clock(), status))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(ask())
        await asyncio.sleep(BEFORE_S)
        os.kill(pid, signal.SIGTERM)
    return outcomes


def result_of(outcomes: list[Outcome]) -> Result:
    """What a closed loop saw, as wrk would tell it if it could."""
    answered = [one for one in outcomes if one.status.isdecimal()]
    lost = Counter(KINDS.get(one.status, "read") for one in outcomes if not one.status.isdecimal())
    refused = sum(not one.status.startswith("2") for one in answered)
    p50, p99, longest = np.quantile([1000 * one.latency for one in answered], [0.5, 0.99, 1])
    seconds = max(one.done for one in answered) - min(one.sent for one in outcomes)
    errors = lost["connect"], lost["read"], lost["write"], lost["timeout"]
    return Result((len(answered) - refused) / seconds, p50, p99, longest, len(answered), refused, *errors)


def line(name: str, result: Result, event_s: float) -> str:
    """A row of the table."""
    figures = f"{result.rps:,.0f} | {result.p50_ms:.1f} | {result.p99_ms:.1f} | {result.max_ms:.0f}"
    errors = (result.refused, result.connect, result.read, result.write, result.timeout)
    return f"| {name} | {event_s:.1f} | {figures} | {' | '.join(map(str, errors))} |"


def life(models: Path, other_calibration: Path, workers: int, seconds: float, drain_s: float) -> int:
    """Print the table of one service's life; tells how many requests it lost."""
    asked, other, lost = models / ASKED.name, models / OTHER.name, 0
    for artifact in (ASKED, OTHER):
        put(artifact, models / artifact.name)
    events = [
        Event("nothing", status=None),
        Event("reload, nothing changed"),
        Event("reload, another calibration", partial(put, other_calibration, asked)),
        Event("reload, the other model leaves", other.unlink),
        Event("reload, it comes back", partial(put, OTHER, other)),
        Event("reload, a broken file", lambda: other.write_bytes(b"broken"), status=409),
    ]
    settings = {"workers": workers, "drain_delay_s": drain_s, "default_model": open_artifact(ASKED).manifest.name}
    body = write_body(models.parent, table_rows(ASKED, 1), "json")
    with running(glow_with_keys(models, models.parent / "keys.toml", **settings), body) as server:
        time.sleep(BEFORE_S)  # in which the other workers begin to listen
        print(f"\nworkers: {workers}\n\n| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
        for event in events:
            result, took_s = under_load(server, body, seconds, event)
            lost += result.refused + result.errors
            print(line(event.name, result, took_s), flush=True)
        client = Client(server.url, body.read_bytes(), MEDIA_TYPES["json"], PATIENCE_S, KEY)
        began = time.monotonic()
        result = result_of(uvloop.run(until_closed(client, CONNECTIONS, server.pid)))
        print(line("SIGTERM, until the port is closed", result, time.monotonic() - began - BEFORE_S), flush=True)
    return lost + result.refused + result.errors - result.connect


def main(argv: list[str]) -> None:
    """Print a table for each number of workers; exit code 1 where a request was lost."""
    parser = Parser(prog="python -m benchmarks.serving.lifecycle", description=__doc__)
    parser.add_argument("--workers", type=at_least(int, 1), nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=at_least(float, 2), default=4, help="of each load")
    default_s = Settings.model_fields["drain_delay_s"].default
    parser.add_argument("--drain", type=at_least(float, 0), default=default_s, help="GLOW_DRAIN_DELAY_S")
    args = parser.parse_args(argv)
    require_wrk()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        models.mkdir()
        other_calibration = recalibrated(ASKED, Path(folder))
        lost = sum(life(models, other_calibration, workers, args.seconds, args.drain) for workers in args.workers)
    print(f"\nlost requests: {lost}")
    raise SystemExit(lost > 0)


if __name__ == "__main__":
    run_command(main)
