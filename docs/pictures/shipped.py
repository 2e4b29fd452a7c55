"""What pictures are drawn from: the shipped artifacts, and the held-out images that ride in one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from service.artifact import Artifact, open_artifact
from service.catalog import warm_catalog
from service.engine import Model
from service.noise import latent_noise
from service.settings import EMBEDDED_ARTIFACTS, read_settings

Array = npt.NDArray[Any]
FASHION, CANCER = "fashion-mnist", "breast-cancer"


@cache
def shipped(name: str) -> Artifact:
    """A shipped artifact, verified."""
    return open_artifact(Path(EMBEDDED_ARTIFACTS) / f"{name}.pt")


@cache
def served(name: str) -> Model:
    """The same as the service runs it."""
    artifact = Path(EMBEDDED_ARTIFACTS) / f"{name}.pt"
    settings = read_settings(models=[artifact], default_model=None, workers=1, cache_dir=None)
    return warm_catalog(settings, reproducible_only=True).default


def held_out_images() -> Array:
    """The images of the golden case, never trained on: a bag, a shirt, a dress, trousers, (4, 1, 28, 28)."""
    manifest = shipped(FASHION).manifest
    return np.array(manifest.golden.inputs, np.float32).reshape(-1, *manifest.shape)


def ask(method: str, x: Array) -> Array:
    """Answer of a method of the images' program: arrays in, its first array out."""
    with torch.inference_mode():
        answer = getattr(shipped(FASHION).program, method)(torch.from_numpy(x))
    first: Array = (answer[0] if isinstance(answer, tuple) else answer).numpy()
    return first


def draw_samples(num: int, temperature: float, seed: int = 7) -> Array:
    """What ``/sample`` answers to this seed: (n, 1, 28, 28)."""
    return ask("decode", latent_noise(seed, num, 784) * np.float32(temperature))
