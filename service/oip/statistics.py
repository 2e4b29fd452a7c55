"""What has been asked of models, in the form of Triton's extension statistics: the metrics, seen by model.

A model's figures are those of its inferences and of the service's own route that does the same, by all workers; a
duration has a count and a sum of nanoseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from service.artifact import Manifest
from service.engine import Model
from service.metrics import Metrics
from service.oip.models import View

_PHASES = {"queue": "queue", "compute_input": "read", "compute_infer": "compute", "compute_output": "rest"}
_Figures = defaultdict[tuple[str, str, str | None, str], float]


def statistics(metrics: Metrics, models: Iterable[tuple[View, Model]]) -> list[dict[str, Any]]:
    """Figures of each model. Passes of .decode and .sample are the same ones, and count for both."""
    figures: _Figures = defaultdict(float)
    for sample in metrics.samples():
        labels = sample.labels
        part = labels.get("phase", "")
        if "status" in labels:
            part = "answered" if labels["status"] == "200" else "refused"
        figures[sample.name, labels.get("model", ""), labels.get("route", labels.get("operation")), part] += (
            sample.value
        )
    return [_of_model(figures, view, model.manifest) for view, model in models]


def _of_model(figures: _Figures, view: View, manifest: Manifest) -> dict[str, Any]:
    def of_routes(name: str, part: str = "") -> list[float]:
        return [figures[f"glow_{name}", manifest.name, route, part] for route in (view.path, view.route)]

    answered, refused = (int(sum(of_routes("requests_total", part))) for part in ("answered", "refused"))
    phases = {name: sum(of_routes("phase_duration_seconds_sum", phase)) for name, phase in _PHASES.items()}
    return {
        "name": view.name(manifest),
        "version": manifest.version,
        "last_inference": int(1000 * max(of_routes("last_answer_time_seconds"))),
        "inference_count": int(sum(of_routes("rows_total"))),
        "execution_count": int(figures["glow_pass_rows_count", manifest.name, view.operation, ""]),
        "inference_stats": {
            "success": _duration(answered, sum(phases.values())),
            "fail": _duration(refused, sum(of_routes("refused_seconds_total"))),
            **{name: _duration(answered, seconds) for name, seconds in phases.items()},
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(1e9 * seconds)}
