"""The endpoints of the Open Inference Protocol. Inferences are run by service.front, the rest by FastAPI."""

from __future__ import annotations

import asyncio
import re
from functools import partial

import orjson
from fastapi import APIRouter, Request, Response
from starlette.types import Scope

from service import headers
from service.answer import json_answer, off_loop, send
from service.api import Endpoint
from service.call import Body, Call, flows_of, service_of
from service.codecs import json_body
from service.engine import Model
from service.errors import BadRequest, TooLarge, Unprocessable
from service.flows import Flows
from service.oip import codec, models, tensors
from service.oip.codec import InferRequest, Output
from service.oip.models import Task, View
from service.oip.statistics import statistics
from service.openapi import VERSION
from service.openapi import oip as docs

EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
_INDEX = "/v2/repository/index"
_INFER = re.compile("/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_SMALL_JSON, _SMALL_BODY = 2**16, 2**22  # bytes that take the event loop less than about a millisecond to parse

router = APIRouter()


def find_endpoint(scope: Scope, path: str) -> tuple[Endpoint | None, str]:
    """The endpoint of what has a body, and the label of its route; None for any other request.

    The parts of the path are noted in the scope.
    """
    if scope["method"] != "POST" or not path.startswith("/v2/"):
        return None, path
    if path == _INDEX:
        return repository_index, path
    match = _INFER.fullmatch(path)
    if match is None:
        return None, path
    scope["path_params"] = {"name": match[1], "version": match[2]}
    return model_infer, models.VIEWS[0].route


@router.post("/v2/models/{name}/versions/{version}/infer", **docs.INFER_VERSION)
@router.post("/v2/models/{name}/infer", **docs.INFER)
async def model_infer(call: Call) -> Response:
    """Run a model over the tensors of a request, each in JSON or in binary behind it.

    Of each artifact there are four: `NAME` (x -> log_likelihood, bits_per_dim, score, p_value, is_anomaly),
    `NAME.encode` (x -> z, log_likelihood), `NAME.decode` (z -> x) and `NAME.sample` (n, temperature, seed -> samples,
    log_likelihood, seed). The options of the service's own routes are parameters of the request; `timeout` is in
    microseconds.
    """
    body = await call.read_body()
    view, model = models.find(call.flows, **call.path_params)
    manifest = model.manifest
    call.model, call.route = model.name, view.route
    size = _json_size(call)
    work = partial(_prepare, call.flows, view, model, body, size)
    small = len(body) <= (_SMALL_JSON if size is None else _SMALL_BODY) and (size or 0) <= _SMALL_JSON
    request, task = work() if small else await asyncio.to_thread(work)
    if request.timeout_s is not None:
        call.expire_after(request.timeout_s)
    call.begin(model, task.num_rows)
    wanted = request.outputs or dict.fromkeys(task.outputs, request.binary_output)
    values = await task.run(call.budget, wanted.keys())
    about: dict[str, object] = {"model_name": view.name(manifest), "model_version": manifest.version}
    if request.id is not None:
        about["id"] = request.id
    if levels := {name: values[name] for name in headers.LEVELS if name in values}:
        about["parameters"] = levels
    outputs = [Output(name, values[name], binary) for name, binary in wanted.items()]
    num_listed = sum(output.array.size for output in outputs if not output.binary)
    parts, json_size = await off_loop(num_listed, codec.write, about, outputs)
    if json_size is None:
        return await send(call, parts, json_body.MEDIA_TYPE)
    return await send(call, parts, tensors.MEDIA_TYPE, {headers.JSON_SIZE: str(json_size)})


def _prepare(flows: Flows, view: View, model: Model, body: Body, size: int | None) -> tuple[InferRequest, Task]:
    manifest = model.manifest
    if size == 0:
        (tensor, *others) = view.inputs(manifest)
        if others:
            raise Unprocessable(f"model {view.name(manifest)} takes several inputs, which need JSON to name them")
        request = codec.read_raw(body, tensor.name, tensors.datatype_of(tensor.dtype), tensor.shape[1:])
        flows.check_rows(model, len(request.inputs[tensor.name]), "rows")
    else:
        of_json = len(body) if size is None else size
        json_body.check_values(body, of_json, flows.settings.max_request_rows, flows.catalog.most_dims)
        request = codec.read(body, size, partial(flows.check_rows, model, what="rows"))
    return request, view.prepare(flows, model, request)


def _json_size(call: Call) -> int | None:
    text = call.header(headers.JSON_SIZE)
    if not text and headers.JSON_SIZE not in call.headers:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise BadRequest(f"{headers.JSON_SIZE.title()} is {text[:100]!r}; it must be a whole number of bytes")
    size = int(text)
    if size == 0 and call.header("content-type") and call.media_type == json_body.MEDIA_TYPE:
        raise BadRequest(f"{headers.JSON_SIZE.title()} is 0, but Content-Type says that the body is JSON")
    return size


@router.get("/v2", **docs.SERVER)
async def server_metadata() -> Response:
    """Name, version and extensions of the server."""
    return json_answer({"name": "glow-service", "version": VERSION, "extensions": EXTENSIONS})


@router.get("/v2/health/live", **docs.LIVE)
async def server_live(request: Request) -> Response:
    """The process runs, and its engine is not stuck."""
    service_of(request).check_alive()
    return json_answer({"live": True})


@router.get("/v2/health/ready", **docs.READY)
async def server_ready(request: Request) -> Response:
    """Every model is verified and warm, and the service is not about to end."""
    service_of(request).check_ready()
    return json_answer({"ready": True})


@router.get("/v2/models", **docs.MODELS)
async def model_names(request: Request) -> Response:
    """Names of all models."""
    return json_answer({"models": list(dict.fromkeys(view.name(model.manifest) for view, model in _served(request)))})


@router.get("/v2/models/stats", **docs.ALL_STATISTICS)
async def statistics_of_all(request: Request) -> Response:
    """What has been asked of every model."""
    return _statistics(request, _served(request))


@router.get("/v2/models/{name}/versions/{version}", **docs.METADATA_VERSION)
@router.get("/v2/models/{name}", **docs.METADATA)
async def model_metadata(request: Request) -> Response:
    """Versions, inputs and outputs of a model; -1 is the number of rows."""
    flows = flows_of(request)
    view, model = models.find(flows, **request.path_params)
    return json_answer(view.metadata(model.manifest, models.versions(flows, model)))


@router.get("/v2/models/{name}/versions/{version}/ready", **docs.MODEL_READY_VERSION)
@router.get("/v2/models/{name}/ready", **docs.MODEL_READY)
async def model_ready(request: Request) -> Response:
    """The model answers."""
    view, model = models.find(flows_of(request), **request.path_params)
    service_of(request).check_ready()
    return json_answer({"name": view.name(model.manifest), "ready": True})


@router.get("/v2/models/{name}/versions/{version}/config", **docs.CONFIG_VERSION)
@router.get("/v2/models/{name}/config", **docs.CONFIG)
async def model_config(request: Request) -> Response:
    """Configuration of a model as Triton would have it; the largest batch is GLOW_MAX_REQUEST_ROWS."""
    flows = flows_of(request)
    view, model = models.find(flows, **request.path_params)
    return json_answer(view.config(model.manifest, flows.settings.max_request_rows))


@router.get("/v2/models/{name}/versions/{version}/stats", **docs.STATISTICS_VERSION)
@router.get("/v2/models/{name}/stats", **docs.STATISTICS)
async def model_statistics(request: Request) -> Response:
    """What has been asked of a model since the service started, by this protocol and by the service's own routes."""
    return _statistics(request, [models.find(flows_of(request), **request.path_params)])


@router.post(_INDEX, **docs.INDEX)
async def repository_index(call: Call) -> Response:
    """Every model, its version and state. Models cannot be loaded or unloaded from here."""
    body = await call.read_body()
    if len(body) > _SMALL_JSON:
        raise TooLarge(f"a body of {len(body)} bytes is over the limit of {_SMALL_JSON} for options alone")
    if body and not isinstance(json_body.read_object(body).get("ready", False), bool):
        raise Unprocessable("ready must be true or false")
    entries = [
        {"name": view.name(model.manifest), "version": model.version, "state": "READY", "reason": ""}
        for view, model in _served(call)
    ]
    return Response(orjson.dumps(entries), media_type=json_body.MEDIA_TYPE)


def _served(request: Request) -> list[tuple[View, Model]]:
    return models.served(flows_of(request).catalog)


def _statistics(request: Request, of: list[tuple[View, Model]]) -> Response:
    return json_answer({"model_stats": statistics(service_of(request).metrics, of)})
