"""Keys: who has none is told so, who has one gets what its scopes and rows allow, and nothing tells what a key is."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from starlette.routing import Route

from service import api, keys
from service.access import Access, read_access, scope_of
from service.api import ENDPOINTS
from service.app import create_app
from service.errors import Forbidden, QueueFull, QuotaExceeded, TooLarge, Unauthorized
from service.oip import routes as oip
from service.quota import TokenBucket
from service.settings import Settings, SettingsError
from tests.conftest import client_of
from tests.keys import entry, key, secret_of
from tests.wire import TABLE

ENTRIES = {
    "reader": ["infer"],
    "scraper": ["metrics"],
    "operator": ["admin"],
    "all": ["infer", "metrics", "admin"],
}
ROW = {"model": TABLE, "inputs": [[0.5, 1010.0, 3.0]]}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    limited = entry("limited", ["infer"], rows_per_second=0.001, burst_rows=10)
    path.write_text("".join(entry(name, scopes) for name, scopes in ENTRIES.items()) + limited)
    return path


@pytest_asyncio.fixture(scope="module")
async def guarded(settings: Settings, keys_file: Path, models_dir: Path) -> AsyncIterator[FastAPI]:
    changes = {"api_keys_file": keys_file, "models": [models_dir / f"{TABLE}.pt"], "default_model": None}
    app = create_app(settings.model_copy(update={**changes, "cors_origins": ["https://good.example"]}))
    async with app.router.lifespan_context(app):
        yield app


@pytest_asyncio.fixture(scope="module")
async def asker(guarded: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(guarded) as client:
        yield client


def test_every_route_that_may_change_something_needs_the_scope_admin(guarded: FastAPI) -> None:
    routes = [route for router in (api.router, oip.router) for route in router.routes if isinstance(route, Route)]
    running = {*(path for _, path in ENDPOINTS), "/v2/repository/index"}
    changing = [
        (method, route.path)
        for route in (*guarded.routes, *routes)
        if isinstance(route, Route) and route.path not in running and not route.path.endswith("/infer")
        for method in (route.methods or set()) - {"GET", "HEAD"}
    ]
    assert {path for _, path in changing} == {"/admin/reload", "/models/{name}/drift/reset"}
    assert {scope_of(method, path.format(name="x")) for method, path in changing} == {"admin"}
    for path in ("/LIVEZ", "/livez/", "//livez", "/livez/../metrics", "/v2/health/live/x", "", "//", "/playground"):
        assert scope_of("GET", path) == "infer"


async def test_without_keys_everyone_may_ask_and_nobody_may_administer(client: httpx.AsyncClient) -> None:
    assert (await client.get("/metrics")).status_code == 200
    response = await client.post("/admin/reload")
    assert response.status_code == 403
    assert "GLOW_API_KEYS_FILE names none" in response.json()["error"]


def test_a_bucket_fills_at_its_rate_and_no_higher_than_its_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("service.quota.time.monotonic", lambda: now)
    bucket = TokenBucket("x", rate=2.0, burst=10)
    bucket.take(10)
    with pytest.raises(QuotaExceeded) as error:
        bucket.take(5)
    assert error.value.retry_after_s == 3
    with pytest.raises(QuotaExceeded):
        bucket.check()
    now += 2.5
    bucket.take(5)
    now += 1e6
    bucket.take(10)
    with pytest.raises(QuotaExceeded):
        bucket.take(1)
    with pytest.raises(TooLarge):
        bucket.take(11)


def test_workers_share_a_bucket(tmp_path: Path) -> None:
    first, second = (TokenBucket("x", 1e-9, 10, tmp_path) for _ in range(2))
    first.take(6)
    second.take(4)
    with pytest.raises(QuotaExceeded):
        first.take(1)


def test_every_key_is_compared_and_the_one_given_is_not_kept(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def spy(given: bytes, expected: bytes) -> bool:
        compared.append((given, expected))
        return compare(given, expected)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    known = read_access(keys_file)
    for name in ("reader", "limited", "nobody"):
        compared.clear()
        headers = [(b"x-api-key", secret_of(name).encode())]
        if name == "nobody":
            with pytest.raises(Unauthorized):
                known.check("GET", "/models", headers)
        else:
            assert known.check("GET", "/models", headers).id == name
        assert len(compared) == len(known.keys)
    assert b"secret-of" not in repr(known).encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys: Field required"),
        ("keys = []", "keys: List should have at least 1 item"),
        ("nonsense", "is not TOML"),
        (entry("a b", ["infer"]), "keys.0.id: String should match pattern"),
        (entry("a", ["everything"]), "keys.0.scopes.0: Input should be 'infer', 'metrics' or 'admin'"),
        (entry("a", []), "keys.0.scopes: List should have at least 1 item"),
        pytest.param("a = " + "[" * 5000, "is not TOML", id="nested"),
        pytest.param("a = " + "9" * 5000, "is not TOML", id="long"),
        (
            entry("a", ["infer"], rows_per_second=5e-324),
            "keys.0.rows_per_second: Input should be greater than or equal",
        ),
        (entry("a", ["infer"], rows_per_second=1, burst_rows=10**40), "keys.0.burst_rows: Input should be less than"),
        (entry("a", ["infer"], burst_rows=5), "burst_rows is of no use without rows_per_second"),
        (entry("a", ["infer"], secret='"s3cret"'), "keys.0.secret: Extra inputs are not permitted"),  # noqa: S106 (of nothing)
        (entry("a", ["infer"]) * 2, "two keys have the id a"),
        ('[[keys]]\nid = "a"\nsha256 = "s3cret"\nscopes = ["infer"]', "keys.0.sha256: String should match pattern"),
    ],
)
def test_a_wrong_keys_file_refuses_the_start_without_quoting_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="GLOW_API_KEYS_FILE") as error:
        read_access(path)
    assert message in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_keys_file_that_is_not_there_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_access(tmp_path / "keys.toml")


def test_a_made_key_opens_what_its_entry_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys.main(["ops", "--scopes", "admin", "infer", "--rows-per-second", "100"])
    printed = capsys.readouterr()
    made = printed.err.rpartition(" ")[2].strip()
    assert made not in printed.out
    assert len(made) >= 43  # 256 bits
    path = tmp_path / "keys.toml"
    path.write_text(printed.out)
    known = read_access(path)
    caller = known.check("POST", "/admin/reload", [(b"authorization", f"Bearer {made}".encode())])
    assert caller.id == "ops"
    assert sorted(caller.scopes) == ["admin", "infer"]
    with pytest.raises(Forbidden):
        known.check("GET", "/metrics", [(b"x-api-key", made.encode())])


async def test_keys_are_exchanged_without_a_restart(settings: Settings, models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry("all", ENTRIES["all"]))
    changes: dict[str, Any] = {"api_keys_file": path, "models": [models_dir / f"{TABLE}.pt"], "default_model": None}
    app = create_app(settings.model_copy(update=changes))
    async with (
        app.router.lifespan_context(app),
        client_of(app) as asker,
    ):
        path.write_text("broken")
        assert (await asker.post("/admin/reload", headers=key("all"))).status_code == 409
        assert (await asker.get("/models", headers=key("all"))).status_code == 200
        path.write_text(entry("reader", ["infer"]))
        assert (await asker.post("/admin/reload", headers=key("all"))).status_code == 200
        assert (await asker.get("/models", headers=key("all"))).status_code == 401
        assert (await asker.get("/models", headers=key("reader"))).status_code == 200


def test_a_public_address_needs_keys_or_a_permission(keys_file: Path) -> None:
    with pytest.raises(ValueError, match=r"GLOW_API_KEYS_FILE .* or GLOW_ALLOW_ANONYMOUS"):
        Settings(host="0.0.0.0")
    Settings(host="0.0.0.0", allow_anonymous=True)
    Settings(host="0.0.0.0", api_keys_file=keys_file)


async def test_keys_are_needed_though_anonymous_callers_are_allowed(
    settings: Settings, models_dir: Path, keys_file: Path
) -> None:
    changes: dict[str, Any] = {"api_keys_file": keys_file, "allow_anonymous": True}
    app = create_app(
        settings.model_copy(update={**changes, "models": [models_dir / f"{TABLE}.pt"], "default_model": None})
    )
    async with client_of(app) as asker:
        assert (await asker.get("/models")).status_code == 401


async def test_rows_that_nothing_was_computed_for_are_given_back(
    asker: httpx.AsyncClient, guarded: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: object) -> None:
        raise QueueFull("busy")

    access: Access = guarded.state.service.access
    bucket = next(caller.bucket for _, caller in access.keys if caller.id == "limited")
    assert bucket is not None
    held = bucket._fill()
    with monkeypatch.context() as patch:
        patch.setattr(guarded.state.service.flows._batcher, "submit", busy)
        assert (await asker.post("/encode", json=ROW, headers=key("limited"))).status_code == 429
    assert bucket._fill() == pytest.approx(held, abs=0.1)


def test_buckets_stay_as_full_as_they_are_when_keys_are_read_anew(keys_file: Path) -> None:
    before = read_access(keys_file)
    after = read_access(keys_file, before)
    assert [caller.bucket for _, caller in after.keys] == [caller.bucket for _, caller in before.keys]
    assert after.fingerprint == before.fingerprint


async def test_keys_do_not_reach_the_log(asker: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        await asyncio.gather(*(asker.post("/encode", json=ROW, headers=key(name)) for name in (*ENTRIES, "nobody")))
    assert "secret-of" not in caplog.text


def test_no_keys_file_means_no_keys() -> None:
    assert read_access(None) == Access()


async def test_no_other_site_may_call_unless_it_is_named(client: httpx.AsyncClient) -> None:
    asking = {"origin": "https://good.example", "access-control-request-method": "POST"}
    for method, path in (("OPTIONS", "/encode"), ("GET", "/models")):
        response = await client.request(method, path, headers=asking)
        assert not [name for name in response.headers if name.startswith("access-control")]
    with pytest.raises(ValueError, match="is no origin"):
        Settings(cors_origins=["*"])
