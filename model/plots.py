"""Pictures of a run: training curves and sample grids, as PNG."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from model.data import Array
from service.artifact import write_whole


def save_curves(history: list[dict[str, float]], unit: str, path: Path) -> None:
    """Plot the losses, and log N(z) and log_det apart: training trades one for the other."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, terms = figure.subplots(1, 2)
    steps = [entry["step"] for entry in history]
    for name in ("loss", "validation"):
        losses.plot(steps, [entry[name] for entry in history], label={"loss": "training"}.get(name, name))
    losses.set(xlabel="step", ylabel=f"negative log-likelihood ({unit})")
    for name, label in (("log_normal", "log N(z)"), ("log_det", "log_det")):
        terms.plot(steps, [entry[name] for entry in history], label=label)
    terms.set(xlabel="step", ylabel="nats per input")
    for axes in (losses, terms):
        axes.legend()
        axes.grid(alpha=0.3)
    write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=100))


def save_sample_grid(images: Array, max_value: float, path: Path) -> None:
    """Tile images (N, C, H, W) of 0..max_value into a square grid."""
    side = math.isqrt(len(images))
    num_channels, height, width = images.shape[1:]
    pixels = (np.clip(images[: side * side] * (255 / max_value), 0, 255)).round().astype(np.uint8)
    grid = pixels.reshape(side, side, num_channels, height, width).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(side * height, side * width, num_channels)
    write_whole(
        path,
        lambda partial: Image.fromarray(grid.squeeze(2) if num_channels == 1 else grid).save(partial, format="PNG"),
    )
