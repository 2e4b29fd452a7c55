"""The engine: verified models on a device, each run by the plans that are fastest there."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from service.artifact import ArtifactError, Manifest, Operation, open_artifact
from service.errors import OutOfMemory
from service.machine import available_cpus, is_out_of_memory, keep_freed_memory
from service.plans import Schedule, locked, schedules_of, warm_up
from service.row_queue import Room
from service.runner import CPU_FORMS, CUDA_FORMS, Form, Plan, Runner
from service.scores import ScoreName
from service.settings import Settings

Array = npt.NDArray[Any]

# A forward pass of one fixed size and plan gives a row the same bits whatever its neighbours are.
CANONICAL_ROWS = {"image": 16, "vector": 256}
CANONICAL_FORMS: dict[str, tuple[Form, ...]] = {"cpu": ("packed", "channels_last", "frozen"), "cuda": ("frozen",)}
MEASURING_S = 15.0  # for the plans of all models, at every start
MEASURING_ONCE_S = 45.0  # the same where a cache keeps them

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassKey:
    """What rows must have in common to share a forward pass."""

    model: str
    operation: Operation
    reproducible: bool = False
    scores: tuple[ScoreName, ...] = ()  # that are made of its outputs


class Engine:
    """Verified models by name. ``warm_up`` once, then ``run``, both from one thread at a time.

    Passes of one thread on the CPU share nothing: with ``threads`` = 1, ``run`` may be called from several at once.

    Raises ArtifactError for an artifact that fails its checks, a name served twice, a default or a device not there.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.device = torch.device(choose_device(settings.device))
        # TF32 keeps 10 bits of a product's factors: enough to train, not to tell likelihoods apart.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._threads = settings.threads or max(1, available_cpus() // settings.workers)
        # Plans set their own, on the engine's thread. If this one had helpers as well, there would be more threads than
        # cores, and OpenMP would put them to sleep between any two operations: passes took up to four times as long.
        torch.set_num_threads(1)
        keep_freed_memory()
        self._forms = choose_forms(settings.plan, self.device)
        self._runners: dict[str, Runner] = {}
        self._schedules: dict[tuple[str, Operation], Schedule] = {}
        self._halving = threading.Lock()
        self._canonical: dict[str, Canonical] = {}
        for path in find_artifacts(settings.models):
            artifact = open_artifact(path)
            name = artifact.manifest.name
            if name in self._runners:
                raise ArtifactError(f"two artifacts are named {name!r}; a name must be served once")
            self._runners[name] = Runner(artifact, self.device)
        self._runners = dict(sorted(self._runners.items()))
        self.default = self._choose_default(settings.default_model)
        served = ", ".join(f"{name}@{manifest.version}" for name, manifest in self.manifests.items())
        logger.info("serving %s on %s, %d threads", served, self.device, self._threads)

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Served models by name."""
        return {name: runner.manifest for name, runner in self._runners.items()}

    def _choose_default(self, wanted: str | None) -> str:
        if wanted is None:
            return "fashion-mnist" if "fashion-mnist" in self._runners else next(iter(self._runners))
        if wanted not in self._runners:
            raise ArtifactError(f"GLOW_DEFAULT_MODEL is {wanted!r}, but only {', '.join(self._runners)} are served")
        return wanted

    def warm_up(self, reproducible_only: bool = False) -> None:
        """Choose every model's plans and run them until nothing is left to compile.

        ``reproducible_only`` measures nothing, which takes a second or two; other passes then do not run. Raises
        ArtifactError for a model whose golden case no plan reproduces.
        """
        if self._schedules:  # an application that is started again
            return
        settings = self._settings
        deadline = time.monotonic() + (MEASURING_ONCE_S if settings.cache_dir else MEASURING_S)
        for done, (name, runner) in enumerate(self._runners.items()):
            with locked(settings.cache_dir):
                canonical = self._canonical[name] = self._choose_canonical(runner)
            passes = {(operation, canonical.rows, canonical.plan) for operation in runner.manifest.operations}
            if reproducible_only:
                runner.keep(passes)
                continue
            left = (deadline - time.monotonic()) / (len(self._runners) - done)
            schedules = schedules_of(
                runner, self._forms, self._threads, settings.max_batch_rows, settings.cache_dir, left
            )
            for operation, schedule in schedules.of.items():
                self._schedules[name, operation] = schedule
                schedule.begin(1)  # counts the ways to cover rows now, rather than at the first request
                passes |= {(operation, bucket.rows, bucket.plan) for bucket in schedule.buckets}
            runner.keep(passes)

    def room(self, call: PassKey, waiting: int) -> Room:
        """Rows that one call of ``run`` should have, given how many wait: those of the first pass that they would take.

        The rest is better off with what comes meanwhile. Reproducible passes are of one size; a call has some of them.
        """
        schedule = self._schedules[call.model, "statistics" if call.operation == "log_prob_map" else call.operation]
        if not call.reproducible:
            return Room(schedule.begin(waiting), schedule.brief)
        canonical = self._canonical[call.model].rows
        return Room(*(max(1, rows // canonical) * canonical for rows in (schedule.largest, schedule.brief)))

    def run(self, call: PassKey, rows: Array) -> tuple[Array, ...]:
        """One operation over any number of rows: statistics -> ((B, S),), encode -> (z, log_prob), decode -> (x,).

        log_prob_map -> (map,), (B, H, W) of an image model, has no schedule of its own: it is always reproducible.
        A pass that does not fit into memory is tried once more, in halves where the answer need not be reproducible.
        Raises OutOfMemory where that does not fit either; smaller requests are then still answered.
        """
        schedule = None if call.reproducible else self._schedules[call.model, call.operation]
        try:
            return self._run(call, rows, schedule)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler, whose traceback holds on to the tensors of the failed pass.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if schedule is not None:  # reproducible passes are of one size, or their bits were others
            schedule = self._halved(call, schedule)
        try:
            return self._run(call, rows, schedule)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise OutOfMemory(f"no memory for {len(rows)} rows of {call.model}; send fewer, or come back")

    def _halved(self, call: PassKey, failed: Schedule) -> Schedule:
        """Do without the largest bucket of what failed from now on, unless another thread has seen to it."""
        key = call.model, call.operation
        with self._halving:
            if self._schedules[key] is failed:
                self._schedules[key] = failed.below(failed.largest)
                logger.error(
                    "out of memory in a pass of %d rows of %s; none so large from now on", failed.largest, call
                )
            return self._schedules[key]

    def _run(self, call: PassKey, rows: Array, schedule: Schedule | None) -> tuple[Array, ...]:
        """Run by a schedule; for None by the one pass that is reproducible."""
        runner = self._runners[call.model]
        if schedule is None:
            canonical = self._canonical[call.model]
            passes = [(canonical.rows, canonical.plan)] * -(-len(rows) // canonical.rows)
        else:
            passes = [(bucket.rows, bucket.plan) for bucket in schedule.cover(len(rows))]
        parts: list[tuple[Array, ...]] = []
        start = 0
        for num_rows, plan in passes:
            part = rows[start : start + num_rows]
            outputs = runner.run(call.operation, plan, _filled_up(part, num_rows))
            parts.append(tuple(output[: len(part)] for output in outputs))
            start += num_rows
        return parts[0] if len(parts) == 1 else tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def _choose_canonical(self, runner: Runner) -> Canonical:
        """Take the first form that answers rightly here, and warm it up; unmeasured, so that it is always the same."""
        manifest, faults = runner.manifest, []
        for form in CANONICAL_FORMS[self.device.type]:
            canonical = Canonical(CANONICAL_ROWS[manifest.kind], Plan(form, self._threads))
            passes = [(operation, num_rows) for operation in manifest.operations for num_rows in (1, canonical.rows)]
            fault = next(filter(None, (warm_up(runner, what, canonical.plan, rows) for what, rows in passes)), None)
            if fault is None:
                return canonical
            faults.append(f"{form}: {fault}")
        raise ArtifactError(f"{manifest.name}: golden case on {self.device}: {'; '.join(faults)}")


@dataclass(frozen=True)
class Canonical:
    """The one pass that answers what has to be reproducible."""

    rows: int
    plan: Plan


def _filled_up(rows: Array, num_rows: int) -> Array:
    """Rows, contiguous, with copies of the last one up to so many."""
    if len(rows) < num_rows:
        rows = np.concatenate([rows, np.repeat(rows[-1:], num_rows - len(rows), 0)])
    return np.ascontiguousarray(rows)


def find_artifacts(paths: list[Path]) -> list[Path]:
    """Expand folders to the artifacts in them. Raises ArtifactError where there is none."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        if not inside:
            raise ArtifactError(f"{path}: holds no artifact (*.pt)")
        found += inside
    return found


def choose_device(wanted: str) -> str:
    """Resolve ``auto``. Raises ArtifactError where a GPU is wanted and none is there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ArtifactError("GLOW_DEVICE is 'cuda', but torch finds no GPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def choose_forms(wanted: str, device: torch.device) -> tuple[Form, ...]:
    """Resolve ``auto`` to all forms of a device. Raises ArtifactError for a form that the device does not have."""
    forms = CUDA_FORMS if device.type == "cuda" else CPU_FORMS
    if wanted == "auto":
        return forms
    chosen = tuple(form for form in forms if form == wanted)
    if not chosen:
        raise ArtifactError(f"GLOW_PLAN is {wanted!r}, but {device} has {', '.join(forms)}")
    return chosen
