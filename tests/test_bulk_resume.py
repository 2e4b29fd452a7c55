"""Bulk scoring that is interrupted: no row is lost or doubled, and no two runs are mixed_target."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.cli import SOME_REJECTED
from common.errors import UsageError
from common.files import write_whole
from service.score import spool
from service.score.command import main
from service.score.run import score_file
from service.score.targets import EngineTarget
from tests.bulk import ANSWERS, bad_rows_of_table, read, rows_of_table
from tests.conftest import tiny_table
from tests.test_files import write_npy, write_parquet
from tests.test_server import ROOT


def test_a_run_goes_on_from_whatever_a_loss_of_power_leaves(
    table_target: EngineTarget, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is copied at every step of a run, and every second copy gets an end that was written in part."""
    source, out = write_parquet(bad_rows_of_table(150), tmp_path / "x"), tmp_path / "out.parquet"
    rejected, folder, copies = tmp_path / "out.parquet.rejected.csv", spool.folder_of(out), tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(spool, "CHECKPOINT_S", 0)

    def copied(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            shutil.copytree(folder, copies / f"{len(list(copies.iterdir())):03}")
            result = function(*args, **kwargs)
            shutil.copytree(folder, copies / f"{len(list(copies.iterdir())):03}")
            return result

        return wrapper

    with monkeypatch.context() as patches:
        patches.setattr(spool.Spool, "append", copied(spool.Spool.append))
        patches.setattr("service.score.spool.write_whole", copied(write_whole))
        patches.setattr(spool.Spool, "finish", copied(spool.Spool.finish))
        score_file(table_target, source, out)
    whole, refused = out.read_bytes(), rejected.read_bytes()
    assert len(refused.splitlines()) == 15
    begun_at = set()
    for number, copy in enumerate(sorted(copies.iterdir())):
        out.unlink()
        shutil.copytree(copy, folder)
        for name in ("rows.arrow", "rejected.csv"):
            with (folder / name).open("ab") as file:
                file.write(b"\0garbage" * (number % 2))
        summary = score_file(table_target, source, out)
        begun_at.add(summary.resumed_at)
        assert out.read_bytes() == whole
        assert rejected.read_bytes() == refused
        assert (summary.rows, summary.scored, summary.rejected) == (150, 136, 14)
        assert not folder.exists()
    assert min(begun_at) == 0
    assert max(begun_at) == 150
    assert len(begun_at) > 3


@pytest.mark.parametrize("function", ["finish", "write_whole", "copyfile", "discard", "unlink", "rmtree"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_is_killed_at_its_end_goes_on_to_the_same_files(
    table_target: EngineTarget, tmp_path: Path, function: str, when: str
) -> None:
    rows = bad_rows_of_table(60)
    out, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    owner: Any = {"write_whole": spool, "copyfile": shutil, "rmtree": shutil, "unlink": Path}.get(function, spool.Spool)
    kept = getattr(owner, function)

    def killed(*args: Any, **kwargs: Any) -> Any:
        if function in ("write_whole", "unlink") and (args[0].name == "state.json") == (function == "write_whole"):
            return kept(*args, **kwargs)
        if when == "after":
            kept(*args, **kwargs)
        raise KeyboardInterrupt

    none = rows.set_column(1, "a", pa.nulls(60, pa.float64()))
    for some in (rows, none):
        source = write_parquet(some, tmp_path / "x")
        expected = pytest.raises(UsageError, match="none of 60 rows") if some is none else nullcontext()
        with expected:
            score_file(table_target, source, whole)
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(owner, function, killed)
            with pytest.raises(KeyboardInterrupt):
                score_file(table_target, source, out)
        assert {path.name for path in tmp_path.glob("out.csv.*")} <= {"out.csv.partial", "out.csv.rejected.csv"}
        expected = pytest.raises(UsageError, match="none of 60 rows") if some is none else nullcontext()
        with expected:
            score_file(table_target, source, out)
        assert out.read_bytes() == whole.read_bytes()  # of the rows before, where none can be scored
        assert spool.rejected_of(out).read_bytes() == spool.rejected_of(whole).read_bytes()
        assert not spool.folder_of(out).exists()


def test_the_same_command_says_the_same_of_rows_of_which_none_can_be_scored(
    table_target: EngineTarget, tmp_path: Path
) -> None:
    none = rows_of_table(20).set_column(1, "a", pa.nulls(20, pa.float64()))
    source, out = write_parquet(none, tmp_path / "x"), tmp_path / "out.csv"
    for _ in range(2):
        with pytest.raises(UsageError, match=r"none of 20 rows can be scored; .*out.csv.rejected.csv"):
            score_file(table_target, source, out)
        assert [path.name for path in tmp_path.glob("out*")] == ["out.csv.rejected.csv"]


def test_what_a_killed_run_wrote_of_its_output_is_removed(table_target: EngineTarget, tmp_path: Path) -> None:
    source, out = write_npy(tiny_table(100).fit.x, tmp_path / "x"), tmp_path / "out.csv"
    seen: list[list[str]] = []
    with unfinished_bytes(table_target, source, out):
        folder = spool.folder_of(out)
        (folder / "whole.0123456789abcdef.partial").write_text("row,")

        def observed(self: spool.Spool, fill: Any) -> None:
            def filled(path: Path) -> None:
                fill(path)
                seen.append([found.name for found in tmp_path.glob("**/*.partial")])

            self._put(out, filled)

        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(spool.Spool, "write", observed)
            score_file(table_target, source, out)
    (names,) = seen
    assert len(names) == 2  # the folder, and what is being written in it
    assert "whole.0123456789abcdef.partial" not in names


SLOWLY = """
import sys, time
from service.files import row_file
from common.cli import run_command
from service.score import command, spool, targets
row_file.BATCH_ROWS, spool.CHECKPOINT_S = 64, 0.02
fast = targets.EngineTarget.score
def score(self, rows):
    time.sleep(0.04)
    return fast(self, rows)
targets.EngineTarget.score = score
run_command(command.main)
"""


def test_killed_and_interrupted_runs_end_in_the_same_bytes(models_dir: Path, tmp_path: Path) -> None:
    source = write_parquet(bad_rows_of_table(12_000), tmp_path / "x")
    arguments = [str(models_dir / "tiny-table.pt"), str(source)]
    with pytest.raises(SystemExit):
        main([*arguments, str(tmp_path / "whole.csv"), "--reproducible"])
    out = tmp_path / "out.csv"
    run = [sys.executable, "-c", SLOWLY, *arguments, str(out), "--reproducible", "--json"]
    environment = {"PYTHONPATH": str(ROOT), "GLOW_THREADS": "2", "OMP_NUM_THREADS": "1"}
    state = spool.folder_of(out) / "state.json"
    at = 0

    def rows_done() -> int:
        return int(json.loads(state.read_text())["rows"]) if state.exists() else 0

    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(run, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6000):
            if rows_done() > at + 300 or process.poll() is not None:
                break
            time.sleep(0.01)
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == (130 if number == signal.SIGINT else -number), stderr
        assert number == signal.SIGKILL or "interrupted; the same command goes on from here" in stderr
        assert not out.exists()
        assert rows_done() > at
        at = rows_done()
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == SOME_REJECTED, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["resumed_at"]) == (12_000, at)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "out.csv.rejected.csv").read_bytes() == (tmp_path / "whole.csv.rejected.csv").read_bytes()
    assert not state.parent.exists()


@contextmanager
def unfinished(table_target: EngineTarget, source: Path, out: Path, **options: Any) -> Iterator[None]:
    """A run that ended after some batches."""
    with pytest.MonkeyPatch.context() as patches:
        calls = iter([None] * 2)
        score = EngineTarget.score

        def failing(self: EngineTarget, rows: Any) -> Any:
            try:
                next(calls)
            except StopIteration:
                raise KeyboardInterrupt from None
            return score(self, rows)

        patches.setattr(EngineTarget, "score", failing)
        patches.setattr(table_target, "concurrency", 1)
        with pytest.raises(KeyboardInterrupt):
            score_file(table_target, source, out, **options)
    assert not out.exists()
    yield


def test_what_is_unfinished_is_not_mixed_with_another_run(
    table_target: EngineTarget, mixed_target: EngineTarget, tmp_path: Path, small_batches: None
) -> None:
    rows = rows_of_table(100)
    source, out = write_parquet(rows, tmp_path / "x"), tmp_path / "out.csv"
    other = write_parquet(rows.slice(1), tmp_path / "other")
    both = rows.append_column("size", rows["a"])
    for name in ("color", "fixed", "copy"):
        both = both.append_column(name, pa.array([7 if name == "fixed" else 1] * 100))
    with unfinished(table_target, source, out, alpha=0.1):
        for changes, message in (
            ({"source": other}, rf"input was {source}, .*, now is {other}, "),
            ({"alpha": 0.2}, "alpha was 0.1, now is 0.2"),
            ({"alpha": None, "fdr": 0.1}, "alpha was 0.1, now is None; fdr was None, now is 0.1"),
            ({"ids": ["batch"]}, "ids was name, batch, now is batch"),
            ({"options": {"scores": "all"}}, "scores was none, now is all"),
        ):
            arguments: dict[str, Any] = {"source": source, "alpha": 0.1} | changes
            with pytest.raises(UsageError, match=f"{out}: an unfinished run differs: {message}.*; --restart discards"):
                score_file(table_target, out=out, **arguments)
        write_parquet(both, tmp_path / "x")
        with pytest.raises(UsageError, match=r"input was .* bytes of .*, now is .* bytes of .*"):
            score_file(table_target, source, out, alpha=0.1)
        with pytest.raises(UsageError, match=r"model was tiny-table@\w+, now is tiny-mixed@"):
            score_file(mixed_target, source, out, alpha=0.1)
        assert not out.exists()
        summary = score_file(table_target, source, out, alpha=0.2, restart=True)
        assert (summary.resumed_at, summary.scored) == (0, 100)
    found = read(out)
    assert list(found) == ["name", "batch", "size", "color", "fixed", "copy", *ANSWERS]
    assert found["name"] == rows["name"].to_pylist()


def test_an_input_that_changes_under_the_run_is_noticed(
    table_target: EngineTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_npy(tiny_table(100).fit.x, tmp_path / "x"), tmp_path / "out.csv"
    prepare = table_target.prepare

    def changing() -> None:
        prepare()
        os.utime(source, (1, 1))

    monkeypatch.setattr(table_target, "prepare", changing)
    with pytest.raises(UsageError, match=r"x.npy: has changed while it was read; --restart begins afresh"):
        score_file(table_target, source, out)
    assert not out.exists()


def test_a_folder_that_another_user_has_prepared_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, precious = tmp_path / "out.csv", tmp_path / "precious"
    precious.mkdir()
    spool.folder_of(out).symlink_to(precious)
    with pytest.raises(UsageError, match=r"out.csv.partial: is no folder of this user"):
        spool.Spool(out, {}, [])
    spool.folder_of(out).unlink()
    (precious / "keys").write_text("kept")
    spool.folder_of(out).mkdir()
    (spool.folder_of(out) / "lock").symlink_to(precious / "keys")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match=r"out.csv.partial: is no folder of this user"):
        spool.Spool(out, {}, [])
    assert (precious / "keys").read_text() == "kept"


def test_two_runs_do_not_write_one_file(table_target: EngineTarget, tmp_path: Path) -> None:
    source, out = write_npy(tiny_table(100).fit.x, tmp_path / "x"), tmp_path / "out.csv"
    with spool.Spool(out, {}, []), pytest.raises(UsageError, match=r"out.csv: is being written by another run"):
        score_file(table_target, source, out)
    for name, text in (("state.json", "{"), ("rows.arrow", "")):
        with unfinished_bytes(table_target, source, out):
            (spool.folder_of(out) / name).write_text(text)
            with pytest.raises(UsageError, match=rf"{name}: is damaged; --restart begins afresh"):
                score_file(table_target, source, out)
    assert score_file(table_target, source, out, restart=True).scored == 25


@contextmanager
def unfinished_bytes(table_target: EngineTarget, source: Path, out: Path) -> Iterator[None]:
    """A run whose output could not be written."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(spool.Spool, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            score_file(table_target, source, out, restart=True)
    yield
