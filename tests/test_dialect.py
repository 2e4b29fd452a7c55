"""CSV files as spreadsheets write them: the same table to training and to scoring, whatever separates its columns."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.data import DataError, load
from service.artifact import Manifest, open_artifact
from service.files import FileError, open_rows

HEADING = ["color", "size", "count", "fixed", "copy", "note"]
ROWS = [["red", 0.5, 1, 7, 0.5, "a; b, c"], ["blue", -2, 3, 7, -2, '1,5 "'], ["green", 3.25, 9, 7, 3.25, "9.9,9"]]
EXPECTED = [[2, 0.5, 1, 7, 0.5], [0, -2, 3, 7, -2], [1, 3.25, 9, 7, 3.25]]


@pytest.fixture(scope="module")
def mixed(models_dir: Path) -> Manifest:
    return open_artifact(models_dir / "tiny-mixed.pt").manifest


def write(path: Path, separator: str, decimal: str, encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        lines = csv.writer(file, delimiter=separator)
        lines.writerow(HEADING)
        for row in ROWS:
            lines.writerow(str(cell).replace(".", decimal) if isinstance(cell, float) else cell for cell in row)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), ("\t", "."), ("\t", ","), (";", "."), (";", ",")])
def test_columns_and_numbers_are_found_whatever_separates_them(
    mixed: Manifest, tmp_path: Path, separator: str, decimal: str, encoding: str
) -> None:
    path = write(tmp_path / "x.csv", separator, decimal, encoding)
    (batch,) = open_rows(path, mixed, None).batches()
    assert batch.rows.tolist() == EXPECTED
    assert batch.ids.to_pydict() == {"note": [row[-1] for row in ROWS]}
    table = load("x.csv", tmp_path)
    assert table.columns == HEADING
    np.testing.assert_array_equal(table.x[:, :5], EXPECTED)
    assert table.categories["note"] == sorted(str(row[-1]) for row in ROWS)


def test_separators_in_quotes_separate_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"a; b; c",d\n1.5,2\n2.5,3\n')
    assert load("x.csv", tmp_path).columns == ["a; b; c", "d"]


def test_a_number_with_points_and_commas_is_not_guessed(mixed: Manifest, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("color;size;count;fixed;copy\nred;1.234,5;1;7;1\n")
    (batch,) = open_rows(tmp_path / "x.csv", mixed).batches()
    assert batch.refused == {0: "column 'size' is '1.234,5'; expected a number"}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_another_encoding_is_named_as_such(mixed: Manifest, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.csv").write_text("Größe;color\n1,5;red\n", encoding=encoding)
    read: list[Callable[[], object]] = [lambda: open_rows(tmp_path / "x.csv", mixed), lambda: load("x.csv", tmp_path)]
    for one in read:
        with pytest.raises((FileError, DataError), match=r"x\.csv: cannot be read: its text is not in UTF-8; save it"):
            one()
