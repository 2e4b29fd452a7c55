"""False alarms of detectors that are calibrated by folds: ``python -m benchmarks.fold_calibration``.

Each repetition draws a new table, fits a GlowDetector, and counts what its p-values flag among 2,000 fresh rows of the
same distribution. Prints means over repetitions and their standard errors, beside floor((m + 1) alpha) / (m + 1), what
m held-out rows would give on average. The flow in use was trained on more rows than those that gave the calibration
scores, so that fewer false alarms are to be expected.
"""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from benchmarks.arguments import at_least
from common.cli import Parser, run_command
from model.data import Array
from model.detector import GlowDetector

ALPHAS = (0.1, 0.05)
SIZES = (60, 200)
FRESH_ROWS = 2_000


def normal(num: int, random: np.random.Generator) -> Array:
    """Five dependent normal columns."""
    mixing = np.random.default_rng(0).normal(size=(5, 5))
    return random.normal(size=(num, 5)) @ mixing


def clusters(num: int, random: np.random.Generator) -> Array:
    """Three round clusters in the plane."""
    return np.array([[0, 0], [6, 1], [2, 7]])[random.integers(0, 3, num)] + random.normal(size=(num, 2))


def heavy(num: int, random: np.random.Generator) -> Array:
    """Three columns, of Student's t with 3 degrees of freedom, of a log-normal one, and of whole numbers."""
    t = random.standard_t(3, num)
    return np.stack([t, np.exp(random.normal(size=num) + 0.3 * t), random.poisson(4, num)], 1)


TABLES = {"normal": normal, "clusters": clusters, "heavy": heavy}


def rates(job: tuple[str, int, int]) -> list[float]:
    """Rates of false alarms of one repetition, by alpha."""
    torch.set_num_threads(1)
    name, num, seed = job
    random = np.random.default_rng((seed, num))
    detector = GlowDetector(folds=5, random_state=seed).fit(TABLES[name](num, random))
    p = detector.p_values(TABLES[name](FRESH_ROWS, random))
    return [float((p <= alpha).mean()) for alpha in ALPHAS]


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m benchmarks.fold_calibration", description=__doc__)
    parser.add_argument("--repeats", type=at_least(int, 2), default=20)
    parser.add_argument("--jobs", type=at_least(int, 1), default=2)
    args = parser.parse_args(argv)
    print("| table | rows | alpha | false alarms | of held-out rows |\n|---|---|---|---|---|")
    with ProcessPoolExecutor(args.jobs) as pool:
        for num in SIZES:
            for name in TABLES:
                found = np.array(list(pool.map(rates, [(name, num, seed) for seed in range(args.repeats)])))
                means, errors = found.mean(0), found.std(0, ddof=1) / math.sqrt(args.repeats)
                for alpha, mean, error in zip(ALPHAS, means, errors, strict=True):
                    expected = math.floor((num + 1) * alpha) / (num + 1)
                    print(f"| {name} | {num} | {alpha:g} | {mean:.4f} +- {error:.4f} | {expected:.4f} |", flush=True)


if __name__ == "__main__":
    run_command(main)
