"""Scores and p-values, against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scores import (
    benjamini_hochberg,
    bits_per_dim,
    log_mean_exp,
    negative_log_likelihood,
    p_values,
    score_histogram,
    smallest_p_value,
)

LEVELS = st.floats(0.001, 0.999)
P_VALUES = st.integers(1, 60).flatmap(  # with many ties, as conformal p-values have
    lambda num: st.lists(st.integers(1, num).map(lambda rank: rank / num), min_size=1, max_size=40)
)


def test_p_value_counts_the_calibration_scores_that_are_at_least_as_high() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 5.0])
    scores = np.array([0.0, 1.0, 2.0, 3.0, 5.0, 6.0])
    expected = [(1 + sum(c >= s for c in calibration)) / 5 for s in scores]
    assert p_values(scores, calibration).tolist() == pytest.approx(expected)
    assert expected[-1] == smallest_p_value(4)


def test_p_values_of_exchangeable_scores_are_valid() -> None:
    """P(p <= alpha) <= alpha, and close to it."""
    random = np.random.default_rng(0)
    flagged = np.mean([p_values(random.normal(size=50), np.sort(random.normal(size=99))) <= 0.1 for _ in range(200)])
    assert flagged == pytest.approx(0.1, abs=0.01)


def test_the_lowest_finite_likelihood_gets_the_smallest_p_value_and_finite_figures() -> None:
    lowest = np.array([np.finfo(np.float64).min])
    assert p_values(negative_log_likelihood(lowest), np.arange(9.0)).tolist() == [0.1]
    assert np.isfinite(bits_per_dim(lowest, 784)).all()
    assert np.isfinite(log_mean_exp(np.repeat(lowest[None], 3, 1))).all()


def test_bits_per_dim_of_a_fair_coin_per_dimension_is_one() -> None:
    assert bits_per_dim(np.array([-7 * math.log(2)]), 7).tolist() == pytest.approx([1.0])


def test_log_mean_exp_is_exact_and_does_not_overflow() -> None:
    values = np.array([[0.0, math.log(3)], [-5000.0, -5000.0]])
    assert log_mean_exp(values).tolist() == pytest.approx([math.log(2), -5000.0])


@given(P_VALUES, LEVELS)
def test_benjamini_hochberg_flags_the_most_rows_that_can_vouch_for_each_other(values: list[float], fdr: float) -> None:
    """k rows with a p-value of at most fdr k / n: the largest such k there is."""
    num = len(values)
    sizes = [k for k in range(1, num + 1) if sum(p <= fdr * k / num for p in values) >= k]
    expected = [p <= fdr * sizes[-1] / num if sizes else False for p in values]
    assert benjamini_hochberg(np.array(values), fdr).tolist() == expected


@given(P_VALUES, LEVELS, LEVELS)
def test_a_higher_false_discovery_rate_flags_no_fewer_rows(values: list[float], one: float, other: float) -> None:
    few, many = (benjamini_hochberg(np.array(values), fdr) for fdr in sorted((one, other)))
    assert (few <= many).all()


def test_one_row_is_flagged_by_either_level_alike() -> None:
    for p in (0.01, 0.1, 0.11):
        assert benjamini_hochberg(np.array([p]), 0.1).tolist() == [p <= 0.1]


def test_among_normal_rows_alone_any_flag_is_as_rare_as_the_level() -> None:
    """Every flag is then a false one, so the rate of false discoveries is the share of requests with a flag."""
    random = np.random.default_rng(0)
    requests = [p_values(random.normal(size=20), np.sort(random.normal(size=499))) for _ in range(2000)]
    assert np.mean([benjamini_hochberg(p, 0.1).any() for p in requests]) < 0.12
    assert np.mean([(p <= 0.1).any() for p in requests]) > 0.8


def test_among_flagged_rows_the_share_of_normal_ones_keeps_to_the_level() -> None:
    random = np.random.default_rng(1)
    shares, found = [], []
    for _ in range(500):
        p = p_values(np.r_[random.normal(size=90), random.normal(6, 1, 10)], np.sort(random.normal(size=999)))
        flagged = benjamini_hochberg(p, 0.2)
        shares.append(flagged[:90].sum() / max(1, flagged.sum()))
        found.append(flagged[90:].mean())
    assert np.mean(shares) == pytest.approx(0.2 * 0.9, abs=0.02)
    assert np.mean(found) > 0.95


def test_a_histogram_counts_every_score_and_is_not_squashed_by_a_wild_one() -> None:
    scores = np.sort(np.append(np.random.default_rng(0).normal(size=999), 1e9))
    histogram = score_histogram(scores)
    assert sum(histogram["counts"]) == 1000
    assert histogram["edges"][0] == scores[0]
    assert histogram["edges"][-1] < 10
    assert histogram["counts"][-1] == 1
    assert score_histogram(np.full(3, 7.0))["counts"].count(3) == 1
