"""The part of each route of the Open Inference Protocol in the OpenAPI document."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from service import errors
from service.codecs import MAX_DIMS, json_body
from service.headers import JSON_SIZE, LEVELS
from service.oip import codec, tensors
from service.oip.models import PLATFORM
from service.openapi.parts import (
    BINARY,
    MODEL_ERRORS,
    NUMBERS,
    READY_ERRORS,
    VERSION_TEXT,
    Route,
    Schema,
    Tag,
    component,
    json_content,
    members_of,
    object_schema,
    query_parameters,
    route,
)
from service.options import SampleOptions, ScoreOptions

_MODEL = "breast-cancer"
_VERSION = "0123456789ab"
_TEXT: Schema = {"type": "string"}
_JSON_SIZE = JSON_SIZE.title()
_NAME: Schema = {**_TEXT, "minLength": 1, "maxLength": codec.MAX_NAME}
_TRUE: Schema = {"type": "boolean", "const": True}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer"}}


def _path_parameter(name: str, text: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": text, "schema": _TEXT}


_OF_MODEL = [_path_parameter("name", "An artifact's name, or that with `.encode`, `.decode` or `.sample`.")]
_OF_VERSION = [*_OF_MODEL, _path_parameter("version", VERSION_TEXT)]
_OPTIONS = {**members_of(ScoreOptions), **members_of(SampleOptions)}
_PARAMETERS: Schema = {
    "type": "object",
    "maxProperties": codec.MAX_ENTRIES,
    "description": "Options of /log-likelihood, /encode, /decode or /sample.",
    "properties": {
        **{
            name: {key: value for key, value in schema.items() if key != "default"}  # which clients would send to all
            for name, schema in _OPTIONS.items()
            if name not in ("model", "format", "dequantization")
        },
        **{
            parameter["name"]: {"description": parameter["description"], **parameter["schema"]}
            for parameter in query_parameters(ScoreOptions)
            if parameter["name"].startswith("dequantization")
        },
        "timeout": {**_COUNT, "description": "Microseconds."},
        "binary_data_output": {
            "type": "boolean",
            "description": "Whether outputs come in binary that do not say themselves.",
        },
    },
}
_DATATYPE = component("Datatype", {"type": "string", "enum": list(tensors.DATATYPES)})
_IGNORED: Schema = {codec.CONTENT_TYPE: {"description": "Ignored."}}
_REQUEST_TENSOR: Schema = {
    "type": "object",
    "properties": {
        "name": _NAME,
        "datatype": _DATATYPE,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": MAX_DIMS},
        "data": {
            "type": "array",
            "items": {},
            "description": "Numbers, flat in row-major order or nested as the shape.",
        },
        "parameters": object_schema(
            {
                "binary_data_size": {**_COUNT, "description": "Bytes of the tensor behind the JSON, instead of data."},
                **_IGNORED,
            },
            [],
        ),
    },
    "required": ["name", "datatype", "shape"],
}
_REQUEST: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "maxLength": codec.MAX_ID, "description": "Comes back with the answer."},
        "inputs": {
            "type": "array",
            "items": component("RequestTensor", _REQUEST_TENSOR),
            "maxItems": codec.MAX_ENTRIES,
        },
        "outputs": {
            "type": "array",
            "maxItems": codec.MAX_ENTRIES,
            "description": "Those wanted, each in JSON or in binary; all in absence.",
            "items": component(
                "RequestedOutput",
                {
                    "type": "object",
                    "properties": {
                        "name": _NAME,
                        "parameters": object_schema({"binary_data": {"type": "boolean"}, **_IGNORED}, []),
                    },
                    "required": ["name"],
                },
            ),
        },
        "parameters": component("InferParameters", _PARAMETERS),
    },
    "required": ["inputs"],
}
_ANSWER_TENSOR: Schema = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "datatype": component("AnswerDatatype", {"type": "string", "enum": ["BOOL", *tensors.DATATYPES]}),
        "shape": _SHAPE,
        "data": {"type": "array", "items": {}, "description": "Numbers or booleans, flat, row-major."},
        "parameters": object_schema({"binary_data_size": _COUNT}, ["binary_data_size"]),
    },
    "required": ["name", "datatype", "shape"],
    "additionalProperties": False,
}
_ANSWER = json_content(
    {
        "model_name": _MODEL,
        "model_version": _VERSION,
        "id": "42",
        "parameters": {"alpha": 0.01},
        "outputs": [{"name": "log_likelihood", "datatype": "FP64", "shape": [1], "data": [38.25]}],
    },
    component(
        "InferResponse",
        object_schema(
            {
                "model_name": _TEXT,
                "model_version": _TEXT,
                "id": _TEXT,
                "parameters": object_schema({name: {"type": "number"} for name in LEVELS}, []),
                "outputs": {"type": "array", "items": component("AnswerTensor", _ANSWER_TENSOR)},
            },
            ["model_name", "model_version", "outputs"],
        ),
    ),
)
_BINARY: dict[str, Any] = {
    tensors.MEDIA_TYPE: {
        "schema": {
            **BINARY,
            "description": f"The JSON, {_JSON_SIZE} bytes of it, and behind it the binary tensors in "
            "the order of the JSON: little-endian, row-major, without padding.",
        }
    }
}
_SIZE: Schema = {
    "name": _JSON_SIZE,
    "in": "header",
    "required": False,
    "description": "Bytes of JSON where binary tensors follow; 0 for a body that is one tensor and no JSON.",
    "schema": {"type": "integer", "minimum": 0},
}
_BODY = {
    "required": True,
    "description": "No Content-Type is needed. May come with `Content-Encoding: gzip` or `deflate`.",
    "content": {json_body.MEDIA_TYPE: {"schema": component("InferRequest", _REQUEST)}, **_BINARY},
}
_INFER_ERRORS = [
    errors.BadRequest,
    errors.UnsupportedMediaType,
    errors.Unprocessable,
    errors.QueueFull,
    errors.DeadlineExceeded,
    errors.TooLarge,
    *MODEL_ERRORS,
]
INFER, INFER_VERSION = (
    route(Tag.PROTOCOL, {**_ANSWER, **_BINARY}, _INFER_ERRORS, [*path, _SIZE], _BODY)
    for path in (_OF_MODEL, _OF_VERSION)
)
SERVER = route(
    Tag.PROTOCOL,
    json_content(
        {"name": "glow-service", "version": version("glow-service"), "extensions": ["binary_tensor_data"]},
        component(
            "ServerMetadata",
            object_schema(
                {"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}},
                ["name", "version", "extensions"],
            ),
        ),
    ),
    [],
    [],
)
LIVE = route(
    Tag.PROTOCOL,
    json_content({"live": True}, component("ServerLive", object_schema({"live": _TRUE}, ["live"]))),
    [],
    [],
)
READY = route(
    Tag.PROTOCOL,
    json_content({"ready": True}, component("ServerReady", object_schema({"ready": _TRUE}, ["ready"]))),
    READY_ERRORS,
    [],
)
MODELS = route(
    Tag.PROTOCOL,
    json_content(
        {"models": [_MODEL, f"{_MODEL}.encode"]},
        component("ModelNames", object_schema({"models": {"type": "array", "items": _TEXT}}, ["models"])),
    ),
    READY_ERRORS,
    [],
)


def _of_model(name: str, example: dict[str, Any], properties: dict[str, Schema]) -> tuple[Route, Route]:
    """Routes of a model, without and with its version; ``name`` is that of the answer."""
    answer = json_content(example, component(name, object_schema(properties, list(example))))
    of_model, of_version = (
        route(Tag.PROTOCOL, answer, MODEL_ERRORS, parameters) for parameters in (_OF_MODEL, _OF_VERSION)
    )
    return of_model, of_version


_METADATA_TENSORS: Schema = {
    "type": "array",
    "items": component(
        "TensorMetadata",
        object_schema({"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE}, ["name", "datatype", "shape"]),
    ),
}
METADATA, METADATA_VERSION = _of_model(
    "ModelMetadata",
    {
        "name": _MODEL,
        "versions": [_VERSION],
        "platform": PLATFORM,
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 30]}],
        "outputs": [{"name": "log_likelihood", "datatype": "FP64", "shape": [-1]}],
    },
    {
        "name": _TEXT,
        "versions": {"type": "array", "items": _TEXT},
        "platform": _TEXT,
        "inputs": _METADATA_TENSORS,
        "outputs": _METADATA_TENSORS,
    },
)
MODEL_READY, MODEL_READY_VERSION = _of_model(
    "ModelReady", {"name": _MODEL, "ready": True}, {"name": _TEXT, "ready": _TRUE}
)
_CONFIG_TENSORS: Schema = {
    "type": "array",
    "items": component(
        "TensorConfig",
        object_schema(
            {"name": _TEXT, "data_type": _TEXT, "dims": _SHAPE, "optional": {"type": "boolean"}},
            ["name", "data_type", "dims"],
        ),
    ),
}
CONFIG, CONFIG_VERSION = _of_model(
    "ModelConfig",
    {
        "name": _MODEL,
        "platform": PLATFORM,
        "max_batch_size": 4096,
        "input": [{"name": "x", "data_type": "TYPE_FP64", "dims": [30]}],
        "output": [{"name": "log_likelihood", "data_type": "TYPE_FP64", "dims": []}],
    },
    {
        "name": _TEXT,
        "platform": _TEXT,
        "max_batch_size": {**_COUNT, "description": "Rows of a request, at most; 0 where there are none."},
        "dynamic_batching": {
            **object_schema({"max_queue_delay_microseconds": _COUNT}, []),
            "description": "Where rows of many requests share a pass.",
        },
        "input": _CONFIG_TENSORS,
        "output": _CONFIG_TENSORS,
    },
)
_DURATION = component("Duration", object_schema({"count": _COUNT, "ns": _COUNT}, ["count", "ns"]))
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_STATISTICS_EXAMPLE = {
    "name": _MODEL,
    "version": _VERSION,
    "last_inference": 1700000000000,
    "inference_count": 64,
    "execution_count": 1,
    "inference_stats": {name: {"count": 1, "ns": 250_000} for name in _DURATIONS},
    "batch_stats": [],
}
_MODEL_STATISTICS = component(
    "ModelStatistics",
    object_schema(
        {
            "name": _TEXT,
            "version": {**_TEXT, "description": "The figures are those of all versions of the name."},
            "last_inference": {**_COUNT, "description": "Milliseconds since 1970; 0 before the first."},
            "inference_count": {**_COUNT, "description": "Rows answered."},
            "execution_count": {**_COUNT, "description": "Passes of the engine; .decode and .sample share theirs."},
            "inference_stats": component(
                "InferenceStatistics", object_schema(dict.fromkeys(_DURATIONS, _DURATION), list(_DURATIONS))
            ),
            "batch_stats": {"type": "array", "maxItems": 0, "items": NUMBERS},
        },
        list(_STATISTICS_EXAMPLE),
    ),
)
STATISTICS, STATISTICS_VERSION = _of_model(
    "Statistics",
    {"model_stats": [_STATISTICS_EXAMPLE]},
    {"model_stats": {"type": "array", "items": _MODEL_STATISTICS}},
)
ALL_STATISTICS = route(Tag.PROTOCOL, STATISTICS["responses"][200]["content"], READY_ERRORS, [])
_ENTRY = ("name", "version", "state", "reason")
INDEX = route(
    Tag.PROTOCOL,
    json_content(
        [{"name": _MODEL, "version": _VERSION, "state": "READY", "reason": ""}],
        {
            "type": "array",
            "items": component("IndexEntry", object_schema(dict.fromkeys(_ENTRY, _TEXT), list(_ENTRY))),
        },
    ),
    [errors.BadRequest, errors.UnsupportedMediaType, errors.Unprocessable, errors.TooLarge, *READY_ERRORS],
    [],
    {
        "required": False,
        "content": {
            json_body.MEDIA_TYPE: {
                "schema": component(
                    "IndexRequest",
                    {
                        "type": "object",
                        "properties": {
                            "ready": {"type": "boolean", "description": "Only models that are ready, as all are."}
                        },
                    },
                )
            }
        },
    },
)
