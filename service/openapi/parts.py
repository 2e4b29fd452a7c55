"""What the routes' parts of the OpenAPI document are put together from: schemas, parameters, bodies, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from pydantic import BaseModel

from service import errors
from service.codecs import arrow, image, json_body, npy

Schema = dict[str, Any]
BINARY: Schema = {"type": "string", "format": "binary"}
_NPY: Schema = {
    **BINARY,
    "description": "NumPy file of one array of numbers: the rows, or of an answer what it is named for.",
}
_ARROW: Schema = {
    **BINARY,
    "description": "Arrow IPC stream. Rows of a table by column name; images and latents as one column `inputs` or "
    "`latents` of lists. Answers have a column for each array; their metadata holds model, version, alpha, level or "
    "fdr, and seed.",
}
_BINARY_SCHEMAS = {npy.MEDIA_TYPE: _NPY, arrow.MEDIA_TYPE: _ARROW}
NUMBERS: Schema = {"type": "array", "items": {"type": "number"}}


class Route(TypedDict):
    """What FastAPI's route decorators are given."""

    openapi_extra: dict[str, Any]
    responses: dict[int | str, dict[str, Any]]


def options_schema(options: type[BaseModel]) -> dict[str, Schema]:
    """Schema of each option as a member of a JSON body, or of each member of an answer."""
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


def query_parameters(options: type[BaseModel]) -> list[Schema]:
    """Each option as a parameter of the query."""
    parameters = []
    for name, schema in options_schema(options).items():
        value = next((part for part in schema.get("anyOf", []) if part.get("type") != "null"), schema)
        members = value["properties"] if value.get("type") == "object" else None
        for full_name, part in (
            {f"{name}_{key}": member for key, member in members.items()}.items() if members else [(name, value)]
        ):
            text = part.get("description", schema.get("description", ""))
            plain = {key: entry for key, entry in part.items() if key not in ("description", "default")}
            parameters.append(
                {"name": full_name, "in": "query", "required": False, "description": text, "schema": plain}
                | ({"style": "form", "explode": False} if "array" in plain.get("type", ()) else {})
            )
    return parameters


def object_schema(properties: dict[str, Schema], required: list[str]) -> Schema:
    """Schema of an object with these members and no others."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def answer_json(properties: dict[str, Schema], required: list[str], example: dict[str, Any]) -> dict[str, Any]:
    """JSON of an answer of a model, its name and version among the members."""
    names = {
        "model": {"type": "string"},
        "version": {"type": "string", "description": "First 12 hex digits of the flow's digest."},
    }
    schema = object_schema({**names, **properties}, [*names, *required])
    return json_content({"model": "fashion-mnist", "version": "0123456789ab", **example}, schema)


def json_content(example: object, schema: Schema) -> dict[str, Any]:
    """JSON by its media type."""
    return {json_body.MEDIA_TYPE: {"schema": schema, "example": example}}


_ERROR_SCHEMA = object_schema(
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
SERVER_TIMING: dict[str, Any] = {
    "Server-Timing": {
        "description": "Milliseconds: read (receive and parse), queue, compute, and total until the answer was begun.",
        "schema": {"type": "string"},
        "example": "read;dur=0.061, queue;dur=0.028, compute;dur=0.204, total;dur=0.341",
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
        ("x-glow-alpha", "Share of false alarms that is accepted", "number"),
        ("x-glow-level", "Largest p-value of an anomaly under guarantee conditional", "number"),
        ("x-glow-fdr", "Level of Benjamini-Hochberg", "number"),
    )
}


def error_responses(kind: type[errors.ServiceError]) -> dict[int | str, dict[str, Any]]:
    """An error by its status, with its shape, headers and an example."""
    example = {"error": f"{kind.__doc__}", "code": kind.code, "request_id": "9f1c4a7be0d94f6f8f3a2d1c0b5e6a77"}
    response: dict[str, Any] = {
        "description": str(kind.__doc__),
        "content": {json_body.MEDIA_TYPE: {"schema": _ERROR_SCHEMA, "example": example}},
    }
    response["headers"] = {
        **_REQUEST_ID,
        **{name: {"schema": {"const": value}} for name, value in kind.headers.items()},
    }
    if kind.retry_after_s is not None:
        response["headers"]["Retry-After"] = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
    return {kind.status: response}


def route(
    answer: dict[str, Any],
    errors_of: Sequence[type[errors.ServiceError]],
    parameters: list[Schema],
    body: dict[str, Any] | None = None,
) -> Route:
    """Describe a route by its answers, errors, parameters and body."""
    headers = _REQUEST_ID | (_BINARY_HEADERS if npy.MEDIA_TYPE in answer else {})
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "Success.", "content": answer, "headers": headers}
    }
    for kind in errors_of:
        responses |= error_responses(kind)
    if errors.DeadlineExceeded in errors_of:  # it runs a model
        for response in responses.values():
            response["headers"] = {**response["headers"], **SERVER_TIMING}
    extra: dict[str, Any] = {"parameters": parameters} if parameters else {}
    if body is not None:
        extra["requestBody"] = body
    return {"openapi_extra": extra, "responses": responses}


READY_ERRORS = [errors.Unavailable]
MODEL_ERRORS = [errors.ModelNotFound, *READY_ERRORS]
RUN_ERRORS = [
    errors.NotAcceptable,
    errors.Unprocessable,
    errors.QueueFull,
    errors.DeadlineExceeded,
    errors.TooLarge,
    *MODEL_ERRORS,
]
BODY_ERRORS = [errors.BadRequest, errors.UnsupportedMediaType, *RUN_ERRORS]

INPUTS: Schema = {
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
LATENTS: Schema = {"type": "array", "minItems": 1, "items": NUMBERS, "description": "Latent codes (B, D)."}
LOG_LIKELIHOODS: Schema = {**NUMBERS, "description": "log p(x) per unit of the model's units, nats."}


_ENCODED = (
    "May come with `Content-Encoding: gzip` or `deflate`. Large JSON answers come with gzip where that is accepted."
)


def rows_body(field: str, schema: Schema, options: type[BaseModel], images: bool) -> dict[str, Any]:
    """Rows in a body of each media type, the options beside them in JSON."""
    content: dict[str, Any] = {
        json_body.MEDIA_TYPE: {"schema": object_schema({field: schema, **options_schema(options)}, [field])},
        **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE),
    }
    if images:
        content |= {media_type: {"schema": BINARY} for media_type in image.MEDIA_TYPES}
    return {"required": True, "content": content, "description": _ENCODED}


def binary_answers(*media_types: str) -> dict[str, Any]:
    """Answers that are not JSON, by their media types."""
    return {media_type: {"schema": _BINARY_SCHEMAS.get(media_type, BINARY)} for media_type in media_types}
