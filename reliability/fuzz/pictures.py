"""Pictures: PNG and JPEG, as they are and in base64."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from reliability.fuzz.bodies import check_inputs
from reliability.fuzz.target import IMAGES, Target
from service.codecs import image
from service.rows import inputs_from_json

_RANGE = (0.0, 255.0)  # in which a picture's bytes are the values


def read_picture(data: bytes) -> None:
    """A picture is of the wanted size, and its bytes are those that are written of it."""
    for shape in ((1, 8, 8), (3, 8, 8)):
        pixels = image.read(data, shape, _RANGE, "the image")
        assert pixels.shape == shape
        assert pixels.dtype == np.float32
        assert np.isin(pixels, np.arange(256)).all()
        np.testing.assert_array_equal(image.read(image.write_grid(pixels[None], _RANGE), shape, _RANGE, ""), pixels)


def repair_png(data: bytes) -> bytes:
    """Let the checksums of a PNG's chunks fit what is in them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        size = min(int.from_bytes(data[at : at + 4], "big"), max(0, len(data) - at - 12))
        chunk = data[at + 4 : at + 8 + size]
        parts.append(struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        at += 12 + size
    return b"".join(parts)


def read_pictures_in_json(text: bytes) -> None:
    """Strings are pictures in base64, or refused; what they are is what the picture alone is."""
    rows = inputs_from_json(text.decode("utf-8", "replace").split("\n"), IMAGES)
    check_inputs(rows, IMAGES.shape)
    for row, each in zip(rows, text.split(b"\n"), strict=True):
        np.testing.assert_array_equal(image.read(base64.b64decode(each), (1, 8, 8), (0, 15), ""), row)


def picture_bytes(mode: str, kind: str, size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    """A picture of some pixels."""
    stream = io.BytesIO()
    grey = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1]) * 3)
    grey.convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def picture_seeds() -> Iterator[bytes]:
    """PNG and JPEG of all modes that are read, and some that are not."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield picture_bytes(mode, "PNG")
    for mode in ("L", "RGB", "CMYK"):
        yield picture_bytes(mode, "JPEG")
    yield picture_bytes("L", "JPEG", progressive=True)
    yield picture_bytes("L", "PNG", transparency=3, optimize=True)
    yield picture_bytes("L", "PNG", (9, 8))


def picture_texts() -> Iterator[bytes]:
    """Pictures in base64, one a line."""
    texts = [base64.b64encode(data) for data in picture_seeds()]
    yield from texts[:4]
    yield b"\n".join(texts[1:3])


TARGETS = [
    Target("picture", read_picture, picture_seeds, words=(b"IHDR", b"PLTE", b"tRNS", b"zTXt"), repair=repair_png),
    Target("picture_base64", read_pictures_in_json, picture_texts, words=(b"iVBORw0KGgo", b"=", b"\n")),
]
