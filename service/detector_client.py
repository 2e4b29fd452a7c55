"""An outlier detector whose flow runs in a service: the methods of ``model.detector.GlowDetector`` over HTTP.

It needs httpx and numpy only, the base install.
"""

from __future__ import annotations

import io
import math
import time
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from service.http_answers import error_of, retry_after_s
from service.scores import FloatArray, OutlierMethod, outlier_share

MAX_REQUEST_ROWS = 4096  # what a service takes by default
_MAX_REQUEST_VALUES = 2**22  # 32 MiB of float64
_LONGEST_WAIT_S = 60.0  # between two tries


class RemoteDetector:
    """A fitted detector: a model that a service serves, with the calibration that its artifact has.

    Rows are arrays, (N, D) or images (N, C, H, W), or data frames (pandas, polars, pyarrow) whose columns are found by
    name in any order; categories are given by name or by code. Many rows become several requests. A busy service is
    asked again after its ``Retry-After``. As a context manager, it closes its connections at the end.

    Parameters:
        service: its address, or an httpx.Client with that ``base_url`` and headers and timeouts of your own.
        model: name of the model; the service's default one if None.
        retries: times that a busy service (429, 503) is asked again.

    Attributes: ``model``, ``alpha``, ``approximate_``, ``threshold_``, ``offset_``, as of the detector.

    Raises ValueError for what the service refuses as wrong, and for a model without a calibration; else httpx's errors.
    """

    def __init__(self, service: str | httpx.Client, model: str | None = None, *, retries: int = 8) -> None:
        self._owns_client = not isinstance(service, httpx.Client)
        self._client = service if isinstance(service, httpx.Client) else httpx.Client(base_url=service, timeout=120)
        self._retries = retries
        self.model: str = self._ask("GET", "/models")["default"] if model is None else model
        manifest = self._ask("GET", f"/models/{self.model}")
        self._columns = [column["name"] for column in manifest.get("columns", [])]
        if "calibration" not in manifest:
            raise ValueError(f"model {self.model} is not calibrated, so it cannot tell outliers")
        calibration = manifest["calibration"]
        self._summary: dict[str, float] = calibration["summary"]
        self.alpha: float = calibration["alpha"]
        self.approximate_: bool = calibration["approximate"]
        self.threshold_ = float(calibration["threshold"])
        self.offset_ = -self.threshold_

    def close(self) -> None:
        """Close the connections, but for those of a client that was given."""
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> RemoteDetector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score_samples(self, X: object) -> FloatArray:
        """Return minus the artifact's score, (N,): of tables log p, nats. Higher is more normal."""
        return -self._answers(X, "score")

    def decision_function(self, X: object) -> FloatArray:
        """Return ``score_samples(X) - offset_``: negative for outliers, (N,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: object) -> npt.NDArray[np.int64]:
        """Return -1 for outliers, the rows with a p-value of at most alpha, and 1 for all others: (N,)."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: object) -> FloatArray:
        """Return the share of calibration scores that are at least a row's own, (1 + #{s_i >= s}) / (m + 1): (N,)."""
        return self._answers(X, "p_value")

    def predict_proba(self, X: object, method: OutlierMethod = "linear") -> FloatArray:
        """Return PyOD's [P(normal), P(outlier)] of each row, (N, 2): a scale from 0 to 1, and no more than that."""
        return outlier_share(-self.score_samples(X), self._summary, method)

    def _answers(self, X: object, field: str) -> FloatArray:
        """Ask for the likelihood of all rows and gather one list of the answers."""
        rows = self._rows(X)
        step = max(1, min(MAX_REQUEST_ROWS, _MAX_REQUEST_VALUES // max(1, math.prod(rows.shape[1:]))))
        parts = [self._score(rows[start : start + step])[field] for start in range(0, max(1, len(rows)), step)]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    def _rows(self, X: Any) -> npt.NDArray[Any]:  # noqa: ANN401 (frames of any library)
        """Rows as one array; of a frame, the model's columns in their order. Mixed with text, one of objects."""
        if self._columns and hasattr(X, "columns"):
            values = [np.asarray(X[name]) for name in self._columns]
            numbers = all(column.dtype.kind in "biuf" for column in values)
            return np.stack([column.astype(np.float64 if numbers else object) for column in values], 1)
        return np.asarray(X)

    def _score(self, rows: npt.NDArray[Any]) -> dict[str, Any]:
        if rows.dtype.kind not in "biuf":  # names of categories
            return self._ask("POST", "/log-likelihood", json={"model": self.model, "inputs": rows.tolist()})
        buffer = io.BytesIO()
        np.save(buffer, rows.astype(np.uint8) if rows.dtype.kind == "b" else rows, allow_pickle=False)
        headers = {"content-type": "application/x-npy", "accept": "application/json"}
        return self._ask(
            "POST", "/log-likelihood", params={"model": self.model}, content=buffer.getvalue(), headers=headers
        )

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 (httpx's)
        for _ in range(self._retries):
            response = self._client.request(method, path, **request)
            if response.status_code not in (429, 503):
                break
            time.sleep(min(retry_after_s(response, 1.0), _LONGEST_WAIT_S))
        else:
            response = self._client.request(method, path, **request)
        if response.status_code in (400, 404, 413, 415, 422):
            raise ValueError(error_of(response))
        answer: dict[str, Any] = response.raise_for_status().json()
        return answer
