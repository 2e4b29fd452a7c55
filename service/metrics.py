"""What Prometheus is told. Durations in seconds; every label has few values.

Requests and passes are noted in lists and counted together, some hundreds at once or by the next sample, since
searching, locking and writing for each of them would cost more than all else that is done to tell of it.

Several workers of one host keep their figures in files of ``PROMETHEUS_MULTIPROC_DIR``, and each answers for all.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import values as values_of_workers
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.batcher import Pass
from service.collectors import DriftCollector, ModelCollector, ProcessesCollector
from service.drift import Drift
from service.machine import held_bytes, memory_limit
from service.shared import allocate, shared_folder

if TYPE_CHECKING:
    from service.service import Service

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PHASES = ("read", "queue", "compute", "rest")
SAMPLE_S = 0.25  # between looks at what changes by itself
_SECONDS = [0.0005 * 2**power for power in range(18)]  # 0.5 ms to 66 s
_ROWS = [2**power for power in range(17)]
_P_VALUES = [count / 10 for count in range(1, 11)]
_BITS = [-8, -6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8, 10, 16]
_FILE_BYTES, _ENTRY_BYTES = 2**18, 32  # of a worker's figures of one kind, at first; of one beside its name
_MOST_NOTED = 256  # that are counted at once: a quarter of a millisecond

Phases = tuple[float, float, float, float]  # seconds, in the order of PHASES


class _Allocated(MmapedDict):
    """A file of figures, which a disk that fills later leaves as it is."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            with open(filename, "ab") as file:
                allocate(file.fileno(), _FILE_BYTES)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _ENTRY_BYTES > self._capacity:
            allocate(self._f.fileno(), 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


values_of_workers.MmapedDict = _Allocated  # type: ignore[attr-defined]


class _Histogram(Histogram):
    """A histogram that takes many values at once."""

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.array(self._upper_bounds)

    def observe_all(self, values: np.ndarray) -> None:
        """Count each of some values."""
        if len(values) == 1:
            self._sum.inc(float(values[0]))
            self._buckets[bisect_left(self._upper_bounds, values[0])].inc(1)
            return
        self._sum.inc(float(values.sum()))
        for bucket, count in enumerate(np.bincount(np.searchsorted(self._bounds, values)).tolist()):
            if count:
                self._buckets[bucket].inc(count)


class Metrics:
    """Counts of one process, and their text; ``drifts`` are the watches of models, by name and version.

    ``service`` is what they are of, as far as it is to be asked.
    """

    def __init__(self) -> None:
        self.drifts: Mapping[tuple[str, str], Drift] = {}
        self.service: Service | None = None
        self.sampled_at = math.inf  # time.perf_counter() when the event loop last turned to this
        self.in_flight = 0  # requests that run a model and have no answer yet
        self._answered: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
        self._passes: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
        self._num_noted = self._waiting_rows = self._out_of_memory_counted = 0
        if (folder := shared_folder()) is not None:  # now, since it may be full when the first of a kind is counted
            for kind in ("counter", "histogram", "gauge_mostrecent"):
                _Allocated(str(folder / f"{kind}_{os.getpid()}.db")).close()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "glow_requests", "Requests answered.", ["route", "model", "status"], registry=self._registry
        )
        self._seconds = _Histogram(
            "glow_request_duration_seconds",
            "Time from a request's arrival until its answer was sent.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._phase_seconds = _Histogram(
            "glow_phase_duration_seconds",
            "Parts of that: read (receive and parse), queue, compute, rest (serialise, send, wait for a turn).",
            ["route", "model", "phase"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._rows = Counter("glow_rows", "Rows answered.", ["route", "model"], registry=self._registry)
        self._refused = Counter(
            "glow_refused", "Requests refused, by the code of their error.", ["reason"], registry=self._registry
        )
        self._refused_seconds = Counter(
            "glow_refused_seconds", "Time that they took.", ["route", "model"], registry=self._registry
        )
        self._last_time = Gauge(
            "glow_last_answer_time_seconds",
            "When a request was last answered with what it asked for: seconds since 1970.",
            ["route", "model"],
            registry=self._registry,
            multiprocess_mode="mostrecent",
        )
        self._pass_rows = _Histogram(
            "glow_pass_rows",
            "Rows of a call of the engine, from all requests in it.",
            ["model", "operation"],
            buckets=_ROWS,
            registry=self._registry,
        )
        self._pass_seconds = _Histogram(
            "glow_pass_duration_seconds",
            "Time of a call of the engine.",
            ["model", "operation"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._pass_requests = Counter(
            "glow_pass_requests", "Requests in calls of the engine.", ["model", "operation"], registry=self._registry
        )
        self._pass_slots = Counter(
            "glow_pass_slots",
            "Rows that these calls ran, those that fill a pass up with them: their fill is rows / slots.",
            ["model", "operation"],
            registry=self._registry,
        )
        self._p_values = _Histogram(
            "glow_p_value",
            "P-values of the default score of rows that the engine scored; uniform without drift.",
            ["model", "version"],
            buckets=_P_VALUES,
            registry=self._registry,
        )
        self._bits_per_dim = _Histogram(
            "glow_bits_per_dim",
            "The same rows' bits per dimension.",
            ["model", "version"],
            buckets=_BITS,
            registry=self._registry,
        )
        self._out_of_memory = Counter(
            "glow_out_of_memory",
            "Calls of the engine for which memory did not suffice, tried again or not.",
            registry=self._registry,
        )
        self._loop_lag = _Histogram(
            "glow_event_loop_lag_seconds",
            f"How much later than due the event loop turned to a timer, every {SAMPLE_S} s.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._queue_rows = self._gauge("queue_rows", "Rows waiting for the engine when it last ended a call.")
        self._in_flight_gauge = self._gauge("requests_in_flight", "Requests that run a model and are not answered yet.")
        self._gpu_bytes = self._gauge("gpu_memory_bytes", "Memory that torch holds of the GPU; 0 without one.")
        self._ready = self._gauge("ready", "Whether all models are warm and all workers take requests.", "livemin")
        self._gauge("memory_limit_bytes", "Memory that this machine or container may use.", "livemax").set(
            memory_limit()
        )
        # Looking labels up costs more than counting.
        self._answered_children = cache(
            lambda route, model: (
                self._requests.labels(route, model, "200"),
                self._rows.labels(route, model),
                self._seconds.labels(route),
                [self._phase_seconds.labels(route, model, phase) for phase in PHASES],
                self._last_time.labels(route, model),
            )
        )
        self._pass_children = cache(
            lambda *labels: (
                self._pass_rows.labels(*labels),
                self._pass_seconds.labels(*labels),
                self._pass_requests.labels(*labels),
                self._pass_slots.labels(*labels),
            )
        )
        self._score_children = cache(
            lambda *labels: (self._bits_per_dim.labels(*labels), self._p_values.labels(*labels))
        )

    def _gauge(self, name: str, text: str, mode: Literal["livesum", "livemin", "livemax"] = "livesum") -> Gauge:
        """A gauge, and what that of several workers is: their sum, least or most."""
        return Gauge(f"glow_{name}", text, registry=self._registry, multiprocess_mode=mode)

    def answered(self, route: str, model: str, num_rows: int, phases: Phases) -> None:
        """Note a request that was answered with what it asked for."""
        self._answered[route, model].append((num_rows, time.time(), *phases))
        self._note()

    def refused(self, route: str, model: str, status: int, reason: str, seconds: float) -> None:
        """Count a request that got an error."""
        self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._refused.labels(reason).inc()
        self._refused_seconds.labels(route, model).inc(seconds)

    def computed(self, model: str, operation: str, done: Pass[Any], num_slots: int) -> None:
        """Note a call of the engine, which ran so many rows for those that it was asked for."""
        self._passes[model, operation].append((done.num_rows, done.seconds, done.num_requests, num_slots))
        self._waiting_rows = done.waiting_rows
        self._note()

    def scored(self, model: str, version: str, bits_per_dim: np.ndarray, p_values: np.ndarray) -> None:
        """Count what a call of the engine told of rows."""
        for child, values in zip(self._score_children(model, version), (bits_per_dim, p_values), strict=True):
            child.observe_all(values)

    def _note(self) -> None:
        self._num_noted += 1
        if self._num_noted >= _MOST_NOTED:
            self._count()

    def _count(self) -> None:
        """Count what was noted."""
        answered, self._answered = self._answered, defaultdict(list)
        passes, self._passes = self._passes, defaultdict(list)
        self._num_noted = 0
        for of_requests, noted in answered.items():
            requests, rows, seconds, of_phases, last_time = self._answered_children(*of_requests)
            num_rows, times, *phases = np.array(noted).T
            last_time.set(float(times[-1]))
            requests.inc(len(noted))
            rows.inc(float(num_rows.sum()))
            seconds.observe_all(sum(phases))
            for child, values in zip(of_phases, phases, strict=True):
                child.observe_all(values)
        for of_passes, noted in passes.items():
            pass_rows, pass_seconds, pass_requests, pass_slots = self._pass_children(*of_passes)
            num_rows, durations, num_requests, num_slots = np.array(noted).T
            pass_rows.observe_all(num_rows)
            pass_seconds.observe_all(durations)
            pass_requests.inc(float(num_requests.sum()))
            pass_slots.inc(float(num_slots.sum()))

    @asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Look every SAMPLE_S at what changes by itself, and at how late that is."""

        async def sample() -> None:
            while True:
                begun = time.perf_counter()
                await asyncio.sleep(SAMPLE_S)
                self.sampled_at = time.perf_counter()
                self._loop_lag.observe(max(0.0, self.sampled_at - begun - SAMPLE_S))
                self._sample()

        task = asyncio.create_task(sample())
        try:
            yield
        finally:
            task.cancel()
            self._sample()

    def _sample(self) -> None:
        self._count()
        self._queue_rows.set(self._waiting_rows)
        self._in_flight_gauge.set(self.in_flight)
        if self.service is not None:
            self._ready.set(self.service.is_ready)
            engine = self.service.engine
            self._gpu_bytes.set(held_bytes(engine.device))
            self._out_of_memory.inc(engine.num_out_of_memory - self._out_of_memory_counted)
            self._out_of_memory_counted = engine.num_out_of_memory

    def text(self) -> bytes:
        """All figures, of all workers, in the text format of Prometheus; of other workers at most SAMPLE_S old."""
        read_now = CollectorRegistry()
        for collector in (*self._read_now(), ProcessesCollector(_pids())):
            read_now.register(collector)
        return generate_latest(self._of_all_workers()) + generate_latest(read_now)

    def families(self) -> Iterator[Metric]:
        """All figures but those that any process has."""
        yield from self._of_all_workers().collect()
        for collector in self._read_now():
            yield from collector.collect()

    def _read_now(self) -> tuple[Collector, ...]:
        return ModelCollector(self.service), DriftCollector(self.drifts)

    def samples(self) -> Iterator[Sample]:
        """Figures of requests and passes, of all workers: names, labels and values."""
        for family in self._of_all_workers().collect():
            yield from family.samples

    def _of_all_workers(self) -> CollectorRegistry:
        self._sample()
        folder = shared_folder()
        if folder is None:
            return self._registry
        for pid in _pids():
            if not Path(f"/proc/{pid}").exists():
                mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
        return registry


def _pids() -> set[str]:
    """Of the workers whose figures are told."""
    folder = shared_folder()
    return {"self"} if folder is None else {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*.db")}
