"""Images, their latent codes, what the codes decode to, and the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from docs.pictures.shipped import FASHION, ask, held_out_images, shipped
from docs.pictures.style import panels

IMAGE = "reconstruction.png"
DATA: tuple[str, ...] = ()


def draw(path: Path, data_dir: Path) -> None:
    x = held_out_images()[:2]
    z = ask("encode", x)
    decoded = ask("decode", z)
    parts = shipped(FASHION).manifest.latent_layout
    titles = ["image", *(f"code, level {level + 1}" for level in range(len(parts))), "decoded", "difference"]
    with panels(path, 2.7, len(x), len(titles)) as rows:
        for axes, title in zip(rows[0], titles, strict=True):
            axes.set_title(title)
        for i, (image, *codes, again, difference) in enumerate(rows):
            image.imshow(x[i, 0], cmap="gray", vmin=0, vmax=255)
            again.imshow(decoded[i, 0], cmap="gray", vmin=0, vmax=255)
            for axes, part in zip(codes, parts, strict=True):
                channels, height, width = part.shape
                across = 2 ** ((channels.bit_length()) // 2)
                maps = z[i, part.offset : part.offset + channels * height * width].reshape(-1, across, height, width)
                axes.imshow(maps.transpose(0, 2, 1, 3).reshape(-1, across * width), cmap="RdBu", vmin=-3, vmax=3)
            difference.imshow(np.abs(decoded - x)[i, 0], cmap="gray", vmin=0, vmax=1)
            difference.set_xlabel(f"< {10 ** np.ceil(np.log10(np.abs(decoded - x)[i].max())):g} levels")
