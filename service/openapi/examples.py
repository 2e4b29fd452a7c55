"""Example bodies of the OpenAPI document, made from what is served: each can be sent as it is."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from service.artifact import Manifest
from service.codecs import image
from service.oip.models import VIEWS, Tensor, View
from service.oip.tensors import datatype_of

Body = dict[str, Any]
_LATENT = 0.0  # the mode of the latent density


def examples_of(manifests: dict[str, Manifest]) -> dict[str, dict[str, Body]]:
    """JSON bodies by path and name, at least one of each model."""
    tensors = {
        name: {"inputs": [_tensor(tensor, manifest) for tensor in view.inputs(manifest) if not tensor.optional]}
        for name, (view, manifest) in _views(manifests).items()
    }
    inputs = {name: _inputs(manifest) for name, manifest in manifests.items()}
    explained = {f"{name} explained": {**body, "explain": True} for name, body in inputs.items()}
    return {
        "/log-likelihood": {**inputs, **explained},
        "/encode": inputs,
        "/decode": {name: _latents(manifest) for name, manifest in manifests.items()},
        "/sample": {name: {"model": name, "n": 4, "seed": 7} for name in manifests},
        "/v2/models/{name}/infer": tensors,
        "/v2/models/{name}/versions/{version}/infer": tensors,
    }


def parts_of(path: str, manifests: dict[str, Manifest]) -> dict[str, dict[str, str]]:
    """What may stand for each parameter of a path, by the name of the model; bodies of the same name go with them."""
    if not path.startswith("/v2/"):
        return {"name": {name: name for name in manifests}}
    models = _views(manifests)
    return {
        "name": {name: name for name in models},
        "version": {name: manifest.version for name, (_, manifest) in models.items()},
    }


def _views(manifests: dict[str, Manifest]) -> dict[str, tuple[View, Manifest]]:
    return {view.name(manifest): (view, manifest) for manifest in manifests.values() for view in VIEWS}


def _tensor(tensor: Tensor, manifest: Manifest) -> Body:
    shape = [1 if size < 0 else size for size in tensor.shape]
    data = {"x": manifest.golden.inputs[0], "z": [_LATENT] * manifest.num_dims, "n": [4]}[tensor.name]
    return {"name": tensor.name, "datatype": datatype_of(tensor.dtype), "shape": shape, "data": data}


def _inputs(manifest: Manifest) -> Body:
    row = np.asarray(manifest.golden.inputs[:1])
    if manifest.value_range is not None and manifest.is_picture:
        png = image.write_grid(row.reshape(1, *manifest.shape), manifest.value_range)
        return {"model": manifest.name, "inputs": [base64.b64encode(png).decode()]}
    if manifest.kind == "image":
        return {"model": manifest.name, "inputs": row.tolist()}
    values = zip(manifest.columns, row[0].tolist(), strict=True)
    record = {column.name: column.categories[int(value)] if column.categories else value for column, value in values}
    return {"model": manifest.name, "inputs": [record]}


def _latents(manifest: Manifest) -> Body:
    return {"model": manifest.name, "latents": [[_LATENT] * manifest.num_dims]}
