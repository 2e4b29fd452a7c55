"""The OpenAPI document: complete, true, and no request that follows or breaks it gets a 500."""

import json
from typing import Any

import httpx
import jsonschema
import pytest_asyncio
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import access, openapi

JSON = "application/json"
RUNS_A_MODEL = ("/log-likelihood", "/encode", "/decode", "/sample", "/infer")
OPTIONS = ["model", "alpha", "fdr", "guarantee", "scores", "dequantization", "explain", "reproducible", "format"]


@pytest_asyncio.fixture(scope="session")
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    spec: dict[str, Any] = (await client.get("/openapi.json")).json()
    return spec


def validate(value: object, schema: dict[str, Any], document: dict[str, Any]) -> None:
    jsonschema.validate(value, {**schema, "components": document["components"]})


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()]


async def test_every_route_describes_its_answer_and_its_errors(document: dict[str, Any]) -> None:
    assert {path for path, _, _ in operations(document)} == {
        "/log-likelihood",
        "/encode",
        "/decode",
        "/sample",
        "/models",
        "/models/{name}",
        "/models/{name}/example",
        "/models/{name}/drift",
        "/models/{name}/drift/reset",
        "/livez",
        "/readyz",
        "/metrics",
        "/admin/reload",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models",
        "/v2/models/stats",
        "/v2/repository/index",
        *(
            f"/v2/models/{{name}}{version}{what}"
            for version in ("", "/versions/{version}")
            for what in ("", "/ready", "/config", "/stats", "/infer")
        ),
    }
    assert "x-request-timeout-ms" in document["info"]["description"]  # a header of all that run a model
    for path, method, operation in operations(document):
        content = operation["responses"]["200"]["content"]
        answer = content.get(JSON) or content["text/plain"]
        validate(answer["example"], answer["schema"], document)
        assert operation["description"]
        if method == "post" and "requestBody" in operation and not path.startswith("/v2"):
            assert {"400", "404", "406", "413", "415", "422", "429", "503", "504"} <= operation["responses"].keys()
        if path.endswith("/infer"):
            assert {"400", "404", "413", "415", "422", "429", "503", "504"} <= operation["responses"].keys()
        assert operation["security"] == ([{"bearer": []}, {"key": []}] if "403" in operation["responses"] else [])
        for status, response in operation["responses"].items():
            assert "X-Request-ID" in response["headers"]
            assert ("Server-Timing" in response["headers"]) is path.endswith(RUNS_A_MODEL)
            if status != "200":
                schema = response["content"][JSON]["schema"]
                validate(response["content"][JSON]["example"], schema, document)


async def test_with_keys_all_but_what_is_open_needs_one(app: FastAPI) -> None:
    spec = openapi.document(app, app.state.service.catalog, has_keys=True)
    assert spec["components"]["securitySchemes"].keys() == {"bearer", "key"}
    for path, _, operation in operations(spec):
        needed = {"401", "403"} <= operation["responses"].keys()
        assert needed is bool(operation["security"]) is (path not in access.OPEN)
        if needed:
            assert "www-authenticate" in operation["responses"]["401"]["headers"]


async def test_every_example_gets_the_documented_answer(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    num_sent = 0
    for path, method, operation in operations(document):
        parameters = [parameter for parameter in operation.get("parameters", []) if parameter["in"] == "path"]
        content = operation.get("requestBody", {}).get("content", {})
        examples = content.get(JSON, {}).get("examples", {})
        bodies = {name: example["value"] for name, example in examples.items()} or {"": None}
        for model in parameters[0]["examples"] if parameters else [""]:
            url = path
            for parameter in parameters:
                url = url.replace(f"{{{parameter['name']}}}", parameter["examples"][model]["value"])
            for body in [bodies[model]] if model in bodies else bodies.values():
                if body is not None:
                    validate(body, content[JSON]["schema"], document)
                response = await client.request(method, url, json=body)
                if access.scope_of(method.upper(), url) == "admin":
                    assert response.status_code == 403
                    assert "403" in operation["responses"]
                    continue
                assert response.status_code == 200, (url, response.text)
                content_type = response.headers["content-type"].partition(";")[0]
                schema = operation["responses"]["200"]["content"][content_type]["schema"]
                value = response.json() if content_type == JSON else response.text
                validate(value, schema, document)
                num_sent += 1
    assert num_sent >= 15


async def test_the_request_schema_knows_every_option(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["LogLikelihoodRequest"]
    assert {"inputs", *OPTIONS} == schema["properties"].keys()
    names = {parameter["name"] for parameter in document["paths"]["/log-likelihood"]["post"]["parameters"]}
    assert {"dequantization_samples", "dequantization_seed", "alpha", "fdr", "model"} <= names


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "count", "samples"]), inner),
    max_leaves=12,
)
TENSOR = ["name", "shape", "datatype", "data", "parameters", "outputs", "id"]
MEMBERS = st.sampled_from([*OPTIONS, *TENSOR, "inputs", "latents", "n", "seed", "temperature", "x"])
BODIES = st.binary(max_size=60) | st.dictionaries(MEMBERS, VALUES, max_size=4).map(
    lambda values: json.dumps(values).encode()
)
QUERIES = st.dictionaries(MEMBERS | st.just("dequantization_samples"), st.text(max_size=5), max_size=2)
MEDIA_TYPES = st.sampled_from([JSON, "application/x-npy", "image/png", "image/jpeg", "text/plain", ""])
PATHS = st.sampled_from(
    [
        *("/log-likelihood", "/encode", "/decode", "/sample", "/models/tiny-table/example"),
        *("/v2/models/tiny-table/infer", "/v2/models/tiny-table.sample/infer", "/v2/repository/index"),
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=PATHS,
    body=BODIES,
    query=QUERIES,
    media_type=MEDIA_TYPES,
    accept=MEDIA_TYPES | st.text("abq/*;=,.01", max_size=8),
)
async def test_no_request_gets_a_500(
    client: httpx.AsyncClient, path: str, body: bytes, query: dict[str, str], media_type: str, accept: str
) -> None:
    method = "GET" if path.startswith("/models") else "POST"
    headers = {"content-type": media_type, "accept": accept}
    response = await client.request(method, path, content=body, params=query, headers=headers)
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    if response.status_code != 200:
        assert response.json().keys() == {"error", "code", "request_id"}


NPY_HEADERS = st.binary(max_size=80) | st.text("{}'()descrfortan_hpul:<>f8i4,TF -0129", max_size=80).map(str.encode)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(version=st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\0\7"]), header=NPY_HEADERS, data=st.binary(max_size=40))
async def test_no_npy_body_gets_a_500(client: httpx.AsyncClient, version: bytes, header: bytes, data: bytes) -> None:
    size = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    body = b"\x93NUMPY" + version + size + header + data
    response = await client.post("/encode", content=body, headers={"content-type": "application/x-npy"})
    assert 400 <= response.status_code < 500, response.text
