"""What the answers are as statistics: the same by every transport, batch and order, uniform where they are p-values,
distributed as the model is where they are samples."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch
from scipy.stats import kstest, norm

from service.artifact import open_artifact, within_tolerance
from service.calibrate import calibrate
from tests.conftest import tiny_images, tiny_table
from tests.test_calibrate import answer_of
from tests.test_files import write_npy
from tests.wire import IMAGES, TABLE, npy

LEVEL = 1e-4  # of a test: seeds are fixed, so that it fails for good or never
ROWS = {IMAGES: tiny_images().fit.x[:37].astype(np.float64), TABLE: tiny_table().fit.x[:37]}
FIGURES = ("log_likelihood", "score", "p_value")

Answers = dict[str, Any]
Ask = Callable[[httpx.AsyncClient, str, Any, str], Awaitable[Answers]]


async def _posted(client: httpx.AsyncClient, name: str, content: bytes, media_type: str, query: str) -> Answers:
    path = f"/log-likelihood?model={name}{query}"
    answer: Answers = orjson.loads(
        (await client.post(path, content=content, headers={"content-type": media_type})).raise_for_status().content
    )
    return {figure: np.array(answer[figure]) for figure in FIGURES}


async def as_json(client: httpx.AsyncClient, name: str, rows: Any, query: str) -> Answers:
    return await _posted(client, name, orjson.dumps({"inputs": rows.tolist()}), "application/json", query)


async def as_npy(client: httpx.AsyncClient, name: str, rows: Any, query: str) -> Answers:
    return await _posted(client, name, npy(rows), "application/x-npy", query)


async def as_arrow(client: httpx.AsyncClient, name: str, rows: Any, query: str) -> Answers:
    if name == TABLE:
        table = pa.table(dict(zip(("a", "b", "count"), rows.T, strict=True)))
    else:
        table = pa.table({"inputs": pa.array(list(rows.reshape(len(rows), -1)), pa.list_(pa.float64(), 64))})
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return await _posted(client, name, stream.getvalue(), "application/vnd.apache.arrow.stream", query)


def _infer(binary: bool) -> Ask:
    async def ask(client: httpx.AsyncClient, name: str, rows: Any, query: str) -> Answers:
        data = {"parameters": {"binary_data_size": rows.nbytes}} if binary else {"data": rows.ravel().tolist()}
        tensor = {"name": "x", "shape": rows.shape, "datatype": "FP64", **data}
        parameters = {"reproducible": True} if "reproducible" in query else {}
        head = orjson.dumps({"inputs": [tensor], "parameters": parameters})
        response = await client.post(
            f"/v2/models/{name}/infer",
            content=head + (rows.tobytes() if binary else b""),
            headers={"inference-header-content-length": str(len(head))},
        )
        answer = response.raise_for_status().json()
        return {output["name"]: np.array(output["data"]) for output in answer["outputs"]}

    return ask


TRANSPORTS: dict[str, Ask] = {
    "json": as_json,
    "npy": as_npy,
    "arrow": as_arrow,
    "oip": _infer(binary=False),
    "oip in binary": _infer(binary=True),
}


@pytest.mark.parametrize("name", [IMAGES, TABLE])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_row_has_one_score_by_every_transport_in_any_batch_and_order(
    client: httpx.AsyncClient, name: str, transport: str
) -> None:
    rows, random = ROWS[name], np.random.default_rng(0)
    expected = await as_json(client, name, rows, "&reproducible=true")
    for _ in range(3):
        order = random.permutation(len(rows))
        for part in np.split(order, np.sort(random.integers(0, len(rows), 3))):
            if not len(part):
                continue
            same = await TRANSPORTS[transport](client, name, rows[part], "&reproducible=true")
            near = await TRANSPORTS[transport](client, name, rows[part], "")
            for figure in FIGURES:
                np.testing.assert_array_equal(same[figure], expected[figure][part])
            assert within_tolerance(near["log_likelihood"], expected["log_likelihood"][part])


async def test_p_values_of_fresh_normal_rows_are_uniform(models_dir: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(5).permutation(tiny_table(24_000).fit.x)
    num = len(rows) // 2
    calibrate(models_dir / f"{TABLE}.pt", write_npy(rows[:num], tmp_path / "normal"), tmp_path / "out.pt")
    p_value = np.array((await answer_of(tmp_path / "out.pt", rows[num:]))["p_value"])
    # Given the calibration, the distance of their distribution from the uniform one is that of two samples.
    distance = kstest(p_value, "uniform").statistic
    assert distance < np.sqrt(-np.log(LEVEL / 2) / 2) * np.sqrt(2 / num)
    assert len(set(p_value)) > num / 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", [IMAGES, TABLE])
async def test_samples_of_the_service_and_of_the_model_cannot_be_told_apart(
    models_dir: Path, client: httpx.AsyncClient, name: str, temperature: float
) -> None:
    parts = [
        (await client.get(f"/sample?model={name}&n=256&seed={seed}&temperature={temperature}"))
        .raise_for_status()
        .json()
        for seed in range(8)
    ]
    samples = np.concatenate([np.array(part["samples"]).reshape(256, -1) for part in parts])
    likelihood = np.concatenate([part["log_likelihood"] for part in parts])
    artifact = open_artifact(models_dir / f"{name}.pt")
    z = temperature * torch.randn(len(samples), artifact.manifest.num_dims, generator=torch.Generator().manual_seed(99))
    with torch.inference_mode():
        own = artifact.program.decode(z)
        own_likelihood = artifact.program.encode(own)[1].numpy()
    found = own.reshape(len(own), -1).numpy()
    columns = [*zip(samples.T, found.T, strict=True), (likelihood, own_likelihood)]
    assert min(kstest(ours, theirs).pvalue for ours, theirs in columns) > LEVEL / len(columns)


@pytest.mark.parametrize("name", [IMAGES, TABLE])
async def test_latents_of_samples_are_the_noise_that_they_were_drawn_with(client: httpx.AsyncClient, name: str) -> None:
    for temperature in (1.0, 0.5):
        drawn = (await client.get(f"/sample?model={name}&n=200&seed=3&temperature={temperature}&format=npy")).content
        headers = {"content-type": "application/x-npy"}
        answer = (await client.post(f"/encode?model={name}", content=drawn, headers=headers)).raise_for_status().json()
        assert kstest(np.ravel(answer["latents"]), norm(scale=temperature).cdf).pvalue > LEVEL
