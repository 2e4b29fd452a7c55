"""Files of rows: the same from every kind of file, in batches of bounded size, and what is wrong with the others."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet

from service.artifact import Column, Manifest, open_artifact
from service.codecs import image
from service.files import FileError, open_rows, row_file, tables

Write = Callable[[pa.Table, Path], object]

TABLE = pa.table(
    {
        "id": ["r0", "r1", "r2", "r3"],  # not of the model
        "copy": [0.5, 1.5, -2.0, 3.25],
        "fixed": [7, 7, 7, 7],
        "count": [1, 2, 3, 9],
        "size": [0.5, 1.5, -2.0, 3.25],
        "color": ["red", "blue", "green", "red"],
    }
)
ROWS = [[2, 0.5, 1, 7, 0.5], [0, 1.5, 2, 7, 1.5], [1, -2, 3, 7, -2], [2, 3.25, 9, 7, 3.25]]


@pytest.fixture(scope="module")
def mixed(models_dir: Path) -> Manifest:
    return open_artifact(models_dir / "tiny-mixed.pt").manifest


@pytest.fixture(scope="module")
def images(models_dir: Path) -> Manifest:
    return open_artifact(models_dir / "tiny-images.pt").manifest


def changed(name: str, values: Any) -> pa.Table:
    return TABLE.set_column(TABLE.column_names.index(name), name, pa.array(values))


def write_csv(table: pa.Table, path: Path) -> Path:
    path = path.with_suffix(".csv")
    csv.write_csv(table, path)
    return path


def write_parquet(table: pa.Table, path: Path) -> Path:
    path = path.with_suffix(".parquet")
    parquet.write_table(table, path, row_group_size=3)
    return path


def write_npy(rows: Any, path: Path) -> Path:
    path = path.with_suffix(".npy")
    np.save(path, rows)
    return path


def write_npz(rows: Any, path: Path) -> Path:
    path = path.with_suffix(".npz")
    np.savez_compressed(path, X=rows, y=np.zeros(3))
    return path


def write_folder(rows: Any, path: Path) -> Path:
    path.mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        (path / f"{i:03}.png").write_bytes(image.write_grid(row[None], (0.0, 15.0)))
    return path


def rows_of(path: Path, manifest: Manifest) -> Any:
    batches = list(open_rows(path, manifest).batches())
    assert not any(batch.refused for batch in batches)
    np.testing.assert_array_equal(
        np.concatenate([batch.positions for batch in batches]), np.arange(sum(batch.num_rows for batch in batches))
    )
    return np.concatenate([batch.rows for batch in batches])


@pytest.mark.parametrize("write", [write_csv, write_parquet])
@pytest.mark.parametrize(
    "color",
    [
        ["red", "blue", "green", "red"],
        pa.array(["red", "blue", "green", "red"]).dictionary_encode(),
        [2, 0, 1, 2],
        [2.0, 0.0, 1.0, 2.0],
        ["2", "blue", "1", "red"],
    ],
    ids=["names", "dictionary", "codes", "real codes", "codes as text"],
)
def test_columns_are_found_by_name_and_categories_by_name_or_code(
    mixed: Manifest, tmp_path: Path, write: Write, color: Any
) -> None:
    table = changed("color", color)
    if write is write_csv:
        table = table.set_column(5, "color", table["color"].cast(pa.string()))
    rows = rows_of(write(table, tmp_path / "x"), mixed)  # type: ignore[arg-type]
    assert rows.dtype == np.float64
    assert rows.tolist() == ROWS


@pytest.mark.parametrize("write", [write_npy, write_npz])
@pytest.mark.parametrize("kind", ["float64", "float32", "int16", ">f8", "fortran"])
def test_arrays_of_any_type_and_order_give_the_same_rows(
    mixed: Manifest, tmp_path: Path, write: Callable[[Any, Path], Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "BATCH_ROWS", 3)
    rows = np.asfortranarray(ROWS) if kind == "fortran" else np.array(ROWS).astype(kind)
    assert rows_of(write(rows, tmp_path / "x"), mixed).tolist() == rows.tolist()


def test_images_come_alike_from_arrays_and_from_folders(images: Manifest, tmp_path: Path, image_splits: Any) -> None:
    x = image_splits.test.x[:5]
    for write in (write_npy, write_npz, write_folder):
        rows = rows_of(write(x, tmp_path / write.__name__), images)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, x)
    np.testing.assert_array_equal(rows_of(write_npy(x.reshape(5, 64), tmp_path / "flat"), images), x)


def test_numbers_are_names_where_all_categories_are_numbers(mixed: Manifest, tmp_path: Path) -> None:
    """Otherwise 1 in a column of the categories 1, 2 and 3 would be the second of them."""
    grades = Column(name="color", type="categorical", center=0, scale=1, categories=["1", "2", "3"])
    manifest = mixed.model_copy(update={"columns": [grades, *mixed.columns[1:]]})
    for write in (write_csv, write_parquet):
        for values in ([3, 1, 2, 3], [3.0, 1.0, 2.0, 3.0], ["3", "1", "2", "3"]):
            rows = rows_of(write(changed("color", values), tmp_path / "x"), manifest)
            assert rows[:, 0].tolist() == [2, 0, 1, 2]
        (batch,) = open_rows(write(changed("color", [3, 0, 2, 3]), tmp_path / "x"), manifest).batches()
        assert list(batch.refused) == [1]
        assert batch.refused[1].startswith("column 'color' is '0', neither a category nor")


BAD = [
    ("size", [0.5, None, -2.0, 3.25], "column 'size' is missing; every value must be present"),
    ("size", [0.5, float("nan"), -2.0, 3.25], "column 'size' is missing; every value must be present"),
    ("size", [0.5, float("inf"), -2.0, 3.25], "column 'size' is inf; every value must be finite"),
    ("count", [1, None, 3, 9], "column 'count' is missing; every value must be present"),
    ("color", ["red", "pink", "green", "red"], "column 'color' is 'pink', neither a category nor the code, 0 to 2"),
    ("color", ["red", None, "green", "red"], "column 'color' is missing; every value must be present"),
    ("color", [2, 3, 1, 2], "column 'color' is "),
]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
@pytest.mark.parametrize(("name", "values", "reason"), BAD)
def test_a_bad_row_is_refused_by_position_and_reason_and_the_others_are_read(
    mixed: Manifest, tmp_path: Path, write: Write, name: str, values: Any, reason: str
) -> None:
    path: Any = write(changed(name, values), tmp_path / "x")
    batches = list(open_rows(path, mixed).batches())
    refused = {position: text for batch in batches for position, text in batch.refused.items()}
    assert list(refused) == [1]
    assert refused[1].startswith(reason)
    assert [i for batch in batches for i in batch.positions] == [0, 2, 3]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), np.array(ROWS)[[0, 2, 3]])


def test_many_bad_rows_among_batches_are_all_found(
    mixed: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "BATCH_ROWS", 7)
    colors = np.random.default_rng(0).choice(["red", "blue", "pink", ""], 100).tolist()
    table = pa.table({**{name: TABLE[name].to_pylist() * 25 for name in TABLE.column_names}, "color": colors})
    for write in (write_csv, write_parquet):
        batches = list(open_rows(write(table, tmp_path / "x"), mixed).batches())
        assert max(batch.num_rows for batch in batches) == 7
        refused = [position for batch in batches for position in batch.refused]
        assert refused == [i for i, color in enumerate(colors) if color in ("pink", "")]
        kept = np.concatenate([batch.positions for batch in batches])
        assert sorted([*refused, *kept]) == list(range(100))


def test_text_in_a_column_of_numbers_is_a_bad_row_of_a_csv_file(mixed: Manifest, tmp_path: Path) -> None:
    (batch,) = open_rows(write_csv(changed("size", [" 0.5", "1,5", "true", "1_0"]), tmp_path / "x"), mixed).batches()
    assert batch.refused == {
        1: "column 'size' is '1,5'; expected a number",
        3: "column 'size' is '1_0'; expected a number",
    }
    assert batch.rows[:, 1].tolist() == [0.5, 1.0]


def test_bad_images_are_refused_by_name_and_pixels_by_place(
    images: Manifest, tmp_path: Path, image_splits: Any
) -> None:
    x = image_splits.test.x[:3].astype(np.float32)
    folder = write_folder(x, tmp_path / "photos")
    (folder / "001.png").write_bytes(image.write_grid(x[:2], (0.0, 15.0)))
    (folder / "notes.txt").write_text("not an image")
    (folder / "003.JPG").write_bytes(b"nor is this")
    Image.fromarray(x[0, 0].astype(np.uint8)).save(folder / "004.bmp")
    (batch,) = open_rows(folder, images).batches()
    assert batch.refused == {
        1: "001.png is 16x8 pixels, expected 8x8",
        3: "003.JPG is not a readable PNG or JPEG",
        4: "004.bmp is not a readable PNG or JPEG",
    }
    np.testing.assert_array_equal(batch.rows, x[[0, 2]])
    x[1, 0, 3, 4], x[2, 0, 0, 0] = 99, np.nan
    (batch,) = open_rows(write_npy(x, tmp_path / "x"), images).batches()
    assert batch.refused == {
        1: "pixel [0][3][4] is 99.0; pixels must lie in [-0.5, 15.5]",
        2: "pixel [0][0][0] is nan; every value must be finite",
    }


def test_ragged_lines_are_bad_rows_of_a_csv_file_and_the_others_keep_their_positions(
    mixed: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "BATCH_ROWS", 3)
    monkeypatch.setattr(tables, "CSV_BLOCK_BYTES", 100)
    heading, *lines = write_csv(TABLE, tmp_path / "x").read_text().splitlines()
    random = np.random.default_rng(0)
    for trial in range(20):
        ragged = set(np.flatnonzero(random.random(24) < random.random()).tolist()) - {0}
        text = [f"{lines[i % 4]},more" if i in ragged else lines[i % 4] for i in range(24)]
        path = tmp_path / f"{trial}.csv"
        path.write_text("\n".join([heading, "", *text]))  # lines of nothing are no rows
        batches = list(open_rows(path, mixed, ["id"]).batches())
        refused = {position: reason for batch in batches for position, reason in batch.refused.items()}
        assert refused == dict.fromkeys(sorted(ragged), "has 7 values; expected 6")
        assert [i for batch in batches for i in batch.positions] == [i for i in range(24) if i not in ragged]
        ids = [name for batch in batches for name in batch.ids["id"].to_pylist()]
        assert ids == [None if i in ragged else f"r{i % 4}" for i in range(24)]
        rows = np.concatenate([batch.rows for batch in batches])
        assert rows.tolist() == [ROWS[i % 4] for i in range(24) if i not in ragged]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_chosen_columns_come_along_as_they_stand_in_the_file(mixed: Manifest, tmp_path: Path, write: Write) -> None:
    codes = pa.array(["007", "NA", "", 'a "b",\nc'])
    path: Any = write(TABLE.append_column("code", codes).append_column("n", pa.array([1, 2, 3, 2**60])), tmp_path / "x")
    text = write is write_csv
    cases: list[tuple[Any, dict[str, list[Any]]]] = [
        (None, {"id": TABLE["id"].to_pylist(), "code": codes.to_pylist(), "n": [1, 2, 3, 2**60]}),
        (["n", "size"], {"n": [1, 2, 3, 2**60], "size": [0.5, 1.5, -2.0, 3.25]}),
        ((), {}),
    ]
    for ids, expected in cases:
        opened = open_rows(path, mixed, ids)
        (batch,) = [batch for batch in opened.batches() if batch.num_rows == 4]
        assert batch.ids.schema == opened.ids
        found = batch.ids.to_pydict()
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert found[name] == ([f"{value}".removesuffix(".0") for value in values] if text else values)
    for name, number in (("weight", "no column"), ("id", "2 columns")):
        twice: Any = write(TABLE.append_column("id", TABLE["id"]), tmp_path / "twice")
        with pytest.raises(FileError, match=f"has {number} '{name}' to identify rows by"):
            open_rows(twice, mixed, [name])
    with pytest.raises(FileError, match="has no column 'id'"):
        open_rows(write_npy(np.array(ROWS), tmp_path / "x"), mixed, ["id"])


def test_reading_goes_on_at_the_start_of_any_batch(
    mixed: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "BATCH_ROWS", 7)
    table = pa.concat_tables([TABLE] * 10)
    for path in (
        write_csv(table, tmp_path / "t"),
        write_parquet(table, tmp_path / "t"),
        write_npy(np.tile(np.array(ROWS), (10, 1)), tmp_path / "x"),
    ):
        opened = open_rows(path, mixed)
        whole = list(opened.batches())
        for i, batch in enumerate(whole):
            rest = list(opened.batches(batch.start))
            assert [part.start for part in rest] == [part.start for part in whole[i:]]
            np.testing.assert_array_equal(rest[0].rows, batch.rows)
            np.testing.assert_array_equal(rest[0].positions, batch.positions)


def of_version_3(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array(stream, np.zeros((3, 5)), version=(3, 0))
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.csv", "none.csv: no such file or folder"),
        (lambda p: write_csv(TABLE.drop_columns(["size"]), p / "x"), "x.csv: has no column 'size'; tiny-mixed takes"),
        (lambda p: write_parquet(TABLE.drop_columns(["size"]), p / "x"), "has no column 'size'"),
        (lambda p: write_csv(TABLE.rename_columns(["size", *TABLE.column_names[1:]]), p / "x"), "2 columns 'size'"),
        (lambda p: write_parquet(changed("size", list("abcd")), p / "x"), "column 'size' is of type string"),
        (lambda p: write_parquet(changed("size", [[1.0]] * 4), p / "x"), "'size' is of type list"),
        (lambda p: write_npy(np.zeros((3, 4)), p / "x"), "must be of shape (B, 5) for model tiny-mixed, got (3, 4)"),
        (lambda p: write_npy(np.zeros((0, 5)), p / "x"), "x.npy: holds no rows"),
        (lambda p: write_npy(np.array([["a"] * 5]), p / "x"), "expected numbers, got values of type <U1"),
        (lambda p: write_npy(np.array([[None] * 5]), p / "x"), "x.npy: cannot be read"),
        (lambda p: cut(write_npy(np.zeros((3, 5)), p / "x")), "x.npy: cannot be read"),
        (lambda p: cut(write_npz(np.zeros((3, 5)), p / "x")), "x.npz: cannot be read"),
        (lambda p: cut(write_parquet(TABLE, p / "x")), "x.parquet: cannot be read"),
        (lambda p: of_version_3(p / "x.npz"), "x.npz: x.npy is of .npy version 3.0; 1.0 and 2.0 are read"),
        (lambda p: p, "holds no images (.bmp, .jpeg, .jpg, .png, .webp) and no .parquet files"),
    ],
)
def test_a_file_that_is_not_for_the_model_is_refused_in_one_line(
    mixed: Manifest, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(FileError) as caught:
        list(open_rows(make(tmp_path), mixed).batches())
    assert message in str(caught.value)


def test_text_that_is_no_table_is_refused(mixed: Manifest, images: Manifest, tmp_path: Path) -> None:
    good = write_csv(TABLE, tmp_path / "x").read_text()
    for name, text, message in (
        ("empty.csv", "", "cannot be read"),
        ("x.txt", good, "unknown kind of file; expected .parquet, .csv"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(FileError, match=f"{name}: {message}"):
            list(open_rows(tmp_path / name, mixed).batches())
    with pytest.raises(FileError, match=r"is a table, but tiny-images takes images"):
        open_rows(tmp_path / "x.csv", images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"holds no images \(.bmp, "):
        open_rows(tmp_path / "empty", images)


@pytest.mark.parametrize("write", [write_npy, write_npz])
def test_memory_is_that_of_a_batch(
    mixed: Manifest, tmp_path: Path, write: Callable[[Any, Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "BATCH_ROWS", 4096)
    path = write(np.tile(np.array(ROWS), (50_000, 1)), tmp_path / "x")  # 8 MB
    tracemalloc.start()
    num = sum(len(batch.rows) for batch in open_rows(path, mixed).batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num == 200_000
    assert peak < 3e6


def test_reading_goes_on_only_where_a_batch_begins(
    mixed: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "BATCH_ROWS", 4)
    opened = open_rows(write_csv(pa.concat_tables([TABLE] * 3), tmp_path / "x"), mixed)
    for start in (0, 4, 8, 12):
        assert sum(batch.num_rows for batch in opened.batches(start)) == 12 - start
    for start in (3, 10, 16):
        with pytest.raises(FileError, match=f"no batch begins with row {start}; --restart begins afresh"):
            list(opened.batches(start))


def test_an_archive_that_promises_more_rows_than_memory_holds_is_an_error_of_its_own(
    mixed: Manifest, tmp_path: Path
) -> None:
    header = np.lib.format.header_data_from_array_1_0(np.zeros((3, 5), order="F"))
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {**header, "shape": (10**13, 5)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue() + bytes(120))
    with pytest.raises(FileError, match=r"x\.npz: cannot be read"):
        list(open_rows(tmp_path / "x.npz", mixed).batches())
