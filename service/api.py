"""The routes: parse -> await -> answer. FastAPI documents those that run a model; service.front calls them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from service import noise
from service.answer import answer, formats_of_arrays, formats_of_inputs, json_answer
from service.artifact import Manifest
from service.call import Body, Call, flows_of, service_of
from service.codecs import ANY_BINARY, arrow, image, json_body, npy, sniff
from service.engine import Model
from service.errors import TooLarge, UnsupportedMediaType
from service.flows import Flows
from service.levels import default_alpha
from service.metrics import MEDIA_TYPE as METRICS_MEDIA_TYPE
from service.negotiation import choose_format
from service.openapi import routes
from service.options import EncodeOptions, ExampleOptions, RowOptions, SampleOptions, ScoreOptions, read_options
from service.rows import (
    inputs_from_array,
    inputs_from_arrow,
    inputs_from_json,
    latents_from_array,
    latents_from_arrow,
    latents_from_json,
)
from service.scores import highest_normal_score, score_histogram, score_summary

Array = npt.NDArray[Any]
Endpoint = Callable[[Call], Awaitable[Response]]
RowsOptions = TypeVar("RowsOptions", bound=RowOptions)
PLAYGROUND = Path(__file__).parent / "playground"
_SMALL_BODY, _SMALL_ARRAY = 2**16, 2**22  # bytes that take the event loop less than about a millisecond to parse

router = APIRouter()


@router.post("/log-likelihood", **routes.LOG_LIKELIHOOD)
async def log_likelihood(call: Call) -> Response:
    """Log-likelihood of each input in nats and bits per dimension and, calibrated, its anomaly score and p-value.

    With `explain`, also what each pixel or column contributes to it.
    """
    model, options, rows = await _read_rows(call, ScoreOptions, "inputs")
    manifest = model.manifest
    formats = formats_of_arrays(picture=options.explain and manifest.kind == "image")
    answer_format = choose_format(call.header("accept"), options.format, formats)
    if answer_format == "png":
        image.check_overlays(rows.shape)
    values = await call.flows.score(call.budget, model, rows, options)
    if not options.explain:
        return await answer(call, answer_format, manifest, values, "log_likelihood")
    return await answer(call, answer_format, manifest, values, "contributions", partial(image.write_overlays, rows))


@router.post("/encode", **routes.ENCODE)
async def encode(call: Call) -> Response:
    """Latent code of each input, a vector that is N(0, I) under the model, and its log-likelihood."""
    model, options, rows = await _read_rows(call, EncodeOptions, "inputs")
    answer_format = choose_format(call.header("accept"), options.format, formats_of_arrays())
    latents, log_prob = await call.flows.encode(call.budget, model, rows, options.reproducible)
    return await answer(
        call, answer_format, model.manifest, {"latents": latents, "log_likelihood": log_prob}, "latents"
    )


@router.post("/decode", **routes.DECODE)
async def decode(call: Call) -> Response:
    """Input of each latent code: the inverse of /encode, in the model's units, not rounded (PNG: rounded)."""
    model, options, rows = await _read_rows(call, RowOptions, "latents")
    manifest = model.manifest
    answer_format = choose_format(call.header("accept"), options.format, formats_of_inputs(manifest))
    outputs = await call.flows.decode(call.budget, model, rows, options.reproducible)
    return await answer(call, answer_format, manifest, {"outputs": outputs}, "outputs")


@router.post("/sample", **routes.SAMPLE)
async def sample(call: Call) -> Response:
    """New inputs drawn from the model, and their log-likelihood under it (at temperature 1)."""
    body = await call.read_body()
    if len(body) > _SMALL_BODY:  # parsing holds the interpreter
        raise TooLarge(f"a body of {len(body)} bytes is over the limit of {_SMALL_BODY} for options alone")
    if body and call.media_type != json_body.MEDIA_TYPE:
        raise UnsupportedMediaType(f"the body of /sample must be {json_body.MEDIA_TYPE}")
    return await _sample(call, read_options(SampleOptions, call.query, json_body.read_object(body) if body else {}))


@router.get("/sample", **routes.SAMPLE_BY_QUERY)
async def sample_by_query(call: Call) -> Response:
    """As POST /sample, the options in the query."""
    await call.read_body()
    return await _sample(call, read_options(SampleOptions, call.query))


async def _sample(call: Call, options: SampleOptions) -> Response:
    flows = call.flows
    model = flows.find(options.model)
    manifest = model.manifest
    answer_format = choose_format(call.header("accept"), options.format, formats_of_inputs(manifest))
    seed = noise.random_seed() if options.seed is None else options.seed
    temperature = manifest.temperature if options.temperature is None else options.temperature
    call.begin(model, options.n)
    samples = await flows.sample(call.budget, model, options.n, temperature, seed, options.first)
    values: dict[str, object] = {"samples": samples}
    if answer_format == "json":  # the others carry samples alone, to be sent back as they are
        values["log_likelihood"] = await flows.log_likelihood(call.budget, model, samples, reproducible=True)
    return await answer(call, answer_format, manifest, {**values, "seed": seed}, "samples")


# What service.front calls without FastAPI's or Starlette's help.
ENDPOINTS: dict[tuple[str, str], Endpoint] = {
    ("POST", "/log-likelihood"): log_likelihood,
    ("POST", "/encode"): encode,
    ("POST", "/decode"): decode,
    ("POST", "/sample"): sample,
    ("GET", "/sample"): sample_by_query,
}


@router.get("/models", **routes.MODELS)
async def list_models(request: Request) -> Response:
    """Every served model and version, and the name of the one that answers when none is named."""
    flows = flows_of(request)
    catalog = flows.catalog
    summary = [
        {
            **_public(flows, model.manifest, routes.SUMMARY),
            "digest": model.digest,
            "answers_for_name": catalog.answers_for_name(model),
        }
        for model in catalog.models
    ]
    return json_answer({"default": catalog.default.name, "models": summary})


@router.get("/models/{name}", **routes.MODEL)
async def get_model(request: Request, name: str) -> Response:
    """The public part of a model's manifest."""
    flows = flows_of(request)
    model = flows.find(name)
    about = {"digest": model.digest, "versions": [one.version for one in flows.catalog.versions(model.name)]}
    return json_answer({**_public(flows, model.manifest, routes.PUBLIC), **about})


@router.get("/models/{name}/example", **routes.EXAMPLE)
async def get_example(request: Request, name: str) -> Response:
    """Valid inputs, from the model's held-out data: as JSON, the body of /log-likelihood and /encode."""
    call = Call(request.scope, request.receive)
    manifest = call.flows.find(name).manifest
    options = read_options(ExampleOptions, call.query)
    answer_format = choose_format(call.header("accept"), options.format, formats_of_inputs(manifest))
    x = np.asarray(manifest.golden.inputs[: options.n], manifest.input_dtype).reshape(-1, *manifest.shape)
    if answer_format == "json":
        return json_answer({"model": name, "inputs": x})
    return await answer(call, answer_format, manifest, {"inputs": x}, "inputs")


@router.get("/models/{name}/drift", **routes.DRIFT)
async def get_drift(request: Request, name: str) -> Response:
    """Whether the rows that /log-likelihood scored still come from where the model's calibration rows came from."""
    return _drift(request, name)


@router.post("/models/{name}/drift/reset", **routes.DRIFT)
async def reset_drift(request: Request, name: str) -> Response:
    """Watch a model's drift anew, after a recalibration elsewhere or a cause found: the answer is that of no row."""
    flows = flows_of(request)
    flows.drift(flows.find(name)).reset()
    return _drift(request, name)


@router.post("/admin/reload", **routes.RELOAD)
async def reload(request: Request) -> Response:
    """Read keys and artifacts anew: what is new is verified and warmed up while requests go on, then served.

    Requests under way end with the model that they began with. If anything is wrong, nothing changes.
    """
    return json_answer(await service_of(request).reload_all())


@router.get("/livez", **routes.LIVEZ)
async def get_livez(request: Request) -> Response:
    """The process runs, and its engine is not stuck; models may still be loading."""
    service_of(request).check_alive()
    return json_answer({"status": "ok"})


@router.get("/readyz", **routes.READYZ)
async def get_readyz(request: Request) -> Response:
    """Every model is verified and warm, and the service is not about to end."""
    service_of(request).check_ready()
    return json_answer({"status": "ok"})


@router.get("/metrics", **routes.METRICS)
async def get_metrics(request: Request) -> Response:
    """Figures of the service for Prometheus, of all its workers."""
    return Response(service_of(request).metrics.text(), media_type=METRICS_MEDIA_TYPE)


@router.get("/", include_in_schema=False)
async def playground() -> Response:
    """The page on which people try models out. It asks this service alone, and runs and shows nothing else."""
    policy = _PAGE_POLICY.format(scripts="", styles="")
    return FileResponse(PLAYGROUND / "index.html", headers={"content-security-policy": policy})


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The page on which people read /openapi.json and try the routes; it asks for a key where that needs one."""
    return HTMLResponse(_DOCS_PAGE, headers={"content-security-policy": _DOCS_POLICY})


_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self'{styles}; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_PAGE = (Path(__file__).parent / "openapi" / "docs.html").read_text(encoding="utf-8")
_SCRIPT = _DOCS_PAGE.partition("<script>")[2].partition("</script>")[0]
_SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_DOCS_POLICY = _PAGE_POLICY.format(scripts=f" 'sha256-{_SCRIPT_DIGEST}'", styles=" 'unsafe-inline'")


def _public(flows: Flows, manifest: Manifest, fields: tuple[str, ...]) -> dict[str, Any]:
    values = manifest.model_dump(mode="json", include=set(fields), exclude_none=True)
    if fields is not routes.PUBLIC:
        return values
    scoring, calibration = manifest.scoring, manifest.calibration
    values["scoring"] = {
        "default": scoring.default,
        "scores": scoring.names,
        "typical": scoring.typical,
        **({"codec": scoring.codec} if scoring.codec else {}),
        **({"density": scoring.density.statistics} if scoring.density else {}),
    }
    if calibration is not None:
        alpha, known = default_alpha(flows.settings, calibration), calibration.arrays[scoring.default]
        values["calibration"] = {
            "score": scoring.default,
            "alpha": alpha,
            "rows": calibration.num_rows,
            "approximate": calibration.approximate,
            "threshold": highest_normal_score(known, alpha),
            "summary": score_summary(known),
            "histogram": score_histogram(known),
        }
    return values


def _drift(request: Request, name: str) -> Response:
    flows = flows_of(request)
    model = flows.find(name)
    reading = flows.drift(model).read().model_dump(mode="json", exclude_none=True)
    return json_answer({"model": model.name, "version": model.version, **reading})


async def _read_rows(
    call: Call, kind: type[RowsOptions], field: Literal["inputs", "latents"]
) -> tuple[Model, RowsOptions, Array]:
    """Read a model, options and rows, whatever the media type of the body."""
    body = await call.read_body()
    if len(body) <= (_SMALL_ARRAY if call.media_type == npy.MEDIA_TYPE else _SMALL_BODY):
        model, options, rows = _parse_rows(call, body, kind, field)
    else:
        model, options, rows = await asyncio.to_thread(_parse_rows, call, body, kind, field)
    call.begin(model, len(rows))
    return model, options, rows


def _parse_rows(
    call: Call, body: Body, kind: type[RowsOptions], field: Literal["inputs", "latents"]
) -> tuple[Model, RowsOptions, Array]:
    flows, media_type = call.flows, call.media_type
    if media_type == ANY_BINARY:
        media_type = sniff(body)
    if media_type == json_body.MEDIA_TYPE:
        json_body.check_values(body, len(body), flows.settings.max_request_rows, flows.catalog.most_dims)
        value, members = json_body.read_rows(body, field, partial(flows.check_rows, None, what="rows"))
        options = read_options(kind, call.query, members)
        model = flows.find(options.model)
        read_json = inputs_from_json if field == "inputs" else latents_from_json
        return model, options, read_json(value, model.manifest)
    options = read_options(kind, call.query)
    model = flows.find(options.model)
    manifest = model.manifest
    check_rows = partial(flows.check_rows, model, what="rows")  # before they are decoded
    if media_type == npy.MEDIA_TYPE:
        read_array = inputs_from_array if field == "inputs" else latents_from_array
        return model, options, read_array(npy.read(_writable(body), check_rows), manifest)
    if media_type == arrow.MEDIA_TYPE:
        read_columns = inputs_from_arrow if field == "inputs" else latents_from_arrow
        return model, options, read_columns(arrow.read(_writable(body), check_rows), manifest)
    accepted = [json_body.MEDIA_TYPE, npy.MEDIA_TYPE, arrow.MEDIA_TYPE]
    if field == "inputs" and manifest.value_range is not None and manifest.is_picture:
        if media_type in image.MEDIA_TYPES:
            pixels = image.read(body, manifest.shape, manifest.value_range, "the image")
            return model, options, pixels[None]
        accepted += image.MEDIA_TYPES
    raise UnsupportedMediaType(f"the body is {media_type[:100]!r}; it must be {', '.join(accepted)}")


def _writable(body: Body) -> bytearray:
    """The same bytes where rows that are views of them may be given to torch, which wants to be able to write."""
    return body if isinstance(body, bytearray) else bytearray(body)
