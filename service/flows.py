"""The four operations, awaitable: what is asked of a model, in rows for the batcher."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service import noise, scores
from service.artifact import Manifest, Operation
from service.batcher import Arrays, Batcher
from service.engine import Call, Engine
from service.errors import ModelNotFound, TooLarge, Unprocessable
from service.settings import Settings

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scored:
    """Answers to a scoring request, one entry a row; the last four only from a calibrated artifact."""

    log_likelihood: Array
    bits_per_dim: Array
    score: Array | None = None
    p_value: Array | None = None
    is_anomaly: Array | None = None
    alpha: float | None = None


class Flows:
    """Served models, their engine and its batcher; exists once the engine is warm."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self._engine = engine
        self._batcher: Batcher[Call] = Batcher(
            engine.run, engine.max_rows, settings.max_queue_rows, prepare=engine.warm_up
        )
        self._batcher.start()

    def close(self) -> None:
        """Finish queued work and stop the engine's thread."""
        self._batcher.close()

    @property
    def default(self) -> str:
        """Name of the model that answers when none is named."""
        return self._engine.default

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Served models by name."""
        return self._engine.manifests

    def manifest(self, name: str | None) -> Manifest:
        """Find a model, the default one for None. Raises ModelNotFound."""
        try:
            return self.manifests[self.default if name is None else name]
        except KeyError:
            raise ModelNotFound(f"no model of that name; served are {', '.join(self.manifests)}") from None

    async def score(
        self, manifest: Manifest, x: Array, alpha: float | None, reproducible: bool, num_noise: int, noise_seed: int
    ) -> Scored:
        """Log-likelihoods, and p-values where the artifact is calibrated.

        With ``num_noise`` = K > 0 the log-likelihood is log mean_k p(x + u_k) under uniform noise; score and p-value
        keep to the deterministic log p(x), which is what the calibration rows were scored with.
        """
        alpha = self._alpha(manifest, alpha)
        self.check_rows(len(x) * (1 + num_noise), "rows, dequantization samples counted,")
        (log_likelihood,) = await self._run(manifest, "log_prob", x, reproducible)
        score = scores.negative_log_likelihood(log_likelihood)
        if num_noise:
            noisy = await asyncio.to_thread(_dequantize, x, manifest, num_noise, noise_seed)
            (noisy_log_likelihood,) = await self._run(manifest, "log_prob", noisy, reproducible)
            log_likelihood = scores.log_mean_exp(noisy_log_likelihood.reshape(len(x), num_noise))
        bits = scores.bits_per_dim(log_likelihood, manifest.num_dims)
        if manifest.calibration is None:
            return Scored(log_likelihood, bits)
        p_value = scores.p_values(score, manifest.calibration.array)
        return Scored(log_likelihood, bits, score, p_value, p_value <= alpha, alpha)

    async def encode(self, manifest: Manifest, x: Array, reproducible: bool) -> tuple[Array, Array]:
        """Latent codes (B, D) and log-likelihoods."""
        self.check_rows(len(x), "rows")
        latents, log_likelihood = await self._run(manifest, "encode", x, reproducible)
        return latents, log_likelihood

    async def decode(self, manifest: Manifest, latents: Array, reproducible: bool) -> Array:
        """Inputs (B, *shape) of latent codes (B, D)."""
        self.check_rows(len(latents), "rows")
        (outputs,) = await self._run(manifest, "decode", latents, reproducible)
        return outputs

    async def sample(self, manifest: Manifest, num: int, temperature: float, seed: int) -> Array:
        """Draw samples decode(temperature * eps), eps ~ N(0, I), bit for bit the same for the same seed."""
        self.check_rows(num, "samples")
        eps = await asyncio.to_thread(noise.latent_noise, seed, num, manifest.num_dims)
        return await self.decode(manifest, eps * np.float32(temperature), reproducible=True)

    async def log_likelihood(self, manifest: Manifest, x: Array, reproducible: bool) -> Array:
        """Deterministic log p(x) alone."""
        (log_likelihood,) = await self._run(manifest, "log_prob", x, reproducible)
        return log_likelihood

    async def _run(self, manifest: Manifest, operation: Operation, rows: Array, reproducible: bool) -> Arrays:
        return await self._batcher.submit(Call(manifest.name, operation, reproducible), rows)

    def check_rows(self, num: int, what: str) -> None:
        """Raise TooLarge where a request has more rows than one may."""
        limit = self.settings.max_request_rows
        if num > limit:
            raise TooLarge(f"{num} {what} are over the limit of {limit} a request (GLOW_MAX_REQUEST_ROWS)")

    def _alpha(self, manifest: Manifest, alpha: float | None) -> float:
        calibration = manifest.calibration
        if calibration is None:
            if alpha is not None:
                raise Unprocessable(f"alpha: model {manifest.name} is not calibrated, so it has no p-values")
            return 0.0
        smallest = scores.smallest_p_value(len(calibration.values))
        if alpha is not None and alpha < smallest:
            rows = len(calibration.values)
            raise Unprocessable(
                f"alpha must be at least {smallest:.6g}, the smallest p-value of {rows} calibration rows"
            )
        return calibration.alpha if alpha is None else alpha


def _dequantize(x: Array, manifest: Manifest, num_noise: int, seed: int) -> Array:
    """Repeat every row K times with uniform noise on what is quantized: (B * K, *shape)."""
    flat = x.reshape(len(x), 1, -1).astype(np.float64)
    noisy = flat + manifest.quantized * noise.dequantization_noise(seed, len(x), num_noise, flat.shape[2])
    return noisy.astype(x.dtype).reshape(-1, *x.shape[1:])
