"""What the routes do that no caller can bring about."""

from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from model.recipe import DataRecipe, load_splits
from service.app import create_app
from service.errors import Unprocessable
from service.flows import Budget, Flows
from service.options import ScoreOptions
from service.settings import Settings
from tests.conftest import tiny_recipe, train_and_export, with_manifest
from tests.wire import TABLE, post, read_png


@pytest.mark.parametrize("option", ["alpha", "fdr"])
async def test_without_calibration_there_are_no_p_values_to_flag_by(app: FastAPI, option: str) -> None:
    flows: Flows = app.state.service.flows
    model = with_manifest(flows.find(TABLE), calibration=None)
    with pytest.raises(Unprocessable, match=f"{option}: model {TABLE} is not calibrated"):
        await flows.score(Budget(), model, np.zeros((1, 3)), ScoreOptions.model_validate({option: 0.1}))


async def test_a_folder_of_coloured_images_is_trained_exported_and_scored(settings: Settings, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 4, 4, 3), np.uint8).repeat(2, 1).repeat(2, 2)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{i:02}.png")
    splits = load_splits(DataRecipe(train="images", validation=10, calibration=10), tmp_path)
    train_and_export(tiny_recipe("colours", num_levels=2), splits, tmp_path / "colours.pt")
    app = create_app(settings.model_copy(update={"models": [tmp_path / "colours.pt"], "default_model": None}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        content = (tmp_path / "images" / "00.png").read_bytes()
        picture = await client.post("/log-likelihood", content=content, headers={"content-type": "image/png"})
        planes = await post(client, "/log-likelihood", {"inputs": images[:1].transpose(0, 3, 1, 2).tolist()})
        assert picture.json() == planes
        sample = await client.get("/sample?n=4&format=png")
        assert read_png(sample.content).shape == (16, 16, 3)


async def test_a_deadline_is_answered_504(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"deadline_s": 1e-6}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        response = await client.post("/sample", json={"n": 200})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


async def test_before_and_after_its_life_the_service_is_live_but_not_ready(settings: Settings) -> None:
    app = create_app(settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for _ in range(2):
            assert (await client.get("/livez")).status_code == 200
            for response in (await client.get("/readyz"), await client.post("/sample")):
                assert response.status_code == 503
                assert response.headers["retry-after"] == "5"
            async with app.router.lifespan_context(app):
                assert (await client.get("/readyz")).status_code == 200


async def test_an_internal_error_keeps_its_text_to_itself(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret path /etc")

    monkeypatch.setattr(app.state.service.flows.find(None), "_run", fail)
    response = await client.post("/log-likelihood", json={"inputs": [[0.0] * 64]})
    monkeypatch.undo()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert response.json()["request_id"] in caplog.text
    assert response.json()["code"] == "internal_error"
