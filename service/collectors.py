"""What Prometheus is told of what is read when it asks: the models served, the processes, the watches of drift."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.drift import Drift

if TYPE_CHECKING:
    from service.service import Service


class ModelCollector(Collector):
    """Reads which models are served."""

    def __init__(self, service: Service | None) -> None:
        self._service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        info = GaugeMetricFamily("glow_model_info", "1 for a served model.", labels=["model", "version", "device"])
        if self._service is not None and self._service.catalog is not None:
            for model in self._service.catalog.models:
                info.add_metric([model.name, model.version, self._service.engine.device.type], 1)
        yield info


class ProcessesCollector(Collector):
    """Reads what the system tells of some processes, together: ``process_*``, the standard names.

    CPU time, memory and files are sums, the start is the latest. The sum of CPU time falls when a worker ends, which
    Prometheus takes for a start anew.
    """

    def __init__(self, pids: Iterable[str]) -> None:
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        together: dict[str, Metric] = {}
        for pid in self._pids:
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                if metric.name not in together:
                    together[metric.name] = metric
                    continue
                combine = max if metric.name == "process_start_time_seconds" else sum
                samples = zip(together[metric.name].samples, metric.samples, strict=True)
                together[metric.name].samples = [
                    mine._replace(value=combine((mine.value, other.value))) for mine, other in samples
                ]
        yield from together.values()


class DriftCollector(Collector):
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
