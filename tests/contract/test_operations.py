"""The four operations over HTTP: one answer whatever the media type, the eager flow's."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from service.artifact import Artifact, open_artifact, within_tolerance
from service.scores import benjamini_hochberg
from tests.wire import IMAGES, MIXED, TABLE, npy, png, post, read_npy, read_png


@pytest.fixture(scope="module")
def table(models_dir: Path) -> Artifact:
    return open_artifact(models_dir / f"{TABLE}.pt")


async def test_all_four_operations_answer_as_the_artifact(client: httpx.AsyncClient, images: Artifact, x: Any) -> None:
    z, log_prob = images.program.encode(torch.from_numpy(x).float())
    scored = await post(client, "/log-likelihood", {"inputs": x.tolist()})
    assert within_tolerance(np.array(scored["log_likelihood"]), log_prob.numpy())
    encoded = await post(client, "/encode", {"inputs": x.tolist()})
    np.testing.assert_allclose(encoded["latents"], z, atol=1e-4)
    assert within_tolerance(np.array(encoded["log_likelihood"]), log_prob.numpy())
    decoded = await post(client, "/decode", {"latents": encoded["latents"]})
    np.testing.assert_allclose(decoded["outputs"], x, atol=1e-2)
    sampled = await post(client, "/sample", {"n": 3, "seed": 1})
    again = await post(client, "/log-likelihood", {"inputs": sampled["samples"]})
    assert within_tolerance(np.array(sampled["log_likelihood"]), np.array(again["log_likelihood"]))
    for answer in (scored, encoded, decoded, sampled):
        assert answer["model"] == IMAGES
        assert answer["version"] == images.manifest.version


async def test_every_form_of_an_image_is_the_same_image(client: httpx.AsyncClient, x: Any) -> None:
    one = x[:1]
    expected = (await post(client, "/log-likelihood", {"inputs": one.tolist()}))["log_likelihood"]
    for inputs in (
        one[:, 0].tolist(),
        one.reshape(1, -1).tolist(),
        [base64.b64encode(png(one[0, 0])).decode()],
    ):
        assert (await post(client, "/log-likelihood", {"inputs": inputs}))["log_likelihood"] == pytest.approx(expected)
    for content, media_type in (
        (png(one[0, 0]), "image/png"),
        (npy(one), "application/x-npy"),
        (npy(one[0]), "application/x-npy"),
    ):
        for named in (media_type, "application/octet-stream"):
            response = await client.post("/log-likelihood", content=content, headers={"content-type": named})
            assert response.json()["log_likelihood"] == pytest.approx(expected), response.text


async def test_every_form_of_a_row_is_the_same_row(client: httpx.AsyncClient) -> None:
    rows = [[0.5, 1010.0, 3.0], [0.1, 990.0, 4.0]]
    records = [dict(zip(("count", "b", "a"), row[::-1], strict=True)) for row in rows]
    first = await post(client, "/log-likelihood", {"inputs": rows, "model": TABLE, "reproducible": True})
    body = {"inputs": records, "model": TABLE, "reproducible": True}
    assert await post(client, "/log-likelihood", body) == first
    response = await client.post(
        f"/log-likelihood?model={TABLE}&reproducible=true",
        content=npy(rows),
        headers={"content-type": "application/x-npy"},
    )
    assert response.json() == first


async def test_a_category_is_its_name_or_its_code(client: httpx.AsyncClient) -> None:
    codes = [[2.0, 1.5, 3, 7, 1.5], [0.0, 0.1, 4, 7, 0.1]]
    named = [["red", *codes[0][1:]], ["blue", *codes[1][1:]]]
    records = [dict(zip(("copy", "fixed", "count", "size", "color"), row[::-1], strict=True)) for row in named]
    first = await post(client, "/log-likelihood", {"inputs": codes, "model": MIXED, "reproducible": True})
    assert first["log_likelihood"][0] != first["log_likelihood"][1]
    for inputs in (named, records, [named[0], codes[1]]):
        body = {"inputs": inputs, "model": MIXED, "reproducible": True}
        assert await post(client, "/log-likelihood", body) == first
    response = await client.post(
        f"/log-likelihood?model={MIXED}&reproducible=true",
        content=npy(codes),
        headers={"content-type": "application/x-npy"},
    )
    assert response.json() == first


async def test_scores_follow_their_definitions(client: httpx.AsyncClient, images: Artifact, x: Any) -> None:
    answer = await post(client, "/log-likelihood", {"inputs": x.tolist(), "alpha": 0.2})
    log_likelihood = np.array(answer["log_likelihood"])
    np.testing.assert_allclose(answer["bits_per_dim"], -log_likelihood / (64 * np.log(2)))
    assert images.manifest.scoring.default == "density"
    calibration = images.manifest.calibration
    assert calibration is not None
    expected = [(1 + sum(c >= s for c in calibration.scores["density"])) / 101 for s in answer["score"]]
    assert answer["p_value"] == pytest.approx(expected)
    assert answer["is_anomaly"] == [p <= 0.2 for p in expected]
    assert answer["alpha"] == 0.2
    assert (await post(client, "/log-likelihood", {"inputs": x.tolist()}))["alpha"] == 0.1


async def test_fdr_flags_over_the_rows_of_the_request(client: httpx.AsyncClient, x: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 16, (4, 1, 8, 8))
    inputs = np.concatenate([x, noise]).tolist()
    answer = await post(client, "/log-likelihood", {"inputs": inputs, "fdr": 0.05, "reproducible": True})
    assert "alpha" not in answer
    assert answer["fdr"] == 0.05
    assert answer["is_anomaly"] == benjamini_hochberg(np.array(answer["p_value"]), 0.05).tolist()
    assert all(answer["is_anomaly"][5:])
    assert await post(client, "/log-likelihood?fdr=0.05&reproducible=true", {"inputs": inputs}) == answer
    single = await post(client, "/log-likelihood", {"inputs": inputs[:6], "fdr": 0.05})
    assert single["p_value"][5] == answer["p_value"][5]
    assert not any(single["is_anomaly"])  # 1 of 6 rows would need a p-value of 0.05 / 6, below 1 / 101
    response = await client.post("/log-likelihood?fdr=0.05&format=npy", json={"inputs": inputs})
    assert response.headers["x-glow-fdr"] == "0.05"
    assert "x-glow-alpha" not in response.headers


async def test_noise_is_an_anomaly_and_a_held_out_image_is_not(client: httpx.AsyncClient, x: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 16, (1, 8, 8))
    answer = await post(client, "/log-likelihood", {"inputs": [*x[:, 0].tolist(), *noise.tolist()]})
    assert answer["p_value"][-1] == min(answer["p_value"]) == 1 / 101
    assert answer["is_anomaly"][-1] is True
    assert not all(answer["is_anomaly"][:-1])


async def test_a_row_beyond_all_scales_is_an_anomaly_with_finite_figures(client: httpx.AsyncClient) -> None:
    rows = [[1e300, 0.0, 0.0], [0.0, -1.7e308, 3.0], [1e30, 1e30, 1e30]]
    answer = await post(client, "/log-likelihood", {"inputs": rows, "model": TABLE})
    assert answer["p_value"] == [1 / 101] * 3
    assert answer["is_anomaly"] == [True] * 3
    for name in ("log_likelihood", "bits_per_dim", "score"):
        assert np.isfinite(np.array(answer[name], np.float64)).all()
    encoded = await post(client, "/encode", {"inputs": rows, "model": TABLE})
    assert np.isfinite(np.array(encoded["latents"], np.float64)).all()


async def test_the_same_seed_gives_the_same_samples_alone_and_among_fifty_requests(client: httpx.AsyncClient) -> None:
    alone = await post(client, "/sample", {"n": 4, "seed": 7})
    longer = await post(client, "/sample", {"n": 16, "seed": 7})
    assert longer["samples"][:4] == alone["samples"]
    others = [client.get(f"/sample?n={1 + i % 5}&seed={i}") for i in range(50)]
    *_, among = await asyncio.gather(*others, client.get("/sample?n=4&seed=7"))
    assert among.json() == alone


async def test_a_seed_is_returned_and_repeats_the_samples(client: httpx.AsyncClient) -> None:
    first = (await client.get("/sample?n=2")).json()
    assert len(first["samples"]) == 2
    assert await post(client, "/sample", {"n": 2, "seed": first["seed"]}) == first
    assert (await client.get("/sample")).json()["seed"] != first["seed"]


async def test_a_sample_is_the_decoded_noise_of_its_seed_times_its_temperature(
    client: httpx.AsyncClient, images: Artifact
) -> None:
    answer = await post(client, "/sample", {"n": 3, "temperature": 0.6, "seed": 11})
    generators = [np.random.Generator(np.random.Philox(key=np.array([11, row], np.uint64))) for row in range(3)]
    noise = np.stack([generator.standard_normal(64, np.float32) for generator in generators])
    samples = images.program.decode(torch.from_numpy(0.6 * noise))
    np.testing.assert_allclose(answer["samples"], samples, atol=1e-3)
    expected = images.program.log_prob(torch.tensor(answer["samples"])).numpy()
    assert within_tolerance(np.array(answer["log_likelihood"]), expected)


async def test_temperature_zero_gives_the_image_of_the_zero_code(client: httpx.AsyncClient) -> None:
    sampled = await post(client, "/sample", {"n": 1, "temperature": 0})
    decoded = await post(client, "/decode", {"latents": [[0.0] * 64]})
    np.testing.assert_allclose(sampled["samples"], decoded["outputs"], atol=1e-5)


async def test_answers_come_as_json_npy_or_png(client: httpx.AsyncClient, x: Any) -> None:
    body = {"n": 5, "seed": 3}
    expected = (await post(client, "/sample", body))["samples"]
    binary = await client.post("/sample", json=body, headers={"accept": "application/x-npy"})
    np.testing.assert_array_equal(read_npy(binary), np.array(expected, np.float32))
    assert binary.headers["x-glow-seed"] == "3"
    picture = await client.post("/sample", json=body, headers={"accept": "image/png"})
    grid = read_png(picture.content)
    assert grid.shape == (2 * 8, 3 * 8)  # five images in a grid of 2 rows and 3 columns
    np.testing.assert_array_equal(grid[:8, :8], np.clip(np.round(np.array(expected[0][0]) * 17), 0, 255))
    latents = read_npy(await client.post("/encode?format=npy", json={"inputs": x.tolist()}))
    assert (latents.shape, latents.dtype) == ((5, 64), np.float32)
    sent_back = await client.post(
        "/decode?format=npy", content=npy(latents), headers={"content-type": "application/x-npy"}
    )
    np.testing.assert_allclose(read_npy(sent_back), x, atol=1e-2)
    scored = read_npy(await client.post("/log-likelihood", json={"inputs": x.tolist(), "format": "npy"}))
    assert (scored.shape, scored.dtype) == ((5,), np.float64)


async def test_accept_is_negotiated(client: httpx.AsyncClient) -> None:
    for accept, media_type in (
        ("*/*", "application/json"),
        ("image/*", "image/png"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", "application/x-npy"),
        ("application/json;q=0.1, */*;q=0.5", "application/x-npy"),
    ):
        response = await client.get("/sample?n=1", headers={"accept": accept})
        assert response.headers["content-type"] == media_type
    response = await client.get("/sample?n=1", headers={"accept": "text/html"})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    response = await client.get(f"/sample?n=1&model={TABLE}&format=png")
    assert response.status_code == 406


async def test_dequantization_averages_the_likelihood_over_uniform_noise(
    client: httpx.AsyncClient, images: Artifact, x: Any
) -> None:
    body = {"inputs": x.tolist(), "dequantization": {"samples": 3, "seed": 5}}
    answer = await post(client, "/log-likelihood", body)
    plain = await post(client, "/log-likelihood", {"inputs": x.tolist()})
    assert answer["log_likelihood"] != plain["log_likelihood"]
    assert answer["p_value"] == plain["p_value"]
    noise = np.random.Generator(np.random.Philox(key=np.array([5, 0], np.uint64))).random((3, 64)) - 0.5
    noisy = torch.from_numpy((x[0].reshape(1, 64) + noise).astype(np.float32).reshape(3, 1, 8, 8))
    log_prob = images.program.log_prob(noisy)
    expected = torch.logsumexp(log_prob, 0) - np.log(3)
    assert answer["log_likelihood"][0] == pytest.approx(expected.item(), abs=1e-3)
    response = await client.post(
        "/log-likelihood?dequantization_samples=3&dequantization_seed=5",
        content=npy(x),
        headers={"content-type": "application/x-npy"},
    )
    assert response.json()["log_likelihood"] == pytest.approx(answer["log_likelihood"], abs=1e-3)


async def test_reproducible_answers_are_the_same_bits_whatever_the_batch(client: httpx.AsyncClient, x: Any) -> None:
    together = await post(client, "/log-likelihood", {"inputs": x.tolist(), "reproducible": True})
    for row in range(len(x)):
        alone = await post(client, "/log-likelihood", {"inputs": x[row : row + 1].tolist(), "reproducible": True})
        assert alone["log_likelihood"][0] == together["log_likelihood"][row]


async def test_models_are_listed_and_described(client: httpx.AsyncClient, table: Artifact) -> None:
    listing = (await client.get("/models")).json()
    assert listing["default"] == IMAGES
    assert [model["name"] for model in listing["models"]] == [IMAGES, MIXED, TABLE]
    public = (await client.get(f"/models/{TABLE}")).json()
    assert [column["name"] for column in public["columns"]] == ["a", "b", "count"]
    assert public["version"] == table.manifest.version
    assert public["calibration"]["rows"] == 100
    assert "golden" not in public
    assert "values" not in public["calibration"]


@pytest.mark.parametrize("name", [IMAGES, MIXED, TABLE])
async def test_the_example_of_a_model_is_a_valid_request(client: httpx.AsyncClient, name: str) -> None:
    example = (await client.get(f"/models/{name}/example")).json()
    expected = (await post(client, "/log-likelihood", example))["log_likelihood"]
    binary = await client.get(f"/models/{name}/example?format=npy")
    response = await client.post(
        f"/log-likelihood?model={name}", content=binary.content, headers={"content-type": "application/x-npy"}
    )
    assert response.json()["log_likelihood"] == pytest.approx(expected)
    if name == IMAGES:
        picture = await client.get(f"/models/{name}/example", headers={"accept": "image/png"})
        response = await client.post("/log-likelihood", content=picture.content, headers={"content-type": "image/png"})
        assert response.json()["log_likelihood"] == pytest.approx(expected)


async def test_more_examples_can_be_had_as_far_as_there_are_any(client: httpx.AsyncClient, images: Artifact) -> None:
    known = images.manifest.golden.inputs
    for wanted, given in ((1, 1), (3, 3), (1000, len(known))):
        answer = await client.get("/models/tiny-images/example", params={"n": wanted})
        assert [np.ravel(rows).tolist() for rows in answer.json()["inputs"]] == known[:given]
    assert (await client.get("/models/tiny-images/example?n=0")).status_code == 422


async def test_the_histogram_of_a_model_counts_all_its_calibration_scores(client: httpx.AsyncClient) -> None:
    calibration = (await client.get("/models/tiny-images")).json()["calibration"]
    edges, counts = calibration["histogram"]["edges"], calibration["histogram"]["counts"]
    assert (len(edges), len(counts), sum(counts)) == (41, 40, 100)
    assert np.allclose(np.diff(edges), (edges[-1] - edges[0]) / 40)
    assert edges[0] == calibration["summary"]["lowest"]


async def test_what_is_decoded_can_be_encoded_also_where_columns_are_categories(client: httpx.AsyncClient) -> None:
    example = (await client.get("/models/tiny-mixed/example")).json()
    request = {"model": "tiny-mixed", "inputs": example["inputs"]}
    latents = (await post(client, "/encode", request))["latents"]
    outputs = (await post(client, "/decode", {"model": "tiny-mixed", "latents": latents}))["outputs"]
    again = (await post(client, "/encode", {"model": "tiny-mixed", "inputs": outputs}))["latents"]
    np.testing.assert_allclose(again, latents, atol=1e-2)
