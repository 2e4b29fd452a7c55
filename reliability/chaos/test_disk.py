"""The disk fills while something is written: nothing is left half-written, and all goes on once there is room."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.checkpoint import load_checkpoint
from reliability.chaos.scene import Scene
from reliability.load import is_well, until_well
from service.artifact import open_artifact
from tests.conftest import tiny_table
from tests.test_server import ROOT, wait_until_all_listen

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system of so many bytes")

RECIPE = """
name = "chaos"
[data]
train = "{train}"
validation = 100
calibration = 100
test = 100
[model]
num_steps = 2
width = 8
[training]
steps = {steps}
batch_size = 32
learning_rate = 5e-3
warmup_steps = 2
ema_decay = 0.5
[artifact]
alpha = 0.1
licence = "MIT"
description = "A tiny flow."
"""


@contextmanager
def disk(parent: Path, kilobytes: int) -> Iterator[Path]:
    """A folder of a file system of so many bytes, which is seen under the process that holds it, and goes with it."""
    mount = parent / "disk"
    mount.mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o size="$1"k,nr_inodes=1000 tmpfs "$2" && echo ready && exec sleep infinity'
    arguments = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(kilobytes), str(mount)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != b"ready\n":
                pytest.skip("a file system cannot be mounted here")
            yield Path(f"/proc/{holder.pid}/root{mount}")
        finally:
            holder.kill()


def fill(folder: Path, left: int = 0) -> Path:
    """Write a file that leaves so many bytes of a file system."""
    path, chunk = folder / "filler", bytes(4096)
    size = max(0, os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - left)
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.tell() < size:
            file.write(chunk)
    return path


def run(*arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """A command of ours, whose files may have so many bytes."""
    prefix = [] if limit is None else ["prlimit", f"--fsize={limit}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOW_THREADS": "1"}
    return subprocess.run(
        [*prefix, sys.executable, "-m", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def says_what_is_full(
    done: subprocess.CompletedProcess[str], folder: Path, why: str = "No space left on device"
) -> None:
    """Whether a command ended with one line that names the file or its folder, and why."""
    told = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert str(folder) in told[-1], told[-1]
    assert why in told[-1], told[-1]


def recipe(folder: Path, steps: int) -> Path:
    train = folder / "train.npy"
    np.save(train, tiny_table(2000).fit.x)
    path = folder / "chaos.toml"
    path.write_text(RECIPE.format(train=train, steps=steps))
    return path


@pytest.mark.fault("the disk fills while a checkpoint is written")
def test_a_training_on_a_full_disk_says_so_and_goes_on_from_its_last_checkpoint(scene: Scene) -> None:
    with disk(scene.folder, 4096) as folder:
        out, train = folder / "run", recipe(scene.folder, 60)
        arguments = ("model.train", train, "--out", out, "--set", "training.evaluate_every=20")
        first = run(*arguments)
        assert first.returncode == 0, first.stderr
        sound = {path.name: path.read_bytes() for path in out.glob("*.pt")}
        more = (*arguments[:-2], "--resume", "--set", "training.steps=120")
        filler = fill(folder, left=scene.chance.randrange(0, 3 * len(sound["last.pt"]) // 2, 1024) // 2)
        says_what_is_full(run(*more), folder)
        for name in sound:
            load_checkpoint(out / name)
        assert not list(out.glob("*.partial"))
        filler.unlink()
        again = run(*more)
        assert again.returncode == 0, again.stderr
        assert load_checkpoint(out / "last.pt").step == 120
        scene.rounds += 1


@pytest.mark.fault("the disk fills while an artifact is written")
def test_an_export_to_a_full_disk_says_so_and_leaves_the_old_artifact(scene: Scene) -> None:
    trained = run("model.train", recipe(scene.folder, 20), "--out", scene.folder / "run")
    assert trained.returncode == 0, trained.stderr
    with disk(scene.folder, 4096) as folder:
        out = folder / "chaos.pt"
        arguments = ("model.export", scene.folder / "run" / "best.pt", out)
        assert run(*arguments).returncode == 0
        old = out.read_bytes()
        filler = fill(folder, left=scene.chance.randrange(0, len(old), 1024))
        says_what_is_full(run(*arguments), folder)
        assert sorted(path.name for path in folder.iterdir()) == ["chaos.pt", "filler"]
        assert out.read_bytes() == old
        open_artifact(out)
        filler.unlink()
        assert run(*arguments).returncode == 0
        new = out.read_bytes()
        says_what_is_full(run(*arguments, limit=len(new) // 2), folder, "File too large")
        assert out.read_bytes() == new
        scene.rounds += 2


@pytest.mark.fault("the disk fills while scores are written")
@pytest.mark.parametrize("suffix", ["csv", "parquet", "npy"])
def test_a_scoring_to_a_full_disk_says_so_and_goes_on_to_the_same_bytes(scene: Scene, suffix: str) -> None:
    source, rows = scene.folder / "rows.npy", 30_000
    np.save(source, np.tile(tiny_table().fit.x, (rows // 100, 1)))
    arguments = ("service.score", scene.artifacts / "tiny-table.pt", source)
    whole = scene.folder / f"whole.{suffix}"
    assert run(*arguments, whole, "--reproducible", "--json").returncode == 0
    with disk(scene.folder, 16384) as folder:
        out = folder / f"out.{suffix}"
        command = (*arguments, out, "--reproducible", "--json")
        for _ in range(2):
            filler = fill(folder, left=scene.chance.randrange(8192, whole.stat().st_size))
            says_what_is_full(run(*command), folder)
            assert not out.exists()
            filler.unlink()
            scene.rounds += 1
        done = run(*command)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rows"] == rows
        assert out.read_bytes() == whole.read_bytes()
        assert [path.name for path in folder.iterdir()] == [out.name]


@pytest.mark.fault("the disk of the cache, of the log and of what workers share is full")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_answers_on_full_disks(scene: Scene, workers: int) -> None:
    with disk(scene.folder, 4096) as folder:
        (folder / "tmp").mkdir()
        settings: dict[str, Any] = {
            "GLOW_CACHE_DIR": str(folder / "cache"),
            "GLOW_ACCESS_LOG": "true",
            "TMPDIR": str(folder / "tmp"),
        }
        with scene.server("--workers", workers, log=folder / "log", **settings) as (url, process):
            wait_until_all_listen(url, workers)
            with scene.load(url) as load:
                load.wait(100)
                filler = fill(folder)
                assert httpx.post(f"{url}/models/tiny-table/drift/reset").status_code in (200, 401, 403)
                for path in ("/metrics", "/models/tiny-table/drift", "/openapi.json", "/models"):
                    assert httpx.get(f"{url}{path}").status_code == 200
                load.wait(500)
                assert is_well(url, scene.table.ask("json", [1]))
                filler.unlink()
                load.wait(100)
            scene.recovered(until_well(url, scene.table.ask("json", [1])))
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            lines = (folder / "log").read_bytes().splitlines()
            json.loads(next(line for line in reversed(lines) if line.startswith(b"{")))
    scene.ledger.check()
