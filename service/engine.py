"""The engine: how models run on this machine, each by the plans that are fastest here."""

from __future__ import annotations

import itertools
import logging
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.machine import available_cpus, keep_freed_memory
from service.artifact import Artifact, ArtifactError, Operation, check_golden
from service.errors import OutOfMemory
from service.machine import is_out_of_memory
from service.plans import Measured, Schedule, Steps, locked, warm_up
from service.row_queue import Room
from service.runner import CPU_FORMS, CUDA_FORMS, Form, Plan, Runner
from service.scores import ScoreName
from service.settings import Settings

Array = npt.NDArray[Any]

# A forward pass of one fixed size and plan gives a row the same bits whatever its neighbours are.
CANONICAL_ROWS = {"image": 16, "vector": 256}
CANONICAL_FORMS: dict[str, tuple[Form, ...]] = {"cpu": ("packed", "channels_last", "frozen"), "cuda": ("frozen",)}
KEPT_BYTES = 2**26  # of what a pass frees, by each thread

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassKey:
    """What rows must have in common to share a forward pass."""

    model: Model  # itself, so that its rows are run by it whatever its name stands for by then
    operation: Operation
    reproducible: bool = False
    scores: tuple[ScoreName, ...] = ()  # that are made of its outputs


class Engine:
    """How models run on this machine: the device, threads, forms, and the plans measured so far.

    Raises ArtifactError for a device or a form that is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(choose_device(settings.device))
        # TF32 keeps 10 bits of a product's factors: enough to train, not to tell likelihoods apart.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.threads = settings.threads or max(1, available_cpus() // settings.workers)
        # Plans set their own, on the engine's thread. If this one had helpers as well, there would be more threads than
        # cores, and OpenMP would put them to sleep between any two operations: passes took up to four times as long.
        torch.set_num_threads(1)
        keep_freed_memory(KEPT_BYTES)
        self.forms = choose_forms(settings.plan, self.device)
        self.num_out_of_memory = 0  # calls of models for which memory did not suffice
        self.measured = Measured(self.forms, self.threads, settings.max_batch_rows, settings.cache_dir)


class Model:
    """A verified artifact and how it runs. ``warm_up`` once, then ``run``, both from one thread at a time.

    Passes of one thread on the CPU share nothing: with ``threads`` = 1, ``run`` may be called from several at once.
    """

    def __init__(self, artifact: Artifact, engine: Engine, origin: str) -> None:
        self.engine = engine
        self.manifest = artifact.manifest
        self.name = artifact.manifest.name
        self.version = artifact.manifest.version
        self.digest = artifact.digest
        self.reference = f"{self.name}@{self.version}"
        self._unchecked: tuple[Artifact, str] | None = artifact, origin
        self._runner = Runner(artifact, engine.device)
        self._schedules: dict[Operation, Schedule] = {}
        self._halving = threading.Lock()
        self._canonical: Canonical | None = None

    def check_golden(self) -> None:
        """Replay the golden case, once. Raises ArtifactError."""
        if self._unchecked is not None:
            check_golden(*self._unchecked)
            self._unchecked = None

    def warm_up(self, seconds: float, alone: bool = True, reproducible_only: bool = False) -> Steps[None]:
        """Check the model, choose plans and run them until nothing is left to compile.

        Other passes may run between the steps. So many ``seconds`` may go by before no larger passes are tried.
        ``alone`` keeps processes that share a cache from running while one measures. ``reproducible_only`` measures
        nothing, which takes a second or two; other passes then do not run. Raises ArtifactError where no plan
        reproduces the golden case.
        """
        if self._canonical is not None:  # an application that is started again
            return
        self.check_golden()
        yield
        with locked(self.engine.settings.cache_dir if alone else None):
            canonical = yield from self._choose_canonical()
        passes = {(operation, canonical.rows, canonical.plan) for operation in self.manifest.operations}
        if not reproducible_only:
            schedules = yield from self.engine.measured.schedules_of(self._runner, seconds, alone)
            for operation, schedule in schedules.of.items():
                self._schedules[operation] = schedule
                schedule.begin(1)  # counts the ways to cover rows now, rather than at the first request
                passes |= {(operation, bucket.rows, bucket.plan) for bucket in schedule.buckets}
        self._runner.keep(passes)
        self._canonical = canonical

    def room(self, operation: Operation, reproducible: bool, waiting: int) -> Room:
        """Rows that one call of ``run`` should have, given how many wait: those of the first pass that they would take.

        The rest is better off with what comes meanwhile. Reproducible passes are of one size; a call has some of them.
        """
        schedule = self._schedules["statistics" if operation == "log_prob_map" else operation]
        if not reproducible:
            return Room(schedule.begin(waiting), schedule.brief)
        assert self._canonical is not None
        canonical = self._canonical.rows
        return Room(*(max(1, rows // canonical) * canonical for rows in (schedule.largest, schedule.brief)))

    def slots(self, operation: Operation, reproducible: bool, num_rows: int) -> int:
        """Rows that the passes of such a call of ``run`` have, copies that fill them up counted."""
        if reproducible:
            assert self._canonical is not None
            return -(-num_rows // self._canonical.rows) * self._canonical.rows
        return sum(bucket.rows for bucket in self._schedules[operation].cover(num_rows))

    def run(self, operation: Operation, rows: Array, reproducible: bool = False) -> tuple[Array, ...]:
        """One operation over any number of rows: statistics -> ((B, S),), encode -> (z, log_prob), decode -> (x,).

        log_prob_map -> (map,), (B, H, W) of an image model, has no schedule of its own: it is always reproducible.
        Raises RuntimeError where the program fails or answers numbers that are not finite.
        A pass that does not fit into memory is tried once more, in halves where the answer need not be reproducible.
        Raises OutOfMemory where that does not fit either; smaller requests are then still answered.
        """
        schedule = None if reproducible else self._schedules[operation]
        try:
            return self._run(operation, rows, schedule)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self.engine.num_out_of_memory += 1
        # Outside of the handler, whose traceback holds on to the tensors of the failed pass.
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        if schedule is not None:  # reproducible passes are of one size, or their bits were others
            schedule = self._halved(operation, schedule)
        try:
            return self._run(operation, rows, schedule)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise OutOfMemory(f"no memory for {len(rows)} rows of {self.name}; send fewer, or come back")

    def _halved(self, operation: Operation, failed: Schedule) -> Schedule:
        """Do without the largest bucket of what failed from now on, unless another thread has seen to it."""
        with self._halving:
            if self._schedules[operation] is failed:
                self._schedules[operation] = failed.below(failed.largest)
                logger.error(
                    "out of memory in a pass of %d rows of %s of %s; none so large from now on",
                    failed.largest,
                    operation,
                    self.reference,
                )
            return self._schedules[operation]

    def _run(self, operation: Operation, rows: Array, schedule: Schedule | None) -> tuple[Array, ...]:
        """Run by a schedule; for None by the one pass that is reproducible."""
        if schedule is None:
            canonical = self._canonical
            assert canonical is not None
            passes = [(canonical.rows, canonical.plan)] * -(-len(rows) // canonical.rows)
        else:
            passes = [(bucket.rows, bucket.plan) for bucket in schedule.cover(len(rows))]
        parts: list[tuple[Array, ...]] = []
        start = 0
        for num_rows, plan in passes:
            part = rows[start : start + num_rows]
            outputs = self._runner.run(operation, plan, _filled_up(part, num_rows))
            if not all(np.isfinite(output).all() for output in outputs):  # which JSON could not even say
                raise RuntimeError(f"{operation} of {self.reference} answers numbers that are not finite")
            parts.append(tuple(output[: len(part)] for output in outputs))
            start += num_rows
        return parts[0] if len(parts) == 1 else tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def _choose_canonical(self) -> Steps[Canonical]:
        """Take the first form that answers rightly here, and warm it up; unmeasured, so that it is always the same."""
        manifest, engine, faults = self.manifest, self.engine, []
        for form in CANONICAL_FORMS[engine.device.type]:
            canonical = Canonical(CANONICAL_ROWS[manifest.kind], Plan(form, engine.threads))
            fault = None
            for operation, num_rows in itertools.product(manifest.operations, (1, canonical.rows)):
                fault = fault or warm_up(self._runner, operation, canonical.plan, num_rows)
                yield
            if fault is None:
                return canonical
            faults.append(f"{form}: {fault}")
        raise ArtifactError(f"{self.reference}: golden case on {engine.device}: {'; '.join(faults)}")


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
