"""What the batcher says of time, by a clock of its own: of answers, of the engine, of passes, and work beside them."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from service import batcher as module
from service.batcher import Batcher, Pass, _Pace
from service.errors import QueueFull, Unavailable
from service.row_queue import Array, Arrays, Room

SECONDS_A_ROW = 0.25


class Engine:
    """Takes a quarter of a second a row by the test's clock, and waits for the test where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[int] = []
        self.free, self.entered = threading.Event(), threading.Event()
        self.free.set()

    def run(self, key: str, rows: Array) -> Arrays:
        self.calls.append(len(rows))
        self.entered.set()
        assert self.free.wait(10)
        self.now += SECONDS_A_ROW * len(rows)
        return (rows,)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: engine.now))
    return engine


@pytest.fixture
def passes() -> list[Pass[str]]:
    return []


@pytest_asyncio.fixture
async def batcher(engine: Engine, passes: list[Pass[str]]) -> AsyncIterator[Batcher[str]]:
    """No callback of it may fail unseen."""
    wrong: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: wrong.append(context))
    batcher = Batcher(
        engine.run, lambda key, waiting: Room(8, 2), 40, observe=passes.append, kind=lambda key: key.lower()
    )
    await batcher.start()
    yield batcher
    engine.free.set()
    await batcher.close()
    await asyncio.sleep(0)
    asyncio.get_running_loop().set_exception_handler(None)
    assert not wrong


def rows(num: int) -> Array:
    return np.zeros((num, 1))


async def hold(engine: Engine, batcher: Batcher[str], num: int = 4) -> "asyncio.Task[Any]":
    """Occupy the engine with rows, so that what comes next has to wait."""
    engine.free.clear()
    engine.entered.clear()
    task = asyncio.create_task(batcher.submit("held", rows(num)))
    await asyncio.to_thread(engine.entered.wait, 10)
    return task


async def later(batcher: Batcher[str], key: str, num: int, **options: Any) -> "asyncio.Task[Any]":
    """Submit rows that wait."""
    task = asyncio.create_task(batcher.submit(key, rows(num), **options))
    await asyncio.sleep(0)
    return task


async def test_an_answer_tells_when_it_came_how_long_it_waited_and_how_long_it_ran(
    engine: Engine, batcher: Batcher[str]
) -> None:
    held = await hold(engine, batcher)
    engine.now += 3
    waiting = await later(batcher, "a", 20)  # in passes of 8, 8 and 4 rows, and none is brief: no small one came
    engine.free.set()
    await held
    answer = await waiting
    assert (answer.submitted, answer.queue_s, answer.compute_s) == (103.0, 1.0, 5.0)
    assert engine.calls == [4, 8, 8, 4]


async def test_every_pass_is_told_with_its_requests_and_what_it_left_waiting(
    engine: Engine, batcher: Batcher[str], passes: list[Pass[str]]
) -> None:
    held = await hold(engine, batcher)
    tasks = [await later(batcher, "a", 3, tag="x"), await later(batcher, "a", 3), await later(batcher, "a", 6)]
    engine.free.set()
    await asyncio.gather(held, *tasks)
    assert passes == [
        Pass("held", 1, 4, 100.0, 1.0, 12, []),
        Pass("a", 3, 8, 101.0, 2.0, 4, ["x"]),
        Pass("a", 1, 4, 103.0, 1.0, 0, []),
    ]


async def test_the_engine_is_busy_for_as_long_as_it_is_at_one_call(engine: Engine, batcher: Batcher[str]) -> None:
    assert batcher.busy_s == 0
    held = await hold(engine, batcher)
    engine.now += 7
    assert (batcher.busy_s, batcher.waiting_rows, batcher.closed) == (7.0, 0, False)
    engine.free.set()
    await held
    engine.now += 1
    assert batcher.busy_s == 0


async def test_large_requests_are_kept_brief_for_a_second_after_a_small_one(
    engine: Engine, batcher: Batcher[str]
) -> None:
    for since, first in ((0.0, 2), (0.75, 2), (1.0, 8), (1.5, 8)):
        await batcher.submit("a", rows(2))  # as many rows as a brief pass has
        engine.now -= 2 * SECONDS_A_ROW
        engine.now += since
        engine.calls.clear()
        await batcher.submit("a", rows(8))
        assert engine.calls[0] == first
        engine.now += 100
    await batcher.submit("a", rows(3))  # which is not small
    engine.calls.clear()
    await batcher.submit("a", rows(8))
    assert engine.calls == [8]


def test_a_pace_forgets_a_tenth_of_what_it_knows_with_each_pass() -> None:
    pace = _Pace()
    pace.add(10, 1.0)
    assert pace.seconds_per_row == pytest.approx(0.1)
    pace.add(20, 4.0)
    assert pace.seconds_per_row == pytest.approx((0.9 * 1 + 4) / (0.9 * 10 + 20))
    for _ in range(100):
        pace.add(5, 1.0)
    assert pace.seconds_per_row == pytest.approx(0.2, rel=1e-3)


async def test_a_wait_is_foretold_by_the_pace_of_keys_that_cost_alike(engine: Engine, batcher: Batcher[str]) -> None:
    await batcher.submit("A", rows(16))  # its first pass leaves rows behind, so that a row's cost is known
    held = await hold(engine, batcher)
    tasks = [await later(batcher, "a", 12), await later(batcher, "unknown", 8)]
    with pytest.raises(QueueFull, match=r"20 rows are ahead, about 3.0 s of work.* for 0.5 s") as refused:
        await batcher.submit("a", rows(20), patience_s=0.5)
    assert refused.value.retry_after_s == 3  # whole seconds
    for patience_s in (3.0, 0.0, -1.0):  # exactly as long; no limit
        tasks.append(await later(batcher, "a", 1 if patience_s > 0 else 2, patience_s=patience_s))
    tasks.append(await later(batcher, "a", 1, patience_s=0.5))  # for a row in front of it, and one of a large request
    engine.free.set()
    await asyncio.gather(held, *tasks)


async def test_a_pass_that_leaves_nothing_behind_tells_no_pace_unless_it_was_quicker(
    engine: Engine, batcher: Batcher[str]
) -> None:
    await batcher.submit("a", rows(8))
    assert not batcher._paces
    await batcher.submit("a", rows(16))
    known = batcher._paces["a"].seconds_per_row
    assert known == pytest.approx(SECONDS_A_ROW)
    engine.now -= 1000  # a call that seems to take no time
    real, engine.run = engine.run, lambda key, rows: (rows,)  # type: ignore[method-assign]
    batcher._run = engine.run
    await batcher.submit("a", rows(8))
    assert batcher._paces["a"].seconds_per_row < known
    batcher._run = real
    slow = batcher._paces["a"].seconds_per_row
    await batcher.submit("a", rows(1))
    assert batcher._paces["a"].seconds_per_row == slow


async def test_work_beside_is_done_to_its_end_and_its_error_is_the_callers(
    engine: Engine, batcher: Batcher[str]
) -> None:
    done: list[str] = []

    def steps(num: int, error: Exception | None = None) -> Iterator[None]:
        for _ in range(num):
            done.append(threading.current_thread().name)
            yield
        if error:
            raise error

    await asyncio.gather(batcher.run_beside(steps(3)), batcher.run_beside(steps(2)))
    assert done == ["engine"] * 5
    with pytest.raises(ValueError, match="not so"):
        await batcher.run_beside(steps(1, ValueError("not so")))
    await batcher.run_beside(steps(1))
    assert len((await batcher.submit("a", rows(2))).outputs[0]) == 2


async def calls_before_steps(engine: Engine, batcher: Batcher[str], keys: str, num: int, seconds: float) -> list[int]:
    """Calls by the time of each of so many steps of other work, while four rows of each key wait."""
    held = await hold(engine, batcher)
    waiting = [await later(batcher, key, 4) for key in keys]
    calls: list[int] = []

    def steps() -> Iterator[None]:
        for _ in range(num):
            calls.append(len(engine.calls))
            engine.now += seconds
            yield

    beside = asyncio.create_task(batcher.run_beside(steps()))
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(held, *waiting, beside)
    return calls


async def test_work_beside_takes_half_of_the_time_while_rows_wait(engine: Engine, batcher: Batcher[str]) -> None:
    """A step of one second is followed by a second of calls, four rows; while nothing waits, by the next step."""
    assert await calls_before_steps(engine, batcher, "abc", num=5, seconds=1) == [1, 2, 3, 4, 4]


async def test_longer_steps_of_work_beside_leave_longer_turns(engine: Engine, batcher: Batcher[str]) -> None:
    """A step as long as two calls is followed by two of them."""
    assert await calls_before_steps(engine, batcher, "abcde", num=3, seconds=2) == [1, 3, 5]


async def test_a_stopping_service_takes_no_more_work_beside_and_ends_what_it_has(engine: Engine) -> None:
    batcher = Batcher(engine.run, lambda key, waiting: Room(8, 2), 40)
    await batcher.start()
    engine.free.clear()
    held = asyncio.create_task(batcher.submit("a", rows(1)))
    await asyncio.to_thread(engine.entered.wait, 10)
    beside = asyncio.create_task(batcher.run_beside(itertools.repeat(None)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    assert batcher.closed
    with pytest.raises(Unavailable, match="the service is stopping"):
        await batcher.run_beside(iter([None]))
    engine.free.set()
    await asyncio.gather(held, closing)
    with pytest.raises(Unavailable, match="the engine has stopped"):
        await beside


async def test_a_batcher_that_has_nothing_to_do_can_be_closed_more_than_once(engine: Engine) -> None:
    batcher = Batcher(engine.run, lambda key, waiting: Room(8, 2), 40)
    await batcher.start()
    await batcher.close()
    await batcher.close()
    with pytest.raises(Unavailable, match="the service is stopping"):
        await batcher.submit("a", rows(1))


async def test_the_engines_thread_does_not_keep_a_process_alive(engine: Engine, batcher: Batcher[str]) -> None:
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "engine")


async def test_a_failed_call_of_one_request_is_told_once_to_it_and_to_the_log(
    engine: Engine, batcher: Batcher[str], passes: list[Pass[str]], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(key: str, rows: Array) -> Arrays:
        raise ValueError("broken")

    held = await hold(engine, batcher)
    tasks = [await later(batcher, "a", 1), await later(batcher, "a", 20)]
    batcher._run = fail
    engine.free.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await held
    assert [str(result) for result in results] == ["broken", "broken"]
    assert batcher.waiting_rows == 0  # nor is the rest of the large one run
    told = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert told == ["a call for 2 requests failed; trying each half", *["a call for one request failed"] * 2]
    assert [(one.num_requests, one.waiting_rows) for one in passes[1:]] == [(1, 13), (1, 0)]


def test_an_engine_that_outlives_its_event_loop_says_so_and_ends(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.free.clear()

    async def begin() -> tuple[Batcher[str], "asyncio.Task[Any]"]:
        batcher = Batcher(engine.run, lambda key, waiting: Room(8, 2), 40)
        await batcher.start()
        abandoned = asyncio.create_task(batcher.submit("a", rows(1)))
        await asyncio.to_thread(engine.entered.wait, 10)
        return batcher, abandoned

    before = set(threading.enumerate())
    loop = asyncio.new_event_loop()
    batcher, abandoned = loop.run_until_complete(begin())
    abandoned.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    batcher._closed = True
    engine.free.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert "the event loop has ended before the engine" in caplog.text
