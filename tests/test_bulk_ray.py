"""Bulk scoring by the actors of a Ray cluster gives the bytes that it gives without one, whichever of them is lost."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.cli import SOME_REJECTED, run_command
from common.errors import UsageError
from service.files import describe
from service.ray_environment import FAIR, QUIET
from service.score import ray_target
from service.score.command import main
from service.score.run import score_file
from service.score.spool import Spool, folder_of, rejected_of
from service.score.targets import EngineTarget
from tests.bulk import bad_rows_of_table, rows_of_table
from tests.conftest import target_of, tiny_images
from tests.test_file_spans import write_parts
from tests.test_files import write_csv, write_folder, write_npy, write_npz, write_parquet
from tests.test_server import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

STORE = 100 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of a core each, on this machine."""
    with pytest.MonkeyPatch.context() as patches:
        for name, value in (QUIET | FAIR).items():
            patches.setenv(name, value)
        from ray.cluster_utils import Cluster

        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        cluster: Any = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(**node)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def on_ray(cluster: Any) -> Callable[..., None]:
    """The command, whose exit code must be that of some bad rows, if any code is given."""

    def run(artifact: Path, source: Path, out: Path, *options: str, code: int | None = None) -> None:
        arguments = [*map(str, (artifact, source, out)), "--engine", "ray", "--address", cluster.address, *options]
        if code is None:
            return main(arguments)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == code
        return None

    return run


@pytest.fixture
def artifact(models_dir: Path) -> Path:
    return models_dir / "tiny-table.pt"


def same(out: Path, whole: Path) -> None:
    assert out.read_bytes() == whole.read_bytes()
    assert rejected_of(out).exists() == rejected_of(whole).exists()
    assert not rejected_of(out).exists() or rejected_of(out).read_bytes() == rejected_of(whole).read_bytes()
    assert not folder_of(out).exists()


def test_tables_and_images_come_out_as_without_a_cluster(
    on_ray: Callable[..., None], artifact: Path, table_target: EngineTarget, tmp_path: Path, small_batches: None
) -> None:
    source = write_parts(bad_rows_of_table(1000), tmp_path / "parts", 17, 400)
    score_file(table_target, source, tmp_path / "whole.parquet", fdr=0.1)
    on_ray(artifact, source, tmp_path / "out.parquet", "--fdr", "0.1", code=SOME_REJECTED)
    same(tmp_path / "out.parquet", tmp_path / "whole.parquet")
    images = artifact.with_name("tiny-images.pt")
    folder = write_folder(tiny_images().fit.x, tmp_path / "photos")
    (folder / "033.png").write_bytes(b"no image")
    score_file(target_of(images, tmp_path), folder, tmp_path / "whole.csv")
    on_ray(images, folder, tmp_path / "out.csv", "--actors", "1", code=SOME_REJECTED)
    same(tmp_path / "out.csv", tmp_path / "whole.csv")


def actors() -> list[int]:
    """Processes of actors that this one's clusters have, at work."""
    parents: dict[int, int] = {}
    working = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                working.append(int(folder.name))
        except OSError:
            continue

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return [process for process in working if is_ours(process)]


def when_appended(patches: pytest.MonkeyPatch, happens: dict[int, Callable[[], object]]) -> None:
    """Let things happen before the results of some batches are kept."""
    append, numbers = Spool.append, iter(range(10**6))

    def appended(*args: Any) -> None:
        happens.get(next(numbers), lambda: None)()
        append(*args)

    patches.setattr(Spool, "append", appended)


@pytest.mark.parametrize("lost", ["actors", "node"])
def test_actors_and_nodes_that_are_lost_cost_no_row(
    cluster: Any,
    on_ray: Callable[..., None],
    artifact: Path,
    table_target: EngineTarget,
    tmp_path: Path,
    lost: str,
    small_batches: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_parquet(bad_rows_of_table(8000), tmp_path / "x")
    score_file(table_target, source, tmp_path / "whole.csv")
    killed: list[int] = []

    def kill() -> None:
        found = actors()
        killed.extend(found)
        for process in found:
            os.kill(process, signal.SIGKILL)

    def lose() -> None:
        import ray

        mine = ray.get_runtime_context().get_node_id()
        killed.extend(actors())
        other = next(node for node in cluster.worker_nodes if node.node_id != mine)
        cluster.remove_node(other, allow_graceful=False)

    if lost == "node":
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    when_appended(monkeypatch, {0: kill, 100: kill} if lost == "actors" else {2: lose})
    on_ray(artifact, source, tmp_path / "out.csv", code=SOME_REJECTED)
    assert len(set(killed)) >= 2
    same(tmp_path / "out.csv", tmp_path / "whole.csv")


@pytest.mark.parametrize("begins", ["ray", "local"])
def test_what_one_engine_began_the_other_ends(
    on_ray: Callable[..., None], artifact: Path, tmp_path: Path, begins: str, small_batches: None, capsys: Any
) -> None:
    def locally(*arguments: Any, code: int) -> None:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments), "--reproducible"])
        assert caught.value.code == code

    def stop() -> None:
        raise KeyboardInterrupt

    source, out = write_parquet(bad_rows_of_table(500), tmp_path / "x"), tmp_path / "out.csv"
    locally(artifact, source, tmp_path / "whole.csv", code=SOME_REJECTED)
    first, second = (on_ray, locally) if begins == "ray" else (locally, on_ray)
    with pytest.MonkeyPatch.context() as patches:
        when_appended(patches, {11: stop})
        with pytest.raises(KeyboardInterrupt):
            first(artifact, source, out, code=SOME_REJECTED)
    assert not out.exists()
    capsys.readouterr()
    second(artifact, source, out, "--json", code=SOME_REJECTED)
    assert json.loads(capsys.readouterr().out)["resumed_at"] == 174  # 8 batches of 126 rows, then 3 of 16
    same(out, tmp_path / "whole.csv")


def test_what_is_wrong_with_a_file_or_a_node_is_told_in_one_line(
    on_ray: Callable[..., None],
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_batches: None,
) -> None:
    broken, out = tmp_path / "broken.parquet", tmp_path / "out.csv"
    pa.parquet.write_table(rows_of_table(3000), broken, row_group_size=100)
    content = bytearray(broken.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = b"\xff" * 2000
    broken.write_bytes(content)
    with pytest.raises(UsageError, match=f"^{broken}: cannot be read: "):
        on_ray(artifact, broken, out)
    assert json.loads((folder_of(out) / "state.json").read_text())["rows"] > 100
    source, out = write_parquet(rows_of_table(20), tmp_path / "x"), tmp_path / "other.csv"
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(ray_target, "describe", lambda _: "another")
        with pytest.raises(UsageError, match=rf"^node \S+: {source}: is .*; expected another: the input must lie on"):
            on_ray(artifact, source, out)
    monkeypatch.setenv("GLOW_DEVICE", "cuda")
    with pytest.raises(UsageError, match=r"^GLOW_DEVICE is 'cuda', but Ray at '\S+' has no GPU"):
        on_ray(artifact, source, out)


def test_a_node_has_the_version_and_the_file_that_the_command_has(tmp_path: Path) -> None:
    check = ray_target.check_node
    path = tmp_path / "x.npy"
    with pytest.raises(UsageError, match=r"has glow-service .*; expected 9.9, as where the command runs"):
        check(path, "", "9.9")
    with pytest.raises(UsageError, match=f"{path}: is not there; expected a file: the input must lie on storage that"):
        check(path, "a file", version("glow-service"))
    write_npy(np.zeros((3, 3)), tmp_path / "x")
    check(path, describe(path), version("glow-service"))


def test_a_run_has_a_cluster_of_its_own_and_is_quiet(
    artifact: Path, tmp_path: Path, table_target: EngineTarget
) -> None:
    source, out = write_parquet(rows_of_table(50), tmp_path / "x"), tmp_path / "out.parquet"
    command = [sys.executable, "-m", "service.score", str(artifact), str(source), str(out), "--engine", "ray", "--json"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **FAIR}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("scored ") for line in done.stderr.splitlines()), done.stderr
    assert json.loads(done.stdout)["rows"] == 50
    score_file(table_target, source, tmp_path / "whole.parquet")
    same(out, tmp_path / "whole.parquet")


def test_wrong_use_of_the_engine_is_told_before_anything_starts(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = rows_of_table(20), str(tmp_path / "out.csv")
    source = write_parquet(rows, tmp_path / "x")
    array = write_npz(np.stack([rows[name].to_numpy() for name in ("a", "b", "count")], 1), tmp_path / "x")
    for arguments, message in (
        (
            [artifact, write_csv(rows, tmp_path / "x"), out, "--engine", "ray"],
            "x.csv: is read from its beginning alone",
        ),
        ([artifact, array, out, "--engine", "ray"], "x.npz: is read from its beginning alone, which one process does"),
        ([artifact, source, out, "--engine", "spark"], "argument --engine: invalid choice: 'spark'"),
        ([artifact, source, out, "--actors", "2"], "--actors: is for actors of a cluster, which --engine ray starts"),
        ([artifact, source, out, "--engine", "ray", "--actors", "0"], "argument --actors: must be a whole number of"),
        ([artifact, source, out, "--engine", "ray", "--model", "x"], "--model: is for a service; an artifact holds"),
        ([artifact, source, out, "--engine", "ray", "--address", "127.0.0.1:9"], "Ray at '127.0.0.1:9': "),
        (["http://localhost:9", source, out, "--engine", "ray"], "--engine: is for an artifact; a service runs its"),
    ):
        monkeypatch.setattr(sys, "argv", ["glow-score", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run_command(main)
        assert caught.value.code == 2
        stderr = capsys.readouterr().err
        assert stderr.startswith("error: ")
        assert message in stderr
        assert stderr.count("\n") == 1
    monkeypatch.setattr("common.extras.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        main([str(artifact), str(source), out, "--engine", "ray"])
    assert "error: this command needs ray, which is not installed: pip install 'glow-service[ray]'" in (
        capsys.readouterr().err
    )
