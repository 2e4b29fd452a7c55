"""The whole document, with examples from the served models."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.artifact import Manifest
from service.codecs import image, json_body

_EXAMPLE_LATENT = 0.0  # the mode of the latent density


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
