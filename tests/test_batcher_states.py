"""Every request is answered exactly once and with its own rows, whatever comes, is cancelled or fails around it."""

import asyncio
import threading
import time
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.batcher import Answer, Batcher
from service.errors import QueueFull, TooLarge
from service.row_queue import Array, Arrays, Room

CAP, MOST, POISON = 24, 8, -1.0


class Gate:
    """An engine that runs one call for each ticket, doubles its rows, and fails where one of them is poison."""

    def __init__(self) -> None:
        self.tickets = threading.Semaphore(0)
        self.waits = False

    def run(self, key: str, rows: Array) -> Arrays:
        assert 0 < len(rows) <= MOST
        self.waits = True
        self.tickets.acquire()
        if (rows == POISON).any():
            raise ValueError("poison")
        return 2 * rows, rows.sum(1)


@dataclass
class Sent:
    rows: Array
    task: "asyncio.Task[Answer]"
    cancelled: bool = False

    @property
    def poisoned(self) -> bool:
        return bool((self.rows == POISON).any())


class Requests(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.gate = Gate()
        self.batcher = Batcher[str](self.gate.run, lambda key, waiting: Room(MOST, 3), CAP)
        self.loop.run_until_complete(self.batcher.start())
        self.sent: list[Sent] = []
        self.number = 0.0

    def settle(self) -> None:
        """Wait until the engine waits, for a ticket or for work, and what it has told has been heard."""
        self.loop.run_until_complete(asyncio.sleep(0))
        deadline = time.monotonic() + 10
        while not (self.gate.waits or self.batcher._idle):
            assert time.monotonic() < deadline
            time.sleep(1e-4)
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    @rule(key=st.sampled_from("ab"), num_rows=st.integers(1, CAP + 2), poisoned=st.sampled_from([False] * 5 + [True]))
    def submit(self, key: str, num_rows: int, poisoned: bool) -> None:
        rows = self.number + np.arange(2.0 * num_rows).reshape(num_rows, 2)
        self.number += 1000
        if poisoned:
            rows[num_rows // 2] = POISON
        before = self.batcher.waiting_rows
        task = self.loop.create_task(self.batcher.submit(key, rows))
        self.settle()
        if num_rows > CAP:
            assert isinstance(task.exception(), TooLarge)
        elif task.done():
            assert isinstance(task.exception(), QueueFull)
            assert before + num_rows > CAP
        else:
            self.sent.append(Sent(rows, task))

    @precondition(lambda self: self.sent)
    @rule(index=st.integers(0, 100))
    def cancel(self, index: int) -> None:
        chosen = self.sent[index % len(self.sent)]
        if not chosen.task.done():
            chosen.cancelled = chosen.task.cancel()
            self.settle()

    @rule()
    def let_the_engine_run_a_call(self) -> None:
        if self.gate.waits:
            self.gate.waits = False
            self.gate.tickets.release()
            self.settle()

    @invariant()
    def the_queue_is_never_above_its_cap(self) -> None:
        assert self.batcher.waiting_rows <= CAP

    def teardown(self) -> None:
        self.gate.tickets.release(1000)
        if self.sent:
            self.loop.run_until_complete(asyncio.wait([sent.task for sent in self.sent], timeout=10))
        for sent in self.sent:
            if sent.cancelled:
                assert sent.task.cancelled()
            elif sent.poisoned:
                assert str(sent.task.exception()) == "poison"
            else:
                doubled, total = sent.task.result().outputs
                np.testing.assert_array_equal(doubled, 2 * sent.rows)
                np.testing.assert_array_equal(total, sent.rows.sum(1))
        assert self.batcher.waiting_rows == 0
        self.loop.run_until_complete(self.batcher.close())
        self.loop.close()


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
