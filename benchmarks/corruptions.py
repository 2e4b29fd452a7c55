"""Normal images made abnormal: what may choose a score, since no image of another kind may."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Pixels = npt.NDArray[np.float64]
PATCH = 7  # pixels; sides must be multiples of it


def corruptions(images: npt.NDArray[np.uint8], seed: int = 0) -> dict[str, npt.NDArray[np.uint8]]:
    """Images (N, 1, H, W) of values 0..255, each corrupted in every way: (N, 1, H, W) by name."""
    x = images[:, 0].astype(np.float64)
    random = np.random.default_rng(seed)
    made: dict[str, Callable[[], Pixels]] = {
        "noise, std 10": lambda: x + random.normal(0, 10, x.shape),
        "noise, std 3": lambda: x + random.normal(0, 3, x.shape),
        "salt and pepper, 2 %": lambda: np.where(random.random(x.shape) < 0.02, random.choice([0, 255], x.shape), x),
        "blurred": lambda: ndimage.gaussian_filter(x, (0, 1, 1)),
        "half the contrast": lambda: x / 2,
        "black and white": lambda: np.where(x > 100, 255.0, 0.0),
        "eight levels of grey": lambda: np.floor(x / 32) * 32,
        "edges": lambda: np.hypot(ndimage.sobel(x, 1), ndimage.sobel(x, 2)) / 4,
        "mirrored": lambda: x[:, :, ::-1],
        "upside down": lambda: x[:, ::-1],
        "turned by 90 degrees": lambda: np.rot90(x, 1, (1, 2)),
        "inverted": lambda: 255 - x,
        "a square covered": lambda: _covered(x, random),
        "patches exchanged": lambda: _exchanged(x, random),
        "half the size": lambda: np.stack([np.pad(ndimage.zoom(image, 0.5, order=1), 7) for image in x]),
        "two images at once": lambda: np.maximum(x, random.permutation(x)),
        "two halves": lambda: np.concatenate([random.permutation(x)[:, :, :14], x[:, :, 14:]], 2),
        "warped": lambda: _warped(x, random),
        "ten pixels a side": lambda: np.stack([_coarse(image) for image in x]),
    }
    return {name: np.clip(np.rint(make()), 0, 255).astype(np.uint8)[:, None] for name, make in made.items()}


def _covered(x: Pixels, random: np.random.Generator) -> Pixels:
    covered = x.copy()
    for image, (row, column), value in zip(
        covered, random.integers(4, 18, (len(x), 2)), random.choice([0, 255], len(x)), strict=True
    ):
        image[row : row + 6, column : column + 6] = value
    return covered


def _exchanged(x: Pixels, random: np.random.Generator) -> Pixels:
    num, side = len(x), x.shape[1] // PATCH
    patches = x.reshape(num, side, PATCH, side, PATCH).transpose(0, 1, 3, 2, 4).reshape(num, side * side, PATCH, PATCH)
    order = random.permuted(np.tile(np.arange(side * side), (num, 1)), axis=1)
    patches = np.take_along_axis(patches, order[:, :, None, None], 1)
    return patches.reshape(num, side, side, PATCH, PATCH).transpose(0, 1, 3, 2, 4).reshape(x.shape)


def _warped(x: Pixels, random: np.random.Generator) -> Pixels:
    places = np.mgrid[: x.shape[1], : x.shape[2]]
    shifts = ndimage.gaussian_filter(random.normal(0, 1, (len(x), 2, *x.shape[1:])), (0, 0, 3, 3)) * 30
    return np.stack([ndimage.map_coordinates(image, places + by, order=1) for image, by in zip(x, shifts, strict=True)])


def _coarse(image: Pixels) -> Pixels:
    small = Image.fromarray(image.astype(np.uint8)).resize((10, 10), Image.Resampling.BOX)
    return np.asarray(small.resize(image.shape[::-1], Image.Resampling.NEAREST), np.float64)
