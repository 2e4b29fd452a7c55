"""Run what the capacity model predicts: ``python -m benchmarks.capacity.validate``.

The service as one process, as two workers and on two local Ray nodes with a replica each, under closed loops of wrk (1,
8 and 64 connections) and Poisson arrivals (30, 60 and 80 % of what the model predicts to be the most), client and
service on the same cores. None of these loads is among those that ``benchmarks.capacity.measure`` measured costs by.
CPUs that other processes of the machine keep busy meanwhile are taken from the model's cores. Takes about 4 minutes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import uvloop
from pydantic import BaseModel, ConfigDict

from benchmarks.arguments import at_least, some_of
from benchmarks.capacity.inputs import MEASURED, Inputs, read_inputs
from benchmarks.capacity.measure import MODELS, rows_of, url_of, wait_until_idle
from benchmarks.capacity.ray_cluster import ray_serve
from benchmarks.capacity.system import Deployment, Load, Prediction, predict
from benchmarks.serving import processes
from benchmarks.serving.bodies import MEDIA_TYPES, Media, write_body
from benchmarks.serving.client import Client
from benchmarks.serving.overload import due_times
from benchmarks.serving.servers import Running, Server, glow, running
from benchmarks.serving.wrk import drive, require_wrk
from common.cli import Parser, note, run_command
from common.files import write_whole
from service.settings import EMBEDDED_ARTIFACTS

VALIDATED = Path(__file__).with_name("validated.json")
TABLE, IMAGES = MODELS
TOLERANCE = 0.2
WARM_UP_S, SETTLING_S = 1.0, 0.3
SIMULATED_S = 3.0
LEAST_CORES = 0.3  # that the model keeps, however busy others are


class Check(BaseModel):
    """One load: what was measured, medians over the rounds, and what was predicted. Latencies are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    setup: str
    load: str
    throughput: float
    p50: float
    p99: float
    predicted_throughput: float
    predicted_p50: float
    predicted_p99: float
    bound_by: str
    foreign_cpus: float

    @property
    def holds(self) -> bool:
        """Whether the throughput is within the tolerance."""
        return abs(self.predicted_throughput / self.throughput - 1) <= TOLERANCE


@dataclass(frozen=True)
class Wanted:
    """A load of a setup: so many connections, or a share of the predicted most as Poisson arrivals."""

    model: str
    media: Media
    rows: int
    connections: int = 0
    share: float = 0.0

    @property
    def name(self) -> str:
        what = f"{self.model}, {self.rows} {self.media}"
        return f"{what}, {self.connections} connections" if self.connections else f"{what}, {self.share:.0%} Poisson"


@dataclass(frozen=True)
class Setup:
    """A way to run the service, and the loads that it is checked by."""

    deployment: Deployment
    loads: tuple[Wanted, ...]


CLOSED, SHARES = (1, 8, 64), (0.3, 0.6, 0.8)
ONE_ROW = tuple(Wanted(TABLE, "json", 1, number) for number in CLOSED)
ONE_ROW_OPEN = tuple(Wanted(TABLE, "json", 1, share=share) for share in SHARES)
ROWS_32 = tuple(Wanted(TABLE, "npy", 32, number) for number in CLOSED)
ROWS_32_OPEN = tuple(Wanted(TABLE, "npy", 32, share=share) for share in SHARES)
PICTURES = (
    Wanted(IMAGES, "json", 1, 8),
    Wanted(IMAGES, "npy", 32, 8),
    Wanted(IMAGES, "json", 1, share=0.6),
)
HERE = Deployment(shared=True, balance="connection")
RAY = Deployment(replicas=2, shared=True, balance="two-choices", proxies=1)
SETUPS = {
    "one process": Setup(HERE, ONE_ROW + ONE_ROW_OPEN + ROWS_32 + ROWS_32_OPEN + PICTURES),
    "two workers": Setup(replace(HERE, replicas=2), (*ONE_ROW[1:], ONE_ROW_OPEN[1], ROWS_32[1])),
    "2 Ray nodes, Python proxy": Setup(replace(RAY, ingress="proxy"), (*ONE_ROW, *ONE_ROW_OPEN[:2], ROWS_32[1])),
    "2 Ray nodes, HAProxy": Setup(
        replace(RAY, ingress="haproxy", balance="least"), (*ONE_ROW, *ONE_ROW_OPEN[:2], ROWS_32[1])
    ),
}


def server_of(name: str) -> Server:
    """How a setup is started."""
    if "Ray" in name:
        return ray_serve(2, "HAProxy" in name, EMBEDDED_ARTIFACTS, default_model=TABLE)
    return glow(EMBEDDED_ARTIFACTS, threads=1, workers=SETUPS[name].deployment.replicas, default_model=TABLE)


@dataclass(frozen=True)
class Seen:
    """What a load came to."""

    throughput: float
    p50: float
    p99: float
    foreign_cpus: float


def run(server: Running, wanted: Wanted, body: Path, seconds: float, rate: float) -> Seen:
    """One load against a server that runs."""
    url, media_type = url_of(server, wanted.model), MEDIA_TYPES[wanted.media]
    drive(url, body, media_type, wanted.connections or 8, WARM_UP_S)
    time.sleep(SETTLING_S)
    meter = processes.Meter(server.pid)
    if wanted.connections:
        result = drive(url, body, media_type, wanted.connections, seconds)
        _, foreign = meter.read()
        return Seen(result.rps, result.p50_ms / 1e3, result.p99_ms / 1e3, foreign)
    client = Client(url, body.read_bytes(), media_type, timeout_s=30)
    outcomes = uvloop.run(client.run(due_times(rate, seconds, poisson=True)))
    _, foreign = meter.read()
    answered = [outcome for outcome in outcomes if outcome.status == "200"]
    p50, p99 = np.quantile([outcome.latency for outcome in answered], [0.5, 0.99]).tolist()
    return Seen(len(answered) / max(outcome.done for outcome in outcomes), p50, p99, foreign)


def expect(inputs: Inputs, what: Deployment, wanted: Wanted, rate: float, seconds: float, foreign: float) -> Prediction:
    """What the model says of a load, where others keep so many CPUs busy."""
    client = "wrk" if wanted.connections else "asyncio"
    own = replace(what, client=client, cores=max(LEAST_CORES, inputs.cores - foreign))
    load = Load(wanted.model, wanted.media, wanted.rows, wanted.connections, rate)
    return predict(inputs, own, load, seconds, to_the_end=rate > 0)


def most(inputs: Inputs, what: Deployment, wanted: Wanted) -> float:
    """Requests a second that the model says are the most, asked by the open loop's client."""
    own = replace(what, client="asyncio", cores=float(inputs.cores))
    return predict(inputs, own, Load(wanted.model, wanted.media, wanted.rows, connections=64), SIMULATED_S).throughput


def check(inputs: Inputs, name: str, seconds: float, rounds: int) -> list[Check]:
    """Run all loads of a setup in turns, and predict them."""
    setup = SETUPS[name]
    rates = {wanted: wanted.share * most(inputs, setup.deployment, wanted) for wanted in setup.loads if wanted.share}
    seen: dict[Wanted, list[Seen]] = {wanted: [] for wanted in setup.loads}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bodies: dict[Wanted, Path] = {}
        for wanted in setup.loads:
            where = Path(folder, wanted.model)
            where.mkdir(exist_ok=True)
            bodies[wanted] = write_body(where, rows_of(wanted.model, wanted.rows), wanted.media)
        server = stack.enter_context(running(server_of(name), bodies[setup.loads[0]]))
        wait_until_idle(server)
        for _ in range(rounds):
            for wanted in setup.loads:
                note(f"{name}: {wanted.name}")
                seen[wanted].append(run(server, wanted, bodies[wanted], seconds, rates.get(wanted, 0.0)))
    return [compare(inputs, name, wanted, rates.get(wanted, 0.0), seconds, found) for wanted, found in seen.items()]


def compare(inputs: Inputs, name: str, wanted: Wanted, rate: float, seconds: float, seen: Sequence[Seen]) -> Check:
    """Medians of what was seen, beside the prediction."""
    median = {field: statistics.median(getattr(one, field) for one in seen) for field in ("throughput", "p50", "p99")}
    foreign = statistics.median(one.foreign_cpus for one in seen)
    expected = expect(inputs, SETUPS[name].deployment, wanted, rate, seconds, foreign)
    return Check(
        setup=name,
        load=wanted.name,
        **median,
        predicted_throughput=expected.throughput,
        predicted_p50=expected.p50,
        predicted_p99=expected.p99,
        bound_by=expected.bound_by,
        foreign_cpus=foreign,
    )


class Checks(BaseModel):
    """All of a run."""

    machine: str
    date: str
    checks: list[Check]


def table(checks: Sequence[Check]) -> str:
    """One line a load: measured, predicted, and their ratio."""
    lines = [
        "| setup | load | requests/s | predicted | ratio | p50 ms | predicted | ratio | p99 ms | predicted | busiest |",
        "|---" * 11 + "|",
    ]
    for one in checks:
        ratio = f"{one.predicted_throughput / one.throughput:.2f}"
        figures = [
            f"{one.throughput:,.0f}",
            f"{one.predicted_throughput:,.0f}",
            ratio if one.holds else f"**{ratio}**",
            f"{1e3 * one.p50:.2f}",
            f"{1e3 * one.predicted_p50:.2f}",
            f"{one.predicted_p50 / one.p50:.2f}",
            f"{1e3 * one.p99:.1f}",
            f"{1e3 * one.predicted_p99:.1f}",
            one.bound_by,
        ]
        lines.append(f"| {one.setup} | {one.load} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Print the table, and write what was seen."""
    parser = Parser(prog="python -m benchmarks.capacity.validate", description=__doc__)
    parser.add_argument("--inputs", type=Path, default=MEASURED, help="what was measured here")
    parser.add_argument("--out", type=Path, default=VALIDATED, help="file to write")
    parser.add_argument("--seconds", type=at_least(float, 1), default=2, help="of each load")
    parser.add_argument("--rounds", type=at_least(int, 1), default=1, help="in which every load has its turn")
    parser.add_argument("--only", type=some_of(SETUPS), default=list(SETUPS), help="setups, commas between them")
    args = parser.parse_args(argv)
    require_wrk()
    inputs = read_inputs(args.inputs)
    checks = [one for name in args.only for one in check(inputs, name, args.seconds, args.rounds)]
    found = Checks(machine=inputs.machine, date=inputs.date, checks=checks)
    write_whole(args.out, lambda partial: partial.write_text(found.model_dump_json(indent=1) + "\n"))
    print(table(checks))
    print(f"\nwithin {TOLERANCE:.0%}: {sum(one.holds for one in checks)} of {len(checks)} throughputs")


if __name__ == "__main__":
    run_command(main)
