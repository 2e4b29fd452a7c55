"""Answers in the format that the caller chose: JSON, or the main array in a binary one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

import numpy as np
from fastapi import Response
from starlette.types import Receive, Scope, Send

from service.artifact import Manifest
from service.call import Call
from service.codecs import arrow, compression, image, json_body, npy
from service.headers import TOLD, told
from service.negotiation import MEDIA_TYPES
from service.options import Format
from service.row_queue import Array
from service.scorer import named_columns

_SMALL = 2**16  # entries that take the event loop less than about a millisecond
_PART_BYTES = 2**18  # of a large answer, sent at once
_INPUTS = ("inputs", "outputs", "samples")  # arrays of a model's inputs

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Parts(Response):
    """A body that is sent in parts, each when the connection has room for it, so that no copy of the whole is made.

    A caller who does not read it in ``seconds`` is cut off.
    """

    def __init__(
        self, parts: Iterable[bytes | memoryview], media_type: str, headers: Mapping[str, str], seconds: float
    ) -> None:
        size = {"content-length": str(sum(map(len, parts)))} if isinstance(parts, list) else {}
        super().__init__(None, 200, {**headers, **size}, media_type)
        if not size:
            del self.headers["content-length"]
        self._parts = parts
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TimeoutError):  # the server closes a connection whose answer ends early
            async with asyncio.timeout(self._seconds):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                for part in self._parts:
                    for start in range(0, len(part), _PART_BYTES):
                        body = bytes(part[start : start + _PART_BYTES])
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b""})


def formats_of_arrays(picture: bool = False) -> tuple[Format, ...]:
    """Formats of an answer, which may be a picture or not."""
    return ("json", "npy", "arrow", "png") if picture else ("json", "npy", "arrow")


def formats_of_inputs(manifest: Manifest) -> tuple[Format, ...]:
    """Formats of an answer that holds inputs of a model."""
    return formats_of_arrays(manifest.is_picture)


async def answer(
    call: Call,
    answer_format: Format,
    manifest: Manifest,
    values: Mapping[str, Any],
    main: str,
    draw: Callable[[Array, tuple[float, float]], bytes] | None = None,
) -> Response:
    """Write an answer: all values as JSON, all arrays as Arrow, or the main array alone, with the rest in headers.

    ``draw`` makes another PNG of the main array and the model's value range than a grid of images.
    """
    array: Array = np.asarray(values[main])
    seconds = call.settings.deadline_s
    if answer_format == "json":
        content = await off_loop(
            array.size, json_body.write, {"model": manifest.name, "version": manifest.version, **values}
        )
        return await send(call, [content], json_body.MEDIA_TYPE)
    about = {"model": manifest.name, "version": manifest.version}
    about |= {name: str(values[name]) for name in TOLD if name in values}
    headers = {told(name): text for name, text in about.items()}
    media_type = MEDIA_TYPES[answer_format]
    if answer_format == "arrow":
        return Parts(arrow.write_parts(_columns(manifest, values, main), about), media_type, headers, seconds)
    if answer_format == "npy":
        return Parts(npy.write_parts(array), media_type, headers, seconds)
    assert manifest.value_range is not None  # PNG is offered for images alone
    if draw is not None:
        content = await asyncio.to_thread(draw, array, manifest.value_range)
    else:
        content = await off_loop(array.size, image.write_grid, array, manifest.value_range)
    return Response(content, media_type=media_type, headers=headers)


async def send(
    call: Call, parts: list[bytes | memoryview], media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Send an answer, compressed where it is large and the caller accepts that.

    Numbers in binary hardly shrink: they are compressed only for callers that name one encoding and no other, as
    clients do that were told to.
    """
    size, min_size = sum(map(len, parts)), call.settings.gzip_min_bytes
    if size < min(min_size, _PART_BYTES):
        return Response(b"".join(parts), headers=headers, media_type=media_type)
    headers = {**(headers or {}), "vary": "accept-encoding"}
    worth = media_type == json_body.MEDIA_TYPE or "," not in call.header("accept-encoding")
    if size >= min_size and worth and (encoding := call.accepted_encoding):
        parts = [await asyncio.to_thread(compression.compress, parts, encoding)]
        headers["content-encoding"] = encoding
    return Parts(parts, media_type, headers, call.settings.deadline_s)


def _columns(manifest: Manifest, values: Mapping[str, Any], main: str) -> dict[str, Array]:
    """Arrays by the names that they have in an Arrow stream; those of a table's rows are its columns'."""
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    named = values.get("scores", {})
    arrays |= named_columns(named, values.get("p_values", {}), named)
    if main not in _INPUTS:
        return arrays
    rows = arrays[main].reshape(len(arrays[main]), -1)
    if not manifest.columns:
        return {**arrays, main: rows}
    return {column.name: rows[:, j] for j, column in enumerate(manifest.columns)}


def json_answer(values: dict[str, Any]) -> Response:
    """Write a small JSON object."""
    return Response(json_body.write(values), media_type=json_body.MEDIA_TYPE)


async def off_loop(size: int, work: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
    """Do small work here and large work on a thread, so that other requests go on."""
    return work(*args, **kwargs) if size <= _SMALL else await asyncio.to_thread(work, *args, **kwargs)
