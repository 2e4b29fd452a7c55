"""Which media type an answer takes: the Accept header, or ``format`` over it."""

from __future__ import annotations

from service.codecs import image, json_body, npy
from service.errors import NotAcceptable
from service.options import Format

MEDIA_TYPES: dict[Format, str] = {"json": json_body.MEDIA_TYPE, "npy": npy.MEDIA_TYPE, "png": image.MEDIA_TYPES[0]}


def choose_format(accept: str | None, wanted: Format | None, offered: tuple[Format, ...]) -> Format:
    """Pick a format; ``offered`` is in the order of preference and JSON answers ``*/*``. Raises NotAcceptable."""
    if wanted is not None:
        if wanted in offered:
            return wanted
        raise NotAcceptable(f"format {wanted!r} cannot carry this answer; offered are {', '.join(offered)}")
    if not accept or not accept.strip():
        return "json"
    best: tuple[float, Format] | None = None
    for media_range, quality in _ranges(accept):
        for candidate in offered:
            if quality > 0 and _matches(media_range, MEDIA_TYPES[candidate]) and (best is None or quality > best[0]):
                best = (quality, candidate)
    if best is None:
        media_types = ", ".join(MEDIA_TYPES[candidate] for candidate in offered)
        raise NotAcceptable(f"the answer comes as {media_types}; the Accept header allows none of them")
    return best[1]


def _ranges(accept: str) -> list[tuple[str, float]]:
    ranges = []
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        ranges.append((media_range, quality))
    return ranges


def _matches(media_range: str, media_type: str) -> bool:
    kind, _, subtype = media_range.partition("/")
    return (
        media_range in ("*/*", "*")
        or media_range == media_type
        or (subtype == "*" and media_type.startswith(f"{kind}/"))
    )
