"""The machine: the cores and the memory that this process may use, and what the device is."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
_NO_MEMORY = (  # torch's allocators, C++, oneDNN (which does not tell why), cuBLAS and cuDNN
    *("can't allocate memory", "out of memory", "std::bad_alloc", "could not create a primitive"),
    *("could not execute a primitive", "ALLOC_FAILED"),
)


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: its affinity, and its cgroup's quota (version 2 or 1) where one is set."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    version_1 = [*_numbers(cgroup / "cpu/cpu.cfs_quota_us"), *_numbers(cgroup / "cpu/cpu.cfs_period_us")]
    for limit in (_numbers(cgroup / "cpu.max"), version_1):
        if len(limit) == 2 and limit[0] > 0:
            cpus = min(cpus, max(1, limit[0] // limit[1]))
    return cpus


def available_bytes(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """Memory that is left: of the GPU, or of this machine and of this process's cgroup."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    left = [available] if (available := _status(Path("/proc/meminfo"), "MemAvailable")) else []
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        numbers = [*_numbers(cgroup / limit), *_numbers(cgroup / used)]
        left += [numbers[0] - numbers[1]] if len(numbers) == 2 else []
    return max(0, min(left, default=2**63))


def reset_peak(device: torch.device) -> int:
    """Begin to watch how much memory this process uses at most; returns what it uses now, 0 where none tells."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
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
