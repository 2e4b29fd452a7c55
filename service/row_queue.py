"""Which rows run next: jobs of any size wait here, and leave in passes of many jobs' rows. Knows no thread, no clock.

A job's place is the number of rows that had left when it came, plus its own number of rows. So jobs of one size leave
in the order in which they came, and small ones go before large ones; but once as many rows have left as a job has
itself, none that comes after goes before it. While small jobs come and go, large ones make no pass longer than a brief
one: they take what small jobs leave of that, are sure of half of it, and those that are first in line lead no more than
every other pass. So neither a thousand small callers nor a huge one keep the other waiting.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]
Place = tuple[int, int]  # in line, and the order of those that would share one
JobT = TypeVar("JobT", bound="Job")


class Room(NamedTuple):
    """Rows that a pass may have."""

    most: int  # at all
    brief: int  # while jobs of at most so many, the small ones, come and go, and larger ones wait too


@dataclass(eq=False, slots=True)
class Job:
    """Rows of one caller: the first ``taken`` have left the queue, the first ``answered`` have their outputs."""

    key: Any
    rows: Array
    place: Place = field(init=False)  # once it waits
    small: bool = field(init=False)
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


@dataclass(eq=False, slots=True)
class _Line(Generic[JobT]):
    """Waiting jobs of one key, the small ones and the large ones, each sorted by place, and the rows of both."""

    small: list[JobT] = field(default_factory=list)
    large: list[JobT] = field(default_factory=list)
    num_small: int = 0
    num_large: int = 0

    def of(self, job: JobT) -> list[JobT]:
        return self.small if job.small else self.large

    @property
    def next_place(self) -> Place:
        return min(jobs[0].place for jobs in (self.small, self.large) if jobs)

    @property
    def num_rows(self) -> int:
        return self.num_small + self.num_large

    def leave(self, job: JobT, num_rows: int) -> None:
        """Count rows of a job that wait no longer."""
        if job.small:
            self.num_small -= num_rows
        else:
            self.num_large -= num_rows

    def take(self, jobs: Iterable[JobT], most: int) -> list[Part[JobT]]:
        """The next rows of some of its jobs, at most so many."""
        parts: list[Part[JobT]] = []
        for job in jobs:
            num_rows = min(job.left, most)
            if num_rows <= 0:
                break
            parts.append(Part(job, job.taken, job.taken + num_rows))
            job.taken += num_rows
            self.leave(job, num_rows)
            most -= num_rows
        return parts


class RowQueue(Generic[JobT]):
    """Waiting jobs by key; only jobs of one key share a pass. ``room`` is asked with a key and the rows that wait."""

    def __init__(self, room: Callable[[Any, int], Room]) -> None:
        self._room = room
        self._lines: dict[Hashable, _Line[JobT]] = {}  # none of them empty
        self._order = itertools.count()
        self._left = 0  # rows that have left
        self._large_led = False  # whether a large job's place chose the last pass

    @property
    def waiting(self) -> dict[Hashable, int]:
        """Rows that wait, by key."""
        return {key: line.num_rows for key, line in self._lines.items()}

    @property
    def num_waiting(self) -> int:
        """Rows that wait, of all keys."""
        return sum(line.num_rows for line in self._lines.values())

    def is_small(self, key: Hashable, num_rows: int) -> bool:
        """Whether a job of so many rows is one that brief passes are for."""
        return num_rows <= self._room(key, num_rows).brief

    def num_ahead(self, key: Hashable, num_rows: int) -> dict[Hashable, int]:
        """Rows by key that would leave before a job of that key and so many rows, if it came now.

        Before a small one, about: brief passes have of large jobs, wherever in line, no more rows than of small ones.
        """
        place = (self._left + num_rows + 1, 0)
        small = {other: line.num_small - _rows_from(line.small, place) for other, line in self._lines.items()}
        if self.is_small(key, num_rows):
            most = sum(small.values())
            return {other: num + min(self._lines[other].num_large, most) for other, num in small.items()}
        return {
            other: num + self._lines[other].num_large - _rows_from(self._lines[other].large, place)
            for other, num in small.items()
        }

    def push(self, job: JobT) -> None:
        """Let a job wait."""
        job.place = (self._left + len(job.rows), next(self._order))
        job.small = self.is_small(job.key, len(job.rows))
        line = self._lines.setdefault(job.key, _Line())
        insort(line.of(job), job, key=_place_of)
        line.leave(job, -job.left)

    def drop(self, job: JobT) -> None:
        """Forget what is left of a job; one that does not wait is left alone."""
        line = self._lines.get(job.key, _Line())
        jobs = line.of(job)
        index = bisect_left(jobs, job.place, key=_place_of)
        if index < len(jobs) and jobs[index] is job:
            del jobs[index]
            line.leave(job, job.left)
            self._forget_if_empty(job.key)

    def clear(self) -> list[JobT]:
        """Forget every job; returns them."""
        jobs = [job for line in self._lines.values() for job in (*line.small, *line.large)]
        self._lines.clear()
        return jobs

    def take(self, brief: bool = False) -> list[Part[JobT]]:
        """Take the rows of the next pass, all of one key; nothing where nothing waits.

        They are those of the jobs whose places are first. Where it is to be ``brief``, small jobs come first, and large
        ones add what those leave of a brief pass, but half of one at least.
        """
        if not self._lines:
            return []
        key = self._next_key(brief)
        line = self._lines[key]
        room = self._room(key, line.num_rows)
        if brief and line.large:
            most = min(room.brief, room.most)
            share = (most + self._large_led) // 2
            parts = line.take(line.small, room.most - share)
            num_small = sum(part.stop - part.start for part in parts)
            parts += line.take(line.large, max(share, most - num_small))
        else:
            parts = line.take(heapq.merge(line.small, line.large, key=_place_of), room.most)
        line.small[:] = [job for job in line.small if job.left]
        line.large[:] = [job for job in line.large if job.left]
        self._left += sum(part.stop - part.start for part in parts)
        self._forget_if_empty(key)
        return parts

    def _next_key(self, brief: bool) -> Hashable:
        """That of the job whose place is first; where passes are brief, of a small one after each of a large one."""
        small = {key: line.small[0].place for key, line in self._lines.items() if line.small}
        if brief and self._large_led and small:
            self._large_led = False
            return min(small, key=small.__getitem__)
        key = min(self._lines, key=lambda key: self._lines[key].next_place)
        self._large_led = small.get(key) != self._lines[key].next_place
        return key

    def _forget_if_empty(self, key: Hashable) -> None:
        """A key holds on to its model."""
        if not self._lines[key].num_rows:
            del self._lines[key]


def _place_of(job: Job) -> Place:
    return job.place


def _rows_from(jobs: list[JobT], place: Place) -> int:
    """Rows of the jobs at a place and behind it: few or none behind those that a new job of their kind would have."""
    return sum(job.left for job in jobs[bisect_left(jobs, place, key=_place_of) :])
