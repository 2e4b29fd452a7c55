"""What tests of bytes share: arrays and pictures on the wire, the names of the tiny models, and ways to spoil bytes."""

import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from service.errors import ServiceError, TooLarge

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


def any_rows(_: int) -> None:
    """No limit of rows."""


def at_most_three(num: int) -> None:
    if num > 3:
        raise TooLarge(f"{num} rows")


def mutated(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Valid bytes with some of them cut, changed or followed by others."""
    cuts = st.tuples(st.integers(0, 10**6), st.integers(0, 8), st.binary(max_size=8))

    def cut(data: bytes, start: int, length: int, patch: bytes) -> bytes:
        start %= len(data) + 1
        return data[:start] + patch + data[start + length :]

    return st.builds(lambda data, where: cut(data, *where), valid, cuts) | st.binary(max_size=200)


def outcome(read: Callable[[], object]) -> object:
    """What a reader gives, or the error that it raises; any but a ServiceError is raised on."""
    try:
        return repr(read())
    except ServiceError as error:
        return type(error), str(error)
