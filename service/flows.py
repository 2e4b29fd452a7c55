"""The four operations, awaitable: what is asked of a model, in rows for the batcher."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from service import explanations, noise, scores
from service.artifact import ArtifactError, Calibration, Manifest
from service.batcher import Batcher, Pass
from service.drift import Drift
from service.engine import Engine, PassKey
from service.errors import ModelNotFound, TooLarge, Unprocessable
from service.metrics import Metrics, shared_folder
from service.options import ScoreOptions
from service.row_queue import Array, Arrays
from service.scorer import chosen_scores, score_pass, scoring_key, unpack
from service.settings import Settings

_BLOCK_ROWS = 1024  # of an explanation, that wait for the engine at a time


@dataclass(slots=True)
class Budget:
    """What a request may cost, and what it has cost; seconds, the deadline one of ``time.perf_counter``."""

    deadline: float = math.inf
    num_rows: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


class Flows:
    """Served models, their engine and its batcher; ``start`` warms them up.

    Raises ArtifactError for a ``settings.alpha`` that is below all p-values of a model.
    """

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics) -> None:
        self.settings = settings
        self.default = engine.default  # the model that answers when none is named
        self.manifests = engine.manifests  # by name
        _check_setting(settings, self.manifests)
        self._engine = engine
        self._metrics = metrics
        self._drifts = metrics.drifts = _watch(engine.manifests, settings)
        self._alternatives: dict[str, Array] = {}  # what explanations try, by model
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

    def drift(self, manifest: Manifest) -> Drift:
        """What watches the scores of a model. Raises Unprocessable for one that is not calibrated."""
        try:
            return self._drifts[manifest.name]
        except KeyError:
            raise Unprocessable(
                f"model {manifest.name} is not calibrated, so there is nothing that its rows could have drifted from"
            ) from None

    async def score(self, budget: Budget, manifest: Manifest, x: Array, options: ScoreOptions) -> dict[str, Any]:
        """``log_likelihood``, ``bits_per_dim`` and, calibrated, ``score``, ``p_value``, ``is_anomaly`` and ``alpha``.

        ``score`` and ``p_value`` are those of the artifact's default score. With ``options.scores`` there are
        ``scores``, by name, and of those with a direction ``p_values``. Given ``fdr``, rows are flagged by
        Benjamini-Hochberg at that level, which then stands in place of ``alpha``. With ``dequantization`` of K > 0
        samples the log-likelihood is log mean_k p(x + u_k) under uniform noise; scores and p-values keep to the
        deterministic x, which is how the calibration rows were scored.
        """
        self._check_level(manifest, options)
        noisy = options.dequantization
        if options.explain:
            if noisy:
                raise Unprocessable("explain and dequantization exclude each other: noise has no contributions")
            self._check_explanations(manifest, len(x))
        reproducible = options.reproducible or options.explain
        num_noise = noisy.samples if noisy else 0
        self.check_rows(len(x) * (1 + num_noise), "rows, dequantization samples counted,")
        names = chosen_scores(manifest, options.scores)
        key = scoring_key(manifest, names, reproducible)
        scored = unpack(manifest, key, await self._run(budget, key, x))
        log_likelihood, bits = scored.log_likelihood, scored.bits_per_dim
        if noisy:
            copies = await asyncio.to_thread(_dequantize, x, manifest, noisy.samples, noisy.seed)
            of_copies = await self.log_likelihood(budget, manifest, copies, reproducible)
            log_likelihood = scores.log_mean_exp(of_copies.reshape(len(x), noisy.samples))
            bits = scores.bits_per_dim(log_likelihood, manifest.num_dims)
        values: dict[str, Any] = {"log_likelihood": log_likelihood, "bits_per_dim": bits}
        if manifest.calibration is not None:
            default = manifest.scoring.default
            p_value = scored.p_values[default]
            values |= {"score": scored.scores[default], "p_value": p_value}
            values |= await self._flag(p_value, manifest.calibration, options)
        if names:
            values["scores"] = {name: scored.scores[name] for name in names}
            if manifest.calibration is not None:
                values["p_values"] = {name: scored.p_values[name] for name in names if name in scored.p_values}
        if options.explain:
            values["contributions"] = await self._explain(budget, manifest, x, log_likelihood)
        if manifest.calibration is not None:  # once all is computed: a row that is asked for again must not count twice
            self._drifts[manifest.name].add(scored.scores[manifest.scoring.default])
        return values

    async def _flag(self, p_value: Array, calibration: Calibration, options: ScoreOptions) -> dict[str, Any]:
        if options.fdr is not None:
            flagged = await asyncio.to_thread(scores.benjamini_hochberg, p_value, options.fdr)
            return {"is_anomaly": flagged, "fdr": options.fdr}
        alpha = options.alpha or default_alpha(self.settings, calibration)
        if options.guarantee != "conditional":
            return {"is_anomaly": p_value <= alpha, "alpha": alpha}
        level = scores.conditional_level(alpha, calibration.num_rows)
        assert level is not None  # checked before anything was computed
        return {"is_anomaly": p_value <= level, "alpha": alpha, "level": level}

    async def encode(
        self, budget: Budget, manifest: Manifest, x: Array, reproducible: bool = False
    ) -> tuple[Array, Array]:
        """Latent codes (B, D) and log-likelihoods."""
        self.check_rows(len(x), "rows")
        latents, log_likelihood = await self._run(budget, PassKey(manifest.name, "encode", reproducible), x)
        return latents, log_likelihood

    async def decode(self, budget: Budget, manifest: Manifest, latents: Array, reproducible: bool = False) -> Array:
        """Inputs (B, *shape) of latent codes (B, D)."""
        self.check_rows(len(latents), "rows")
        (outputs,) = await self._run(budget, PassKey(manifest.name, "decode", reproducible), latents)
        return outputs

    async def sample(self, budget: Budget, manifest: Manifest, num: int, temperature: float, seed: int) -> Array:
        """Draw samples decode(temperature * eps), eps ~ N(0, I), bit for bit the same for the same seed."""
        self.check_rows(num, "samples")
        eps = await asyncio.to_thread(noise.latent_noise, seed, num, manifest.num_dims)
        return await self.decode(budget, manifest, eps * np.float32(temperature), reproducible=True)

    async def log_likelihood(self, budget: Budget, manifest: Manifest, x: Array, reproducible: bool = False) -> Array:
        """Deterministic log p(x) alone."""
        log_likelihood, *_ = await self._run(budget, PassKey(manifest.name, "statistics", reproducible), x)
        return log_likelihood

    async def _explain(self, budget: Budget, manifest: Manifest, x: Array, log_likelihood: Array) -> Array:
        """Nats that sum to -log p(x), the reproducible one: by pixel (B, H, W), or by column (B, D) of a table.

        Always in reproducible passes: a row's explanation does not depend on its neighbours.
        """
        if manifest.kind == "image":
            (log_prob_map,) = await self._run(budget, PassKey(manifest.name, "log_prob_map", True), x)
            return -log_prob_map
        if manifest.name not in self._alternatives:
            eps = await asyncio.to_thread(noise.latent_noise, 0, explanations.NUM_DRAWS, manifest.num_dims)
            (draws,) = await self._run(budget, PassKey(manifest.name, "decode", True), eps)
            self._alternatives[manifest.name] = explanations.alternatives(draws, manifest)
        return await explanations.explain(
            x,
            log_likelihood,
            self._alternatives[manifest.name],
            partial(self.log_likelihood, budget, manifest, reproducible=True),
            min(_BLOCK_ROWS, self.settings.max_queue_rows),
        )

    async def _run(self, budget: Budget, key: PassKey, rows: Array) -> Arrays:
        patience_s = min(budget.deadline - time.perf_counter(), self.settings.max_wait_s)
        if budget.compute_s:  # what has been computed for it must not have been in vain
            patience_s = math.inf
        answer = await self._batcher.submit(key, rows, patience_s)
        budget.queue_s += answer.queue_s
        budget.compute_s += answer.compute_s
        return answer.outputs

    def _compute(self, key: PassKey, rows: Array) -> Arrays:
        """Run the engine; where it scores, tell all requests of the pass at once what follows from its figures."""
        return score_pass(self._engine, key, rows) if key.operation == "statistics" else self._engine.run(key, rows)

    def _observe(self, done: Pass[PassKey]) -> None:
        self._metrics.computed(done.key.model, done.key.operation, done)

    def check_rows(self, num: int, what: str) -> None:
        """Raise TooLarge where a request has more rows than one may."""
        limit = self.settings.max_request_rows
        if num > limit:
            raise TooLarge(f"{num} {what} are over the limit of {limit} a request (GLOW_MAX_REQUEST_ROWS)")

    def _check_explanations(self, manifest: Manifest, num: int) -> None:
        """Raise TooLarge where explaining so many rows runs more rows through the model than one request may."""
        limit, each = self.settings.max_explanation_rows, explanations.num_passes(manifest)
        if num * each > limit:
            raise TooLarge(
                f"to explain {num} rows, {num * each} go through {manifest.name}, {each} each; over the limit of "
                f"{limit} a request (GLOW_MAX_EXPLANATION_ROWS)"
            )

    def _check_level(self, manifest: Manifest, options: ScoreOptions) -> None:
        """Raise Unprocessable for a level that can flag nothing, or not with the guarantee that is wanted."""
        if options.alpha is None and options.fdr is None and options.guarantee is None:  # as in most requests
            return
        calibration = manifest.calibration
        num_rows = None if calibration is None else calibration.num_rows
        check_level(manifest.name, num_rows, alpha=options.alpha, fdr=options.fdr, guarantee=options.guarantee)
        if calibration is None or options.guarantee != "conditional":
            return
        if calibration.approximate:
            raise Unprocessable(
                f"guarantee: {manifest.name} is calibrated by folds, for which there is only 'marginal'"
            )
        least = scores.smallest_conditional_alpha(calibration.num_rows)
        if (
            scores.conditional_level(options.alpha or default_alpha(self.settings, calibration), calibration.num_rows)
            is None
        ):
            raise Unprocessable(
                f"guarantee: with {num_rows} calibration rows, 'conditional' takes an alpha of at least {least!r}"
            )


def default_alpha(settings: Settings, calibration: Calibration) -> float:
    """What rows are flagged by where nobody says."""
    return settings.alpha or calibration.alpha


def check_level(model: str, num_calibration: int | None, **given: float | str | None) -> None:
    """Check what rows are to be flagged by: ``alpha`` with a ``guarantee``, or ``fdr``.

    Raises Unprocessable for both at once, for one without p-values, and for one below all of them.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    if "fdr" in wanted and len(wanted) > 1:
        raise Unprocessable("fdr is a way of its own to flag rows; give no alpha and no guarantee beside it")
    for name, value in wanted.items():
        if num_calibration is None:
            raise Unprocessable(f"{name}: model {model} is not calibrated, so it has no p-values")
        smallest = scores.smallest_p_value(num_calibration)
        if isinstance(value, float) and value < smallest:
            raise Unprocessable(
                f"{name} must be at least {smallest!r}, the smallest p-value of {num_calibration} calibration rows"
            )


def _check_setting(settings: Settings, manifests: dict[str, Manifest]) -> None:
    for manifest in manifests.values():
        if settings.alpha is None or manifest.calibration is None:
            continue
        smallest = scores.smallest_p_value(manifest.calibration.num_rows)
        if settings.alpha < smallest:
            raise ArtifactError(
                f"GLOW_ALPHA is {settings.alpha}, but must be at least {smallest!r}, the smallest p-value of "
                f"{manifest.name}"
            )


def _watch(manifests: dict[str, Manifest], settings: Settings) -> dict[str, Drift]:
    """A watch for the drift of each model that is calibrated, shared by all workers."""
    folder = shared_folder()
    return {
        name: Drift(
            name,
            manifest.calibration.arrays[manifest.scoring.default],
            settings.drift_delta,
            settings.drift_window,
            manifest.calibration.approximate,
            None if folder is None else folder / f"drift-{name}",
        )
        for name, manifest in manifests.items()
        if manifest.calibration is not None
    }


def _dequantize(x: Array, manifest: Manifest, num_noise: int, seed: int) -> Array:
    """Repeat every row K times with uniform noise on what is quantized: (B * K, *shape)."""
    flat = x.reshape(len(x), 1, -1).astype(np.float64)
    noisy = flat + manifest.quantized * noise.dequantization_noise(seed, len(x), num_noise, flat.shape[2])
    return noisy.astype(x.dtype).reshape(-1, *x.shape[1:])
