"""How many bits a lossless picture file needs: what is simple is likely under a flow, whatever it shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.scores.conformal import FloatArray

Codec = Literal["png"]
DEFAULT_CODEC: Codec = "png"


def _png(pixels: npt.NDArray[np.uint8]) -> int:
    from PIL import Image  # which the base installation lacks

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return stream.tell()


_CODECS: dict[Codec, Callable[[npt.NDArray[np.uint8]], int]] = {"png": _png}


def codec_bytes(codec: Codec, images: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Bytes of each image's file, header and all: (B, C, H, W) of pixel values 0..255, C = 1 or 3 -> (B,).

    Values that are not whole are rounded. ``png``: Pillow's, with ``optimize``; its sizes have been the same in every
    Pillow from 10.1 to 13.0, but are promised by nobody, so an artifact's golden case tells whether they still are.
    """
    pixels = np.clip(np.round(images), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    size = _CODECS[codec]
    return np.array([size(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels], np.int64)


def complexity(codec: Codec, images: npt.NDArray[Any]) -> FloatArray:
    """L(x) = 8 bytes(x) / D in bits/dim of images (B, C, H, W): (B,)."""
    return codec_bytes(codec, images) * np.float64(8 / images[0].size)
