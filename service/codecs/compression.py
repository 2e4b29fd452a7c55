"""Content-Encoding ``gzip`` and ``deflate``: bodies inflated as they arrive, up to a limit, and answers compressed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from service.errors import BadRequest, TooLarge

ENCODINGS = ("gzip", "deflate")
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's for the two formats; deflate is zlib's own (RFC 9110, 8.4.1.2)
_PIECE = 2**16  # bytes given to zlib at a time, and four times as many taken
_LEVEL = 1


class Inflater:
    """Inflates one body, never to more than ``limit`` bytes.

    ``feed`` what arrives, then ``finish``; ``grow`` is told how many bytes come next, and may raise. Raises TooLarge as
    soon as the limit is passed, and BadRequest for what is no such stream, ends early or is followed by other bytes; of
    gzip, several members make one body.
    """

    def __init__(self, encoding: str, limit: int, grow: Callable[[int], None] = lambda _: None) -> None:
        self._window_bits = _WINDOW_BITS[encoding]
        self._encoding = encoding
        self._limit = limit
        self._grow = grow
        self._stream = zlib.decompressobj(self._window_bits)
        self._body = bytearray()

    def feed(self, data: bytes | bytearray) -> None:
        """Inflate the next bytes of the body."""
        view = memoryview(data)  # in pieces, for zlib copies what it leaves
        for start in range(0, len(view), _PIECE):
            self._feed_piece(view[start : start + _PIECE])

    def finish(self) -> bytearray:
        """Give the whole body."""
        if not self._stream.eof:
            raise BadRequest(f"the body ends before its {self._encoding} stream does")
        return self._body

    def _feed_piece(self, data: bytes | memoryview) -> None:
        while data:
            if self._stream.eof:
                if self._encoding != "gzip":
                    raise BadRequest(f"the {self._encoding} stream is followed by other bytes")
                self._stream = zlib.decompressobj(self._window_bits)
            full = True
            while full:  # zlib may hold more than it was asked for, and no input left
                size = min(4 * _PIECE, self._limit - len(self._body) + 1)
                full = self._inflate(data, size) == size
                data = self._stream.unconsumed_tail
            data = self._stream.unused_data

    def _inflate(self, data: bytes | memoryview, size: int) -> int:
        try:
            inflated = self._stream.decompress(data, size)
        except zlib.error as error:
            raise BadRequest(f"the body is not a {self._encoding} stream") from error
        if len(self._body) + len(inflated) > self._limit:
            raise TooLarge(f"the body inflates to more than the limit of {self._limit} bytes (GLOW_MAX_BODY_BYTES)")
        self._grow(len(inflated))
        self._body += inflated
        return len(inflated)


def compress(parts: Iterable[bytes | memoryview], encoding: str) -> bytes:
    """Compress the parts of an answer into one stream, as fast as it can be."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return b"".join([*map(stream.compress, parts), stream.flush()])
