"""Scores of images that are normal and of another kind: by the likelihood alone, and by the default score."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.anomalies import flow_scores, image_sets
from docs.pictures.shipped import FASHION, served
from docs.pictures.style import BLUE, INK, RED, chart
from service.scores import ScoreName, highest_normal_score

IMAGE = "scores.svg"
DATA = ("fashion-mnist", "mnist")

ROWS = 2000
PANELS: tuple[tuple[ScoreName, str], ...] = (
    ("negative_log_likelihood", "-log p(x), nats"),
    ("density", "default score of images (density), nats"),
)


def draw(path: Path, data_dir: Path) -> None:
    model = served(FASHION)
    calibration = model.manifest.calibration
    assert calibration is not None
    clothes, others = image_sets(FASHION, data_dir, ROWS)
    normal, foreign = flow_scores(model, clothes), flow_scores(model, others["mnist"])
    with chart(path, 2.9, 2) as axes:
        for panel, (name, label) in zip(axes, PANELS, strict=True):
            threshold = highest_normal_score(calibration.arrays[name], calibration.alpha)
            low, high = np.quantile(np.concatenate([normal[name], foreign[name]]), [0.001, 0.99])
            bins = np.linspace(low, max(high, threshold + 0.1 * (high - low)), 61).tolist()
            for values, colour, kind in ((normal[name], BLUE, "clothes (normal)"), (foreign[name], RED, "digits")):
                shown = np.clip(values, bins[0], bins[-1])
                panel.hist(shown, bins, color=colour, alpha=0.45, histtype="stepfilled", edgecolor=colour, label=kind)
            panel.axvline(
                threshold, color=INK, linestyle="--", label=f"flagged from here, alpha = {calibration.alpha:g}"
            )
            alarms, found = np.mean(normal[name] > threshold), np.mean(foreign[name] > threshold)
            panel.set(
                xlabel=label, yticks=[], title=f"flagged: {found:.1%} of the digits,\n{alarms:.1%} of the clothes"
            )
            panel.spines["left"].set_visible(False)
        axes[1].legend(loc="upper right", fontsize=8)
