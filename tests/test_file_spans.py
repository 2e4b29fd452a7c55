"""Files are read in spans, each on its own and by whoever has the file; folders of Parquet files are one table."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.errors import UsageError
from service.artifact import Manifest, open_artifact
from service.files import FileError, describe, open_rows, row_file
from service.score.run import score_file
from service.score.targets import EngineTarget
from tests.bulk import bad_rows_of_table, read, rows_of_table
from tests.test_files import write_csv, write_folder, write_npy, write_npz, write_parquet


@pytest.fixture(scope="module")
def table(models_dir: Path) -> Manifest:
    return open_artifact(models_dir / "tiny-table.pt").manifest


def write_parts(rows: pa.Table, folder: Path, *ends: int) -> Path:
    """A folder as Spark writes it."""
    folder.mkdir()
    for i, (start, end) in enumerate(zip((0, *ends), (*ends, len(rows)), strict=True)):
        (folder / f"day={i // 2}").mkdir(exist_ok=True)
        write_parquet(rows.slice(start, end - start), folder / f"day={i // 2}" / f"part-{i}")
    for name in ("_SUCCESS", "_metadata.parquet", ".part-0.parquet.crc", ".part-9.parquet"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize("group_rows", [1, 5, 16, 31, 32, 33, 100, 1000])
def test_spans_are_read_alone_as_in_the_whole_file(
    table: Manifest, tmp_path: Path, group_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has 4 rows, a span up to 32."""
    monkeypatch.setattr(row_file, "BATCH_ROWS", 4)
    rows = bad_rows_of_table(150)
    path = tmp_path / "x.parquet"
    pa.parquet.write_table(rows, path, row_group_size=group_rows)
    x = np.stack([rows[name].to_numpy() for name in ("a", "b", "count")], 1)
    for source in (path, write_npy(x, tmp_path / "x"), write_parts(rows, tmp_path / "parts", 40, 40, 77)):
        opened = pickle.loads(pickle.dumps(open_rows(source, table, None)))  # noqa: S301 (what was pickled here)
        monkeypatch.setattr(row_file, "BATCH_ROWS", 3)  # what reads it elsewhere may not know of
        whole = list(opened.batches())
        monkeypatch.setattr(row_file, "BATCH_ROWS", 4)
        assert [batch.start for batch in whole] == np.cumsum([0, *(batch.num_rows for batch in whole)])[:-1].tolist()
        assert sum(batch.num_rows for batch in whole) == opened.num_rows == 150
        assert max(span.stop - span.start for span in opened.spans) <= 32
        assert [span.start for span in opened.spans[1:]] == [span.stop for span in opened.spans[:-1]]
        alone = [batch for span in reversed(opened.spans) for batch in reversed(list(opened.only(span).batches()))]
        for batch, part in zip(reversed(whole), alone, strict=True):
            assert (batch.start, batch.num_rows, batch.refused) == (part.start, part.num_rows, part.refused)
            np.testing.assert_array_equal(batch.rows, part.rows)
            assert batch.ids == part.ids
        for i, batch in enumerate(whole):
            assert [rest.start for rest in opened.batches(batch.start)] == [rest.start for rest in whole[i:]]


def test_what_only_reading_leads_to_is_one_span(table: Manifest, tmp_path: Path) -> None:
    for source in (write_csv(rows_of_table(20), tmp_path / "x"), write_npz(np.zeros((20, 3)), tmp_path / "x")):
        assert [(span.start, span.stop) for span in open_rows(source, table).spans] == [(0, None)]


def test_files_of_a_folder_are_one_table_in_the_order_of_their_paths(
    table_target: EngineTarget, tmp_path: Path, small_batches: None
) -> None:
    rows = bad_rows_of_table(60)
    score_file(table_target, write_parquet(rows, tmp_path / "x"), tmp_path / "whole.csv")
    folder = write_parts(rows, tmp_path / "parts", 0, 17, 17, 40)
    before = describe(folder)
    assert score_file(table_target, folder, tmp_path / "out.csv").rows == 60
    assert read(tmp_path / "out.csv") == read(tmp_path / "whole.csv")
    assert (tmp_path / "out.csv.rejected.csv").read_bytes() == (tmp_path / "whole.csv.rejected.csv").read_bytes()
    write_parquet(rows.slice(0, 1), folder / "part-9")
    assert describe(folder) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop_columns(["batch"]), "column 'batch' is missing, but is of type int64 in "),
        (lambda rows: rows.append_column("z", rows["a"]), "column 'z' is of type double, but is missing in "),
        (
            lambda rows: rows.set_column(1, "a", rows["count"].cast("int8")),
            "column 'a' is of type int8, but is of type",
        ),
    ],
)
def test_files_of_a_folder_have_one_schema(table: Manifest, tmp_path: Path, change: Any, message: str) -> None:
    rows = rows_of_table(20)
    folder = write_parts(rows, tmp_path / "parts", 10)
    write_parquet(rows.select(rows.column_names[::-1]), folder / "part-2")  # in whatever order
    assert open_rows(folder, table).num_rows == 40
    other = write_parquet(change(rows), folder / "part-3")
    with pytest.raises(FileError, match=rf"{other}: {message}.*part-0.parquet; expected one schema"):
        open_rows(folder, table)


def test_a_folder_holds_one_kind_of_files(table: Manifest, models_dir: Path, tmp_path: Path) -> None:
    images = open_artifact(models_dir / "tiny-images.pt").manifest
    folder = write_folder(np.zeros((2, 1, 8, 8)), tmp_path / "photos")
    with pytest.raises(FileError, match="is a folder of images, but tiny-table takes no pictures; expected a table"):
        open_rows(folder, table)
    write_parquet(rows_of_table(20), folder / "x")
    for manifest in (table, images):
        with pytest.raises(FileError, match=r"holds images \(000.png\) and .parquet files \(x.parquet\); expected a"):
            open_rows(folder, manifest)
    with pytest.raises(FileError, match="is a table, but tiny-images takes images"):
        open_rows(write_parts(rows_of_table(20), tmp_path / "parts", 10), images)


def test_a_broken_file_of_a_folder_is_named(table_target: EngineTarget, tmp_path: Path) -> None:
    folder = write_parts(rows_of_table(20), tmp_path / "parts", 10)
    broken = folder / "part-2.parquet"
    broken.write_text("PAR1")
    with pytest.raises(UsageError, match=f"{broken}: cannot be read"):
        score_file(table_target, folder, tmp_path / "out.csv")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(table: Manifest, tmp_path: Path) -> None:
    source = write_parquet(rows_of_table(20), tmp_path / "x")
    opened = open_rows(source, table)
    write_parquet(rows_of_table(20).slice(0, 18), tmp_path / "x")
    with pytest.raises(FileError, match=r"x.parquet: has changed while it was read|x.parquet: cannot be read"):
        list(opened.batches())
