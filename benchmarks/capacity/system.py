"""The service as threads that share cores: event loop, engine and queue of each replica, Ray's proxy, and who asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np

from benchmarks.capacity.arrivals import Balance, Process, arrival_times, chooser
from benchmarks.capacity.inputs import Body, Client, Ingress, Inputs, ModelCosts
from benchmarks.capacity.simulate import Burst, Clock, Interpreter, Job, Link, Machine, Thread
from service.batcher import SMALL_LAST_S
from service.row_queue import Job as Rows
from service.row_queue import Part, Room, RowQueue
from service.settings import Settings

SWITCH_S = 0.002  # that the service sets: service/app.py
READ_SHARE = 0.5  # of the event loop's time of a request, before its rows wait; the rest is for the answer
WARM_UP_SHARE = 0.2  # of the simulated time, whose requests are not counted
HEAD_BYTES = 300.0  # of a request or an answer besides its body, with those of TCP


@dataclass(frozen=True)
class Load:
    """Requests of so many rows: ``connections`` that each ask again once answered, or ``rate`` a second."""

    model: str
    media: str
    rows: int
    connections: int = 0
    rate: float = 0.0
    process: Process = "poisson"


@dataclass(frozen=True)
class Network:
    """Between callers and each replica's machine."""

    latency_s: float = 0.0  # one way
    bytes_per_s: float = math.inf


@dataclass(frozen=True)
class Deployment:
    """So many replicas, each on a machine of its own or, with ``shared``, all on one, with the client on it, too."""

    replicas: int = 1
    cores: float = 2.0  # of a machine
    shared: bool = False
    balance: Balance = "two-choices"
    ingress: str | None = None  # of the measured ones
    proxies: int = 0  # on so many of the replicas' machines; 0: on each
    client: str | None = None  # of the measured ones; None: callers cost nothing here
    network: Network = Network()
    max_queue_rows: int = Settings.model_fields["max_queue_rows"].default
    max_wait_s: float = Settings.model_fields["max_wait_s"].default


@dataclass(frozen=True)
class Prediction:
    """What came of a load; latencies in seconds, of requests that were answered."""

    offered: float  # requests a second
    throughput: float  # answered a second
    refused: float  # share of requests
    p50: float
    p95: float
    p99: float
    mean: float
    in_system: float  # requests, on average
    busy: dict[str, float]  # the busiest of each kind: share of its time or, of a machine, of its cores
    counts: dict[str, int] = field(default_factory=dict)  # from start to end

    @property
    def bound_by(self) -> str:
        """What is busiest, and breaks first."""
        return max(self.busy, key=lambda name: self.busy[name])


def _nothing() -> None:
    pass


class _Replica:
    """A process of the service."""

    def __init__(self, clock: Clock, machine: Machine, inputs: Inputs, costs: ModelCosts, what: Deployment) -> None:
        self.machine, self.interpreter = machine, Interpreter(clock, SWITCH_S)
        self._clock, self._inputs = clock, inputs
        self._passes = {one.rows: one for one in costs.passes}
        self._schedule = schedule = costs.schedule
        self.loop = Thread(machine, self.interpreter, inputs.wake_s)
        self.engine = Thread(machine, self.interpreter, inputs.wake_s, take=self._take)
        self.front = Thread(machine, self.interpreter, inputs.wake_s)  # of Ray, before the event loop
        self.beside = Thread(machine)
        self._queue: RowQueue[Rows] = RowQueue(lambda _, waiting: Room(schedule.begin(waiting), schedule.brief))
        self._answers: dict[int, Callable[[], None]] = {}
        self._small_at = -math.inf
        pace = max(one.rows / (one.flow_s + one.scores_s) for one in costs.passes)
        self._most_waiting = min(what.max_queue_rows, what.max_wait_s * pace)
        self.num_passes = 0

    def submit(self, num_rows: int, answered: Callable[[], None]) -> bool:
        """Let rows wait for a pass; False where too many do."""
        if self._queue.num_waiting and self._queue.num_waiting + num_rows > self._most_waiting:
            return False
        if self._queue.is_small(None, num_rows):
            self._small_at = self._clock.now
        job = Rows(key=None, rows=cast(Any, range(num_rows)))
        self._answers[id(job)] = answered
        self._queue.push(job)
        self.engine.wake()
        return True

    def _take(self) -> Job | None:
        parts = self._queue.take(brief=self._clock.now - self._small_at < SMALL_LAST_S)
        if not parts:
            return None
        buckets = self._schedule.cover(sum(part.stop - part.start for part in parts))
        flow = sum(bucket.seconds for bucket in buckets)
        scores = sum(self._passes[bucket.rows].scores_s for bucket in buckets)
        self.num_passes += 1
        bursts = Burst(self._inputs.engine_pass_s), Burst(flow, interpreted=False), Burst(scores)
        return Job(bursts, partial(self._deliver, parts))

    def _deliver(self, parts: list[Part[Rows]]) -> None:
        answers: list[Callable[[], None]] = []
        for job, start, stop in parts:
            job.answered += stop - start
            if job.answered == len(job.rows):
                answers.append(self._answers.pop(id(job)))

        def tell() -> None:
            for answer in answers:
                answer()

        self.loop.put(Job((Burst(self._inputs.loop_pass_s),), tell))


class _System:
    """A deployment under a load."""

    def __init__(self, inputs: Inputs, what: Deployment, load: Load, seed: int) -> None:
        self.clock = clock = Clock()
        self.random = np.random.default_rng(seed)
        self._what, self._load = what, load
        costs = inputs.models[load.model]
        self.body: Body = costs.body(load.media, load.rows)
        self.ingress: Ingress | None = inputs.ingresses[what.ingress] if what.ingress else None
        idle = self.ingress.idle_cores if self.ingress else 0.0
        shared = Machine(clock, what.cores - idle)
        self.machines = [shared if what.shared else Machine(clock, what.cores) for _ in range(what.replicas)]
        self.replicas = [_Replica(clock, machine, inputs, costs, what) for machine in self.machines]
        self.links = [
            [Link(clock, what.network.bytes_per_s, what.network.latency_s) for _ in self.replicas] for _ in range(2)
        ]
        self.proxies: list[tuple[Thread, Thread]] = []
        if self.ingress:
            for i in range(what.proxies or what.replicas):
                machine = self.machines[i % what.replicas]
                for _ in range(self.ingress.proxy_threads):
                    self.proxies.append((Thread(machine, Interpreter(clock), inputs.wake_s), Thread(machine)))
        self._client: Client | None = inputs.clients[what.client] if what.client else None
        wake = self._client.wake_cpu_s if self._client else 0.0
        self.client = Thread(shared, Interpreter(clock), inputs.wake_s, wake) if self._client else None
        self.outstanding = [0] * what.replicas
        self.choose = chooser(what.balance, self.outstanding, self.random)
        self._free: list[int] = []  # where connections lead that nobody uses now
        self._turn = 0  # of the proxies
        self._counted_at, self._area = 0.0, 0.0  # integral of the requests in the system
        self.spans: list[tuple[float, float, bool]] = []  # of requests that are over: begin, end, whether answered
        self.num_begun = 0

    def ask(self, over: Callable[[], None] = lambda: None) -> None:
        """A request, from when it is due."""
        begun = self.clock.now
        self.count(begun)
        self.num_begun += 1
        kept = self._what.balance == "connection" and self._free
        at = self._free.pop() if kept else self.choose()
        self._turn += 1
        proxy = self.proxies[self._turn % len(self.proxies)] if self.proxies else None
        self.outstanding[at] += 1
        replica = self.replicas[at]
        back = self.body.answer_bytes + HEAD_BYTES

        def end(answered: bool) -> None:
            self.count(self.clock.now)
            self.outstanding[at] -= 1
            self._free.append(at)
            self.spans.append((begun, self.clock.now, answered))
            over()

        def received(answered: bool) -> None:
            self._on_client(lambda: end(answered))

        def leave(answered: bool) -> None:
            self.links[1][at].send(back, lambda: self._through(proxy, lambda: received(answered)))

        def answer(answered: bool) -> None:
            self._on_loop(replica, 1 - READ_SHARE, lambda: leave(answered))

        def wait() -> None:
            if not replica.submit(self._load.rows, lambda: answer(True)):
                answer(False)

        def arrive() -> None:
            self._on_loop(replica, READ_SHARE, wait)

        def send() -> None:
            self._through(proxy, lambda: self.links[0][at].send(self.body.request_bytes + HEAD_BYTES, arrive))

        self._on_client(send)

    def _on_client(self, then: Callable[[], None]) -> None:
        """Half of the client's work, if it costs anything here."""
        if self.client is None or self._client is None:
            then()
        else:
            self.client.put(Job((Burst((self.body.client_s + self._client.request_s) / 2),), then))

    def _on_loop(self, replica: _Replica, share: float, then: Callable[[], None]) -> None:
        own = Job((Burst(share * self.body.loop_s),), then)
        if not self.ingress:
            replica.loop.put(own)
            return
        replica.beside.put(Job((Burst(self.ingress.replica_beside_s / 2),), _nothing))
        replica.front.put(Job((Burst(self.ingress.replica_s / 2),), lambda: replica.loop.put(own)))

    def _through(self, proxy: tuple[Thread, Thread] | None, then: Callable[[], None]) -> None:
        """Half of what the proxy does for a request."""
        if proxy is None or self.ingress is None:
            then()
            return
        ingress = self.ingress
        own, beside = proxy
        seconds = (ingress.proxy_s + ingress.byte_s * (self.body.request_bytes + self.body.answer_bytes)) / 2
        beside.put(Job((Burst(ingress.proxy_beside_s / 2),), _nothing))
        own.put(Job((Burst(seconds),), lambda: self.clock.after(ingress.wait_s / 2, then)))

    def count(self, now: float) -> None:
        """Note how many requests were in the system until now."""
        self._area += (self.num_begun - len(self.spans)) * (now - self._counted_at)
        self._counted_at = now

    def forget(self) -> None:
        """Count requests in the system from now on."""
        self.count(self.clock.now)
        self._area = 0.0

    def in_system(self, since: float) -> float:
        """Mean number of requests in the system since then, which is when ``forget`` was."""
        self.count(self.clock.now)
        return self._area / (self.clock.now - since)

    def begin(self, seconds: float) -> None:
        """Let the load come for so long."""
        load = self._load
        if load.connections:
            for _ in range(load.connections):
                self._again(seconds)
        else:
            for time in arrival_times(load.process, load.rate, seconds, self.random):
                self.clock.after(time, self.ask)

    def _again(self, seconds: float) -> None:
        if self.clock.now < seconds:
            self.ask(lambda: self._again(seconds))

    def busy(self, seconds: float) -> dict[str, float]:
        """Share of its time that the busiest of each kind works."""
        found = {
            "event loop": max(replica.loop.cpu_s + replica.front.cpu_s for replica in self.replicas),
            "engine": max(replica.engine.cpu_s for replica in self.replicas),
            "interpreter": max(replica.interpreter.held_s for replica in self.replicas),
            "cores": max(machine.used_s / machine.cores for machine in self.machines),
            "network": max(link.busy_s for links in self.links for link in links),
        }
        if self.proxies:
            found["proxy"] = max(own.cpu_s for own, _ in self.proxies)
        if self.client:
            found["client"] = self.client.cpu_s
        return {name: value / seconds for name, value in found.items()}


def predict(
    inputs: Inputs, what: Deployment, load: Load, seconds: float = 5.0, seed: int = 0, to_the_end: bool = False
) -> Prediction:
    """Simulate so many seconds of a load; the same seed gives the same figures.

    ``to_the_end``: no request is left out, neither the first ones nor those that are answered later, as a client counts
    that sends for so many seconds and then waits.
    """
    system = _System(inputs, what, load, seed)
    start = 0.0 if to_the_end else WARM_UP_SHARE * seconds
    system.clock.after(start, system.forget)
    system.begin(seconds)
    system.clock.run(math.inf if to_the_end else seconds)
    seconds = max(seconds, system.clock.now)
    over = [(begun, ended, answered) for begun, ended, answered in system.spans if ended >= start]
    latencies = np.array([ended - begun for begun, ended, answered in over if answered] or [math.nan])
    p50, p95, p99 = np.quantile(latencies, [0.5, 0.95, 0.99]).tolist()
    num_refused = sum(not answered for _, _, answered in over)
    throughput = (len(over) - num_refused) / (seconds - start)
    return Prediction(
        offered=system.num_begun / seconds,
        throughput=throughput,
        refused=num_refused / max(1, len(over)),
        p50=p50,
        p95=p95,
        p99=p99,
        mean=float(latencies.mean()),
        in_system=system.in_system(start),
        busy=system.busy(seconds),
        counts={
            "begun": system.num_begun,
            "answered": sum(answered for _, _, answered in system.spans),
            "refused": sum(not answered for _, _, answered in system.spans),
            "in system": system.num_begun - len(system.spans),
            "passes": sum(replica.num_passes for replica in system.replicas),
        },
    )
