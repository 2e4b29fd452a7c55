"""Floors: simple densities are measured in the flow's units, and whatever the data, there is a figure."""

import math

import numpy as np
import pytest
import torch

from model.columns import describe_columns
from model.data import Array, Dataset
from model.evaluate import noisy
from model.floors import Floor, choose_rows, codec_floors, density_floors, measure_floors
from model.likelihood import mean_likelihood
from tests.conftest import divide, tiny_images


def by_name(floors: list[Floor]) -> dict[str, Floor]:
    return {floor.name: floor for floor in floors}


def correlated_normals(num: int, seed: int) -> Array:
    mixing = np.array([[1.0, 0, 0], [2, 0.5, 0], [0, 3, 10]])
    rows: Array = np.random.default_rng(seed).normal(size=(num, 3)) @ mixing.T + [0, 5, -100]
    return rows


def test_the_gaussian_floor_of_gaussian_data_is_their_entropy() -> None:
    fit, validation, held_out = (correlated_normals(4000, seed) for seed in range(3))
    gaussian = by_name(density_floors(fit, validation, held_out))["gaussian"]
    measured = mean_likelihood(gaussian.log_prob, (3,))
    entropy = 1.5 * math.log(2 * math.pi * math.e) + math.log(1 * 0.5 * 10)
    assert (measured.unit, measured.rows) == ("nats", 4000)
    assert measured.standard_error == pytest.approx((1.5 / 4000) ** 0.5, rel=0.1)  # of chi-squared(3) / 2
    assert abs(measured.value + entropy) < 3 * measured.standard_error


def test_a_column_in_units_ten_times_as_small_lowers_every_density_by_log_10() -> None:
    parts = [correlated_normals(400, seed) for seed in range(3)]
    for before, after in zip(
        density_floors(*parts), density_floors(*(part * [1, 10, 1] for part in parts)), strict=True
    ):
        torch.testing.assert_close(after.log_prob, before.log_prob - math.log(10), rtol=0, atol=1e-6)


def test_a_mixture_beats_one_gaussian_on_two_clusters_and_finds_their_entropy() -> None:
    def clusters(num: int, seed: int) -> Array:
        random = np.random.default_rng(seed)
        rows: Array = random.normal(size=(num, 2)) + 20 * random.integers(0, 2, (num, 1))
        return rows

    floors = by_name(density_floors(*(clusters(2000, seed) for seed in range(3))))
    gaussian, mixture = (mean_likelihood(floors[name].log_prob, (2,)) for name in ("gaussian", "mixture"))
    assert mixture.value > gaussian.value + 1
    entropy = math.log(2) + math.log(2 * math.pi * math.e)
    assert abs(mixture.value + entropy) < 3 * mixture.standard_error + 0.02  # for the parameters fitted in excess


def test_constant_duplicate_and_integer_columns_have_finite_floors() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=800)
    x = np.stack([a, a, np.full(800, 7.0), random.integers(0, 3, 800), 1e9 + a, (np.arange(800) == 799) / 2], 1)
    splits = divide(Dataset(x, list("abcdef")))
    columns = describe_columns(splits.fit)
    assert splits.test is not None
    floors = by_name(measure_floors(splits, splits.test, noisy(splits.test, columns), columns))
    assert list(floors) == ["gaussian", "mixture"]
    assert all(torch.isfinite(floor.log_prob).all() for floor in floors.values())


def test_few_rows_of_many_columns_have_a_sane_floor() -> None:
    fit, validation, held_out = (np.random.default_rng(seed).normal(size=(100, 30)) for seed in range(3))
    truth = -15 * math.log(2 * math.pi * math.e)
    floors = by_name(density_floors(fit, validation, held_out))
    assert list(floors) == ["gaussian", "mixture"]
    assert all(truth - 10 < floor.log_prob.mean() < truth + 2 for floor in floors.values())


@pytest.mark.parametrize(("rows", "expected"), [(1, []), (2, ["gaussian"]), (4, ["gaussian", "mixture"])])
def test_a_density_that_the_rows_are_too_few_for_is_left_out(rows: int, expected: list[str]) -> None:
    x = np.random.default_rng(0).normal(size=(10, 3))
    floors = density_floors(x[:rows], x[4:], x[4:])
    assert [floor.name for floor in floors] == expected
    assert all(torch.isfinite(floor.log_prob).all() for floor in floors)


def test_floors_of_images_are_bits_per_dimension_under_the_flows_noise() -> None:
    """Uniform pixels have 8 bits; a Gaussian of their variance needs log2(256 sqrt(2 pi e / 12)) = 8.254."""
    x = np.random.default_rng(0).integers(0, 256, (8000, 1, 3, 3)).astype(np.uint8)
    splits = divide(Dataset(x, []))
    assert splits.test is not None
    floors = by_name(measure_floors(splits, splits.test, noisy(splits.test, []), []))
    assert list(floors) == ["gaussian", "mixture", "png", "webp"]
    measured = mean_likelihood(floors["gaussian"].log_prob, (1, 3, 3))
    assert measured.unit == "bits/dim"
    assert measured.value == pytest.approx(8.254, abs=0.02)


def test_files_of_constant_images_are_small_and_those_of_noise_as_large_as_the_pixels() -> None:
    random = np.random.default_rng(0)
    for channels in (1, 3):
        shape = (3, channels, 32, 32)
        constant = codec_floors(np.full(shape, 200, np.uint8))
        noise = codec_floors(random.integers(0, 256, shape).astype(np.uint8))
        for small, large in zip(constant, noise, strict=True):
            assert mean_likelihood(small.log_prob, shape[1:]).value < 1
            assert 8 < mean_likelihood(large.log_prob, shape[1:]).value < 9


def test_chosen_rows_are_all_or_so_many_and_always_the_same() -> None:
    assert choose_rows(10, 20).tolist() == list(range(10))
    chosen = choose_rows(1000, 20)
    assert len(set(chosen.tolist())) == 20
    assert chosen.max() > 100
    assert (chosen == choose_rows(1000, 20)).all()


def test_more_rows_than_the_most_are_left_out_and_the_floor_says_how_many_were_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.floors.FIT_ROWS", 50)
    splits = tiny_images()
    assert splits.test is not None
    floors = by_name(measure_floors(splits, splits.test, noisy(splits.test, []), []))
    assert floors["gaussian"].what == "one Gaussian of full covariance, fitted to 50 rows"


def test_in_very_many_dimensions_one_gaussian_is_diagonal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.floors.GAUSSIAN_DIMS", 8)
    splits = tiny_images()
    assert splits.test is not None
    floors = by_name(measure_floors(splits, splits.test, noisy(splits.test, []), []))
    assert floors["gaussian"].what == "one Gaussian of diagonal covariance, fitted to 100 rows"
