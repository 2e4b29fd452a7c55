"""Who asks when, and whom: arrival processes of an open loop, and how a balancer chooses a replica."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

Process = Literal["poisson", "constant", "bursts"]
Balance = Literal["random", "round-robin", "least", "two-choices", "connection"]
PROCESSES: tuple[Process, ...] = get_args(Process)
BALANCES: tuple[Balance, ...] = get_args(Balance)
BURST_FACTOR = 3.0  # times the mean rate, in a burst
BURST_SHARE = 0.2  # of all time
BURST_S = 1.0  # mean length

Choose = Callable[[], int]


def arrival_times(process: Process, rate: float, seconds: float, random: np.random.Generator) -> list[float]:
    """Times of requests, ascending, at ``rate`` a second on average.

    ``bursts`` is a Poisson process whose rate is BURST_FACTOR times the mean for exponential whiles of BURST_S seconds
    that are BURST_SHARE of all time, and what makes the mean right between them (a Markov-modulated one).
    """
    if process == "constant":
        return [i / rate for i in range(math.ceil(rate * seconds))]
    if process == "poisson":
        return _poisson(rate, 0.0, seconds, random)
    calm = rate * (1 - BURST_FACTOR * BURST_SHARE) / (1 - BURST_SHARE)
    times: list[float] = []
    start, bursting = 0.0, bool(random.random() < BURST_SHARE)
    while start < seconds:
        mean = BURST_S if bursting else BURST_S * (1 - BURST_SHARE) / BURST_SHARE
        end = min(seconds, start + random.exponential(mean))
        times += _poisson(BURST_FACTOR * rate if bursting else calm, start, end, random)
        start, bursting = end, not bursting
    return times


def _poisson(rate: float, start: float, end: float, random: np.random.Generator) -> list[float]:
    num = random.poisson(rate * (end - start))
    return [float(time) for time in np.sort(random.uniform(start, end, num))]


def chooser(balance: Balance, outstanding: Sequence[int], random: np.random.Generator) -> Choose:
    """Choose a replica; ``outstanding`` are the requests that each has, which whoever uses this keeps up to date.

    ``two-choices`` takes the less loaded of two random ones, as Ray Serve does. ``connection`` chooses at random, once
    for each connection.
    """
    num = len(outstanding)
    last = -1

    def turn() -> int:
        nonlocal last
        last = (last + 1) % num
        return last

    def least(among: Sequence[int]) -> int:
        return min(among, key=lambda i: (outstanding[i], random.random()))

    def two() -> int:
        return least(random.choice(num, 2, replace=False).tolist()) if num > 1 else 0

    choices: dict[Balance, Choose] = {
        "random": lambda: int(random.integers(num)),
        "connection": lambda: int(random.integers(num)),
        "round-robin": turn,
        "least": lambda: least(range(num)),
        "two-choices": two,
    }
    return choices[balance]
