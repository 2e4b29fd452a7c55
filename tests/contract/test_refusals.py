"""Requests that cannot be answered: each gets its status, a reason that names the rule and the value, and one shape."""

import io
import json

import httpx
import numpy as np
import pytest

from tests.contract.deployments import MAX_BODY_BYTES, MAX_ROWS
from tests.wire import IMAGES, MIXED, TABLE, npy, png

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
        ("/log-likelihood", {"inputs": GOOD, "alpha": 0.001}, 422, "alpha must be at least 0.009900990099009901"),
        ("/log-likelihood", {"inputs": GOOD, "alpha": "0.1"}, 422, "alpha: Input should be a valid number"),
        ("/log-likelihood", {"inputs": GOOD, "fdr": 1}, 422, "fdr: Input should be less than 1"),
        ("/log-likelihood", {"inputs": GOOD, "fdr": 0.001}, 422, "fdr must be at least 0.009900990099009901"),
        ("/log-likelihood", {"inputs": GOOD, "fdr": 0.1, "alpha": 0.1}, 422, "give no alpha and no guarantee"),
        ("/log-likelihood?alpha=0.1", {"inputs": GOOD, "fdr": 0.1}, 422, "give no alpha and no guarantee"),
        (
            "/log-likelihood?guarantee=sure",
            {"inputs": GOOD},
            422,
            "guarantee: Input should be 'marginal' or",
        ),
        (
            "/log-likelihood?guarantee=conditional&alpha=0.02",
            {"inputs": GOOD},
            422,
            "an alpha of at least 0.0295",
        ),
        ("/log-likelihood?scores=typicality,best", {"inputs": GOOD}, 422, "must be 'all' or some of negative_log_lik"),
        (
            "/log-likelihood?model=tiny-table&scores=complexity",
            {"inputs": [[1, 2, 3]]},
            422,
            "no 'complexity'; it",
        ),
        ("/log-likelihood", {"inputs": GOOD, "dequantization": {"samples": 0}}, 422, "dequantization.samples"),
        ("/log-likelihood", {"inputs": GOOD, "dequantization": {"samples": MAX_ROWS}}, 413, "GLOW_MAX_REQUEST_ROWS"),
        ("/log-likelihood", {"inputs": GOOD, "model": "none"}, 404, "served are tiny-images@"),
        ("/log-likelihood", {"inputs": GOOD * (MAX_ROWS + 1)}, 413, f"{MAX_ROWS + 1} rows"),
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
            {"inputs": [{"color": "red", "size": 1, "count": 1, "fixed": 7, "copy": "1"}], "model": MIXED},
            422,
            "inputs[0]['copy'] must be a number",
        ),
        (
            "/log-likelihood",
            {"inputs": [{"color": True, "size": 1, "count": 1, "fixed": 7, "copy": 1}], "model": MIXED},
            422,
            "inputs[0]['color'] must be a category or a number",
        ),
        (
            "/log-likelihood",
            {"inputs": [{"color": "violet", "size": 1, "count": 1, "fixed": 7, "copy": 1}], "model": MIXED},
            422,
            "inputs[0]['color'] is 'violet', neither a category nor the code, 0 to 2, of one: blue, green, red",
        ),
        (
            "/encode",
            {"inputs": [["red", 1, 1, 7, 1], ["x" * 10_000, 1, 1, 7, 1]], "model": MIXED},
            422,
            "inputs[1]['color'] is 'xxx",
        ),
        ("/encode", {"inputs": [[0, 1, 1, 7, 1], [3, 1, 1, 7, 1]], "model": MIXED}, 422, "inputs[1]['color'] is 3"),
        ("/encode", {"inputs": [[-1, 1, 1, 7, 1]], "model": MIXED}, 422, "inputs[0]['color'] is -1"),
        ("/encode", {"inputs": [[2.7, 1, 1, 7, 1]], "model": MIXED}, 422, "inputs[0]['color'] is 2.7"),
        ("/encode", {"inputs": [[0, "red", 1, 7, 1]], "model": MIXED}, 422, "inputs[0][1] must be a number"),
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
        ("/sample", {"n": MAX_ROWS + 1}, 413, f"{MAX_ROWS + 1} samples"),
        ("/sample", {"n": 2.5}, 422, "n: "),
        ("/sample", {"seed": 2**53}, 422, "seed: Input should be less than or equal to 9007199254740991"),
        ("/sample", {"temperature": -1}, 422, "temperature: "),
        ("/sample", b"{}" + b" " * MAX_BODY_BYTES, 413, "GLOW_MAX_BODY_BYTES"),
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
        (
            "text/plain",
            b"x",
            415,
            "application/json, application/x-npy, application/vnd.apache.arrow.stream, image/png, image/jpeg",
        ),
        ("application/x-www-form-urlencoded", b"x=1", 415, "the body is 'application/x-www-form-urlencoded'"),
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
    assert (await client.put("/sample")).headers["allow"] == "GET, HEAD, POST"
    assert (await client.post("/static-offline-docs/swagger-ui.css")).headers["allow"] == "GET, HEAD"
    assert wrong.json().keys() == {"error", "code", "request_id"}


async def test_an_answer_has_one_request_id_the_callers_or_a_new_one(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/encode", "/nothing"):
        kept = await client.get(path, headers={"x-request-id": "abc-1"})
        assert kept.headers["x-request-id"] == "abc-1"
        made = await client.get(path)
        assert len(made.headers.get_list("x-request-id")) == 1
        if path == "/nothing":
            assert (kept.json()["request_id"], made.json()["request_id"]) == ("abc-1", made.headers["x-request-id"])


@pytest.mark.differs("ray", "the proxy gives back what it was sent, and fails where that is not UTF-8")
@pytest.mark.parametrize("sent", [b"two words", b"", b"\xe9", b"x" * 129])
async def test_a_request_id_that_is_not_plain_is_replaced(client: httpx.AsyncClient, sent: bytes) -> None:
    made = await client.get("/nothing", headers={b"x-request-id": sent})
    assert made.headers["x-request-id"] == made.json()["request_id"] != sent.decode("latin-1")


async def test_numbers_that_are_not_finite_are_refused_as_options(client: httpx.AsyncClient) -> None:
    for value in ("nan", "inf"):
        assert (await client.get(f"/sample?temperature={value}")).status_code == 422


@pytest.mark.parametrize("depth", [9, 100, 1000, 100_000])
@pytest.mark.parametrize(
    "shape", ['{{"inputs":{opened}1{closed}}}', '{{"model":{opened}1{closed}}}', "{opened}{closed}"]
)
async def test_deep_json_is_refused_however_deep(client: httpx.AsyncClient, depth: int, shape: str) -> None:
    body = shape.format(opened="[" * depth, closed="]" * depth)
    objects = '{"a":' * depth + "1" + "}" * depth
    for content in (body, f'{{"inputs":{objects}}}', body[: len(body) // 2]):
        response = await client.post("/encode", content=content, headers={"content-type": "application/json"})
        assert response.status_code in (400, 422)
        assert len(response.content) < 1024


async def test_an_error_quotes_no_more_than_a_name_of_what_was_sent(client: httpx.AsyncClient) -> None:
    secret = "payload" * 10_000
    for body in (
        {"inputs": secret},
        {"inputs": [[secret]]},
        {"inputs": [{"a": secret}]},
        {"model": secret, "inputs": [[1]]},
        {"inputs": [[1]], secret: 1},
        {"inputs": [[1]], "alpha": secret},
        {"inputs": [[1]], "scores": [secret]},
    ):
        response = await client.post("/log-likelihood", json=body)
        assert response.status_code in (400, 404, 413, 422)
        assert len(response.content) < 1024
    for path in (f"/models/{secret[:9000]}", f"/sample?seed={secret[:9000]}", f"/{secret[:9000]}"):
        assert len((await client.get(path)).content) < 1024


@pytest.mark.parametrize("path", ["/metrics%0A", "/livez%0a", "/models%00", "/admin/reload%0A", "/%1Fmetrics"])
async def test_a_path_with_a_control_character_is_none(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        response = await client.request(method, path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
