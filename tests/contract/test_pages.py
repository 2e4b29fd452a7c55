"""The pages for people, and what every answer says of itself."""

import re
from pathlib import Path

import httpx

from tests.keys import secret_of


async def test_the_documentation_page_needs_no_network(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert (await client.get("/static-offline-docs/swagger-ui-bundle.js")).status_code == 200


async def test_the_page_of_the_routes_is_open_and_what_it_shows_is_not(stranger: httpx.AsyncClient) -> None:
    page = (await stranger.get("/docs")).text
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert files
    for file in files:
        assert (await stranger.get(f"/{file}")).status_code == 200, file
    assert 'fetch("openapi.json"' in page
    assert (await stranger.get("/openapi.json")).status_code == 401
    assert (await stranger.get("/openapi.json", headers={"x-api-key": secret_of("reader")})).status_code == 200
    base = str(stranger.base_url).rstrip("/")
    for path in ("/static-offline-docs/../openapi.json", "/static-offline-docs/%2e%2e/metrics", "/docs/", "/docs/x"):
        assert (await stranger.get(f"{base}{path}")).status_code in (401, 404)


async def test_the_playground_is_open_whole_and_asks_its_own_service_alone(stranger: httpx.AsyncClient) -> None:
    page = await stranger.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    files = re.findall(r'(?:src|href)="(playground/[^"]+)"', page.text)
    assert {Path(file).suffix for file in files} >= {".js", ".css"}
    for file in files:
        assert (await stranger.get(f"/{file}")).status_code == 200, file


async def test_every_answer_says_what_it_must_not_be_taken_for(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/models", "/nothing", "/sample?n=1", "/sample?n=0", "/docs", "/metrics"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        is_page = headers["content-type"].startswith("text/html")
        assert ("frame-ancestors 'none'" in headers.get("content-security-policy", "")) is is_page
