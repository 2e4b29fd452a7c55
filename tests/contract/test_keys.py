"""Keys: who has none is told so, and who has one gets what its scopes and rows allow."""

import hashlib
from typing import Any

import httpx
import pytest

from service.access import OPEN
from tests.contract.conftest import SCOPES
from tests.contract.deployments import ORIGIN
from tests.keys import key, secret_of
from tests.wire import TABLE

ROW: dict[str, Any] = {"model": TABLE, "inputs": [[0.5, 1010.0, 3.0]]}


async def test_without_a_key_nothing_is_answered_but_what_is_open(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    described = (await client.get("/openapi.json")).json()["paths"]
    asked = [(method.upper(), path.replace("{name}", TABLE)) for path, item in described.items() for method in item]
    asked += [("HEAD", path) for method, path in asked if method == "GET"]
    asked += [("GET", "/nothing"), ("POST", "/nothing"), ("DELETE", "/models"), ("OPTIONS", "/encode")]
    assert len(asked) > 40
    for method, path in asked:
        response = await stranger.request(method, path)
        if path in OPEN:
            assert response.status_code == 200, path
        else:
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert response.json()["code"] == "unauthorized"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {secret_of('caller')}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {secret_of('caller')}x"},
        {"authorization": f"Bearer {secret_of('caller')[:-1]}"},
        {"x-api-key": ""},
        {"x-api-key": hashlib.sha256(secret_of("caller").encode()).hexdigest()},
        {"cookie": secret_of("caller")},
    ],
)
async def test_what_is_not_a_key_of_the_file_is_refused(stranger: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await stranger.post("/encode", json=ROW, headers=headers)
    assert response.status_code == 401
    assert all(value not in response.text for value in headers.values() if value)


async def test_a_key_may_come_in_either_header(stranger: httpx.AsyncClient) -> None:
    for headers in (
        key("reader"),
        {"x-api-key": secret_of("reader")},
        {"Authorization": f"bearer {secret_of('caller')}"},
    ):
        assert (await stranger.post("/encode", json=ROW, headers=headers)).status_code == 200
    assert (await stranger.get(f"/models?key={secret_of('caller')}")).status_code == 401  # an address ends up in logs


async def test_scopes_are_kept_apart(stranger: httpx.AsyncClient) -> None:
    asked = {
        "infer": ("POST", "/encode"),
        "metrics": ("GET", "/metrics"),
        "admin": ("POST", f"/models/{TABLE}/drift/reset"),
    }
    for name, scopes in SCOPES.items():
        for scope, (method, path) in asked.items():
            response = await stranger.request(method, path, json=ROW if scope == "infer" else None, headers=key(name))
            if scope in scopes:
                assert response.status_code == 200
            else:
                assert response.status_code == 403
                assert f"needs the scope {scope}; key {name} has" in response.json()["error"]


@pytest.mark.differs("ray", "each replica counts the rows that it answers")
async def test_a_quota_counts_rows_and_says_when_there_are_some_again(stranger: httpx.AsyncClient) -> None:
    async def ask(num_rows: int, **options: object) -> httpx.Response:
        body = {**ROW, "inputs": ROW["inputs"] * num_rows, **options}
        return await stranger.post("/log-likelihood", json=body, headers=key("limited"))

    first, *others = [await ask(6) for _ in range(16)]
    assert first.status_code == 200
    for refused in others:
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        assert 1900 < int(refused.headers["retry-after"]) <= 2000
    assert (await ask(12)).status_code == 413
    for options in ({"explain": True}, {"dequantization": {"samples": 4}}):  # one row, which runs more of them
        assert (await ask(1, **options)).status_code in (413, 429), options
    assert (await stranger.get("/sample?n=4", headers=key("limited"))).status_code == 200
    assert (await stranger.post("/encode", content=b"not even read", headers=key("limited"))).status_code == 429
    assert (await stranger.get("/models", headers=key("limited"))).status_code == 200


async def test_no_spelling_of_a_path_opens_more_than_its_own(stranger: httpx.AsyncClient) -> None:
    base, reset = str(stranger.base_url).rstrip("/"), f"/models/{TABLE}/drift/reset"
    for method, path in (("GET", "/metrics"), ("POST", "/admin/reload"), ("POST", reset)):
        for spelt in (f"{path}%0A", f"{path}%0D", f"{path}/", f"/{path}", f"{path}%00", f"{path}%2F", path.upper()):
            for headers in ({}, key("reader")):
                response = await stranger.request(method, base + spelt, headers=headers)
                assert response.status_code in (401, 403, 404, 405), (method, spelt)


async def test_pages_of_no_other_site_may_call_but_of_those_named(stranger: httpx.AsyncClient) -> None:
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    allowed = await stranger.options("/encode", headers={**asking, "origin": ORIGIN})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in allowed.headers
    answer = await stranger.get("/models", headers={**key("reader"), "origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    other = await stranger.options("/encode", headers={**asking, "origin": "https://bad.example"})
    assert other.status_code == 400
    answer = await stranger.get("/models", headers={**key("reader"), "origin": "https://bad.example"})
    assert "access-control-allow-origin" not in answer.headers


async def test_an_operator_reads_keys_and_artifacts_anew(stranger: httpx.AsyncClient) -> None:
    response = await stranger.post("/admin/reload", headers=key("operator"))
    assert response.status_code == 200, response.text
    assert (await stranger.post("/encode", json=ROW, headers=key("reader"))).status_code == 200
