"""The OpenAPI document: complete and true."""

from typing import Any

import httpx
import jsonschema
import pytest_asyncio

from service import access

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
    assert document["components"]["securitySchemes"].keys() == {"bearer", "key"}
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
        needs_key = {"401", "403"} <= operation["responses"].keys()
        assert needs_key is (path not in access.OPEN)
        assert operation["security"] == ([{"bearer": []}, {"key": []}] if needs_key else [])
        if needs_key:
            assert "www-authenticate" in operation["responses"]["401"]["headers"]
        for status, response in operation["responses"].items():
            assert "X-Request-ID" in response["headers"]
            runs = path.endswith(RUNS_A_MODEL) and status not in ("401", "403")
            assert ("Server-Timing" in response["headers"]) is runs
            if status != "200":
                schema = response["content"][JSON]["schema"]
                validate(response["content"][JSON]["example"], schema, document)


async def test_nothing_is_told_of_a_model_that_the_document_has_not(
    client: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    schemas = document["components"]["schemas"]
    for summary in (await client.get("/models")).json()["models"]:
        about = (await client.get(f"/models/{summary['name']}")).json()
        for told, schema in ((summary, schemas["ModelSummary"]), (about, schemas["Manifest"])):
            validate(told, schema, document)
            assert told.keys() <= schema["properties"].keys()
            assert told.keys() >= set(schema["required"])


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
