"""Scores by name: each follows its definition, from the fit to the answer."""

import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL
import pyarrow as pa
import pytest
import torch
from fastapi import FastAPI
from scipy.stats import multivariate_normal

from model.density import fit_mixture, fit_scoring
from model.pixels import fit_pixel_mixture
from model.recipe import Splits
from service.app import create_app
from service.artifact import Artifact, ArtifactError, check_golden, open_artifact
from service.errors import Unprocessable
from service.flows import Budget, Flows
from service.options import ScoreOptions
from service.scores import (
    CALIBRATED,
    COMPLEXITY,
    codec_bytes,
    conditional_level,
    highest_normal_score,
    p_values,
)
from service.settings import Settings
from tests.conftest import tiny_images, with_manifest
from tests.wire import IMAGES, TABLE, png, post

LOWEST = np.finfo(np.float64).min


def statistics_of(artifact: Artifact, x: Any) -> dict[str, Any]:
    values = artifact.program.statistics(torch.from_numpy(x).float()).numpy().T
    return dict(zip(artifact.manifest.statistics, values, strict=True))


def two_clusters(num: int = 2000) -> Any:
    random = np.random.default_rng(0)
    centers = np.array([[-3.0, 100.0], [4.0, 300.0]])[random.integers(0, 2, num)]
    return centers + random.normal(size=(num, 2)) @ np.array([[1.0, 20.0], [0.0, 10.0]])


def test_the_density_is_a_mixture_of_gaussians_of_scaled_statistics() -> None:
    values = two_clusters()
    mixture = fit_mixture(values)
    u = (values - mixture.shift) / mixture.scale
    expected = np.zeros(len(u))
    for weight, mean, factor in zip(mixture.weights, mixture.means, mixture.factors, strict=True):
        covariance = np.linalg.inv(np.array(factor) @ np.array(factor).T)
        expected += weight * multivariate_normal(mean, covariance).pdf(u)
    np.testing.assert_allclose(mixture.log_prob(values), np.log(expected), rtol=1e-6)
    assert sum(mixture.weights) == pytest.approx(1)


def test_the_density_fits_what_it_was_fitted_to_better_than_one_gaussian() -> None:
    train, test = two_clusters(), two_clusters(4000)[2000:]
    mixture = fit_mixture(train)
    u = (test - mixture.shift) / mixture.scale
    one = multivariate_normal(u.mean(0), np.cov(u.T)).logpdf(u).mean()
    assert mixture.log_prob(test).mean() > one + 0.5


def test_a_row_has_the_same_density_whatever_its_neighbours() -> None:
    values = two_clusters(200)
    mixture = fit_mixture(values)
    together = mixture.log_prob(values)
    for size in (1, 3, 64):
        np.testing.assert_array_equal(mixture.log_prob(values[:size]), together[:size])


@pytest.mark.parametrize("extreme", [LOWEST, -LOWEST, 1e30, 0.0])
def test_extreme_statistics_have_a_finite_density_below_all_others(extreme: float) -> None:
    values = two_clusters()
    mixture = fit_mixture(values)
    far = mixture.log_prob(np.array([[extreme, extreme]]))
    assert np.isfinite(far).all()
    assert far < mixture.log_prob(values).min()


def test_constant_and_dependent_statistics_still_have_a_density() -> None:
    values = two_clusters(100)
    values = np.column_stack([values, values.sum(1), np.full(100, 7.0)])
    assert np.isfinite(fit_mixture(values).log_prob(values)).all()


def test_too_few_rows_have_no_density_and_the_likelihood_scores() -> None:
    random = np.random.default_rng(0)
    statistics = {name: random.normal(size=20) for name in ("log_prob", "log_det", COMPLEXITY)}
    enough = fit_scoring(statistics, None, "png")
    assert (enough.default, enough.names[-1]) == ("density", "density")
    few = fit_scoring({name: values[:19] for name, values in statistics.items()}, None, "png")
    assert (few.default, few.density) == ("negative_log_likelihood", None)
    assert few.typical == pytest.approx(-statistics["log_prob"][:19].mean())


def test_scores_follow_their_definitions(images: Artifact, x: Any) -> None:
    scoring, statistics = images.manifest.scoring, statistics_of(images, x)
    assert scoring.codec == "png"
    sizes = codec_bytes("png", x)
    statistics[COMPLEXITY] = sizes * 8 / 64
    scores = scoring.compute(scoring.names, statistics, 64)
    nll = -images.program.log_prob(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(scores["negative_log_likelihood"], nll)
    np.testing.assert_allclose(scores["typicality"], np.abs(nll - scoring.typical))
    np.testing.assert_allclose(scores["complexity"], sizes / 8)
    np.testing.assert_allclose(scores["complexity_corrected"], nll / (64 * math.log(2)) - sizes / 8)
    assert scoring.density is not None
    columns = np.stack([statistics[name] for name in scoring.density.statistics], 1)
    np.testing.assert_array_equal(scores["density"], -scoring.density.mixture.log_prob(columns))
    assert "log_prob" not in scoring.density.statistics  # the sum of the others


def test_the_size_of_a_picture_is_that_of_its_file(x: Any) -> None:
    assert codec_bytes("png", x * 17).tolist()[0] > len(png(x[0, 0])) - 30  # which is optimized less
    rgb = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8))
    flat = np.zeros((1, 3, 8, 8))
    assert codec_bytes("png", rgb).min() > codec_bytes("png", flat).max()
    np.testing.assert_array_equal(codec_bytes("png", rgb + 0.2), codec_bytes("png", rgb))


def test_pixels_are_scored_by_their_components_and_by_what_these_leave_out() -> None:
    splits = tiny_images(2000)
    mixture = fit_pixel_mixture(splits.fit.x, 15)
    assert splits.test is not None
    normal = mixture(torch.from_numpy(splits.test.x).float())
    noise = mixture(torch.from_numpy(np.random.default_rng(1).integers(0, 16, (100, 1, 8, 8))).float())
    black = mixture(torch.zeros(1, 1, 8, 8))
    assert normal.dtype == torch.float64
    assert noise[:, 1].min() > normal[:, 1].max()
    assert (noise[:, 0].mean() > normal[:, 0].mean() + 5).item()
    assert torch.isfinite(black).all()
    centred = splits.test.x.reshape(len(splits.test.x), -1) / 15 - mixture.mean.numpy()
    left_out = (centred**2).sum(1) - ((centred @ mixture.components.numpy()) ** 2).sum(1)
    np.testing.assert_allclose(normal[:, 1], np.log(left_out + 1e-3), rtol=1e-6)


def test_another_codec_than_the_exporting_machines_is_refused(
    images: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_golden(images, "here")
    golden = images.manifest.golden.model_copy(update={"codec_bytes": [1, 2, 3, 4]})
    other = Artifact(images.manifest.model_copy(update={"golden": golden}), images.program)
    with pytest.raises(ArtifactError, match=rf"codec png of Pillow {PIL.__version__} makes .* expected \[1, 2, 3, 4\]"):
        check_golden(other, "here")


async def test_scores_asked_for_are_answered_with_their_p_values(
    client: httpx.AsyncClient, images: Artifact, x: Any
) -> None:
    plain = await post(client, "/log-likelihood", {"inputs": x.tolist()})
    assert "scores" not in plain
    answer = await post(client, "/log-likelihood", {"inputs": x.tolist(), "scores": "all", "reproducible": True})
    assert list(answer["scores"]) == images.manifest.scoring.names
    assert answer["p_values"].keys() == set(CALIBRATED)
    assert answer["scores"]["density"] == answer["score"]
    assert answer["p_values"]["density"] == answer["p_value"]
    calibration = images.manifest.calibration
    assert calibration is not None
    for name, values in answer["p_values"].items():
        known = calibration.arrays[name]
        assert values == p_values(np.array(answer["scores"][name]), known).tolist()
    some = await post(client, "/log-likelihood?scores=complexity,typicality&reproducible=true", {"inputs": x.tolist()})
    assert some["scores"] == {name: answer["scores"][name] for name in ("complexity", "typicality")}
    assert some["p_values"].keys() == {"typicality"}


async def test_scores_are_columns_of_an_arrow_answer(client: httpx.AsyncClient, x: Any) -> None:
    options = {"inputs": x.tolist(), "scores": ["typicality"], "reproducible": True}
    answer = await post(client, "/log-likelihood", options)
    response = await client.post("/log-likelihood?format=arrow", json=options)
    table = pa.ipc.open_stream(response.content).read_all()
    assert table["typicality"].to_pylist() == answer["scores"]["typicality"]
    assert table["p_value_typicality"].to_pylist() == answer["p_values"]["typicality"]


async def test_a_table_is_scored_by_its_likelihood(client: httpx.AsyncClient) -> None:
    answer = await post(client, "/log-likelihood", {"model": TABLE, "inputs": [[0.1, 990, 4]], "scores": "all"})
    assert answer["score"] == [-answer["log_likelihood"][0]]
    assert set(answer["scores"]) == {"negative_log_likelihood", "typicality", "density"}


async def test_a_conditional_guarantee_flags_fewer(client: httpx.AsyncClient, image_splits: Splits) -> None:
    inputs = image_splits.validation.x.tolist()
    marginal = await post(client, "/log-likelihood", {"inputs": inputs, "alpha": 0.2, "guarantee": "marginal"})
    conditional = await post(client, "/log-likelihood", {"inputs": inputs, "alpha": 0.2, "guarantee": "conditional"})
    assert marginal["is_anomaly"] == [p <= 0.2 for p in marginal["p_value"]]
    level = conditional_level(0.2, 100)
    assert conditional["is_anomaly"] == [p <= level for p in marginal["p_value"]]
    assert sum(conditional["is_anomaly"]) < sum(marginal["is_anomaly"])
    assert conditional["level"] == level


@pytest.mark.parametrize("options", [{}, {"guarantee": "conditional"}])
async def test_the_smallest_alpha_that_a_refusal_names_is_taken(
    client: httpx.AsyncClient, x: Any, options: dict[str, str]
) -> None:
    body = {"inputs": x.tolist(), **options}
    refused = await client.post("/log-likelihood", json={**body, "alpha": 0.001})
    if options:
        refused = await client.post("/log-likelihood", json={**body, "alpha": 0.0099009901})
    assert refused.status_code == 422
    least = float(refused.json()["error"].partition("at least ")[2].partition(",")[0])
    answer = await post(client, "/log-likelihood", {**body, "alpha": least})
    assert answer["alpha"] == least


async def test_a_calibration_by_folds_has_no_conditional_guarantee(app: FastAPI, x: Any) -> None:
    flows: Flows = app.state.service.flows
    model = flows.find(IMAGES)
    assert model.manifest.calibration is not None
    by_folds = model.manifest.calibration.model_copy(update={"approximate": True})
    approximate = with_manifest(model, calibration=by_folds)
    options = ScoreOptions.model_validate({"guarantee": "conditional", "alpha": 0.2})
    with pytest.raises(Unprocessable, match="calibrated by folds"):
        await flows.score(Budget(), approximate, x.astype(np.float32), options)


async def test_what_a_model_is_scored_by_can_be_asked(client: httpx.AsyncClient, images: Artifact) -> None:
    about = (await client.get(f"/models/{IMAGES}")).json()
    assert about["scoring"]["default"] == "density"
    assert about["scoring"]["codec"] == "png"
    assert "complexity" in about["scoring"]["density"]
    scores = about["scoring"]["scores"]
    answer = await post(client, "/log-likelihood", {"inputs": images.manifest.golden.inputs, "scores": scores})
    assert list(answer["scores"]) == scores


async def test_the_setting_of_alpha_stands_between_the_requests_and_the_artifacts(models_dir: Path) -> None:
    settings = Settings(models=[models_dir / f"{TABLE}.pt"], device="cpu", threads=1, plan="frozen", alpha=0.25)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await post(client, "/log-likelihood", {"inputs": [[0.1, 990, 4]]}))["alpha"] == 0.25
            own = await post(client, "/log-likelihood", {"inputs": [[0.1, 990, 4]], "alpha": 0.5})
            assert own["alpha"] == 0.5
            calibration = (await client.get(f"/models/{TABLE}")).json()["calibration"]
            assert calibration["alpha"] == 0.25
            known = open_artifact(models_dir / f"{TABLE}.pt").manifest.calibration
            assert known is not None
            scores = known.arrays["negative_log_likelihood"]
            assert calibration["threshold"] == highest_normal_score(scores, 0.25)


async def test_a_setting_of_alpha_that_could_never_fire_refuses_to_start(models_dir: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"GLOW_ALPHA is 0.001, but must be at least 0.009900990099009901, the smallest"
    ):
        create_app(Settings(models=[models_dir], device="cpu", threads=1, plan="frozen", alpha=0.001))
