"""The Open Inference Protocol as its clients speak it: Triton's, and plain JSON as KServe's documents have it."""

import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from service.artifact import within_tolerance
from tests.contract.deployments import MAX_ROWS
from tests.contract.figures import eventually
from tests.keys import key
from tests.wire import IMAGES, MIXED, TABLE

SUFFIXES = ("", ".encode", ".decode", ".sample")
CODINGS = (None, "gzip", "deflate")


class Served(NamedTuple):
    """A running server: for Triton's client, and for the routes of its own."""

    triton: Any
    http: httpx.Client


class WithKey(triton.InferenceServerClientPlugin):  # type: ignore[misc]
    """Sends the caller's key with each request."""

    def __call__(self, request: Any) -> None:
        request.headers.update(key("caller"))


@pytest.fixture(scope="session")
def served(url: str) -> Iterator[Served]:
    with httpx.Client(base_url=url, headers=key("caller"), timeout=60) as http:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        client.register_plugin(WithKey())
        yield Served(client, http)
        client.close()


def rows(served: Served, name: str, num: int = 3) -> Any:
    """Rows that are likely enough: samples of the model, on whole numbers where it has such."""
    samples = np.array(served.http.get(f"/sample?model={name}&n={num}&seed=1").json()["samples"])
    if name == TABLE:
        return samples.round(3)
    return samples.round().clip(0, 15).astype(np.float32)


def tensors(arrays: dict[str, Any], binary: bool = True) -> list[Any]:
    """Inputs in Triton's client."""
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, array.shape, triton_datatype(array))
        inputs.append(tensor.set_data_from_numpy(array, binary_data=binary))
    return inputs


def triton_datatype(array: Any) -> str:
    datatype: str = np_to_triton_dtype(array.dtype)
    return datatype


def expected(served: Served, name: str, suffix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of a model, and what the service's own route says of them."""

    def ask(path: str, **body: Any) -> dict[str, Any]:
        response = served.http.post(path, json={"model": name, **body})
        assert response.status_code == 200, response.text
        return dict(response.json())

    x = rows(served, name)
    if suffix == "":
        answer = ask("/log-likelihood", inputs=x.tolist())
        names = ("log_likelihood", "bits_per_dim", "score", "p_value", "is_anomaly")
        return {"x": x}, {key: answer[key] for key in names}
    encoded = ask("/encode", inputs=x.tolist())
    if suffix == ".encode":
        return {"x": x}, {"z": encoded["latents"], "log_likelihood": encoded["log_likelihood"]}
    if suffix == ".decode":
        z = np.array(encoded["latents"], np.float32)
        return {"z": z}, {"x": ask("/decode", latents=z.tolist())["outputs"]}
    inputs = {"n": np.array([3]), "temperature": np.array([0.5]), "seed": np.array([7])}
    answer = ask("/sample", n=3, temperature=0.5, seed=7)
    return inputs, {key: answer[key] for key in ("samples", "log_likelihood")} | {"seed": [7]}


def check(result: Any, answer: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Same numbers, as the metadata describes them."""
    described = {tensor["name"]: tensor for tensor in metadata["outputs"]}
    for name, value in answer.items():
        array = result.as_numpy(name)
        assert triton_to_np_dtype(described[name]["datatype"]) == array.dtype
        assert len(described[name]["shape"]) == array.ndim
        if name in ("log_likelihood", "score"):
            assert within_tolerance(array, np.array(value))
        else:
            np.testing.assert_allclose(array, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", [IMAGES, TABLE])
def test_every_way_to_send_and_to_receive_gives_the_numbers_of_the_own_routes(
    served: Served, name: str, suffix: str
) -> None:
    inputs, answer = expected(served, name, suffix)
    model = name + suffix
    metadata = served.triton.get_model_metadata(model)
    assert {tensor["name"] for tensor in metadata["outputs"]} == answer.keys()
    for binary_in, binary_out, sent, wanted in itertools.product((True, False), (True, False, None), CODINGS, CODINGS):
        outputs = binary_out is not None and [
            triton.InferRequestedOutput(key, binary_data=binary_out) for key in answer
        ]
        result = served.triton.infer(
            model,
            tensors(inputs, binary_in),
            outputs=outputs or None,
            request_id="r1",
            request_compression_algorithm=sent,
            response_compression_algorithm=wanted,
        )
        check(result, answer, metadata)
        response = result.get_response()
        assert (response["model_name"], response["id"]) == (model, "r1")
        assert [response["model_version"]] == metadata["versions"]


def test_answers_are_compressed_as_the_caller_says(served: Served) -> None:
    url, body = f"/v2/models/{TABLE}/infer", request_of(rows(served, TABLE, MAX_ROWS))
    for coding in ("gzip", "deflate"):
        for binary in (True, False):
            body["parameters"] = {"binary_data_output": binary}
            response = served.http.post(url, json=body, headers={"accept-encoding": coding})
            assert response.headers["content-encoding"] == coding
    body["parameters"] = {"binary_data_output": True}
    response = served.http.post(url, json=body, headers={"accept-encoding": "gzip, deflate, br"})
    assert "content-encoding" not in response.headers  # numbers hardly shrink: only for who asks for nothing else


def request_of(x: Any, name: str = "x", **others: Any) -> dict[str, Any]:
    tensor = {"name": name, "shape": list(x.shape), "datatype": triton_datatype(x), "data": x.flatten().tolist()}
    return {"inputs": [tensor], **others}


def test_a_client_of_kserve_gets_its_answer_in_json(served: Served) -> None:
    x = rows(served, TABLE, 2)
    response = served.http.post(f"/v2/models/{TABLE}/infer", json=request_of(x, id="42", model_name=TABLE))
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert answer["id"] == "42"
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["log_likelihood"]["shape"] == [2]
    assert outputs["is_anomaly"]["datatype"] == "BOOL"
    own = served.http.post("/log-likelihood", json={"model": TABLE, "inputs": x.tolist()}).json()
    assert within_tolerance(np.array(outputs["log_likelihood"]["data"]), np.array(own["log_likelihood"]))
    assert answer["parameters"] == {"alpha": own["alpha"]}
    nested = {"inputs": [{"name": "x", "shape": x.shape, "datatype": "FP64", "data": x.tolist()}]}
    assert served.http.post(f"/v2/models/{TABLE}/infer", json=nested).json()["outputs"] == answer["outputs"]


def test_other_numbers_than_the_models_are_converted_and_images_may_be_flat(served: Served) -> None:
    x = rows(served, IMAGES)
    exact = served.triton.infer(IMAGES, tensors({"x": x})).as_numpy("log_likelihood")
    for other in (x.astype(np.uint8), x.astype(np.float64), x.astype(np.float16), x.reshape(3, -1), x[:, 0]):
        for binary in (True, False):
            result = served.triton.infer(IMAGES, tensors({"x": other}, binary))
            assert within_tolerance(result.as_numpy("log_likelihood"), exact)
    raw = served.http.post(
        f"/v2/models/{IMAGES}/infer", content=x.tobytes(), headers={"inference-header-content-length": "0"}
    )
    assert within_tolerance(np.array(raw.json()["outputs"][0]["data"]), exact)


def test_options_are_parameters_of_the_request(served: Served) -> None:
    x = rows(served, TABLE)
    own = served.http.post(
        f"/log-likelihood?model={TABLE}&alpha=0.2&explain=true&scores=typicality", json={"inputs": x.tolist()}
    ).json()
    parameters = {"alpha": 0.2, "explain": True, "scores": "typicality"}
    result = served.triton.infer(TABLE, tensors({"x": x}), parameters=parameters)
    assert result.get_response()["parameters"] == {"alpha": 0.2}
    np.testing.assert_array_equal(result.as_numpy("is_anomaly"), own["is_anomaly"])
    np.testing.assert_allclose(result.as_numpy("contributions"), own["contributions"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(result.as_numpy("typicality"), own["scores"]["typicality"], rtol=1e-3)
    np.testing.assert_allclose(result.as_numpy("p_value_typicality"), own["p_values"]["typicality"])
    noisy = served.triton.infer(
        IMAGES,
        tensors({"x": rows(served, IMAGES)}),
        outputs=[triton.InferRequestedOutput("log_likelihood")],
        parameters={"dequantization_samples": 2, "dequantization_seed": 1, "reproducible": True},
    )
    assert [output["name"] for output in noisy.get_response()["outputs"]] == ["log_likelihood"]
    by_parameter = served.triton.infer(f"{TABLE}.sample", [], parameters={"n": 2, "seed": 7})
    by_tensor = served.triton.infer(f"{TABLE}.sample", tensors({"n": np.array([2]), "seed": np.array([7])}))
    np.testing.assert_array_equal(by_parameter.as_numpy("samples"), by_tensor.as_numpy("samples"))
    drawn = served.triton.infer(f"{TABLE}.sample", tensors({"n": np.array([2])}))
    again = served.triton.infer(f"{TABLE}.sample", tensors({"n": np.array([2]), "seed": drawn.as_numpy("seed")}))
    np.testing.assert_array_equal(again.as_numpy("samples"), drawn.as_numpy("samples"))


ONE = np.array([1])
ROW = np.zeros((1, 3))


@pytest.mark.parametrize(
    ("model", "arrays", "others", "status", "message"),
    [
        ("nothing", {"x": ROW}, {}, 404, "no model 'nothing'; served are"),
        ("nothing.encode", {"x": ROW}, {}, 404, "no model 'nothing'"),
        (TABLE, {"x": ROW}, {"model_version": "1"}, 404, "served are"),
        (TABLE, {"x": ROW[:, :2]}, {}, 422, "x must be of shape (B, 3) for model tiny-table, got (1, 2)"),
        (TABLE, {"x": ROW[0]}, {}, 422, "x must be of shape (B, 3)"),
        (TABLE, {"x": ROW[:0]}, {}, 422, "input 'x' of shape [0, 3] is empty; at least one row is needed"),
        (TABLE, {"x": ROW > 0}, {}, 422, "datatype of input 'x' must be one of INT8,"),
        (TABLE, {"x": np.array([["a"]], object)}, {}, 422, "got 'BYTES'"),
        (TABLE, {"y": ROW}, {}, 422, "model tiny-table has no input 'y'; it has x"),
        (TABLE, {"x": ROW, "y": ROW}, {}, 422, "has no input 'y'"),
        (TABLE, {}, {}, 422, "model tiny-table lacks its input 'x'"),
        (TABLE, {"x": ROW * np.nan}, {}, 400, "x[0][0] is nan; every value must be finite"),
        (IMAGES, {"x": np.full((1, 64), 16.0)}, {}, 422, "x[0][0] is 16.0; pixels must lie in"),
        (MIXED, {"x": np.full((1, 5), 9.0)}, {}, 422, "x[0]['color'] is 9"),
        (TABLE, {"x": np.zeros((MAX_ROWS + 1, 3))}, {}, 413, f"{MAX_ROWS + 1} rows are over the limit of {MAX_ROWS}"),
        (TABLE, {"x": ROW}, {"parameters": {"alpa": 1}}, 422, "unknown option 'alpa'; known are reproducible, alpha,"),
        (TABLE, {"x": ROW}, {"parameters": {"format": "npy"}}, 422, "unknown option 'format'"),
        (TABLE, {"x": ROW}, {"parameters": {"alpha": "0.1"}}, 422, "alpha: Input should be a valid number"),
        (TABLE, {"x": ROW}, {"outputs": ["z"]}, 422, "model tiny-table has no output 'z'; it has log_likelihood,"),
        (TABLE, {"x": ROW}, {"outputs": ["contributions"]}, 422, "has no output 'contributions'"),
        (f"{TABLE}.decode", {"z": ROW[:, :2]}, {}, 422, "z must be of shape (B, 3)"),
        (f"{TABLE}.sample", {}, {}, 422, "lacks its input 'n'"),
        (f"{TABLE}.sample", {"n": ONE * 0}, {}, 422, "n: Input should be greater than or equal to 1"),
        (f"{TABLE}.sample", {"n": ONE.repeat(2)}, {}, 422, "input 'n' must be of shape [1], got [2]"),
        (f"{TABLE}.sample", {"n": ONE / 2}, {}, 422, "n: Input should be a valid integer"),
        (f"{TABLE}.sample", {"n": ONE}, {"parameters": {"n": 1}}, 422, "n is given more than once"),
        (f"{TABLE}.sample", {"n": ONE * 5000}, {}, 413, "5000 samples are over the limit"),
    ],
)
def test_the_client_is_told_what_is_wrong(
    served: Served, model: str, arrays: dict[str, Any], others: dict[str, Any], status: int, message: str
) -> None:
    if "outputs" in others:
        others = {"outputs": [triton.InferRequestedOutput(name) for name in others["outputs"]]}
    with pytest.raises(InferenceServerException) as error:
        served.triton.infer(model, tensors(arrays), **others)
    assert error.value.status() == str(status)
    assert message in error.value.message()


def test_a_tensor_alone_is_no_json(served: Served) -> None:
    for media_type, status in (("application/json", 400), ("application/octet-stream", 200), ("", 200)):
        headers = {"inference-header-content-length": "0", **({"content-type": media_type} if media_type else {})}
        response = served.http.post(f"/v2/models/{TABLE}/infer", content=ROW.tobytes(), headers=headers)
        assert response.status_code == status, response.text


@pytest.mark.parametrize("size", ["", "-1", "x", "1e3", "999", "1" * 30])
def test_a_size_of_the_json_that_cannot_be_is_refused(served: Served, size: str) -> None:
    tensor = {"name": "x", "datatype": "FP64", "shape": list(ROW.shape), "data": ROW.ravel().tolist()}
    body, path = json.dumps({"inputs": [tensor]}), f"/v2/models/{TABLE}/infer"
    assert served.http.post(path, content=body).status_code == 200
    response = served.http.post(path, content=body, headers={"inference-header-content-length": size})
    assert response.status_code == 400
    assert response.json().keys() == {"error", "code", "request_id"}


def test_a_timeout_in_microseconds_is_a_deadline(served: Served) -> None:
    x = rows(served, IMAGES).repeat(1000, 0)
    with pytest.raises(InferenceServerException, match=r"no answer within 0\.001 s") as error:
        served.triton.infer(IMAGES, tensors({"x": x}), timeout=1000)
    assert error.value.status() == "504"
    served.triton.infer(IMAGES, tensors({"x": x}), timeout=60_000_000)


def test_the_server_describes_itself_and_its_models(served: Served) -> None:
    client = served.triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_configuration", "statistics"]
    names = [f"{name}{suffix}" for name in (IMAGES, MIXED, TABLE) for suffix in SUFFIXES]
    assert served.http.get("/v2/models").json() == {"models": names}
    index = client.get_model_repository_index()
    assert [(listed["name"], listed["state"]) for listed in index] == [(name, "READY") for name in names]
    for listed in index:
        name, version = listed["name"], listed["version"]
        assert client.is_model_ready(name)
        assert client.is_model_ready(name, version)
        metadata = client.get_model_metadata(name, version)
        assert metadata == client.get_model_metadata(name)
        assert (metadata["name"], metadata["versions"]) == (name, [version])
        config = client.get_model_config(name, version)
        batched = int(config["max_batch_size"] > 0)
        for ours, tritons in (("inputs", "input"), ("outputs", "output")):
            assert [(t["name"], f"TYPE_{t['datatype']}", t["shape"][batched:]) for t in metadata[ours]] == [
                (t["name"], t["data_type"], t["dims"]) for t in config[tritons]
            ]
    x = client.get_model_metadata(IMAGES)["inputs"][0]
    assert (x["datatype"], x["shape"]) == ("FP32", [-1, 1, 8, 8])
    assert not client.is_model_ready("nothing")
    assert not client.is_model_ready(TABLE, "000000000000")
    with pytest.raises(InferenceServerException, match="Not Found"):
        client.load_model(TABLE)


@pytest.mark.differs("ray", "each replica counts what it answers")
def test_statistics_count_rows_passes_and_time_of_each_model(served: Served) -> None:
    def figures() -> dict[str, Any]:
        (model,) = served.triton.get_inference_statistics(f"{MIXED}.encode")["model_stats"]
        return dict(model)

    def counted(since: dict[str, Any], rows: int) -> dict[str, Any]:
        """Figures with so many more rows; workers write theirs a few times a second."""
        return eventually(figures, lambda now: now["inference_count"] - since["inference_count"] == rows)

    x = rows(served, MIXED, 5).round()
    x[:, 0] = 1
    before = figures()
    for _ in range(20):
        served.triton.infer(f"{MIXED}.encode", tensors({"x": x.astype(np.float64)}))
    with pytest.raises(InferenceServerException):
        served.triton.infer(f"{MIXED}.encode", tensors({"x": ROW}))
    after = counted(before, 100)
    assert after["execution_count"] - before["execution_count"] == 20
    assert after["last_inference"] > before["last_inference"]
    durations = after["inference_stats"]
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert durations[name]["count"] - before["inference_stats"][name]["count"] == 20
        assert durations[name]["ns"] > before["inference_stats"][name]["ns"]
    assert durations["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    served.http.post("/encode", json={"model": MIXED, "inputs": x.tolist()})  # the same model
    counted(after, 5)


def test_every_model_has_statistics(served: Served) -> None:
    everything = served.triton.get_inference_statistics()["model_stats"]
    assert [model["name"] for model in everything] == [
        f"{name}{suffix}" for name in (IMAGES, MIXED, TABLE) for suffix in SUFFIXES
    ]


def test_inferences_have_few_labels_in_the_metrics(served: Served) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 3], "data": [0.5, 1010.0, 3.0]}]}
    assert served.http.post(f"/v2/models/{TABLE}.encode/infer", json=body).status_code == 200
    counted = f'glow_requests_total{{model="{TABLE}",route="/v2/models/{{name}}.encode/infer",status="200"}}'
    text = eventually(lambda: served.http.get("/metrics").text, lambda text: counted in text)
    assert "nothing" not in text
