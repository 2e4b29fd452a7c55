"""Ways from the bytes of ``{"inputs": rows}`` to an array: median times of interleaved repeats.

Only the service's own way, and the one it falls back to, check every number and every length; the others are bounds
of what a check could be added to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from benchmarks.timing import interleaved
from common.cli import Parser, run_command
from service.codecs import json_body

Array = npt.NDArray[np.float64]
_typed = msgspec.json.Decoder(dict[str, list[list[float]]])
_typed_images = msgspec.json.Decoder(dict[str, list[list[list[list[float]]]]])


def _fallback(body: bytes) -> Array:
    return json_body.read_numbers(orjson.loads(body)["inputs"], "inputs")


def _service(body: bytes) -> object:
    return json_body.read_rows(body, "inputs", lambda _: None)[0]


def _orjson_array(body: bytes) -> Array:
    return np.array(orjson.loads(body)["inputs"], np.float64)


def _orjson_fromiter(body: bytes) -> Array:
    level = orjson.loads(body)["inputs"]
    shape = [len(level)]
    while isinstance(level[0], list):
        shape.append(len(level[0]))
        level = list(chain.from_iterable(level))
    return np.fromiter(level, np.float64, len(level)).reshape(shape)


def _msgspec(body: bytes) -> object:
    return (_typed_images if body.startswith(b'{"inputs": [[[') else _typed).decode(body)["inputs"]


def _simdjson(body: bytes) -> Array:
    document: Any = simdjson.Parser().parse(body)
    return np.frombuffer(document["inputs"].as_buffer(of_type="d"))


WAYS: dict[str, Callable[[bytes], object]] = {
    "read_rows": _service,
    "orjson, checked": _fallback,
    "orjson, np.array": _orjson_array,
    "orjson, fromiter": _orjson_fromiter,
    "orjson, lists": lambda body: orjson.loads(body)["inputs"],
    "msgspec, lists": _msgspec,
    "simdjson, flat": _simdjson,
}


def bodies() -> dict[str, bytes]:
    """One body a row of the table."""
    random = np.random.default_rng(0)
    normal, pixels = random.normal(size=(4096, 30)), random.integers(0, 256, (64, 784))
    rows = {
        "1x30, 17 digits": normal[:1],
        "64x30, 17 digits": normal[:64],
        "4096x30, 17 digits": normal,
        "4096x30, 6 digits": normal.round(6),
        "64x784 whole": pixels,
        "64x1x28x28 whole": pixels.reshape(64, 1, 28, 28),
    }
    return {name: json.dumps({"inputs": array.tolist()}).encode() for name, array in rows.items()}


def main(argv: list[str]) -> None:
    """Print the table, in microseconds."""
    Parser("python -m benchmarks.json_parsing", __doc__).parse_args(argv)
    print(f"{'':20}" + "".join(f"{name:>18}" for name in WAYS))
    for name, body in bodies().items():
        repeats = max(1, 20_000 // len(body))

        def repeated(way: Callable[[bytes], object], body: bytes = body, repeats: int = repeats) -> Callable[[], None]:
            def run() -> None:
                for _ in range(repeats):
                    way(body)

            return run

        seconds = interleaved({way: repeated(function) for way, function in WAYS.items()}, rounds=25)
        print(f"{name:20}" + "".join(f"{1e6 * seconds[way] / repeats:18.1f}" for way in WAYS))


if __name__ == "__main__":
    run_command(main)
