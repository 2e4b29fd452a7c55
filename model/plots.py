"""Pictures of a run, as PNG: training curves, samples, and whether latent codes are standard normal."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from common.files import write_whole
from model.data import Array

MOST_MARGINALS = 12
MOST_LETTERS = 30  # of a column's name over its histogram


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
    _save(figure, path)


def save_picture(pixels: Array, path: Path) -> None:
    """Save (H, W) or (H, W, C) uint8."""
    write_whole(path, lambda partial: Image.fromarray(pixels).save(partial, format="PNG"))


def save_temperatures(images: dict[float, Array], max_value: float, path: Path) -> None:
    """Show a grid of images (N, C, H, W) of 0..max_value for each temperature they were sampled at."""
    figure = Figure(figsize=(4 * len(images), 4.3), layout="constrained")
    frame = ((0, 0), (0, 0), (1, 1), (1, 1))
    panels = figure.subplots(1, len(images), squeeze=False).flat
    for axes, (temperature, samples) in zip(panels, images.items(), strict=True):
        framed = np.pad(samples, frame, constant_values=max_value)
        axes.imshow(sample_grid(framed, max_value), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(f"temperature {temperature}")
        axes.set_axis_off()
    _save(figure, path)


def sample_grid(images: Array, max_value: float) -> Array:
    """Tile images (N, C, H, W) of 0..max_value into a square, uint8: (side*H, side*W), with a last axis C in colour."""
    side = math.isqrt(len(images))
    num_channels, height, width = images.shape[1:]
    pixels = (np.clip(images[: side * side] * (255 / max_value), 0, 255)).round().astype(np.uint8)
    grid = pixels.reshape(side, side, num_channels, height, width).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(side * height, side * width, num_channels)
    return grid.squeeze(2) if num_channels == 1 else grid


def save_marginals(data: Array, samples: Array, names: list[str], path: Path) -> None:
    """Overlay the histograms of data (N, D) and of samples, for the first columns; of two columns also the pairs."""
    shown, pairs = min(len(names), MOST_MARGINALS), len(names) == 2
    across = min(4, shown + pairs)
    down = math.ceil((shown + pairs) / across)
    figure = Figure(figsize=(3.5 * across, 2.8 * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    limits = [_limits(column) for column in data.T[:shown]]
    for axes, column, sampled, (low, high), name in zip(panels, data.T, samples.T, limits, names, strict=False):
        bins = _bins(len(data), low, high)
        axes.hist(_within(column, low, high), bins, density=True, alpha=0.5, label="data")
        axes.hist(_within(sampled, low, high), bins, density=True, histtype="step", color="black", label="samples")
        axes.set_title(name[:MOST_LETTERS], fontsize="medium", parse_math=False)
        axes.set_yticks([])
    panels[0].legend()
    if pairs:
        for values, label in ((data, "data"), (samples[: len(data)], "samples")):
            x, y = (_within(column, *limit) for column, limit in zip(values.T, limits, strict=True))
            panels[2].scatter(x, y, s=2, alpha=0.3, label=label)
        panels[2].legend()
    for axes in panels[shown + pairs :]:
        axes.set_axis_off()
    _save(figure, path)


def save_latents(z: Array, sizes: list[int], path: Path) -> None:
    """Compare latent codes (N, D) with what they are under the model: entries of N(0, 1), |z|^2 of chi-squared(D).

    ``sizes`` are those of the parts of z that the levels hold, which are drawn apart.
    """
    from scipy.stats import chi2, norm

    z = _within(z, -1e6, 1e6)
    figure = Figure(figsize=(10, 4), layout="constrained")
    entries, squares = figure.subplots(1, 2)
    limit = 5.0
    for level, part in enumerate(np.split(z, np.cumsum(sizes)[:-1], axis=1), 1):
        label = f"level {level}, {part.shape[1]} dimensions"
        bins = _bins(part.size, -limit, limit)
        entries.hist(_within(part.ravel(), -limit, limit), bins, density=True, histtype="step", label=label)
    x = np.linspace(-limit, limit, 200)
    entries.plot(x, norm.pdf(x), "k--", label="N(0, 1)")
    entries.set(xlabel="entry of z", ylabel="density")
    lengths = np.square(z, dtype=np.float64).sum(1)
    expected = chi2(z.shape[1])
    low, high = _limits(np.concatenate([lengths, expected.ppf([0.001, 0.999])]))
    low = max(low, 0.0)
    squares.hist(_within(lengths, low, high), _bins(len(z), low, high), density=True, alpha=0.5, label="held-out rows")
    x = np.linspace(low, high, 500)
    squares.plot(x, expected.pdf(x), "k--", label=f"chi-squared, {z.shape[1]} degrees of freedom")
    squares.set(xlabel="|z|^2")
    for axes in (entries, squares):
        axes.legend(fontsize="small")
    _save(figure, path)


def _limits(values: Array) -> tuple[float, float]:
    """Range that holds 99 of 100 values, and a margin; never empty."""
    low, high = map(float, np.quantile(values, [0.005, 0.995]))
    margin = max(0.05 * (high - low), 1e-12 * max(abs(low), abs(high))) or 0.5
    return low - margin, high + margin


def _bins(num_values: int, low: float, high: float) -> Array:
    """Edges of so many bins that each holds some of the values."""
    return np.linspace(low, high, min(max(math.isqrt(num_values), 10), 60) + 1)


def _within(values: Array, low: float, high: float) -> Array:
    """Draw what lies beyond a range, or is not a number, at its ends."""
    drawn: Array = np.clip(np.nan_to_num(values, nan=high), low, high)
    return drawn


def _save(figure: Figure, path: Path) -> None:
    write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=100))
