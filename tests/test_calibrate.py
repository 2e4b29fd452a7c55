"""Recalibration: the same flow, whose p-values then speak of other normal data."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from common.cli import Progress, run_command
from common.errors import UsageError
from service.app import create_app
from service.artifact import Artifact, ArtifactError, open_artifact, read_records, save_artifact
from service.calibrate import calibrate, main
from service.files import FileError
from service.settings import Settings
from tests.conftest import tiny_images, tiny_mixed, tiny_table
from tests.test_files import write_csv, write_folder, write_npy, write_npz, write_parquet

SHIFT = np.array([2.0, 0.0, 0.0])  # of a user's normal data from the training data


@pytest.fixture(scope="module")
def table(models_dir: Path) -> Path:
    return models_dir / "tiny-table.pt"


def values_of(artifact: Artifact) -> Any:
    assert artifact.manifest.calibration is not None
    return artifact.manifest.calibration.arrays[artifact.manifest.scoring.default]


async def answer_of(artifact: Path, rows: Any, **options: Any) -> dict[str, Any]:
    """What a service answers that serves this artifact alone."""
    app = create_app(Settings(models=[artifact], device="cpu", threads=1, plan="frozen", max_batch_rows=64))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post("/log-likelihood", json={"inputs": rows.tolist(), **options})
    answer: dict[str, Any] = response.raise_for_status().json()
    return answer


async def test_a_service_answers_the_calibration_rows_with_their_ranks(table: Path, tmp_path: Path) -> None:
    rows = tiny_table(800).fit.x + SHIFT
    calibrate(table, write_npy(rows, tmp_path / "normal"), tmp_path / "out.pt", 0.2)
    answer = await answer_of(tmp_path / "out.pt", rows, reproducible=True)
    scores = np.array(answer["score"])
    assert answer["p_value"] == [(1 + (scores >= score).sum()) / 201 for score in scores]
    assert answer["alpha"] == 0.2
    assert sum(answer["is_anomaly"]) == np.floor(0.2 * 201) - 1
    before = await answer_of(table, rows, reproducible=True)
    assert before["score"] == answer["score"]
    assert before["version"] == answer["version"]
    assert np.mean(before["is_anomaly"]) > 0.5  # at 0.1, which the old calibration does not keep on these rows


async def test_fresh_rows_of_the_same_distribution_are_flagged_as_often_as_alpha_says(
    table: Path, tmp_path: Path
) -> None:
    rows = np.random.default_rng(3).permutation(tiny_table(8000).fit.x + SHIFT)
    calibrate(table, write_npy(rows[:1000], tmp_path / "normal"), tmp_path / "out.pt")
    answer = await answer_of(tmp_path / "out.pt", rows[1000:])
    assert answer["alpha"] == 0.1  # the artifact's own
    assert np.mean(answer["is_anomaly"]) == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 * 2 / 1000))


def test_the_flow_and_all_else_that_the_artifact_says_stay(table: Path, tmp_path: Path) -> None:
    calibrate(table, write_npy(tiny_table().fit.x, tmp_path / "normal"), tmp_path / "out.pt", 0.3)
    old, new = open_artifact(table), open_artifact(tmp_path / "out.pt")
    assert new.manifest.version == old.manifest.version
    assert new.manifest.calibration != old.manifest.calibration
    assert new.manifest.model_copy(update={"calibration": old.manifest.calibration}) == old.manifest
    before, after = read_records(table), read_records(tmp_path / "out.pt")
    assert {name for name in before | after if before.get(name) != after.get(name)} == {
        name for name in before if name.endswith("/extra/manifest.json")
    }
    assert (np.diff(values_of(new)) >= 0).all()


def test_the_rows_that_calibrated_an_artifact_give_it_the_same_calibration(table: Path, tmp_path: Path) -> None:
    held_out = tiny_table().calibration.x
    calibrate(table, write_npy(held_out, tmp_path / "held-out"), tmp_path / "out.pt")
    np.testing.assert_allclose(
        values_of(open_artifact(tmp_path / "out.pt")), values_of(open_artifact(table)), atol=1e-3
    )


def test_every_kind_of_file_gives_the_same_calibration_in_any_order(models_dir: Path, tmp_path: Path) -> None:
    x, pixels = tiny_mixed().fit.x, tiny_images().fit.x
    names = ["color", "size", "count", "fixed", "copy"]
    columns: dict[str, Any] = dict(zip(names, x.T, strict=True))
    columns["color"] = np.array(["blue", "green", "red"])[x[:, 0].astype(int)]
    shuffled = pa.table(columns).take(np.random.default_rng(0).permutation(len(x)))
    for model, paths in (
        ("tiny-mixed", [write(pa.table(columns), tmp_path / "t") for write in (write_csv, write_parquet)]),
        ("tiny-mixed", [write_parquet(shuffled, tmp_path / "shuffled")]),
        ("tiny-mixed", [write(x, tmp_path / "x") for write in (write_npy, write_npz)]),
        ("tiny-images", [write(pixels, tmp_path / "p") for write in (write_npy, write_npz, write_folder)]),
    ):
        for path in paths:
            calibrate(models_dir / f"{model}.pt", path, tmp_path / f"{model}-{path.name}.pt")
    for model, num in (("tiny-mixed", 5), ("tiny-images", 3)):
        found = [values_of(open_artifact(path)).tolist() for path in tmp_path.glob(f"{model}-*.pt")]
        assert len(found) == num
        assert all(values == found[0] for values in found)


def test_an_uncalibrated_artifact_gets_an_alpha_of_its_own(table: Path, tmp_path: Path) -> None:
    bare = open_artifact(table).manifest.model_copy(update={"calibration": None})
    save_artifact(tmp_path / "bare.pt", read_records(table), bare)
    data = write_npy(tiny_table().fit.x, tmp_path / "normal")
    for given, expected in ((None, 0.05), (0.2, 0.2)):
        manifest = calibrate(tmp_path / "bare.pt", data, tmp_path / "out.pt", given)
        assert manifest.calibration is not None
        assert manifest.calibration.alpha == expected


@pytest.mark.parametrize("write", [write_npy, lambda rows, path: write_csv(table_of(rows), path)])
def test_the_smallest_usable_alpha_is_named_and_usable(table: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    data = write(tiny_table().fit.x[:7], tmp_path / "few")
    with pytest.raises(UsageError, match=r"alpha must be at least 0.125, 1 / \(7 \+ 1\) of .*few.*, got 0.1$"):
        calibrate(table, data, tmp_path / "out.pt")
    assert not list(tmp_path.glob("out*"))
    calibrate(table, data, tmp_path / "out.pt", 0.125)


def table_of(rows: Any) -> pa.Table:
    return pa.table(dict(zip(("a", "b", "count"), rows.T, strict=True)))


def test_a_bad_row_ends_it_and_is_named(table: Path, tmp_path: Path) -> None:
    rows = tiny_table().fit.x.copy()
    rows[41, 1] = np.nan
    for data in (write_npy(rows, tmp_path / "x"), write_csv(table_of(rows), tmp_path / "x")):
        with pytest.raises(FileError) as caught:
            calibrate(table, data, tmp_path / "out.pt")
        assert str(caught.value) == f"{data}: row 41, column 'b' is missing; every value must be present"
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_writing_leaves_what_was_there(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    data = write_npy(tiny_table().fit.x, tmp_path / "normal")

    def interrupted(*_: object) -> None:
        raise fault

    for before in (None, b"an older file"):
        if before is not None:
            (tmp_path / "out.pt").write_bytes(before)
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises((KeyboardInterrupt, ArtifactError)):
            calibrate(table, data, tmp_path / "out.pt")
        found = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}
        assert found == ({} if before is None else {"out.pt": before})


def test_neither_the_artifact_nor_the_data_is_overwritten(table: Path, tmp_path: Path) -> None:
    data = write_npy(tiny_table().fit.x, tmp_path / "normal")
    (tmp_path / "link.pt").symlink_to(table)
    digest = table.read_bytes()
    for out, message in (
        (table, "is the artifact itself"),
        (table.parent / "." / table.name, "is the artifact itself"),
        (tmp_path / "link.pt", "is the artifact itself"),
        (data, "is the data itself"),
        (tmp_path, "must be a file name in a folder that exists"),
        (tmp_path / "none" / "out.pt", "must be a file name in a folder that exists"),
    ):
        with pytest.raises(UsageError, match=message):
            calibrate(table, data, out)
    assert table.read_bytes() == digest


def test_two_lines_say_what_was_made_and_what_is_next(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_npy(tiny_table().fit.x, tmp_path / "normal")
    main([str(table), str(data), str(tmp_path / "out.pt"), "--alpha", "0.25"])
    artifact = open_artifact(tmp_path / "out.pt")
    values = values_of(artifact)
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'out.pt'}: tiny-table@{artifact.manifest.version}, 100 rows, alpha 0.25: "
        f"median negative log likelihood {np.median(values):.3f}, anomalies above {values[-25]:.3f}",
        f"next: python -m service --models {tmp_path / 'out.pt'}",
    ]


def test_wrong_use_ends_with_one_line_and_exit_code_2(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_npy(tiny_table().fit.x, tmp_path / "normal")
    out = tmp_path / "out.pt"
    for arguments, message in (
        ([], "the following arguments are required: ARTIFACT, DATA, OUT.pt (--help tells more)"),
        ([table, data, out, "--alpha", "2"], "argument --alpha: must be between 0 and 1, got 2 (--help tells more)"),
        (
            [table, data, out, "--alpha", "nan"],
            "argument --alpha: must be between 0 and 1, got nan (--help tells more)",
        ),
        ([table, tmp_path / "none.csv", out], f"{tmp_path}/none.csv: no such file or folder"),
        (
            [data, data, out],
            f"{data}: does not end in its checksum: truncated, or not an artifact of model.export",
        ),
        ([table.parent, data, out], f"{table.parent}: is a folder; expected one artifact"),
    ):
        monkeypatch.setattr(sys, "argv", ["calibrate", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run_command(main)
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    assert not out.exists()


def test_settings_of_a_server_do_not_stand_in_the_way_of_the_command(table: Path, tmp_path: Path) -> None:
    data = write_npy(tiny_table().fit.x, tmp_path / "normal")
    environment = {"GLOW_HOST": "0.0.0.0", "GLOW_DEFAULT_MODEL": "another", "GLOW_PLAN": "cuda_graph"}
    command = [sys.executable, "-m", "service.calibrate", str(table), str(data), str(tmp_path / "out.pt")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 2


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("common.cli.time.monotonic", iter(range(0, 600, 6)).__next__)
    for total in (10, None):
        with Progress("scored", total) as progress:
            progress.update(3)
            progress.update(4)
            progress.update(3)
    assert capsys.readouterr().err.splitlines() == [
        "scored 3 of 10 rows, 00:14 left",
        "scored 7 of 10 rows, 00:05 left",
        "scored 10 of 10 rows",
        "scored 3 rows",
        "scored 7 rows",
        "scored 10 rows",
    ]
