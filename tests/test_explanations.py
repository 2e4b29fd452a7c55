"""Explanations: they sum to -log p, belong to their row alone, and point at what was spoiled."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi import FastAPI

from model.recipe import Splits, load_splits, parse_recipe
from service import explanations
from service.app import create_app
from service.artifact import golden_fault, golden_rows, open_artifact, within_tolerance
from service.codecs import image
from service.errors import TooLarge
from service.settings import EMBEDDED_ARTIFACTS, Settings
from tests.wire import IMAGES, MIXED, TABLE, npy, png, post, read_npy, read_png

ROWS: dict[str, Any] = {
    TABLE: [[0.5, 1010.0, 3.0], [0.1, 990.0, 400.0], [1e300, 0.0, -5.0]],
    MIXED: [[2.0, 1.5, 3, 7, 1.5], [0.0, 0.1, 4, 7, 5.0]],
}
MODELS = [IMAGES, TABLE, MIXED]


@pytest.fixture(scope="module")
def inputs(image_splits: Splits) -> Any:
    assert image_splits.test is not None
    return {**ROWS, IMAGES: image_splits.test.x[:3].tolist()}


def sums(contributions: Any) -> Any:
    array = np.array(contributions)
    return array.reshape(len(array), -1).sum(1)


@pytest.mark.parametrize("model", MODELS)
async def test_contributions_sum_to_minus_log_likelihood(client: httpx.AsyncClient, inputs: Any, model: str) -> None:
    rows = inputs[model]
    answer = await post(client, "/log-likelihood", {"model": model, "inputs": rows, "explain": True})
    shape = (len(rows), 8, 8) if model == IMAGES else np.shape(rows)
    assert np.shape(answer["contributions"]) == shape
    expected = -np.array(answer["log_likelihood"])
    assert within_tolerance(sums(answer["contributions"]), expected)
    if model != IMAGES:
        np.testing.assert_allclose(sums(answer["contributions"]), expected, rtol=1e-12)
    plain = await post(client, "/log-likelihood", {"model": model, "inputs": rows})
    assert "contributions" not in plain
    assert within_tolerance(np.array(plain["log_likelihood"]), np.array(answer["log_likelihood"]))


@pytest.mark.parametrize("model", MODELS)
async def test_every_transport_carries_the_same_contributions(
    client: httpx.AsyncClient, inputs: Any, model: str
) -> None:
    body = {"model": model, "inputs": inputs[model]}
    expected = (await post(client, "/log-likelihood", {**body, "explain": True}))["contributions"]
    by_query = await client.post("/log-likelihood?explain=true", json=body)
    assert by_query.json()["contributions"] == expected
    binary = await client.post(
        f"/log-likelihood?model={model}&explain=true&format=npy",
        content=npy(np.array(inputs[model])),
        headers={"content-type": "application/x-npy"},
    )
    np.testing.assert_array_equal(read_npy(binary), expected)
    response = await client.post("/log-likelihood?explain=true&format=arrow", json=body)
    table = pa.ipc.open_stream(response.content).read_all()
    lists = table["contributions"].to_pylist()
    np.testing.assert_array_equal(lists, np.reshape(expected, (len(expected), -1)))
    assert within_tolerance(sums(lists), -table["log_likelihood"].to_numpy())


@pytest.mark.parametrize("model", MODELS)
async def test_a_row_is_explained_alike_whatever_stands_beside_it(
    client: httpx.AsyncClient, inputs: Any, model: str
) -> None:
    body = {"model": model, "explain": True}
    together = await post(client, "/log-likelihood", {**body, "inputs": inputs[model]})
    for i, row in enumerate(inputs[model]):
        alone = await post(client, "/log-likelihood", {**body, "inputs": [row]})
        assert alone["contributions"][0] == together["contributions"][i]


async def test_a_corrupted_column_contributes_most(client: httpx.AsyncClient) -> None:
    rows, wrong = [], []
    for model, row, column, value in (
        (TABLE, [0.5, 1020.0, 3.0], 0, 9.0),
        (TABLE, [0.5, 1020.0, 3.0], 1, 1900.0),
        (TABLE, [0.5, 1020.0, 3.0], 2, 90.0),
        (MIXED, [1.0, 1.0, 3, 7, 1.0], 2, 90),
        (MIXED, [1.0, 1.0, 3, 7, 1.0], 3, 11),
    ):
        rows = [value if j == column else entry for j, entry in enumerate(row)]
        answer = await post(client, "/log-likelihood", {"model": model, "inputs": [rows], "explain": True})
        if np.argmax(answer["contributions"][0]) != column:
            wrong.append((model, column, answer["contributions"]))
    assert not wrong


async def test_of_two_columns_that_repeat_each_other_one_is_blamed(client: httpx.AsyncClient) -> None:
    answer = await post(client, "/log-likelihood", {"model": MIXED, "inputs": [[1.0, 1.0, 3, 7, 9.0]], "explain": True})
    assert np.argmax(answer["contributions"][0]) in (1, 4)


async def test_one_moved_measurement_of_a_benign_tumour_is_found() -> None:
    """3 standard deviations; the other 29 columns keep their values, most of which depend on it."""
    artifact = open_artifact(EMBEDDED_ARTIFACTS / "breast-cancer.pt")
    splits = load_splits(parse_recipe(artifact.manifest.recipe, "manifest").data, Path())
    assert splits.test is not None
    x = splits.test.x[:30].copy()
    moved = np.arange(30)
    x[moved, moved] += 3 * splits.fit.x.std(0)

    async def score(rows: Any) -> Any:
        with torch.inference_mode():
            return artifact.program.log_prob(torch.from_numpy(rows)).numpy()

    with torch.inference_mode():
        z = torch.randn(explanations.NUM_DRAWS, 30, generator=torch.Generator().manual_seed(0))
        draws = artifact.program.decode(z).numpy()
    values = explanations.alternatives(draws, artifact.manifest)
    log_prob = await score(x)
    contributions = await explanations.explain(x, log_prob, values, score, block_rows=512)
    np.testing.assert_allclose(contributions.sum(1), -log_prob)
    assert np.mean(contributions.argmax(1) == moved) >= 0.9


async def test_of_independent_columns_each_gains_what_its_best_alternative_takes_off() -> None:
    async def score(rows: Any) -> Any:
        return -(rows**2).sum(1) / 2 - 7

    x, values = np.array([[3.0, -0.5, 0.1]]), np.array([[1.0, 1.0, -1.0], [-1.0, 0.2, 2.0]])
    contributions = await explanations.explain(x, await score(x), values, score, 4)
    gains = np.array([3**2 - 1, 0.5**2 - 0.2**2, 0]) / 2
    nats = (3**2 + 0.5**2 + 0.1**2) / 2 + 7
    np.testing.assert_allclose(contributions[0], gains + (nats - gains.sum()) / 3)


async def test_several_odd_columns_do_not_hide_each_other() -> None:
    """Columns 0 and 1 must be equal, so that repairing either alone is no good where both are odd."""

    async def score(x: Any) -> Any:
        return -(50 * (x[:, 0] - x[:, 1]) ** 2 + x[:, 0] ** 2 + 3 * x[:, 2] ** 2 + x[:, 3] ** 2)

    values = np.zeros((4, 4)) + np.array([-1.0, 0.0, 0.5, 1.0])[:, None]
    x = np.array([[8.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    contributions = await explanations.explain(x, await score(x), values, score, block_rows=5)
    assert set(np.argsort(-contributions[0])[:2]) == {0, 2}
    np.testing.assert_allclose(contributions.sum(1), [3312.0, 0.0])
    np.testing.assert_array_equal(contributions[1], 0.0)


async def test_what_overflows_is_explained_by_finite_numbers() -> None:
    lowest = float(np.finfo(np.float64).min)

    async def score(x: Any) -> Any:
        return np.where((np.abs(x) > 10).all(1), lowest, 0.0)

    x = np.full((1, 2), 11.0)
    contributions = await explanations.explain(x, await score(x), np.zeros((4, 2)), score, block_rows=100)
    assert np.isfinite(contributions).all()


async def test_alternatives_are_values_that_a_column_can_have(app: FastAPI, client: httpx.AsyncClient) -> None:
    await post(client, "/log-likelihood", {"model": MIXED, "inputs": ROWS[MIXED], "explain": True})
    values = app.state.service.flows._alternatives[app.state.service.flows.find(MIXED)]
    assert set(values[:, 0]) <= {0, 1, 2}
    np.testing.assert_array_equal(values[:, 2], np.round(values[:, 2]))
    np.testing.assert_array_equal(values[:, 3], 7)


async def test_an_overlay_lights_up_where_an_image_was_spoiled(client: httpx.AsyncClient, inputs: Any) -> None:
    good = np.array(inputs[IMAGES][0])[0]
    spoiled = good.copy()
    spoiled[:4, 4:] = 15 * (np.indices((4, 4)).sum(0) % 2)  # a chessboard; the images are smooth
    scale = image.overlay_scale(8, 8)
    assert scale >= 4
    response = await client.post(
        "/log-likelihood?explain=true",
        json={"inputs": [good.tolist(), spoiled.tolist()]},
        headers={"accept": "image/png"},
    )
    assert response.headers["content-type"] == "image/png"
    grid = read_png(response.content)
    assert grid.shape == (8 * scale, 2 * 8 * scale, 3)
    pixels = grid[::scale, ::scale]
    np.testing.assert_array_equal(grid, pixels.repeat(scale, 0).repeat(scale, 1))
    colourful = np.ptp(pixels.astype(int), axis=2)  # of grey, 0
    left, right = colourful[:, :8], colourful[:, 8:]
    assert right[:4, 4:].mean() > 100 + left.mean()
    assert right[:4, 4:].mean() > 3 * right[4:, :4].mean()


def test_the_higher_a_contribution_the_brighter_its_colour() -> None:
    contributions = np.zeros((1, 8, 8))
    contributions[0, 1, 2], contributions[0, 6, 6] = 10.0, 5.0
    images = np.full((1, 3, 8, 8), 128.0)
    grid = read_png(image.write_overlays(images, contributions, (0.0, 255.0)))[::16, ::16]
    assert grid[1, 2].sum() > grid[6, 6].sum()  # brighter is more
    assert np.ptp(grid[6, 6]) > 0
    untouched = contributions[0] == 0
    np.testing.assert_array_equal(grid[untouched], 128)


async def test_a_picture_sent_as_a_picture_is_explained_as_one(client: httpx.AsyncClient, inputs: Any) -> None:
    response = await client.post(
        "/log-likelihood?explain=true&format=png",
        content=png(np.array(inputs[IMAGES][0])[0]),
        headers={"content-type": "image/png"},
    )
    assert read_png(response.content).shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("model", "options", "status", "message"),
    [
        (TABLE, {"dequantization": {"samples": 2}}, 422, "explain and dequantization exclude each other"),
        (TABLE, {"format": "png"}, 406, "format 'png' cannot carry this answer"),
        (IMAGES, {"format": "png", "explain": False}, 406, "format 'png' cannot carry this answer"),
        (TABLE, {"explain": "yes"}, 422, "explain: Input should be a valid boolean"),
    ],
)
async def test_what_cannot_be_explained_is_refused(
    client: httpx.AsyncClient, inputs: Any, model: str, options: dict[str, Any], status: int, message: str
) -> None:
    body = {"model": model, "inputs": inputs[model], "explain": True, **options}
    response = await client.post("/log-likelihood", json=body)
    assert (response.status_code, message in response.json()["error"]) == (status, True), response.text


async def test_the_passes_that_explanations_take_are_limited_before_they_run(settings: Settings, inputs: Any) -> None:
    app = create_app(settings.model_copy(update={"max_explanation_rows": 100}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        body = {"model": TABLE, "inputs": inputs[TABLE], "explain": True}
        response = await client.post("/log-likelihood", json=body)
        assert response.status_code == 413
        for part in ("to explain 3 rows, 108 go through tiny-table, 36 each", "100", "GLOW_MAX_EXPLANATION_ROWS"):
            assert part in response.json()["error"]
        await post(client, "/log-likelihood", {**body, "inputs": inputs[TABLE][:2]})


def test_pictures_of_explanations_are_limited() -> None:
    image.check_overlays((1000, 1, 28, 28))
    with pytest.raises(TooLarge, match=f"the limit is {image.MAX_OVERLAY_PIXELS}, of 1337 images"):
        image.check_overlays((1338, 1, 28, 28))


def test_the_golden_case_holds_maps_to_their_sum(models_dir: Path) -> None:
    artifact = open_artifact(models_dir / f"{IMAGES}.pt")
    maps = artifact.program.log_prob_map(torch.from_numpy(golden_rows(artifact.manifest, "log_prob_map"))).numpy()
    assert golden_fault(artifact.manifest, "log_prob_map", [maps]) is None
    fault = golden_fault(artifact.manifest, "log_prob_map", [maps + 1])
    assert fault is not None
    assert "log_prob is" in fault
