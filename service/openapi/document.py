"""The whole document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.artifact import Manifest
from service.codecs import json_body
from service.openapi.examples import examples_of


def document(app: FastAPI, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Assemble the document, each JSON body with working examples of the served models."""
    spec = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    for path, bodies in examples_of(manifests).items():
        examples = {name: {"value": body} for name, body in bodies.items()}
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
