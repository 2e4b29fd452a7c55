"""The whole document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service import errors, headers
from service.access import ANONYMOUS, scope_of
from service.catalog import Catalog
from service.codecs import json_body
from service.openapi.examples import examples_of, parts_of
from service.openapi.parts import SCHEMAS, Tag, error_responses

_ABOUT = f"""Any request may have these headers:

* `X-Request-ID`, 1 to 128 of A-Z a-z 0-9 . _ -, which comes back with the answer and in the log;
* `{headers.TIMEOUT}`, where it runs a model: milliseconds, 1 to 999999999, after which no answer is of use any more. It
  gets a 504 then, or after GLOW_DEADLINE_S if that is sooner.
"""
_TAGS = {
    Tag.FLOWS: "How likely an input is, what its latent code is, what a code looks like, and new inputs.",
    Tag.MODELS: "What is served, a valid input of each model, and whether inputs still come from where they came from.",
    Tag.OPERATIONS: "For whoever runs the service: whether it lives and is ready, its figures, and a reload.",
    Tag.PROTOCOL: "The same models for clients of KServe, Triton and others that speak this protocol, version 2.",
}
_LICENCE = {"name": "MIT", "identifier": "MIT"}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def operation_id(route: APIRoute) -> str:
    """What an operation is called in clients: its function, of a version where the path says which."""
    return f"{route.name}_of_version" if "{version}" in route.path else route.name


def document(app: FastAPI, catalog: Catalog | None, has_keys: bool) -> dict[str, Any]:
    """Assemble the document, each JSON body with working examples of the served models, and who may ask for what."""
    models = [] if catalog is None else catalog.models
    manifests = {model.name: model.manifest for model in models if catalog and catalog.answers_for_name(model)}
    spec = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=_ABOUT,
        routes=app.routes,
        license_info=_LICENCE,
        servers=[{"url": "/", "description": "The one that this document is of."}],
        tags=[{"name": tag, "description": text} for tag, text in _TAGS.items()],
    )
    for path, bodies in examples_of(manifests).items():
        examples = {name: {"value": body} for name, body in bodies.items()}
        spec["paths"][path]["post"]["requestBody"]["content"][json_body.MEDIA_TYPE]["examples"] = examples
    for path, item in spec["paths"].items():
        parts = parts_of(path, manifests)
        for method, operation in item.items():
            scope = scope_of(method.upper(), path)
            operation["security"] = []
            if scope is not None and (has_keys or scope not in ANONYMOUS):
                operation["security"] = [{name: []} for name in _SCHEMES]
                operation["description"] += f"\n\nNeeds a key with the scope `{scope}`."
                for kind in (errors.Unauthorized, errors.Forbidden) if has_keys else (errors.Forbidden,):
                    operation["responses"] |= {str(status): text for status, text in error_responses(kind).items()}
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    values = parts[parameter["name"]].items()
                    parameter["examples"] = {name: {"value": value} for name, value in values}
            content = operation["responses"]["200"]["content"]
            if not content[json_body.MEDIA_TYPE].get("schema"):
                del content[json_body.MEDIA_TYPE]  # which FastAPI promises everywhere
            # FastAPI promises its own validation error for every path parameter; a plain string never fails it.
            if "example" not in operation["responses"].get("422", {}).get("content", {}).get(json_body.MEDIA_TYPE, {}):
                operation["responses"].pop("422", None)
    spec["components"] = {"schemas": SCHEMAS, "securitySchemes": _SCHEMES}
    return spec
