"""P-values of normal rows new to the artifact are uniform: their quantiles beside those that they should have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import betabinom

from benchmarks.false_alarms import held_out_scores
from docs.pictures.shipped import CANCER, FASHION, served
from docs.pictures.style import BLUE, GREY, chart
from service.scores import p_values

IMAGE = "p_values.svg"
DATA = ("fashion-mnist",)

COVERAGE = 0.99


def draw(path: Path, data_dir: Path) -> None:
    with chart(path, 3.6, 2) as axes:
        for panel, name in zip(axes, (FASHION, CANCER), strict=True):
            model = served(name)
            calibration, default = model.manifest.calibration, model.manifest.scoring.default
            assert calibration is not None
            known = calibration.arrays[default]
            p = p_values(held_out_scores(model, data_dir)[default], known)
            ranks = np.unique(np.geomspace(1, len(known), 200).astype(int))
            alphas = ranks / (len(known) + 1)
            low, high = betabinom.ppf(
                np.array([[(1 - COVERAGE) / 2], [(1 + COVERAGE) / 2]]), len(p), ranks, len(known) + 1 - ranks
            ) / len(p)
            panel.fill_between(
                alphas, low, high, color=GREY, alpha=0.2, linewidth=0, label="99 % of cases where p-values are right"
            )
            panel.plot(alphas, alphas, color=GREY, linestyle="--", linewidth=1, label="alpha")
            panel.plot(alphas, [(p <= alpha).mean() for alpha in alphas], color=BLUE, label="flagged test rows")
            panel.set(xlabel="alpha", title=f"{name}, {len(p):,} test rows")
            panel.set_aspect("equal")
            panel.set(xlim=(0, 1), ylim=(0, 1))
            panel.grid()
        axes[0].set_ylabel("share of normal test rows with p <= alpha")
        axes[1].legend(loc="lower right", fontsize=7.5)
