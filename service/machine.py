"""The machine: the cores and the memory that this process may use, and what the device is."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_NO_MEMORY = (  # torch's allocators, C++, oneDNN (which does not tell why), cuBLAS and cuDNN (whose last word it is)
    *("can't allocate memory", "out of memory", "std::bad_alloc", "could not create a primitive"),
    *("could not execute a primitive", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine"),
)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES, _MAPPED_BYTES = 2**26, 2**25  # free ones that a thread keeps; an allocation that the system is asked for


def available_cpus(cgroup: Path = _CGROUP, own: Path = _OWN_CGROUP) -> int:
    """Cores that this process may use: its affinity, and the quotas of its cgroups (version 2 or 1), if any."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [_numbers(folder / "cpu.max") for folder in _cgroups(cgroup, own)]
    limits += [
        [*_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us")]
        for folder in _cgroups(cgroup, own, "cpu")
    ]
    for limit in limits:
        if len(limit) == 2 and limit[0] > 0:
            cpus = min(cpus, max(1, limit[0] // limit[1]))
    return cpus


def available_bytes(device: torch.device, cgroup: Path = _CGROUP, own: Path = _OWN_CGROUP) -> int:
    """Memory that is left: of the GPU, or of this machine and of this process's cgroups."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    left = [available] if (available := _status(Path("/proc/meminfo"), "MemAvailable")) else []
    for controller, limit, used in (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for folder in _cgroups(cgroup, own, controller):
            numbers = [*_numbers(folder / limit), *_numbers(folder / used)]
            left += [numbers[0] - numbers[1]] if len(numbers) == 2 else []
    return max(0, min(left, default=2**63))


def memory_limit(cgroup: Path = _CGROUP, own: Path = _OWN_CGROUP) -> int:
    """Memory that this process may use at most: that of this machine, or what its cgroups allow; 0 where none tells."""
    limits = [total] if (total := _status(Path("/proc/meminfo"), "MemTotal")) else []
    for controller, limit in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _cgroups(cgroup, own, controller):
            limits += _numbers(folder / limit)
    return min(limits, default=0)


def held_bytes(device: torch.device) -> int:
    """Memory that torch holds of a GPU, used or kept; 0 on the CPU."""
    return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else 0


def keep_freed_memory() -> None:
    """Let a thread keep what a pass frees for the next one, where the C library is GNU's.

    As it is, much of it goes back to the system, which clears it at the next pass: a tenth of the time of a large one.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def reset_peak(device: torch.device) -> int:
    """Begin to watch how much memory this process uses at most; returns what it uses now, 0 where none tells."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or what a pass takes of what was kept would not be seen
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is what is used now
    return _status(Path("/proc/self/status"), "VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has used since ``reset_peak``; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status(Path("/proc/self/status"), "VmHWM")


def describe_machine(device: torch.device) -> str:
    """What a measurement of speed holds for: processor or GPU, its instructions, and torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def processor() -> str:
    """Name of the processor, as far as the system tells it."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", information.read_text() if information.exists() else "", re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: by the error's type, or by its words, since a program's errors lose their type."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in _NO_MEMORY)


def _cgroups(cgroup: Path, own: Path, controller: str = "") -> list[Path]:
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


def _numbers(path: Path) -> list[int]:
    """Whole numbers in a file of one line; none where it cannot be read or names no limit."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _status(path: Path, name: str) -> int:
    """The bytes behind a name in a file of /proc; 0 where it does not tell."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
