"""Tables of a run: medians over rounds, and ratios of medians."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serving.processes import Usage

OURS = "glow"
Sample = tuple[float, float]  # seconds since the start, and a figure


@dataclass(frozen=True)
class Reading:
    """One server under one load in one round."""

    rps: float
    p50_ms: float
    p99_ms: float
    rows_per_s: float
    cpu_s: float  # of the whole tree of processes, per 1,000 requests
    rss_mb: float
    foreign_cpus: float = 0  # that processes of neither the server nor the benchmark kept busy
    refused: int = 0
    errors: int = 0


COLUMNS = {  # heading and format of what is compared
    "rps": ("requests/s", ",.0f"),
    "p50_ms": ("p50 ms", ",.2f"),
    "p99_ms": ("p99 ms", ",.2f"),
    "rows_per_s": ("rows/s", ",.0f"),
    "cpu_s": ("CPU s per 1,000 requests", ",.3f"),
    "rss_mb": ("RSS MB", ",.0f"),
}


def medians(readings: Sequence[Reading]) -> dict[str, float]:
    """Median of each column over the rounds."""
    return {name: statistics.median(getattr(reading, name) for reading in readings) for name in COLUMNS}


def ratios(ours: Sequence[Reading], theirs: Sequence[Reading]) -> dict[str, float]:
    """Our median over theirs, by column; nan where theirs is 0."""
    a, b = medians(ours), medians(theirs)
    return {name: a[name] / b[name] if b[name] else float("nan") for name in COLUMNS}


def table(load: str, by_server: dict[str, list[Reading]]) -> str:
    """One load: a line a server, and a line for the ratio to each peer."""
    headings = [load, *(heading for heading, _ in COLUMNS.values()), "refused", "failed"]
    lines = [headings, ["---"] * len(headings)]
    for server, readings in by_server.items():
        values = medians(readings)
        refused, errors = sum(reading.refused for reading in readings), sum(reading.errors for reading in readings)
        shown = [f"{values[name]:{form}}" for name, (_, form) in COLUMNS.items()]
        lines.append([server, *shown, str(refused), str(errors)])
    if OURS in by_server:
        for server, readings in by_server.items():
            if server != OURS:
                values = ratios(by_server[OURS], readings)
                lines.append([f"{OURS} / {server}", *(f"{values[name]:.3g}" for name in COLUMNS), "", ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def slope(samples: Sequence[Sample]) -> float:
    """Growth a minute, by least squares."""
    seconds, figures = np.array(samples).T
    return 60 * float(np.polyfit(seconds, figures, 1)[0]) if len(samples) > 1 else float("nan")


def growth(idle: Sequence[Usage], samples: Sequence[tuple[float, Usage]]) -> str:
    """A table of memory, files and threads: idle before and after, and under load, with slopes."""
    lines = [
        "| | idle before | start | middle | end | a minute, first half | second half | idle after |",
        "|---" * 8 + "|",
    ]
    half = len(samples) // 2
    for name, field, unit in (("RSS MB", "rss", 1e6), ("open files", "files", 1), ("threads", "threads", 1)):
        seen = [(seconds, getattr(usage, field) / unit) for seconds, usage in samples]
        before, after = (getattr(usage, field) / unit for usage in idle)
        levels = " | ".join(f"{level:.0f}" for level in (before, *(seen[i][1] for i in (0, half, -1))))
        lines.append(f"| {name} | {levels} | {slope(seen[:half]):+.2f} | {slope(seen[half:]):+.2f} | {after:.0f} |")
    return "\n".join(lines)
