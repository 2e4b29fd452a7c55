"""Scores and p-values, against their definitions."""

import math

import numpy as np
import pytest

from service.scores import bits_per_dim, log_mean_exp, negative_log_likelihood, p_values, smallest_p_value


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
