"""Bulk scoring: every row once, in order, with its ids, whatever interrupts the run, and from whatever answers."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from service import files
from service.artifact import open_artifact, read_records, save_artifact, write_whole
from service.cli import UsageError, run_command
from service.errors import Unprocessable
from service.score import command, spool, targets
from service.score.command import Summary, main, score_file
from service.score.targets import EngineTarget, ServiceTarget, TargetError
from service.scores import benjamini_hochberg
from tests.conftest import tiny_images, tiny_mixed, tiny_table
from tests.test_files import TABLE, write_csv, write_folder, write_npy, write_npz, write_parquet
from tests.test_server import ROOT, server

ANSWERS = ["log_likelihood", "bits_per_dim", "score", "p_value", "is_anomaly"]


def target_of(path: Path, cache: Path) -> EngineTarget:
    """Reproducible, so that a row has the same bits in whatever batch it comes."""
    return EngineTarget(path, cache, reproducible=True)


@pytest.fixture(scope="module")
def mixed(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineTarget:
    return target_of(models_dir / "tiny-mixed.pt", tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="module")
def table(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineTarget:
    return target_of(models_dir / "tiny-table.pt", tmp_path_factory.mktemp("plans"))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BATCH_ROWS", 16)
    monkeypatch.setattr(command, "PART_ROWS", 50)


def rows_of_table(num: int) -> pa.Table:
    x = tiny_table(4 * num).fit.x
    columns = dict(zip(("a", "b", "count"), x.T, strict=True))
    return pa.table({"name": [f"row {i}" for i in range(num)], **columns, "batch": np.arange(num) // 7})


def read(path: Path) -> dict[str, list[Any]]:
    """Columns of a file of scores; all of CSV is text but the answers."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pydict()
    if path.suffix == ".npy":
        array = np.load(path)
        return {name: array[name].tolist() for name in array.dtype.names}
    with path.open(newline="") as file:
        heading, *lines = csv.reader(file)
    columns: dict[str, list[Any]] = dict(zip(heading, map(list, zip(*lines, strict=True)), strict=True))
    for name in ANSWERS:
        columns[name] = [text == "true" if name == "is_anomaly" else float(text) for text in columns[name]]
    return columns


def test_every_kind_of_file_gives_every_kind_the_same_answers_in_order_beside_its_ids(
    mixed: EngineTarget, models_dir: Path, tmp_path: Path, small_batches: None
) -> None:
    x = tiny_mixed(200).fit.x
    columns: dict[str, Any] = dict(zip(("color", "size", "count", "fixed", "copy"), x.T, strict=True))
    columns["color"] = np.array(["blue", "green", "red"])[x[:, 0].astype(int)]
    names = [f"{i:03}" for i in range(50)]
    mixed.prepare()
    whole = mixed.score(x)
    flags = (whole["p_value"] <= 0.1).tolist()
    assert 0 < sum(flags) < 50
    expected = {name: values.tolist() for name, values in whole.items()} | {"is_anomaly": flags}
    as_table = pa.table({"id": names, **columns, "number": range(50)})
    sources = [write_csv(as_table, tmp_path / "t"), write_parquet(as_table, tmp_path / "t")]
    sources += [write_npy(x, tmp_path / "x"), write_npz(x, tmp_path / "x")]
    for source in sources:
        for suffix in (".parquet", ".csv", ".npy"):
            out = tmp_path / f"out{suffix}"
            summary = score_file(mixed, source, out)
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
    mixed: EngineTarget, tmp_path: Path, small_batches: None
) -> None:
    good = pa.concat_tables([TABLE] * 10)
    colors = good["color"].to_pylist()
    colors[5], colors[17], colors[18] = "pink", None, "grey, dark"
    bad = good.set_column(5, "color", pa.array(colors))
    out, rejected = tmp_path / "out.parquet", tmp_path / "out.parquet.rejected.csv"
    score_file(mixed, write_parquet(good, tmp_path / "good"), out)
    whole = read(out)
    for write in (write_csv, write_parquet):
        summary = score_file(mixed, write(bad, tmp_path / "bad"), out)
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
    score_file(mixed, tmp_path / "good.parquet", out)  # nothing of the run before is left to mislead
    assert not rejected.exists()
    none = good.set_column(5, "color", pa.array(["pink"] * 40))
    out.unlink()
    with pytest.raises(UsageError, match=r"none of 40 rows can be scored; .*out.parquet.rejected.csv"):
        score_file(mixed, write_parquet(none, tmp_path / "none"), out)
    assert len(rejected.read_text().splitlines()) == 41
    assert not out.exists()


def test_rows_are_flagged_over_the_whole_file(table: EngineTarget, tmp_path: Path, small_batches: None) -> None:
    rows = rows_of_table(300)
    far = pa.array(rows["a"].to_numpy() + 9 * (np.arange(300) % 3 > 0))
    out = tmp_path / "out.parquet"
    for source in (write_parquet(rows, tmp_path / "x"), write_parquet(rows.set_column(1, "a", far), tmp_path / "far")):
        for fdr in (0.02, 0.1, 0.5, 0.9):
            summary = score_file(table, source, out, fdr=fdr)
            found = parquet.read_table(out)
            expected = benjamini_hochberg(found["p_value"].to_numpy(), fdr)
            np.testing.assert_array_equal(found["is_anomaly"].to_numpy(), expected)
            assert (summary.anomalies, summary.alpha, summary.fdr) == (expected.sum(), None, fdr)
    assert expected.any()


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


# Interruptions


def bad_rows_of_table(num: int) -> pa.Table:
    rows = rows_of_table(num)
    return rows.set_column(1, "a", pa.array(rows["a"].to_numpy(), mask=np.arange(num) % 11 == 5))


def test_a_run_goes_on_from_whatever_a_loss_of_power_leaves(
    table: EngineTarget, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
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
        patches.setattr("service.score.command.write_whole", copied(write_whole))
        score_file(table, source, out)
    whole, refused = out.read_bytes(), rejected.read_bytes()
    assert len(refused.splitlines()) == 15
    begun_at = set()
    for number, copy in enumerate(sorted(copies.iterdir())):
        out.unlink()
        shutil.copytree(copy, folder)
        for name in ("rows.arrow", "rejected.csv"):
            with (folder / name).open("ab") as file:
                file.write(b"\0garbage" * (number % 2))
        summary = score_file(table, source, out)
        begun_at.add(summary.resumed_at)
        assert out.read_bytes() == whole
        assert rejected.read_bytes() == refused
        assert (summary.rows, summary.scored, summary.rejected) == (150, 136, 14)
        assert not folder.exists()
    assert min(begun_at) == 0
    assert max(begun_at) == 150
    assert len(begun_at) > 3


SLOWLY = """
import sys, time
from service import files
from service.cli import run_command
from service.score import command, spool, targets
files._BATCH_ROWS, spool.CHECKPOINT_S = 64, 0.02
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
    assert done.returncode == command.SOME_REJECTED, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["resumed_at"]) == (12_000, at)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "out.csv.rejected.csv").read_bytes() == (tmp_path / "whole.csv.rejected.csv").read_bytes()
    assert not state.parent.exists()


@contextmanager
def unfinished(table: EngineTarget, source: Path, out: Path, **options: Any) -> Iterator[None]:
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
        patches.setattr(table, "concurrency", 1)
        with pytest.raises(KeyboardInterrupt):
            score_file(table, source, out, **options)
    assert not out.exists()
    yield


def test_what_is_unfinished_is_not_mixed_with_another_run(
    table: EngineTarget, mixed: EngineTarget, tmp_path: Path, small_batches: None
) -> None:
    rows = rows_of_table(100)
    source, out = write_parquet(rows, tmp_path / "x"), tmp_path / "out.csv"
    other = write_parquet(rows.slice(1), tmp_path / "other")
    both = rows.append_column("size", rows["a"])
    for name in ("color", "fixed", "copy"):
        both = both.append_column(name, pa.array([7 if name == "fixed" else 1] * 100))
    with unfinished(table, source, out, alpha=0.1):
        for changes, message in (
            ({"source": other}, rf"input was {source}, .*, now is {other}, "),
            ({"alpha": 0.2}, "alpha was 0.1, now is 0.2"),
            ({"alpha": None, "fdr": 0.1}, "alpha was 0.1, now is None; fdr was None, now is 0.1"),
            ({"ids": ["batch"]}, "ids was name, batch, now is batch"),
            ({"options": {"scores": "all"}}, "scores was none, now is all"),
        ):
            arguments: dict[str, Any] = {"source": source, "alpha": 0.1} | changes
            with pytest.raises(UsageError, match=f"{out}: an unfinished run differs: {message}.*; --restart discards"):
                score_file(table, out=out, **arguments)
        write_parquet(both, tmp_path / "x")
        with pytest.raises(UsageError, match=r"input was .* bytes of .*, now is .* bytes of .*"):
            score_file(table, source, out, alpha=0.1)
        with pytest.raises(UsageError, match=r"model was tiny-table@\w+, now is tiny-mixed@"):
            score_file(mixed, source, out, alpha=0.1)
        assert not out.exists()
        summary = score_file(table, source, out, alpha=0.2, restart=True)
        assert (summary.resumed_at, summary.scored) == (0, 100)
    found = read(out)
    assert list(found) == ["name", "batch", "size", "color", "fixed", "copy", *ANSWERS]
    assert found["name"] == rows["name"].to_pylist()


def test_an_input_that_changes_under_the_run_is_noticed(
    table: EngineTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_npy(tiny_table(100).fit.x, tmp_path / "x"), tmp_path / "out.csv"
    prepare = table.prepare

    def changing() -> None:
        prepare()
        os.utime(source, (1, 1))

    monkeypatch.setattr(table, "prepare", changing)
    with pytest.raises(UsageError, match=r"x.npy: has changed while it was read; --restart begins afresh"):
        score_file(table, source, out)
    assert not out.exists()


def test_two_runs_do_not_write_one_file(table: EngineTarget, tmp_path: Path) -> None:
    source, out = write_npy(tiny_table(100).fit.x, tmp_path / "x"), tmp_path / "out.csv"
    with spool.Spool(out, {}, []), pytest.raises(UsageError, match=r"out.csv: is being written by another run"):
        score_file(table, source, out)
    for name, text in (("state.json", "{"), ("rows.arrow", "")):
        with unfinished_bytes(table, source, out):
            (spool.folder_of(out) / name).write_text(text)
            with pytest.raises(UsageError, match=rf"{name}: is damaged; --restart begins afresh"):
                score_file(table, source, out)
    assert score_file(table, source, out, restart=True).scored == 25


@contextmanager
def unfinished_bytes(table: EngineTarget, source: Path, out: Path) -> Iterator[None]:
    """A run whose output could not be written."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(command, "write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            score_file(table, source, out, restart=True)
    yield


# A service as the target


@pytest.fixture(scope="module")
def url(models_dir: Path) -> Iterator[str]:
    with server("--models", models_dir) as (url, _):
        yield url


@contextmanager
def unreliable(url: str, faults: list[Any]) -> Iterator[tuple[str, list[str]]]:
    """What stands before a service and answers in its stead while there are faults: a status, or how to break off."""
    asked: list[str] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.forward(httpx.get(url + self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                asked.append(self.path)
                fault = faults.pop(0) if faults else None
            if fault == "closed":
                self.close_connection = True
                return
            headers = {name: self.headers[name] for name in ("content-type", "accept")}
            if isinstance(fault, int):
                self.send_response(fault)
                self.send_header("retry-after", "0")
                self.send_header("content-length", "0")
                self.end_headers()
            else:
                response = httpx.post(url + self.path, content=body, headers=headers)
                self.forward(response, short=fault == "short")

        def forward(self, response: httpx.Response, short: bool = False) -> None:
            self.send_response(response.status_code)
            self.send_header("content-length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content[: -20 if short else None])
            self.close_connection = short

        def log_message(self, *_: object) -> None:
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=front.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{front.server_address[1]}", asked
    finally:
        front.shutdown()
        thread.join()
        front.server_close()


def alike(found: Path, expected: Path) -> None:
    """The same rows with answers within the tolerance between plans."""
    mine, theirs = read(found), read(expected)
    assert list(mine) == list(theirs)
    for name, values in theirs.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(mine[name], values, atol=1e-2 if name != "log_likelihood" else 1e-3)
        elif name != "is_anomaly":
            assert mine[name] == values


def test_a_service_gives_the_answers_of_its_artifact(
    url: str, mixed: EngineTarget, tmp_path: Path, small_batches: None, models_dir: Path
) -> None:
    rows = pa.concat_tables([TABLE] * 25)
    colors = rows["color"].to_pylist()
    colors[40] = "pink"
    source = write_parquet(rows.set_column(5, "color", pa.array(colors)), tmp_path / "x")
    score_file(mixed, source, tmp_path / "here.parquet", fdr=0.5)
    with closing(ServiceTarget(url, "tiny-mixed", reproducible=True, concurrency=3)) as target:
        summary = score_file(target, source, tmp_path / "there.parquet", fdr=0.5)
        assert (summary.scored, summary.rejected) == (99, 1)
        assert target.score(np.zeros((1, 5))).keys() == mixed.score(np.zeros((1, 5))).keys()
    alike(tmp_path / "there.parquet", tmp_path / "here.parquet")
    x = write_npy(tiny_images().fit.x[:20], tmp_path / "x")
    score_file(target_of(models_dir / "tiny-images.pt", tmp_path), x, tmp_path / "here.npy")
    with closing(ServiceTarget(url, "tiny-images")) as target:
        score_file(target, x, tmp_path / "there.npy")
    alike(tmp_path / "there.npy", tmp_path / "here.npy")
    for scores, number in (("all", 5 + 4), ("typicality,complexity", 2 + 1)):  # with p-values of those with a direction
        here = EngineTarget(models_dir / "tiny-images.pt", tmp_path, scores, reproducible=True)
        score_file(here, x, tmp_path / "here.csv")
        with closing(ServiceTarget(url, "tiny-images", scores, reproducible=True)) as target:
            score_file(target, x, tmp_path / "there.csv")
        alike(tmp_path / "there.csv", tmp_path / "here.csv")
        assert len(read(tmp_path / "here.csv")) == 1 + len(ANSWERS) + number


def test_what_a_service_refuses_for_now_or_loses_is_asked_again(
    url: str, table: EngineTarget, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "FIRST_PAUSE_S", 0.01)
    source = write_parquet(rows_of_table(160), tmp_path / "x")
    score_file(table, source, tmp_path / "here.parquet")
    faults = [429, 503, "closed", 504, "short", 502, 429, "closed", None, 503, None, "short"]
    with (
        unreliable(url, list(faults)) as (front, asked),
        closing(ServiceTarget(front, "tiny-table", reproducible=True)) as target,
    ):
        assert score_file(target, source, tmp_path / "there.parquet").scored == 160
    assert len(asked) == 10 + len(faults) - faults.count(None)
    alike(tmp_path / "there.parquet", tmp_path / "here.parquet")


def test_a_service_is_left_alone_for_as_long_as_it_wants(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def handler(request: httpx.Request) -> httpx.Response:
        later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
        answers = [{"retry-after": "7"}, {"retry-after": later}, {"retry-after": "soon"}, {}]
        return httpx.Response(429, headers=answers[len(waits)], json={"error": "busy"})

    with unreliable(url, []) as (front, _):
        target = ServiceTarget(front, "tiny-table", patience_s=200)
    target.close()
    target._client = httpx.Client(transport=httpx.MockTransport(handler))

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 4

    monkeypatch.setattr(target._closed, "wait", wait)
    with pytest.raises(TargetError, match="given up: 429 busy"):
        target.score(np.zeros((1, 3)))
    assert waits[0] == 7
    assert 87 < waits[1] <= 90
    assert 0.5 <= waits[2] <= 1  # of its own choice
    assert 1 <= waits[3] <= 2


def test_a_service_that_takes_fewer_rows_gets_fewer(models_dir: Path, tmp_path: Path, table: EngineTarget) -> None:
    source = write_parquet(rows_of_table(1000), tmp_path / "x")
    score_file(table, source, tmp_path / "here.parquet")
    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("GLOW_MAX_REQUEST_ROWS", "100")
        with (
            server("--models", models_dir / "tiny-table.pt") as (url, _),
            unreliable(url, []) as (front, asked),
            closing(ServiceTarget(front, reproducible=True)) as target,
        ):
            score_file(target, source, tmp_path / "there.parquet")
    assert len(asked) == 4 + 16  # 1000, 500, 250 and 125 rows are too many; 63 are not
    alike(tmp_path / "there.parquet", tmp_path / "here.parquet")


def test_what_is_no_such_service_or_changes_is_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_dir: Path
) -> None:
    monkeypatch.setattr(targets, "HELLO_S", 0.0)
    for address, model, message in (
        ("http://127.0.0.1:9", None, "http://127.0.0.1:9: no answer in 0 s: "),
        (url, "other", "/models/other: 404 no model 'other'; served are tiny-images"),
        (f"{url}/livez", None, "/livez/models: 404"),
    ):
        with pytest.raises(TargetError, match=message):
            ServiceTarget(address, model)
    with (
        closing(ServiceTarget(url, "tiny-table", scores="no such score")) as target,
        pytest.raises(TargetError, match=r"422 .*scores"),
    ):
        target.score(np.zeros((1, 3)))
    with closing(ServiceTarget(url, "tiny-table")) as target:
        with pytest.raises(TargetError, match="422 inputs must be of shape"):
            target.score(np.zeros((1, 2)))
        target.signature = target.signature.model_copy(update={"version": "0" * 12})
        with pytest.raises(TargetError, match=r"tiny-table has become version \w+; scoring began with 000000000000"):
            target.score(np.zeros((1, 3)))


# The command


def test_wrong_use_ends_with_one_line_and_exit_code_2(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = models_dir / "tiny-table.pt"
    source, out = write_parquet(rows_of_table(20), tmp_path / "x"), tmp_path / "out.csv"
    clash = write_parquet(rows_of_table(20).rename_columns(["score", "a", "b", "count", "n"]), tmp_path / "clash")
    nested = write_parquet(rows_of_table(20).append_column("l", pa.array([[1]] * 20)), tmp_path / "nested")
    for arguments, message in (
        ([artifact, source], "the following arguments are required: OUT (--help tells more)"),
        ([artifact, source, tmp_path / "out.txt"], "out.txt: unknown kind of file; expected .parquet, .csv, .npy"),
        ([artifact, source, source], f"{source}: is the data itself, which is not overwritten; name another file"),
        ([artifact, source, tmp_path / "no" / "out.csv"], "must be a file name in a folder that exists"),
        ([artifact, tmp_path / "no.csv", out], "no.csv: no such file or folder"),
        ([models_dir, source, out], "is a folder; expected one artifact or the address of a service"),
        ([source, source, out], "does not end in its checksum"),
        ([artifact, source, out, "--model", "x"], "--model: is for a service; an artifact holds one model"),
        ([artifact, source, out, "--scores", "best"], "argument --scores: must be 'all' or some of negative_log_l"),
        ([artifact, source, out, "--scores", "complexity"], "scores: model tiny-table has no 'complexity'; it has"),
        ([artifact, source, out, "--alpha", "2"], "argument --alpha: must be between 0 and 1, got 2"),
        ([artifact, source, out, "--alpha", "0.001"], "alpha must be at least 0.00990099, the smallest p-value of 100"),
        ([artifact, source, out, "--alpha", "0.1", "--fdr", "0.1"], "fdr is a way of its own to flag rows"),
        ([artifact, source, out, "--id", "nme"], "has no column 'nme' to identify rows by; it has name, a, b, count"),
        ([artifact, source, tmp_path / "out.npy", "--id", "name"], "out.npy: holds numbers by the row alone"),
        ([artifact, nested, out], "out.csv: cannot hold column 'l', list<"),
        (
            [artifact, clash, out],
            "the file has a column 'score', as the answers have; choose the columns to keep (--id)",
        ),
        (["http://127.0.0.1:9", source, out, "--concurrency", "0"], "--concurrency: must be at least 1, got 0"),
    ):
        monkeypatch.setattr(sys, "argv", ["glow-score", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run_command(main)
        assert caught.value.code == 2
        stderr = capsys.readouterr().err
        assert message in stderr
        assert stderr.startswith("error: ")
        assert stderr.count("\n") == 1
    assert [path.name for path in tmp_path.glob("out*")] == ["out.csv.partial"]
    main([str(artifact), str(clash), str(out), "--id", "n", "--reproducible"])  # nothing was lost that could stop it
    assert [path.name for path in tmp_path.glob("out*")] == ["out.csv"]


def test_the_summary_is_for_people_and_for_programs(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = models_dir / "tiny-table.pt"
    source, out = write_parquet(bad_rows_of_table(20), tmp_path / "x"), tmp_path / "out.csv"
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            main([str(artifact), str(source), str(out), "--reproducible", "--id", "batch", *arguments])
        assert caught.value.code == command.SOME_REJECTED
    sentence, line = capsys.readouterr().out.splitlines()
    summary = Summary(**json.loads(line))
    assert list(read(out)) == ["batch", *ANSWERS]
    assert summary.anomalies == sum(read(out)["is_anomaly"])
    assert sentence.startswith(
        f"{out}: tiny-table@{summary.version}, 18 rows scored, {summary.anomalies} anomalies at alpha 0.1, "
        f"2 rejected ({out}.rejected.csv); "
    )


def test_the_command_runs_as_a_module_and_shows_an_example() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "service.score", "--help"], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert result.returncode == 0
    assert "example:\n  glow-score" in result.stdout
    assert "exit codes:" in result.stdout
