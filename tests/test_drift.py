"""The drift watch: its law, its bets against a slow reference, its bound, and what it tells over HTTP."""

import itertools
import logging
import math
import multiprocessing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from scipy.stats import ks_2samp

from benchmarks import drift as simulation
from service.access import SCOPES, Access, Caller
from service.app import create_app
from service.drift import EXPONENTS, TAILS, Drift, Reading, ks_p_value
from service.errors import Unprocessable
from service.flows import Flows
from service.metrics import Metrics
from service.scores import FloatArray
from service.settings import Settings
from tests.conftest import with_manifest
from tests.test_server import server


def seeded(calibration: FloatArray, delta: float = 0.01, window: int = 1000) -> Drift:
    return Drift("simulated", calibration, delta, window, random=np.random.default_rng(0))


def normal(*size: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=size)


def alarm_row(reading: Reading) -> float:
    return min((one.alarm_row for one in reading.tails.values() if one.alarm_row is not None), default=math.inf)


def slow_wealth(calibration: FloatArray, scores: FloatArray) -> list[list[float]]:
    """Log wealth of each tail after every row, from the definitions, where all calibration scores are edges."""
    num = len(calibration)
    counts = [0] * (num + 1)
    bets: dict[str, list[tuple[float, float, float]]] = {tail: [] for tail in TAILS}  # capital, exponent, paid
    history: list[list[float]] = [[] for _ in TAILS]
    block, end, start = 0, 0, 0
    payments: dict[tuple[str, float], list[float]] = {}
    for row, score in enumerate(scores):
        if row == end:
            block, start, end = block + 1, row, row + min(1024, max(8, (num + row) // 32))
            spans = [1 + count for count in counts]
            ranked = sum(spans)
            for tail in TAILS:
                ahead = [sum(spans[:g] if tail == "lower" else spans[g + 1 :]) for g in range(num + 1)]
                for exponent in EXPONENTS.ravel():
                    bets[tail].append((1 / (block * (block + 1) * EXPONENTS.size), exponent, 0.0))
                    payments[tail, exponent] = [
                        (((a + span) / ranked) ** exponent - (a / ranked) ** exponent) / (span / ranked)
                        for a, span in zip(ahead, spans, strict=True)
                    ]
                bets[tail] = [(capital, exponent, 0.0) for capital, exponent, _ in bets[tail]]
        cell = sum(score > value for value in calibration)
        total = num + 1 + start
        for i, tail in enumerate(TAILS):
            after = []
            for capital, exponent, paid in bets[tail]:
                payment = payments[tail, exponent][cell]
                expected = (total + paid) / (total + row - start)
                after.append((capital * payment / expected, exponent, paid + payment))
            bets[tail] = after
            history[i].append(math.log(sum(capital for capital, _, _ in after) + 1 / (block + 1)))
        counts[cell] += 1
    return history


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score stays on its side of every calibration score."""
    monkeypatch.setattr("service.drift._NOISE", 0.0)
    monkeypatch.setattr("service.drift._RELATIVE_NOISE", 1e-14)


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("shift", [0.0, 0.7, -0.7])
def test_wealth_is_that_of_a_slow_reference(shift: float) -> None:
    calibration, scores = normal(40), normal(300, seed=1) + shift
    expected = slow_wealth(calibration, scores)
    drift = seeded(calibration)
    for row, score in enumerate(scores):
        drift.add(score[None])
        if row % 50 and row < 290:
            continue
        reading = drift.read()
        assert reading.rows == row + 1
        for tail, history in zip(TAILS, expected, strict=True):
            assert reading.tails[tail].log_e_value == pytest.approx(history[row], abs=1e-9)
            assert reading.tails[tail].highest == pytest.approx(max(0.0, *history[: row + 1]), abs=1e-9)
            crossed = [i + 1 for i, value in enumerate(history[: row + 1]) if value >= math.log(200)]
            assert reading.tails[tail].alarm_row == (crossed[0] if crossed else None)


@pytest.mark.parametrize("num_calibration", [1, 30, 3000])
def test_batches_do_not_matter(num_calibration: int) -> None:
    calibration, scores = normal(num_calibration), normal(9000, seed=1) + np.repeat([0, 0.3], 4500)
    whole, single, halves = seeded(calibration), seeded(calibration), seeded(calibration)
    whole.add(scores)
    for score in scores:
        single.add(score[None])
    for part in np.split(scores, [1, 5, 900, 4097, 8999]):
        halves.add(part)
        halves.read()  # has no effect either
    first = whole.read()
    for reading in (single.read(), halves.read()):
        assert (reading.rows, reading.window.ks, reading.window.mean_p_value) == (
            9000,
            first.window.ks,
            first.window.mean_p_value,
        )
        for tail in TAILS:
            assert reading.tails[tail].alarm_row == first.tails[tail].alarm_row
            assert reading.tails[tail].log_e_value == pytest.approx(first.tails[tail].log_e_value, abs=1e-6)
            assert reading.tails[tail].highest == pytest.approx(first.tails[tail].highest, abs=1e-6)


@pytest.mark.usefixtures("no_noise")
def test_over_all_orders_of_scores_the_mean_of_wealth_is_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, calibration scores among them, after every row: a martingale."""
    monkeypatch.setattr("service.drift._MIN_BLOCK", 2)
    wealth = []
    for order in itertools.permutations([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]):
        drift = seeded(np.array(order[:2]))
        history = []
        for score in order[2:]:
            drift.add(np.array([score]))
            history.append([math.exp(one.log_e_value) for one in drift.read().tails.values()])
        wealth.append(history)
    np.testing.assert_allclose(np.mean(wealth, axis=0), 1)
    assert np.std(wealth) > 0.1


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "ties"])
def test_false_alarms_are_as_rare_as_promised_though_the_calibration_set_is_reused(discrete: bool) -> None:
    alarms = 0
    for seed in range(200):
        draws = normal(4050, seed=seed)
        if discrete:
            draws = draws.round()
        drift = seeded(draws[:50], delta=0.2)
        drift.add(draws[50:])
        alarms += alarm_row(drift.read()) < math.inf
    assert 0 < alarms <= 0.2 * 200


@pytest.mark.parametrize(("shift", "direction"), [(1.0, "higher"), (-1.0, "lower")])
@pytest.mark.parametrize("clean", [0, 20_000])
def test_a_shift_of_one_standard_deviation_is_caught_within_a_few_hundred_rows(
    shift: float, direction: str, clean: int
) -> None:
    for seed in range(10):
        draws = normal(1000 + clean + 800, seed=seed)
        drift = seeded(draws[:1000])
        drift.add(draws[1000 : 1000 + clean])
        drift.add(draws[1000 + clean :] + shift)
        reading = drift.read()
        assert clean < alarm_row(reading) <= clean + 800
        assert (reading.tails["higher"].alarm_row is not None) == (direction == "higher")
        assert reading.window.ks_p_value is not None
        assert reading.window.ks_p_value < 1e-6
        assert reading.window.mean_p_value is not None
        assert (reading.window.mean_p_value < 0.4) == (shift > 0)


def test_a_widened_distribution_is_caught_in_both_directions() -> None:
    drift = seeded(normal(1000))
    drift.add(3 * normal(2000, seed=1))
    assert all(one.alarm_row is not None for one in drift.read().tails.values())


def test_an_alarm_stays_when_the_shift_goes_and_ends_with_a_reset() -> None:
    drift = seeded(normal(500))
    drift.add(normal(300, seed=1) + 1)
    row = drift.read().tails["higher"].alarm_row
    assert row is not None
    drift.add(normal(20_000, seed=2))
    reading = drift.read()
    assert reading.tails["higher"].alarm_row == row
    assert reading.tails["higher"].highest >= reading.tails["higher"].threshold > reading.tails["higher"].log_e_value
    drift.reset()
    after = drift.read()
    assert (after.rows, after.window.rows, after.window.ks, after.window.mean_p_value) == (0, 0, None, None)
    assert [(one.log_e_value, one.highest, one.alarm_row) for one in after.tails.values()] == [(0, 0, None)] * 2
    assert after.since > reading.since


@pytest.mark.usefixtures("no_noise")
def test_a_reset_forgets_all_rows() -> None:
    scores = normal(3000, seed=1)
    fresh, used = seeded(normal(100)), seeded(normal(100))
    used.add(normal(5001, seed=2) + 1)
    used.reset()
    for drift in (fresh, used):
        drift.add(scores)
    one, other = fresh.read(), used.read()
    assert one.tails == other.tails
    assert (one.window.ks, one.rows) == (other.window.ks, other.rows)


def test_memory_is_constant_whatever_the_rows_and_little_whatever_the_calibration_set() -> None:
    drift = seeded(normal(100_000))
    size = drift._state.nbytes
    drift.add(normal(50_000))
    assert drift._state.nbytes == size < 2**17


@pytest.mark.parametrize("calibration", [np.zeros(50), np.full(50, 7.0), np.array([3.0]), np.full(9, 1.7e308)])
@pytest.mark.filterwarnings("error")
def test_odd_calibration_sets_and_scores_beyond_all_scales_give_finite_figures(calibration: FloatArray) -> None:
    drift = seeded(calibration)
    lowest = np.finfo(np.float64).min
    drift.add(np.concatenate([calibration, [lowest, -lowest, 0.0], np.full(3000, -lowest)]))
    reading = drift.read()
    assert all(math.isfinite(one.log_e_value) and math.isfinite(one.highest) for one in reading.tails.values())
    assert reading.window.ks is not None
    assert 0 <= reading.window.ks <= 1


@pytest.mark.usefixtures("no_noise")
def test_the_window_is_the_two_sample_kolmogorov_smirnov_test_of_the_last_rows() -> None:
    calibration, scores = normal(100), normal(700, seed=1) + np.repeat([0, 0.2], 350)
    drift = seeded(calibration, window=300)
    for end in (100, 299, 700):
        drift.reset()
        drift.add(scores[:end])
        reading = drift.read()
        last = scores[:end][-300:]
        assert reading.window.rows == len(last)
        expected = ks_2samp(calibration, last)
        assert reading.window.ks == pytest.approx(
            expected.statistic, abs=1 / 100 + 1e-3
        )  # looked at calibration rows only
        p = [(0.5 + sum(calibration > score)) / 101 for score in last]
        assert reading.window.mean_p_value == pytest.approx(np.mean(p))


@pytest.mark.parametrize(("first", "second"), [(80, 1000), (500, 700)])
def test_the_p_value_of_the_window_is_that_of_scipy(first: int, second: int) -> None:
    for shift in (0.0, 0.1, 0.3, 1.0):
        exact = ks_2samp(normal(first), normal(second, seed=1) + shift)
        assert ks_p_value(exact.statistic, first, second) == pytest.approx(exact.pvalue, rel=0.2, abs=0.03)
    assert ks_p_value(0.0, first, second) == 1


def add_shifted(path: Path, seed: int) -> None:
    drift = Drift("shared", normal(200), path=path)
    for part in np.split(normal(6000, seed=seed), 600):
        drift.add(part)


def test_processes_share_one_state_and_a_killed_one_costs_a_new_watch_at_most(tmp_path: Path) -> None:
    path = tmp_path / "drift-shared"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add_shifted, args=(path, seed)) for seed in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    one, other = Drift("shared", normal(200), path=path), Drift("shared", normal(200), path=path)
    assert one.read().rows == 12_000
    assert one.read() == other.read()
    one.reset()
    assert other.read().rows == 0
    other.add(normal(10))
    assert one.read().rows == 10
    assert Drift("shared", normal(201), path=path).read().rows == 0  # another calibration set
    one.add(normal(10))
    one._state["busy"] = 1  # as a process leaves it that is killed while it bets
    assert other.read().rows == 0
    other.add(normal(10))
    assert one.read().rows == 10


# Over HTTP.

TABLE = "tiny-table"
ROWS = [[0.5, 1010.0, 3.0], [-0.3, 990.0, 7.0]]


async def read(client: httpx.AsyncClient, model: str = TABLE) -> dict[str, object]:
    response = await client.get(f"/models/{model}/drift")
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.fixture
def admin(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone may reset."""
    monkeypatch.setattr(app.state.service, "access", Access(anyone=Caller(scopes=frozenset(SCOPES))))


@pytest.mark.usefixtures("admin")
async def test_rows_that_were_scored_count_and_no_others(client: httpx.AsyncClient) -> None:
    started = datetime.now(UTC).replace(microsecond=0)
    first = (await client.post(f"/models/{TABLE}/drift/reset")).json()
    assert (first["rows"], first["alarm"], first["window"]) == (0, False, {"rows": 0})
    assert "direction" not in first
    assert datetime.fromisoformat(first["since"]) >= started
    for body in (
        {"inputs": ROWS},
        {"inputs": ROWS, "reproducible": True},
        {"inputs": ROWS, "fdr": 0.1},
        {"inputs": ROWS, "dequantization": {"samples": 5}},
    ):
        assert (await client.post("/log-likelihood", json={"model": TABLE, **body})).status_code == 200
    await client.post("/encode", json={"model": TABLE, "inputs": ROWS})
    await client.get(f"/sample?model={TABLE}&n=3")
    refused = await client.post("/log-likelihood", json={"model": TABLE, "inputs": ROWS, "alpha": 1e-9})
    assert refused.status_code == 422
    answer = await read(client)
    assert (answer["rows"], answer["calibration_rows"], answer["delta"]) == (8, 100, 0.01)
    assert isinstance(answer["window"], dict)
    assert answer["window"]["rows"] == 8


@pytest.mark.usefixtures("admin")
async def test_rows_of_another_kind_raise_an_alarm_that_metrics_tell(client: httpx.AsyncClient) -> None:
    await client.post(f"/models/{TABLE}/drift/reset")
    rows = [[a, 1500.0 + a, 3.0] for a in normal(50).tolist()]
    assert (await client.post("/log-likelihood", json={"model": TABLE, "inputs": rows})).status_code == 200
    answer = await read(client)
    assert (answer["alarm"], answer["direction"]) == (True, "higher")
    text = (await client.get("/metrics")).text
    labels = f'model="{TABLE}",version="{answer["version"]}"'
    for tail, alarm in (("higher", 1.0), ("lower", 0.0)):
        assert f'glow_drift_alarm{{model="{TABLE}",tail="{tail}",version="{answer["version"]}"}} {alarm}' in text
    assert f"glow_drift_rows{{{labels}}} 50.0" in text
    for name in ("log_e_value", "ks", "ks_p_value", "mean_p_value", "since_seconds"):
        assert f'glow_drift_{name}{{model="{TABLE}"' in text
    await client.post(f"/models/{TABLE}/drift/reset")
    assert (await read(client))["alarm"] is False


@pytest.mark.usefixtures("admin")
async def test_errors_name_the_model(app: FastAPI, client: httpx.AsyncClient) -> None:
    for method, path in (("GET", "drift"), ("POST", "drift/reset")):
        response = await client.request(method, f"/models/other/{path}")
        assert (response.status_code, response.json()["code"]) == (404, "model_not_found")
    flows: Flows = app.state.service.flows
    uncalibrated = with_manifest(flows.find(TABLE), calibration=None)
    with pytest.raises(Unprocessable, match=f"model {TABLE} is not calibrated"):
        flows.drift(uncalibrated)


async def test_settings_reach_the_watch(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"drift_delta": 0.5, "drift_window": 7}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await client.post("/log-likelihood", json={"model": TABLE, "inputs": ROWS * 5})
        answer = await read(client)
    assert answer["delta"] == 0.5
    assert answer["window"]["rows"] == 7  # type: ignore[index]
    assert answer["tails"]["lower"]["threshold"] == pytest.approx(math.log(4))  # type: ignore[index]


def test_metrics_without_models_have_no_drift() -> None:
    assert b"glow_drift_rows{model=" not in Metrics().text()


def test_workers_answer_for_each_other(models_dir: Path) -> None:
    with server("--models", models_dir / "tiny-table.pt", "--workers", "2") as (url, _):
        for answered in range(1, 21):  # a connection each, so that both workers get some
            assert httpx.post(f"{url}/log-likelihood", json={"inputs": ROWS}).status_code == 200
            drift = httpx.get(f"{url}/models/{TABLE}/drift").json()
            assert drift["rows"] == 2 * answered
            labels = f'model="{TABLE}",version="{drift["version"]}"'
            assert f"glow_drift_rows{{{labels}}} {2 * answered}.0" in httpx.get(f"{url}/metrics").text


def test_the_simulation_prints_its_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "CALIBRATION_ROWS": (50,),
        "FALSE_ALARM_ROWS": (1500, 3000),
        "CLEAN_ROWS": (0,),
        "PATIENCE": 300,
    }.items():
        monkeypatch.setattr(f"benchmarks.drift.{name}", value)
    try:
        simulation.main(["--repeats=100", "--delay-repeats=10"])
    finally:
        logging.disable(logging.NOTSET)
    tables = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    (_, _, *methods), *false_alarms = (row[1:] for row in tables[:3])
    assert methods == list(simulation.METHODS)
    shares = {name: float(text.split()[0]) for name, text in zip(methods, false_alarms[0][2:], strict=True)}
    assert shares["plain p"] > 5 > shares["this service"] >= shares["p + slack"]
    assert [row[2] for row in tables[4:]] == methods[:2]
    assert tables[4][4] != "never, never" == tables[5][4]  # one standard deviation up
