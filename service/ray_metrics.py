"""Our figures among Ray's own, which every node tells Prometheus of."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from ray.serve.metrics import Gauge

from service.metrics import Metrics

TELL_S = 5.0  # between two times; Ray's own default is 10


async def tell_ray(metrics: Metrics) -> None:
    """Go on telling Ray what Prometheus would be told of this process, under the same names, after Ray's ``ray_``.

    All as gauges, counters and what histograms are made of as well: Ray puts ``_total`` behind the names of its
    counters, and takes no counts of buckets.
    """
    gauges: dict[str, Gauge] = {}
    while True:
        for family in metrics.families():
            for name, labels, value, *_ in family.samples:
                if name.endswith("_created"):
                    continue
                if name not in gauges:
                    gauges[name] = Gauge(name, family.documentation, cast(Any, tuple(labels)))
                gauges[name].set(value, labels)
        await asyncio.sleep(TELL_S)
