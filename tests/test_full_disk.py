"""A disk that is full: the error names what could not be written, what was there stays, and no process dies of it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoint import load_checkpoint, save_checkpoint
from model.trainer import Trainer
from service.drift import Drift
from service.metrics import Metrics, _Allocated
from service.peers import Workers
from service.quota import TokenBucket
from service.score import spool
from service.score.run import score_file
from service.score.targets import EngineTarget
from tests.bulk import rows_of_table
from tests.conftest import tiny_recipe, tiny_table
from tests.test_files import write_parquet


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, which is refused as a full disk refuses it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_is_named_and_leaves_the_one_before(tmp_path: Path) -> None:
    path, trainer = tmp_path / "last.pt", Trainer(tiny_recipe("tiny-table"), tiny_table())
    save_checkpoint(trainer.checkpoint(), path)
    trainer.train_step()
    size = path.stat().st_size
    for limit in (0, 100, size // 2, size - 100):
        with pytest.raises(OSError) as caught, files_of_at_most(limit):  # noqa: PT011 (its number is asserted below)
            save_checkpoint(trainer.checkpoint(), path)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert load_checkpoint(path).step == 0
        assert list(tmp_path.iterdir()) == [path]


def test_scores_that_do_not_fit_are_named_and_the_run_goes_on(
    table_target: EngineTarget, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "CHECKPOINT_S", 0)
    source, out, whole = (tmp_path / name for name in ("x", "out.csv", "whole.csv"))
    source = write_parquet(rows_of_table(200), source)
    score_file(table_target, source, whole)
    for limit in (1000, whole.stat().st_size // 2, whole.stat().st_size - 1):
        with pytest.raises(OSError) as caught, files_of_at_most(limit):  # noqa: PT011 (its number is asserted below)
            score_file(table_target, source, out)
        assert caught.value.errno == errno.EFBIG
        assert str(caught.value.filename).startswith(str(spool.folder_of(out)))
        assert not out.exists()
    assert score_file(table_target, source, out).resumed_at > 0
    assert out.read_bytes() == whole.read_bytes()


def is_on_disk(path: Path) -> bool:
    """Whether the disk has room for a whole file, or writing to memory of it may end the process."""
    return path.stat().st_blocks * 512 >= path.stat().st_size > 0


def test_what_workers_share_has_its_room_on_the_disk_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    Metrics()
    TokenBucket("a", 1.0, 1, tmp_path)
    Drift("m", np.arange(100.0), 0.01, 50, False, tmp_path / "drift-m@1")
    figures: Any = _Allocated(str(tmp_path / "counter_1.db"))
    try:
        for number in range(5000):  # more than it begins with
            figures.write_value(f"some figure {number}", 1.0, 0.0)
        assert figures.read_value("some figure 4999") == (1.0, 0.0)
    finally:
        figures.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 6
    assert all(map(is_on_disk, files))


def test_a_worker_that_cannot_tell_what_it_serves_serves_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.peers.multiprocessing.parent_process", object)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with files_of_at_most(2):
        Workers().announce("some models")
    assert f"serving-{os.getpid()}: cannot be written: File too large" in caplog.text
    assert not list(tmp_path.iterdir())
