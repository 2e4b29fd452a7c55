"""What temperature does to samples: how likely they are, and how far apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.distance import pdist

from docs.pictures.shipped import FASHION, ask, draw_samples, shipped
from docs.pictures.style import BLUE, GREY, RED, chart
from service.scores import bits_per_dim

IMAGE = "temperature.svg"
DATA: tuple[str, ...] = ()

TEMPERATURES = np.linspace(0, 1.2, 13)
SAMPLES = 128


def draw(path: Path, data_dir: Path) -> None:
    manifest = shipped(FASHION).manifest
    samples = [draw_samples(SAMPLES, temperature) for temperature in TEMPERATURES]
    bits = [bits_per_dim(ask("log_prob", x), manifest.num_dims) for x in samples]
    apart = [np.median(pdist(x.reshape(SAMPLES, -1))) / np.sqrt(manifest.num_dims) for x in samples]
    with chart(path, 2.7, 2) as (likelihood, distance):
        likelihood.fill_between(
            TEMPERATURES, *np.quantile(bits, [0.1, 0.9], axis=1), color=BLUE, alpha=0.2, linewidth=0
        )
        likelihood.plot(TEMPERATURES, np.median(bits, axis=1), color=BLUE, marker="o", markersize=3)
        likelihood.set(
            xlabel="temperature", ylabel="bits/dim under the model", title="unlikely: median and 80 % of samples"
        )
        distance.plot(TEMPERATURES, apart, color=RED, marker="o", markersize=3)
        distance.set(xlabel="temperature", ylabel="grey levels", title="diverse: distance of two samples")
        for axes in (likelihood, distance):
            axes.axvline(manifest.temperature, color=GREY, linestyle="--", linewidth=1)
            axes.grid()
        likelihood.text(manifest.temperature + 0.02, likelihood.get_ylim()[0], " default", color=GREY, va="bottom")
