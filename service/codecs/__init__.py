"""Bytes to arrays and back, one media type a file; none of them knows a model."""

from __future__ import annotations

MAX_DIMS = 4  # of an array in a body: (B, C, H, W)
ANY_BINARY = "application/octet-stream"  # what clients name that know no other type than this and JSON
_MAGIC = {
    b"\x93NUMPY": "application/x-npy",
    b"\xff\xff\xff\xff": "application/vnd.apache.arrow.stream",
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
}


def sniff(body: bytes | bytearray) -> str:
    """Media type of a file by its first bytes; that of any file where they are none of those known."""
    return next((media_type for magic, media_type in _MAGIC.items() if body.startswith(magic)), ANY_BINARY)
