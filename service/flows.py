"""The four operations, awaitable: what is asked of a model, in rows for the batcher."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from service import noise, scores
from service.artifact import Manifest, Operation
from service.batcher import Batcher, Pass
from service.engine import Engine, PassKey
from service.errors import ModelNotFound, TooLarge, Unprocessable
from service.metrics import Metrics
from service.row_queue import Array, Arrays
from service.settings import Settings


@dataclass(slots=True)
class Budget:
    """What a request may cost, and what it has cost; seconds, the deadline one of ``time.perf_counter``."""

    deadline: float = math.inf
    num_rows: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


class Flows:
    """Served models, their engine and its batcher; ``start`` warms them up."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics) -> None:
        self.settings = settings
        self.default = engine.default  # the model that answers when none is named
        self.manifests = engine.manifests  # by name
        self._engine = engine
        self._metrics = metrics
        self._batcher: Batcher[PassKey] = Batcher(
            self._compute, engine.room, settings.max_queue_rows, prepare=engine.warm_up, observe=self._observe
        )

    async def start(self) -> None:
        """Warm the models up. Raises ArtifactError for one that does not answer rightly here."""
        await self._batcher.start()

    @property
    def has_stopped(self) -> bool:
        """Whether the engine takes no more work."""
        return self._batcher.closed

    async def close(self) -> None:
        """Finish queued work and stop the engine's thread."""
        await self._batcher.close()

    def manifest(self, name: str | None) -> Manifest:
        """Find a model, the default one for None. Raises ModelNotFound."""
        try:
            return self.manifests[self.default if name is None else name]
        except KeyError:
            raise ModelNotFound(f"no model {str(name)[:100]!r}; served are {', '.join(self.manifests)}") from None

    async def score(
        self,
        budget: Budget,
        manifest: Manifest,
        x: Array,
        alpha: float | None = None,
        fdr: float | None = None,
        reproducible: bool = False,
        num_noise: int = 0,
        noise_seed: int = 0,
    ) -> dict[str, Any]:
        """``log_likelihood``, ``bits_per_dim`` and, calibrated, ``score``, ``p_value``, ``is_anomaly`` and ``alpha``.

        Given ``fdr``, rows are flagged by Benjamini-Hochberg at that level, which then stands in place of ``alpha``.
        With ``num_noise`` = K > 0 the log-likelihood is log mean_k p(x + u_k) under uniform noise; score and p-value
        keep to the deterministic log p(x), which is what the calibration rows were scored with.
        """
        self._check_level(manifest, alpha, fdr)
        self.check_rows(len(x) * (1 + num_noise), "rows, dequantization samples counted,")
        log_likelihood, bits, *calibrated = await self._run(budget, manifest, "log_prob", x, reproducible)
        if num_noise:
            noisy = await asyncio.to_thread(_dequantize, x, manifest, num_noise, noise_seed)
            noisy_log_likelihood = await self.log_likelihood(budget, manifest, noisy, reproducible)
            log_likelihood = scores.log_mean_exp(noisy_log_likelihood.reshape(len(x), num_noise))
            bits = scores.bits_per_dim(log_likelihood, manifest.num_dims)
        values = {"log_likelihood": log_likelihood, "bits_per_dim": bits}
        if manifest.calibration is None:
            return values
        score, p_value = calibrated
        values |= {"score": score, "p_value": p_value}
        if fdr is not None:
            flagged = await asyncio.to_thread(scores.benjamini_hochberg, p_value, fdr)
            return {**values, "is_anomaly": flagged, "fdr": fdr}
        alpha = manifest.calibration.alpha if alpha is None else alpha
        return {**values, "is_anomaly": p_value <= alpha, "alpha": alpha}

    async def encode(
        self, budget: Budget, manifest: Manifest, x: Array, reproducible: bool = False
    ) -> tuple[Array, Array]:
        """Latent codes (B, D) and log-likelihoods."""
        self.check_rows(len(x), "rows")
        latents, log_likelihood = await self._run(budget, manifest, "encode", x, reproducible)
        return latents, log_likelihood

    async def decode(self, budget: Budget, manifest: Manifest, latents: Array, reproducible: bool = False) -> Array:
        """Inputs (B, *shape) of latent codes (B, D)."""
        self.check_rows(len(latents), "rows")
        (outputs,) = await self._run(budget, manifest, "decode", latents, reproducible)
        return outputs

    async def sample(self, budget: Budget, manifest: Manifest, num: int, temperature: float, seed: int) -> Array:
        """Draw samples decode(temperature * eps), eps ~ N(0, I), bit for bit the same for the same seed."""
        self.check_rows(num, "samples")
        eps = await asyncio.to_thread(noise.latent_noise, seed, num, manifest.num_dims)
        return await self.decode(budget, manifest, eps * np.float32(temperature), reproducible=True)

    async def log_likelihood(self, budget: Budget, manifest: Manifest, x: Array, reproducible: bool = False) -> Array:
        """Deterministic log p(x) alone."""
        log_likelihood, *_ = await self._run(budget, manifest, "log_prob", x, reproducible)
        return log_likelihood

    async def _run(
        self, budget: Budget, manifest: Manifest, operation: Operation, rows: Array, reproducible: bool
    ) -> Arrays:
        call = PassKey(manifest.name, operation, reproducible)
        patience_s = min(budget.deadline - time.perf_counter(), self.settings.max_wait_s)
        if budget.compute_s:  # what has been computed for it must not have been in vain
            patience_s = math.inf
        answer = await self._batcher.submit(call, rows, patience_s)
        budget.queue_s += answer.queue_s
        budget.compute_s += answer.compute_s
        return answer.outputs

    def _compute(self, call: PassKey, rows: Array) -> Arrays:
        """Run the engine; where it scores, answer for all requests of the pass at once what follows from its scores."""
        outputs = self._engine.run(call, rows)
        if call.operation != "log_prob":
            return outputs
        manifest = self.manifests[call.model]
        (log_likelihood,) = outputs
        bits = scores.bits_per_dim(log_likelihood, manifest.num_dims)
        if manifest.calibration is None:
            return log_likelihood, bits
        score = scores.negative_log_likelihood(log_likelihood)
        return log_likelihood, bits, score, scores.p_values(score, manifest.calibration.array)

    def _observe(self, done: Pass[PassKey]) -> None:
        self._metrics.computed(done.key.model, done.key.operation, done)

    def check_rows(self, num: int, what: str) -> None:
        """Raise TooLarge where a request has more rows than one may."""
        limit = self.settings.max_request_rows
        if num > limit:
            raise TooLarge(f"{num} {what} are over the limit of {limit} a request (GLOW_MAX_REQUEST_ROWS)")

    def _check_level(self, manifest: Manifest, alpha: float | None, fdr: float | None) -> None:
        """Raise Unprocessable for both levels at once, for one without p-values, and for one below all of them."""
        if alpha is not None and fdr is not None:
            raise Unprocessable("alpha and fdr are two ways to flag rows; give one of them")
        for name, level in (("alpha", alpha), ("fdr", fdr)):
            if level is None:
                continue
            if manifest.calibration is None:
                raise Unprocessable(f"{name}: model {manifest.name} is not calibrated, so it has no p-values")
            rows = len(manifest.calibration.values)
            smallest = scores.smallest_p_value(rows)
            if level < smallest:
                raise Unprocessable(
                    f"{name} must be at least {smallest:.6g}, the smallest p-value of {rows} calibration rows"
                )


def _dequantize(x: Array, manifest: Manifest, num_noise: int, seed: int) -> Array:
    """Repeat every row K times with uniform noise on what is quantized: (B * K, *shape)."""
    flat = x.reshape(len(x), 1, -1).astype(np.float64)
    noisy = flat + manifest.quantized * noise.dequantization_noise(seed, len(x), num_noise, flat.shape[2])
    return noisy.astype(x.dtype).reshape(-1, *x.shape[1:])
