"""The routes: parse -> await -> answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from service import noise, openapi
from service.artifact import Manifest
from service.codecs import image, json_body, npy
from service.errors import (
    DeadlineExceeded,
    TooLarge,
    Unavailable,
    Unprocessable,
    UnsupportedMediaType,
)
from service.flows import Flows
from service.negotiation import MEDIA_TYPES, choose_format
from service.options import (
    EncodeOptions,
    ExampleOptions,
    Format,
    RowOptions,
    SampleOptions,
    ScoreOptions,
    read_options,
)
from service.rows import inputs_from_array, inputs_from_json, latents_from_array, latents_from_json
from service.settings import Settings

Array = npt.NDArray[Any]
Params = ParamSpec("Params")
Result = TypeVar("Result")
_SMALL = 2**16  # bytes or entries that take the event loop less than about a millisecond

Handler = Callable[[Request], Awaitable[Response]]

router = APIRouter()


def within_deadline(handler: Handler) -> Handler:
    """Answer 504 when the deadline passes, wherever the request is by then."""

    @wraps(handler)
    async def bounded(request: Request) -> Response:
        deadline_s = _settings(request).deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                return await handler(request)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {deadline_s:g} s (GLOW_DEADLINE_S)") from None

    return bounded


@router.post("/log-likelihood", **openapi.LOG_LIKELIHOOD)
@within_deadline
async def log_likelihood(request: Request) -> Response:
    """Log-likelihood of each input in nats and bits per dimension and, calibrated, its anomaly score and p-value."""
    call = await _read_rows(request, ScoreOptions, "inputs")
    answer_format = choose_format(_accept(request), call.options.format, ("json", "npy"))
    noisy = call.options.dequantization
    scored = await _flows(request).score(
        call.manifest,
        call.rows,
        call.options.alpha,
        call.options.reproducible,
        noisy.samples if noisy else 0,
        noisy.seed if noisy else 0,
    )
    values = {name: value for name, value in vars(scored).items() if value is not None}
    return await _answer(answer_format, call.manifest, values, "log_likelihood")


@router.post("/encode", **openapi.ENCODE)
@within_deadline
async def encode(request: Request) -> Response:
    """Latent code of each input, a vector that is N(0, I) under the model, and its log-likelihood."""
    call = await _read_rows(request, EncodeOptions, "inputs")
    answer_format = choose_format(_accept(request), call.options.format, ("json", "npy"))
    latents, log_prob = await _flows(request).encode(call.manifest, call.rows, call.options.reproducible)
    return await _answer(answer_format, call.manifest, {"latents": latents, "log_likelihood": log_prob}, "latents")


@router.post("/decode", **openapi.DECODE)
@within_deadline
async def decode(request: Request) -> Response:
    """Input of each latent code: the inverse of /encode, in the model's units, not rounded (PNG: rounded)."""
    call = await _read_rows(request, RowOptions, "latents")
    answer_format = choose_format(_accept(request), call.options.format, _formats(call.manifest))
    outputs = await _flows(request).decode(call.manifest, call.rows, call.options.reproducible)
    return await _answer(answer_format, call.manifest, {"outputs": outputs}, "outputs")


@router.post("/sample", **openapi.SAMPLE)
@within_deadline
async def sample(request: Request) -> Response:
    """New inputs drawn from the model, and their log-likelihood under it (at temperature 1)."""
    body = await _read_body(request)
    if body and _media_type(request) != json_body.MEDIA_TYPE:
        raise UnsupportedMediaType(f"the body of /sample must be {json_body.MEDIA_TYPE}")
    options = read_options(SampleOptions, _query(request), json_body.read_object(body) if body else None)
    return await _sample(request, options)


@router.get("/sample", **openapi.SAMPLE_BY_QUERY)
@within_deadline
async def sample_by_query(request: Request) -> Response:
    """As POST /sample, the options in the query."""
    return await _sample(request, read_options(SampleOptions, _query(request)))


async def _sample(request: Request, options: SampleOptions) -> Response:
    flows = _flows(request)
    manifest = flows.manifest(options.model)
    answer_format = choose_format(_accept(request), options.format, _formats(manifest))
    seed = noise.random_seed() if options.seed is None else options.seed
    temperature = manifest.temperature if options.temperature is None else options.temperature
    samples = await flows.sample(manifest, options.n, temperature, seed)
    values: dict[str, object] = {"samples": samples}
    if answer_format == "json":  # no other format has a place for it
        values["log_likelihood"] = await flows.log_likelihood(manifest, samples, reproducible=True)
    return await _answer(answer_format, manifest, {**values, "seed": seed}, "samples")


@router.get("/models", **openapi.MODELS)
async def models(request: Request) -> Response:
    """Every served model, and the one that answers when none is named."""
    flows = _flows(request)
    summary = [_public(manifest, _SUMMARY_FIELDS) for manifest in flows.manifests.values()]
    return _json({"default": flows.default, "models": summary})


@router.get("/models/{name}", **openapi.MODEL)
async def model(request: Request, name: str) -> Response:
    """The public part of a model's manifest."""
    return _json(_public(_flows(request).manifest(name), _PUBLIC_FIELDS))


@router.get("/models/{name}/example", **openapi.EXAMPLE)
async def example(request: Request, name: str) -> Response:
    """A valid input, from the model's held-out data: as JSON, the body of /log-likelihood and /encode."""
    manifest = _flows(request).manifest(name)
    options = read_options(ExampleOptions, _query(request))
    answer_format = choose_format(_accept(request), options.format, _formats(manifest))
    x = np.asarray(manifest.golden.inputs[:1], manifest.input_dtype).reshape(1, *manifest.shape)
    if answer_format == "json":
        return _json({"model": name, "inputs": x})
    return await _answer(answer_format, manifest, {"inputs": x}, "inputs")


@router.get("/livez", **openapi.LIVEZ)
async def livez() -> Response:
    """The process runs."""
    return _json({"status": "ok"})


@router.get("/readyz", **openapi.READYZ)
async def readyz(request: Request) -> Response:
    """Every model is verified and warm."""
    _flows(request)
    return _json({"status": "ok"})


@router.get("/", include_in_schema=False)
async def root() -> Response:
    """Send a browser to the documentation."""
    return RedirectResponse("/docs")


_SUMMARY_FIELDS = ("name", "version", "description", "kind", "shape")
_PUBLIC_FIELDS = (
    *_SUMMARY_FIELDS,
    "columns",
    "value_range",
    "latent_layout",
    "statistics",
    "temperature",
    "recipe",
    "data_digest",
    "test",
    "torch_version",
    "licence",
)


def _public(manifest: Manifest, fields: tuple[str, ...]) -> dict[str, Any]:
    values = manifest.model_dump(mode="json", include=set(fields), exclude_none=True)
    calibration = manifest.calibration
    if calibration is not None and fields is _PUBLIC_FIELDS:
        values["calibration"] = {
            "score": calibration.score,
            "alpha": calibration.alpha,
            "rows": len(calibration.values),
        }
    return values


RowsOptions = TypeVar("RowsOptions", bound=RowOptions)


@dataclass(frozen=True)
class _Rows(Generic[RowsOptions]):
    manifest: Manifest
    options: RowsOptions
    rows: Array


async def _read_rows(
    request: Request, kind: type[RowsOptions], field: Literal["inputs", "latents"]
) -> _Rows[RowsOptions]:
    """Read the rows and options of a request, whatever the media type of its body."""
    flows = _flows(request)
    media_type, query = _media_type(request), _query(request)
    body = await _read_body(request)
    if media_type == json_body.MEDIA_TYPE:
        values = json_body.read_object(body)
        if field not in values:
            raise Unprocessable(f"the body has no member {field!r}")
        value = values.pop(field)
        options = read_options(kind, query, values)
        manifest = flows.manifest(options.model)
        if isinstance(value, list):  # before any of it is decoded
            flows.check_rows(len(value), "rows")
        read_json = inputs_from_json if field == "inputs" else latents_from_json
        return _Rows(manifest, options, await _off_loop(len(body), read_json, value, manifest))
    options = read_options(kind, query)
    manifest = flows.manifest(options.model)
    if media_type == npy.MEDIA_TYPE:
        read_array = inputs_from_array if field == "inputs" else latents_from_array
        return _Rows(manifest, options, read_array(npy.read(body), manifest))
    accepted = [json_body.MEDIA_TYPE, npy.MEDIA_TYPE]
    if field == "inputs" and manifest.value_range is not None and manifest.is_picture:
        if media_type in image.MEDIA_TYPES:
            pixels = image.read(body, manifest.shape, manifest.value_range, "the image")
            return _Rows(manifest, options, pixels[None])
        accepted += image.MEDIA_TYPES
    raise UnsupportedMediaType(f"the body must be {', '.join(accepted)}")


async def _off_loop(size: int, work: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
    """Do small work here and large work (``size`` bytes or entries) on a thread, so that other requests go on."""
    return work(*args, **kwargs) if size <= _SMALL else await asyncio.to_thread(work, *args, **kwargs)


async def _read_body(request: Request) -> bytearray:
    """Read a body, never more of it than the limit. Raises TooLarge."""
    limit = _settings(request).max_body_bytes
    announced = request.headers.get("content-length", "0")
    body = bytearray()  # writable, so that an array can view it without a copy
    if announced.isdecimal() and int(announced) > limit:
        raise TooLarge(f"a body of {announced} bytes is over the limit of {limit} (GLOW_MAX_BODY_BYTES)")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("compressed bodies are not read; send the body without Content-Encoding")
    async for part in request.stream():
        if len(body) + len(part) > limit:
            raise TooLarge(f"the body is over the limit of {limit} bytes (GLOW_MAX_BODY_BYTES)")
        body += part
    return body


def _media_type(request: Request) -> str:
    """Media type of the body; JSON where none is named."""
    return request.headers.get("content-type", json_body.MEDIA_TYPE).partition(";")[0].strip().lower()


def _accept(request: Request) -> str:
    return ",".join(request.headers.getlist("accept"))


def _query(request: Request) -> list[tuple[str, str]]:
    return request.query_params.multi_items()


def _flows(request: Request) -> Flows:
    """The served models. Raises Unavailable before they are warm and after they have stopped."""
    flows: Flows | None = request.app.state.flows
    if flows is None:
        raise Unavailable("the service is not ready")
    return flows


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _formats(manifest: Manifest) -> tuple[Format, ...]:
    """Formats of an answer that holds inputs of a model."""
    return ("json", "npy", "png") if manifest.is_picture else ("json", "npy")


async def _answer(answer_format: Format, manifest: Manifest, values: Mapping[str, object], main: str) -> Response:
    """Write an answer: all values as JSON, or the main array as binary with the rest of importance in headers."""
    array = np.asarray(values[main])
    if answer_format == "json":
        content = await _off_loop(
            array.size, json_body.write, {"model": manifest.name, "version": manifest.version, **values}
        )
        return Response(content, media_type=MEDIA_TYPES["json"])
    if answer_format == "npy":
        content = npy.write(array)
    else:
        assert manifest.value_range is not None  # _formats offers PNG for images alone
        content = await _off_loop(array.size, image.write_grid, array, manifest.value_range)
    headers = {"x-glow-model": manifest.name, "x-glow-version": manifest.version}
    if "seed" in values:
        headers["x-glow-seed"] = str(values["seed"])
    return Response(content, media_type=MEDIA_TYPES[answer_format], headers=headers)


def _json(values: dict[str, Any]) -> Response:
    return Response(json_body.write(values), media_type=json_body.MEDIA_TYPE)
