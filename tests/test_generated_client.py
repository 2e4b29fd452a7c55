"""Clients that others generate from the OpenAPI document: made without a warning, and good for all that is served."""

import importlib
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from fastapi import FastAPI

from tests.wire import IMAGES, MIXED, TABLE

PACKAGE = "generated_glow_client"


class Generated:
    """The package that was generated, and its client of the application."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.models = module("models")
        self.types = module("types")

    async def ask(self, operation: str, *path: str, **arguments: object) -> Any:
        return await module(f"api.{operation}").asyncio(*path, client=self.client, **arguments)


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.{name}")


@pytest_asyncio.fixture(scope="module")
async def generated(
    app: FastAPI, client: httpx.AsyncClient, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Generated]:
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes((await client.get("/openapi.json")).content)
    (folder / "config.yaml").write_text("post_hooks: []")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning", "--meta", "none"]
    paths = ["--path", "openapi.json", "--output-path", PACKAGE, "--config", "config.yaml"]
    done = subprocess.run([*command, *paths], cwd=folder, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert not [word for word in ("warning", "error", "unable") if word in output.lower()], output
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        transport = httpx.ASGITransport(app)
        made = module("client").Client("http://test", httpx_args={"transport": transport})
        yield Generated(made)
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


async def test_operations_are_named_for_what_they_do(generated: Generated) -> None:
    spec = {path.stem for path in Path(str(module("api").__file__)).parent.glob("*/*.py")} - {"__init__"}
    assert {"log_likelihood", "encode", "decode", "sample", "list_models", "get_model", "model_infer"} <= spec


@pytest.mark.parametrize("name", [IMAGES, TABLE, MIXED])
async def test_the_example_of_each_model_is_scored_encoded_and_decoded(generated: Generated, name: str) -> None:
    models = generated.models
    example = await generated.ask("models.get_example", name)
    about = await generated.ask("models.get_model", name)
    request = models.LogLikelihoodRequest(example.inputs, model=name, scores=[models.ScoreName.TYPICALITY])
    scores = await generated.ask("flows.log_likelihood", body=request)
    assert np.isfinite(scores.log_likelihood).all()
    assert scores.is_anomaly == [scores.score[0] > about.calibration.threshold]
    assert len(scores.scores.typicality) == 1
    codes = await generated.ask("flows.encode", body=models.EncodeRequest(example.inputs, model=name))
    assert codes.log_likelihood == pytest.approx(scores.log_likelihood, abs=1e-3)
    outputs = await generated.ask("flows.decode", body=models.DecodeRequest(codes.latents, model=name))
    assert np.asarray(outputs.outputs) == pytest.approx(np.asarray(example.inputs), rel=1e-3, abs=0.02)


async def test_rows_may_be_sent_in_binary(generated: Generated) -> None:
    example = await generated.ask("models.get_example", TABLE)
    listed = await generated.ask(
        "flows.log_likelihood", body=generated.models.LogLikelihoodRequest(example.inputs, TABLE)
    )
    stream = io.BytesIO()
    np.save(stream, np.asarray(example.inputs))
    body = generated.types.File(payload=stream.getvalue())
    sent = await generated.ask("flows.log_likelihood", body=body, model=TABLE, scores="typicality")
    assert sent.log_likelihood == pytest.approx(listed.log_likelihood, abs=1e-3)
    assert sent.scores.typicality


async def test_the_same_seed_samples_the_same_by_body_and_by_query(generated: Generated) -> None:
    options = {"model": TABLE, "n": 3, "seed": 7}
    by_body = await generated.ask("flows.sample", body=generated.models.SampleRequest(**options))
    by_query = await generated.ask("flows.sample_by_query", **options)
    assert by_body.samples == by_query.samples


async def test_an_inference_has_options(generated: Generated) -> None:
    models = generated.models
    row = np.asarray((await generated.ask("models.get_example", TABLE)).inputs)
    tensor = models.RequestTensor("x", models.Datatype.FP64, [*row.shape], data=row.tolist())
    request = models.InferRequest([tensor], parameters=models.InferParameters(alpha=0.25))
    answer = await generated.ask("open_inference_protocol.model_infer", TABLE, body=request)
    assert answer.parameters.alpha == 0.25
    assert answer.outputs[0].name == "log_likelihood"


async def test_a_refusal_is_an_answer_with_a_code(generated: Generated) -> None:
    refused = await generated.ask("flows.encode", body=generated.models.EncodeRequest([[1.0]], model=TABLE))
    assert isinstance(refused, generated.models.ErrorResponse)
    assert refused.code == "unprocessable"
    unknown = await generated.ask("models.get_model", "nothing")
    assert unknown.code == "model_not_found"
