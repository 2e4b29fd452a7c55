"""An outlier detector whose flow runs in a service: the methods of ``model.detector.GlowDetector`` over HTTP.

It needs httpx and numpy only, the base install.
"""

from __future__ import annotations

import httpx
import numpy as np
import numpy.typing as npt

from service.client import GlowClient, InvalidRequest
from service.scores import FloatArray, OutlierMethod, outlier_share


class RemoteDetector:
    """A fitted detector: a model that a service serves, with the calibration that its artifact has.

    Rows are what GlowClient takes: arrays, (N, D) or images (N, C, H, W), or records or data frames (pandas,
    polars, pyarrow) whose columns are found by name in any order; categories are given by name or by code. As a context
    manager, it closes its connections at the end.

    Parameters:
        service: its address, an httpx.Client with that ``base_url``, or a GlowClient, with the patience that it has.
        model: NAME or NAME@VERSION; a GlowClient's own, or the service's default, if None.
        retries: as of GlowClient, by one that is made here.

    Attributes: ``model``, ``alpha``, ``approximate_``, ``threshold_``, ``offset_``, as of the detector.

    Raises GlowError, which is a ValueError too for what the service refuses as wrong and for a model without a
    calibration.
    """

    def __init__(self, service: str | httpx.Client | GlowClient, model: str | None = None, *, retries: int = 8) -> None:
        self._owns_client = not isinstance(service, GlowClient)
        self._client = service if isinstance(service, GlowClient) else GlowClient(service, retries=retries)
        manifest = self._client.model(model)
        self.model: str = manifest["name"] if model is None else model
        self._reference = model
        if "calibration" not in manifest:
            raise InvalidRequest(f"model {self.model} is not calibrated, so it cannot tell outliers")
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
        return -self._scored(X)[0]

    def decision_function(self, X: object) -> FloatArray:
        """Return ``score_samples(X) - offset_``: negative for outliers, (N,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: object) -> npt.NDArray[np.int64]:
        """Return -1 for outliers, the rows with a p-value of at most alpha, and 1 for all others: (N,)."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: object) -> FloatArray:
        """Return the share of calibration scores that are at least a row's own, (1 + #{s_i >= s}) / (m + 1): (N,)."""
        return self._scored(X)[1]

    def predict_proba(self, X: object, method: OutlierMethod = "linear") -> FloatArray:
        """Return PyOD's [P(normal), P(outlier)] of each row, (N, 2): a scale from 0 to 1, and no more than that."""
        return outlier_share(-self.score_samples(X), self._summary, method)

    def _scored(self, X: object) -> tuple[FloatArray, FloatArray]:
        """Scores and p-values, (N,) each."""
        scores = self._client.log_likelihood(X, model=self._reference)
        if scores.score is None or scores.p_value is None:
            raise InvalidRequest(f"model {self.model} is not calibrated any more, so it cannot tell outliers")
        return scores.score, scores.p_value
