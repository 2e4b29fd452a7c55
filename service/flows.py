"""The four operations, awaitable: what is asked of a model, in rows for the batcher."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from service import explanations, noise, scores
from service.artifact import Calibration, Manifest
from service.batcher import Answer, Batcher, Pass
from service.catalog import Catalog
from service.drift import Drift
from service.engine import Model, PassKey
from service.errors import QueueFull, TooLarge, Unprocessable
from service.levels import check_options, check_settings, default_alpha
from service.metrics import Metrics
from service.options import Dequantization, ScoreOptions
from service.quota import TokenBucket
from service.row_queue import Array, Arrays
from service.scorer import chosen_scores, score_pass, scoring_key, unpack
from service.settings import Settings
from service.shared import shared_folder

if TYPE_CHECKING:
    from service.tracing import Trace, Tracer

_BLOCK_ROWS = 1024  # of an explanation, that wait for the engine at a time


@dataclass(slots=True)
class Budget:
    """What a request may cost, and what it has cost; seconds, the deadline one of ``time.perf_counter``."""

    deadline: float = math.inf
    num_rows: int = 0
    bucket: TokenBucket | None = None  # of the caller's key
    taken: int = 0  # rows, from it
    queue_s: float = 0.0
    compute_s: float = 0.0
    trace: Trace | None = None

    def give_back(self) -> None:
        """Return what was taken from the caller's quota for a request that nothing was computed for."""
        if self.bucket is not None and self.taken and not self.compute_s:
            self.bucket.give_back(self.taken)


class Flows:
    """Served models and the batcher of their engine; ``start`` warms them up, ``replace`` exchanges them.

    Raises ArtifactError for a ``settings.alpha`` that is below all p-values of a model, and for limits of a model that
    is not served.
    """

    def __init__(self, settings: Settings, catalog: Catalog, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self.settings = settings
        self.tracer = tracer
        self._metrics = metrics
        self._alternatives: WeakKeyDictionary[Model, Array] = WeakKeyDictionary()  # what explanations try
        self._rows: Counter[str] = Counter()  # under way, of models that have a limit of them
        self._drifts: dict[Model, Drift] = {}
        self._batcher: Batcher[PassKey] = Batcher(
            self._compute,
            lambda key, waiting: key.model.room(key.operation, key.reproducible, waiting),
            settings.max_queue_rows,
            prepare=lambda: self.catalog.prepare(),
            observe=self._observe,
            kind=lambda key: (key.model.reference, key.operation, key.reproducible, key.scores),
        )
        self._serve(catalog)

    async def start(self) -> None:
        """Warm the models up. Raises ArtifactError for one that does not answer rightly here."""
        await self._batcher.start()

    async def replace(self, catalog: Catalog) -> None:
        """Warm up what is new in another catalog, between passes of this one, and serve it instead.

        Requests under way end with the model that they began with. Raises ArtifactError, and changes nothing then.
        """
        check_settings(self.settings, catalog)
        await self._batcher.run_beside(catalog.warm_up(alone=False))
        self._serve(catalog)

    def _serve(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._drifts = {
            model: self._drifts.get(model) or _watch(model, self.settings)
            for model in catalog.models
            if model.manifest.calibration is not None
        }
        self._metrics.drifts = {(model.name, model.version): drift for model, drift in self._drifts.items()}

    @property
    def has_stopped(self) -> bool:
        """Whether the engine takes no more work."""
        return self._batcher.closed

    @property
    def busy_s(self) -> float:
        """Seconds that the engine has been at its pass; 0 between two."""
        return self._batcher.busy_s

    async def close(self) -> None:
        """Finish queued work and stop the engine's thread."""
        await self._batcher.close()

    def find(self, reference: str | None) -> Model:
        """Find a model by NAME or NAME@VERSION, the default one for None. Raises ModelNotFound."""
        return self.catalog.find(reference)

    def drift(self, model: Model) -> Drift:
        """What watches the scores of a model. Raises Unprocessable for one that is not calibrated."""
        try:
            return self._drifts[model]
        except KeyError:
            raise Unprocessable(
                f"model {model.name} is not calibrated, so there is nothing that its rows could have drifted from"
            ) from None

    async def score(self, budget: Budget, model: Model, x: Array, options: ScoreOptions) -> dict[str, Any]:
        """``log_likelihood``, ``bits_per_dim`` and, calibrated, ``score``, ``p_value``, ``is_anomaly`` and ``alpha``.

        ``score`` and ``p_value`` are those of the artifact's default score. With ``options.scores`` there are
        ``scores``, by name, and of those with a direction ``p_values``. Given ``fdr``, rows are flagged by
        Benjamini-Hochberg at that level, which then stands in place of ``alpha``. With ``dequantization`` of K > 0
        samples the log-likelihood is log mean_k p(x + u_k) under uniform noise; scores and p-values keep to the
        deterministic x, which is how the calibration rows were scored.
        """
        manifest = model.manifest
        check_options(self.settings, manifest, options)
        noisy = options.dequantization
        if options.explain and noisy:
            raise Unprocessable("explain and dequantization exclude each other: noise has no contributions")
        reproducible = options.reproducible or options.explain
        num_noise = noisy.samples if noisy else 0
        further = self._explanation_rows(manifest, len(x)) if options.explain else 0
        self._admit(budget, model, len(x) * (1 + num_noise), "rows, dequantization samples counted,", further)
        names = chosen_scores(manifest, options.scores)
        key = scoring_key(model, names, reproducible)
        scored = unpack(key, await self._run(budget, key, x))
        log_likelihood, bits = scored.log_likelihood, scored.bits_per_dim
        if noisy:
            copies = await asyncio.to_thread(_dequantize, x, manifest, noisy)
            of_copies = await self.log_likelihood(budget, model, copies, reproducible)
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
            values["contributions"] = await self._explain(budget, model, x, log_likelihood)
        if drift := self._drifts.get(model):  # once all is computed: a row that is asked for again must not count twice
            drift.add(scored.scores[manifest.scoring.default])
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

    async def encode(self, budget: Budget, model: Model, x: Array, reproducible: bool = False) -> tuple[Array, Array]:
        """Latent codes (B, D) and log-likelihoods."""
        self._admit(budget, model, len(x), "rows")
        latents, log_likelihood = await self._run(budget, PassKey(model, "encode", reproducible), x)
        return latents, log_likelihood

    async def decode(self, budget: Budget, model: Model, latents: Array, reproducible: bool = False) -> Array:
        """Inputs (B, *shape) of latent codes (B, D)."""
        self._admit(budget, model, len(latents), "rows")
        (outputs,) = await self._run(budget, PassKey(model, "decode", reproducible), latents)
        return outputs

    async def sample(
        self, budget: Budget, model: Model, num: int, temperature: float, seed: int, first: int = 0
    ) -> Array:
        """Draw samples decode(temperature * eps), eps ~ N(0, I), bit for bit the same for the same seed.

        They are those from ``first`` on of all that the seed has.
        """
        self._admit(budget, model, num, "samples")
        eps = await asyncio.to_thread(noise.latent_noise, seed, num, model.manifest.num_dims, first)
        (samples,) = await self._run(budget, PassKey(model, "decode", True), eps * np.float32(temperature))
        return samples

    async def log_likelihood(self, budget: Budget, model: Model, x: Array, reproducible: bool = False) -> Array:
        """Deterministic log p(x) alone."""
        log_likelihood, *_ = await self._run(budget, PassKey(model, "statistics", reproducible), x)
        return log_likelihood

    async def _explain(self, budget: Budget, model: Model, x: Array, log_likelihood: Array) -> Array:
        """Nats that sum to -log p(x), the reproducible one: by pixel (B, H, W), or by column (B, D) of a table.

        Always in reproducible passes: a row's explanation does not depend on its neighbours.
        """
        manifest = model.manifest
        if manifest.kind == "image":
            (log_prob_map,) = await self._run(budget, PassKey(model, "log_prob_map", True), x)
            return -log_prob_map
        if model not in self._alternatives:
            eps = await asyncio.to_thread(noise.latent_noise, 0, explanations.NUM_DRAWS, manifest.num_dims)
            (draws,) = await self._run(budget, PassKey(model, "decode", True), eps)
            self._alternatives[model] = explanations.alternatives(draws, manifest)
        return await explanations.explain(
            x,
            log_likelihood,
            self._alternatives[model],
            partial(self.log_likelihood, budget, model, reproducible=True),
            min(_BLOCK_ROWS, self.settings.max_queue_rows),
        )

    async def _run(self, budget: Budget, key: PassKey, rows: Array) -> Arrays:
        patience_s = min(budget.deadline - time.perf_counter(), self.settings.max_wait_s)
        if budget.compute_s:  # what has been computed for it must not have been in vain
            patience_s = math.inf
        limits = self.settings.model_limits.get(key.model.name)
        if limits is None or limits.max_queue_rows is None or budget.compute_s:
            answer = await self._batcher.submit(key, rows, patience_s, budget.trace)
        else:
            answer = await self._submit_within(limits.max_queue_rows, key, rows, patience_s, budget.trace)
        budget.queue_s += answer.queue_s
        budget.compute_s += answer.compute_s
        if budget.trace is not None:
            budget.trace.ran(answer)
        return answer.outputs

    async def _submit_within(
        self, limit: int, key: PassKey, rows: Array, patience_s: float, trace: Trace | None
    ) -> Answer:
        """Submit, unless that makes more rows of this model than it may have under way; those being computed count."""
        name = key.model.name
        if len(rows) > limit:
            raise TooLarge(f"{len(rows)} rows are more than {name} may have waiting, {limit} (GLOW_MODEL_LIMITS)")
        if self._rows[name] + len(rows) > limit:
            raise QueueFull(
                f"{self._rows[name]} rows of {name} are waiting and {len(rows)} more would exceed its {limit} "
                "(GLOW_MODEL_LIMITS)"
            )
        self._rows[name] += len(rows)
        try:
            return await self._batcher.submit(key, rows, patience_s, trace)
        finally:
            self._rows[name] -= len(rows)

    def _compute(self, key: PassKey, rows: Array) -> Arrays:
        """Run a pass; where it scores, tell all requests of it at once what follows from its figures."""
        model = key.model
        if key.operation != "statistics":
            return model.run(key.operation, rows, key.reproducible)
        outputs = score_pass(key, rows)
        if key.scores and model.manifest.calibration is not None:  # samples, and what explanations try, have none
            scored = unpack(key, outputs)
            p_values = scored.p_values[model.manifest.scoring.default]
            self._metrics.scored(model.name, model.version, scored.bits_per_dim, p_values)
        return outputs

    def _observe(self, done: Pass[PassKey]) -> None:
        key = done.key
        self._metrics.computed(
            key.model.name, key.operation, done, key.model.slots(key.operation, key.reproducible, done.num_rows)
        )
        if self.tracer is not None:
            self.tracer.passed(done)

    def check_rows(self, model: Model | None, num: int, what: str) -> None:
        """Raise TooLarge where a request has more rows than one may, of a model or of any."""
        limit, setting = self.settings.max_request_rows, "GLOW_MAX_REQUEST_ROWS"
        own = None if model is None else self.settings.model_limits.get(model.name)
        if own is not None and own.max_request_rows is not None and own.max_request_rows < limit:
            limit, setting = own.max_request_rows, "GLOW_MODEL_LIMITS"
        if num > limit:
            raise TooLarge(f"{num} {what} are over the limit of {limit} a request ({setting})")

    def _admit(self, budget: Budget, model: Model, num: int, what: str, further: int = 0) -> None:
        """Take rows, and ``further`` ones that they cause, from the caller's quota, if there is one.

        Raises TooLarge as ``check_rows``, and QuotaExceeded.
        """
        self.check_rows(model, num, what)
        if budget.bucket is not None:
            budget.bucket.take(num + further)
            budget.taken += num + further

    def _explanation_rows(self, manifest: Manifest, num: int) -> int:
        """Rows that explaining so many runs through the model. Raises TooLarge for more than one request may."""
        limit, each = self.settings.max_explanation_rows, explanations.num_passes(manifest)
        if num * each > limit:
            raise TooLarge(
                f"to explain {num} rows, {num * each} go through {manifest.name}, {each} each; over the limit of "
                f"{limit} a request (GLOW_MAX_EXPLANATION_ROWS)"
            )
        return num * each


def _watch(model: Model, settings: Settings) -> Drift:
    """Watch for the drift of a model that is calibrated, together with all workers."""
    folder, calibration = shared_folder(), model.manifest.calibration
    assert calibration is not None
    return Drift(
        model.name,
        calibration.arrays[model.manifest.scoring.default],
        settings.drift_delta,
        settings.drift_window,
        calibration.approximate,
        None if folder is None else folder / f"drift-{model.reference}",
    )


def _dequantize(x: Array, manifest: Manifest, options: Dequantization) -> Array:
    """Repeat every row K times with uniform noise on what is quantized: (B * K, *shape)."""
    flat = x.reshape(len(x), 1, -1).astype(np.float64)
    u = noise.dequantization_noise(options.seed, len(x), options.samples, flat.shape[2], options.first)
    noisy = flat + manifest.quantized * u
    return noisy.astype(x.dtype).reshape(-1, *x.shape[1:])
