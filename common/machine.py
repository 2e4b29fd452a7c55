"""The machine: its processor, the cores that this process may use, and what it keeps of freed memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MAPPED_BYTES = 2**25  # an allocation that the system is asked for


def processor() -> str:
    """Name of the processor, as far as the system tells it."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", information.read_text() if information.exists() else "", re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def available_cpus(cgroup: Path = CGROUP, own: Path = OWN_CGROUP) -> int:
    """Cores that this process may use: its affinity, and the quotas of its cgroups (version 2 or 1), if any."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [numbers(folder / "cpu.max") for folder in cgroups(cgroup, own)]
    limits += [
        [*numbers(folder / "cpu.cfs_quota_us"), *numbers(folder / "cpu.cfs_period_us")]
        for folder in cgroups(cgroup, own, "cpu")
    ]
    for limit in limits:
        if len(limit) == 2 and limit[0] > 0:
            cpus = min(cpus, max(1, limit[0] // limit[1]))
    return cpus


def keep_freed_memory(kept_bytes: int) -> None:
    """Let a thread keep so many bytes that a pass or a step frees for the next one, where the C library is GNU's.

    As it is, much of it goes back to the system, which clears it anew: a tenth of the time of a large pass, a third of
    that of a step of training.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, kept_bytes)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def cgroups(cgroup: Path, own: Path, controller: str = "") -> list[Path]:
    """Folders whose limits bind this process, by a controller of version 1 or by version 2: its own, and all above it.

    A container may be told a path that only its host has; what is mounted there is then the process's own folder.
    """
    mount = cgroup / controller
    lines = own.read_text() if own.exists() else ""
    for controllers, path in re.findall(r"^\d+:([^:]*):(.+)$", lines, re.MULTILINE):
        parts = PurePosixPath(path).parts[1:]
        if controller in controllers.split(",") and ".." not in parts and mount.joinpath(*parts).is_dir():
            return [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return [mount]


def numbers(path: Path) -> list[int]:
    """Whole numbers in a file of one line; none where it cannot be read or names no limit."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
