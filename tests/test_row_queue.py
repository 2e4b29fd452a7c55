"""The queue of rows: each leaves once and in order, small jobs go first, and none waits for ever."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.row_queue import Job, Room, RowQueue


def room(key: str, waiting: int) -> Room:
    return Room(most=8 if waiting >= 16 else 3, brief=4) if key == "a" else Room(most=5, brief=5)


def job(key: str, num_rows: int, first: int = 0) -> Job:
    return Job(key, np.arange(first, first + num_rows))


def sizes(queue: RowQueue[Job], brief: bool = False) -> list[int]:
    return [part.stop - part.start for part in queue.take(brief)]


def test_small_jobs_go_before_a_large_one_that_came_first_and_it_fills_the_pass_up() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(8, 8))
    large, small, other = job("a", 20), job("a", 1), job("a", 2)
    for each in (large, small, other):
        queue.push(each)
    assert [part.job for part in queue.take()] == [small, other, large]
    assert large.taken == 5


def test_a_job_whose_number_of_rows_have_left_is_not_overtaken_any_more() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(4, 4))
    waiting = job("a", 6)
    queue.push(waiting)
    for _ in range(3):
        if waiting.taken == 0:
            queue.push(job("a", 4))
            queue.take()
    queue.push(last := job("a", 1))
    while waiting.left:
        assert last.left or waiting.left == 0
        queue.take()


@pytest.mark.parametrize(("num_left", "num_ahead"), [(0, 0), (3, 0), (4, 1), (5, 6), (6, 5), (10, 1)])
def test_one_row_goes_before_a_job_until_as_many_but_one_have_left_as_that_has(num_left: int, num_ahead: int) -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(1, 9))
    queue.push(job("a", 6))
    queue.push(job("a", 5))
    for _ in range(num_left):
        queue.take()
    assert queue.num_ahead("b", 1) == {"a": num_ahead}
    queue.push(last := job("b", 1))
    for _ in range(num_ahead):
        queue.take()
        assert last.left == 1
    queue.take()
    assert last.left == 0


def test_rows_of_a_job_that_leaves_in_parts_count_once() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(8, 8))
    queue.push(first := job("a", 20))
    queue.push(job("a", 30))
    for _ in range(2):
        queue.take()
    queue.push(small := job("a", 13))  # 16 have left, so it is before the 30
    assert [part.job for part in queue.take()] == [first, small]


def test_the_key_of_the_job_that_is_first_goes_first() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(4, 4))
    for key, num_rows in (("a", 2), ("a", 4), ("b", 3), ("c", 9), ("a", 20)):
        queue.push(job(key, num_rows))
    led = [queue.take()[0].job.key for _ in range(4)]
    assert led == ["a", "b", "a", "c"]


def test_after_a_large_job_the_first_small_one_leads_a_brief_pass() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(4, 4))
    for _ in range(2):
        queue.push(job("a", 5))
    for _ in range(3):
        queue.take()
    queue.push(job("a", 8))  # now nothing small waits, and what is left of the large ones leads
    assert queue.take(brief=True)[0].job.small is False
    for key, num_rows in (("b", 1), ("c", 2), ("b", 4)):
        queue.push(job(key, num_rows))
    assert [part.job.key for part in queue.take(brief=True)] == ["b", "b"]


def test_a_pass_is_brief_only_where_that_is_asked_for() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(8, 2))
    queue.push(job("a", 20))
    assert (sizes(queue, brief=True), [part.stop - part.start for part in queue.take()]) == ([2], [8])


def test_what_is_cleared_or_dropped_waits_no_longer_and_all_else_does() -> None:
    queue = RowQueue[Job](room)
    jobs = [job("a", 3), job("b", 9), job("a", 30), job("a", 3)]
    for each in jobs[:3]:
        queue.push(each)
    taken = queue.take()
    assert [(part.job, part.rows.tolist()) for part in taken] == [(jobs[0], [0, 1, 2]), (jobs[2], [0, 1, 2, 3, 4])]
    queue.push(jobs[3])
    for gone in (jobs[0], jobs[3], jobs[3]):
        queue.drop(gone)
        assert queue.num_waiting == (37 if gone is jobs[0] else 34)
    assert queue.waiting == {"a": 25, "b": 9}
    assert set(queue.clear()) == {jobs[1], jobs[2]}
    assert (queue.num_waiting, queue.waiting, queue.take(), queue.take(brief=True)) == (0, {}, [], [])


def test_outputs_of_a_job_come_together_however_they_are_cut() -> None:
    outputs = (np.arange(14.0).reshape(7, 2), np.arange(7, dtype=np.int8))
    for cuts in ([0, 7], [0, 1, 7], [0, 3, 4, 6, 7]):
        each = job("a", 7)
        for start, stop in itertools.pairwise(cuts):
            each.answer(tuple(output[start:stop] for output in outputs))
            assert each.answered == stop
        for whole, expected in zip(each.outputs, outputs, strict=True):
            np.testing.assert_array_equal(whole, expected, strict=True)


def test_a_brief_pass_has_small_jobs_and_as_much_of_large_ones_as_keeps_it_brief() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(8, 4))
    queue.push(large := job("a", 30))
    assert sizes(queue, brief=True) == [4]
    queue.push(job("a", 1))
    assert sizes(queue, brief=True) == [1, 3]
    for _ in range(9):
        queue.push(job("a", 1))
    assert [part.job.small for part in queue.take(brief=True)] == [True] * 6 + [False]
    assert large.taken == 4 + 3 + 2  # half of a brief pass, however many small ones wait
    assert sizes(queue) == [1, 1, 1, 5]


def test_small_jobs_ride_in_brief_passes_whose_large_ones_are_not_to_be_overtaken() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(4, 4))
    for _ in range(3):
        queue.push(job("a", 8))
    for _ in range(3):  # the first has left, and the others come before what comes now
        queue.take()
    queue.push(small := job("a", 2))
    assert sum(sizes(queue, brief=True)) == 4
    assert small.left == 0


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("keys", ["aa", "ab"])
def test_small_and_large_jobs_that_never_cease_both_leave(most: int, keys: str) -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(most, most))
    jobs: list[Job] = []
    left: Counter[bool] = Counter()
    for _ in range(200):
        small, large = (sum(each.left > 0 for each in jobs if each.small is small) for small in (True, False))
        more = [job(keys[0], 1) for _ in range(small, 3 * most)] + [job(keys[1], 5 * most) for _ in range(large, 3)]
        for each in more:
            queue.push(each)
        jobs += more
        for part in queue.take(brief=True):
            left[part.job.small] += part.stop - part.start
    assert min(left.values()) >= left.total() / 3


def test_rows_ahead_of_a_small_job_are_the_small_ones_and_as_many_of_large_ones() -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(4, 4))
    for _ in range(2):
        queue.push(job("a", 20))
    for _ in range(5):  # the first large one has left
        queue.take()
    assert queue.num_ahead("a", 1) == {"a": 0}
    assert queue.num_ahead("a", 30) == {"a": 20}
    for _ in range(3):
        queue.push(job("a", 1))
    assert queue.num_ahead("a", 1) == {"a": 6}
    assert queue.num_ahead("a", 30) == {"a": 23}


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(0, 5), st.integers(1, 4))
def test_before_a_small_job_leave_no_more_rows_than_were_told_and_a_brief_pass(
    before: list[int], passes: int, num_rows: int
) -> None:
    queue = RowQueue[Job](lambda key, waiting: Room(8, 4))
    for num in before:
        queue.push(job("a", num))
    for _ in range(passes):
        queue.take()
    told = queue.num_ahead("a", num_rows).get("a", 0)
    queue.push(last := job("a", num_rows))
    left, parts = 0, queue.take(brief=True)
    while last not in [part.job for part in parts]:
        left += sum(part.stop - part.start for part in parts)
        parts = queue.take(brief=True)
    assert left <= told + 4


class Queue(RuleBasedStateMachine):
    """Jobs come, leave by passes and are dropped, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: RowQueue[Job] = RowQueue(room)
        self.jobs: list[Job] = []
        self.dropped: set[Job] = set()
        self.left: Counter[Job] = Counter()
        self.num_left = 0
        self.came_at: dict[Job, int] = {}
        self.ahead: dict[Job, set[Job]] = {}  # of each job, those that must not leave after it

    @rule(key=st.sampled_from("ab"), num_rows=st.integers(1, 20))
    def push(self, key: str, num_rows: int) -> None:
        new = job(key, num_rows)
        self.came_at[new] = self.num_left
        self.ahead[new] = {
            old
            for old in self.waiting
            if old.key == key and (len(old.rows) <= num_rows or self.num_left - self.came_at[old] >= len(old.rows))
        }
        num_ahead = self.queue.num_ahead(key, num_rows)
        self.queue.push(new)
        if not new.small:
            ahead = [old for old in self.waiting if old.place < new.place]
            assert num_ahead == {
                each: sum(old.left for old in ahead if old.key == each)
                for each in self.queue.waiting
                if each in num_ahead
            }
        self.jobs.append(new)

    @rule(brief=st.booleans())
    def take(self, brief: bool) -> None:
        waiting = dict(self.queue.waiting)
        parts: list[Any] = self.queue.take(brief)
        assert bool(parts) == bool(self.waiting or parts)
        assert len({part.job.key for part in parts}) <= 1
        for part in parts:
            assert part.job not in self.dropped
            assert (part.start, part.stop) == (self.left[part.job], part.job.taken)
            self.left[part.job] = part.stop
            if not brief:  # in which large jobs wait for others to pass
                for before in self.ahead[part.job] - self.dropped:
                    assert before.left == 0
        num_rows = sum(part.stop - part.start for part in parts)
        self.num_left += num_rows
        if parts:
            key = parts[0].job.key
            assert 0 < num_rows <= room(key, waiting[key]).most

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.jobs))
        if chosen.left:
            self.dropped.add(chosen)
        self.queue.drop(chosen)

    @property
    def waiting(self) -> list[Job]:
        return [each for each in self.jobs if each.left and each not in self.dropped]

    @invariant()
    def what_waits_is_what_came_and_has_neither_left_nor_been_dropped(self) -> None:
        for key in "ab":
            expected = sum(each.left for each in self.waiting if each.key == key)
            assert self.queue.waiting.get(key, 0) == expected

    def teardown(self) -> None:
        for _ in range(1000):
            if not self.queue.take():
                break
        assert not self.waiting


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
