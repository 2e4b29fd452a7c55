"""Discrete events: threads that take jobs, the interpreter and the cores that they share, links between machines.

A job is a sequence of bursts, seconds of CPU time with the interpreter (GIL) or without. A machine with C cores runs
its k ready bursts at rate min(1, C / k) each (processor sharing). Of a process one thread at a time has the
interpreter. Knows nothing of the service.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

Action = Callable[[], None]
_EPSILON_S = 1e-12  # of work: over at the same time


class Clock:
    """Runs actions in the order of their times; ``now`` is in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._order = itertools.count()

    def after(self, seconds: float, action: Action) -> None:
        """Let an action happen so many seconds from now; equal times keep their order."""
        heapq.heappush(self._due, (self.now + seconds, next(self._order), action))

    def run(self, until: float) -> None:
        """Let everything happen that is due by then, and that be now; without an end, until nothing is due."""
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heapq.heappop(self._due)
            action()
        if until < math.inf:
            self.now = until


class Burst(NamedTuple):
    """Seconds of CPU time in a row."""

    seconds: float
    interpreted: bool = True  # with the interpreter of its process


class Job(NamedTuple):
    """What a thread does in one go, and what follows."""

    bursts: tuple[Burst, ...]
    done: Action


@dataclass(slots=True)
class _Running:
    left_s: float
    done: Action


class Machine:
    """So many cores, shared evenly by whatever runs; ``cores`` may be a fraction where others take the rest."""

    def __init__(self, clock: Clock, cores: float) -> None:
        self.clock, self.cores = clock, cores
        self.used_s = 0.0
        self._running: list[_Running] = []
        self._since = 0.0
        self._version = 0

    def run(self, seconds: float, done: Action) -> None:
        """Spend so much CPU time, then go on."""
        self._advance()
        self._running.append(_Running(seconds, done))
        self._plan()

    @property
    def _rate(self) -> float:
        return min(1.0, self.cores / len(self._running)) if self._running else 1.0

    def _advance(self) -> None:
        passed = (self.clock.now - self._since) * self._rate
        self._since = self.clock.now
        for burst in self._running:
            burst.left_s -= passed
        self.used_s += passed * len(self._running)

    def _plan(self) -> None:
        self._version += 1
        if self._running:
            first, version = min(self._running, key=lambda burst: burst.left_s), self._version
            self.clock.after(max(0.0, first.left_s) / self._rate, lambda: self._end(first, version))

    def _end(self, first: _Running, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        first.left_s = 0.0  # or what rounding leaves of it would never be over
        ended = [burst for burst in self._running if burst.left_s <= _EPSILON_S]
        self._running = [burst for burst in self._running if burst.left_s > _EPSILON_S]
        self._plan()
        for burst in ended:
            burst.done()


class Interpreter:
    """What only one thread of a process has at a time, in the order of asking.

    Whoever has it keeps it from burst to burst, until it has nothing to do or another has waited for ``switch_s``, as
    in CPython (``sys.setswitchinterval``).
    """

    def __init__(self, clock: Clock, switch_s: float = 0.0) -> None:
        self._clock, self._switch_s = clock, switch_s
        self._waiting: deque[tuple[float, Action]] = deque()  # since when
        self._held = False
        self._since = 0.0
        self.held_s = 0.0

    @property
    def is_due(self) -> bool:
        """Whether somebody has waited long enough."""
        return bool(self._waiting) and self._clock.now - self._waiting[0][0] >= self._switch_s

    def acquire(self, granted: Action) -> None:
        """Go on as soon as it is free."""
        if self._held:
            self._waiting.append((self._clock.now, granted))
        else:
            self._held, self._since = True, self._clock.now
            granted()

    def release(self) -> None:
        """Leave it to whoever waits longest."""
        self.held_s += self._clock.now - self._since
        self._since = self._clock.now
        if self._waiting:
            self._waiting.popleft()[1]()
        else:
            self._held = False


class Thread:
    """Takes one job after the other, from ``take`` or, without it, those that were put, in order.

    One that had nothing to do starts ``wake_s`` after there is something, and spends ``wake_cpu_s`` before it.
    """

    def __init__(
        self,
        machine: Machine,
        interpreter: Interpreter | None = None,
        wake_s: float = 0.0,
        wake_cpu_s: float = 0.0,
        take: Callable[[], Job | None] | None = None,
    ) -> None:
        self._machine, self._interpreter = machine, interpreter
        self._wake_s, self._wake_cpu_s = wake_s, wake_cpu_s
        self._jobs: deque[Job] = deque()
        self._take = take or self._first
        self._busy = self._holds = False
        self.cpu_s = 0.0
        self.num_jobs = self.num_wakes = 0

    def put(self, job: Job) -> None:
        """Let a job wait for this thread."""
        self._jobs.append(job)
        self.wake()

    def wake(self) -> None:
        """Tell it that there is something to take."""
        if not self._busy:
            self._busy = True
            self.num_wakes += 1
            start = (Burst(self._wake_cpu_s),) if self._wake_cpu_s else ()
            if self._wake_s:
                self._machine.clock.after(self._wake_s, lambda: self._do(start, self._next))
            else:
                self._do(start, self._next)

    def _first(self) -> Job | None:
        return self._jobs.popleft() if self._jobs else None

    def _next(self) -> None:
        job = self._take()
        if job is None:
            self._busy = False
            self._leave()
            return
        self.num_jobs += 1

        def over() -> None:
            job.done()
            self._next()

        self._do(job.bursts, over)

    def _do(self, bursts: tuple[Burst, ...], then: Action, index: int = 0) -> None:
        """Run the bursts from one on, then go on."""
        if index == len(bursts):
            then()
            return
        seconds, interpreted = bursts[index]
        self.cpu_s += seconds

        def start() -> None:
            self._holds = interpreted and self._interpreter is not None
            self._machine.run(seconds, lambda: self._do(bursts, then, index + 1))

        if self._interpreter is None or not interpreted:
            self._leave()
            start()
        elif self._holds and not self._interpreter.is_due:
            start()
        else:
            self._leave()
            self._interpreter.acquire(start)

    def _leave(self) -> None:
        """Let go of the interpreter."""
        if self._holds and self._interpreter is not None:
            self._holds = False
            self._interpreter.release()


class Link:
    """Sends messages one after the other, ``bytes_per_s``, each arriving ``latency_s`` after it has left."""

    def __init__(self, clock: Clock, bytes_per_s: float, latency_s: float) -> None:
        self._clock, self._bytes_per_s, self._latency_s = clock, bytes_per_s, latency_s
        self._free_at = 0.0
        self.busy_s = 0.0

    def send(self, num_bytes: float, arrived: Action) -> None:
        """Send so many bytes; goes on when all have arrived."""
        seconds = num_bytes / self._bytes_per_s
        self.busy_s += seconds
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self._clock.after(self._free_at + self._latency_s - self._clock.now, arrived)
