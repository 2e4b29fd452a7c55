"""The Python clients: the service's own answers, however rows come and are cut."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import pytest_asyncio

from service.client import AsyncGlowClient, GlowClient, InvalidRequest, NotFound, TooLarge
from service.scores import benjamini_hochberg
from tests.conftest import tiny_mixed, tiny_table
from tests.contract.conftest import Deployment
from tests.contract.deployments import MAX_ROWS
from tests.keys import key
from tests.wire import IMAGES, MIXED, TABLE, post

Ask = Callable[..., Awaitable[Any]]
ROWS = tiny_table(4 * (MAX_ROWS + 44)).fit.x


@pytest_asyncio.fixture(params=["sync", "async"])
async def ask(request: pytest.FixtureRequest, deployment: Deployment, client: httpx.AsyncClient) -> AsyncIterator[Ask]:
    """Call a method of either client, made with the options ``of``."""
    with deployment.blocking_client(headers=key("caller")) as http:

        async def ask(method: str, *args: Any, of: dict[str, Any] | None = None, **kwargs: Any) -> Any:
            if request.param == "async":
                return await getattr(AsyncGlowClient(client, **of or {}), method)(*args, **kwargs)
            return await asyncio.to_thread(getattr(GlowClient(http, **of or {}), method), *args, **kwargs)

        yield ask


async def test_all_operations_answer_as_the_routes(ask: Ask, client: httpx.AsyncClient, x: Any) -> None:
    options = {"scores": "all", "explain": True, "alpha": 0.2}
    expected = await post(client, "/log-likelihood", {"inputs": x.tolist(), "reproducible": True, **options})
    found = await ask("log_likelihood", x, reproducible=True, **options)
    for name in ("log_likelihood", "bits_per_dim", "score", "p_value", "is_anomaly", "contributions"):
        np.testing.assert_allclose(getattr(found, name), expected[name])
    for name in ("alpha", "model", "version"):
        assert getattr(found, name) == expected[name]
    assert (found.level, found.fdr) == (None, None)
    for name in ("scores", "p_values"):
        assert getattr(found, name).keys() == expected[name].keys()
        for score, values in expected[name].items():
            np.testing.assert_allclose(getattr(found, name)[score], values)
    expected = await post(client, "/encode", {"inputs": x.tolist(), "reproducible": True})
    codes = await ask("encode", x, reproducible=True)
    np.testing.assert_allclose(codes.latents, expected["latents"], rtol=1e-6)
    np.testing.assert_allclose(codes.log_likelihood, expected["log_likelihood"])
    assert (codes.latents.dtype, codes.version) == (np.float32, expected["version"])
    outputs = await ask("decode", codes.latents)
    np.testing.assert_allclose(outputs.outputs, x, atol=1e-2)
    expected = await post(client, "/sample", {"n": 3, "seed": 5, "temperature": 0.5})
    samples = await ask("sample", 3, seed=5, temperature=0.5)
    np.testing.assert_allclose(samples.samples, expected["samples"], rtol=1e-6)
    np.testing.assert_allclose(samples.log_likelihood, expected["log_likelihood"])
    assert samples.seed == 5


async def test_answers_are_plain_writable_arrays_and_columns_of_a_frame(ask: Ask) -> None:
    scores = await ask("log_likelihood", ROWS[:4], model=TABLE, scores=["typicality"])
    assert (await ask("log_likelihood", ROWS[:4], model=TABLE, scores=[])).scores == {}
    frame = pd.DataFrame(scores.columns())
    assert [*frame] == [
        *("log_likelihood", "bits_per_dim", "score", "p_value", "is_anomaly", "typicality", "p_value_typicality")
    ]
    for array in scores.columns().values():
        assert array.flags.writeable
        assert array.flags.aligned
    assert scores.is_anomaly.dtype == np.bool_


async def test_models_are_described(ask: Ask) -> None:
    assert (await ask("models"))["default"] == IMAGES
    assert (await ask("model"))["name"] == IMAGES
    about = await ask("model", TABLE)
    assert (await ask("model", f"{TABLE}@{about['version']}")) == about
    assert (await ask("drift", TABLE))["model"] == TABLE
    example = await ask("example", TABLE)
    assert (example.shape, example.dtype) == ((1, 3), np.float64)
    assert (await ask("log_likelihood", example, of={"model": TABLE})).model == TABLE
    assert await ask("ready")
    await ask("wait_until_ready", 5)


async def test_many_rows_are_cut_and_answered_as_one(ask: Ask) -> None:
    whole = await ask("log_likelihood", ROWS[:200], model=TABLE, scores="all", explain=True, reproducible=True)
    for cut in ({"max_rows": 7, "concurrency": 3}, {"max_bytes": 500}, {"max_rows": 7, "concurrency": 1}):
        told: list[tuple[int, int]] = []
        parts = await ask(
            *("log_likelihood", ROWS[:200]),
            model=TABLE,
            scores="all",
            explain=True,
            reproducible=True,
            progress=lambda *rows: told.append(rows),  # noqa: B023 (called in its turn of the loop)
            of=cut,
        )
        for name, column in whole.columns().items():
            np.testing.assert_array_equal(parts.columns()[name], column)
        np.testing.assert_array_equal(parts.contributions, whole.contributions)
        assert (parts.alpha, parts.version) == (whole.alpha, whole.version)
        assert told[-1] == (200, 200)
        assert told == sorted(told)
        assert len(told) > 5
    z = (await ask("encode", ROWS[:40], model=TABLE, of={"max_rows": 3})).latents
    np.testing.assert_allclose((await ask("decode", z, model=TABLE, of={"max_rows": 7})).outputs, ROWS[:40], atol=1e-2)


async def test_rows_beyond_the_limit_of_the_service_are_cut_smaller(ask: Ask) -> None:
    scores = await ask("log_likelihood", ROWS, model=TABLE, reproducible=True)
    assert len(scores.log_likelihood) == len(ROWS)
    one = await ask("log_likelihood", ROWS[-1:], model=TABLE, reproducible=True)
    assert scores.log_likelihood[-1] == one.log_likelihood[0]
    with pytest.raises(TooLarge, match=f"over the limit of {MAX_ROWS} a request") as raised:
        await ask("log_likelihood", ROWS[:2], model=TABLE, dequantization=MAX_ROWS)
    assert raised.value.status == 413


async def test_the_rate_of_false_discoveries_is_that_of_all_rows(ask: Ask) -> None:
    x = ROWS[:90] * np.where(np.arange(90) % 3, 1, 3)[:, None]
    for cut in (90, 8):
        scores = await ask("log_likelihood", x, model=TABLE, fdr=0.2, of={"max_rows": cut})
        np.testing.assert_array_equal(scores.is_anomaly, benjamini_hochberg(scores.p_value, 0.2))
        assert (scores.fdr, scores.alpha) == (0.2, None)
        assert 0 < scores.is_anomaly.sum() < 90
    with pytest.raises(InvalidRequest, match="fdr must be at least"):
        await ask("log_likelihood", x, model=TABLE, fdr=1e-9, of={"max_rows": 8})


async def test_a_seed_gives_the_same_samples_however_many_and_however_cut(ask: Ask) -> None:
    whole = await ask("sample", 50, seed=3, model=TABLE)
    for options in ({"max_rows": 7}, {"max_rows": 7, "concurrency": 1}, {}):
        parts = await ask("sample", 50, seed=3, model=TABLE, of=options)
        np.testing.assert_array_equal(parts.samples, whole.samples)
        np.testing.assert_array_equal(parts.log_likelihood, whole.log_likelihood)
    rest = await ask("sample", 300, seed=3, first=10, model=TABLE)
    np.testing.assert_array_equal(rest.samples[:40], whole.samples[10:])
    drawn = await ask("sample", 9, model=TABLE, of={"max_rows": 2})
    again = await ask("sample", 9, model=TABLE, seed=drawn.seed)
    np.testing.assert_array_equal(drawn.samples, again.samples)
    assert len(np.unique(drawn.samples, axis=0)) == 9
    for n in (0, 2.5, np.nan):
        with pytest.raises(InvalidRequest, match="n must be a whole number of at least 1, got "):
            await ask("sample", n)


async def test_noise_belongs_to_the_row_of_the_call(ask: Ask) -> None:
    options = {"model": TABLE, "dequantization": 4, "dequantization_seed": 1, "reproducible": True}
    whole = await ask("log_likelihood", ROWS[:30], **options)
    parts = await ask("log_likelihood", ROWS[:30], of={"max_rows": 20}, **options)
    np.testing.assert_array_equal(parts.log_likelihood, whole.log_likelihood)
    plain = await ask("log_likelihood", ROWS[:30], model=TABLE, reproducible=True)
    assert (plain.log_likelihood != whole.log_likelihood).any()
    np.testing.assert_array_equal(plain.score, whole.score)


async def test_tables_are_read_by_name(ask: Ask) -> None:
    x = tiny_mixed().fit.x[:30]
    names = ["color", "size", "count", "fixed", "copy"]
    columns: dict[str, Any] = dict(zip(names, x.T, strict=True))
    columns["color"] = np.array(["blue", "green", "red"])[x[:, 0].astype(int)]
    frame = pd.DataFrame({"id": "patient", **dict(reversed(columns.items()))})
    expected = (await ask("log_likelihood", x, model=MIXED, reproducible=True)).log_likelihood
    for rows in (
        frame,
        frame.astype({"color": "category", "count": "Int64"}),
        pa.Table.from_pandas(frame),
        pa.table({**columns, "color": pa.array(columns["color"]).dictionary_encode()}),
        frame.to_dict("records"),
        frame[names].to_numpy(),
        frame[names].to_numpy().tolist(),
    ):
        scores = await ask("log_likelihood", rows, model=MIXED, reproducible=True, of={"max_rows": 7})
        np.testing.assert_array_equal(scores.log_likelihood, expected)


async def test_wrong_requests_are_told_as_the_service_tells_them(ask: Ask) -> None:
    x = ROWS[:20].copy()
    x[13, 1] = np.nan
    with pytest.raises(InvalidRequest, match=r"^x\[13\]\[1\] is nan; every value must be finite") as raised:
        await ask("log_likelihood", x, model=TABLE)
    error = raised.value
    assert (error.code, error.status) == ("bad_request", 400)
    assert error.request_id
    assert error.request_id in str(error)
    with pytest.raises(ValueError, match=r"^x\[13\]\[1\] is nan; every value must be finite"):
        await ask("log_likelihood", x, model=TABLE, of={"max_rows": 5})
    for method, rows, options, message in (
        ("log_likelihood", np.zeros((0, 3)), {}, r"of shape \[0, 3\] is empty"),
        ("log_likelihood", ROWS[:2], {"alpha": 2}, "alpha: "),
        ("log_likelihood", ROWS[:2], {"alpha": np.nan}, "options must be finite numbers"),
        ("log_likelihood", ROWS[:2], {"scores": "beauty"}, "scores: "),
        ("decode", np.zeros((2, 9)), {}, r"z must be of shape \(B, 3\)"),
        ("decode", pd.DataFrame({"a": [1]}), {}, "z must be an array of numbers"),
        ("encode", 7, {}, "x must be rows"),
        ("encode", [[1.0], [1.0, 2.0]], {}, "x must be an array"),
        ("encode", [["pink"]], {"model": IMAGES}, "x: model tiny-images takes images"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            await ask(method, rows, **{"model": TABLE, **options})
    with pytest.raises(NotFound, match="no model 'none'; served are") as raised:
        await ask("log_likelihood", x, model="none")
    assert raised.value.code == "model_not_found"
