"""From one held-out image to another through their latent codes.

A straight line between two codes passes nearer to 0 than either, half way by a factor of about sqrt(2), where a
standard normal of many dimensions has no mass: it decodes to what is flatter than any image, as samples of a low
temperature are. The arc of a great circle keeps the norm. Source: White 2016 (arXiv:1609.04468), section 2.1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from docs.pictures.shipped import Array, ask, held_out_images
from docs.pictures.style import panels

IMAGE = "interpolation.png"
DATA: tuple[str, ...] = ()

START, END = 1, 3  # of the held-out images
STEPS = 9


def on_the_arc(start: Array, end: Array, shares: Array) -> Array:
    """Codes (n, D) between two: directions along the great circle, norms along the line."""
    norms = np.linalg.norm(start), np.linalg.norm(end)
    angle = np.arccos(np.clip(start @ end / (norms[0] * norms[1]), -1, 1))
    first, second = np.sin((1 - shares) * angle) / np.sin(angle), np.sin(shares * angle) / np.sin(angle)
    norm = (1 - shares) * norms[0] + shares * norms[1]
    arc: Array = norm[:, None] * (first[:, None] * start / norms[0] + second[:, None] * end / norms[1])
    return arc.astype(start.dtype)


def draw(path: Path, data_dir: Path) -> None:
    codes = ask("encode", held_out_images())
    start, end, shares = codes[START], codes[END], np.linspace(0, 1, STEPS)
    ways = {
        "arc": on_the_arc(start, end, shares),
        "line": (start + np.outer(shares, end - start)).astype(start.dtype),
    }
    with panels(path, 1.95, len(ways), STEPS) as rows:
        for axes_of_row, (way, z) in zip(rows, ways.items(), strict=True):
            axes_of_row[0].set_ylabel(way)
            for axes, image in zip(axes_of_row, ask("decode", z), strict=True):
                axes.imshow(image[0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        for axes, share in zip(rows[0], shares, strict=True):
            axes.set_title(f"{share:.3g}" if 0 < share < 1 else "image")
