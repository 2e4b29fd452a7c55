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

from service.errors import BadRequest, ServiceError, Unprocessable

MEDIA_TYPES = ("image/png", "image/jpeg")
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**16  # bytes that a compressed comment may become
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}


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
        if image.mode not in _EIGHT_BIT_MODES:
            raise Unprocessable(f"{name} is of mode {image.mode}, expected 8 bits per channel")
        pixels = np.asarray(image.convert("L" if num_channels == 1 else "RGB"), np.float32)
    except ServiceError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        raise BadRequest(f"{name} is not a readable PNG or JPEG") from error
    low, high = value_range
    planes = pixels.reshape(height, width, -1).transpose(2, 0, 1)
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
    low, high = value_range
    pixels = np.clip(np.round((images - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    num, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    tiles = np.zeros((rows * columns, channels, height, width), np.uint8)
    tiles[:num] = pixels
    grid = tiles.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    flat = grid.reshape(rows * height, columns * width, channels)
    stream = io.BytesIO()
    Image.fromarray(flat[..., 0] if channels == 1 else flat).save(stream, "PNG")
    return stream.getvalue()
