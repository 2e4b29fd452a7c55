"""What the HTTP tests share: arrays and pictures on the wire, and the names of the tiny models."""

import io
from typing import Any

import httpx
import numpy as np
from PIL import Image

IMAGES, MIXED, TABLE = "tiny-images", "tiny-mixed", "tiny-table"


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(pixels: Any) -> bytes:
    """Encode the value range 0..15 of the tiny images as bytes 0..255."""
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(pixels) * 17).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def read_png(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


def read_npy(response: httpx.Response) -> Any:
    assert response.headers["content-type"] == "application/x-npy"
    return np.load(io.BytesIO(response.content))


async def post(client: httpx.AsyncClient, path: str, body: object) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()
