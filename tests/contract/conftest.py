"""The deployments that the contract holds for, each started once a session when first asked for.

They have keys, and a client has one: what is open to all, and what is closed, is asked by ``stranger``. A test that
needs connections, and not requests alone, takes ``url``, and runs where there are any.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.conftest import OnLoop
from tests.contract import deployments
from tests.keys import entry, key
from tests.wire import IMAGES

IN_PROCESS = "in_process"
SERVED = [
    pytest.param("uvicorn"),
    pytest.param("workers"),
    pytest.param(
        "ray",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
        ],
    ),
]
SCOPES = {"caller": ["infer", "metrics"], "reader": ["infer"], "scraper": ["metrics"], "operator": ["admin"]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "deployment" in metafunc.fixturenames:
        everywhere = [*SERVED] if "url" in metafunc.fixturenames else [pytest.param(IN_PROCESS), *SERVED]
        metafunc.parametrize("deployment", everywhere, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Expect to fail where a test says that its promise is not kept: ``differs(deployment, reason)``."""
    for mark in item.iter_markers("differs"):
        deployment, reason = mark.args
        if isinstance(item, pytest.Function) and item.callspec.params.get("deployment") == deployment:
            item.add_marker(pytest.mark.xfail(reason=f"{deployment}: {reason}", strict=True))


class Deployment(NamedTuple):
    """Where requests go: to an address or, in process, to an application."""

    url: str
    app: FastAPI | None = None

    def client(self, **options: Any) -> httpx.AsyncClient:
        transport = None if self.app is None else httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(base_url=self.url, transport=transport, timeout=60, **options)

    def blocking_client(self, **options: Any) -> httpx.Client:
        """For another thread than that of the event loop."""
        transport = None if self.app is None else OnLoop(self.app)
        return httpx.Client(base_url=self.url, transport=transport, timeout=60, **options)


@pytest.fixture(scope="session")
def settings(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    limited = entry("limited", ["infer"], rows_per_second=0.001, burst_rows=10)
    path.write_text("".join(entry(name, scopes) for name, scopes in SCOPES.items()) + limited)
    return Settings(
        models=[models_dir],
        default_model=IMAGES,
        device="cpu",
        threads=1,
        max_request_rows=deployments.MAX_ROWS,
        max_body_bytes=deployments.MAX_BODY_BYTES,
        api_keys_file=path,
        cors_origins=[deployments.ORIGIN],
    )


@pytest_asyncio.fixture(scope="session")
async def in_process(settings: Settings) -> AsyncIterator[Deployment]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield Deployment("http://test", app)


@pytest.fixture(scope="session")
def uvicorn(settings: Settings) -> Iterator[Deployment]:
    with deployments.uvicorn(settings, workers=1) as url:
        yield Deployment(url)


@pytest.fixture(scope="session")
def workers(settings: Settings) -> Iterator[Deployment]:
    with deployments.uvicorn(settings, workers=2) as url:
        yield Deployment(url)


@pytest.fixture(scope="session")
def ray(settings: Settings) -> Iterator[Deployment]:
    with deployments.ray_serve(settings, replicas=2) as url:
        yield Deployment(url)


@pytest.fixture(scope="session")
def deployment(request: pytest.FixtureRequest) -> Deployment:
    found: Deployment = request.getfixturevalue(request.param)
    return found


@pytest_asyncio.fixture(scope="session")
async def client(deployment: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with deployment.client(headers=key("caller")) as client:
        yield client


@pytest_asyncio.fixture(scope="session")
async def stranger(deployment: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    """A caller without a key."""
    async with deployment.client() as client:
        yield client


@pytest_asyncio.fixture(scope="session")
async def reference(in_process: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    """The deployment to which all others are compared where answers are to be the same bits."""
    async with in_process.client(headers=key("caller")) as client:
        yield client


@pytest.fixture(scope="session")
def url(deployment: Deployment) -> str:
    return deployment.url


@pytest.fixture
def address(url: str) -> tuple[str, int]:
    parsed = httpx.URL(url)
    assert parsed.port is not None
    return parsed.host, parsed.port
