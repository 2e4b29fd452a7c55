"""Several processes: they divide reading and steps, train as one, end together, and go on where one was killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from model import tables
from model.checkpoint import load_checkpoint, save_checkpoint
from model.data import load
from model.distributed import ALONE, Processes
from model.recipe import Recipe, RecipeError, read_recipe
from model.train import newest_checkpoint, prepare, train
from model.trainer import Trainer
from tests.conftest import tiny_images, tiny_recipe, tiny_table, with_training
from tests.processes import in_processes

ROOT = Path(__file__).parents[1]
RECIPE = """
name = "tiny"
[data]
train = "rows"
validation = 100
calibration = 100
[model]
num_steps = 1
width = 8
[training]
steps = 600
batch_size = 33
evaluate_every = 100
checkpoint_every = 20
"""


def write_rows(folder: Path, num: int = 1000) -> Path:
    """A folder of two Parquet files with row groups of 100 rows."""
    random = np.random.default_rng(0)
    columns = {f"c{i}": random.normal(size=num) for i in range(9)}
    table = pa.table({**columns, "color": np.array(["red", "blue", "green"])[random.integers(0, 3, num)]})
    (folder / "rows" / "later").mkdir(parents=True)
    parquet.write_table(table[: num // 2], folder / "rows" / "a.parquet", row_group_size=100)
    parquet.write_table(table[num // 2 :], folder / "rows" / "later" / "b.parquet", row_group_size=100)
    return folder


def write_images(folder: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4), np.uint8)
    (folder / "images").mkdir()
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    np.save(folder / "images.npy", images)
    return folder


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_of_the_rows_are_disjoint_even_and_all(size: int) -> None:
    for total in (7, 32, 1000):
        parts = [range(total)[Processes(rank, size).part(total)] for rank in range(size)]
        assert [row for part in parts for row in part] == list(range(total))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def read(processes: Processes, folder: str, source: str) -> tuple[str, str, int]:
    """The digest of what is read, the file it is mapped from, and how many row groups this process has read."""
    reads = []
    original = tables._read_row_group

    def counted(*arguments: Any) -> Any:
        reads.append(arguments)
        return original(*arguments)

    tables._read_row_group = counted  # type: ignore[assignment]
    data = load(source, Path(folder), processes=processes)
    mapped = [line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if "/glow-" in line]
    return data.digest, mapped[-1], len(reads)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_processes_of_a_host_share_the_reading_and_one_copy(tmp_path: Path) -> None:
    write_images(write_rows(tmp_path))
    for source in ("rows", "images", "images.npy"):
        values, codes, told = in_processes(read, 2, tmp_path, str(tmp_path), source)
        assert codes == [0, 0], told
        digests, files, reads = zip(*values, strict=True)
        assert set(digests) == {load(source, tmp_path).digest}
        assert len(set(files)) == 1
        if source == "rows":  # 10 row groups in 2 groups of columns, and the names of colors
            assert reads == (15, 15)


def steps_of(processes: Processes, kind: str, accumulation: int) -> tuple[Any, ...]:
    """The initial state, the losses of a few steps, the validation loss, and the sums of parameters."""
    torch.manual_seed(processes.rank)
    recipe, splits = (
        (tiny_recipe("a", num_levels=2, bits=4), tiny_images()) if kind == "image" else (tiny_recipe("a"), tiny_table())
    )
    trainer = Trainer(with_training(recipe, accumulation=accumulation), splits, processes=processes)
    state = b"".join(value.numpy().tobytes() for value in trainer.flow.state_dict().values())
    losses = [trainer.train_step()[0]["loss"] for _ in range(6)]
    sums = [value.double().sum().item() for value in trainer.flow.parameters()]
    return hashlib.sha256(state).hexdigest(), losses, trainer.evaluate(), sums


@pytest.mark.parametrize("kind", ["image", "vector"])
def test_any_number_of_processes_trains_as_one(tmp_path: Path, kind: str) -> None:
    """Of 32 rows a step, three processes take 10 or 11, in parts of 4 at most."""
    initial, *alone = steps_of(ALONE, kind, 1)
    for size, accumulation in ((2, 1), (3, 3)):
        values, codes, told = in_processes(steps_of, size, tmp_path, kind, accumulation)
        assert codes == [0] * size, told
        for begun, *others in values:
            assert begun == initial
            for first, other in zip(alone, others, strict=True):
                np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulation", [2, 5, 32, 1000])
def test_gradients_do_not_depend_on_the_parts_they_are_accumulated_over(accumulation: int) -> None:
    gradients = []
    for parts in (1, accumulation):
        trainer = Trainer(with_training(tiny_recipe("a"), accumulation=parts), tiny_table())
        trainer.train_step()
        gradients.append([parameter.grad for parameter in trainer.flow.parameters()])
    for whole, accumulated in zip(*gradients, strict=True):
        assert whole is not None
        torch.testing.assert_close(whole, accumulated, rtol=1e-4, atol=1e-6)


def test_accumulation_may_change_where_a_run_goes_on() -> None:
    checkpoint = Trainer(tiny_recipe("a"), tiny_table()).checkpoint()
    Trainer(with_training(tiny_recipe("a"), accumulation=4), tiny_table(), checkpoint)


def prepare_in(processes: Processes, folders: list[str], resume: bool | None) -> int:
    folder = Path(folders[processes.rank % len(folders)])
    recipe = read_recipe(folder / "tiny.toml")
    trainer, _ = processes.together(lambda: prepare(recipe, folder, folder / "run", resume, processes))
    return trainer.step


def test_what_is_wrong_for_one_process_is_told_once_and_ends_all(tmp_path: Path) -> None:
    write_rows(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    last = tmp_path / "rows" / "later" / "b.parquet"
    table = parquet.read_table(last)
    values = table["c3"].to_numpy().copy()
    values[120] = np.nan
    parquet.write_table(table.set_column(3, "c3", pa.array(values)), last, row_group_size=100)
    _, codes, told = in_processes(prepare_in, 3, tmp_path, [str(tmp_path)], False)
    assert codes == [2, 2, 2]
    assert told == f"error: {last}: row 120, column 'c3' is missing; every value must be present\n"


def test_what_is_wrong_for_all_processes_is_told_once(tmp_path: Path) -> None:
    write_rows(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("33", "2"))
    _, codes, told = in_processes(prepare_in, 3, tmp_path, [str(tmp_path)], False)
    assert codes == [2, 2, 2]
    assert told == "error: training.batch_size must be at least the 3 processes, got 2\n"


def two_hosts(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of hosts that share no files."""
    hosts = tmp_path / "first", tmp_path / "second"
    for host in hosts:
        write_rows(host)
        (host / "tiny.toml").write_text(RECIPE)
    return hosts


def test_hosts_with_different_data_are_refused(tmp_path: Path) -> None:
    first, second = two_hosts(tmp_path)
    parquet.write_table(parquet.read_table(first / "rows" / "a.parquet")[1:], second / "rows" / "a.parquet")
    _, codes, told = in_processes(prepare_in, 2, tmp_path, [str(first), str(second)], None, hosts=2)
    assert codes == [2, 2]
    assert told == "error: rows: the hosts hold different data\n"


def newest(processes: Processes, folders: list[str]) -> int:
    checkpoint = newest_checkpoint(Path(folders[processes.rank]), processes)
    assert checkpoint is not None
    return checkpoint.step


def test_the_host_with_the_newest_checkpoint_gives_it_to_the_others(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    trainer = Trainer(tiny_recipe("a"), tiny_table())
    for folder, step in ((first, 3), (second, 5)):
        folder.mkdir()
        trainer.step = step
        save_checkpoint(trainer.checkpoint(), folder / "last.pt")
        save_checkpoint(trainer.checkpoint(), folder / "best.pt")
    values, codes, told = in_processes(newest, 2, tmp_path, [str(first), str(second)], hosts=2)
    assert (values, codes) == ([5, 5], [0, 0]), told
    assert load_checkpoint(first / "best.pt").step == 5  # what the report is about, where the leading process is now


def test_a_folder_that_holds_a_run_is_refused_unless_it_may_go_on(tmp_path: Path) -> None:
    write_rows(tmp_path)
    recipe = read_recipe_in(tmp_path)
    out = tmp_path / "run"
    begin = partial(prepare, recipe, tmp_path, out)
    with pytest.raises(RecipeError, match=r"--resume: .*last\.pt does not exist"):
        begin(True, ALONE)
    trainer, _ = begin(None, ALONE)
    out.mkdir()
    trainer.step = 7
    save_checkpoint(trainer.checkpoint(), out / "last.pt")
    with pytest.raises(RecipeError, match="already holds a run"):
        begin(False, ALONE)
    assert [begin(resume, ALONE)[0].step for resume in (True, None)] == [7, 7]


def read_recipe_in(folder: Path) -> Recipe:
    (folder / "tiny.toml").write_text(RECIPE)
    return read_recipe(folder / "tiny.toml")


class Torchrun:
    """A command under torchrun on two processes, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.last = folder / "runs" / "tiny" / "last.pt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", *launch, "-m", "model.train", "tiny.toml"],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_for_a_checkpoint(self) -> None:
        deadline = time.monotonic() + 60
        while not self.last.exists() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"model.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def end(self) -> tuple[int, str]:
        """The exit code, and what was told on standard error."""
        try:
            told = self.process.communicate(timeout=100)[1]
        finally:
            self.process.kill()
        return self.process.returncode, told


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell a process's children")
def test_a_killed_worker_costs_at_most_one_checkpoint_interval(tmp_path: Path) -> None:
    write_rows(tmp_path)
    recipe = read_recipe_in(tmp_path)
    undisturbed, _ = prepare(recipe, tmp_path, tmp_path / "alone", False, ALONE)
    assert train(undisturbed, tmp_path / "alone", progress=False)
    run = Torchrun(tmp_path)
    run.wait_for_a_checkpoint()
    time.sleep(random.random())
    reached = load_checkpoint(run.last).step
    os.kill(random.choice(run.workers()), signal.SIGKILL)
    code, told = run.end()
    assert code == 0, told
    (from_step,) = (int(line.split()[4]) for line in told.splitlines() if line.startswith("going on from step"))
    assert from_step >= reached  # and what it was at, at most an interval later, is what it had not yet written
    report = json.loads((run.last.parent / "report.json").read_text())
    assert report["steps"] == recipe.training.steps
    assert [entry["step"] for entry in report["history"]] == [100, 200, 300, 400, 500, 600]
    for entry, expected in zip(report["history"], undisturbed.history, strict=True):
        assert entry["validation"] == pytest.approx(expected["validation"], abs=1e-3)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell a process's children")
def test_a_run_that_is_told_to_end_leaves_a_checkpoint_and_is_not_started_again(tmp_path: Path) -> None:
    write_rows(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("steps = 600", "steps = 1000000"))
    run = Torchrun(tmp_path)
    run.wait_for_a_checkpoint()
    run.process.send_signal(signal.SIGTERM)
    code, told = run.end()
    assert code != 0
    assert "going on from step" not in told
    report = json.loads((run.last.parent / "report.json").read_text())
    assert report["steps"] == load_checkpoint(run.last).step
