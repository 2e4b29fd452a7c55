"""Columns of a table: what each is taken for, and that each gets a density and none is dropped."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model.columns import add_column_noise, describe_columns, standardizer, treatment
from model.data import DataError, Dataset
from service.columns import Column, listed_categories

NUM = 500


def columns_of(**values: object) -> list[Column]:
    x = np.stack([np.broadcast_to(np.asarray(column, np.float64), NUM) for column in values.values()], 1)
    return describe_columns(Dataset(x, list(values), {"color": ["blue", "green", "red"]} if "color" in values else {}))


def noise_of(columns: list[Column], smoothing: float = 0.0) -> np.ndarray:
    zeros = torch.zeros(5000, len(columns), dtype=torch.float64)
    return add_column_noise(zeros, columns, smoothing, torch.Generator().manual_seed(0)).numpy()


def in_bins(noise: np.ndarray) -> bool:
    return bool(abs(noise).max() <= 0.5) and noise.std() == pytest.approx(12**-0.5, rel=0.05)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, NUM)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, NUM)


def test_real_numbers_stay_as_they_are(real: np.ndarray) -> None:
    (column,) = columns_of(a=real)
    assert column.type == "continuous"
    assert not noise_of([column]).any()
    assert treatment(column, 0.0).startswith("real numbers; drawn in beyond 3 scales of ")
    assert "smoothed by Gaussian noise of 0.1 scales" in treatment(column, 0.1)


def test_a_few_wild_values_move_neither_centre_nor_scale(real: np.ndarray) -> None:
    wild = real.copy()
    wild[:5] = 1e6
    calm, disturbed = columns_of(a=real, b=wild)
    assert calm.center == np.median(real)
    assert calm.scale == pytest.approx(2, rel=0.1)
    assert disturbed.center == pytest.approx(calm.center, abs=0.02)
    assert disturbed.scale == pytest.approx(calm.scale, rel=0.05)


def test_a_column_that_is_mostly_one_value_is_scaled_by_its_standard_deviation() -> None:
    rare = np.zeros(NUM)
    rare[::10] = 0.7
    (column,) = columns_of(a=rare)
    assert column.center == 0
    assert column.scale == pytest.approx(rare.std())


def test_whole_numbers_and_codes_of_categories_fill_bins_of_width_1(whole: np.ndarray) -> None:
    columns = columns_of(count=whole, color=whole)
    assert [column.type for column in columns] == ["integer", "categorical"]
    for column, noise in zip(columns, noise_of(columns).T, strict=True):
        assert column.center == 1
        assert column.scale == pytest.approx(((2 / 1.349) ** 2 + 1 / 12) ** 0.5)  # the quartiles are 0 and 2
        assert in_bins(noise)
    assert "whole numbers: uniform noise in bins of width 1" in treatment(columns[0], 0.0)
    assert "3 categories (blue, green, red): their codes, uniform noise in bins" in treatment(columns[1], 0.0)
    assert columns[1].codes == {"blue": 0, "green": 1, "red": 2}


def test_a_column_of_one_category_knows_the_others() -> None:
    (column,) = columns_of(color=1)
    assert (column.type, column.center, column.categories) == ("categorical", 1.0, ["blue", "green", "red"])


def test_a_constant_whole_number_fills_a_bin_and_another_gets_a_narrow_width() -> None:
    columns = columns_of(seven=7.0, half=3.5, huge=-4e300, zero=0.0)
    noise = noise_of(columns)
    assert {column.type for column in columns} == {"constant"}
    for i in (0, 3):
        assert in_bins(noise[:, i])
        assert columns[i].scale == pytest.approx(12**-0.5)
    assert noise[:, 1].std() == pytest.approx(0.0035, rel=0.05)
    assert (noise[:, 2] / 4e297).std() == pytest.approx(1, rel=0.05)
    assert "constant 7: uniform noise in a bin of width 1" in treatment(columns[0], 0.0)
    assert "constant 3.5: Gaussian noise of std 0.0035" in treatment(columns[1], 0.0)


@pytest.mark.parametrize("factor", [1e300, 1e-200])
def test_columns_beyond_what_can_be_scaled_are_named(real: np.ndarray, factor: float) -> None:
    with pytest.raises(DataError, match=r"column 'a' has mean .* and standard deviation .*, beyond what can be scaled"):
        columns_of(a=real * factor)


def test_a_column_that_repeats_a_real_one_gets_a_width_of_its_own(real: np.ndarray, whole: np.ndarray) -> None:
    almost = real.copy()
    almost[-1] += 1e-9
    columns = columns_of(a=real, n=whole, b=almost, c=real, m=whole, d=real)
    assert [column.type for column in columns] == [
        "continuous",
        "integer",
        "continuous",
        "duplicate",
        "integer",
        "duplicate",
    ]
    assert [column.duplicate_of for column in columns] == [None, None, None, "a", None, "a"]
    assert (columns[3].center, columns[3].scale) == (columns[0].center, columns[0].scale)
    assert noise_of(columns)[:, 3].std() == pytest.approx(1e-3 * real.std(), rel=0.05)
    assert "equal to column 'a' in every row: Gaussian noise of std 0.00" in treatment(columns[3], 0.0)


def test_the_sign_of_a_zero_does_not_hide_a_duplicate(real: np.ndarray) -> None:
    zero, minus_zero = real.copy(), real.copy()
    zero[0], minus_zero[0] = 0.0, -0.0
    assert columns_of(a=zero, b=minus_zero)[1].type == "duplicate"


def test_smoothing_adds_to_the_noise_of_every_column(real: np.ndarray, whole: np.ndarray) -> None:
    columns = columns_of(a=real, n=whole, half=3.5, copy=real)
    own = noise_of(columns).std(0)
    scales = np.array([column.scale for column in columns])
    assert noise_of(columns, 0.1).std(0) == pytest.approx(np.sqrt(own**2 + (0.1 * scales) ** 2), rel=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "categorical"}, "categorical columns have categories, no others do"),
        ({"type": "integer", "categories": ["a"]}, "categorical columns have categories, no others do"),
        ({"type": "categorical", "categories": ["b", "a"]}, "categories must be sorted and different"),
        ({"type": "categorical", "categories": ["a", "a"]}, "categories must be sorted and different"),
        ({"type": "duplicate"}, "duplicates name the column they repeat, no others do"),
        ({"type": "integer", "duplicate_of": "b"}, "duplicates name the column they repeat, no others do"),
        ({"type": "integer", "scale": 0}, "greater than 0"),
    ],
)
def test_a_column_that_contradicts_itself_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Column.model_validate({"name": "a", "center": 0.0, "scale": 1.0, **values})


def test_messages_list_no_more_than_twenty_categories() -> None:
    assert listed_categories(["a", "b" * 40]) == f"a, {'b' * 27}..."
    assert listed_categories([str(i) for i in range(21)]).endswith("18, 19, ...")


def test_values_beyond_three_scales_are_drawn_in_to_their_logarithm(real: np.ndarray) -> None:
    (column,) = columns_of(a=real)
    layer = standardizer([column])
    far = torch.tensor([0.0, 2.9, 30.0, -3e6], dtype=torch.float64)[:, None, None, None]
    z, _ = layer(far * column.scale + column.center)
    expected = [0.0, 2.9, 3 * (1 + np.log(10)), -3 * (1 + np.log(1e6))]
    assert z.flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_smoothing_blurs_a_duplicate_as_the_column_that_it_repeats(real: np.ndarray) -> None:
    columns = columns_of(a=real, b=real)
    noise = noise_of(columns, smoothing=0.1)
    assert noise[:, 0].std() == pytest.approx(0.1 * columns[0].scale, rel=0.05)
    assert (noise[:, 1] - noise[:, 0]).std() == pytest.approx(columns[1].noise_std, rel=0.05)
