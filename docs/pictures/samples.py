"""Samples of the shipped flow of images, at several temperatures."""

from __future__ import annotations

from pathlib import Path

from docs.pictures.shipped import draw_samples
from docs.pictures.style import panels
from model.plots import sample_grid

IMAGE = "samples.png"
DATA: tuple[str, ...] = ()

TEMPERATURES = (0.5, 0.7, 0.8, 1.0)


def draw(path: Path, data_dir: Path) -> None:
    with panels(path, 2.05, 1, len(TEMPERATURES)) as rows:
        for axes, temperature in zip(rows[0], TEMPERATURES, strict=True):
            samples = draw_samples(36, temperature)
            axes.imshow(sample_grid(samples, 255), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(f"temperature {temperature}")
