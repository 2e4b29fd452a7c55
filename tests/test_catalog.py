"""Which artifacts are served under which name, and what becomes of requests while they are exchanged."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
from fastapi import FastAPI

from service import plans
from service import service as lifecycle
from service.app import create_app
from service.artifact import (
    Artifact,
    ArtifactError,
    digest_of,
    open_artifact,
    read_records,
    save_artifact,
    within_tolerance,
)
from service.catalog import Catalog, open_catalog, read_catalog, read_digests
from service.engine import Engine, Model
from service.errors import ModelNotFound, ReloadRefused
from service.settings import Limits, Settings
from tests.conftest import client_of, tiny_recipe, tiny_table, train_and_export, with_training
from tests.wire import IMAGES, TABLE

Reload = Callable[[], Awaitable[dict[str, Any]]]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another version of tiny-table: trained for longer, of the same architecture."""
    path = tmp_path_factory.mktemp("other") / "other.pt"
    train_and_export(with_training(tiny_recipe(TABLE), steps=20), tiny_table(), path)
    return path


@pytest.fixture
def folder(models_dir: Path, tmp_path: Path) -> Path:
    """A folder of artifacts to change."""
    place = tmp_path / "models"
    place.mkdir()
    shutil.copy(models_dir / f"{TABLE}.pt", place)
    return place


def replace(path: Path, by: Path) -> None:
    """As a deployment does: whole, or not at all."""
    shutil.copy(by, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def recalibrated(source: Path, out: Path, alpha: float = 0.2) -> None:
    """The same flow, of the same version, with something else written about it."""
    manifest = open_artifact(source).manifest
    assert manifest.calibration is not None
    calibration = manifest.calibration.model_copy(update={"alpha": alpha})
    save_artifact(out, read_records(source), manifest.model_copy(update={"calibration": calibration}))


def settings_of(settings: Settings, folder: Path, **changes: object) -> Settings:
    return settings.model_copy(update={"models": [folder], "default_model": None, **changes})


@pytest_asyncio.fixture
async def app(settings: Settings, folder: Path) -> AsyncIterator[FastAPI]:
    app = create_app(settings_of(settings, folder))
    async with app.router.lifespan_context(app):
        yield app


@pytest_asyncio.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def catalog_of(settings: Settings, folder: Path, wanted: str | None = None) -> Catalog:
    return open_catalog(Engine(settings_of(settings, folder, default_model=wanted)))


def test_versions_of_a_name_stand_beside_each_other_and_its_own_file_answers_for_it(
    settings: Settings, folder: Path, other: Path
) -> None:
    shutil.copy(other, folder / "zzz.pt")
    first, second = (open_artifact(path).manifest.version for path in (folder / f"{TABLE}.pt", other))
    catalog = catalog_of(settings, folder)
    assert [model.version for model in catalog.versions(TABLE)] == [first, second]
    assert catalog.find(None) is catalog.find(TABLE) is catalog.find(f"{TABLE}@{first}")
    assert catalog.find(f"{TABLE}@{second}").version == second
    for unknown in ("other", f"{TABLE}@", f"{TABLE}@{first[:-1]}", f"@{first}", first, ""):
        with pytest.raises(ModelNotFound, match=f"served are {TABLE}@{first}, {TABLE}@{second}"):
            catalog.find(unknown)
    pinned = catalog_of(settings, folder, f"{TABLE}@{second}")
    assert pinned.find(None).version == pinned.find(TABLE).version == second
    (folder / f"{TABLE}.pt").rename(folder / "aaa.pt")
    assert catalog_of(settings, folder).find(TABLE).version == second  # the last in the order of file names


def test_one_artifact_under_two_file_names_is_refused_naming_both(settings: Settings, folder: Path) -> None:
    shutil.copy(folder / f"{TABLE}.pt", folder / "copy.pt")
    with pytest.raises(ArtifactError, match=rf"two artifacts are {TABLE}@\w+: .*copy.pt and .*{TABLE}.pt"):
        catalog_of(settings, folder)


def test_only_listed_artifacts_are_loaded_and_the_others_not_even_opened(
    settings: Settings, folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, listed = folder / f"{TABLE}.pt", tmp_path / "digests"
    listed.write_text(f"# released\n{digest_of(path)}  {TABLE}.pt\n\n")
    allowed = settings_of(settings, folder, digests_file=listed)
    assert read_catalog(Engine(allowed)).default.digest == digest_of(path)
    listed.write_text(f"{digest_of(other).upper()} *other.pt\n")
    monkeypatch.setattr("service.artifact.file.load", pytest.fail)
    with pytest.raises(ArtifactError, match=f"SHA-256 is {digest_of(path)}, which is not one of GLOW_DIGESTS_FILE"):
        read_catalog(Engine(allowed))
    assert read_digests(listed) == {digest_of(other)}
    for text in ("abc  x.pt", f"{'a' * 63}  x.pt", f"{'a' * 65}  x.pt"):
        listed.write_text(text)
        with pytest.raises(ArtifactError, match="line 1 does not begin with a SHA-256"):
            read_digests(listed)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_digests(tmp_path / "nothing")


def test_flows_that_differ_in_weights_alone_are_measured_once(
    settings: Settings, models_dir: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = open_artifact(models_dir / f"{TABLE}.pt"), open_artifact(other)
    assert first.manifest.version != second.manifest.version
    assert first.architecture == second.architecture != open_artifact(models_dir / f"{IMAGES}.pt").architecture
    engine = Engine(settings)
    plans.finish(Model(first, engine, "first").warm_up(10))
    monkeypatch.setattr(plans, "_measure", pytest.fail)
    model = Model(second, engine, "second")
    plans.finish(model.warm_up(10))
    assert len(model.run("statistics", np.zeros((5, 3)))[0]) == 5


async def test_requests_during_a_reload_are_answered_by_one_version_or_the_other(
    app: FastAPI, client: httpx.AsyncClient, folder: Path, other: Path
) -> None:
    rows = np.random.default_rng(0).normal((0, 1000, 4), (1, 50, 1), (7, 3)).round(3)
    reload: Reload = app.state.service.reload
    expected: dict[str, Any] = {}
    for path in (folder / f"{TABLE}.pt", other):
        artifact: Artifact = open_artifact(path)
        expected[artifact.manifest.version] = artifact.program.log_prob(torch.from_numpy(rows)).numpy()
    first, second = expected
    seen: list[str] = []
    ended = asyncio.Event()

    async def ask() -> None:
        while not ended.is_set():
            response = await client.post("/log-likelihood", json={"inputs": rows.tolist()})
            assert response.status_code == 200, response.text
            answer = response.json()
            assert within_tolerance(np.array(answer["log_likelihood"]), expected[answer["version"]])
            seen.append(answer["version"])

    askers = [asyncio.create_task(ask()) for _ in range(4)]
    await asyncio.sleep(0.1)
    replace(folder / f"{TABLE}.pt", other)
    answer = await reload()
    assert answer == {"status": "ok", "loaded": [f"{TABLE}@{second}"], "models": [f"{TABLE}@{second}"]}
    begun_after = len(seen)
    await asyncio.sleep(0.1)
    ended.set()
    await asyncio.gather(*askers)
    assert seen[0] == first
    assert {first} <= set(seen[:begun_after])
    assert set(seen[begun_after + len(askers) :]) == {second}
    assert (await client.get("/models")).json()["models"][0]["version"] == second
    examples = (await client.get("/openapi.json")).json()["paths"]["/encode"]["post"]["requestBody"]
    assert TABLE in examples["content"]["application/json"]["examples"]


async def test_a_new_calibration_of_the_same_flow_is_taken_over(
    app: FastAPI, client: httpx.AsyncClient, folder: Path, models_dir: Path
) -> None:
    body = {"inputs": [[0.5, 1010.0, 3.0]]}
    before = (await client.post("/log-likelihood", json=body)).json()
    recalibrated(models_dir / f"{TABLE}.pt", folder / f"{TABLE}.pt")
    assert (await app.state.service.reload())["loaded"] == [f"{TABLE}@{before['version']}"]
    after = (await client.post("/log-likelihood", json=body)).json()
    assert (before["alpha"], after["alpha"]) == (0.1, 0.2)
    assert after["version"] == before["version"]


async def test_what_did_not_change_is_kept_with_all_that_it_has_learnt(app: FastAPI, client: httpx.AsyncClient) -> None:
    model = app.state.service.flows.find(None)
    await client.post("/log-likelihood", json={"inputs": [[0.5, 1010.0, 3.0]]})
    assert (await app.state.service.reload())["loaded"] == []
    assert app.state.service.flows.find(None) is model
    assert (await client.get(f"/models/{TABLE}/drift")).json()["rows"] == 1


def cut(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path, _: Path) -> None:
    path.unlink()


def add_a_copy(path: Path, _: Path) -> None:
    shutil.copy(path, path.with_name("copy.pt"))


def spoil_beside_a_good_one(path: Path, other: Path) -> None:
    shutil.copy(other, path.with_name("good.pt"))
    cut(path, other)


@pytest.mark.parametrize("damage", [cut, flip, remove, add_a_copy, spoil_beside_a_good_one])
async def test_a_reload_that_fails_changes_nothing(
    app: FastAPI, client: httpx.AsyncClient, folder: Path, other: Path, damage: Callable[[Path, Path], None]
) -> None:
    body = {"inputs": [[0.5, 1010.0, 3.0]]}
    before, listed = (await client.post("/log-likelihood", json=body)).json(), (await client.get("/models")).json()
    damage(folder / f"{TABLE}.pt", other)
    with pytest.raises(ReloadRefused, match="what was served is served on"):
        await app.state.service.reload()
    assert (await client.post("/log-likelihood", json=body)).json() == before
    assert (await client.get("/models")).json() == listed
    assert (await client.get("/readyz")).status_code == 200


async def test_a_model_that_answers_wrongly_here_is_not_taken_over(
    app: FastAPI, client: httpx.AsyncClient, folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = app.state.service.flows.find(None)
    replace(folder / f"{TABLE}.pt", other)
    monkeypatch.setattr("service.engine.warm_up", lambda *_: "is off")
    with pytest.raises(ReloadRefused, match="golden case"):
        await app.state.service.reload()
    assert app.state.service.flows.find(None) is before
    monkeypatch.undo()
    assert (await app.state.service.reload())["loaded"]


async def test_settings_that_no_longer_fit_refuse_a_reload(settings: Settings, folder: Path, models_dir: Path) -> None:
    limits = {TABLE: {"max_request_rows": 2}}
    app = create_app(
        Settings(**settings_of(settings, folder).model_dump(exclude={"model_limits"}), model_limits=limits)
    )
    async with app.router.lifespan_context(app):
        (folder / f"{TABLE}.pt").unlink()
        shutil.copy(models_dir / f"{IMAGES}.pt", folder)
        with pytest.raises(ReloadRefused, match=f"GLOW_MODEL_LIMITS has limits of '{TABLE}', but only {IMAGES}"):
            await app.state.service.reload()


async def test_one_reload_at_a_time(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, free = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(engine: Engine, known: Catalog) -> Catalog:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(free.wait(), loop).result(10)
        return read_catalog(engine, known)

    monkeypatch.setattr(lifecycle, "read_catalog", slow)
    first = asyncio.create_task(app.state.service.reload())
    await entered.wait()
    with pytest.raises(ReloadRefused, match="another reload is under way"):
        await app.state.service.reload_all()
    waiting = asyncio.create_task(app.state.service.reload())  # as a signal wants
    free.set()
    assert (await first)["status"] == (await waiting)["status"] == "ok"


async def test_what_was_replaced_is_freed(app: FastAPI, client: httpx.AsyncClient, folder: Path, other: Path) -> None:
    paths = [other, folder / "kept"]
    shutil.copy(folder / f"{TABLE}.pt", paths[1])
    models: list[weakref.ref[Model]] = []
    for i in range(4):
        models.append(weakref.ref(app.state.service.flows.find(None)))
        body = {"inputs": [[0.5, 1010.0, 3.0]], "explain": True}
        assert (await client.post("/log-likelihood", json=body)).status_code == 200
        replace(folder / f"{TABLE}.pt", paths[i % 2])
        assert len((await app.state.service.reload())["loaded"]) == 1
    await client.post("/encode", json={"inputs": [[0.5, 1010.0, 3.0]]})  # the engine has let go of its last pass
    gc.collect()
    assert [model() for model in models] == [None] * 4


async def test_limits_of_a_model_are_its_own(settings: Settings, models_dir: Path) -> None:
    limits = {TABLE: Limits(max_request_rows=3, max_queue_rows=4)}
    app = create_app(settings.model_copy(update={"model_limits": limits}))
    row = [0.5, 1010.0, 3.0]
    async with (
        app.router.lifespan_context(app),
        client_of(app) as client,
    ):
        response = await client.post("/encode", json={"model": TABLE, "inputs": [row] * 4})
        assert response.status_code == 413
        assert "4 rows are over the limit of 3 a request (GLOW_MODEL_LIMITS)" in response.json()["error"]
        assert (await client.get("/sample?n=8")).status_code == 200  # of another model
        some = [client.post("/encode", json={"model": TABLE, "inputs": [row] * 2}) for _ in range(6)]
        codes = [response.status_code for response in await asyncio.gather(*some)]
        assert codes.count(200) >= 2
        assert set(codes) == {200, 429}
        assert (await client.post("/encode", json={"model": TABLE, "inputs": [row] * 3})).status_code == 200
        explained = {"model": TABLE, "inputs": [row], "explain": True}  # whose further passes do not count
        assert (await client.post("/log-likelihood", json=explained)).status_code == 200
    with pytest.raises(ArtifactError, match="has limits of 'other', but only"):
        create_app(settings.model_copy(update={"model_limits": {"other": Limits()}}))
