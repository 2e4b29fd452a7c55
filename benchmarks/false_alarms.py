"""False alarms of the shipped artifacts among normal rows new to them: ``python -m benchmarks.false_alarms``.

The number of test rows that an artifact flags at each alpha has to lie in the band that holds 99.9 % of all cases where
p-values are right: with m calibration rows and l = floor((m + 1) alpha), n test rows have BetaBinomial(n, l, m + 1 - l)
false alarms. With fewer than 2,000 calibration and test rows that band is wide, so they are also pooled and divided
anew 200 times at random, and the mean rate has to lie within 3 standard errors of l / (m + 1); that tells whether
p-values are right, not whether the shipped division is. Scores are those of reproducible passes, as in
``service.calibrate``. Ends with exit code 1 where a rate is outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import betabinom

from common.cli import Parser, run_command
from model.data import load
from model.evaluate import as_inputs
from model.recipe import load_splits, parse_recipe
from service.catalog import warm_catalog
from service.engine import Model
from service.scorer import score_pass, scoring_key, unpack
from service.scores import FloatArray, ScoreName, p_values
from service.settings import EMBEDDED_ARTIFACTS, read_settings

ALPHAS = (0.1, 0.05, 0.01)
FEW_ROWS = 2_000
SPLITS = 200
COVERAGE = 0.999
STANDARD_ERRORS = 3


@dataclass(frozen=True)
class Rate:
    """An achieved rate of false alarms, and the lowest and highest that may be."""

    alpha: float
    achieved: float
    lowest: float
    highest: float

    @property
    def inside(self) -> bool:
        return self.lowest <= self.achieved <= self.highest


def rates_of_many(calibration: FloatArray, test: FloatArray) -> Iterator[Rate]:
    """Rates of one calibration (m,), ascending, among test scores (n,)."""
    num, total = len(test), len(calibration) + 1
    p = p_values(test, calibration)
    for alpha in ALPHAS:
        rank = math.floor(total * alpha)
        if not rank:  # no p-value is so small
            continue
        low, high = betabinom.ppf([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], num, rank, total - rank)
        yield Rate(alpha, float((p <= alpha).mean()), low / num, high / num)


def rates_of_few(calibration: FloatArray, test: FloatArray) -> Iterator[Rate]:
    """Mean rates over random divisions of all scores into as many as there are of each."""
    num, total, random = len(calibration), len(calibration) + 1, np.random.default_rng(0)
    pool = np.concatenate([calibration, test])
    divided = [random.permutation(pool) for _ in range(SPLITS)]
    p = np.array([p_values(scores[num:], np.sort(scores[:num])) for scores in divided])
    for alpha in ALPHAS:
        rates = (p <= alpha).mean(1)
        expected = math.floor(total * alpha) / total
        margin = STANDARD_ERRORS * float(rates.std(ddof=1)) / math.sqrt(SPLITS)
        yield Rate(alpha, float(rates.mean()), expected - margin, expected + margin)


def held_out_scores(model: Model, data_dir: Path) -> dict[ScoreName, FloatArray]:
    """Every calibrated score of the rows that its recipe tests with, by the score's name."""
    manifest = model.manifest
    assert manifest.calibration is not None
    recipe = parse_recipe(manifest.recipe, "manifest").data
    test = load(recipe.test, data_dir) if isinstance(recipe.test, str) else load_splits(recipe, data_dir).test
    assert test is not None
    key = scoring_key(model, manifest.calibrated_scores, reproducible=True)
    scored = unpack(key, score_pass(key, as_inputs(test).numpy()))
    return scored.scores


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m benchmarks.false_alarms", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path(), help="folder that holds fashion-mnist/")
    args = parser.parse_args(argv)
    settings = read_settings(models=[EMBEDDED_ARTIFACTS], default_model=None, plan="auto", cache_dir=None)
    catalog = warm_catalog(settings, reproducible_only=True)
    print(
        "| artifact | score | calibration | test | division | alpha | false alarms | may be | inside |\n"
        + "|---" * 9
        + "|"
    )
    outside = 0
    for model in catalog.models:
        manifest = model.manifest
        assert manifest.calibration is not None
        for score, test in held_out_scores(model, args.data_dir).items():
            calibration = manifest.calibration.arrays[score]
            divisions = {"as shipped": rates_of_many(calibration, test)}
            if len(calibration) + len(test) < FEW_ROWS:
                divisions[f"{SPLITS} divisions"] = rates_of_few(calibration, test)
            for division, rates in divisions.items():
                for rate in rates:
                    outside += not rate.inside
                    print(
                        f"| {model.name} | {score} | {len(calibration)} | {len(test)} | {division} | {rate.alpha:g} | "
                        f"{rate.achieved:.4f} | {rate.lowest:.4f} to {rate.highest:.4f} | "
                        f"{'yes' if rate.inside else 'NO'} |",
                        flush=True,
                    )
    if outside:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
