"""What Prometheus is told. Durations in seconds; every label has few values.

Several workers of one host keep their figures in files of ``PROMETHEUS_MULTIPROC_DIR``, and each answers for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.batcher import Pass
from service.drift import Drift
from service.shared import shared_folder

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PHASES = ("read", "queue", "compute", "rest")
_SECONDS = [0.0005 * 2**power for power in range(18)]  # 0.5 ms to 66 s
_ROWS = [2**power for power in range(17)]


class Metrics:
    """Counts of one process, and their text; ``drifts`` are the watches of models, by name and version."""

    def __init__(self) -> None:
        self.drifts: Mapping[tuple[str, str], Drift] = {}
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "glow_requests", "Requests answered.", ["route", "model", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "glow_request_duration_seconds",
            "Time from a request's arrival until its answer was sent.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._phase_seconds = Histogram(
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
        self._pass_rows = Histogram(
            "glow_pass_rows",
            "Rows of a call of the engine, from all requests in it.",
            ["model", "operation"],
            buckets=_ROWS,
            registry=self._registry,
        )
        self._pass_seconds = Histogram(
            "glow_pass_duration_seconds",
            "Time of a call of the engine.",
            ["model", "operation"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._pass_requests = Counter(
            "glow_pass_requests", "Requests in calls of the engine.", ["model", "operation"], registry=self._registry
        )
        self._queue_rows = Gauge(
            "glow_queue_rows",
            "Rows waiting for the engine when it last ended a call.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        # Looking labels up costs more than counting.
        self._request_children = cache(self._requests.labels)
        self._second_children = cache(self._seconds.labels)
        self._phase_children = cache(lambda *labels: [self._phase_seconds.labels(*labels, phase) for phase in PHASES])
        self._row_children = cache(self._rows.labels)
        self._last_time_children = cache(self._last_time.labels)
        self._pass_children = cache(
            lambda *labels: (
                self._pass_rows.labels(*labels),
                self._pass_seconds.labels(*labels),
                self._pass_requests.labels(*labels),
            )
        )

    def answered(self, route: str, model: str, num_rows: int, phases: tuple[float, float, float, float]) -> None:
        """Count a request that was answered with what it asked for."""
        self._request_children(route, model, "200").inc()
        self._row_children(route, model).inc(num_rows)
        self._last_time_children(route, model).set_to_current_time()
        self._second_children(route).observe(sum(phases))
        for child, seconds in zip(self._phase_children(route, model), phases, strict=True):
            child.observe(seconds)

    def refused(self, route: str, model: str, status: int, reason: str, seconds: float) -> None:
        """Count a request that got an error."""
        self._request_children(route, model, str(status)).inc()
        self._second_children(route).observe(seconds)
        self._refused.labels(reason).inc()
        self._refused_seconds.labels(route, model).inc(seconds)

    def computed(self, model: str, operation: str, done: Pass[Any]) -> None:
        """Count a call of the engine."""
        rows, seconds, requests = self._pass_children(model, operation)
        rows.observe(done.num_rows)
        seconds.observe(done.seconds)
        requests.inc(done.num_requests)
        self._queue_rows.set(done.waiting_rows)

    def text(self) -> bytes:
        """All figures, of all workers, in the text format of Prometheus."""
        drifts = CollectorRegistry()
        drifts.register(_DriftCollector(self.drifts))
        return generate_latest(self._of_all_workers()) + generate_latest(drifts)

    def samples(self) -> Iterator[Sample]:
        """Figures of requests and passes, of all workers: names, labels and values."""
        for family in self._of_all_workers().collect():
            yield from family.samples

    def _of_all_workers(self) -> CollectorRegistry:
        folder = shared_folder()
        if folder is None:
            return self._registry
        for path in folder.glob("gauge_live*.db"):
            pid = int(path.stem.rpartition("_")[2])
            if not Path(f"/proc/{pid}").exists():
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
        return registry


class _DriftCollector(Collector):
    """Reads the watches when asked; workers share them, so that each tells the figures of all."""

    def __init__(self, drifts: Mapping[tuple[str, str], Drift]) -> None:
        self._drifts = drifts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"glow_drift_{name}", text, labels=["model", "version", *labels])

        rows = gauge("rows", "Rows scored since the watch of drift began.")
        since = gauge("since_seconds", "When it began: seconds since 1970.")
        log_e_value = gauge("log_e_value", "Log of the wealth of bets on higher or on lower scores, nats.", "tail")
        alarm = gauge("alarm", "Whether that ever was log(2 / GLOW_DRIFT_DELTA) or more.", "tail")
        ks = gauge("ks", "Kolmogorov-Smirnov statistic of the last rows and the calibration rows.")
        ks_p_value = gauge("ks_p_value", "Its p-value, of this one look.")
        mean_p_value = gauge("mean_p_value", "Mean p-value of the last rows; 0.5 without drift.")
        for served, drift in self._drifts.items():
            reading = drift.read()
            rows.add_metric(served, reading.rows)
            since.add_metric(served, reading.since.timestamp())
            for tail, one in reading.tails.items():
                log_e_value.add_metric([*served, tail], one.log_e_value)
                alarm.add_metric([*served, tail], float(one.alarm_row is not None))
            window = reading.window
            for family, value in (
                (ks, window.ks),
                (ks_p_value, window.ks_p_value),
                (mean_p_value, window.mean_p_value),
            ):
                if value is not None:
                    family.add_metric(served, value)
        yield from (rows, since, log_e_value, alarm, ks, ks_p_value, mean_p_value)
