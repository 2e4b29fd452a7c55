"""The four operations over HTTP: one answer whatever the media type, the eager flow's, and clear refusals."""

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image

from model.recipe import Splits
from service.app import create_app
from service.artifact import Artifact, open_artifact, within_tolerance
from service.settings import Settings

IMAGES, TABLE = "tiny-images", "tiny-table"


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(pixels: Any) -> bytes:
    """Encode the value range 0..15 of the tiny images as bytes 0..255."""
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(pixels) * 17).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def read_png(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


def read_npy(response: httpx.Response) -> Any:
    assert response.headers["content-type"] == "application/x-npy"
    return np.load(io.BytesIO(response.content))


async def post(client: httpx.AsyncClient, path: str, body: object) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def images(models_dir: Path) -> Artifact:
    return open_artifact(models_dir / f"{IMAGES}.pt")


@pytest.fixture(scope="module")
def table(models_dir: Path) -> Artifact:
    return open_artifact(models_dir / f"{TABLE}.pt")


@pytest.fixture(scope="module")
def x(image_splits: Splits) -> Any:
    assert image_splits.test is not None
    return image_splits.test.x[:5]


async def test_all_four_operations_answer_as_the_artifact(client: httpx.AsyncClient, images: Artifact, x: Any) -> None:
    z, log_prob = images.module.encode(torch.from_numpy(x).float())
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
        response = await client.post("/log-likelihood", content=content, headers={"content-type": media_type})
        assert response.json()["log_likelihood"] == pytest.approx(expected), response.text


async def test_every_form_of_a_row_is_the_same_row(client: httpx.AsyncClient) -> None:
    rows = [[0.5, 1010.0, 3.0], [0.1, 990.0, 4.0]]
    records = [dict(zip(("count", "b", "a"), row[::-1], strict=True)) for row in rows]
    first = await post(client, "/log-likelihood", {"inputs": rows, "model": TABLE})
    assert await post(client, "/log-likelihood", {"inputs": records, "model": TABLE}) == first
    response = await client.post(
        f"/log-likelihood?model={TABLE}", content=npy(rows), headers={"content-type": "application/x-npy"}
    )
    assert response.json() == first


async def test_scores_follow_their_definitions(client: httpx.AsyncClient, images: Artifact, x: Any) -> None:
    answer = await post(client, "/log-likelihood", {"inputs": x.tolist(), "alpha": 0.2})
    log_likelihood = np.array(answer["log_likelihood"])
    np.testing.assert_allclose(answer["bits_per_dim"], -log_likelihood / (64 * np.log(2)))
    np.testing.assert_allclose(answer["score"], -log_likelihood)
    calibration = images.manifest.calibration
    assert calibration is not None
    expected = [(1 + sum(c >= s for c in calibration.values)) / 101 for s in answer["score"]]
    assert answer["p_value"] == pytest.approx(expected)
    assert answer["is_anomaly"] == [p <= 0.2 for p in expected]
    assert answer["alpha"] == 0.2
    assert (await post(client, "/log-likelihood", {"inputs": x.tolist()}))["alpha"] == 0.1


async def test_noise_is_an_anomaly_and_a_held_out_image_is_not(client: httpx.AsyncClient, x: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 16, (1, 8, 8))
    answer = await post(client, "/log-likelihood", {"inputs": [*x[:, 0].tolist(), *noise.tolist()]})
    assert answer["p_value"][-1] == min(answer["p_value"]) == 1 / 101
    assert answer["is_anomaly"][-1] is True
    assert not all(answer["is_anomaly"][:-1])


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
    log_prob = images.module.log_prob(noisy)
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
    assert [model["name"] for model in listing["models"]] == [IMAGES, TABLE]
    public = (await client.get(f"/models/{TABLE}")).json()
    assert [column["name"] for column in public["columns"]] == ["a", "b", "count"]
    assert public["version"] == table.manifest.version
    assert public["calibration"]["rows"] == 100
    assert "golden" not in public
    assert "values" not in public["calibration"]


@pytest.mark.parametrize("name", [IMAGES, TABLE])
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


GOOD = [[0.0] * 64]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/log-likelihood", b"{", 400, "not valid JSON"),
        ("/log-likelihood", b"[1]", 400, "must be a JSON object, got a list"),
        ("/log-likelihood", b'{"inputs": [[NaN]]}', 400, "not valid JSON"),
        ("/log-likelihood", b"[" * 100_000, 400, "not valid JSON"),
        ("/log-likelihood", {}, 422, "the body has no member 'inputs'"),
        ("/log-likelihood", {"inputs": []}, 422, "inputs is empty"),
        ("/log-likelihood", {"inputs": [[]]}, 422, "inputs is empty"),
        ("/log-likelihood", {"inputs": 3}, 422, "inputs must be a list, got a number"),
        (
            "/log-likelihood",
            {"inputs": [[1, 2], [3]]},
            422,
            "inputs is ragged: inputs[1] is a list of 1, but inputs[0] is a list of 2",
        ),
        (
            "/log-likelihood",
            {"inputs": [["x" * 10_000, *["a"] * 500]]},
            422,
            "inputs[0][0] must be a number, got a string",
        ),
        ("/log-likelihood", {"inputs": [[1, [2]]]}, 422, "inputs[0][1] must be a number, got a list"),
        ("/log-likelihood", {"inputs": [[1, None]]}, 422, "inputs[0][1] must be a number, got null"),
        ("/log-likelihood", {"inputs": [[True, 1.0]]}, 422, "inputs[0][0] must be a number, got a boolean"),
        ("/log-likelihood", {"inputs": [[1, "2"]]}, 422, "inputs[0][1] must be a number, got a string"),
        ("/log-likelihood", {"inputs": [[{}]]}, 422, "inputs[0][0] must be a number, got an object"),
        ("/log-likelihood", {"inputs": [[0.0] * 63]}, 422, "(B, 1, 8, 8) or (B, 64) or (B, 8, 8)"),
        (
            "/log-likelihood",
            {"inputs": [[0.0] * 63 + [16]]},
            422,
            "inputs[0][63] is 16.0; pixels must lie in [-0.5, 15.5]",
        ),
        ("/log-likelihood", {"inputs": ["!"]}, 400, "inputs[0] is not base64"),
        ("/decode", {"latents": [[0.0, False]], "reproducible": True}, 422, "latents[0][1] must be a number"),
        ("/log-likelihood", {"inputs": ["aGVsbG8="]}, 400, "inputs[0] is not a readable PNG or JPEG"),
        ("/log-likelihood", {"inputs": GOOD, "alpa": 1}, 422, "unknown option 'alpa'"),
        ("/log-likelihood", {"inputs": GOOD, "alpha": 0}, 422, "alpha: Input should be greater than 0"),
        ("/log-likelihood", {"inputs": GOOD, "alpha": 0.001}, 422, "alpha must be at least 0.00990099"),
        ("/log-likelihood", {"inputs": GOOD, "alpha": "0.1"}, 422, "alpha: Input should be a valid number"),
        ("/log-likelihood", {"inputs": GOOD, "dequantization": {"samples": 0}}, 422, "dequantization.samples"),
        ("/log-likelihood", {"inputs": GOOD, "dequantization": {"samples": 256}}, 413, "GLOW_MAX_REQUEST_ROWS"),
        ("/log-likelihood", {"inputs": GOOD, "model": "none"}, 404, "served are tiny-images, tiny-table"),
        ("/log-likelihood", {"inputs": GOOD * 257}, 413, "257 rows"),
        ("/log-likelihood", {"inputs": [{"a": 1}], "model": TABLE}, 422, "inputs[0] lacks column 'b'"),
        (
            "/log-likelihood",
            {"inputs": [{"a": 1, "b": 2, "count": 3, "d": 4}], "model": TABLE},
            422,
            "unknown column 'd'",
        ),
        (
            "/log-likelihood",
            {"inputs": [{"a": 1, "b": "x", "count": 3}], "model": TABLE},
            422,
            "inputs[0]['b'] must be",
        ),
        (
            "/log-likelihood",
            b'{"inputs": ' + b"[" * 1000 + b"true" + b"]" * 1000 + b"}",
            422,
            "inputs is nested too deeply",
        ),
        (
            "/log-likelihood",
            b'{"inputs": ' + b"[" * 1000 + b"1" + b"]" * 1000 + b"}",
            422,
            "inputs is nested too deeply",
        ),
        ("/encode", {"inputs": GOOD, "alpha": 0.1}, 422, "unknown option 'alpha'"),
        ("/decode", {"latents": [[0.0]]}, 422, "latents must be of shape (B, 64)"),
        ("/decode", {"inputs": GOOD}, 422, "the body has no member 'latents'"),
        ("/sample", {"n": 0}, 422, "n: Input should be greater than or equal to 1"),
        ("/sample", {"n": 10**18}, 422, "n: Input should be less than or equal to 1000000"),
        ("/sample", {"n": 257}, 413, "257 samples"),
        ("/sample", {"n": 2.5}, 422, "n: "),
        ("/sample", {"seed": 2**53}, 422, "seed: Input should be less than or equal to 9007199254740991"),
        ("/sample", {"temperature": -1}, 422, "temperature: "),
        ("/sample", b"{}" + b" " * 2**20, 413, "GLOW_MAX_BODY_BYTES"),
    ],
)
async def test_a_wrong_request_gets_its_status_and_a_reason(
    client: httpx.AsyncClient, path: str, body: object, status: int, message: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert message in response.json()["error"]
    assert response.json().keys() == {"error", "code", "request_id"}
    assert len(response.content) < 1024


@pytest.mark.parametrize(
    ("media_type", "content", "status", "message"),
    [
        ("application/x-npy", b"", 400, "not a NumPy file"),
        ("application/x-npy", npy(np.zeros((1, 64)))[:-8], 400, "do not fit the 504 bytes of data that follow"),
        ("application/x-npy", npy(np.array([["a"]])), 400, "must hold real numbers"),
        ("application/x-npy", npy(np.zeros((1, 64), np.complex64)), 400, "must hold real numbers"),
        ("application/x-npy", npy(np.full((1, 64), np.nan)), 400, "inputs[0][0] is nan; every value must be finite"),
        ("application/x-npy", npy(np.zeros(64)), 422, "inputs must be of shape"),
        ("application/x-npy", npy(np.zeros((1, 64))).replace(b"(1, 64)", b"(-1,64)"), 400, "must be at most 4 sizes"),
        ("application/x-npy", npy(np.zeros((1,) * 5)), 400, "must be at most 4 sizes"),
        ("application/x-npy", npy(np.zeros((1, 64))).replace(b"(1, 64)", b"(True,)"), 400, "must be at most 4 sizes"),
        ("image/png", b"\x89PNG", 400, "the image is not a readable PNG or JPEG"),
        ("image/png", png(np.zeros((8, 8)))[:-30], 400, "the image is not a readable PNG or JPEG"),
        ("image/png", png(np.zeros((9, 8))), 422, "the image is 8x9 pixels, expected 8x8"),
        ("text/plain", b"x", 415, "the body must be application/json, application/x-npy, image/png, image/jpeg"),
        ("application/x-www-form-urlencoded", b"x=1", 415, "the body must be"),
    ],
)
async def test_a_wrong_binary_body_gets_its_status_and_a_reason(
    client: httpx.AsyncClient, media_type: str, content: bytes, status: int, message: str
) -> None:
    response = await client.post("/log-likelihood", content=content, headers={"content-type": media_type})
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


async def test_a_pickle_in_an_npy_body_is_not_opened(client: httpx.AsyncClient) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    response = await client.post(
        "/log-likelihood", content=buffer.getvalue(), headers={"content-type": "application/x-npy"}
    )
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


async def test_options_may_not_be_given_twice(client: httpx.AsyncClient) -> None:
    response = await client.post(f"/sample?model={IMAGES}", json={"model": TABLE})
    assert response.status_code == 422
    assert response.json()["error"] == "model is given more than once"
    assert (await client.get("/sample?n=1&n=2")).status_code == 422


async def test_options_of_a_body_mean_the_same_whatever_the_query(client: httpx.AsyncClient) -> None:
    for path in ("/sample", "/sample?format=npy"):
        assert (await client.post(path, json={"n": "2"})).status_code == 422
        assert (await client.post(path, json={"n": 2})).status_code == 200


async def test_unknown_paths_and_methods_have_the_same_error_shape(client: httpx.AsyncClient) -> None:
    missing = await client.get("/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    wrong = await client.get("/encode")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert (await client.put("/sample")).headers["allow"] == "GET, POST"
    assert wrong.json().keys() == {"error", "code", "request_id"}


async def test_request_ids_are_kept_if_plain_and_made_if_not(client: httpx.AsyncClient) -> None:
    kept = await client.get("/livez", headers={"x-request-id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    made = await client.get("/nothing", headers={"x-request-id": "two words"})
    assert made.headers["x-request-id"] == made.json()["request_id"] != "two words"


async def test_an_internal_error_keeps_its_text_to_itself(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret path /etc")

    monkeypatch.setattr(app.state.flows._engine, "_forward", fail)
    response = await client.post("/log-likelihood", json={"inputs": GOOD})
    monkeypatch.undo()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert response.json()["request_id"] in caplog.text
    assert response.json()["code"] == "internal_error"


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


async def test_the_documentation_page_needs_no_network(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert (await client.get("/static-offline-docs/swagger-ui-bundle.js")).status_code == 200


async def test_numbers_that_are_not_finite_are_refused_as_options(client: httpx.AsyncClient) -> None:
    for value in ("nan", "inf"):
        assert (await client.get(f"/sample?temperature={value}")).status_code == 422


async def test_a_compressed_body_is_refused_by_name(client: httpx.AsyncClient) -> None:
    response = await client.post("/sample", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


async def test_the_root_leads_a_browser_to_the_documentation(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
