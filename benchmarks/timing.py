"""Timing: runs take turns, so that what else the machine does slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

WARM_UP_ROUNDS = 3  # in which the compiler and the caches settle

Run = Callable[[], object]


def interleaved(runs: dict[str, Run], rounds: int = 15) -> dict[str, float]:
    """Median seconds of each run over so many rounds, in inference mode."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in range(WARM_UP_ROUNDS + rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if number >= WARM_UP_ROUNDS:
                    times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}
