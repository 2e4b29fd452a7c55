"""What scores batches of rows: an artifact in this process, or a service over HTTP."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import ValidationError

from common.errors import UsageError
from common.machine import available_cpus
from service.artifact import Signature
from service.catalog import open_catalog
from service.client import GlowClient, GlowError, InvalidRequest, NotFound
from service.engine import Engine, choose_device
from service.files import RowFile
from service.files.row_file import BATCH_ROWS
from service.levels import default_alpha
from service.options import score_names
from service.score.results import Result, results_of
from service.scorer import chosen_scores, score_pass, scoring_key, unpack
from service.scores import DEFINITIONS, p_value_column
from service.settings import Settings, settings_for

CONCURRENCY, PATIENCE_S = 4, 600.0  # of a service, where nothing else is wanted
HELLO_S = 30.0  # that a service may take to say what it serves

Array = npt.NDArray[Any]


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

    def check(self, rows: RowFile) -> None:  # noqa: B027 (most have nothing to do)
        """Raise UsageError for a file that it cannot read."""

    def prepare(self) -> None:  # noqa: B027 (as check)
        """What is not needed to look at files, and takes time."""

    def results(self, rows: RowFile, start: int) -> Generator[Result, None, None]:
        """What comes of all rows of a file from the batch on that begins with row ``start``, in their order."""
        return results_of(rows.batches(start), self.score, self.concurrency)

    @abstractmethod
    def score(self, rows: Array) -> dict[str, Array]:
        """Answers for rows (K, *shape), K > 0, by name: (K,) each; of all calls the same names."""

    def close(self) -> None:  # noqa: B027 (as check)
        """Give up what is under way."""


class EngineTarget(Target):
    """An artifact, on this machine's device. ``cache_dir`` keeps its plans where GLOW_CACHE_DIR names no folder.

    ``settings`` are those of the environment where none are given.
    On a CPU every call takes one thread, and so many run at once as there are cores, or as GLOW_THREADS says: unlike
    the threads of one pass they do not wait for each other, and reading and writing take no more than their share.
    Raises ArtifactError.
    """

    def __init__(
        self,
        artifact: Path,
        cache_dir: Path | None,
        scores: str | None = None,
        reproducible: bool = False,
        settings: Settings | None = None,
    ) -> None:
        settings = settings or settings_for(artifact)
        self.concurrency = settings.threads or available_cpus()
        if choose_device(settings.device) == "cuda":
            self.concurrency = 1
        changes = {"models": [artifact], "threads": 1, "cache_dir": settings.cache_dir or cache_dir}
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
        self._catalog.prepare(self._key.reproducible)

    def score(self, rows: Array) -> dict[str, Array]:
        scored = unpack(self._key, score_pass(self._key, rows))
        return scored.columns(self._manifest.scoring.default, self._names)


class ServiceTarget(Target):
    """A model of a running service, asked in binary by ``concurrency`` threads.

    What GlowClient asks again is asked again, for ``patience_s`` a batch. Raises TargetError.
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
        try:
            self._client = GlowClient(url, timeout=patience_s, retries=None, concurrency=1, max_rows=BATCH_ROWS)
        except InvalidRequest as error:
            raise TargetError(str(error)) from error
        try:
            self._read_signature(model, min(patience_s, HELLO_S))
        except BaseException:
            self.close()
            raise
        self.answers = _answer_names(scores, self.num_calibration is not None)
        self._scores = scores
        self._reproducible = reproducible

    def _read_signature(self, model: str | None, patience_s: float) -> None:
        """Ask what the model takes, and how it is calibrated."""
        try:
            about = self._client.model(model, timeout=patience_s)
        except GlowError as error:
            elsewhere = isinstance(error, NotFound) and error.request_id is None
            hint = "; this is no Glow service, or not the address of its root" if elsewhere else ""
            raise self._failure(error, hint) from error
        try:
            self.signature = Signature.model_validate(
                {key: about[key] for key in Signature.model_fields if key in about}
            )
            calibration = about.get("calibration")
            self.alpha = None if calibration is None else float(calibration["alpha"])
            self.num_calibration = None if calibration is None else int(calibration["rows"])
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise TargetError(f"{self._client.address}: has no model of a Glow service") from error
        self.calibration = "none"
        if calibration is not None:  # its threshold and its summary tell the scores that it has
            text = json.dumps(calibration, sort_keys=True)
            self.calibration = f"of the service, {hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def score(self, rows: Array) -> dict[str, Array]:
        """Answers of the version that ``signature`` has, whichever answers for the name by now."""
        reference = f"{self.signature.name}@{self.signature.version}"
        try:
            scored = self._client.log_likelihood(
                rows, model=reference, scores=self._scores, reproducible=self._reproducible
            )
        except GlowError as error:
            raise self._failure(error) from error
        # Without is_anomaly, which is of the request alone and follows from p_value.
        return {name: column for name, column in scored.columns().items() if name in self.answers}

    def _failure(self, error: GlowError, hint: str = "") -> TargetError:
        """An error that tells which service it is of, once."""
        address, text = self._client.address, f"{error}{hint}"
        return TargetError(text if address in text else f"{address}: {text}")

    def close(self) -> None:
        self._client.close()


def _answer_names(scores: str | None, calibrated: bool) -> set[str]:
    """Names that answers may have; of all scores, more than one model has."""
    named = [*DEFINITIONS] if scores == "all" else scores.split(",") if scores else []
    default = {"score", "p_value"} if calibrated else set()
    return {"log_likelihood", "bits_per_dim", *default, *named, *map(p_value_column, named)}
