"""Where images are unlikely: held-out ones as they are, and spoiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from docs.pictures.shipped import ask, held_out_images
from docs.pictures.style import panels

IMAGE = "contributions.png"
DATA: tuple[str, ...] = ()


def draw(path: Path, data_dir: Path) -> None:
    whole = held_out_images()[[2, 3]]
    spoiled = whole.copy()
    spoiled[0, 0, 14:18, 11:16] = 230  # a bright patch on the dress
    spoiled[1, 0, 12:14, 8:20] = 128  # a grey bar across the trousers
    x = np.stack([whole[0], spoiled[0], whole[1], spoiled[1]])
    maps = -ask("log_prob_map", x)
    low, high = np.quantile(maps, [0.02, 0.998])
    with panels(path, 3.7, 2, len(x)) as rows:
        for i, title in enumerate(("held-out", "spoiled") * 2):
            rows[0][i].set_title(title)
            rows[0][i].imshow(x[i, 0], cmap="gray", vmin=0, vmax=255)
            shown = rows[1][i].imshow(maps[i], cmap="cividis", vmin=low, vmax=high)
            rows[1][i].set_xlabel(f"sum {maps[i].sum():,.0f} nats")
        bar = shown.axes.figure.colorbar(shown, ax=rows[1], shrink=0.9, aspect=12)
        bar.set_label("nats of -log p(x)")
