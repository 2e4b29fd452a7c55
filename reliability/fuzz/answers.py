"""Answers as the client reads them, of whatever answers at the address of a service."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from reliability.fuzz.bodies import npy_bytes
from reliability.fuzz.target import Target
from service.client.answers import Scores
from service.client.calls import Calls
from service.client.errors import GlowError
from service.client.steps import Answer, Asking, Pause, Send, Steps, Together
from service.headers import JSON_SIZE

_X = np.ones((2, 5))
_MODEL = {"name": "m", "version": "0" * 12, "columns": [{"name": "a"}, {"name": "b", "categories": ["x", "y"]}]}


def _calls() -> Calls:
    return Calls(Asking(1), model="m", timeout=None, concurrency=1, max_rows=64, max_bytes=2**20)


def _result(steps: Steps[Any], answer: Answer) -> Any:  # noqa: ANN401 (whatever a call gives)
    """What a call makes of one answer, given again whenever it asks."""
    came: object = None
    for _ in range(50):
        try:
            step = steps.send(came)
        except StopIteration as stop:
            return stop.value
        assert isinstance(step, Send | Pause | Together)
        if isinstance(step, Pause):
            assert step.seconds >= 0
        came = answer._replace(content=bytearray(answer.content)) if isinstance(step, Send) else None
    raise AssertionError("the client asks for ever")


def read_answer(data: bytes) -> None:
    """An answer is what was asked for, or an error of the client, whatever call it answers.

    The first line is a status, the next ones up to an empty one are headers, and the rest is the body.
    """
    head, _, body = data.partition(b"\n\n")
    status, *lines = head.decode("latin-1").split("\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer = Answer(int(status) if status.isdecimal() and status.isascii() else 200, headers, bytearray(body))
    refused: GlowError | None = None
    for begin, check in _CALLS:
        try:
            result = _result(begin(_calls()), answer)
        except GlowError as error:
            str(error)
            refused = error
        else:
            check(result)
    if refused is not None:
        raise refused


def _check_scores(scores: Scores) -> None:
    for array in scores.columns().values():
        assert array.shape[:1] == (2,)


def _check_object(value: object) -> None:
    assert isinstance(value, dict)


def _check_array(value: object) -> None:
    assert isinstance(value, np.ndarray)


_CALLS: list[tuple[Callable[[Calls], Steps[Any]], Callable[[Any], None]]] = [
    (lambda calls: calls.log_likelihood(_X), _check_scores),
    (lambda calls: calls.log_likelihood([{"a": 1, "b": "x"}] * 2), _check_scores),
    (lambda calls: calls.encode(_X), lambda codes: _check_array(codes.latents)),
    (lambda calls: calls.decode(_X), lambda outputs: _check_array(outputs.outputs)),
    (lambda calls: calls.sample(2), lambda samples: _check_array(samples.samples)),
    (lambda calls: calls.models(), _check_object),
    (lambda calls: calls.model(), _check_object),
    (lambda calls: calls.drift(), _check_object),
    (lambda calls: calls.example(), _check_array),
    (lambda calls: calls.ready(), lambda ready: None),
]


def answer_seeds() -> Iterator[bytes]:
    """Tensors, objects, an array, and errors."""
    arrays = {
        "log_likelihood": np.ones(2),
        "bits_per_dim": np.ones(2),
        "score": np.ones(2),
        "p_value": np.ones(2),
        "is_anomaly": np.ones(2, np.bool_),
        "z": np.ones((2, 5), np.float32),
        "x": np.ones((2, 5)),
        "samples": np.ones((2, 5)),
        "seed": np.ones(1, np.int64),
    }
    yield _tensors(
        {name: arrays[name] for name in ("log_likelihood", "bits_per_dim", "score", "p_value", "is_anomaly")}
    )
    yield _tensors({name: arrays[name] for name in ("log_likelihood", "z", "x", "samples", "seed")})
    yield b"200\ncontent-type: application/json\n\n" + json.dumps({**_MODEL, "default": "m"}).encode()
    yield b"200\ncontent-type: application/x-npy\n\n" + npy_bytes(_X)
    error = json.dumps({"error": "inputs[0] is wrong", "code": "unprocessable", "request_id": "a"}).encode()
    for status in (400, 404, 413, 422, 500):
        yield b"%d\n\n" % status + error
    yield b"429\nretry-after: 3\n\n" + error
    yield b"503\nretry-after: Thu, 01 Jan 2026 00:00:00 GMT\n\nno JSON"


def _tensors(arrays: dict[str, Any]) -> bytes:
    outputs = [
        {
            "name": name,
            "datatype": {"f8": "FP64", "f4": "FP32", "b1": "BOOL", "i8": "INT64"}[array.dtype.str[1:]],
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    head = json.dumps({"model_version": "1", "parameters": {"alpha": 0.1}, "outputs": outputs}).encode()
    stream = io.BytesIO()
    stream.write(b"200\n%s: %d\n\n" % (JSON_SIZE.encode(), len(head)) + head)
    for array in arrays.values():
        stream.write(array.tobytes())
    return stream.getvalue()


def repair_answer(data: bytes) -> bytes:
    """Let the size of the JSON be where it ends."""
    head, empty, body = data.partition(b"\n\n")
    if JSON_SIZE.encode() not in head:
        return data
    try:
        end = json.JSONDecoder().raw_decode(body.decode("latin-1"))[1]
    except (ValueError, RecursionError):
        return data
    return b"200\n%s: %d" % (JSON_SIZE.encode(), end) + empty + body


TARGETS = [
    Target(
        "client",
        read_answer,
        answer_seeds,
        (GlowError,),
        (b"retry-after: ", b'"shape"', b'"datatype"', b'"BOOL"', b'"binary_data_size"', b'"outputs"', b'"columns"'),
        repair_answer,
        holds_json=True,
    )
]
