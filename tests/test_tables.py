"""Tables from files: one table whatever the file, categories by name, and every unusable value named."""

import datetime as dt
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from model import tables
from model.data import DataError, Selection, load
from model.evaluate import load_for
from model.recipe import DataRecipe, Splits, load_splits
from service.artifact import open_artifact
from tests.conftest import tiny_recipe, train_and_export

ROOT = Path(__file__).parents[1]
NAN, INF = math.nan, math.inf
NUM = 3000  # several batches
RANDOM = np.random.default_rng(0)
NUMBERS = {
    "height": RANDOM.normal(size=NUM),
    "count": RANDOM.integers(0, 50, NUM),
    "kind": RANDOM.integers(8, 13, NUM),
    "label": RANDOM.integers(0, 2, NUM),
}
COLORS = np.array(["red", "blue", "green"])[RANDOM.integers(0, 3, NUM)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH_VALUES", 1000)
    monkeypatch.setattr(tables, "_PARQUET_COLUMNS", 2)


def write(path: Path, columns: Mapping[str, object]) -> str:
    table = pa.table(dict(columns))
    (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(table, path)
    return path.name


def parts(splits: Splits) -> list[np.ndarray]:
    assert splits.test is not None
    return [part.x for part in (splits.fit, splits.validation, splits.calibration, splits.test)]


def digests(splits: Splits) -> list[str]:
    assert splits.test is not None
    return [part.digest for part in (splits.fit, splits.validation, splits.calibration, splits.test)]


@pytest.mark.parametrize("normal_label", [None, 1])
def test_a_table_is_the_same_from_parquet_csv_and_npz(tmp_path: Path, normal_label: int | None) -> None:
    numbers = {name: values for name, values in NUMBERS.items() if name != "label"}
    array = np.stack(list(numbers.values()), 1)
    np.savez(tmp_path / "a.npz", X=array, y=NUMBERS["label"])
    write(tmp_path / "a.csv", NUMBERS)
    parquet.write_table(pa.table(NUMBERS), tmp_path / "a.parquet", row_group_size=700)
    found = []
    for source, label_column, kind in (
        ("a.npz", None, "x2"),
        ("a.csv", "label", "kind"),
        ("a.parquet", "label", "kind"),
    ):
        recipe = DataRecipe(
            train=source,
            label_column=label_column,
            normal_label=normal_label,
            categorical=[kind],
            validation=0.1,
            calibration=100,
            test=0.2,
        )
        splits = load_splits(recipe, tmp_path)
        assert splits.fit.categories == {kind: ["10", "11", "12", "8", "9"]}
        found.append(parts(splits))
    total = NUM if normal_label is None else int(NUMBERS["label"].sum())
    assert sum(map(len, found[0])) == total
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            assert np.array_equal(first, other)


def test_digests_are_those_of_the_values_and_the_names_of_categories(tmp_path: Path) -> None:
    def of(source: str) -> list[str]:
        return digests(load_splits(DataRecipe(train=source, validation=10, calibration=10, test=10), tmp_path))

    columns = {**NUMBERS, "color": COLORS}
    encoded = {**NUMBERS, "color": pa.array(COLORS).dictionary_encode()}
    first = of(write(tmp_path / "a.csv", columns))
    assert of(write(tmp_path / "a.parquet", columns)) == first
    assert of(write(tmp_path / "b.parquet", encoded)) == first
    assert len(set(first)) == 4
    assert of(write(tmp_path / "c.parquet", {**columns, "color": np.char.add(COLORS, "dish")})) != first


def test_rows_of_a_parquet_file_lie_shuffled_in_one_mapped_file_that_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    source = write(tmp_path / "a.parquet", NUMBERS)
    splits = load_splits(DataRecipe(train=source, validation=10, calibration=10, test=10), tmp_path)
    assert all(isinstance(part, np.memmap) for part in parts(splits))
    assert splits.fit.x.base is splits.validation.x.base
    assert list(scratch.iterdir()) == []
    order = np.random.default_rng(0).permutation(NUM)
    assert np.array_equal(splits.fit.x[:, 0], NUMBERS["height"][order[30:]])


def test_a_folder_of_parquet_files_is_one_table_in_the_order_of_their_paths(tmp_path: Path) -> None:
    whole = pa.table({**NUMBERS, "color": COLORS})
    parquet.write_table(whole, tmp_path / "whole.parquet")
    (tmp_path / "parts" / "a").mkdir(parents=True)
    for name, rows in (("a/z", whole[:1000]), ("b", whole[1000:1000]), ("c", whole[1000:])):
        columns = rows.column_names[:: -1 if name == "c" else 1]  # in another order, which is no other schema
        parquet.write_table(rows.select(columns), tmp_path / "parts" / f"{name}.parquet", row_group_size=300)
    for wanted in (Selection(), Selection("label", 1, ["count"], shuffle_seed=3)):
        expected, found = load("whole.parquet", tmp_path, wanted), load("parts", tmp_path, wanted)
        assert np.array_equal(expected.x, found.x)
        assert (expected.columns, expected.categories) == (found.columns, found.categories)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0]}, r"b\.parquet: no column 'y', which .*a\.parquet has"),
        ({"x": [1.0], "y": [1.0], "z": [1.0]}, r"b\.parquet: column 'z' is not in .*a\.parquet"),
        ({"x": ["1"], "y": [1.0]}, r"b\.parquet: column 'x' is of type string, but double in .*a\.parquet"),
        ({"x": [1.0, NAN], "y": [1.0, 2.0]}, r"b\.parquet: row 1, column 'x' is missing"),
    ],
)
def test_what_is_wrong_with_a_file_of_a_folder_is_named(
    tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    write(tmp_path / "a.parquet", {"x": [0.0], "y": [0.0]})
    write(tmp_path / "b.parquet", columns)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path))


GROWTH = """
import sys, threading, time
from pathlib import Path
from model.evaluate import likelihood
from model.recipe import load_splits, parse_recipe
from model.trainer import Trainer

def run(source):
    recipe = parse_recipe({
        "name": "a",
        "data": {"train": source, "validation": 1000, "calibration": 1000, "test": 0.5},
        "model": {"num_steps": 1, "width": 4},
        "training": {"steps": 1},
    }, "test")
    splits = load_splits(recipe.data, Path())
    trainer = Trainer(recipe, splits)
    trainer.train_step()
    return likelihood(trainer.averaged_flow(), splits.test, trainer.columns).rows

def used():  # bytes of memory that are not those of a mapped file
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def watch():
    while True:
        peaks[0] = max(peaks[0], used())
        time.sleep(0.002)

run(sys.argv[1])
before = used()
peaks = [before]
threading.Thread(target=watch, daemon=True).start()
rows = run(sys.argv[2])
print(rows, peaks[0] - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell how much memory is used")
def test_a_parquet_file_is_never_wholly_in_memory(tmp_path: Path) -> None:
    """Not while it is read, described, trained on, nor measured."""
    values = RANDOM.normal(size=(20, 600_000))
    for name, num_rows in (("small", 20_000), ("large", 600_000)):
        write(tmp_path / f"{name}.parquet", {f"c{i}": column[:num_rows] for i, column in enumerate(values)})
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "small.parquet"), str(tmp_path / "large.parquet")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    rows, growth = map(int, result.stdout.split())
    assert rows == 300_000
    assert growth < 0.5 * values.nbytes


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    source = write(tmp_path / "a.parquet", NUMBERS)
    with pytest.raises(
        DataError, match=rf"a\.parquet: needs {NUM * 32} bytes in .* \(TMPDIR\): No space left on device"
    ):
        load(source, tmp_path)


def test_columns_of_text_become_the_codes_of_their_sorted_names(tmp_path: Path) -> None:
    columns = {"color": ["red", "blue", "red"], "x": [1.5, 2.5, 3.5], "yes": [True, False, True]}
    for source in (write(tmp_path / "a.csv", columns), write(tmp_path / "a.parquet", columns)):
        data = load(source, tmp_path)
        assert data.categories == {"color": ["blue", "red"]}
        assert data.columns == ["color", "x", "yes"]
        assert data.x.tolist() == [[1.0, 1.5, 1.0], [0.0, 2.5, 0.0], [1.0, 3.5, 1.0]]


def test_numbers_become_names_where_the_recipe_says_so(tmp_path: Path) -> None:
    columns = {"code": [10.0, 9.0, 2.5], "yes": [True, False, True]}
    for suffix in (".csv", ".parquet"):
        data = load(write(tmp_path / f"a{suffix}", columns), tmp_path, Selection(categorical=["code", "yes"]))
        assert data.categories == {"code": ["10", "2.5", "9"], "yes": ["false", "true"]}
        assert data.x.tolist() == [[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]


def test_columns_that_are_ignored_are_no_features_whatever_they_hold(tmp_path: Path) -> None:
    columns = {"id": ["a", "b", "c"], "x": [1.0, 2.0, 3.0], "when": [dt.date(2026, 1, 1)] * 3, "y": [4.0, 5.0, 6.0]}
    for suffix in (".csv", ".parquet"):
        data = load(write(tmp_path / f"a{suffix}", columns), tmp_path, Selection(ignored=["when", "id"]))
        assert (data.columns, data.x.tolist()) == (["x", "y"], [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]])


def test_categories_are_those_of_all_rows_of_the_wanted_label(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", {"color": ["a", "b", "c"], "x": [1.0, 2.0, 3.0], "label": [0, 1, 1]})
    data = load(source, tmp_path, Selection(label_column="label", normal_label=1))
    assert data.categories == {"color": ["b", "c"]}
    assert data.x.tolist() == [[0.0, 2.0], [1.0, 3.0]]


def test_a_dictionary_that_holds_more_than_its_column_adds_no_category(tmp_path: Path) -> None:
    color = pa.DictionaryArray.from_arrays(pa.array([2, 0]), pa.array(["c", "unused", "a"]))
    data = load(write(tmp_path / "a.parquet", {"color": color, "x": [1.0, 2.0]}), tmp_path)
    assert data.categories == {"color": ["a", "c"]}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_unknown_category_of_a_test_file_is_named(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a{suffix}", {"color": ["red", "blue"] * 10, "x": [0.5] * 20})
    write(tmp_path / f"b{suffix}", {"x": [0.5] * 3, "id": ["u", "v", "w"], "color": ["red", "blue", "blue"]})
    write(tmp_path / f"c{suffix}", {"x": [0.5] * 3, "color": ["red", "blue", "violet"]})
    recipe = DataRecipe(train=f"a{suffix}", validation=1, calibration=1, test=f"b{suffix}")
    test = load_splits(recipe, tmp_path).test
    assert test is not None
    assert test.x.tolist() == [[1.0, 0.5], [0.0, 0.5], [0.0, 0.5]]
    message = rf"c\{suffix}: row 2, column 'color' is 'violet', not one of its categories: blue, red"
    with pytest.raises(DataError, match=message):
        load_splits(recipe.model_copy(update={"test": f"c{suffix}"}), tmp_path)


def test_an_artifact_is_measured_on_the_columns_that_it_knows(models_dir: Path, tmp_path: Path) -> None:
    manifest = open_artifact(models_dir / "tiny-mixed.pt").manifest
    columns = {
        "day": ["mon", "tue"],
        "copy": [0.5, 1.5],
        "fixed": [7, 7],
        "count": [1, 2],
        "size": [0.5, 1.5],
        "color": ["red", "green"],
    }
    data = load_for(manifest, str(tmp_path / write(tmp_path / "a.csv", columns)))
    assert data.x.tolist() == [[2, 0.5, 1, 7, 0.5], [1, 1.5, 2, 7, 1.5]]
    with pytest.raises(DataError, match="column 'count' is of type string; expected numbers"):
        load_for(manifest, str(tmp_path / write(tmp_path / "b.csv", {**columns, "count": ["a", "b"]})))
    with pytest.raises(DataError, match="no column 'color'; it has day, copy"):
        load_for(manifest, str(tmp_path / write(tmp_path / "c.csv", dict(list(columns.items())[:-1]))))


def test_columns_of_arrays_are_taken_by_position(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", [[1.0, 2.0]])
    data = load("a.npy", tmp_path, Selection(known={"b": [], "a": []}))
    assert data.columns == ["b", "a"]
    assert data.x.tolist() == [[1.0, 2.0]]
    assert load("a.npy", tmp_path, Selection(known={"x1": []})).x.tolist() == [[2.0]]
    with pytest.raises(DataError, match="no column 'a'; it has x0, x1"):
        load("a.npy", tmp_path, Selection(known={"a": []}))


def test_a_hundred_rows_of_every_type_of_column_train_and_export(tmp_path: Path) -> None:
    size = NUMBERS["height"][:100]
    columns = {"size": size, "color": COLORS[:100], "copy": size, "count": NUMBERS["count"][:100], "fixed": [0.5] * 100}
    write(tmp_path / "a.parquet", columns)
    recipe = DataRecipe(train="a.parquet", validation=0.1, calibration=0.2, test=0.1)
    splits = load_splits(recipe, tmp_path)
    trainer = train_and_export(tiny_recipe("a"), splits, tmp_path / "a.pt")
    assert [column.type for column in trainer.columns] == [
        "continuous",
        "categorical",
        "duplicate",
        "integer",
        "constant",
    ]
    manifest = open_artifact(tmp_path / "a.pt").manifest
    assert [column.model_copy(update={"treatment": ""}) for column in manifest.columns] == trainer.columns
    assert all("smoothed by Gaussian noise of 0.1 scales" in column.treatment for column in manifest.columns)
    assert manifest.quantized.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0, NAN]}, "row 1, column 'x' is missing; every value must be present"),
        ({"x": [1.0, INF]}, "row 1, column 'x' is inf; every value must be finite"),
        ({"x": [1.0, 2.0], "y": [None, 1]}, "row 0, column 'y' is missing"),
        ({"x": [1.0, 2.0], "color": ["red", None]}, "row 1, column 'color' is missing"),
        ({"x": [1.0, 2.0], "y": pa.nulls(2)}, "row 0, column 'y' is missing"),
        ({"x": [1.0, 2.0], "y": pa.array([0, 10**9], pa.timestamp("s"))}, "column 'y' is of type timestamp"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_missing_or_unusable_value_is_named(
    tmp_path: Path, suffix: str, columns: dict[str, object], message: str
) -> None:
    source = write(tmp_path / f"a{suffix}", columns)
    with pytest.raises(DataError) as raised:
        load(source, tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / source}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_value_of_an_array_is_named(tmp_path: Path) -> None:
    array = np.ones((NUM, 3))
    array[2900, 1] = math.nan
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy: row 2900, column 'x1' is missing; every value must be present"):
        load("a.npy", tmp_path)
    array[2900, 1] = -math.inf
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy: row 2900, column 'x1' is -inf; every value must be finite"):
        load("a.npy", tmp_path)


@pytest.mark.parametrize("cell", ["", '""', "NA", "nan", "NULL"])
def test_an_empty_cell_of_text_is_missing(tmp_path: Path, cell: str) -> None:
    (tmp_path / "a.csv").write_text(f"x,color\n1,red\n2,{cell}\n3,blue\n")
    with pytest.raises(DataError, match="row 1, column 'color' is missing"):
        load("a.csv", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Selection(label_column="none"), "no column 'none'; it has x, y"),
        (lambda: Selection(categorical=["none"]), "no column 'none'; it has x, y"),
        (lambda: Selection(ignored=["none"]), "no column 'none'; it has x, y"),
        (lambda: Selection(ignored=["x", "y"]), "holds no columns"),
        (lambda: Selection(normal_label=1), "normal_label = 1, but the data carry no labels"),
        (lambda: Selection(label_column="y", normal_label=7), "no row is labelled 7"),
    ],
)
def test_an_impossible_selection_is_named(tmp_path: Path, change: Callable[[], Selection], message: str) -> None:
    source = write(tmp_path / "a.csv", {"x": [1, 2], "y": [3, 4]})
    with pytest.raises(DataError, match=message):
        load(source, tmp_path, change())


def test_two_columns_of_one_name_and_too_many_categories_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("x,x\n1,2\n")
    with pytest.raises(DataError, match="two columns are named 'x'"):
        load("a.csv", tmp_path)
    monkeypatch.setattr(tables, "MAX_CATEGORIES", 2)
    with pytest.raises(DataError, match="column 'color' holds more than 2 names, too many categories"):
        load(write(tmp_path / "b.parquet", {"color": COLORS}), tmp_path)


def test_a_file_that_has_fewer_rows_than_it_announces_is_refused() -> None:
    batch = pa.record_batch({"a": [1.0, 2.0]})
    part = tables.Part("x.parquet", range(3), 0, lambda columns: iter([batch.select(columns)]))
    with pytest.raises(DataError, match=r"x\.parquet: 3 rows are announced, but column 'a' has 2"):
        tables.read_table(tables.Table("x", batch.schema, [part], streamed=True), Selection())
