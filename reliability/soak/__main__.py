"""An hour of load in rounds, and what it does to the service: ``python -m reliability.soak``.

A round is a mix of requests of every kind, one in twelve of them wrong, with hang-ups, scrapes, drawn images and
reloads beside it; then images at so many times the rate that the service can answer, in an open loop; then a thousand
small clients, alone and beside a huge one. Memory, files and threads are read at the end of each round, when nothing is
asked. Keeps its figures for docs/reliability.md; exit code 1 where an answer was not the one that was due.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import uvloop

from benchmarks.arguments import at_least
from benchmarks.serving import processes
from benchmarks.serving.bodies import MEDIA_TYPES, Array, encoded, table_rows, write_body
from benchmarks.serving.client import Client, Outcome
from benchmarks.serving.lifecycle import ASKED, CONNECTIONS, OTHER, put, recalibrated, reload
from benchmarks.serving.overload import due_times
from benchmarks.serving.servers import KEY, Running, glow_with_keys, running
from benchmarks.serving.wrk import drive, drive_mix, require_wrk
from common.cli import Parser, run_command
from reliability import record
from reliability.soak.crowd import HUGE, PATIENCE_S, Huge, beside, no_pauses
from reliability.soak.mix import HangUps, write_mix
from reliability.soak.trend import Trend, relative, trend
from service.artifact import golden_rows, open_artifact

TIMES = (0.5, 1.0, 2.0, 10.0)  # of what can be answered
OVERLOAD_S = 0.5  # of a level's seconds above twice
ROWS = 16  # of an image request
PEAK_CONNECTIONS = 32
SMALL_RATES = {ASKED: 1000.0, OTHER: 60.0}  # requests a second of all small clients together
HANG_UP_S, ASIDE_S, RELOAD_S = 0.05, 2.0, 20.0  # between two hang-ups, scrapes and draws, reloads
REST_S = 3.0
PAUSE_S = 1.0  # between two loads
FILES = 16_384  # open at once
ALLOWED = {"200", "429"}  # of what is asked rightly


def images(num_rows: int) -> Array:
    """Rows of the image model."""
    rows: Array = golden_rows(open_artifact(OTHER).manifest, "statistics", num_rows).round().astype(np.uint8)
    return rows


def repeat(over: Event, every_s: float, act: Callable[[], object]) -> int:
    """Act over and over until it is over; tells how often."""
    times = 0
    while not over.wait(every_s):
        act()
        times += 1
    return times


class Soak:
    """One service under rounds of load, and what was seen."""

    def __init__(self, server: Running, folder: Path, models: Path, seconds: float) -> None:
        self._server, self._folder, self._models, self._seconds = server, folder, models, seconds
        self._requests, self._due = write_mix(folder, ASKED)
        self._hang_ups = HangUps(server.base, ASKED)
        self._calibrations = itertools.cycle([recalibrated(ASKED, folder), ASKED])
        self._began = time.monotonic()
        self._image_url = f"{server.url}?model={OTHER.stem}"
        self.statuses: Counter[str] = Counter()
        self.beside_mix: Counter[str] = Counter()
        self.num_errors = self.num_unexpected = self.num_mixes = 0
        self.mixes: list[tuple[float, float, float]] = []  # seconds since the start, requests/s, p99 ms
        self.levels: dict[float, list[tuple[float, dict[str, float]]]] = defaultdict(list)
        self.level_statuses: dict[float, Counter[str]] = defaultdict(Counter)
        self.crowds: dict[tuple[Path, Huge | None], list[float]] = defaultdict(list)
        self.crowd_statuses: Counter[str] = Counter()
        self.idle: list[tuple[float, processes.Usage]] = []

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def peak(self) -> float:
        """Requests of images that are answered in a second, in a closed loop."""
        body = write_body(self._folder, images(ROWS), "npy")
        seconds = self._seconds / 2
        return drive(self._image_url, body, MEDIA_TYPES["npy"], PEAK_CONNECTIONS, seconds, KEY).rps

    def mix(self) -> None:
        """Requests of every kind, and beside them whatever else happens to a service."""
        base, over = self._server.base, Event()
        with (
            ThreadPoolExecutor() as threads,
            httpx.Client(base_url=base, headers={"x-api-key": KEY}, timeout=60, trust_env=False) as client,
        ):

            def exchange() -> None:
                put(next(self._calibrations), self._models / ASKED.name)
                reload(base)

            acts: dict[str, tuple[float, Callable[[], object]]] = {
                "hang-ups": (HANG_UP_S, self._hang_ups.next),
                "scrapes": (ASIDE_S, lambda: client.get("/metrics").raise_for_status()),
                "draws of images": (ASIDE_S, lambda: client.get(f"/sample?model={OTHER.stem}").raise_for_status()),
                "reloads": (min(RELOAD_S, self._seconds / 2), exchange),
            }
            acting = {what: threads.submit(repeat, over, *how) for what, how in acts.items()}
            try:
                seen = drive_mix(base, self._requests, CONNECTIONS, self._seconds)
            finally:
                over.set()
            self.beside_mix.update({what: times.result() for what, times in acting.items()})
        self.statuses.update(seen.statuses)
        self.num_errors += seen.errors
        self.num_mixes += 1
        self.mixes.append((self.now(), seen.requests / self._seconds, seen.p99_ms))

    def level(self, times: float, peak: float) -> None:
        """So many times what can be answered."""
        seconds = self._seconds * (OVERLOAD_S if times > 2 else 1)
        body = encoded(images(ROWS), "npy")
        client = Client(self._image_url, body, MEDIA_TYPES["npy"], PATIENCE_S, KEY)
        with no_pauses():
            outcomes = uvloop.run(client.run(due_times(times * peak, seconds, poisson=True)))
        answered = [one for one in outcomes if one.status == "200"]
        refused = [one for one in outcomes if one.status == "429"]
        p50, p99 = np.quantile([1e3 * one.latency for one in answered], [0.5, 0.99])
        figures = {
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "answered_of_peak": sum(one.done <= seconds for one in answered) / seconds / peak,
            "refusal_p99_ms": float(np.quantile([1e3 * one.latency for one in refused], 0.99)) if refused else 0.0,
            "client_late_ms": 1e3 * float(np.quantile([one.sent - one.scheduled for one in outcomes], 0.99)),
        }
        self.levels[times].append((self.now(), figures))
        self._count(self.level_statuses[times], outcomes)

    def crowd(self, model: Path, seed: int) -> None:
        """Small clients, alone and beside a huge one."""
        rows_of = partial(table_rows, model) if model == ASKED else images
        url = f"{self._server.url}?model={model.stem}"
        for huge in HUGE:
            outcomes = beside(huge, url, rows_of, SMALL_RATES[model], self._seconds / 2, self._folder, seed)
            p99 = float(np.quantile([1e3 * one.latency for one in outcomes], 0.99))
            self.crowds[model, huge].append(p99)
            self._count(self.crowd_statuses, outcomes)

    def rest(self) -> None:
        """Ask nothing for a while, and read what the service holds."""
        time.sleep(REST_S)
        self.idle.append((self.now(), processes.usage(self._server.pid)))

    def _count(self, statuses: Counter[str], outcomes: list[Outcome]) -> None:
        seen = Counter(one.status for one in outcomes)
        statuses.update(seen)
        self.num_unexpected += sum(times for status, times in seen.items() if status not in ALLOWED)

    @property
    def off(self) -> float:
        """By how much the share of a status in the mix is off what is due, less what was under way as mixes ended."""
        total = max(1, self.statuses.total())
        kinds = set(self.statuses) | set(self._due)
        most = max(abs(self.statuses[status] / total - self._due.get(status, 0)) for status in kinds)
        return max(0.0, most - CONNECTIONS * self.num_mixes / total)

    def failed(self) -> bool:
        """Whether an answer was not the one that was due."""
        return self.num_errors > 0 or self.num_unexpected > 0 or self.off > 0

    def figures(self) -> dict[str, Any]:
        """All that is kept."""
        warm = self.idle[1 + len(self.idle) // 4 :]  # without the first quarter, in which allocators grow
        held: dict[str, tuple[str, float]] = {
            "memory_mb": ("rss", 1e6),
            "files": ("files", 1),
            "threads": ("threads", 1),
        }
        at = [seconds for seconds, _ in self.idle]
        return {
            "minutes": self.now() / 60,
            "rounds": len(self.mixes),
            "requests": self.statuses.total()
            + sum(one.total() for one in self.level_statuses.values())
            + self.crowd_statuses.total(),
            "unexpected": self.num_unexpected,
            "mix": {
                "requests": self.statuses.total(),
                "failed_connections": self.num_errors,
                "share_off": self.off,
                "beside": dict(self.beside_mix),
                "p99_ms": statistics.median(p99 for _, _, p99 in self.mixes),
                "drift_percent_an_hour": _told(relative(*_columns([(at, p99) for at, _, p99 in self.mixes]))),
            },
            "levels": [
                {
                    "times": times,
                    "statuses": dict(self.level_statuses[times]),
                    **{name: statistics.median(of[name] for _, of in seen) for name in seen[0][1]},
                    "drift_percent_an_hour": {
                        name: _told(relative(*_columns([(at, of[name]) for at, of in seen])))
                        for name in ("p50_ms", "p99_ms")
                    },
                }
                for times, seen in self.levels.items()
            ],
            "held": {
                name: {
                    "first": getattr(self.idle[0][1], field) / unit,
                    "last": getattr(self.idle[-1][1], field) / unit,
                    "an_hour": _told(
                        trend(*_columns([(seconds, getattr(usage, field) / unit) for seconds, usage in warm]))
                    ),
                    "values": [round(getattr(usage, field) / unit, 1) for _, usage in self.idle],
                }
                for name, (field, unit) in held.items()
            },
            "at_s": [round(seconds) for seconds in at],
            "crowds": [
                {
                    "model": model.stem,
                    "beside": str(huge),
                    "alone_p99_ms": statistics.median(self.crowds[model, None]),
                    "p99_ms": statistics.median(p99s),
                    "times": statistics.median(p99s) / statistics.median(self.crowds[model, None]),
                }
                for (model, huge), p99s in self.crowds.items()
                if huge is not None
            ],
        }


def _columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [seconds for seconds, _ in pairs], [value for _, value in pairs]


def _told(found: Trend | None) -> list[float] | None:
    return None if found is None else list(found)


def main(argv: list[str]) -> None:
    """Soak, print the figures, and keep them."""
    parser = Parser(prog="python -m reliability.soak", description=__doc__)
    parser.add_argument("--minutes", type=at_least(float, 0), default=60, help="at least, in whole rounds")
    parser.add_argument("--seconds", type=at_least(float, 1), default=20, help="of each load")
    parser.add_argument("--workers", type=at_least(int, 1), default=1)
    parser.add_argument("--out", type=Path, help="where figures are kept (default: reliability/figures/soak.json)")
    args = parser.parse_args(argv)
    require_wrk()
    processes.allow_files(FILES)
    with tempfile.TemporaryDirectory() as name:
        folder, models = Path(name), Path(name, "models")
        models.mkdir()
        for artifact in (ASKED, OTHER):
            put(artifact, models / artifact.name)
        server = glow_with_keys(models, folder / "keys.toml", workers=args.workers, default_model=ASKED.stem)
        with running(server, write_body(folder, table_rows(ASKED, 1), "json")) as started:
            with suppress(OSError):  # only root may
                os.nice(-5)  # that what is measured is the service, and not who measures
            soak = Soak(started, folder, models, args.seconds)
            meter, peak = processes.Meter(started.pid), soak.peak()
            soak.rest()
            for number in itertools.count():
                soak.mix()
                for times in TIMES:
                    time.sleep(PAUSE_S)
                    soak.level(times, peak)
                soak.crowd((ASKED, OTHER)[number % 2], seed=number)
                soak.rest()
                print(
                    f"round {number + 1}, {soak.now() / 60:.1f} min, {soak.idle[-1][1].rss / 1e6:.0f} MB",
                    file=sys.stderr,
                )
                if soak.now() > 60 * args.minutes:
                    break
            _, foreign_cpus = meter.read()
            peaks = {"first": peak, "last": soak.peak()}
    figures = {**soak.figures(), "workers": args.workers, "peak": peaks, "foreign_cpus": foreign_cpus}
    print(record.keep("soak", figures, args.out).read_text())
    raise SystemExit(soak.failed())


if __name__ == "__main__":
    run_command(main)
