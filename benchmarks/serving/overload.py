"""Offer the image model twice what it can answer: ``python -m benchmarks.serving.overload``.

First as many requests as a closed loop of wrk gets answered, which is the peak; then twice as many a second in an open
loop, every latency counted from when its request was due.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import uvloop

from benchmarks.arguments import at_least
from benchmarks.serving import processes
from benchmarks.serving.bodies import MEDIA_TYPES, write_body
from benchmarks.serving.client import Client, Outcome
from benchmarks.serving.report import Sample, slope
from benchmarks.serving.servers import glow, running
from benchmarks.serving.wrk import drive, require_wrk
from common.cli import Parser, run_command
from service.artifact import golden_rows, open_artifact
from service.settings import EMBEDDED_ARTIFACTS, Settings

ARTIFACT = EMBEDDED_ARTIFACTS / "fashion-mnist.pt"
ROWS = 16
FILES = 4096  # open at once: a connection for each request that waits
PATIENCE_S = 15.0  # of the client, beyond the server's deadline


def due_times(rate: float, seconds: float, poisson: bool) -> list[float]:
    """When requests leave: evenly, or as independent callers send them."""
    num = round(rate * seconds)
    if not poisson:
        return [i / rate for i in range(num)]
    times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, 2 * num + 10))
    return [float(value) for value in times[times < seconds]]


def watch(pid: int, over: Event) -> list[Sample]:
    """Memory of a tree of processes in MB, twice a second until it is over."""
    start, samples = time.monotonic(), []
    while True:
        samples.append((time.monotonic() - start, processes.usage(pid).rss / 1e6))
        if over.wait(0.5):
            return samples


def report(outcomes: Sequence[Outcome], seconds: float, peak: float, deadline_s: float) -> str:
    """What became of the requests."""
    accepted = [outcome for outcome in outcomes if outcome.status == "200"]
    answered = sum(outcome.done <= seconds for outcome in accepted) / seconds
    statuses = Counter(outcome.status for outcome in outcomes)
    lines = [f"statuses: {', '.join(f'{status} {count:,}' for status, count in sorted(statuses.items()))}"]
    lines.append(f"accepted: {answered:,.1f} requests/s while offered, {answered / peak:.2f} of the peak")
    for what, chosen in (("accepted", accepted), ("others", [one for one in outcomes if one.status != "200"])):
        if chosen:
            p50, p99 = np.quantile([outcome.latency for outcome in chosen], [0.5, 0.99])
            lines.append(f"{what}: p50 {p50:.3f} s, p99 {p99:.3f} s; deadline {deadline_s:g} s")
    late = np.quantile([outcome.sent - outcome.scheduled for outcome in outcomes], 0.99)
    lines.append(f"the client itself was late by {1e3 * late:.1f} ms (p99)")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Print the peak, and what twice as much does."""
    parser = Parser(prog="python -m benchmarks.serving.overload", description=__doc__)
    parser.add_argument("--seconds", type=at_least(float, 1), default=60, help="of the overload")
    parser.add_argument("--peak-seconds", type=at_least(float, 1), default=10, help="of the closed loop")
    parser.add_argument("--connections", type=at_least(int, 1), default=32, help="of the closed loop")
    parser.add_argument("--times", type=at_least(float, 0.1), default=2, help="the peak that are offered")
    parser.add_argument("--dtype", choices=["uint8", "float32"], default="uint8", help="of the npy bodies")
    parser.add_argument("--arrivals", choices=["poisson", "constant"], default="poisson")
    parser.add_argument("--deadline", type=at_least(float, 0.1), help="GLOW_DEADLINE_S (default: the service's own)")
    args = parser.parse_args(argv)
    require_wrk()
    processes.allow_files(FILES)
    deadline_s = args.deadline or Settings.model_fields["deadline_s"].default
    server = glow(ARTIFACT, deadline_s=deadline_s)
    rows = golden_rows(open_artifact(ARTIFACT).manifest, "statistics", ROWS).round().astype(args.dtype)
    media_type = MEDIA_TYPES["npy"]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        body = write_body(Path(folder), rows, "npy")
        with running(server, body, media_type) as started:
            drive(started.url, body, media_type, args.connections, 2)
            time.sleep(1)
            peak = drive(started.url, body, media_type, args.connections, args.peak_seconds).rps
            print(f"peak: {peak:,.1f} requests/s of {ROWS} images, {peak * ROWS:,.0f} images/s", flush=True)
            time.sleep(2)
            client = Client(started.url, body.read_bytes(), media_type, deadline_s + PATIENCE_S)
            due, over = due_times(args.times * peak, args.seconds, args.arrivals == "poisson"), Event()
            meter = processes.Meter(started.pid)
            sampled = threads.submit(watch, started.pid, over)
            try:
                outcomes = uvloop.run(client.run(due))
            finally:
                over.set()
            samples = sampled.result()
            _, foreign_cpus = meter.read()
    print(f"offered: {len(due) / args.seconds:,.1f} requests/s for {args.seconds:g} s, {args.arrivals} arrivals")
    print(report(outcomes, args.seconds, peak, deadline_s))
    offered = [sample for sample in samples if sample[0] <= args.seconds]
    half = len(offered) // 2
    start, middle, end = (offered[i][1] for i in (0, half, -1))
    print(
        f"RSS: {start:.0f} MB at the start, {middle:.0f} in the middle, {end:.0f} at the end, "
        f"{slope(offered[half:]):+.1f} MB a minute over the second half; {samples[-1][1]:.0f} when all was answered"
    )
    print(f"CPUs kept busy by other processes: {foreign_cpus:.2f}")


if __name__ == "__main__":
    run_command(main)
