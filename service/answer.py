"""Answers in the format that the caller chose: JSON, or the main array in a binary one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np
from fastapi import Response
from starlette.types import Receive, Scope, Send

from service.artifact import Manifest
from service.codecs import image, json_body, npy
from service.negotiation import MEDIA_TYPES
from service.options import Format

_SMALL = 2**16  # entries that take the event loop less than about a millisecond
_PART_BYTES = 2**18  # of a large answer, sent at once

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Parts(Response):
    """A body that is sent in parts, each when the connection has room for it, so that none is copied as a whole."""

    def __init__(self, parts: list[Any], media_type: str, headers: Mapping[str, str]) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        size = sum(len(view) for view in views)
        super().__init__(None, 200, {**headers, "content-length": str(size)}, media_type)
        self._views = views

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for view in self._views:
            for start in range(0, len(view), _PART_BYTES):
                part = bytes(view[start : start + _PART_BYTES])
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def formats_of_inputs(manifest: Manifest) -> tuple[Format, ...]:
    """Formats of an answer that holds inputs of a model."""
    return ("json", "npy", "png") if manifest.is_picture else ("json", "npy")


async def answer(answer_format: Format, manifest: Manifest, values: Mapping[str, object], main: str) -> Response:
    """Write an answer: all values as JSON, or the main array as binary with the rest of importance in headers."""
    array = np.asarray(values[main])
    if answer_format == "json":
        content = await _off_loop(
            array.size, json_body.write, {"model": manifest.name, "version": manifest.version, **values}
        )
        return Response(content, media_type=json_body.MEDIA_TYPE)
    headers = {"x-glow-model": manifest.name, "x-glow-version": manifest.version}
    if "seed" in values:
        headers["x-glow-seed"] = str(values["seed"])
    if answer_format == "npy":
        return Parts([npy.write(array)], MEDIA_TYPES["npy"], headers)
    assert manifest.value_range is not None  # formats_of_inputs offers PNG for images alone
    content = await _off_loop(array.size, image.write_grid, array, manifest.value_range)
    return Response(content, media_type=MEDIA_TYPES["png"], headers=headers)


def json_answer(values: dict[str, Any]) -> Response:
    """Write a small JSON object."""
    return Response(json_body.write(values), media_type=json_body.MEDIA_TYPE)


async def _off_loop(size: int, work: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
    """Do small work here and large work on a thread, so that other requests go on."""
    return work(*args, **kwargs) if size <= _SMALL else await asyncio.to_thread(work, *args, **kwargs)
