"""Requests of every kind, right and wrong, in known shares, and callers who leave in the middle of one."""

from __future__ import annotations

import itertools
import socket
import struct
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from benchmarks.serving.bodies import encoded, table_rows
from benchmarks.serving.servers import KEY

LARGE = 4096  # rows of those who hang up


def request(
    method: str, path: str, body: bytes = b"", media_type: str = "application/json", **headers: object
) -> bytes:
    """One whole request."""
    given = {"host": "soak", "content-type": media_type, "content-length": len(body), "x_api_key": KEY, **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "\r\n"]).encode() + body


def mix(table: Path) -> list[tuple[int, str, bytes]]:
    """How often of 100 each request for a model of tables comes, the status that it is to get, and the request."""
    rows, name = table_rows(table, 64), table.stem
    one, many, score = encoded(rows[:1], "json"), encoded(rows, "npy"), f"/log-likelihood?model={name}"
    size = {"binary_data_size": rows.nbytes}
    tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP64", "parameters": size}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    infer, length = f"/v2/models/{name}/infer", {"inference_header_content_length": len(head)}
    return [
        (50, "200", request("POST", score, one)),
        (20, "200", request("POST", score, many, "application/x-npy")),
        (15, "200", request("POST", infer, head + rows.tobytes(), "application/octet-stream", **length)),
        (5, "200", request("POST", f"/encode?model={name}", one)),
        (1, "200", request("GET", f"/sample?model={name}&n=4")),
        (1, "200", request("GET", f"/models/{name}/drift")),
        (2, "422", request("POST", score, orjson.dumps({"inputs": [[1.0, 2.0]]}))),
        (2, "404", request("POST", "/log-likelihood?model=none", one)),
        (2, "401", request("POST", score, one, x_api_key="another")),
        (2, "400", request("POST", score, one[:-1])),
    ]


def write_mix(folder: Path, table: Path) -> tuple[list[Path], dict[str, float]]:
    """Files of 100 requests, those of a kind far from each other; the share of each status that is due."""
    turns, due = [], Counter[str]()
    for number, (times, status, content) in enumerate(mix(table)):
        path = folder / f"{number}.http"
        path.write_bytes(content)
        turns += [(turn / times, path) for turn in range(times)]
        due[status] += times
    return [path for _, path in sorted(turns)], {status: times / due.total() for status, times in due.items()}


class HangUps:
    """Callers of many rows who leave after a part of a request, or all of it, or none; politely or by a reset."""

    def __init__(self, base: str, table: Path) -> None:
        address = urlsplit(base)
        self._address = str(address.hostname), int(address.port or 80)
        body = encoded(table_rows(table, LARGE), "npy")
        self._whole = request("POST", f"/log-likelihood?model={table.stem}", body, "application/x-npy")
        self._stages = itertools.cycle(itertools.product(range(5), (True, False)))

    def next(self) -> None:
        """One of them."""
        quarters, politely = next(self._stages)
        with socket.create_connection(self._address) as connection:
            connection.sendall(self._whole[: len(self._whole) * quarters // 4])
            if not politely:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
