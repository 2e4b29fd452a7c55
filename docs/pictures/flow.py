"""The shipped flow of images, layer by layer, as its manifest tells it."""

from __future__ import annotations

import math
from pathlib import Path

from docs.pictures.diagram import Diagram
from docs.pictures.shipped import FASHION, shipped
from docs.pictures.style import BLUE, GREEN, ORANGE, RED, SKY

IMAGE = "flow.svg"
DATA: tuple[str, ...] = ()


def draw(path: Path, data_dir: Path) -> None:
    manifest = shipped(FASHION).manifest
    steps, parts = manifest.recipe["model"]["num_steps"], manifest.latent_layout
    diagram = Diagram(880, 112 + 132 * len(parts) + 66, f"The flow of {manifest.name}: levels, steps and latent code")
    x_channels, height, width = manifest.shape
    diagram.box(16, 20, 150, 62, "x", f"{x_channels} x {height} x {width} pixels", colour=GREEN)
    diagram.arrow((168, 51), (203, 51))
    diagram.box(206, 20, 190, 62, "pixels", "normal quantile", "of their marginal", colour=GREEN)
    diagram.text(420, 46, "every arrow can be gone backwards; each layer", "note", "start")
    diagram.text(420, 63, "adds its log-determinant to log p(x)", "note", "start")
    end = 112 + 132 * len(parts)
    for level, part in enumerate(parts):
        channels, height, width = part.shape
        last, y = level == len(parts) - 1, 112 + 132 * level
        squeezed = channels if last else 2 * channels
        diagram.area(16, y, 690, 118, f"level {level + 1}")
        if level == 0:
            diagram.arrow((300, 84), (300, 96), (91, 96), (91, y + 29))
        diagram.box(32, y + 32, 118, 72, "squeeze", f"{squeezed} x {height} x {width}", colour=SKY)
        diagram.arrow((152, y + 68), (178, y + 68))
        diagram.box(181, y + 32, 334, 72, "", colour=BLUE)
        diagram.text(348, y + 50, f"{steps} steps", "title")
        for i, layer in enumerate(("actnorm", "1x1 conv", "coupling")):
            diagram.box(190 + 107 * i, y + 59, 101, 36, layer, colour=BLUE)
        numbers = math.prod(part.shape)
        if last:
            diagram.arrow((517, y + 68), (733, y + 68))
        else:
            diagram.arrow((517, y + 68), (541, y + 68))
            diagram.box(544, y + 32, 150, 72, "split", "half leaves, whitened", "given the other half", colour=RED)
            diagram.arrow((696, y + 68), (733, y + 68))
            diagram.arrow((623, y + 106), (623, y + 125), (91, y + 125), (91, y + 161))
        diagram.box(736, y + 32, 128, 72, f"{numbers} numbers", f"{channels} x {height} x {width}", colour=ORANGE)
    share = 848 / manifest.num_dims
    for part in parts:
        numbers = math.prod(part.shape)
        left = 16 + share * part.offset
        diagram.box(left, end + 20, share * numbers - 2, 34, f"z[{part.offset}:{part.offset + numbers}]", colour=ORANGE)
    diagram.text(
        16,
        end + 12,
        f"the latent code: one vector of {manifest.num_dims}, standard normal under the model",
        "note",
        "start",
    )
    diagram.save(path)
