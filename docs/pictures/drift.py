"""The watch for drift over time, in simulation: scores that move up by half a standard deviation at some row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from docs.pictures.style import BLUE, GREY, INK, RED, chart
from service.drift import TAILS, Drift

IMAGE = "drift.svg"
DATA: tuple[str, ...] = ()

CALIBRATION, CLEAN, ROWS, SHIFT, EVERY = 1000, 3000, 4000, 0.5, 10


def draw(path: Path, data_dir: Path) -> None:
    random = np.random.default_rng(0)
    drift = Drift("simulated", random.normal(size=CALIBRATION), window=500, random=np.random.default_rng(1))
    scores = random.normal(size=ROWS) + np.where(np.arange(ROWS) < CLEAN, 0, SHIFT)
    readings = []
    for part in scores.reshape(-1, EVERY):
        drift.add(part)
        readings.append(drift.read())
    rows = [reading.rows for reading in readings]
    (alarm,) = {one.alarm_row for one in readings[-1].tails.values()} - {None}
    with chart(path, 2.8, 2) as (evidence, window):
        for tail, colour, style in zip(TAILS, (RED, BLUE), ("-", "-."), strict=True):
            values = [reading.tails[tail].log_e_value for reading in readings]
            evidence.plot(rows, values, color=colour, linestyle=style, label=f"scores are {tail}")
        threshold = readings[-1].tails["higher"].threshold
        evidence.axhline(threshold, color=INK, linestyle="--", linewidth=1)
        evidence.text(0, threshold + 0.3, f"alarm, delta = {readings[-1].delta:g}", va="bottom")
        evidence.set(
            xlabel="rows served", ylabel="log e-value, nats", title=f"drift at row {CLEAN:,}, alarm at row {alarm:,}"
        )
        evidence.legend(loc="center left", fontsize=8)
        window.plot(rows, [reading.window.mean_p_value or 0 for reading in readings], color=BLUE)
        window.axhline(0.5, color=INK, linestyle="--", linewidth=1)
        window.set(xlabel="rows served", title="mean p-value of the last 500 rows", ylim=(0.3, 0.6))
        for axes in (evidence, window):
            axes.axvline(CLEAN, color=GREY, linewidth=6, alpha=0.3)
