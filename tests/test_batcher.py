"""The batcher: every request is answered exactly once with its own rows, whatever it is batched with."""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from service.batcher import Batcher, _Pace
from service.errors import QueueFull, TooLarge, Unavailable
from service.row_queue import Array, Arrays, Job, Room


class Engine:
    """Answers a function of each row, remembers its batches, and can be made to wait or to fail."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.seen: list[Array] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()
        self.error: Exception | None = None

    def run(self, key: str, rows: Array) -> Arrays:
        self.batches.append((key, len(rows)))
        self.seen.append(rows)
        self.entered.set()
        self.free.wait(10)
        if self.error is not None:
            raise self.error
        return rows * 2, rows.sum(1)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest_asyncio.fixture
async def batcher(engine: Engine) -> AsyncIterator[Batcher[str]]:
    batcher = Batcher(engine.run, room, max_queue_rows=40)
    await batcher.start()
    yield batcher
    engine.free.set()
    await batcher.close()


def room(key: str, waiting: int) -> Room:
    return Room(most=8, brief=4)


def at_half_a_second_a_row(batcher: Batcher[str]) -> None:
    batcher._paces["a"] = _Pace()
    batcher._paces["a"].add(2, 1.0)


async def submit(batcher: Batcher[str], key: str, x: Array) -> Arrays:
    return (await batcher.submit(key, x)).outputs


def rows(first: int, num: int) -> Array:
    return np.arange(first, first + 2 * num, dtype=np.float64).reshape(num, 2)


async def hold(engine: Engine, batcher: Batcher[str]) -> "asyncio.Task[Any]":
    """Occupy the engine with one row, so that what comes next has to queue."""
    engine.free.clear()
    engine.entered.clear()
    task = asyncio.create_task(submit(batcher, "held", rows(0, 1)))
    await asyncio.to_thread(engine.entered.wait, 10)
    return task


async def test_requests_waiting_together_share_a_batch_and_get_their_own_rows(
    engine: Engine, batcher: Batcher[str]
) -> None:
    held = await hold(engine, batcher)
    tasks = [asyncio.create_task(submit(batcher, "a", rows(10 * i, 2))) for i in range(3)]
    await asyncio.sleep(0)
    engine.free.set()
    for i, (doubled, total) in enumerate(await asyncio.gather(*tasks)):
        assert np.array_equal(doubled, 2 * rows(10 * i, 2))
        assert np.array_equal(total, rows(10 * i, 2).sum(1))
    await held
    assert engine.batches == [("held", 1), ("a", 6)]


async def test_a_request_larger_than_a_batch_is_split_and_joined_in_order(
    engine: Engine, batcher: Batcher[str]
) -> None:
    doubled, total = await submit(batcher, "a", rows(0, 20))
    assert np.array_equal(doubled, 2 * rows(0, 20))
    assert len(total) == 20
    assert max(size for _, size in engine.batches) <= 8


async def test_a_single_row_does_not_wait_for_the_whole_of_a_large_request(
    engine: Engine, batcher: Batcher[str]
) -> None:
    held = await hold(engine, batcher)
    large = asyncio.create_task(submit(batcher, "a", rows(0, 36)))
    await asyncio.sleep(0)
    small = asyncio.create_task(submit(batcher, "a", rows(500, 1)))
    await asyncio.sleep(0)
    engine.free.set()
    assert np.array_equal((await small)[0], 2 * rows(500, 1))
    assert 500 in engine.seen[1]  # the first after the held row, although it came last
    assert np.array_equal((await large)[0], 2 * rows(0, 36))
    await held


async def test_a_full_queue_has_room_again_when_its_rows_are_answered_or_cancelled(
    engine: Engine, batcher: Batcher[str]
) -> None:
    held = await hold(engine, batcher)
    cancelled = asyncio.create_task(submit(batcher, "a", rows(0, 40)))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    waiting = asyncio.create_task(submit(batcher, "a", rows(0, 40)))
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(held, waiting)
    assert len((await submit(batcher, "a", rows(0, 40)))[0]) == 40


async def test_requests_with_different_keys_never_share_a_batch(engine: Engine, batcher: Batcher[str]) -> None:
    held = await hold(engine, batcher)
    tasks = [asyncio.create_task(submit(batcher, key, rows(0, 1))) for key in "abab"]
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(held, *tasks)
    assert engine.batches == [("held", 1), ("a", 2), ("b", 2)]


async def test_a_failing_batch_fails_each_of_its_requests_and_the_next_one_works(
    engine: Engine, batcher: Batcher[str]
) -> None:
    held = await hold(engine, batcher)
    tasks = [asyncio.create_task(submit(batcher, "a", rows(0, 1))) for _ in range(3)]
    await asyncio.sleep(0)
    engine.error = RuntimeError("broken")
    engine.free.set()
    results = await asyncio.gather(held, *tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["broken"] * 4
    engine.error = None
    assert len(await submit(batcher, "a", rows(0, 1))) == 2


async def test_an_engine_that_answers_another_number_of_rows_is_an_error(batcher: Batcher[str]) -> None:
    batcher._run = lambda key, rows: (rows[:-1],)
    with pytest.raises(RuntimeError, match="answered 1 rows for 2"):
        await submit(batcher, "a", rows(0, 2))


async def test_what_preparing_raises_ends_the_start() -> None:
    def fail() -> None:
        raise ValueError("not today")

    batcher = Batcher(Engine().run, room, max_queue_rows=40, prepare=fail)
    with pytest.raises(ValueError, match="not today"):
        await batcher.start()


async def test_the_thread_that_prepares_is_the_one_that_runs() -> None:
    prepared: list[str] = []
    batcher = Batcher(
        Engine().run, room, max_queue_rows=40, prepare=lambda: prepared.append(threading.current_thread().name)
    )
    await batcher.start()
    await batcher.close()
    assert prepared == ["engine"]


async def test_a_cancelled_request_costs_no_forward_pass(engine: Engine, batcher: Batcher[str]) -> None:
    held = await hold(engine, batcher)
    cancelled = asyncio.create_task(submit(batcher, "cancelled", rows(0, 3)))
    kept = asyncio.create_task(submit(batcher, "kept", rows(0, 1)))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    engine.free.set()
    await asyncio.gather(held, kept)
    assert engine.batches == [("held", 1), ("kept", 1)]


async def test_a_full_queue_refuses_at_once_and_names_its_limit(engine: Engine, batcher: Batcher[str]) -> None:
    held = await hold(engine, batcher)
    waiting = asyncio.create_task(submit(batcher, "a", rows(0, 40)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match=r"40 rows are waiting and 1 more .*GLOW_MAX_QUEUE_ROWS"):
        await submit(batcher, "a", rows(0, 1))
    engine.free.set()
    await asyncio.gather(held, waiting)


async def test_closing_answers_what_is_queued_and_refuses_what_comes_after(
    engine: Engine, batcher: Batcher[str]
) -> None:
    held = await hold(engine, batcher)
    waiting = asyncio.create_task(submit(batcher, "a", rows(0, 9)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable):
        await submit(batcher, "a", rows(0, 1))
    engine.free.set()
    await asyncio.gather(held, waiting, closing)


async def test_batches_of_any_mixture_answer_as_single_requests_do(engine: Engine, batcher: Batcher[str]) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        sizes = random.integers(1, 12, 3)
        results = await asyncio.gather(*(submit(batcher, "a", rows(i, int(size))) for i, size in enumerate(sizes)))
        for i, size in enumerate(sizes):
            assert np.array_equal(results[i][0], 2 * rows(i, int(size)))


async def test_a_request_that_makes_a_call_fail_fails_alone(engine: Engine, batcher: Batcher[str]) -> None:
    run = engine.run

    def fail_on_13(key: str, x: Array) -> Arrays:
        if (x == 13).any():
            raise ValueError("13")
        return run(key, x)

    batcher._run = fail_on_13
    held = await hold(engine, batcher)
    tasks = [asyncio.create_task(submit(batcher, "a", rows(first, 1))) for first in (0, 2, 12, 4, 6)]
    await asyncio.sleep(0)
    engine.free.set()
    results = await asyncio.gather(held, *tasks, return_exceptions=True)
    assert str(results[3]) == "13"
    for first, result in zip((0, 2, 4, 6), results[1:3] + results[4:], strict=True):
        assert not isinstance(result, BaseException)
        assert np.array_equal(result[0], 2 * rows(first, 1))


async def test_a_full_queue_says_when_there_will_be_room_at_the_pace_of_the_engine(
    engine: Engine, batcher: Batcher[str]
) -> None:
    at_half_a_second_a_row(batcher)
    held = await hold(engine, batcher)
    waiting = asyncio.create_task(submit(batcher, "a", rows(0, 38)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refused:
        await submit(batcher, "a", rows(0, 10))  # 8 rows too many
    assert refused.value.retry_after_s == 4
    engine.free.set()
    await asyncio.gather(held, waiting)


async def test_what_could_not_be_answered_in_time_is_refused_at_once(engine: Engine, batcher: Batcher[str]) -> None:
    at_half_a_second_a_row(batcher)
    held = await hold(engine, batcher)
    waiting = asyncio.create_task(submit(batcher, "a", rows(0, 20)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match=r"20 rows are ahead, about 10.0 s of work, and the request may wait for 3.0 s"):
        await batcher.submit("a", rows(0, 20), patience_s=3)
    patient = asyncio.create_task(batcher.submit("a", rows(0, 20), patience_s=11))
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(held, waiting, patient)


async def test_what_can_never_fit_is_not_told_to_come_again(batcher: Batcher[str]) -> None:
    with pytest.raises(TooLarge, match=r"41 rows are more than the queue may hold, 40 \(GLOW_MAX_QUEUE_ROWS\)"):
        await submit(batcher, "a", rows(0, 41))


async def test_a_thread_that_ends_leaves_no_request_without_an_answer(
    engine: Engine, batcher: Batcher[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await hold(engine, batcher)
    waiting = asyncio.create_task(submit(batcher, "a", rows(0, 1)))
    await asyncio.sleep(0)
    monkeypatch.setattr(batcher, "_try", None)
    monkeypatch.setattr(batcher, "_deliver", None)
    engine.free.set()
    results = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(results[0], Unavailable)
    with pytest.raises(Unavailable):
        await submit(batcher, "a", rows(0, 1))
    held.cancel()


async def test_the_time_of_an_answer_is_told_apart_into_waiting_and_running(
    engine: Engine, batcher: Batcher[str]
) -> None:
    held = await hold(engine, batcher)
    waiting = asyncio.create_task(batcher.submit("a", rows(0, 1)))
    await asyncio.sleep(0.05)
    engine.free.set()
    await held
    answer = await waiting
    assert answer.queue_s >= 0.05
    assert 0 <= answer.compute_s < answer.queue_s


async def test_a_small_request_does_not_wait_in_line_for_large_ones_that_leave_after_it(
    engine: Engine, batcher: Batcher[str]
) -> None:
    at_half_a_second_a_row(batcher)
    held = await hold(engine, batcher)
    large = asyncio.create_task(submit(batcher, "a", rows(0, 30)))
    await asyncio.sleep(0)
    small = asyncio.create_task(batcher.submit("a", rows(0, 1), patience_s=1))
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(held, large, small)


async def test_the_pace_is_learned_from_queues_and_not_from_single_rows(engine: Engine, batcher: Batcher[str]) -> None:
    for _ in range(3):
        await submit(batcher, "a", rows(0, 1))
    assert not batcher._paces
    await submit(batcher, "a", rows(0, 30))
    assert batcher._paces["a"].seconds_per_row > 0


async def test_a_pace_that_was_too_slow_is_corrected_without_a_queue(engine: Engine, batcher: Batcher[str]) -> None:
    at_half_a_second_a_row(batcher)
    await submit(batcher, "a", rows(0, 8))
    assert batcher._paces["a"].seconds_per_row < 0.2


async def test_a_request_whose_answers_cannot_be_joined_fails_alone(
    engine: Engine, batcher: Batcher[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Job.answer

    def no_memory(job: Job, outputs: Arrays) -> None:
        if len(job.rows) == 20:
            raise MemoryError
        answer(job, outputs)

    monkeypatch.setattr(Job, "answer", no_memory)
    held = await hold(engine, batcher)
    tasks = [asyncio.create_task(submit(batcher, "a", rows(0, num))) for num in (20, 2)]
    await asyncio.sleep(0)
    engine.free.set()
    results = await asyncio.gather(held, *tasks, return_exceptions=True)
    assert [type(result) for result in results] == [tuple, MemoryError, tuple]


async def test_what_fails_lets_go_of_its_rows(engine: Engine, batcher: Batcher[str]) -> None:
    engine.error = RuntimeError("broken")
    x = rows(0, 3)
    alive = weakref.ref(x)
    logging.disable(logging.CRITICAL)  # pytest keeps records, and with them the frames of errors
    gc.disable()
    try:
        with pytest.raises(RuntimeError):
            await submit(batcher, "a", x)
        del x
        engine.seen.clear()
        engine.error = None
        await asyncio.sleep(0.01)
        assert alive() is None
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
