"""Timing: runs take turns, so that what else the machine does slows all of them alike."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

WARM_UP_ROUNDS = 3  # in which the compiler and the caches settle

Run = Callable[[], object]
Build = Callable[[], dict[str, Run]]


def interleaved(runs: dict[str, Run], rounds: int = 15) -> dict[str, float]:
    """Median seconds of each run over so many rounds, in inference mode."""
    return _medians({name: lambda run=run: timed(run) for name, run in runs.items()}, rounds)  # type: ignore[misc]


def interleaved_processes(builds: Sequence[Build], rounds: int = 15) -> dict[str, float]:
    """The same, where the runs of each ``build`` live in a process of their own.

    So none profits or suffers from what another has left in the allocator. ``build`` must be a function of a module.
    """
    with _workers(builds) as clocks:
        return _medians(clocks, rounds)


def timed(run: Run) -> float:
    """Seconds of a run that has just run before, as in a busy server: what other turns evicted is back."""
    with torch.inference_mode():
        run()
        started = time.perf_counter()
        run()
        return time.perf_counter() - started


def _medians(clocks: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name, clock in clocks.items():
            seconds = clock()
            if number >= WARM_UP_ROUNDS:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def _workers(builds: Sequence[Build]) -> Iterator[dict[str, Callable[[], float]]]:
    """Start a process for each build; yields what times each of their runs there."""
    context = multiprocessing.get_context("spawn")
    clocks: dict[str, Callable[[], float]] = {}
    started: list[tuple[Connection, SpawnProcess]] = []
    try:
        for build in builds:
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(build, there), daemon=True)
            process.start()
            there.close()
            started.append((here, process))
            for name in here.recv():
                clocks[name] = lambda here=here, name=name: _ask(here, name)  # type: ignore[misc]
        yield clocks
    finally:
        for here, process in started:
            here.close()
            process.join()


def _ask(connection: Connection, name: str) -> float:
    connection.send(name)
    seconds: float = connection.recv()
    return seconds


def _work(build: Build, connection: Connection) -> None:
    runs = build()
    connection.send(list(runs))
    try:
        while True:
            connection.send(timed(runs[connection.recv()]))
    except EOFError:  # nobody asks any more
        pass
