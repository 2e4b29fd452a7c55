"""Which media type an answer takes: the Accept header, or ``format`` over it."""

from __future__ import annotations

from functools import lru_cache

from service.codecs import arrow, image, json_body, npy
from service.errors import NotAcceptable
from service.options import Format

MEDIA_TYPES: dict[Format, str] = {
    "json": json_body.MEDIA_TYPE,
    "npy": npy.MEDIA_TYPE,
    "arrow": arrow.MEDIA_TYPE,
    "png": image.MEDIA_TYPES[0],
}


_REMEMBERED = 256  # characters of a header that is worth it


def choose_format(accept: str, wanted: Format | None, offered: tuple[Format, ...]) -> Format:
    """Pick the format rated highest, the first offered of equals; JSON where nothing is asked for.

    A format's rating is that of the most specific range that names it (RFC 9110, section 12.5.1). Raises NotAcceptable.
    """
    return (_choose_again if len(accept) <= _REMEMBERED else _choose)(accept, wanted, offered)


def _choose(accept: str, wanted: Format | None, offered: tuple[Format, ...]) -> Format:
    if wanted is not None:
        if wanted in offered:
            return wanted
        raise NotAcceptable(f"format {wanted!r} cannot carry this answer; offered are {', '.join(offered)}")
    if not accept.strip():
        return offered[0]
    ranges = read_ratings(accept)
    ratings = {candidate: _rating(MEDIA_TYPES[candidate], ranges) for candidate in offered}
    best = max(offered, key=lambda candidate: ratings[candidate])
    if ratings[best] <= 0:
        media_types = ", ".join(MEDIA_TYPES[candidate] for candidate in offered)
        raise NotAcceptable(f"the answer comes as {media_types}; the Accept header allows none of them")
    return best


_choose_again = lru_cache(1024)(_choose)  # callers repeat themselves


def read_ratings(accept: str) -> dict[str, float]:
    """What an Accept header or one of its kin names, in lower case, and how it rates that, 0 to 1."""
    ranges = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value) if 0 <= float(value) <= 1 else 0.0
                except ValueError:
                    quality = 0.0
        ranges[media_range] = quality
    return ranges


def _rating(media_type: str, ranges: dict[str, float]) -> float:
    kind = media_type.partition("/")[0]
    return next((ranges[name] for name in (media_type, f"{kind}/*", "*/*", "*") if name in ranges), 0.0)
