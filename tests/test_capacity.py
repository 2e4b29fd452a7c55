"""The capacity model obeys the laws of queues and forms passes as the service does; its page says what was measured."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.capacity import plan, report
from benchmarks.capacity.arrivals import BALANCES, PROCESSES, Balance, Process, arrival_times, chooser
from benchmarks.capacity.inputs import Body, Client, Ingress, Inputs, ModelCosts, Pass, read_inputs
from benchmarks.capacity.simulate import Burst, Clock, Interpreter, Job, Link, Machine, Thread
from benchmarks.capacity.system import Deployment, Load, Network, predict
from common.errors import UsageError
from docs.tables import place_of

ROOMY = Deployment(cores=64.0)
PASS_S, LOOP_S = 0.010, 0.001


def inputs(passes: tuple[tuple[int, float], ...] = ((1, PASS_S),), loop_s: float = 0.0) -> Inputs:
    """Costs of a service that has no others than these."""
    found = [Pass(rows=rows, flow_s=seconds, scores_s=0) for rows, seconds in passes]
    bodies = [
        Body(rows=rows, loop_s=loop_s * rows, client_s=0, request_bytes=1000 * rows, answer_bytes=100)
        for rows in (1, 3)
    ]
    return Inputs(
        machine="none",
        date="2000-01-01",
        cores=64,
        foreign_cpus=0,
        wake_s=0,
        loop_pass_s=0,
        engine_pass_s=0,
        plain_p50_s=0,
        plain_cpu_s=0,
        clients={"costly": Client(wake_cpu_s=0, request_s=0.02)},
        models={"one": ModelCosts(passes=found, bodies={"json": bodies})},
        ingresses={
            "slow": Ingress(
                proxy_threads=1,
                proxy_s=0.004,
                proxy_beside_s=0,
                replica_s=0.001,
                replica_beside_s=0,
                byte_s=0,
                wait_s=0.002,
                idle_cores=0,
                p50_s=0,
                cpu_s=0,
            )
        },
    )


def load(rate: float = 0.0, connections: int = 0, **changes: object) -> Load:
    return replace(Load("one", "json", 1, connections, rate), **changes)  # type: ignore[arg-type]


def waits(arrivals: np.ndarray, services: np.ndarray) -> np.ndarray:
    """Waits of a queue of one thread, as its events tell."""
    clock, waited = Clock(), list[float]()
    thread = Thread(Machine(clock, 1))
    for time, service in zip(arrivals.tolist(), services.tolist(), strict=True):

        def arrive(time: float = time, service: float = service) -> None:
            thread.put(Job((Burst(service),), lambda: waited.append(clock.now - service - time)))

        clock.after(time, arrive)
    clock.run(math.inf)
    return np.array(waited)


@pytest.mark.parametrize("variation", [0.0, 0.5, 1.0, 2.0], ids=["M/D/1", "M/G/1", "M/M/1", "M/G/1, long tails"])
def test_mean_waits_are_those_of_pollaczek_and_khinchine(variation: float) -> None:
    """W = rho s (1 + c^2) / (2 (1 - rho)), c being the standard deviation of the service time s over its mean."""
    random, num, rho, mean = np.random.default_rng(1), 25_000, 0.6, 1.0
    arrivals = np.cumsum(random.exponential(mean / rho, num))
    shape = 1 / variation**2 if variation else math.inf
    services = random.gamma(shape, mean / shape, num) if variation else np.full(num, mean)
    expected = rho * mean * (1 + variation**2) / (2 * (1 - rho))
    assert waits(arrivals, services).mean() == pytest.approx(expected, rel=0.1)


def test_a_service_whose_passes_have_one_row_waits_as_a_queue_of_constant_service() -> None:
    rate = 60.0
    rho = rate * PASS_S
    found = predict(inputs(), ROOMY, load(rate), seconds=150)
    assert found.mean == pytest.approx(PASS_S + rho * PASS_S / (2 * (1 - rho)), rel=0.05)
    assert found.busy["engine"] == pytest.approx(rho, rel=0.03)
    assert found.bound_by == "engine"


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("balance", BALANCES)
def test_little_and_conservation(process: Process, balance: Balance) -> None:
    what = replace(ROOMY, replicas=3, balance=balance)
    found = predict(inputs(loop_s=LOOP_S), what, load(150, process=process), seconds=40)
    counts = found.counts
    assert counts["begun"] == counts["answered"] + counts["refused"] + counts["in system"]
    assert counts["refused"] == 0
    assert found.in_system == pytest.approx(found.throughput * found.mean, rel=0.05)
    assert found.offered == pytest.approx(150, rel=0.25 if process == "bursts" else 0.05)


def test_a_closed_loop_stays_within_its_bounds() -> None:
    """X(C) <= min(C / D, 1 / D_max), and at least 1 / D of one at a time."""
    costs, total = inputs(loop_s=LOOP_S), PASS_S + LOOP_S
    for connections in (1, 2, 5, 20):
        found = predict(costs, ROOMY, load(connections=connections), seconds=20)
        most = min(connections / total, 1 / PASS_S)
        assert 1 / total * 0.99 <= found.throughput <= most * 1.01
        assert found.throughput * found.mean == pytest.approx(connections, rel=0.02)
    assert found.throughput == pytest.approx(1 / PASS_S, rel=0.01)


def test_saturated_it_answers_the_most_rows_that_a_pass_has_in_its_time() -> None:
    passes = ((1, 0.010), (2, 0.012), (4, 0.015), (8, 0.026))
    found = predict(inputs(passes), ROOMY, load(connections=64), seconds=20)
    assert found.throughput == pytest.approx(8 / 0.026, rel=0.02)
    assert found.counts["passes"] == pytest.approx(found.counts["answered"] / 8, rel=0.02)


def test_a_request_of_more_rows_than_a_pass_has_is_streamed_through() -> None:
    found = predict(inputs(((1, 0.010), (2, 0.012))), ROOMY, load(connections=1, rows=5), seconds=10)
    assert found.mean == pytest.approx(2 * 0.012 + 0.010, rel=0.01)


def test_replicas_share_the_load() -> None:
    one = predict(inputs(), ROOMY, load(50), seconds=60)
    two = predict(inputs(), replace(ROOMY, replicas=2, balance="random"), load(100), seconds=60)
    assert two.busy["engine"] == pytest.approx(one.busy["engine"], rel=0.06)
    assert two.mean == pytest.approx(one.mean, rel=0.1)
    least = predict(inputs(), replace(ROOMY, replicas=2, balance="least"), load(100), seconds=60)
    assert least.mean < two.mean


def test_what_exceeds_the_queue_is_refused_and_the_rest_goes_on() -> None:
    found = predict(inputs(), replace(ROOMY, max_queue_rows=10), load(200), seconds=40)
    assert found.throughput == pytest.approx(100, rel=0.02)
    assert found.refused == pytest.approx(0.5, abs=0.03)
    assert found.p99 <= 12.1 * PASS_S


def test_what_is_counted_to_the_end_misses_no_request() -> None:
    found = predict(inputs(), ROOMY, load(150), seconds=10, to_the_end=True)
    assert found.counts["begun"] == found.counts["answered"] == pytest.approx(1500, rel=0.1)
    assert found.throughput == pytest.approx(1 / PASS_S, rel=0.01)
    assert found.p99 == pytest.approx(5, rel=0.1)


def test_a_seed_gives_the_same_figures_and_another_one_others() -> None:
    first, same, other = (predict(inputs(), ROOMY, load(50), seconds=10, seed=seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_cores_are_shared_and_the_interpreter_is_one_threads_at_a_time() -> None:
    def ends(cores: float, interpreted: bool) -> list[float]:
        clock, found = Clock(), list[float]()
        machine, interpreter = Machine(clock, cores), Interpreter(clock)
        for _ in range(3):
            thread = Thread(machine, interpreter)
            thread.put(Job((Burst(1.0, interpreted),), lambda: found.append(clock.now)))
        clock.run(100)
        assert machine.used_s == pytest.approx(3)
        return found

    assert ends(3, interpreted=False) == pytest.approx([1, 1, 1])
    assert ends(2, interpreted=False) == pytest.approx([1.5, 1.5, 1.5])
    assert ends(3, interpreted=True) == pytest.approx([1, 2, 3])


def test_a_link_sends_one_after_the_other() -> None:
    clock, arrived = Clock(), list[float]()
    link = Link(clock, bytes_per_s=100, latency_s=0.5)
    for _ in range(2):
        link.send(100, lambda: arrived.append(clock.now))
    clock.run(10)
    assert arrived == pytest.approx([1.5, 2.5])


def test_client_proxy_and_network_take_their_share() -> None:
    alone = predict(inputs(), ROOMY, load(connections=1), seconds=10)
    network = Network(latency_s=0.003, bytes_per_s=1300 / 0.002)
    remote = predict(inputs(), replace(ROOMY, network=network), load(connections=1), seconds=10)
    assert remote.mean - alone.mean == pytest.approx(2 * 0.003 + 0.002 * (1 + 400 / 1300), rel=0.01)
    ray = predict(inputs(), replace(ROOMY, ingress="slow"), load(connections=1), seconds=10)
    assert ray.mean - alone.mean == pytest.approx(0.004 + 0.001 + 0.002, rel=0.01)
    client = predict(inputs(), replace(ROOMY, client="costly"), load(connections=8), seconds=10)
    assert client.bound_by == "client"
    assert client.throughput == pytest.approx(50, rel=0.02)


def test_arrivals_come_at_their_rate_and_bursts_in_bursts() -> None:
    random = np.random.default_rng(0)
    spread = {}
    for process in PROCESSES:
        times = arrival_times(process, 100, 400, random)
        assert times == sorted(times)
        assert len(times) / 400 == pytest.approx(100, rel=0.1)
        counts = np.histogram(times, 400, (0, 400))[0]
        spread[process] = counts.var() / counts.mean()
    assert spread["constant"] < 0.1 < spread["poisson"] < 2 < spread["bursts"]


def test_a_balancer_goes_where_it_should() -> None:
    random = np.random.default_rng(0)
    assert [chooser("round-robin", [0, 0], random)() for _ in range(2)] == [0, 0]
    turn = chooser("round-robin", [0, 0], random)
    assert [turn() for _ in range(4)] == [0, 1, 0, 1]
    assert {chooser("least", [3, 1, 2], random)() for _ in range(9)} == {1}
    assert 2 not in {chooser("two-choices", [0, 1, 9], random)() for _ in range(50)}


def test_costs_between_two_measured_bodies_are_on_their_line() -> None:
    costs = inputs(loop_s=LOOP_S).models["one"]
    assert [costs.body("json", rows).loop_s for rows in (1, 2, 3, 6)] == pytest.approx([0.001, 0.002, 0.003, 0.006])


def test_the_page_says_what_was_measured() -> None:
    page, measured = report.PAGE.read_text(), read_inputs()
    for name in ("checks", "costs", "passes", "ray"):
        assert page[place_of(page, name)] == report.TABLES[name](measured), "make bench-capacity writes it"
    assert f"| {report.summary()} |" in report.BENCHMARKS.read_text()
    planned = page[place_of(page, "answers")].splitlines()[2:]
    loads = report.loads(measured)
    assert len(planned) == len(loads)
    assert planned[0] == report.answer(measured, *loads[0])


def test_the_fewest_replicas_that_keep_the_promise_are_found() -> None:
    found = plan.ask(inputs(), ROOMY, load(250), p99_s=0.1, seconds=4)
    assert found.holds
    assert not plan.ask(inputs(), ROOMY, load(250), replicas=found.replicas - 1, p99_s=0.1, seconds=4).holds
    assert found.replicas * 100 * plan.MOST_LOADED >= 250  # each answers at most 1 / PASS_S
    assert found.machine_hours == pytest.approx(found.replicas / 250 * 1e6 / 3600)
    assert found.gbit == pytest.approx(250 * 1100 * 8e-9)
    with pytest.raises(UsageError, match="p99"):
        plan.ask(inputs(), ROOMY, load(250), p99_s=0.001, seconds=0.5)
    with pytest.raises(UsageError, match="must be one of one"):
        plan.ask(inputs(), ROOMY, load(250, model="other"))


def test_many_replicas_are_a_few_with_their_share_of_the_load() -> None:
    few, many = (plan.ask(inputs(), ROOMY, load(50 * num), replicas=num, seconds=2) for num in (12, 120))
    assert many.throughput == pytest.approx(10 * few.throughput, rel=0.02)
    assert many.p50 == pytest.approx(few.p50, rel=0.1)


def test_a_gpu_takes_the_passes_and_leaves_the_rest() -> None:
    costs = inputs(loop_s=LOOP_S)
    costs = costs.model_copy(update={"models": {"fashion-mnist": costs.models["one"]}})
    passes = plan.on_device(costs, "cuda").models["fashion-mnist"]
    assert {one.rows: one.flow_s for one in passes.passes}[64] == pytest.approx(2.5e-3)
    assert [one.flow_s for one in passes.passes] == sorted(one.flow_s for one in passes.passes)
    assert passes.bodies == costs.models["fashion-mnist"].bodies
