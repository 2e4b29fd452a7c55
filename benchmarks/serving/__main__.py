"""Measure the service beside other servers of the same artifact: ``python -m benchmarks.serving``.

Every server runs alone, one process with one model each, and is started anew in each round; wrk drives it. What is
printed are medians over the rounds, and ratios of medians. Peers install themselves on first use, in ``.cache/peers``.
Before the first round every server must give the same log-likelihoods.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.arguments import at_least, some_of
from benchmarks.serving import processes
from benchmarks.serving.bodies import MEDIA_TYPES, Media, table_rows, write_body
from benchmarks.serving.forward import SIZES, forward_seconds, log_prob_of_script
from benchmarks.serving.report import OURS, Reading, table
from benchmarks.serving.servers import CACHE, REQUIREMENTS, Running, Server, glow, log_likelihoods, peer, running
from benchmarks.serving.wrk import drive, require_wrk
from common.cli import Parser, run_command
from common.errors import UsageError
from common.machine import processor
from service.settings import EMBEDDED_ARTIFACTS

ARTIFACT = EMBEDDED_ARTIFACTS / "breast-cancer.pt"
NAMES = [OURS, *REQUIREMENTS]
WARM_UP_S = 1.0
SETTLING_S = 0.5  # in which what the warm-up left unanswered is done
TOLERANCE = 1e-3  # nats, between the servers' log-likelihoods


@dataclass(frozen=True)
class Load:
    """Requests of so many rows, on so many connections."""

    rows: int
    media: Media
    connections: int

    @property
    def name(self) -> str:
        return f"{self.media}-{self.rows}-c{self.connections}"

    @property
    def ours_only(self) -> bool:
        return self.rows > 64  # the peers read no npy; such bodies are measured against the model itself


LOADS = {
    load.name: load
    for load in (
        Load(1, "json", 1),
        Load(1, "json", 16),
        Load(1, "json", 64),
        Load(64, "json", 16),
        Load(4096, "npy", 4),
        Load(4096, "json", 4),
    )
}
Readings = dict[str, dict[str, list[Reading]]]  # by load and server


def measure(server: Running, load: Load, body: Path, seconds: float) -> Reading:
    """One server under one load, after a short warm-up."""
    run = partial(drive, server.url, body, MEDIA_TYPES[load.media], load.connections)
    run(WARM_UP_S)
    time.sleep(SETTLING_S)
    meter = processes.Meter(server.pid)
    result = run(seconds)
    cpu_s, foreign_cpus = meter.read()
    return Reading(
        rps=result.rps,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        rows_per_s=result.rps * load.rows,
        cpu_s=1000 * cpu_s / max(1, result.requests),
        rss_mb=processes.usage(server.pid).rss / 1e6,
        foreign_cpus=foreign_cpus,
        refused=result.refused,
        errors=result.errors,
    )


def require_agreement(servers: list[Server], bodies: dict[tuple[int, Media], Path], expected: list[float]) -> None:
    """Raise RuntimeError unless every server gives the log-likelihoods that the artifact itself gives."""
    for server in servers:
        with running(server, bodies[1, "json"]) as started:
            worst = np.abs(np.subtract(log_likelihoods(started, bodies[64, "json"]), expected)).max()
        note(f"{server.name}: log-likelihoods of 64 rows within {worst:.1g} nats")
        if not worst <= TOLERANCE:
            raise RuntimeError(f"{server.name} answers something else: {worst:.3g} nats away")


def note(text: str) -> None:
    """Tell how far the run is."""
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    """Print a table for each load, and what HTTP adds to the model's own time."""
    parser = Parser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=at_least(int, 1), default=3, help="in each, every server has its turn")
    parser.add_argument("--seconds", type=at_least(float, 1), default=6, help="of each load in each round")
    parser.add_argument("--only", type=some_of(NAMES), default=NAMES, help=f"servers: some of {','.join(NAMES)}")
    parser.add_argument("--loads", type=some_of(LOADS), default=list(LOADS), help=f"some of {','.join(LOADS)}")
    parser.add_argument("--threads", type=at_least(int, 0), help="GLOW_THREADS of the service (default: its own)")
    args = parser.parse_args(argv)
    loads = [LOADS[name] for name in args.loads if OURS in args.only or not LOADS[name].ours_only]
    if not loads:
        raise UsageError(f"--loads {','.join(args.loads)}: only {OURS} is measured under these")
    require_wrk()
    settings = {} if args.threads is None else {"threads": args.threads}
    servers = [glow(ARTIFACT, **settings) if name == OURS else peer(name, ARTIFACT) for name in args.only]
    rows = table_rows(ARTIFACT, max(SIZES))
    expected = log_prob_of_script(ARTIFACT, rows[:64])
    readings: Readings = {load.name: {} for load in loads}
    forward: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        wanted: set[tuple[int, Media]] = {(1, "json"), (64, "json"), *((load.rows, load.media) for load in loads)}
        bodies = {(size, media): write_body(Path(folder), rows[:size], media) for size, media in wanted}
        require_agreement(servers, bodies, expected)
        for number in range(args.rounds):
            note(f"round {number + 1} of {args.rounds}")
            for what, seconds in forward_seconds(ARTIFACT, rows, args.threads or 0, CACHE).items():
                forward.setdefault(what, []).append(seconds)
            first = number % len(servers)
            for server in servers[first:] + servers[:first]:
                with running(server, bodies[1, "json"]) as started:
                    for load in loads:
                        if server.name == OURS or not load.ours_only:
                            reading = measure(started, load, bodies[load.rows, load.media], args.seconds)
                            readings[load.name].setdefault(server.name, []).append(reading)
                    peak = processes.usage(started.pid).peak_rss / 1e6
                    peaks[server.name] = max(peak, peaks.get(server.name, 0))
    print("\n\n".join(table(load, by_server) for load, by_server in readings.items()))
    print("\npeak RSS, MB: " + ", ".join(f"{name} {peak:,.0f}" for name, peak in peaks.items()))
    print_beside_the_model(readings, {what: statistics.median(seconds) for what, seconds in forward.items()})
    foreign = [one.foreign_cpus for by_server in readings.values() for seen in by_server.values() for one in seen]
    print(f"CPUs kept busy by other processes: median {statistics.median(foreign):.2f}, most {max(foreign):.2f}")
    print(f"{processor()}, torch {torch.__version__}, rounds: {args.rounds} of {args.seconds:g} s a load")


def print_beside_the_model(readings: Readings, forward: dict[str, float]) -> None:
    """What a forward pass takes without HTTP, and how much of that our answers keep."""
    print("without HTTP, ms: " + ", ".join(f"{what} {1e3 * seconds:.3f}" for what, seconds in forward.items()))
    print(f"in process, rows/s of 4,096: {4096 / forward['engine, 4096']:,.0f}")
    for name, by_server in readings.items():
        if OURS not in by_server:
            continue
        load, seen = LOADS[name], by_server[OURS]
        if load.rows == 4096:
            share = statistics.median(reading.rows_per_s for reading in seen) * forward["engine, 4096"] / 4096
            print(f"{name}, rows/s over HTTP / in process: {share:.2f}")
        if load.rows == load.connections == 1:
            p50_ms = statistics.median(reading.p50_ms for reading in seen)
            print(f"{name}, p50 minus forward pass: {p50_ms - 1e3 * forward['engine, 1']:.3f} ms")


if __name__ == "__main__":
    run_command(main)
