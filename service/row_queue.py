"""Which rows run next: jobs of any size wait here, and leave in passes of many jobs' rows. Knows no thread, no clock.

A job's place is the number of rows that had left when it came, plus its own number of rows. So jobs of one size leave
in the order in which they came, and small ones go before large ones; but once as many rows have left as a job has
itself, none that comes after goes before it: neither a thousand small callers nor a huge one keep the other waiting.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]
JobT = TypeVar("JobT", bound="Job")


class Room(NamedTuple):
    """Rows that a pass may have."""

    most: int  # at all
    brief: int  # of jobs that have more than so many, while smaller ones come and go


@dataclass(eq=False, slots=True)
class Job:
    """Rows of one caller: the first ``taken`` have left the queue, the first ``answered`` have their outputs."""

    key: Any
    rows: Array
    place: tuple[int, int] = (0, 0)
    taken: int = 0
    answered: int = 0
    outputs: Arrays = ()

    @property
    def left(self) -> int:
        return len(self.rows) - self.taken

    def answer(self, outputs: Arrays) -> None:
        """Take the outputs of the next rows, one entry a row."""
        num_rows = len(outputs[0])
        if num_rows == len(self.rows):
            self.outputs = outputs
        else:
            if not self.outputs:
                self.outputs = tuple(np.empty((len(self.rows), *output.shape[1:]), output.dtype) for output in outputs)
            for whole, part in zip(self.outputs, outputs, strict=True):
                whole[self.answered : self.answered + num_rows] = part
        self.answered += num_rows


class Part(NamedTuple, Generic[JobT]):
    """Rows ``start`` to ``stop`` of a job, in a pass."""

    job: JobT
    start: int
    stop: int

    @property
    def rows(self) -> Array:
        return self.job.rows[self.start : self.stop]


class RowQueue(Generic[JobT]):
    """Waiting jobs by key; only jobs of one key share a pass. ``room`` is asked with a key and the rows that wait."""

    def __init__(self, room: Callable[[Any, int], Room]) -> None:
        self._room = room
        self._lines: dict[Hashable, list[tuple[tuple[int, int], JobT]]] = {}  # each sorted by place
        self._order = itertools.count()
        self._left = 0  # rows that have left
        self.waiting: dict[Hashable, int] = {}  # rows

    @property
    def num_waiting(self) -> int:
        """Rows that wait, of all keys."""
        return sum(self.waiting.values())

    def num_ahead(self, num_rows: int) -> dict[Hashable, int]:
        """Rows by key that would leave before a job of so many, if it came now."""
        place = (self._left + num_rows + 1,)
        return {  # of all that wait, but for those behind: few or none, however long the line is
            key: self.waiting[key] - sum(job.left for _, job in line[bisect_left(line, (place,)) :])
            for key, line in self._lines.items()
        }

    def push(self, job: JobT) -> None:
        """Let a job wait."""
        job.place = (self._left + len(job.rows), next(self._order))
        insort(self._lines.setdefault(job.key, []), (job.place, job))
        self.waiting[job.key] = self.waiting.get(job.key, 0) + job.left

    def drop(self, job: JobT) -> None:
        """Forget what is left of a job; one that does not wait is left alone."""
        line = self._lines.get(job.key, [])
        index = bisect_left(line, (job.place,))
        if index < len(line) and line[index][1] is job:
            del line[index]
            self._leave(job.key, job.left)

    def clear(self) -> list[JobT]:
        """Forget every job; returns them."""
        jobs = [job for line in self._lines.values() for _, job in line]
        self._lines.clear()
        self.waiting.clear()
        return jobs

    def take(self, brief: bool = False) -> list[Part[JobT]]:
        """Take the rows of the next pass, all of one key, in the jobs' order; nothing where nothing waits."""
        if not self._lines:
            return []
        line = min(self._lines.values(), key=lambda line: line[0][0])
        key = line[0][1].key
        room = self._room(key, self.waiting[key])
        parts: list[Part[JobT]] = []
        taken = 0
        for _, job in line:
            most = min(room.brief, room.most) if brief and len(job.rows) > room.brief else room.most
            num_rows = min(job.left, most - taken)
            if num_rows > 0:
                parts.append(Part(job, job.taken, job.taken + num_rows))
                job.taken += num_rows
                taken += num_rows
            if taken == room.most:
                break
        line[:] = [place for place in line if place[1].left]
        self._leave(key, taken)
        self._left += taken
        return parts

    def _leave(self, key: Hashable, num_rows: int) -> None:
        """Count rows that wait no longer, and forget a key of which none does: it holds on to its model."""
        self.waiting[key] -= num_rows
        if not self.waiting[key]:
            del self.waiting[key], self._lines[key]
