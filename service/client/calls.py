"""The calls of both clients, written once: what is asked in which requests, and what is made of the answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from service.client import rows, tensors
from service.client.answers import Codes, Outputs, Samples, Scores
from service.client.call import Call, Progress
from service.client.errors import GlowError, InvalidRequest, NotFound, NotNow, ServiceFailed, TooLarge, VersionGone
from service.client.steps import Answer, Asking, Deadline, Pause, Send, Steps, Together, error_of
from service.client.tensors import Tensors
from service.codecs import npy
from service.errors import BadRequest
from service.noise import random_seed
from service.scores import DEFINITIONS, ScoreName, benjamini_hochberg, p_value_column

Array = npt.NDArray[Any]
READY_PAUSE_S = 0.2  # between questions whether a service is ready


class Calls:
    """What can be asked; every call gives the steps to its result. Raises InvalidRequest for settings out of range.

    Threads may share it: what it learns, the default model's name and how many rows a request may have, only grows
    better.
    """

    def __init__(
        self,
        asking: Asking,
        *,
        model: str | None,
        timeout: float | None,
        concurrency: int,
        max_rows: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = {"concurrency": concurrency, "max_rows": max_rows, "max_bytes": max_bytes}
        for name, value in limits.items():
            if value < 1:
                raise InvalidRequest(f"{name} must be at least 1, got {value}")
        self.model_name = model
        self._asking = asking
        self._timeout = timeout
        self._concurrency = concurrency
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._clock = clock
        self._fitting: dict[tuple[object, ...], int] = {}  # rows of a request that was not too large, by kind
        self._deadline(None)

    def log_likelihood(
        self,
        x: object,
        *,
        model: str | None = None,
        alpha: float | None = None,
        fdr: float | None = None,
        guarantee: Literal["marginal", "conditional"] | None = None,
        scores: str | Sequence[ScoreName] | None = None,
        explain: bool = False,
        dequantization: int | None = None,
        dequantization_seed: int = 0,
        reproducible: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Steps[Scores]:
        """How likely each row is and, calibrated, its score, its p-value and whether it is an anomaly.

        Args:
            x: images (N, C, H, W), (N, H, W) or (N, D), or rows of a table (N, D); of a table also a data frame or a
                list of records, whose columns are found by name, others ignored, and categories given by name or code.
            model: NAME or NAME@VERSION; the client's if None.
            alpha: flag rows with a p-value of at most this; the service's or the artifact's own if None.
            fdr: flag by Benjamini-Hochberg over all rows of the call instead.
            guarantee: what alpha bounds, see docs/anomalies.md.
            scores: further scores by name, in a list or with commas between them, or "all".
            explain: add ``contributions``.
            dequantization: average the likelihood over so many noisy copies of each row.
            dequantization_seed: seed of that noise, of which row i of x has its own.
            reproducible: give each row the same bits whatever it is batched with.
            timeout: seconds that the call may take in all, retries included; the client's if None, none if inf.
            progress: told, after every request or some, how many rows of how many are done.

        Raises GlowError.
        """
        named = scores if scores is None or isinstance(scores, str) else ",".join(scores) or None
        options = {"alpha": alpha, "fdr": fdr, "guarantee": guarantee, "scores": named}
        switches = {"explain": explain, "reproducible": reproducible}
        options |= {name: True for name, wanted in switches.items() if wanted}
        if dequantization is not None:
            options |= {"dequantization_samples": dequantization, "dequantization_seed": dequantization_seed}
        call = Call(self._deadline(timeout), "", model, progress, options)
        if dequantization is not None:
            call.first = "dequantization_first"
            call.weight = 1 + max(0, dequantization)
        call.kind += (explain, dequantization)
        answer = yield from self._of_rows(call, "x", x)
        arrays, said = answer.arrays, answer.parameters
        is_anomaly = arrays.get("is_anomaly")
        try:
            if fdr is not None and call.num_answers > 1:
                is_anomaly = benjamini_hochberg(arrays["p_value"], fdr)
            return Scores(
                log_likelihood=arrays["log_likelihood"],
                bits_per_dim=arrays["bits_per_dim"],
                score=arrays.get("score"),
                p_value=arrays.get("p_value"),
                is_anomaly=is_anomaly,
                alpha=said.get("alpha"),
                level=said.get("level"),
                fdr=said.get("fdr"),
                scores={name: arrays[name] for name in DEFINITIONS if name in arrays},
                p_values={name: arrays[p_value_column(name)] for name in DEFINITIONS if p_value_column(name) in arrays},
                contributions=arrays.get("contributions"),
                model=call.name,
                version=answer.version,
            )
        except KeyError as error:
            raise _lacks(error) from error

    def encode(
        self,
        x: object,
        *,
        model: str | None = None,
        reproducible: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Steps[Codes]:
        """Latent code of each row, and its log-likelihood. Arguments and errors as of ``log_likelihood``."""
        call = Call(self._deadline(timeout), ".encode", model, progress, {"reproducible": True} if reproducible else {})
        answer = yield from self._of_rows(call, "x", x)
        try:
            return Codes(answer.arrays["z"], answer.arrays["log_likelihood"], call.name, answer.version)
        except KeyError as error:
            raise _lacks(error) from error

    def decode(
        self,
        z: npt.ArrayLike,
        *,
        model: str | None = None,
        reproducible: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Steps[Outputs]:
        """Input of each latent code z (N, D), the inverse of ``encode``. Errors as of ``log_likelihood``."""
        call = Call(self._deadline(timeout), ".decode", model, progress, {"reproducible": True} if reproducible else {})
        answer = yield from self._of_rows(call, "z", z)
        try:
            return Outputs(answer.arrays["x"], call.name, answer.version)
        except KeyError as error:
            raise _lacks(error) from error

    def sample(
        self,
        n: int = 16,
        *,
        temperature: float | None = None,
        seed: int | None = None,
        first: int = 0,
        model: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Steps[Samples]:
        """Draw n new inputs, and their log-likelihood under the model (at temperature 1).

        A seed has samples without end, each of its own noise: the same seed gives the same ones, those of n = 4 are
        the first four of n = 10,000, and ``first`` = 4 goes on behind them. Without a seed one is drawn and returned.
        ``temperature`` scales the latent noise; the model's own if None. Errors as of ``log_likelihood``.
        """
        if not n >= 1 or n % 1:
            raise InvalidRequest(f"n must be a whole number of at least 1, got {n}")
        seed = random_seed() if seed is None else seed
        call = Call(self._deadline(timeout), ".sample", model, progress, {"seed": seed, "temperature": temperature})
        call.first, call.offset = "first", first

        def parts(start: int, stop: int) -> dict[str, Array]:
            return {"n": np.array([stop - start], np.int64)}

        answer = yield from self._answers(call, n, self._max_rows, parts)
        try:
            return Samples(
                answer.arrays["samples"], answer.arrays["log_likelihood"], int(seed), call.name, answer.version
            )
        except KeyError as error:
            raise _lacks(error) from error

    def models(self, *, timeout: float | None = None) -> Steps[dict[str, Any]]:
        """What is served: ``{"default": NAME, "models": [{"name", "version", "kind", "shape", ...}]}``."""
        return (yield from self._json("GET", "/models", self._deadline(timeout)))

    def model(self, name: str | None = None, *, timeout: float | None = None) -> Steps[dict[str, Any]]:
        """The public part of a model's manifest: its columns or value range, its scores, its calibration, ..."""
        deadline = self._deadline(timeout)
        return (yield from self._json("GET", (yield from self._path(name, deadline)), deadline))

    def example(self, name: str | None = None, *, timeout: float | None = None) -> Steps[Array]:
        """A valid input from the model's held-out data, (1, *shape)."""
        deadline = self._deadline(timeout)
        path = yield from self._path(name, deadline)
        answer = yield from self._asking.ask("GET", f"{path}/example?format=npy", deadline)
        try:
            return npy.read(answer.content)
        except BadRequest as error:
            raise ServiceFailed(f"{path}/example is no NumPy file", status=answer.status) from error

    def drift(self, name: str | None = None, *, timeout: float | None = None) -> Steps[dict[str, Any]]:
        """Whether the rows that were scored still come from where the calibration rows came from: docs/drift.md."""
        deadline = self._deadline(timeout)
        return (yield from self._json("GET", (yield from self._path(name, deadline)) + "/drift", deadline))

    def reload(self, *, timeout: float | None = None) -> Steps[dict[str, Any]]:
        """Have the service read artifacts and keys anew, which needs a key of scope admin: what it serves then."""
        return (yield from self._json("POST", "/admin/reload", self._deadline(timeout)))

    def ready(self, *, timeout: float | None = None) -> Steps[bool]:
        """Whether the service answers, all its models verified and warm."""
        return (yield from self._ready(self._deadline(timeout))) is None

    def wait_until_ready(self, timeout: float = 60.0) -> Steps[None]:
        """Return once the service is ready. Raises DeadlineExceeded if it is not in ``timeout`` seconds."""
        deadline = self._deadline(timeout)
        while (fault := (yield from self._ready(deadline))) is not None:
            if deadline.left_s <= READY_PAUSE_S:
                raise deadline.exceeded(fault) from fault
            yield Pause(READY_PAUSE_S)

    def _ready(self, deadline: Deadline) -> Steps[GlowError | None]:
        """Why the service is not ready. Raises GlowError for what does not pass with time."""
        answer: Answer | GlowError = yield Send("GET", "/readyz", deadline, headers=self._asking.headers)
        fault = error_of(answer) if isinstance(answer, Answer) else answer
        if fault is not None and not isinstance(fault, NotNow):
            raise fault
        return fault

    def _deadline(self, timeout: float | None) -> Deadline:
        timeout = self._timeout if timeout is None else timeout
        return Deadline(timeout, self._clock)

    def _json(self, method: str, path: str, deadline: Deadline, *members: str) -> Steps[dict[str, Any]]:
        """A JSON object that has these members, all of them text."""
        answer = yield from self._asking.ask(method, path, deadline)
        try:
            about = json.loads(answer.content)
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict) or not all(isinstance(about.get(name), str) for name in members):
            raise ServiceFailed(f"{path} is not that of a Glow service", status=answer.status)
        return about

    def _path(self, name: str | None, deadline: Deadline) -> Steps[str]:
        return "/models/" + quote((yield from self._reference(name, deadline)), safe="@")

    def _reference(self, name: str | None, deadline: Deadline) -> Steps[str]:
        """NAME or NAME@VERSION; of the service's default model, which is asked for once, where none is named."""
        name = self.model_name if name is None else name
        if name is None:
            name = self.model_name = (yield from self._json("GET", "/models", deadline, "default"))["default"]
            assert name is not None
        return name

    def _of_rows(self, call: Call, name: str, x: object) -> Steps[Tensors]:
        """Answers to all rows that x has, of a ``call`` of which they are the input ``name``."""
        array = rows.numbers_of(x, name)
        if array is None:
            if name != "x":
                raise InvalidRequest(f"{name} must be an array of numbers")
            about = yield from self._pin(call)
            array = rows.table_of(x, about, name)
        row_bytes = array.nbytes // max(1, len(array))
        most = min(self._max_rows // call.weight, self._max_bytes // max(1, row_bytes))
        return (yield from self._answers(call, len(array), max(1, most), lambda start, stop: {name: array[start:stop]}))

    def _pin(self, call: Call) -> Steps[dict[str, Any]]:
        """Ask what the model is, so that one version answers all of the call."""
        path = yield from self._path(call.reference, call.deadline)
        about = yield from self._json("GET", path, call.deadline, "name", "version")
        call.name, call.version, call.is_pinned = about["name"], about["version"], True
        return about

    def _answers(
        self, call: Call, num: int, most: int, parts: Callable[[int, int], dict[str, Array]]
    ) -> Steps[Tensors]:
        """Answers to rows 0 to num, asked for in parts of at most so many rows."""
        if not call.name:
            reference = yield from self._reference(call.reference, call.deadline)
            call.name, _, call.version = reference.partition("@")
        kind = (*call.kind, call.name)
        found: dict[int, Tensors] = {}

        def size() -> int:
            return min(most, self._fitting.get(kind, most))

        if not call.version and num > size():
            yield from self._pin(call)

        def piece(start: int, stop: int) -> Steps[int]:
            at = start
            while True:  # once at least: that there are no rows is the service's to refuse
                end = min(stop, at + size())
                try:
                    found[at] = yield from self._piece(call, at, end, parts(at, end))
                except TooLarge:
                    if end - at < 2:
                        raise
                    self._fitting[kind] = min(size(), -(-(end - at) // 2))
                    continue
                at = end
                if at >= stop:
                    return stop - start

        def pieces() -> Iterator[Steps[int]]:
            start = 0
            while start < num:
                stop = min(num, start + size())
                yield piece(start, stop)
                start = stop

        num_done = 0

        def done(more: int) -> None:
            nonlocal num_done
            num_done += more
            if call.progress is not None:
                call.progress(num_done, num)

        if num > size():
            yield Together(pieces(), self._concurrency, done)
        else:
            done((yield from piece(0, num)))
        answers = [found[start] for start in sorted(found)]
        call.num_answers = len(answers)
        try:
            arrays = {name: np.concatenate([each.arrays[name] for each in answers]) for name in answers[0].arrays}
        except (KeyError, ValueError) as error:
            raise ServiceFailed("the answers to parts of the rows do not fit together") from error
        return answers[0]._replace(arrays=arrays)

    def _piece(self, call: Call, start: int, stop: int, inputs: dict[str, Array]) -> Steps[Tensors]:
        """The answer to rows start to stop."""
        version = call.version
        options = call.options
        if call.first and call.offset + start:
            options = {**options, call.first: call.offset + start}
        body, about = tensors.write(inputs, options)
        try:
            answer = yield from self._asking.ask("POST", call.path, call.deadline, body, about)
        except TooLarge:
            raise
        except NotFound as error:
            if version and call.is_pinned:
                gone = f"{call.name}@{version} is served no more: {error.message}"
                raise VersionGone(gone, status=error.status, request_id=error.request_id) from error
            raise
        except InvalidRequest as error:
            (name,) = inputs  # of which the message may name a position in this part
            error.message = re.sub(
                rf"\b{name}\[(\d+)\]", lambda found: f"{name}[{start + int(found[1])}]", error.message, count=1
            )
            raise
        read = tensors.read(answer)
        call.version = read.version
        call.is_pinned = True
        if any(array.shape[:1] != (stop - start,) for name, array in read.arrays.items() if name != "seed"):
            raise ServiceFailed(f"{call.path} answers other than {stop - start} rows", status=answer.status)
        return read


def _lacks(error: KeyError) -> ServiceFailed:
    return ServiceFailed(f"the answer lacks {error}")
