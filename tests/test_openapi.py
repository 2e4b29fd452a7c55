"""The OpenAPI document where there are no keys, and that no request that follows or breaks it gets a 500."""

import json

import httpx
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import access, openapi

JSON = "application/json"
OPTIONS = ["model", "alpha", "fdr", "guarantee", "scores", "dequantization", "explain", "reproducible", "format"]
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


async def test_without_keys_only_what_nobody_may_do_names_one(app: FastAPI) -> None:
    spec = openapi.document(app, app.state.service.catalog, has_keys=False)
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            needed = access.scope_of(method.upper(), path) == "admin"
            assert bool(operation["security"]) is ("403" in operation["responses"]) is needed


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
