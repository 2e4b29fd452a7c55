"""The training of the shipped flow of a table, from its recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter1d

from docs.pictures.shipped import CANCER, shipped
from docs.pictures.style import BLUE, GREEN, GREY, RED, chart
from model.recipe import load_splits, parse_recipe
from model.trainer import Trainer

IMAGE = "training.svg"
DATA: tuple[str, ...] = ()


def draw(path: Path, data_dir: Path) -> None:
    recipe = parse_recipe(shipped(CANCER).manifest.recipe, "manifest")
    trainer = Trainer(recipe, load_splits(recipe.data, data_dir))
    steps, validation = [], []
    while not trainer.complete:
        steps.append(trainer.train_step()[0])
        if trainer.step % recipe.training.evaluate_every == 0:
            validation.append(trainer.evaluate())
    every, numbers = recipe.training.evaluate_every, np.arange(1, trainer.step + 1)
    best = int(np.argmin(validation))
    smooth = {
        name: uniform_filter1d([step[name] for step in steps], every) for name in ("loss", "log_normal", "log_det")
    }
    with chart(path, 2.8, 2) as (losses, terms):
        losses.plot(numbers, smooth["loss"], color=BLUE, label="noisy training rows")
        losses.plot(
            every * np.arange(1, len(validation) + 1), validation, color=RED, linestyle="-.", label="validation"
        )
        losses.axvline(every * (best + 1), color=GREY, linestyle="--", linewidth=1, label="best checkpoint")
        losses.set(
            xlabel="step", ylabel="-log p(x), nats", ylim=(smooth["loss"].min() - 2, np.quantile(validation, 0.95))
        )
        terms.plot(numbers, smooth["log_normal"], color=BLUE, label="log N(z; 0, I)")
        terms.plot(numbers, smooth["log_det"], color=GREEN, linestyle="-.", label="log-determinant")
        terms.set(xlabel="step", ylabel="nats")
        for axes in (losses, terms):
            axes.legend(fontsize=8)
            axes.grid()
