"""Measure what the capacity model is fed with: ``python -m benchmarks.capacity.measure``.

Costs are seconds of CPU, by thread, under wrk at 2 and 16 connections; latencies are not fitted, but for the time
until a sleeping thread runs, from /livez. So the loads that ``benchmarks.capacity.validate`` runs (1, 8 and 64
connections, Poisson arrivals, other numbers of rows, two Ray nodes) are predicted, not remembered. Needs Linux and wrk;
one thread for each pass. Takes about 2 minutes.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np

from benchmarks.capacity.inputs import MEASURED, Body, Client, Ingress, Inputs, ModelCosts, Pass, read_inputs
from benchmarks.capacity.ray_cluster import ray_serve
from benchmarks.serving import processes
from benchmarks.serving.bodies import MEDIA_TYPES, Array, Media, encoded, table_rows, write_body
from benchmarks.serving.client import Client as OpenLoop
from benchmarks.serving.servers import CACHE, Running, glow, running
from benchmarks.serving.wrk import Result, drive, drive_mix, require_wrk
from benchmarks.timing import Run, interleaved_processes
from common.cli import Parser, note, run_command
from common.files import write_whole
from common.machine import available_cpus, processor
from service.artifact import golden_rows, open_artifact
from service.catalog import warm_catalog
from service.codecs import json_body
from service.rows import inputs_from_array, inputs_from_json
from service.scorer import score_pass, scoring_key
from service.settings import EMBEDDED_ARTIFACTS, Settings

MODELS = ("breast-cancer", "fashion-mnist")
ROWS = (1, 16, 64, 256)
FEW, MANY = 2, 16  # connections
SMALL_AND_LARGE: tuple[tuple[int, Media], ...] = ((1, "json"), (256, "npy"))  # of Ray
MOST_WAITING_ROWS = 256
WARM_UP_S, SETTLING_S, SECONDS = 1.0, 0.2, 2.0
OPEN_RATE, OPEN_S = 300.0, 2.0  # of the open loop's client, a rate that leaves it asleep between two requests
READINGS = 20
IDLE_CORES, START_S = 0.3, 60.0  # of a cluster that has started
FLOOD = 600  # requests that are due at once


def rows_of(model: str, num_rows: int) -> Array:
    """Rows of a model as callers send them: decimals of a table, whole pixels."""
    artifact = EMBEDDED_ARTIFACTS / f"{model}.pt"
    manifest = open_artifact(artifact).manifest
    if manifest.kind == "vector":
        return table_rows(artifact, num_rows)
    return golden_rows(manifest, "statistics", num_rows).round().astype(np.uint8)


def url_of(server: Running, model: str) -> str:
    """Where a model's rows are scored."""
    return f"{server.url}?model={model}"


@dataclass(frozen=True)
class Spent:
    """What a load took: seconds of CPU a request by kind of thread, and passes a request."""

    seen: Result
    client_s: float
    by: dict[str, float]
    passes: float
    foreign_cpus: float


def thread_seconds(root: int) -> dict[str, float]:
    """Seconds of CPU so far of the threads of a tree of processes, by what they do.

    Of the service: ``loop`` and ``engine``. Of Ray: ``proxy`` and ``replica``, Python's threads, and the others of both
    as ``proxy beside`` and ``replica beside``; ``haproxy``; what else the cluster runs is ``cluster``.
    """
    found: dict[str, float] = {}
    for process in processes.tree(root):
        folder = Path(f"/proc/{process.pid}")
        try:
            command = (folder / "cmdline").read_text()
            threads = [
                (int(task.name), (task / "comm").read_text(), _cpu_s(task)) for task in (folder / "task").iterdir()
            ]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for tid, name, seconds in threads:
            kind = _kind(command, name, is_main=tid == process.pid)
            found[kind] = found.get(kind, 0.0) + seconds
    return found


def _cpu_s(task: Path) -> float:
    return int((task / "schedstat").read_text().split()[0]) / 1e9


def _kind(command: str, thread: str, is_main: bool) -> str:
    if "/haproxy" in command:
        return "haproxy"
    for title, kind in (("ray::ProxyActor", "proxy"), ("ray::ServeReplica", "replica")):
        if command.startswith(title):
            return kind if thread.startswith("ray::") else f"{kind} beside"
    if "service" in command.split("\0"):
        return "loop" if is_main else "engine"
    return "cluster"


def spend(server: Running, load: Callable[[float], Result], model: str | None = None) -> Spent:
    """Run a load for some seconds, after a shorter while of it, and tell what it took; counts passes of a ``model``."""
    load(WARM_UP_S)
    time.sleep(SETTLING_S)
    meter, before = processes.Meter(server.pid), thread_seconds(server.pid)
    passes, own = _passes(server, model), processes.waited_for_s()
    seen = load(SECONDS)
    client_s = processes.waited_for_s() - own
    after = thread_seconds(server.pid)
    num = max(1, seen.requests)
    _, foreign = meter.read()
    by = {kind: (seconds - before.get(kind, 0.0)) / num for kind, seconds in after.items()}
    return Spent(seen, client_s / num, by, (_passes(server, model) - passes) / num, foreign)


def _passes(server: Running, model: str | None) -> float:
    if model is None:
        return 0.0
    text = httpx.get(f"{server.base}/metrics", trust_env=False).raise_for_status().text
    found = re.search(rf'^glow_pass_rows_count{{model="{model}",operation="statistics"}} (\S+)', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def wait_until_idle(server: Running) -> float:
    """Wait for replicas that still start, when one answers already; returns the cores that are busy without a load."""
    used, deadline = math.inf, time.monotonic() + START_S
    while used > IDLE_CORES and time.monotonic() < deadline:
        began, before = time.monotonic(), processes.usage(server.pid).cpu_s
        time.sleep(2)
        used = max(0.0, processes.usage(server.pid).cpu_s - before) / (time.monotonic() - began)
    return used


def scoring(server: Running, body: Path, media: Media, model: str, connections: int) -> Callable[[float], Result]:
    """A load of one body."""
    return partial(drive, url_of(server, model), body, MEDIA_TYPES[media], connections)


def alive(server: Running, folder: Path) -> Callable[[float], Result]:
    """A load of the cheapest request, one at a time."""
    request = folder / "livez"
    request.write_bytes(f"GET /livez HTTP/1.1\r\nHost: {server.base.removeprefix('http://')}\r\n\r\n".encode())
    return partial(drive_mix, f"{server.base}/livez", [request], 1)


def of_engine(model: str) -> dict[str, Run]:
    """Passes of every number of rows that the engine has, without and with their scores."""
    found = warm_catalog(Settings(models=[EMBEDDED_ARTIFACTS / f"{model}.pt"], threads=1, cache_dir=CACHE)).default
    runs: dict[str, Run] = {}
    key, size = scoring_key(found), 1
    while found.room("statistics", False, size).most == size:
        rows = rows_of(model, size).astype(np.float32 if found.manifest.kind == "image" else np.float64)
        runs[f"{model} {size} flow"] = partial(found.run, "statistics", rows)
        runs[f"{model} {size} all"] = partial(score_pass, key, rows)
        size *= 2
    return runs


def measure_passes(rounds: int = 7) -> dict[str, list[Pass]]:
    """Seconds of the passes of each model, in turns."""
    seconds = interleaved_processes([partial(of_engine, model) for model in MODELS], rounds)
    passes: dict[str, list[Pass]] = {model: [] for model in MODELS}
    for name, flow_s in seconds.items():
        model, rows, what = name.split()
        if what == "flow":
            scores_s = max(0.0, seconds[f"{model} {rows} all"] - flow_s)
            passes[model].append(Pass(rows=int(rows), flow_s=flow_s, scores_s=scores_s))
    return passes


def measure_open_client(server: Running, body: Path, model: str) -> tuple[float, float]:
    """Seconds of CPU a request of the open loop's client: asleep before each, and without any sleep."""
    client = OpenLoop(url_of(server, model), body.read_bytes(), MEDIA_TYPES["json"], timeout_s=30)
    seconds = []
    for times in ([i / OPEN_RATE for i in range(int(OPEN_RATE * OPEN_S))], [0.0] * FLOOD):
        began = time.process_time()
        asyncio.run(client.run(times))
        seconds.append((time.process_time() - began) / len(times))
    return seconds[0], seconds[1]


def measure_body(server: Running, folder: Path, model: str, media: Media, rows: int, loop_pass_s: float) -> Body:
    """Costs of a request of so many rows."""
    body = write_body(folder, rows_of(model, rows), media)
    headers = {"content-type": MEDIA_TYPES[media]}
    answer = httpx.post(url_of(server, model), content=body.read_bytes(), headers=headers, trust_env=False)
    connections = max(FEW, min(MANY, MOST_WAITING_ROWS // rows))
    spent = spend(server, scoring(server, body, media, model, connections), model)
    return Body(
        rows=rows,
        loop_s=max(0.0, spent.by["loop"] - loop_pass_s * spent.passes),
        client_s=spent.client_s,
        request_bytes=body.stat().st_size,
        answer_bytes=len(answer.raise_for_status().content),
    )


def reading_s(body: bytes, media: Media, model: str) -> float:
    """Seconds from the bytes of a body to checked rows, in this process: the least of some."""
    manifest = open_artifact(EMBEDDED_ARTIFACTS / f"{model}.pt").manifest
    least = math.inf
    for _ in range(READINGS):
        began = time.perf_counter()
        if media == "json":
            inputs_from_json(json_body.read_rows(body, "inputs", lambda _: None)[0], manifest)
        else:
            inputs_from_array(np.load(io.BytesIO(body)), manifest)
        least = min(least, time.perf_counter() - began)
    return least


def body_of(known: Body, media: Media, model: str) -> Body:
    """Costs of a body of another model: those of a table's as many rows, and what reading it takes more.

    Under load, a flow of images is so slow that the event loop's own time would drown in what it does anyway.
    """
    table, body = (encoded(rows_of(name, known.rows), media) for name in (MODELS[0], model))
    more_s = reading_s(body, media, model) - reading_s(table, media, MODELS[0])
    return known.model_copy(update={"loop_s": known.loop_s + max(0.0, more_s), "request_bytes": len(body)})


def measure_ingress(kind: str, inputs: Inputs) -> Ingress:
    """What Ray Serve adds to the costs of the service: one node, one replica, behind ``proxy`` or ``haproxy``."""
    model, haproxy = MODELS[0], kind == "haproxy"
    costs = inputs.models[model]
    pass_s = inputs.loop_pass_s + inputs.engine_pass_s + costs.passes[0].flow_s + costs.passes[0].scores_s
    loop_s = costs.body("json", 1).loop_s
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = (write_body(folder, rows_of(model, num), media) for num, media in SMALL_AND_LARGE)
        server = ray_serve(1, haproxy, EMBEDDED_ARTIFACTS, default_model=MODELS[0])
        with running(server, small) as started:
            drive(url_of(started, model), small, MEDIA_TYPES["json"], MANY, 2)
            idle = wait_until_idle(started)
            ping = spend(started, alive(started, folder))
            one, many = (spend(started, scoring(started, small, "json", model, num), model) for num in (1, MANY))
            bytes_ = spend(started, scoring(started, large, "npy", model, FEW))
        sent = large.stat().st_size - small.stat().st_size
    return Ingress(
        proxy_threads=available_cpus() if haproxy else 1,
        proxy_s=many.by[kind],
        proxy_beside_s=many.by.get(f"{kind} beside", 0.0),
        replica_s=max(0.0, many.by["replica"] - loop_s - pass_s * many.passes),
        replica_beside_s=many.by["replica beside"],
        byte_s=max(0.0, bytes_.by[kind] - many.by[kind]) / sent,
        wait_s=max(0.0, ping.seen.p50_ms / 1e3 - ping.by[kind] - ping.by["replica"] - ping.client_s),
        idle_cores=idle,
        p50_s=one.seen.p50_ms / 1e3,
        cpu_s=one.client_s + sum(one.by.values()),
    )


def measure() -> Inputs:
    """All of this machine but Ray."""
    note("passes of the engine")
    passes = measure_passes()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), MODELS[0]
        small = write_body(folder, rows_of(model, 1), "json")
        with running(glow(EMBEDDED_ARTIFACTS, threads=1, default_model=MODELS[0]), small) as started:
            note("the service, one row a request")
            ping = spend(started, alive(started, folder))
            wake_s = max(0.0, ping.seen.p50_ms / 1e3 - ping.client_s - sum(ping.by.values())) / 2
            plain = {num: spend(started, scoring(started, small, "json", model, num), model) for num in (1, FEW, MANY)}
            few, many = plain[FEW], plain[MANY]
            loop_pass_s = max(0.0, (few.by["loop"] - many.by["loop"]) / (few.passes - many.passes))
            alone = passes[model][0]
            engine_pass_s = max(0.0, few.by["engine"] / few.passes - alone.flow_s - alone.scores_s)
            asleep_s, awake_s = measure_open_client(started, small, model)
            clients = {
                "wrk": Client(wake_cpu_s=max(0.0, plain[1].client_s - many.client_s) / 2, request_s=0.0),
                "asyncio": Client(
                    wake_cpu_s=max(0.0, asleep_s - awake_s) / 2, request_s=max(0.0, awake_s - many.client_s)
                ),
            }
            bodies: dict[Media, list[Body]] = {}
            for media in MEDIA_TYPES:
                note(f"{model}, {media}")
                bodies[media] = [measure_body(started, folder, model, media, rows, loop_pass_s) for rows in ROWS]
    others = {
        name: {media: [body_of(one, media, name) for one in known] for media, known in bodies.items()}
        for name in MODELS[1:]
    }
    models = {
        name: ModelCosts(passes=passes[name], bodies={str(media): known for media, known in of.items()})
        for name, of in {model: bodies, **others}.items()
    }
    return Inputs(
        machine=f"{processor()}, {available_cpus()} cores",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        cores=available_cpus(),
        foreign_cpus=statistics.median(spent.foreign_cpus for spent in (ping, *plain.values())),
        wake_s=wake_s,
        loop_pass_s=loop_pass_s,
        engine_pass_s=engine_pass_s,
        plain_p50_s=plain[1].seen.p50_ms / 1e3,
        plain_cpu_s=plain[1].client_s + sum(plain[1].by.values()),
        clients=clients,
        models=models,
        ingresses={},
    )


def main(argv: list[str]) -> None:
    """Write what was measured."""
    parser = Parser(prog="python -m benchmarks.capacity.measure", description=__doc__)
    parser.add_argument("--out", type=Path, default=MEASURED, help="file to write")
    parser.add_argument("--no-ray", action="store_true", help="keep what the file says of Ray")
    args = parser.parse_args(argv)
    require_wrk()
    found = measure()
    if args.no_ray and args.out.exists():
        found = found.model_copy(update={"ingresses": read_inputs(args.out).ingresses})
    for kind in () if args.no_ray else ("proxy", "haproxy"):
        note(f"Ray Serve behind its {kind}")
        found = found.model_copy(update={"ingresses": {**found.ingresses, kind: measure_ingress(kind, found)}})
    write_whole(args.out, lambda partial: partial.write_text(found.model_dump_json(indent=1) + "\n"))
    print(args.out)


if __name__ == "__main__":
    run_command(main)
