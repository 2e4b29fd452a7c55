"""The machine: limits of a container count, not what the host has."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.machine import available_cpus
from service.machine import available_bytes, is_out_of_memory, peak_bytes, reset_peak

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
CPU = torch.device("cpu")


def cgroup(folder: Path, files: dict[str, str], own: str = "0::/") -> tuple[Path, Path]:
    """A mount with these files, and what the process is told of its cgroups."""
    for name, text in files.items():
        path = folder / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(f"{own}\n")
    return folder / "mount", folder / "own"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, CPUS),
        ({"cpu.max": "max 100000"}, CPUS),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "99900000 100000"}, CPUS),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CPUS),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "150000"}, CPUS),
    ],
)
def test_threads_come_from_the_quota(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_cpus(*cgroup(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "3000", "memory.current": "1000"}, 2000),
        ({"memory/memory.limit_in_bytes": "3000", "memory/memory.usage_in_bytes": "2000"}, 1000),
        ({"memory.max": "3000", "memory.current": "4000"}, 0),
    ],
)
def test_memory_that_is_left_is_what_the_cgroup_leaves(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_bytes(CPU, *cgroup(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b", {"a/b/memory.max": "3000", "a/b/memory.current": "1000"}, 2000),
        ("0::/a/b", {"a/memory.max": "3000", "a/memory.current": "1000", "a/b/memory.max": "max"}, 2000),
        ("0::/a/b", {"memory.max": "3000", "memory.current": "1000", "a/b/memory.max": "max"}, 2000),
        (
            "0::/a",
            {"memory.max": "3000", "memory.current": "2500", "a/memory.max": "2000", "a/memory.current": "1000"},
            500,
        ),
        (
            "0::/\n9:cpuset,memory:/a:b\n8:cpu:/",
            {"memory/a:b/memory.limit_in_bytes": "3000", "memory/a:b/memory.usage_in_bytes": "2000"},
            1000,
        ),
        ("0::/host/only", {"memory.max": "3000", "memory.current": "1000"}, 2000),
        ("0::/../a", {"memory.max": "3000", "memory.current": "1000", "../a/memory.max": "1"}, 2000),
        ("0::/a", {"memory.max": "3000", "memory.current": "1000", "b/memory.max": "1", "b/memory.current": "1"}, 2000),
        ("", {"memory.max": "3000", "memory.current": "1000"}, 2000),
    ],
)
def test_limits_of_the_processs_own_cgroup_and_of_all_above_it_bind(
    tmp_path: Path, own: str, files: dict[str, str], expected: int
) -> None:
    assert available_bytes(CPU, *cgroup(tmp_path, files, own)) == expected


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/a/b", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}),
    ],
)
def test_so_do_their_quotas(tmp_path: Path, own: str, files: dict[str, str]) -> None:
    assert available_cpus(*cgroup(tmp_path, files, own)) == 1


def test_without_a_list_of_cgroups_the_mount_is_the_processs_own(tmp_path: Path) -> None:
    mount, own = cgroup(tmp_path, {"cpu.max": "100000 100000"})
    own.unlink()
    assert available_cpus(mount, own) == 1


def test_without_a_limit_the_machines_memory_is_what_is_left(tmp_path: Path) -> None:
    assert available_bytes(CPU, *cgroup(tmp_path, {"memory.max": "max", "memory.current": "1"})) > 2**20


def test_the_peak_of_memory_grows_with_what_is_used() -> None:
    np.ones(2**26)
    before = reset_peak(CPU)
    if not before:
        pytest.skip("the system does not tell")
    np.ones(2**25)
    assert before + 2**27 <= peak_bytes(CPU) <= before + 2**29


KEPT = """
import torch
from common.machine import keep_freed_memory
from service.engine import KEPT_BYTES
from service.machine import peak_bytes, reset_peak
keep_freed_memory(KEPT_BYTES)
cpu = torch.device("cpu")
for _ in range(2):
    before = reset_peak(cpu)
    b"x" * 2**24
    print(peak_bytes(cpu) - before if before else "the system does not tell")
"""


def test_what_is_kept_of_freed_memory_counts_again_when_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KEPT], capture_output=True, text=True, check=True)
    if "does not tell" in done.stdout:
        pytest.skip("the system does not tell")
    assert [int(grown) >= 2**23 for grown in done.stdout.split()] == [True, True]


def test_failed_allocations_are_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**55)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**55)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_numpy.value)
    for words in (
        "CUDA out of memory. Tried to allocate",
        "std::bad_alloc",
        "could not create a primitive",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
    ):
        assert is_out_of_memory(RuntimeError(f"The following operation failed in the interpreter. {words}"))
    assert not is_out_of_memory(RuntimeError("shape '[2]' is invalid"))
