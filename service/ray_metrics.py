"""Our figures among Ray's own, which every node tells Prometheus of."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from ray.serve.metrics import Counter, Gauge

from service.metrics import Metrics

TELL_S = 5.0  # between two times; Ray's own default is 10


async def tell_ray(metrics: Metrics) -> None:
    """Go on telling Ray what Prometheus would be told of this process, under the same names, after Ray's ``ray_``.

    Histograms are told as what Prometheus reads of them: counters of buckets, sums and counts.
    """
    told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    counters: dict[str, Counter] = {}
    gauges: dict[str, Gauge] = {}
    while True:
        for family in metrics.families():
            for name, labels, value, *_ in family.samples:
                if name.endswith("_created"):
                    continue
                if family.type == "gauge":
                    if name not in gauges:
                        gauges[name] = Gauge(name, family.documentation, cast(Any, tuple(labels)))
                    gauges[name].set(value, labels)
                    continue
                if name not in counters:
                    counters[name] = Counter(name, family.documentation, cast(Any, tuple(labels)))
                key = name, tuple(labels.items())
                if value > told.get(key, 0.0):
                    counters[name].inc(value - told.get(key, 0.0), labels)
                    told[key] = value
        await asyncio.sleep(TELL_S)
