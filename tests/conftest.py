"""Small artifacts and an application around them, made once a run."""

import asyncio
import copy
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
from fastapi import FastAPI
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from model.data import Dataset
from model.export import export
from model.glow import Glow
from model.recipe import Recipe, Splits, parse_recipe
from model.trainer import Trainer
from service.app import create_app
from service.artifact import Artifact, open_artifact
from service.engine import Model
from service.files import row_file
from service.score import run
from service.score.targets import EngineTarget
from service.settings import Settings

torch.set_num_threads(1)  # the suite runs in parallel processes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """Run in one process what shares something dear: the tests of a file, of a deployment, all that start Ray.

    As --dist=loadgroup would, whose groups pytest-xdist 3.8 loses under pytest 9.2.
    """
    if config.getvalue("dist") != "load":  # another way was asked for
        return None

    class BySharing(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if "ray" in Path(file).stem.split("_"):
                return "ray"
            served = re.search(r"[\[-](uvicorn|workers|ray)[-\]]", test) if "/contract/" in file else None
            return served[1] if served else file

    return BySharing(config, log)


def tiny_recipe(name: str, **model: object) -> Recipe:
    """A recipe of seconds."""
    return parse_recipe(
        {
            "name": name,
            "data": {"train": "unused", "validation": 100, "calibration": 100},
            "model": {"num_steps": 2, "width": 8, **model},
            "training": {"steps": 12, "batch_size": 32, "learning_rate": 5e-3, "warmup_steps": 2, "ema_decay": 0.5},
            "artifact": {"alpha": 0.1, "licence": "MIT", "description": "A tiny flow."},
        },
        "tests",
    )


def with_training(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with other values under [training]."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def tiny_images(num: int = 400) -> Splits:
    """Smooth grey 8x8 images of four bits."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 14, (num, 1, 4, 4))
    x = coarse.repeat(2, 2).repeat(2, 3) + random.integers(0, 3, (num, 1, 8, 8))
    return divide(Dataset(x.astype(np.uint8), []))


def tiny_table(num: int = 400) -> Splits:
    """Three columns: a normal one, a dependent one on another scale, and whole numbers."""
    random = np.random.default_rng(1)
    a = random.normal(size=num)
    x = np.stack([a, 1000 + 50 * (a + random.normal(size=num)), random.integers(0, 10, num)], 1)
    return divide(Dataset(x, ["a", "b", "count"]))


def tiny_mixed(num: int = 400) -> Splits:
    """One column of each type."""
    random = np.random.default_rng(2)
    color, size = random.integers(0, 3, num), random.normal(size=num)
    x = np.stack([color, size + color, random.integers(0, 10, num), np.full(num, 7.0), size + color], 1)
    return divide(Dataset(x, ["color", "size", "count", "fixed", "copy"], {"color": ["blue", "green", "red"]}))


def divide(data: Dataset) -> Splits:
    """A fixed split into quarters."""
    fit, validation, calibration, test = (data.take(rows) for rows in np.split(np.arange(len(data.x)), 4))
    return Splits(fit=fit, validation=validation, calibration=calibration, test=test)


def train_and_export(recipe: Recipe, splits: Splits, out: Path) -> Trainer:
    """A few steps, so that no layer is left at its initialisation, then the artifact."""
    trainer = Trainer(recipe, splits)
    for _ in range(recipe.training.steps):
        trainer.train_step()
    export(trainer.checkpoint(), splits, out)
    return trainer


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifacts ``tiny-images`` (1x8x8), ``tiny-table`` (3 columns) and ``tiny-mixed`` (5)."""
    folder = tmp_path_factory.mktemp("models")
    train_and_export(tiny_recipe("tiny-images", num_levels=2, bits=4), tiny_images(), folder / "tiny-images.pt")
    train_and_export(tiny_recipe("tiny-table"), tiny_table(), folder / "tiny-table.pt")
    train_and_export(tiny_recipe("tiny-mixed"), tiny_mixed(), folder / "tiny-mixed.pt")
    return folder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting leaks in from the shell that runs the tests."""
    for name in os.environ:
        if name.upper().startswith("GLOW_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def settings(models_dir: Path) -> Settings:
    return Settings(
        models=[models_dir],
        default_model="tiny-images",
        device="cpu",
        threads=1,
        max_batch_rows=32,
        max_request_rows=256,
        max_queue_rows=2048,
        max_body_bytes=2**20,
    )


@pytest_asyncio.fixture(scope="session")
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application, started: its lifespan has run as under a server."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client of an application, in process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


class OnLoop(httpx.BaseTransport):
    """Requests of another thread to an application on this one's loop."""

    def __init__(self, app: FastAPI) -> None:
        self._inner, self._loop = httpx.ASGITransport(app), asyncio.get_running_loop()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run_coroutine_threadsafe(self._ask(request), self._loop).result()

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(
            httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
        )
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        content = b"".join([part async for part in answer.stream])
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)


@pytest_asyncio.fixture(scope="session")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def target_of(path: Path, cache: Path) -> EngineTarget:
    """Reproducible, so that a row has the same bits in whatever batch it comes."""
    return EngineTarget(path, cache, reproducible=True)


@pytest.fixture(scope="session")
def mixed_target(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineTarget:
    return target_of(models_dir / "tiny-mixed.pt", tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="session")
def table_target(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineTarget:
    return target_of(models_dir / "tiny-table.pt", tmp_path_factory.mktemp("plans"))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read and written in many pieces."""
    monkeypatch.setattr(row_file, "BATCH_ROWS", 16)
    monkeypatch.setattr(run, "PART_ROWS", 50)


@pytest.fixture(scope="session")
def image_splits() -> Splits:
    return tiny_images()


@pytest.fixture(scope="session")
def images(models_dir: Path) -> Artifact:
    return open_artifact(models_dir / "tiny-images.pt")


@pytest.fixture(scope="session")
def x(image_splits: Splits) -> Any:
    """Five images that ``tiny-images`` has not seen: (5, 1, 8, 8)."""
    assert image_splits.test is not None
    return image_splits.test.x[:5]


def with_manifest(model: Model, **changes: object) -> Model:
    """The same model, with other things said of it."""
    other = copy.copy(model)
    other.manifest = model.manifest.model_copy(update=changes)
    return other


def perturbed(flow: Glow, scale: float = 0.2) -> Glow:
    """A flow away from its initialisation, where couplings are the identity and prove nothing."""
    torch.manual_seed(1)
    flow = flow.double().eval().requires_grad_(False)
    for parameter in flow.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return flow
