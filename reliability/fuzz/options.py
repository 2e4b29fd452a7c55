"""What stands in a request's line and head: options, media types, keys and times."""

from __future__ import annotations

import math
from collections.abc import Iterable

from reliability.fuzz.target import Target
from service.access import scope_of
from service.errors import Unprocessable
from service.negotiation import MEDIA_TYPES, choose_format, read_ratings
from service.options import ExampleOptions, SampleOptions, ScoreOptions, read_options


def read_query(query: bytes) -> None:
    """Options of a query are those that the same JSON would be, and one route at least takes them."""
    refused = []
    for kind in (ScoreOptions, SampleOptions, ExampleOptions):
        try:
            options = read_options(kind, query)
        except Unprocessable as error:
            refused.append(error)
        else:
            assert kind.model_validate_json(options.model_dump_json(exclude_unset=True)) == options
    if len(refused) == 3:
        raise refused[0]


def read_accept(header: bytes) -> None:
    """A media type that an Accept header allows is chosen, and ratings lie between 0 and 1."""
    text = header.decode("latin-1")
    assert all(0 <= rating <= 1 and math.isfinite(rating) for rating in read_ratings(text).values())
    assert choose_format(text, None, ("json", "npy", "arrow")) in MEDIA_TYPES
    assert scope_of("POST", text) in ("infer", "admin", "metrics")


def query_seeds() -> Iterable[bytes]:
    """Options of all routes."""
    return [
        b"model=a&format=png&n=3&seed=1&first=2",
        b"temperature=0.5&n=1",
        b"alpha=0.1&guarantee=conditional&scores=typicality,complexity&explain=true",
        b"fdr=.5&dequantization_samples=3&dequantization_seed=4&dequantization_first=5&reproducible=1",
    ]


def accept_seeds() -> Iterable[bytes]:
    """Headers of browsers and programs."""
    return [b"text/html, application/json;q=0.9, */*;q=0.1", b"application/x-npy ; Q = 1.0", b"*", b"image/*;q=2"]


TARGETS = [
    Target("query", read_query, query_seeds, words=(b"&", b"=", b"%2c", b"%00", b"inf", b"nan", b"1e999", b"_seed=")),
    Target("accept", read_accept, accept_seeds, words=(b"application/", b";q=", b"nan", b"inf", b"*/*")),
]
