"""What the routes' parts of the OpenAPI document are put together from: schemas, parameters, bodies, errors."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, StrEnum
from typing import Any, TypedDict, get_args

from pydantic import BaseModel

from service import errors
from service.codecs import ANY_BINARY, arrow, image, json_body, npy
from service.headers import LEVELS, TOLD, told
from service.options import ArrayFormat, Format, Guarantee
from service.scores import ScoreName

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
ARRAYS: Schema = {"type": "array", "items": {"type": "array", "items": {}}}  # of a dimension each model has its own
SCHEMAS: dict[str, Schema] = {}  # the components of the document, by name
_COMPONENT = "#/components/schemas/{model}"
_SCORE_NAMES = "^(all|({0})(,({0}))*)$".format("|".join(get_args(ScoreName)))
VERSION_TEXT = "First 12 hex digits of the flow's digest."
_ENUMS = {
    get_args(kind): name
    for name, kind in (
        ("Format", Format),
        ("ArrayFormat", ArrayFormat),
        ("Guarantee", Guarantee),
        ("ScoreName", ScoreName),
    )
}


class Route(TypedDict):
    """What FastAPI's route decorators are given."""

    tags: list[str | Enum]
    openapi_extra: dict[str, Any]
    responses: dict[int | str, dict[str, Any]]


class Tag(StrEnum):
    """What routes are grouped by, and the name of each group in clients."""

    FLOWS = "Flows"
    MODELS = "Models"
    OPERATIONS = "Operations"
    PROTOCOL = "Open Inference Protocol"


def component(name: str, schema: Schema) -> Schema:
    """Give a schema the name that it has in the document and in clients; what stands for it wherever it is used."""
    assert SCHEMAS.get(name, schema) == schema, f"two schemas are named {name}"
    SCHEMAS[name] = schema
    return {"$ref": _COMPONENT.format(model=name)}


def component_of(model: type[BaseModel]) -> Schema:
    """A model as a component of its own name."""
    return component(model.__name__, _schema_of(model))


def members_of(model: type[BaseModel]) -> dict[str, Schema]:
    """Schema of each option as a member of a JSON body, or of each member of an answer."""
    members: dict[str, Schema] = _schema_of(model)["properties"]
    return members


def _schema_of(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(ref_template=_COMPONENT)
    for name, definition in schema.pop("$defs", {}).items():
        component(name, _plain(definition))
    plain: Schema = _plain(schema)
    return plain


def _plain(schema: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """Without titles, which repeat names, and without null for a default, which clients would send; enums named."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if name := _ENUMS.get(tuple(schema.get("enum", ()))):
        return component(name, {"type": "string", "enum": schema["enum"]})
    return {
        key: _plain(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str)) and (key, value) != ("default", None)
    }


def query_parameters(options: type[BaseModel]) -> list[Schema]:
    """Each option as a parameter of the query, without defaults: clients would send them beside those of the body."""
    parameters = []
    for name, schema in members_of(options).items():
        value = next((part for part in schema.get("anyOf", []) if part.get("type") != "null"), schema)
        members = SCHEMAS[value["$ref"].rpartition("/")[2]].get("properties") if "$ref" in value else None
        for full_name, part in (
            {f"{name}_{key}": member for key, member in members.items()}.items() if members else [(name, value)]
        ):
            text = part.get("description", schema.get("description", ""))
            plain = {key: entry for key, entry in part.items() if key not in ("description", "default")}
            if full_name == "scores":
                plain = {"type": "string", "pattern": _SCORE_NAMES}
            parameters.append(
                {"name": full_name, "in": "query", "required": False, "description": text, "schema": plain}
            )
    return parameters


def object_schema(properties: dict[str, Schema], required: list[str]) -> Schema:
    """Schema of an object with these members and no others."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def answer_json(
    name: str, properties: dict[str, Schema], required: list[str], example: dict[str, Any]
) -> dict[str, Any]:
    """JSON of an answer of a model, the model's name and version among the members."""
    names = {
        "model": {"type": "string"},
        "version": {"type": "string", "description": VERSION_TEXT},
    }
    schema = component(name, object_schema({**names, **properties}, [*names, *required]))
    return json_content({"model": "fashion-mnist", "version": "0123456789ab", **example}, schema)


def json_content(example: object, schema: Schema) -> dict[str, Any]:
    """JSON by its media type."""
    return {json_body.MEDIA_TYPE: {"schema": schema, "example": example}}


_ERROR = component(
    "ErrorResponse",
    object_schema(
        {
            "error": {"type": "string", "description": "What is wrong, and what was expected."},
            "code": {"type": "string", "description": "The same as a word for programs."},
            "request_id": {
                "type": "string",
                "description": "Also in the X-Request-ID header; the log has it where the fault is ours.",
            },
        },
        ["error", "code", "request_id"],
    ),
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
    told(name): {
        "description": f"{text}; with answers that are not JSON, where it is part of them.",
        "schema": {"type": "number" if name in LEVELS else "integer" if name == "seed" else "string"},
    }
    for name, text in TOLD.items()
}


def error_responses(kind: type[errors.ServiceError]) -> dict[int | str, dict[str, Any]]:
    """An error by its status, with its shape, headers and an example."""
    example = {"error": f"{kind.__doc__}", "code": kind.code, "request_id": "9f1c4a7be0d94f6f8f3a2d1c0b5e6a77"}
    response: dict[str, Any] = {
        "description": str(kind.__doc__),
        "content": {json_body.MEDIA_TYPE: {"schema": _ERROR, "example": example}},
    }
    response["headers"] = {
        **_REQUEST_ID,
        **{name: {"schema": {"type": "string", "const": value}} for name, value in kind.headers.items()},
    }
    if kind.retry_after_s is not None:
        response["headers"]["Retry-After"] = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
    return {kind.status: response}


def route(
    tag: Tag,
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
    return {"tags": [tag], "openapi_extra": extra, "responses": responses}


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
    "type": "array",
    "minItems": 1,
    "items": {},
    "description": "Images as (B, C, H, W), (B, H, W) for one channel, (B, D), or base64 PNG or JPEG; "
    "vectors as (B, D) or as records by column name, categories by their names or their codes. One answer a row.",
}
LATENTS: Schema = {"type": "array", "minItems": 1, "items": NUMBERS, "description": "Latent codes (B, D)."}
LOG_LIKELIHOODS: Schema = {**NUMBERS, "description": "log p(x) per unit of the model's units, nats."}


_ENCODED = (
    "May come with `Content-Encoding: gzip` or `deflate`. Large answers come with either where that is accepted, "
    "binary ones where one alone is."
)


def rows_body(name: str, field: str, schema: Schema, options: type[BaseModel]) -> dict[str, Any]:
    """Rows in a body, in JSON with the options beside them, or in binary."""
    own = [npy.MEDIA_TYPE, arrow.MEDIA_TYPE, *(image.MEDIA_TYPES if field == "inputs" else ())]
    text = f"A file of the type {', '.join(own)}, told by its first bytes; it may come with its own type, too."
    request = component(name, object_schema({field: schema, **members_of(options)}, [field]))
    content = {
        json_body.MEDIA_TYPE: {"schema": request},
        ANY_BINARY: {"schema": {**BINARY, "description": f"{text} Options are in the query."}},
    }
    return {"required": True, "content": content, "description": f"JSON, or: {text}\n\n{_ENCODED}"}


def binary_answers(*media_types: str) -> dict[str, Any]:
    """Answers that are not JSON, by their media types."""
    return {media_type: {"schema": _BINARY_SCHEMAS.get(media_type, BINARY)} for media_type in media_types}
