"""Bulk scoring by a service: the artifact's answers, however unreliable the way to it is."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from service import headers
from service.client import GlowClient, steps
from service.files import open_rows
from service.score import targets
from service.score.run import score_file
from service.score.targets import EngineTarget, ServiceTarget, TargetError
from tests.bulk import ANSWERS, read, rows_of_table
from tests.conftest import target_of, tiny_images
from tests.test_files import TABLE, write_npy, write_parquet
from tests.test_server import server


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
            sent = {name: self.headers[name] for name in ("content-type", headers.JSON_SIZE)}
            if isinstance(fault, int):
                self.send_response(fault)
                self.send_header("retry-after", "0")
                self.send_header("content-length", "0")
                self.end_headers()
            else:
                response = httpx.post(url + self.path, content=body, headers=sent)
                self.forward(response, short=fault == "short")

        def forward(self, response: httpx.Response, short: bool = False) -> None:
            self.send_response(response.status_code)
            for name in ("content-length", headers.JSON_SIZE):
                if name in response.headers:
                    self.send_header(name, response.headers[name])
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
    url: str, mixed_target: EngineTarget, tmp_path: Path, small_batches: None, models_dir: Path
) -> None:
    rows = pa.concat_tables([TABLE] * 25)
    colors = rows["color"].to_pylist()
    colors[40] = "pink"
    source = write_parquet(rows.set_column(5, "color", pa.array(colors)), tmp_path / "x")
    score_file(mixed_target, source, tmp_path / "here.parquet", fdr=0.5)
    with closing(ServiceTarget(url, "tiny-mixed", reproducible=True, concurrency=3)) as target:
        summary = score_file(target, source, tmp_path / "there.parquet", fdr=0.5)
        assert (summary.scored, summary.rejected) == (99, 1)
        assert target.score(np.zeros((1, 5))).keys() == mixed_target.score(np.zeros((1, 5))).keys()
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
    url: str, table_target: EngineTarget, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "FIRST_PAUSE_S", 0.01)
    source = write_parquet(rows_of_table(160), tmp_path / "x")
    score_file(table_target, source, tmp_path / "here.parquet")
    faults = [429, 503, "closed", 504, "short", 502, 429, "closed", None, 503, None, "short"]
    with (
        unreliable(url, list(faults)) as (front, asked),
        closing(ServiceTarget(front, "tiny-table", reproducible=True)) as target,
    ):
        assert score_file(target, source, tmp_path / "there.parquet").scored == 160
    num_batches = len(list(open_rows(source, table_target.signature).batches()))
    assert len(asked) == num_batches + len(faults) - faults.count(None)
    alike(tmp_path / "there.parquet", tmp_path / "here.parquet")


def test_calibrations_of_as_many_rows_are_told_apart(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = GlowClient.model

    def calibration_of(shift: float) -> str:
        def shifted(self: GlowClient, name: str, timeout: float) -> dict[str, Any]:
            about = describe(self, name, timeout=timeout)
            about["calibration"]["threshold"] += shift
            return about

        monkeypatch.setattr(GlowClient, "model", shifted)
        with closing(ServiceTarget(url, "tiny-table")) as target:
            assert target.num_calibration == 100
            return target.calibration

    assert calibration_of(0.0) == calibration_of(0.0) != calibration_of(0.5)


def test_a_service_that_takes_fewer_rows_gets_fewer(
    models_dir: Path, tmp_path: Path, table_target: EngineTarget
) -> None:
    source = write_parquet(rows_of_table(1000), tmp_path / "x")
    score_file(table_target, source, tmp_path / "here.parquet")
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
    with monkeypatch.context() as patches:
        patches.setattr(targets, "HELLO_S", 0.1)
        with pytest.raises(TargetError, match=r"^no answer within 0\.1 s: http://127\.0\.0\.1:9: [^/@]*$"):
            ServiceTarget("http://user:password@127.0.0.1:9")
    for address, model, message in (
        (url, "other", f"^{url}: no model 'other'; served are tiny-images"),
        (f"{url}/livez", None, "/livez: Not Found"),
        ("http://a:b", None, "^the address of a service must be a URL: Invalid port: 'b'$"),
    ):
        with pytest.raises(TargetError, match=message):
            ServiceTarget(address, model)
    with (
        closing(ServiceTarget(url, "tiny-table", scores="no such score")) as target,
        pytest.raises(TargetError, match="scores: "),
    ):
        target.score(np.zeros((1, 3)))
    with closing(ServiceTarget(url, "tiny-table")) as target:
        with pytest.raises(TargetError, match="x must be of shape"):
            target.score(np.zeros((1, 2)))
        target.signature = target.signature.model_copy(update={"version": "0" * 12})
        with pytest.raises(TargetError, match="no model 'tiny-table@000000000000'; served are"):
            target.score(np.zeros((1, 3)))
