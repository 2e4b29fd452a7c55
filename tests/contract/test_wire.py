"""What travels: the same answers as JSON, npy and Arrow, compressed or not."""

import gzip
import io
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from service.artifact import within_tolerance
from tests.contract.deployments import MAX_BODY_BYTES, MAX_ROWS
from tests.wire import IMAGES, MIXED, TABLE, npy, post, read_npy

ARROW = "application/vnd.apache.arrow.stream"
ROWS = [[0.5, 1010.0, 3.0], [0.1, 990.0, 4.0]]
PATH = f"/log-likelihood?model={TABLE}&reproducible=true"  # the same bits, whoever answers


def arrow(columns: dict[str, Any]) -> bytes:
    table = pa.table(columns)
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def read_arrow(response: httpx.Response) -> pa.Table:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == ARROW
    return pa.ipc.open_stream(response.content).read_all()


async def send(client: httpx.AsyncClient, path: str, content: bytes, media_type: str, **headers: str) -> httpx.Response:
    return await client.post(path, content=content, headers={"content-type": media_type, **headers})


async def test_json_npy_and_arrow_carry_the_same_rows_and_answers(client: httpx.AsyncClient) -> None:
    expected = await post(client, PATH, {"inputs": ROWS})
    columns = dict(zip(("count", "b", "a"), np.array(ROWS).T[[2, 1, 0]], strict=True))
    for content, media_type in ((npy(np.array(ROWS)), "application/x-npy"), (arrow(columns), ARROW)):
        response = await send(client, PATH, content, media_type)
        assert response.json() == expected
        table = read_arrow(await send(client, PATH, content, media_type, accept=ARROW))
        assert set(table.column_names) == {"log_likelihood", "bits_per_dim", "score", "p_value", "is_anomaly"}
        for name in table.column_names:
            assert table[name].to_pylist() == expected[name]
        metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        assert metadata == {"model": TABLE, "version": expected["version"], "alpha": "0.1"}


async def test_codes_of_images_go_there_and_back_as_arrow(client: httpx.AsyncClient) -> None:
    x = np.arange(128.0).reshape(2, 64) % 16
    inputs = arrow({"inputs": pa.array(list(x.astype(np.float32)), pa.list_(pa.float32(), 64))})
    encoded = read_arrow(await send(client, "/encode", inputs, ARROW, accept=ARROW))
    assert encoded["latents"].type == pa.list_(pa.float32(), 64)
    decoded = read_arrow(await send(client, "/decode", arrow({"latents": encoded["latents"]}), ARROW, accept=ARROW))
    np.testing.assert_allclose(np.array(decoded["outputs"].to_pylist()), x, atol=1e-2)


async def test_samples_of_a_table_are_a_table_that_can_be_scored_as_it_is(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/sample?model={TABLE}&n=8&seed=3", headers={"accept": ARROW})
    samples = read_arrow(response)
    assert samples.column_names == ["a", "b", "count"]
    assert samples.schema.metadata[b"seed"] == response.headers["x-glow-seed"].encode() == b"3"
    scored = await send(client, PATH, response.content, ARROW)
    expected = await post(client, "/sample", {"model": TABLE, "n": 8, "seed": 3})
    assert within_tolerance(np.array(scored.json()["log_likelihood"]), np.array(expected["log_likelihood"]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0], "b": [2.0]}, "inputs lacks column 'count'"),
        ({"a": [1.0], "b": [2.0], "count": [3], "d": [4]}, "inputs has an unknown column 'd'"),
        ({"a": [1.0, None], "b": [2.0, 2.0], "count": [3, 3]}, "column 'a' is null in row 1"),
        ({"a": ["x"], "b": [2.0], "count": [3]}, "inputs[0]['a'] must be a number, got a string"),
        (
            {name: [1.0] * (MAX_ROWS + 1) for name in ("a", "b", "count")},
            f"{MAX_ROWS + 1} rows are over the limit of {MAX_ROWS}",
        ),
    ],
)
async def test_an_arrow_stream_that_does_not_fit_names_the_column(
    client: httpx.AsyncClient, columns: dict[str, Any], message: str
) -> None:
    response = await send(client, f"/encode?model={TABLE}", arrow(columns), ARROW)
    assert response.status_code in (413, 422)
    assert message in response.json()["error"]


async def test_categories_come_by_name_in_arrow_too(client: httpx.AsyncClient) -> None:
    columns = {"color": ["red", "blue"], "size": [1.0, 2.0], "count": [1, 2], "fixed": [7.0, 7.0], "copy": [1.0, 2.0]}
    by_name = await send(client, f"/log-likelihood?model={MIXED}&reproducible=true", arrow(columns), ARROW)
    by_code = await send(
        client, f"/log-likelihood?model={MIXED}&reproducible=true", arrow({**columns, "color": [2, 0]}), ARROW
    )
    assert by_name.status_code == 200
    assert by_name.json() == by_code.json()


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_bodies_may_come_compressed(client: httpx.AsyncClient, encoding: str, pack: Any) -> None:
    body = json.dumps({"inputs": ROWS}).encode()
    headers = {"content-encoding": encoding}
    response = await send(client, PATH, pack(body), "application/json", **headers)
    assert response.json() == (await post(client, PATH, {"inputs": ROWS}))


async def test_a_small_body_that_inflates_beyond_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    bomb = gzip.compress(bytes(MAX_BODY_BYTES + 1))
    response = await send(client, "/encode", bomb, "application/x-npy", **{"content-encoding": "gzip"})
    assert response.status_code == 413
    assert (
        f"inflates to more than the limit of {MAX_BODY_BYTES} bytes (GLOW_MAX_BODY_BYTES)" in response.json()["error"]
    )


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 400), ("br", 415), ("gzip, gzip", 415)])
async def test_what_cannot_be_inflated_is_refused(client: httpx.AsyncClient, encoding: str, status: int) -> None:
    headers = {"content-encoding": encoding}
    assert (await send(client, "/encode", b"{}", "application/json", **headers)).status_code == status


async def test_large_json_answers_are_compressed_for_who_takes_it(client: httpx.AsyncClient) -> None:
    for accepted, encoding in (("gzip, br", "gzip"), ("*", "gzip"), ("identity", None)):
        response = await client.get("/sample?n=200&seed=1", headers={"accept-encoding": accepted})
        assert response.headers.get("content-encoding") == encoding
        assert len(response.json()["samples"]) == 200
    small = await client.get("/sample?n=1&seed=1", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers


async def test_a_large_answer_is_whole(client: httpx.AsyncClient) -> None:
    path = f"/sample?n={MAX_ROWS}&seed=1"
    response = await client.get(path)
    assert len(response.content) > 2 * 2**20
    expected = response.json()["samples"]
    response = await client.get(f"{path}&format=npy")
    assert int(response.headers["content-length"]) == len(response.content)
    np.testing.assert_allclose(read_npy(response), expected, rtol=1e-6)
    assert read_arrow(await client.get(f"{path}&format=arrow")).num_rows == MAX_ROWS


async def test_a_large_body_is_read_whole(client: httpx.AsyncClient) -> None:
    rows = np.random.default_rng(0).integers(0, 16, (MAX_ROWS, 64)).astype(np.float64)
    body = npy(rows)
    assert 2**20 < len(body) < MAX_BODY_BYTES
    expected = (await send(client, "/log-likelihood", npy(rows[-1:]), "application/x-npy")).json()
    answer = (await send(client, "/log-likelihood", body, "application/x-npy")).json()
    assert len(answer["log_likelihood"]) == MAX_ROWS
    assert within_tolerance(np.array(answer["log_likelihood"][-1:]), np.array(expected["log_likelihood"]))
    spaces = b" " * (MAX_BODY_BYTES - 1000)
    response = await send(
        client, "/encode", spaces + json.dumps({"inputs": rows[:1].tolist()}).encode(), "application/json"
    )
    assert response.status_code == 200


async def test_the_example_of_a_model_is_a_body_in_every_format(client: httpx.AsyncClient) -> None:
    for name in (IMAGES, TABLE, MIXED):
        for media_type in ("application/json", "application/x-npy", ARROW):
            example = await client.get(f"/models/{name}/example", headers={"accept": media_type})
            assert example.headers["content-type"] == media_type
            response = await send(client, f"/log-likelihood?model={name}", example.content, media_type)
            if media_type == "application/json":
                response = await send(client, "/log-likelihood", example.content, media_type)
            assert response.status_code == 200, response.text
