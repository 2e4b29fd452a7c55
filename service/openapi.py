"""The OpenAPI document: bodies, media types, answers and errors of each route, and examples from the served models.

Bodies are parsed without a pydantic model per number, so FastAPI cannot derive them; each route's part is written here
and its options are taken from service.options, which is also what validates them.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, TypedDict

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service import errors
from service.artifact import Manifest
from service.call import TIMEOUT_HEADER
from service.codecs import arrow, image, json_body, npy
from service.options import EncodeOptions, ExampleOptions, RowOptions, SampleOptions, ScoreOptions
from service.scores import CALIBRATED, DEFINITIONS

SUMMARY = "Exact log-likelihoods, latent codes and samples of trained Glow normalizing flows."
VERSION = version("glow-service")

Schema = dict[str, Any]
_BINARY: Schema = {"type": "string", "format": "binary"}
_NPY: Schema = {
    **_BINARY,
    "description": "NumPy file of one array of numbers: the rows, or of an answer what it is named for.",
}
_ARROW: Schema = {
    **_BINARY,
    "description": "Arrow IPC stream. Rows of a table by column name; images and latents as one column `inputs` or "
    "`latents` of lists. Answers have a column for each array; their metadata holds model, version, alpha or fdr, and "
    "seed.",
}
_BINARY_SCHEMAS = {npy.MEDIA_TYPE: _NPY, arrow.MEDIA_TYPE: _ARROW}
_NUMBERS: Schema = {"type": "array", "items": {"type": "number"}}
_EXAMPLE_LATENT = 0.0  # the mode of the latent density


class Route(TypedDict):
    """What FastAPI's route decorators are given."""

    openapi_extra: dict[str, Any]
    responses: dict[int | str, dict[str, Any]]


def _options_schema(options: type[BaseModel]) -> dict[str, Schema]:
    """Schema of each option as a member of a JSON body."""
    schema = options.model_json_schema()
    definitions = schema.get("$defs", {})
    return {name: _inline(value, definitions) for name, value in schema["properties"].items()}


def _inline(schema: Any, definitions: dict[str, Schema]) -> Any:  # noqa: ANN401 (any JSON value)
    if isinstance(schema, list):
        return [_inline(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inline(value, definitions) for key, value in schema.items() if key != "title"}


def _query_parameters(options: type[BaseModel]) -> list[Schema]:
    parameters = []
    for name, schema in _options_schema(options).items():
        value = next((part for part in schema.get("anyOf", []) if part.get("type") != "null"), schema)
        if "array" in [part.get("type") for part in schema.get("anyOf", [])]:
            names = next(part["items"]["enum"] for part in schema["anyOf"] if part.get("type") == "array")
            value = {"type": "array", "items": {"enum": ["all", *names]}}
        members = value["properties"] if value.get("type") == "object" else None
        for full_name, part in (
            {f"{name}_{key}": member for key, member in members.items()}.items() if members else [(name, value)]
        ):
            text = part.get("description", schema.get("description", ""))
            plain = {key: entry for key, entry in part.items() if key not in ("description", "default")}
            parameters.append(
                {"name": full_name, "in": "query", "required": False, "description": text, "schema": plain}
                | ({"style": "form", "explode": False} if plain.get("type") == "array" else {})
            )
    return parameters


def _object(properties: dict[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _answer_json(properties: dict[str, Schema], required: list[str], example: dict[str, Any]) -> dict[str, Any]:
    names = {
        "model": {"type": "string"},
        "version": {"type": "string", "description": "First 12 hex digits of the flow's digest."},
    }
    schema = _object({**names, **properties}, [*names, *required])
    return _json({"model": "fashion-mnist", "version": "0123456789ab", **example}, schema)


def _json(example: dict[str, Any], schema: Schema) -> dict[str, Any]:
    return {json_body.MEDIA_TYPE: {"schema": schema, "example": example}}


_ERROR_SCHEMA = _object(
    {
        "error": {"type": "string", "description": "What is wrong, and what was expected."},
        "code": {"type": "string"},
        "request_id": {
            "type": "string",
            "description": "Also in the X-Request-ID header; the log has it where the fault is ours.",
        },
    },
    ["error", "code", "request_id"],
)


_REQUEST_ID: dict[str, Any] = {
    "X-Request-ID": {
        "description": "The request's own, if it is 1 to 128 of A-Z a-z 0-9 . _ -; else a new one.",
        "schema": {"type": "string"},
    }
}
_BINARY_HEADERS: dict[str, Any] = {
    name: {
        "description": f"{text}; with answers that are not JSON, where it is part of them.",
        "schema": {"type": kind},
    }
    for name, text, kind in (
        ("x-glow-model", "Name of the model", "string"),
        ("x-glow-version", "Version of the model", "string"),
        ("x-glow-seed", "Seed of the samples", "integer"),
        ("x-glow-alpha", "Largest p-value of an anomaly", "number"),
        ("x-glow-fdr", "Level of Benjamini-Hochberg", "number"),
    )
}


def _error(kind: type[errors.ServiceError]) -> dict[int | str, dict[str, Any]]:
    example = {"error": f"{kind.__doc__}", "code": kind.code, "request_id": "9f1c4a7be0d94f6f8f3a2d1c0b5e6a77"}
    response: dict[str, Any] = {
        "description": str(kind.__doc__),
        "content": {json_body.MEDIA_TYPE: {"schema": _ERROR_SCHEMA, "example": example}},
    }
    response["headers"] = _REQUEST_ID
    if kind.retry_after_s is not None:
        retry = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        response["headers"] = {**_REQUEST_ID, "Retry-After": retry}
    return {kind.status: response}


def _route(
    answer: dict[str, Any],
    errors_of: Sequence[type[errors.ServiceError]],
    parameters: list[Schema],
    body: dict[str, Any] | None = None,
) -> Route:
    headers = _REQUEST_ID | (_BINARY_HEADERS if npy.MEDIA_TYPE in answer else {})
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "Success.", "content": answer, "headers": headers}
    }
    for kind in errors_of:
        responses |= _error(kind)
    extra: dict[str, Any] = {"parameters": parameters} if parameters else {}
    if body is not None:
        extra["requestBody"] = body
    return {"openapi_extra": extra, "responses": responses}


_TIMEOUT: Schema = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Milliseconds after which no answer is of use any more: 504; at most GLOW_DEADLINE_S.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}
_READY = [errors.Unavailable]
_MODEL = [errors.ModelNotFound, *_READY]
_RUN = [errors.NotAcceptable, errors.Unprocessable, errors.QueueFull, errors.DeadlineExceeded, errors.TooLarge, *_MODEL]
_BODY = [errors.BadRequest, errors.UnsupportedMediaType, *_RUN]

_INPUTS: Schema = {
    "description": "Images as (B, C, H, W), (B, H, W) for one channel, (B, D), or base64 PNG or JPEG; "
    "vectors as (B, D) or as records by column name, categories by their names or their codes. One answer a row.",
    "anyOf": [
        {"type": "array", "minItems": 1, "items": {"type": "array"}},
        {"type": "array", "minItems": 1, "items": {"type": "string", "format": "byte"}},
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "additionalProperties": {"type": ["number", "string"]}},
        },
    ],
}
_LATENTS: Schema = {"type": "array", "minItems": 1, "items": _NUMBERS, "description": "Latent codes (B, D)."}
_LOG_LIKELIHOOD: Schema = {**_NUMBERS, "description": "log p(x) per unit of the model's units, nats."}


_ENCODED = (
    "May come with `Content-Encoding: gzip` or `deflate`. Large JSON answers come with gzip where that is accepted."
)


def _rows_body(field: str, schema: Schema, options: type[BaseModel], images: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        json_body.MEDIA_TYPE: {"schema": _object({field: schema, **_options_schema(options)}, [field])},
        **_binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE),
    }
    if images:
        content |= {media_type: {"schema": _BINARY} for media_type in image.MEDIA_TYPES}
    return {"required": True, "content": content, "description": _ENCODED}


def _binary_answers(*media_types: str) -> dict[str, Any]:
    return {media_type: {"schema": _BINARY_SCHEMAS.get(media_type, _BINARY)} for media_type in media_types}


LOG_LIKELIHOOD = _route(
    {
        **_answer_json(
            {
                "log_likelihood": _LOG_LIKELIHOOD,
                "bits_per_dim": {**_NUMBERS, "description": "-log_likelihood / (D ln 2)."},
                "score": {
                    **_NUMBERS,
                    "description": "The default score of the artifact, which /models/{name} names; higher is more "
                    "anomalous.",
                },
                "p_value": {**_NUMBERS, "description": "(1 + #{held-out scores >= score}) / (m + 1)."},
                "is_anomaly": {
                    "type": "array",
                    "items": {"type": "boolean"},
                    "description": "p_value <= alpha or, given fdr, flagged by Benjamini-Hochberg.",
                },
                "alpha": {"type": "number", "description": "Unless fdr is given."},
                "fdr": {"type": "number", "description": "Where it is given."},
                "scores": {
                    "type": "object",
                    "description": "Those asked for.",
                    "properties": {
                        name: {**_NUMBERS, "description": f"{what.formula}; {what.unit}; {what.direction}."}
                        for name, what in DEFINITIONS.items()
                    },
                    "additionalProperties": False,
                },
                "p_values": {
                    "type": "object",
                    "description": "Of each score asked for that has a direction, among its own held-out scores.",
                    "properties": dict.fromkeys(CALIBRATED, _NUMBERS),
                    "additionalProperties": False,
                },
            },
            ["log_likelihood", "bits_per_dim"],
            {
                "log_likelihood": [-1500.25],
                "bits_per_dim": [2.7607],
                "score": [-4.5],
                "p_value": [0.42],
                "is_anomaly": [False],
                "alpha": 0.01,
                "scores": {"typicality": [45.5]},
                "p_values": {"typicality": [0.4]},
            },
        ),
        **_binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE),
    },
    _BODY,
    [*_query_parameters(ScoreOptions), _TIMEOUT],
    _rows_body("inputs", _INPUTS, ScoreOptions, images=True),
)
ENCODE = _route(
    {
        **_answer_json(
            {"latents": {"type": "array", "items": _NUMBERS}, "log_likelihood": _LOG_LIKELIHOOD},
            ["latents", "log_likelihood"],
            {"latents": [[0.12, -0.7, 1.04]], "log_likelihood": [-1500.25]},
        ),
        **_binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE),
    },
    _BODY,
    [*_query_parameters(EncodeOptions), _TIMEOUT],
    _rows_body("inputs", _INPUTS, EncodeOptions, images=True),
)
DECODE = _route(
    {
        **_answer_json(
            {"outputs": {"type": "array", "items": {"type": "array"}}}, ["outputs"], {"outputs": [[[[0.0, 12.5]]]]}
        ),
        **_binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
    },
    _BODY,
    [*_query_parameters(RowOptions), _TIMEOUT],
    _rows_body("latents", _LATENTS, RowOptions, images=False),
)
_SAMPLES = {
    **_answer_json(
        {
            "samples": {"type": "array", "items": {"type": "array"}, "description": "(n, *shape)."},
            "log_likelihood": _LOG_LIKELIHOOD,
            "seed": {"type": "integer"},
        },
        ["samples", "log_likelihood", "seed"],
        {"samples": [[[[0.0, 12.5]]]], "log_likelihood": [-1500.25], "seed": 7},
    ),
    **_binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
}
SAMPLE = _route(
    _SAMPLES,
    _BODY,
    [*_query_parameters(SampleOptions), _TIMEOUT],
    {"required": False, "content": {json_body.MEDIA_TYPE: {"schema": _object(_options_schema(SampleOptions), [])}}},
)
SAMPLE_BY_QUERY = _route(_SAMPLES, _BODY, [*_query_parameters(SampleOptions), _TIMEOUT])
_STATUS = _json({"status": "ok"}, _object({"status": {"const": "ok"}}, ["status"]))
_SUMMARY = {"name": "fashion-mnist", "version": "0123456789ab", "kind": "image", "shape": [1, 28, 28]}
_MODEL_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "kind": {"enum": ["image", "vector"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "columns": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Of a table: names, types, categories.",
        },
        "value_range": {
            "type": "array",
            "items": {"type": "number"},
            "description": "Of pixels: smallest and largest.",
        },
        "calibration": {"type": "object", "description": "Default score, alpha, and number of held-out rows."},
        "test": {"type": "object", "description": "Likelihood of test rows, and its standard error."},
    },
    "required": list(_SUMMARY),
}
MODELS = _route(
    _json(
        {"default": "fashion-mnist", "models": [_SUMMARY]},
        _object(
            {"default": {"type": "string"}, "models": {"type": "array", "items": _MODEL_SCHEMA}}, ["default", "models"]
        ),
    ),
    _READY,
    [],
)
MODEL = _route(_json(_SUMMARY, _MODEL_SCHEMA), _MODEL, [])
EXAMPLE = _route(
    {
        **_json(
            {"model": "fashion-mnist", "inputs": [[[[0.0, 12.0]]]]},
            _object({"model": {"type": "string"}, "inputs": _INPUTS}, ["model", "inputs"]),
        ),
        **_binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
    },
    [errors.BadRequest, errors.NotAcceptable, errors.Unprocessable, *_MODEL],
    [*_query_parameters(ExampleOptions), _TIMEOUT],
)
LIVEZ = _route(_STATUS, [], [])
READYZ = _route(_STATUS, _READY, [])
METRICS = _route({"text/plain": {"schema": {"type": "string"}, "example": "glow_queue_rows 0.0"}}, [], [])


def document(app: FastAPI, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Assemble the document, each JSON body with one working example per served model."""
    spec = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    for path, examples in (
        ("/log-likelihood", {name: {"value": _example_inputs(manifest)} for name, manifest in manifests.items()}),
        ("/encode", {name: {"value": _example_inputs(manifest)} for name, manifest in manifests.items()}),
        ("/decode", {name: {"value": _example_latents(manifest)} for name, manifest in manifests.items()}),
        ("/sample", {name: {"value": {"model": name, "n": 4, "seed": 7}} for name in manifests}),
    ):
        spec["paths"][path]["post"]["requestBody"]["content"][json_body.MEDIA_TYPE]["examples"] = examples
    for item in spec["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["examples"] = {name: {"value": name} for name in manifests}
            content = operation["responses"]["200"]["content"]
            if not content[json_body.MEDIA_TYPE].get("schema"):
                del content[json_body.MEDIA_TYPE]  # which FastAPI promises everywhere
            # FastAPI promises its own validation error for every path parameter; a plain string never fails it.
            if "example" not in operation["responses"].get("422", {}).get("content", {}).get(json_body.MEDIA_TYPE, {}):
                operation["responses"].pop("422", None)
    spec.pop("components", None)
    return spec


def _example_inputs(manifest: Manifest) -> dict[str, Any]:
    row = np.asarray(manifest.golden.inputs[:1])
    if manifest.value_range is not None and manifest.is_picture:
        png = image.write_grid(row.reshape(1, *manifest.shape), manifest.value_range)
        return {"model": manifest.name, "inputs": [base64.b64encode(png).decode()]}
    if manifest.kind == "image":
        return {"model": manifest.name, "inputs": row.tolist()}
    values = zip(manifest.columns, row[0].tolist(), strict=True)
    record = {column.name: column.categories[int(value)] if column.categories else value for column, value in values}
    return {"model": manifest.name, "inputs": [record]}


def _example_latents(manifest: Manifest) -> dict[str, Any]:
    return {"model": manifest.name, "latents": [[_EXAMPLE_LATENT] * manifest.num_dims]}
