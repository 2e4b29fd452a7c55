"""Workers of one host that reload together."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import ReloadRefused
from service.peers import Workers


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """What another worker tells."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield tmp_path / f"serving-{process.pid}"


async def test_who_reloads_hears_at_once_that_another_worker_refused(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("service.peers.multiprocessing.parent_process", object)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    workers = Workers()

    def reload(pid: int, number: int) -> None:
        assert pid == os.getppid()
        workers.announce("new")
        other.write_text(told.pop())

    monkeypatch.setattr("service.peers.os.kill", reload)
    told.append("new")
    assert await workers.bring_along(60) == 2
    told.append("")
    with pytest.raises(ReloadRefused, match="not all workers have followed"):
        await workers.bring_along(10**9)
    told.append("old")
    with pytest.raises(ReloadRefused, match="not all workers have followed"):
        await workers.bring_along(0.2)
