"""The drift watch in simulation: how often it raises a false alarm, and how soon one that is due.

Scores are Gaussian; every repeat has a calibration set of its own. Beside the watch of ``service.drift`` stand bets on
p-values against the calibration set alone, with the same exponents and threshold: on plain ones, for which no bound
holds, and on those that the inequality of Dvoretzky, Kiefer and Wolfowitz makes larger than uniform ones for all but
delta / 2 of the calibration sets: p + sqrt(log(4 / delta) / (2 m)), at most 1.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from benchmarks.arguments import at_least
from common.cli import Parser, run_command
from service.drift import EXPONENTS, Drift
from service.scores import FloatArray, p_values

DELTA = 0.01
CALIBRATION_ROWS = (80, 200, 1000, 5000)
FALSE_ALARM_ROWS = (10_000, 100_000)
SHIFTS = (0.5, 1.0, -0.5, -1.0)  # standard deviations
CLEAN_ROWS = (0, 10_000)  # before the shift
PATIENCE = 5_000  # shifted rows

AlarmRow = Callable[[FloatArray, FloatArray, np.random.Generator], float]


def watch(calibration: FloatArray, scores: FloatArray, random: np.random.Generator) -> float:
    """The row at which the watch raises an alarm, infinity for none."""
    drift = Drift("simulated", calibration, DELTA, random=random)
    for start in range(0, len(scores), 4096):
        drift.add(scores[start : start + 4096])
    rows = [tail.alarm_row for tail in drift.read().tails.values() if tail.alarm_row is not None]
    return min(rows, default=math.inf)


def plain_bets(calibration: FloatArray, scores: FloatArray, random: np.random.Generator, slack: float = 0.0) -> float:
    """The same of bets on p-values against the calibration set alone, made larger by some slack."""
    ordered = np.sort(calibration)
    higher = p_values(scores, ordered)
    lower = p_values(-scores, -ordered[::-1])
    first = math.inf
    for p in (higher, lower):
        log_sum = np.log(np.minimum(1, p + slack)).cumsum()
        steps = np.arange(1, len(p) + 1)
        log_wealth = np.logaddexp.reduce(np.log(EXPONENTS) * steps + (EXPONENTS - 1) * log_sum) - math.log(
            len(EXPONENTS)
        )
        alarms = np.flatnonzero(log_wealth >= math.log(2 / DELTA))
        first = min(first, alarms[0] + 1 if len(alarms) else math.inf)
    return first


def bounded_bets(calibration: FloatArray, scores: FloatArray, random: np.random.Generator) -> float:
    """Those for which a bound holds."""
    return plain_bets(calibration, scores, random, math.sqrt(math.log(4 / DELTA) / (2 * len(calibration))))


METHODS: dict[str, AlarmRow] = {"this service": watch, "p + slack": bounded_bets, "plain p": plain_bets}


def interval(num: int, of: int) -> str:
    """Share in percent with its interval of 95 % (Wilson 1927)."""
    z = 1.96
    share, scale = num / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return f"{100 * share:.2f} ({max(0.0, 100 * (middle - half)):.2f} to {100 * (middle + half):.2f})"


def quantiles(rows: list[float]) -> str:
    """Median and 90 % quantile; what lies beyond the patience is not told."""
    ordered = sorted(rows)
    found = [ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9)]
    return ", ".join("never" if row == math.inf else f"{row:.0f}" for row in found)


def false_alarms(repeats: int, seed: int) -> Iterator[str]:
    """Rows of the first table."""
    for num in CALIBRATION_ROWS:
        for rows in FALSE_ALARM_ROWS:
            runs = max(10, repeats * FALSE_ALARM_ROWS[0] // rows)  # which take the same time for each number of rows
            random = np.random.default_rng([seed, num, rows])
            alarms = dict.fromkeys(METHODS, 0)
            for _ in tqdm(range(runs), f"false alarms, m = {num}, {rows} rows", disable=None):
                calibration, scores = random.normal(size=num), random.normal(size=rows)
                for name, method in METHODS.items():
                    alarms[name] += method(calibration, scores, random) < math.inf
            cells = [interval(count, runs) for count in alarms.values()]
            yield f"| {num} | {rows} | {runs} | {' | '.join(cells)} |"


def delays(repeats: int, seed: int) -> Iterator[str]:
    """Rows of the second table."""
    for num in CALIBRATION_ROWS:
        for clean in CLEAN_ROWS:
            cells: dict[str, list[str]] = {name: [] for name in list(METHODS)[:2]}
            for shift in SHIFTS:
                random = np.random.default_rng([seed, num, clean, int(10 * shift) + 100])
                found: dict[str, list[float]] = {name: [] for name in cells}
                for _ in range(repeats):
                    calibration, scores = random.normal(size=num), random.normal(size=clean + PATIENCE)
                    scores[clean:] += shift
                    for name in cells:
                        row = METHODS[name](calibration, scores, random) - clean
                        found[name].append(row if row > 0 else math.inf)
                for name in cells:
                    cells[name].append(quantiles(found[name]))
            for name, texts in cells.items():
                yield f"| {num} | {clean} | {name} | {' | '.join(texts)} |"


def nanoseconds_a_row() -> float:
    """What the watch costs in passes of 4,096 rows: the fastest of many, after a million rows."""
    random = np.random.default_rng(0)
    drift = Drift("timed", random.normal(size=1000))
    times = []
    for _ in range(400):
        scores = random.normal(size=4096)
        started = time.perf_counter()
        drift.add(scores)
        times.append(time.perf_counter() - started)
    return 1e9 * min(times[250:]) / 4096


def main(argv: list[str]) -> None:
    """Print both tables."""
    parser = Parser("python -m benchmarks.drift", __doc__)
    parser.add_argument("--repeats", type=at_least(int, 10), default=4000, help="of the first table's shorter runs")
    parser.add_argument("--delay-repeats", type=at_least(int, 10), default=200, help="of the second")
    parser.add_argument("--seed", type=at_least(int, 0), default=0)
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)  # alarms are logged, too
    print(f"False alarms in percent (95 % interval), delta = {100 * DELTA:g} %\n")
    print(f"| m | rows | repeats | {' | '.join(METHODS)} |", "|---" * (3 + len(METHODS)) + "|", sep="\n")
    for line in false_alarms(arguments.repeats, arguments.seed):
        print(line, flush=True)
    print(f"\nRows until the alarm: median, 90 % of {arguments.delay_repeats} repeats; never: not in {PATIENCE}\n")
    header = " | ".join(f"{shift:+g} sd" for shift in SHIFTS)
    print(f"| m | rows before | bets | {header} |", "|---" * (3 + len(SHIFTS)) + "|", sep="\n")
    for line in delays(arguments.delay_repeats, arguments.seed):
        print(line, flush=True)
    print(f"\n{nanoseconds_a_row():.0f} ns a row, in passes of 4,096")


if __name__ == "__main__":
    run_command(main)
