"""What scores batches of rows: an artifact in this process, or a service over HTTP."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from service.artifact import Signature
from service.catalog import open_catalog
from service.cli import UsageError
from service.codecs import arrow, npy
from service.engine import Engine, choose_device
from service.flows import default_alpha
from service.http_answers import error_of, retry_after_s
from service.machine import available_cpus
from service.options import score_names
from service.plans import finish
from service.scorer import chosen_scores, p_value_column, score_pass, scoring_key, unpack
from service.scores import DEFINITIONS
from service.settings import settings_for

RETRIED = (429, 502, 503, 504)  # busy, restarting, too slow
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0  # between tries; doubled after each
TOLD_PAUSE_S = 2.0  # a wait that somebody who watches should know of
ANSWER_S = 300.0  # that a connection may be silent: longer than a service computes
CONCURRENCY, PATIENCE_S = 4, 600.0  # of a service, where nothing else is wanted
HELLO_S = 30.0  # that a service may take to say what it serves

Array = npt.NDArray[Any]
logger = logging.getLogger(__name__)


class TargetError(UsageError):
    """A service that does not answer, or not with what was asked for."""


class Target(ABC):
    """What scores rows of one model. ``score`` may be called from ``concurrency`` threads at once."""

    signature: Signature
    alpha: float | None  # its default; None without p-values
    num_calibration: int | None  # rows behind the p-values
    calibration: str  # tells two calibrations of one flow apart
    answers: set[str]  # names that ``score`` may give
    concurrency: int

    def prepare(self) -> None:  # noqa: B027 (most have nothing to do)
        """What is not needed to look at files, and takes time."""

    @abstractmethod
    def score(self, rows: Array) -> dict[str, Array]:
        """Answers for rows (K, *shape), K > 0, by name: (K,) each; of all calls the same names."""

    def close(self) -> None:  # noqa: B027
        """Give up what is under way."""


class EngineTarget(Target):
    """An artifact, on this machine's device. ``cache_dir`` keeps its plans where GLOW_CACHE_DIR names no folder.

    On a CPU every call takes one thread, and so many run at once as there are cores, or as GLOW_THREADS says: unlike
    the threads of one pass they do not wait for each other, and reading and writing take no more than their share.
    Raises ArtifactError.
    """

    def __init__(self, artifact: Path, cache_dir: Path, scores: str | None = None, reproducible: bool = False) -> None:
        settings = settings_for(artifact)
        self.concurrency = settings.threads or available_cpus()
        if choose_device(settings.device) == "cuda":
            self.concurrency = 1
        changes = {"threads": 1, "cache_dir": settings.cache_dir or cache_dir}
        self._catalog = open_catalog(Engine(settings.model_copy(update=changes)))
        self._manifest = self.signature = self._catalog.default.manifest
        self._names = chosen_scores(self._manifest, None if scores is None else score_names(scores))
        self._key = scoring_key(self._catalog.default, self._names, reproducible)
        calibration = self._manifest.calibration
        self.alpha = None if calibration is None else default_alpha(settings, calibration)
        self.num_calibration = None if calibration is None else calibration.num_rows
        self.calibration = "none"
        self.answers = _answer_names(scores, calibration is not None)
        if calibration is not None:
            self.calibration = hashlib.sha256(calibration.model_dump_json().encode()).hexdigest()[:12]

    def prepare(self) -> None:
        finish(self._catalog.warm_up(reproducible_only=self._key.reproducible))

    def score(self, rows: Array) -> dict[str, Array]:
        scored = unpack(self._key, score_pass(self._key, rows))
        return scored.columns(self._manifest.scoring.default, self._names)


class ServiceTarget(Target):
    """A model of a running service, asked in binary over ``concurrency`` connections.

    What is refused for now (429, 502 to 504) or lost on the way is asked again, no earlier than the service wants, for
    ``patience_s`` a batch. Raises TargetError.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        scores: str | None = None,
        reproducible: bool = False,
        concurrency: int = CONCURRENCY,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.concurrency = concurrency
        self._url = url.rstrip("/")
        self._patience_s = patience_s
        self._most_rows = 2**14  # of a request; fewer once that was too much for the service
        self._closed = threading.Event()
        self._client = httpx.Client(
            timeout=httpx.Timeout(ANSWER_S, connect=10.0),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )
        try:
            self._read_signature(model)
        except BaseException:
            self.close()
            raise
        self.answers = _answer_names(scores, self.num_calibration is not None)
        self._options = {"model": self.signature.name, "reproducible": str(reproducible).lower()}
        if scores is not None:
            self._options["scores"] = scores

    def _read_signature(self, model: str | None) -> None:
        """Ask what the model takes, and how it is calibrated."""
        name = self._describe("/models").get("default") if model is None else model
        about = self._describe(f"/models/{name}")
        try:
            self.signature = Signature.model_validate(
                {key: about[key] for key in Signature.model_fields if key in about}
            )
            calibration = about.get("calibration")
            self.alpha = None if calibration is None else float(calibration["alpha"])
            self.num_calibration = None if calibration is None else int(calibration["rows"])
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise TargetError(f"{self._url}/models/{name}: is no model of a Glow service") from error
        self.calibration = "none"
        if calibration is not None:  # its threshold and its summary tell the scores that it has
            text = json.dumps(calibration, sort_keys=True)
            self.calibration = f"of the service, {hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def score(self, rows: Array) -> dict[str, Array]:
        pieces: list[dict[str, Array]] = []
        start = 0
        while start < len(rows):
            size = self._most_rows  # which changes meanwhile
            pieces.append(self._score(rows[start : start + size]))
            start += size
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _score(self, rows: Array) -> dict[str, Array]:
        headers = {"content-type": npy.MEDIA_TYPE, "accept": arrow.MEDIA_TYPE}
        response = self._ask("POST", "/log-likelihood", params=self._options, content=npy.write(rows), headers=headers)
        if response.status_code == 413 and len(rows) > 1:
            self._most_rows = min(self._most_rows, -(-len(rows) // 2))
            return self.score(rows)
        self._check(response, "/log-likelihood")
        try:
            table = pa.ipc.open_stream(response.content).read_all()
            version = (table.schema.metadata or {})[b"version"].decode()
            # Without is_anomaly, which is of the request alone and follows from p_value.
            columns = {name: np.asarray(table[name].to_numpy()) for name in table.column_names if name in self.answers}
        except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
            raise TargetError(f"{self._url}: answers with something else than scores in Arrow") from error
        if version != self.signature.version:
            raise TargetError(
                f"{self._url}: {self.signature.name} has become version {version}; scoring began with "
                f"{self.signature.version}"
            )
        if table.num_rows != len(rows):
            raise TargetError(f"{self._url}: answers {table.num_rows} rows where {len(rows)} were asked for")
        return columns

    def close(self) -> None:
        self._closed.set()
        self._client.close()

    def _describe(self, path: str) -> dict[str, Any]:
        response = self._ask("GET", path, patience_s=min(self._patience_s, HELLO_S))
        self._check(response, path)
        try:
            about = response.json()
        except ValueError:
            about = None
        if not isinstance(about, dict):
            raise TargetError(f"{self._url}{path}: is no Glow service")
        return about

    def _ask(self, method: str, path: str, patience_s: float | None = None, **request: Any) -> httpx.Response:  # noqa: ANN401
        """Ask until there is an answer that does not mean "not now"."""
        patience_s = self._patience_s if patience_s is None else patience_s
        began = time.monotonic()
        for attempt in itertools.count():
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311
            try:
                response = self._client.request(method, self._url + path, **request)
                if response.status_code not in RETRIED:
                    return response
                fault = f"{response.status_code} {error_of(response)}"
                pause = max(pause, retry_after_s(response, 0.0))
            except httpx.TransportError as error:
                fault = str(error) or type(error).__name__
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise TargetError(f"{self._url}: {error}") from error
            if time.monotonic() + pause - began > patience_s:
                raise TargetError(f"{self._url}: no answer in {patience_s:g} s: {fault}")
            if pause >= TOLD_PAUSE_S:
                logger.warning("%s: %s; asking again in %.0f s", self._url, fault, pause)
            if self._closed.wait(pause):
                raise TargetError(f"{self._url}: given up: {fault}")
        raise AssertionError

    def _check(self, response: httpx.Response, path: str) -> None:
        if response.status_code != 200:
            raise TargetError(f"{self._url}{path}: {response.status_code} {error_of(response)}")


def _answer_names(scores: str | None, calibrated: bool) -> set[str]:
    """Names that answers may have; of all scores, more than one model has."""
    named = [*DEFINITIONS] if scores == "all" else scores.split(",") if scores else []
    default = {"score", "p_value"} if calibrated else set()
    return {"log_likelihood", "bits_per_dim", *default, *named, *map(p_value_column, named)}
