"""PNG and JPEG in, PNG out: pixel bytes 0..255 stand for a model's value range."""

from __future__ import annotations

import base64
import binascii
import io
import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from common.formats import EIGHT_BIT_MODES
from service.errors import BadRequest, ServiceError, TooLarge, Unprocessable

MEDIA_TYPES = ("image/png", "image/jpeg")
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**16  # bytes that a compressed comment may become
MAX_OVERLAY_PIXELS = 2**24
_OPACITY = 0.85  # of the highest contribution
_COLOURS = np.array(  # matplotlib's "inferno" at equal steps: brighter is more, also where colours are not seen
    [
        [0, 0, 4],
        [40, 11, 83],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 194, 40],
        [252, 255, 164],
    ]
)


def read(
    data: bytes | bytearray, shape: tuple[int, ...], value_range: tuple[float, float], name: str
) -> npt.NDArray[np.float32]:
    """Decode one image to (C, H, W). The size is checked before any pixel is decoded.

    Raises BadRequest for what is no image, Unprocessable for one of another size.
    """
    num_channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the size is refused below
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if image.size != (width, height):
            raise Unprocessable(f"{name} is {image.width}x{image.height} pixels, expected {width}x{height}")
        if image.mode not in EIGHT_BIT_MODES:
            raise Unprocessable(f"{name} is of mode {image.mode}, expected 8 bits per channel")
        pixels = np.asarray(image.convert("L" if num_channels == 1 else "RGB"), np.float32)
    except ServiceError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        raise BadRequest(f"{name} is not a readable PNG or JPEG") from error
    low, high = value_range
    planes = pixels.reshape(height, width, num_channels).transpose(2, 0, 1)
    return np.round(low + planes * ((high - low) / 255)).astype(np.float32)


def read_base64(texts: list[str], shape: tuple[int, ...], value_range: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Decode base64 images to (B, C, H, W)."""
    images = []
    for i, text in enumerate(texts):
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"inputs[{i}] is not base64") from error
        images.append(read(data, shape, value_range, f"inputs[{i}]"))
    return np.stack(images)


def write_grid(images: npt.NDArray[Any], value_range: tuple[float, float]) -> bytes:
    """Encode images (B, C, H, W) as one PNG, rounded and clamped, tiled row by row into a near-square grid."""
    return _write_tiles(_as_bytes(images, value_range))


def overlay_scale(height: int, width: int) -> int:
    """Times that a pixel is repeated either way in a picture of contributions: until a side has 128, at least 4."""
    return max(4, 128 // max(height, width))


def check_overlays(shape: tuple[int, ...]) -> None:
    """Raise TooLarge where pictures of images (B, C, H, W) would have more than MAX_OVERLAY_PIXELS in all."""
    num, _, height, width = shape
    each = height * width * overlay_scale(height, width) ** 2
    if num * each > MAX_OVERLAY_PIXELS:
        raise TooLarge(
            f"a PNG of {num} explanations has {num * each} pixels; the limit is {MAX_OVERLAY_PIXELS}, of "
            f"{MAX_OVERLAY_PIXELS // each} images; ask for fewer, or for JSON, npy or Arrow"
        )


def write_overlays(
    images: npt.NDArray[Any], contributions: npt.NDArray[Any], value_range: tuple[float, float]
) -> bytes:
    """Encode images (B, C, H, W) in grey, and over them their contributions (B, H, W) in colour, as one PNG grid.

    The scale is one for the whole grid: from the median of all pixels, where the image shows unchanged, to their
    quantile 0.995, and the colour of a pixel covers the image the more the higher it stands in between.
    """
    low, high = np.quantile(contributions, [0.5, 0.995])
    level = ((contributions - low) / max(high - low, np.finfo(np.float64).tiny)).clip(0, 1)
    anchors = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(level, anchors, channel) for channel in _COLOURS.T], 1)
    grey = _as_bytes(images, value_range).mean(1, keepdims=True)
    opacity = _OPACITY * level[:, None]
    pixels = np.round((1 - opacity) * grey + opacity * colour).astype(np.uint8)
    scale = overlay_scale(*contributions.shape[1:])
    return _write_tiles(pixels.repeat(scale, 2).repeat(scale, 3))


def _as_bytes(images: npt.NDArray[Any], value_range: tuple[float, float]) -> npt.NDArray[np.uint8]:
    low, high = value_range
    return np.clip(np.round((images - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def _write_tiles(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode (B, C, H, W) as one PNG, tiled row by row into a near-square grid."""
    num, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    tiles = np.zeros((rows * columns, channels, height, width), np.uint8)
    tiles[:num] = pixels
    grid = tiles.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    flat = grid.reshape(rows * height, columns * width, channels)
    stream = io.BytesIO()
    Image.fromarray(flat.squeeze(2) if channels == 1 else flat).save(stream, "PNG")
    return stream.getvalue()
