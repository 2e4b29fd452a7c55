"""Plans: measured at start, for each operation and number of rows, which way of running a model is fastest here.

Rows run in passes of a few sizes, the buckets: every size is compiled for, recorded and checked once, and whatever is
asked for is covered by the buckets that take least time together, the last one filled up with copies of a row.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import logging
import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.files import write_whole
from service.artifact import OPERATIONS, ArtifactError, Operation, golden_fault, golden_rows
from service.artifact.torchscript import WARM_UP_CALLS
from service.machine import available_bytes, describe_machine, peak_bytes, reset_peak
from service.runner import Form, Plan, Runner

FORMAT = 5  # to be raised with every change of how forms are made, measured or kept: a version may see several
HOPELESS = {1: 3.0, 2: 1.5, 4: 1.2}  # times as slow as the best at so many rows or more: not measured any further
QUICK_S = 1e-3  # a pass that takes less tells what calls cost, not what arithmetic does: nothing is hopeless yet
ALIKE = 1.03  # times as slow as the best: the first of such plans is taken, so that few forms are kept
WORTH_THREADS = 1.5  # times as fast as one thread that several must be: they take cores from the event loop
WORTH_DOUBLING = 1.02  # rows/s that a bucket must gain over all smaller ones
SHARES = (0.5, 0.75, 1.0)  # of the time, by the end of each operation: the first tries all plans
BRIEF_S = 0.002  # what a small request may wait for a pass of large ones without noticing ...
BRIEF_TIMES = 4.0  # ... or so many times what its own takes, which several rows cost little more than
OVERHEAD_S = 1e-4  # of a call beside its pass: what two threads and the event loop do
MEMORY_SHARE = 0.5  # of what is available: the most that a pass may take

T = TypeVar("T")
Steps = Generator[None, None, T]  # work that can be interrupted between any two steps, and what comes of it

logger = logging.getLogger(__name__)


def finish(steps: Steps[T]) -> T:
    """Take all steps, one after the other."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


class Bucket(BaseModel):
    """A number of rows, the fastest plan for a pass of so many, and its seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(ge=1)
    form: Form
    threads: int = Field(ge=1)
    seconds: float = Field(gt=0)
    memory: int = Field(ge=0)  # bytes that it took, at least

    @property
    def plan(self) -> Plan:
        return Plan(self.form, self.threads)


class Schedule(BaseModel):
    """The buckets of one operation, from one row up to as many as run fastest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    buckets: Annotated[list[Bucket], Field(min_length=1)]

    @property
    def largest(self) -> int:
        return self.buckets[-1].rows

    @cached_property
    def brief(self) -> int:
        """Rows of the largest bucket that is over soon, for whoever waits for a pass of one row."""
        longest = max(BRIEF_S, BRIEF_TIMES * self.buckets[0].seconds)
        return max(bucket.rows for bucket in self.buckets if bucket.seconds <= longest)

    @cached_property
    def _first_bucket(self) -> list[int]:
        """For each number of rows up to the largest bucket, which one to begin with for the least time in all."""
        rows = np.array([bucket.rows for bucket in self.buckets])
        seconds = np.array([bucket.seconds for bucket in self.buckets])
        cost, first = np.zeros(self.largest + 1), np.zeros(self.largest + 1, np.int64)
        for left in range(1, self.largest + 1):
            totals = seconds + OVERHEAD_S + cost[np.maximum(left - rows, 0)]
            first[left] = totals.argmin()
            cost[left] = totals[first[left]]
        return first.tolist()

    @cached_property
    def _widest_bucket(self) -> list[int]:
        """The largest of the buckets that each number of rows takes."""
        widest = [0]
        for left, first in enumerate(self._first_bucket[1:], 1):
            rest = widest[max(0, left - self.buckets[first].rows)]
            widest.append(max(first, rest))
        return widest

    @cached_property
    def _best_bucket(self) -> Bucket:
        return max(self.buckets, key=lambda bucket: bucket.rows / bucket.seconds)

    def cover(self, num_rows: int) -> list[Bucket]:
        """Buckets for so many rows, the largest first; all but the last are full."""
        best = self._best_bucket
        full = max(0, -(-(num_rows - self.largest) // best.rows))
        passes, left = [best] * full, num_rows - full * best.rows
        rest: list[Bucket] = []
        while left > 0:
            rest.append(self.buckets[self._first_bucket[left]])
            left -= rest[-1].rows
        return passes + sorted(rest, key=lambda bucket: -bucket.rows)

    def begin(self, num_rows: int) -> int:
        """Rows of the first of those buckets."""
        if num_rows > self.largest:
            return self._best_bucket.rows
        return self.buckets[self._widest_bucket[num_rows]].rows

    def below(self, num_rows: int) -> Schedule:
        """Without the buckets of so many rows or more, but with the smallest one."""
        kept = [bucket for bucket in self.buckets if bucket.rows < num_rows]
        return Schedule(buckets=kept or self.buckets[:1])


class Schedules(BaseModel):
    """What was measured of one architecture, where it holds, and the file format of ``GLOW_CACHE_DIR``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    conditions: str  # our code, the machine and the settings
    architecture: str
    of: dict[Operation, Schedule]

    def within(self, memory: float) -> Schedules:
        """Without buckets that take more bytes than there are, but with the smallest ones."""
        fitting = {
            operation: [bucket for bucket in schedule.buckets if bucket.memory <= memory] or schedule.buckets[:1]
            for operation, schedule in self.of.items()
        }
        return self.model_copy(
            update={"of": {operation: Schedule(buckets=buckets) for operation, buckets in fitting.items()}}
        )

    def table(self) -> str:
        """One line an operation, for the log."""
        return "\n".join(
            f"  {operation}: "
            + ", ".join(
                f"{bucket.rows} {bucket.form} x{bucket.threads} {1e3 * bucket.seconds:.3g} ms"
                for bucket in schedule.buckets
            )
            for operation, schedule in self.of.items()
        )


class Measured:
    """Schedules by architecture: flows that differ in nothing but weights run alike. Kept in ``cache_dir``, too."""

    def __init__(self, forms: Sequence[Form], threads: int, max_rows: int, cache_dir: Path | None) -> None:
        self._forms = forms
        self._threads = threads
        self._max_rows = max_rows
        self._cache_dir = cache_dir
        self._known: dict[str, Schedules] = {}

    def schedules_of(self, runner: Runner, seconds: float, alone: bool = True) -> Steps[Schedules]:
        """Take the schedules of a model from what is known, if that still answers right here, else measure them.

        When so many seconds are over, no larger buckets are tried. ``alone``: while no other process that shares the
        cache runs a model. Raises ArtifactError where no plan reproduces the golden case.
        """
        schedules = yield from self._find(runner, seconds, alone)
        self._known[runner.architecture] = schedules
        logger.debug("plans of %s@%s:\n%s", runner.manifest.name, runner.manifest.version, schedules.table())
        return schedules

    def _find(self, runner: Runner, seconds: float, alone: bool) -> Steps[Schedules]:
        lock = self._cache_dir if alone else None
        with locked(lock):
            if schedules := (yield from self._recall(runner)):
                return schedules
        with locked(lock, to_measure=True):
            schedules = yield from self._recall(runner)  # by now, another process may have measured
            if schedules is None:
                schedules = yield from self._measure_all(runner, seconds)
                if self._cache_dir is not None and alone:  # what was measured beside requests is for now alone
                    _store(self._path(self._cache_dir, runner), schedules)
            return schedules

    def _conditions(self, runner: Runner) -> str:
        code = f"glow-service {version('glow-service')}, plans {FORMAT}"
        settings = f"{self._threads} threads, {'/'.join(self._forms)}, at most {self._max_rows} rows"
        return f"{code}, {describe_machine(runner.device)}, {settings}"

    def _path(self, cache_dir: Path, runner: Runner) -> Path:
        key = hashlib.sha256(f"{self._conditions(runner)} {runner.architecture}".encode()).hexdigest()[:16]
        return cache_dir / f"plans-{key}.json"

    def _recall(self, runner: Runner) -> Steps[Schedules | None]:
        """Find schedules and warm their plans up; None where there are none, or none that hold."""
        if known := self._known.get(runner.architecture):
            return (yield from _usable(known, runner, "what was measured before"))
        if self._cache_dir is None:
            return None
        path = self._path(self._cache_dir, runner)
        try:
            schedules = Schedules.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            logger.warning("%s: cannot be used, measuring again: %s", path, str(error).splitlines()[0])
            return None
        expected = self._conditions(runner), runner.architecture, set(OPERATIONS)
        if (schedules.conditions, schedules.architecture, set(schedules.of)) != expected:
            logger.warning("%s: is of other code, another machine or model, measuring again", path)
            return None
        return (yield from _usable(schedules, runner, str(path)))

    def _measure_all(self, runner: Runner, seconds: float) -> Steps[Schedules]:
        """Measure the schedules of every operation."""
        started = time.monotonic()
        name, threads = runner.manifest.name, self._threads
        counts = sorted({1, threads}) if runner.device.type == "cpu" else [1]
        plans = [Plan(form, count) for form in self._forms for count in counts]
        measured: dict[Operation, Schedule] = {}
        out_of_time = False
        favourites = plans  # operations are alike: what never won in one need not be tried in the next
        for operation, share in zip(OPERATIONS, SHARES, strict=True):
            deadline = started + share * seconds
            buckets, late = yield from _measure(runner, operation, favourites, self._max_rows, deadline)
            if not buckets:
                buckets, late = yield from _measure(runner, operation, plans, self._max_rows, deadline)
            out_of_time |= late
            if not buckets:
                raise ArtifactError(f"{name}: no plan reproduces the golden case of {operation}")
            measured[operation] = Schedule(buckets=buckets)
            favourites = list(dict.fromkeys(bucket.plan for bucket in buckets))
        logger.info("measured the plans of %s in %.1f s", name, time.monotonic() - started)
        if out_of_time:
            logger.warning("%s: %.0f s were too few to try passes of more rows", name, seconds)
        return Schedules(conditions=self._conditions(runner), architecture=runner.architecture, of=measured)


@contextmanager
def locked(cache_dir: Path | None, to_measure: bool = False) -> Iterator[None]:
    """Keep the other processes that share a cache from running models while one measures."""
    with ExitStack() as stack:
        if cache_dir is not None:
            with suppress(OSError):  # a folder that cannot be written, of which _store tells, or one without locks
                cache_dir.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((cache_dir / "plans.lock").open("w"))
                fcntl.flock(file, fcntl.LOCK_EX if to_measure else fcntl.LOCK_SH)
        yield


def _usable(schedules: Schedules, runner: Runner, origin: str) -> Steps[Schedules | None]:
    """Warm the plans of schedules up, those that memory suffices for; None where one does not answer rightly."""
    schedules = schedules.within(MEMORY_SHARE * available_bytes(runner.device))
    for operation, schedule in schedules.of.items():
        passes = [(bucket.plan, bucket.rows) for bucket in schedule.buckets]
        for plan, num_rows in [*((plan, 1) for plan in dict(passes)), *passes]:
            if fault := warm_up(runner, operation, plan, num_rows):
                logger.warning("%s: %s, measuring again", origin, fault)
                return None
            yield
    return schedules


def _store(path: Path, schedules: Schedules) -> None:
    """Keep schedules for the next start; a folder that cannot be written costs that start some seconds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(schedules.model_dump_json(indent=1)))
    except OSError as error:
        logger.warning("%s: cannot be written: %s (GLOW_CACHE_DIR)", path, error.strerror)


def warm_up(runner: Runner, operation: Operation, plan: Plan, num_rows: int) -> str | None:
    """Run passes of so many rows until nothing is left to compile, then every golden row; returns what is wrong."""
    needed = -(-len(runner.manifest.golden.inputs) // num_rows)
    passes = np.split(golden_rows(runner.manifest, operation, needed * num_rows), needed)
    if num_rows == 1:
        passes = passes[:1] * (WARM_UP_CALLS - 1) + passes
    try:
        outputs = [runner.run(operation, plan, rows) for rows in passes][-needed:]
    except (RuntimeError, MemoryError) as error:
        return f"fails with {type(error).__name__}: {' '.join(str(error).split())[-200:]}"
    return golden_fault(runner.manifest, operation, [np.concatenate(parts) for parts in zip(*outputs, strict=True)])


def _measure(
    runner: Runner, operation: Operation, plans: Sequence[Plan], max_rows: int, deadline: float
) -> Steps[tuple[list[Bucket], bool]]:
    """Double the rows of a pass for as long as that pays, and find the fastest right plan at each number.

    Returns the buckets, none where no plan is right, and whether it was time that ended it.
    """
    buckets: list[Bucket] = []
    out_of_time = False
    for num_rows in (2**power for power in itertools.count()):
        used = reset_peak(runner.device)
        seconds: dict[Plan, float] = {}
        for plan in plans:
            if fault := warm_up(runner, operation, plan, num_rows):
                logger.warning("%s of %d rows, %s: %s", operation, num_rows, plan, fault)
            else:
                yield
                seconds[plan] = _time(runner, operation, plan, num_rows)
            yield
        if not seconds:
            break
        costs = {plan: second * (WORTH_THREADS if plan.threads > 1 else 1) for plan, second in seconds.items()}
        best = next(plan for plan in costs if costs[plan] <= ALIKE * min(costs.values()))
        memory = max(0, peak_bytes(runner.device) - used)
        buckets.append(
            Bucket(rows=num_rows, form=best.form, threads=best.threads, seconds=seconds[best], memory=memory)
        )
        plans = _promising(seconds, HOPELESS[min(num_rows, 4)])
        out_of_time = time.monotonic() > deadline
        if (
            out_of_time
            or 2 * num_rows > max_rows
            or not _grows(buckets)
            or 2 * memory > MEMORY_SHARE * available_bytes(runner.device)
        ):
            break
    speeds = [bucket.rows / bucket.seconds for bucket in buckets]
    enough = [WORTH_DOUBLING * speed >= max(speeds) for speed in speeds]
    return (buckets[: enough.index(True) + 1] if buckets else []), out_of_time


def _promising(seconds: dict[Plan, float], hopeless: float) -> list[Plan]:
    """Plans that may yet win, and the fastest of each number of threads, which pay at many rows alone."""
    fastest = min(seconds.values())
    of_threads = {plan.threads: plan for plan in sorted(seconds, key=lambda plan: -seconds[plan])}
    enough = max(hopeless * fastest, QUICK_S)
    return [plan for plan in seconds if seconds[plan] <= enough or plan is of_threads[plan.threads]]


def _grows(buckets: list[Bucket]) -> bool:
    """Whether one of the last two doublings was worth it."""
    speeds = [bucket.rows / bucket.seconds for bucket in buckets]
    return len(speeds) < 3 or max(speeds[-2:]) > WORTH_DOUBLING * max(speeds[:-2])


def _time(runner: Runner, operation: Operation, plan: Plan, num_rows: int) -> float:
    """Least seconds of a pass: 2 to 5 of them, in a twentieth of a second if they fit."""
    rows = golden_rows(runner.manifest, operation, num_rows)
    least, started = math.inf, time.perf_counter()
    for attempt in range(5):
        begun = time.perf_counter()
        runner.run(operation, plan, rows)
        ended = time.perf_counter()
        least = min(least, ended - begun)
        if attempt and ended - started > 0.05:
            break
    return least
