"""A thousand small clients, each with a connection of its own, alone and beside one that asks for as much as it may."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.serving.bodies import MEDIA_TYPES, Array, Media, encoded
from benchmarks.serving.client import Client, Outcome
from benchmarks.serving.servers import KEY
from benchmarks.serving.wrk import drive

CLIENTS = 1000
JOINING_S, SETTLED_S = 2.0, 3.0  # in which each asks once, and from when on latencies count
PATIENCE_S = 70.0  # for an answer
MOST_ROWS = 4096  # of a request


@dataclass(frozen=True)
class Huge:
    """Who asks beside them: requests of as many rows as one may have, on so many connections, without a pause."""

    media: Media
    connections: int

    def __str__(self) -> str:
        many = "one at a time" if self.connections == 1 else f"{self.connections} at a time"
        return f"{MOST_ROWS:,} rows, {self.media}, {many}"


HUGE = (None, Huge("npy", 1), Huge("json", 1), Huge("npy", 4))


@contextmanager
def no_pauses() -> Iterator[None]:
    """Without the garbage collector, whose pauses would be taken for the service's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _ask(url: str, body: bytes, media_type: str, rate: float, seconds: float, seed: int) -> list[Outcome]:
    random = np.random.default_rng(seed)

    def times() -> list[float]:
        own = np.sort(random.uniform(0, seconds, random.poisson(rate * seconds / CLIENTS)))
        return [float(random.uniform(0, JOINING_S)), *map(float, SETTLED_S + own)]

    clients = (Client(url, body, media_type, PATIENCE_S, KEY) for _ in range(CLIENTS))
    outcomes = await asyncio.gather(*(client.run(times()) for client in clients))
    return [one for of in outcomes for one in of if one.scheduled >= SETTLED_S]


def beside(
    huge: Huge | None, url: str, rows_of: Callable[[int], Array], rate: float, seconds: float, folder: Path, seed: int
) -> list[Outcome]:
    """What became of the small clients' requests, one row each, so many a second of all of them together."""
    with ThreadPoolExecutor(1) as threads, no_pauses():
        if huge is not None:
            body = folder / f"huge.{huge.media}"
            body.write_bytes(encoded(rows_of(MOST_ROWS), huge.media))
            load = threads.submit(drive, url, body, MEDIA_TYPES[huge.media], huge.connections, SETTLED_S + seconds, KEY)
        outcomes = uvloop.run(_ask(url, encoded(rows_of(1), "json"), MEDIA_TYPES["json"], rate, seconds, seed))
        if huge is not None:
            load.result()  # raises where nobody asked
        return outcomes
