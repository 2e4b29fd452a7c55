"""Scores and p-values, against their definitions."""

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import beta, norm

from service.scores import (
    CALIBRATED,
    DEFINITIONS,
    benjamini_hochberg,
    benjamini_hochberg_threshold,
    bits_per_dim,
    codec_bytes,
    complexity,
    conditional_level,
    highest_normal_score,
    log_mean_exp,
    negative_log_likelihood,
    outlier_share,
    p_values,
    score_histogram,
    score_summary,
    smallest_conditional_alpha,
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
    values = np.array([[0.0, math.log(3), math.log(5)], [-5000.0] * 3])
    assert log_mean_exp(values).tolist() == pytest.approx([math.log(3), -5000.0])


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


def test_a_histogram_has_forty_bins_from_the_lowest_score_to_the_highest() -> None:
    scores = np.arange(81) / 8  # 0 to 10: two a bin, the last one with the end of the range
    histogram = score_histogram(scores)
    assert histogram["edges"] == pytest.approx(np.linspace(0, 10, 41))
    assert histogram["counts"] == [2] * 39 + [3]


def test_a_histogram_reaches_three_interquartile_ranges_beyond_the_quartiles() -> None:
    """Of quartiles 0 and 1 from -3 to 4, and what lies beyond is counted in the outer bins."""
    inner = [0.0] * 30 + [0.5] * 40 + [1.0] * 30
    histogram = score_histogram(np.sort([-50.0, -40.0, -3.0, *inner, 4.0, 90.0, 1e6]))
    assert (histogram["edges"][0], histogram["edges"][-1]) == (-3.0, 4.0)
    assert (histogram["counts"][0], histogram["counts"][-1], sum(histogram["counts"])) == (3, 3, 106)


def test_scores_above_the_highest_normal_one_are_the_anomalies() -> None:
    random = np.random.default_rng(0)
    for num in (1, 4, 9, 10, 99, 100):
        calibration = np.sort(random.integers(0, 30, num).astype(float))
        scores = np.r_[calibration, calibration + 0.5, -1.0]
        for alpha in (1 / (num + 1), 0.5, 0.999):
            flagged = p_values(scores, calibration) <= alpha
            np.testing.assert_array_equal(flagged, scores > highest_normal_score(calibration, alpha))


def test_the_conditional_level_keeps_alpha_for_95_percent_of_calibration_sets() -> None:
    for num, alpha in ((100, 0.1), (1000, 0.05), (5000, 0.01)):
        level = conditional_level(alpha, num)
        assert level is not None
        k = round(level * (num + 1))
        assert beta(k, num + 1 - k).cdf(alpha) >= 0.95 > beta(k + 1, num - k).cdf(alpha)
    for num in (*range(1, 400), 5000):
        least = smallest_conditional_alpha(num)
        assert conditional_level(least, num) == 1 / (num + 1)
        assert conditional_level(least * 0.9999, num) is None


def test_the_conditional_level_holds_in_repeated_calibrations() -> None:
    random = np.random.default_rng(0)
    level = conditional_level(0.1, 200)
    assert level is not None
    calibrations = np.sort(random.uniform(size=(500, 200)))
    highest_normal = calibrations[:, 200 - round(level * 201)]  # scores above it have a p-value of at most the level
    assert np.mean(1 - highest_normal > 0.1) <= 0.08


def test_no_row_has_a_threshold_where_none_is_flagged() -> None:
    assert benjamini_hochberg_threshold(np.array([0.5, 1.0]), np.array([1, 3]), 0.1) == -math.inf
    assert benjamini_hochberg_threshold(np.array([0.01, 0.05, 0.5]), np.array([1, 1, 2]), 0.1) == 0.05
    assert benjamini_hochberg(np.array([]), 0.1).tolist() == []


def test_all_scores_have_p_values_but_the_complexity_which_is_a_fact_of_an_image() -> None:
    assert set(DEFINITIONS) - set(CALIBRATED) == {"complexity"}


CALIBRATION = np.array([-2.0, 0.0, 1.0, 5.0])


def test_a_linear_share_is_the_way_from_the_lowest_calibration_score_to_the_highest() -> None:
    shares = outlier_share(np.array([-9.0, -2.0, -0.25, 5.0, 9.0]), score_summary(CALIBRATION))
    np.testing.assert_allclose(shares, [[1.0, 0.0], [1.0, 0.0], [0.75, 0.25], [0.0, 1.0], [0.0, 1.0]])


def test_a_unified_share_is_how_far_a_normal_variable_lies_within_a_score_on_both_sides() -> None:
    """Kriegel et al. 2011: max(0, erf(deviations / sqrt 2)), by mean and deviation of the calibration scores."""
    mean, std = CALIBRATION.mean(), CALIBRATION.std()
    scores = np.array([mean - std, mean, mean + std, mean + 2.5 * std, np.finfo(np.float64).max])
    shares = outlier_share(scores, score_summary(CALIBRATION), "unify")
    within = [0, 0, *(1 - 2 * norm.sf([1, 2.5])), 1]
    np.testing.assert_allclose(shares, np.stack([1 - np.array(within), within], 1), atol=1e-12)


def test_a_share_of_equal_calibration_scores_is_none_for_the_same_score_and_all_for_higher_ones() -> None:
    summary = score_summary(np.full(3, 7.0))
    assert outlier_share(np.array([7.0, 9.0]), summary).tolist() == [[1, 0], [1, 0]]  # there is no way to go
    np.testing.assert_allclose(outlier_share(np.array([7.0, 8.0]), summary, "unify")[:, 1], [0, 1 - 2 * norm.sf(1)])


def test_a_share_by_another_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method must be 'linear' or 'unify', got 'rank'"):
        outlier_share(CALIBRATION, score_summary(CALIBRATION), "rank")  # type: ignore[arg-type]


def pillow_bytes(pixels: Any) -> int:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, "PNG", optimize=True)
    return len(stream.getvalue())


def test_the_complexity_of_an_image_is_the_size_of_its_optimized_png_per_value() -> None:
    random = np.random.default_rng(0)
    grey, colour = random.integers(0, 4, (3, 1, 9, 6)) * 60, random.integers(0, 256, (2, 3, 5, 7))
    for images, pictures in ((grey, grey[:, 0]), (colour, colour.transpose(0, 2, 3, 1))):
        sizes = [pillow_bytes(each) for each in pictures]
        assert codec_bytes("png", images).tolist() == sizes
        assert codec_bytes("png", images + 0.3).tolist() == sizes  # of the nearest whole values
        np.testing.assert_allclose(complexity("png", images), 8 * np.array(sizes) / images[0].size)


def test_values_beyond_those_of_a_byte_are_taken_for_its_ends() -> None:
    random = np.random.default_rng(0)
    wild = random.choice([-300.0, -1.0, 0.0, 1.0, 254.0, 255.0, 256.0, 600.0], (1, 1, 16, 16))
    assert codec_bytes("png", wild).tolist() == [pillow_bytes(wild[0, 0].clip(0, 255))]
