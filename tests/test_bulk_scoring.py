"""Bulk scoring: every row once, in order, with its ids, from and to every kind of file."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from common.cli import SOME_REJECTED, run_command
from common.errors import UsageError
from service.artifact import open_artifact, read_records, save_artifact
from service.errors import Unprocessable
from service.score.command import main
from service.score.run import Summary, score_file
from service.score.spool import folder_of, rejected_of
from service.score.targets import EngineTarget
from service.scores import benjamini_hochberg
from tests.bulk import ANSWERS, bad_rows_of_table, read, rows_of_table
from tests.conftest import target_of, tiny_images, tiny_mixed
from tests.test_files import TABLE, write_csv, write_folder, write_npy, write_npz, write_parquet


def test_every_kind_of_file_gives_every_kind_the_same_answers_in_order_beside_its_ids(
    mixed_target: EngineTarget, models_dir: Path, tmp_path: Path, small_batches: None
) -> None:
    x = tiny_mixed(200).fit.x
    columns: dict[str, Any] = dict(zip(("color", "size", "count", "fixed", "copy"), x.T, strict=True))
    columns["color"] = np.array(["blue", "green", "red"])[x[:, 0].astype(int)]
    names = [f"{i:03}" for i in range(50)]
    mixed_target.prepare()
    whole = mixed_target.score(x)
    flags = (whole["p_value"] <= 0.1).tolist()
    assert 0 < sum(flags) < 50
    expected = {name: values.tolist() for name, values in whole.items()} | {"is_anomaly": flags}
    as_table = pa.table({"id": names, **columns, "number": range(50)})
    sources = [write_csv(as_table, tmp_path / "t"), write_parquet(as_table, tmp_path / "t")]
    sources += [write_npy(x, tmp_path / "x"), write_npz(x, tmp_path / "x")]
    for source in sources:
        for suffix in (".parquet", ".csv", ".npy"):
            out = tmp_path / f"out{suffix}"
            summary = score_file(mixed_target, source, out)
            found = read(out)
            assert {name: found[name] for name in ANSWERS} == expected
            if source.suffix in (".npy", ".npz") or suffix == ".npy":
                ids: dict[str, Any] = {"row": list(range(50))}
            else:
                ids = {"id": names, "number": list(range(50))}
            if suffix == ".csv" or (source.suffix == ".csv" and suffix == ".parquet"):
                ids = {name: [str(value) for value in values] for name, values in ids.items()}
            assert list(found) == [*ids, *ANSWERS]
            assert {name: found[name] for name in ids} == ids
            assert (summary.rows, summary.scored, summary.rejected) == (50, 50, 0)
            assert (summary.anomalies, summary.alpha, summary.rejected_file) == (sum(flags), 0.1, None)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.csv", "out.npy", "out.parquet"]


def test_images_are_known_by_their_files_or_rows(models_dir: Path, tmp_path: Path, small_batches: None) -> None:
    x = tiny_images().fit.x[:20]
    target = target_of(models_dir / "tiny-images.pt", tmp_path / "plans")
    found = []
    for write in (write_folder, write_npy, write_npz):
        score_file(target, write(x, tmp_path / write.__name__), tmp_path / "out.parquet")
        found.append(read(tmp_path / "out.parquet"))
    assert found[0].pop("file") == [f"{i:03}.png" for i in range(20)]
    assert found[1].pop("row") == found[2].pop("row") == list(range(20))
    assert found[0] == found[1] == found[2]


def test_bad_rows_stand_in_a_file_of_their_own_and_stop_nothing(
    mixed_target: EngineTarget, tmp_path: Path, small_batches: None
) -> None:
    good = pa.concat_tables([TABLE] * 10)
    colors = good["color"].to_pylist()
    colors[5], colors[17], colors[18] = "pink", None, "grey, dark"
    bad = good.set_column(5, "color", pa.array(colors))
    out, rejected = tmp_path / "out.parquet", tmp_path / "out.parquet.rejected.csv"
    score_file(mixed_target, write_parquet(good, tmp_path / "good"), out)
    whole = read(out)
    for write in (write_csv, write_parquet):
        summary = score_file(mixed_target, write(bad, tmp_path / "bad"), out)
        assert (summary.rows, summary.scored, summary.rejected) == (40, 37, 3)
        assert summary.rejected_file == str(rejected)
        assert read(out) == {
            name: [value for i, value in enumerate(values) if i not in (5, 17, 18)] for name, values in whole.items()
        }
        with rejected.open(newline="") as file:
            heading, *lines = csv.reader(file)
        assert heading == ["row", "id", "reason"]
        assert [line[:2] for line in lines] == [["5", "r1"], ["17", "r1"], ["18", "r2"]]
        assert [line[2].partition(", neither")[0] for line in lines] == [
            "column 'color' is 'pink'",
            "column 'color' is missing; every value must be present",
            "column 'color' is 'grey, dark'",
        ]
    score_file(mixed_target, tmp_path / "good.parquet", out)  # nothing of the run before is left to mislead
    assert not rejected.exists()
    none = good.set_column(5, "color", pa.array(["pink"] * 40))
    out.unlink()
    with pytest.raises(UsageError, match=r"none of 40 rows can be scored; .*out.parquet.rejected.csv"):
        score_file(mixed_target, write_parquet(none, tmp_path / "none"), out)
    assert len(rejected.read_text().splitlines()) == 41
    assert not out.exists()


def test_rows_are_flagged_over_the_whole_file(table_target: EngineTarget, tmp_path: Path, small_batches: None) -> None:
    rows = rows_of_table(300)
    far = pa.array(rows["a"].to_numpy() + 9 * (np.arange(300) % 3 > 0))
    out = tmp_path / "out.parquet"
    for source in (write_parquet(rows, tmp_path / "x"), write_parquet(rows.set_column(1, "a", far), tmp_path / "far")):
        for fdr in (0.02, 0.1, 0.5, 0.9):
            summary = score_file(table_target, source, out, fdr=fdr)
            found = parquet.read_table(out)
            expected = benjamini_hochberg(found["p_value"].to_numpy(), fdr)
            np.testing.assert_array_equal(found["is_anomaly"].to_numpy(), expected)
            assert (summary.anomalies, summary.alpha, summary.fdr) == (expected.sum(), None, fdr)
    assert expected.any()


def test_the_alpha_of_the_environment_counts_where_none_is_given(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_parquet(rows_of_table(20), tmp_path / "x")
    monkeypatch.setenv("GLOW_ALPHA", "0.3")
    target = target_of(models_dir / "tiny-table.pt", tmp_path)
    assert score_file(target, source, tmp_path / "out.csv").alpha == 0.3
    assert score_file(target, source, tmp_path / "out.csv", alpha=0.2).alpha == 0.2


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_of_every_type_identifies_rows(
    table_target: EngineTarget, tmp_path: Path, small_batches: None, kind: pa.DataType
) -> None:
    rows = bad_rows_of_table(40)
    names = rows["name"].to_pylist()
    source = write_parquet(rows.set_column(0, "name", pa.array(names).cast(kind)), tmp_path / "x")
    kept = [name for i, name in enumerate(names) if i % 11 != 5]
    for suffix in (".csv", ".parquet"):
        out = tmp_path / f"out{suffix}"
        score_file(table_target, source, out, ids=["name"])
        assert read(out)["name"] == kept
        assert [line.split(",")[1] for line in rejected_of(out).read_text().splitlines()[1:]] == names[5::11]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"\xff"] * 20),
        pa.array([b"\xff"] * 20, pa.large_binary()),
        pa.array([b"\xff"] * 20, pa.binary(1)),
        pa.array([b"\xff"] * 20, pa.binary_view()),
    ],
    ids=lambda values: str(values.type),
)
def test_bytes_are_no_text_and_refused_before_anything_is_scored(
    table_target: EngineTarget, tmp_path: Path, values: Any
) -> None:
    source = write_parquet(rows_of_table(20).append_column("digest", values), tmp_path / "x")
    score_file(table_target, source, tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet")["digest"] == [b"\xff"] * 20
    with pytest.raises(
        UsageError, match=r"out.csv: cannot hold column 'digest', .*; choose others \(--id\) or .parquet"
    ):
        score_file(table_target, source, tmp_path / "out.csv")
    assert not folder_of(tmp_path / "out.csv").exists()


def test_what_cannot_be_written_names_the_output(
    table_target: EngineTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.score.sinks._NOT_TEXT", ())
    source = write_parquet(rows_of_table(20).append_column("digest", pa.array([b"\xff"] * 20)), tmp_path / "x")
    with pytest.raises(UsageError, match=r"out.csv: cannot be written: "):
        score_file(table_target, source, tmp_path / "out.csv")


def test_a_model_without_p_values_gives_likelihoods_alone(models_dir: Path, tmp_path: Path) -> None:
    source = models_dir / "tiny-table.pt"
    bare = open_artifact(source).manifest.model_copy(update={"calibration": None})
    save_artifact(tmp_path / "bare.pt", read_records(source), bare)
    target = target_of(tmp_path / "bare.pt", tmp_path / "plans")
    data = write_parquet(rows_of_table(20), tmp_path / "x")
    summary = score_file(target, data, tmp_path / "out.parquet")
    assert list(read(tmp_path / "out.parquet")) == ["name", "batch", "log_likelihood", "bits_per_dim"]
    assert summary.anomalies is None
    for level in ({"alpha": 0.1}, {"fdr": 0.1}):
        with pytest.raises(Unprocessable, match="is not calibrated"):
            score_file(target, data, tmp_path / "other.parquet", **level)  # type: ignore[arg-type]


def test_wrong_use_ends_with_one_line_and_exit_code_2(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = models_dir / "tiny-table.pt"
    source, out = write_parquet(rows_of_table(20), tmp_path / "x"), tmp_path / "out.csv"
    clash = write_parquet(rows_of_table(20).rename_columns(["score", "a", "b", "count", "n"]), tmp_path / "clash")
    taken = write_parquet(rows_of_table(20).rename_columns(["reason", "a", "b", "count", "n"]), tmp_path / "taken")
    rejected = write_csv(rows_of_table(20), tmp_path / "out.csv.rejected.csv")
    nested = write_parquet(rows_of_table(20).append_column("l", pa.array([[1]] * 20)), tmp_path / "nested")
    for arguments, message in (
        ([artifact, source], "the following arguments are required: OUT (--help tells more)"),
        ([artifact, source, tmp_path / "out.txt"], "out.txt: unknown kind of file; expected .parquet, .csv, .npy"),
        ([artifact, source, source], f"{source}: is the data itself, which is not overwritten; name another file"),
        ([artifact, rejected, out], f"{rejected}: is the data itself, which is not overwritten; name another file"),
        ([artifact, source, tmp_path / "no" / "out.csv"], "must be a file name in a folder that exists"),
        ([artifact, tmp_path / "no.csv", out], "no.csv: no such file or folder"),
        ([models_dir, source, out], "is a folder; expected one artifact or the address of a service"),
        ([source, source, out], "does not end in its checksum"),
        ([artifact, source, out, "--model", "x"], "--model: is for a service; an artifact holds one model"),
        ([artifact, source, out, "--concurrency", "2"], "--concurrency: is for a service; an artifact holds one model"),
        ([artifact, source, out, "--patience", "9"], "--patience: is for a service; an artifact holds one model"),
        ([artifact, taken, out], "the file has a column 'reason', as the answers or the rejected rows have; choose"),
        ([artifact, source, out, "--scores", "best"], "argument --scores: must be 'all' or some of negative_log_l"),
        ([artifact, source, out, "--scores", "complexity"], "scores: model tiny-table has no 'complexity'; it has"),
        ([artifact, source, out, "--alpha", "2"], "argument --alpha: must be between 0 and 1, got 2"),
        (
            [artifact, source, out, "--alpha", "0.001"],
            "alpha must be at least 0.009900990099009901, the smallest p-value of 100",
        ),
        ([artifact, source, out, "--alpha", "0.1", "--fdr", "0.1"], "fdr is a way of its own to flag rows"),
        ([artifact, source, out, "--id", "nme"], "has no column 'nme' to identify rows by; it has name, a, b, count"),
        ([artifact, source, tmp_path / "out.npy", "--id", "name"], "out.npy: holds numbers by the row alone"),
        ([artifact, nested, out], "out.csv: cannot hold column 'l', list<"),
        (
            [artifact, clash, out],
            "the file has a column 'score', as the answers or the rejected rows have; choose others (--id)",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["glow-score", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run_command(main)
        assert caught.value.code == 2
        stderr = capsys.readouterr().err
        assert message in stderr
        assert stderr.startswith("error: ")
        assert stderr.count("\n") == 1
    rejected.unlink()
    assert not list(tmp_path.glob("out*"))
    main([str(artifact), str(clash), str(out), "--id", "n", "--reproducible"])  # nothing was lost that could stop it
    assert [path.name for path in tmp_path.glob("out*")] == ["out.csv"]


@pytest.mark.parametrize(
    ("option", "rule", "values"),
    [
        ("alpha", "between 0 and 1", "0 2 nan x"),
        ("fdr", "between 0 and 1", "1 inf x"),
        ("concurrency", "a whole number of at least 1", "0 1.5 x"),
        ("patience", "a positive number of seconds", "0 -1 nan inf x"),
    ],
)
def test_numbers_that_options_do_not_take_are_named_with_the_rule(option: str, rule: str, values: str) -> None:
    for value in values.split():
        with pytest.raises(UsageError, match=f"argument --{option}: must be {rule}, got {value} "):
            main(["http://127.0.0.1:9", "in.csv", "out.csv", f"--{option}", value])


def test_the_summary_is_for_people_and_for_programs(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = models_dir / "tiny-table.pt"
    source, out = write_parquet(bad_rows_of_table(20), tmp_path / "x"), tmp_path / "out.csv"
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            main([str(artifact), str(source), str(out), "--reproducible", "--id", "batch", *arguments])
        assert caught.value.code == SOME_REJECTED
    sentence, line = capsys.readouterr().out.splitlines()
    summary = Summary(**json.loads(line))
    assert list(read(out)) == ["batch", *ANSWERS]
    assert summary.anomalies == sum(read(out)["is_anomaly"])
    assert sentence.startswith(
        f"{out}: tiny-table@{summary.version}, 18 rows scored, {summary.anomalies} anomalies at alpha 0.1, "
        f"2 rejected ({out}.rejected.csv); "
    )
