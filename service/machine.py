"""The machine: the memory that this process may use, and what the device is."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import torch

from common.machine import CGROUP, OWN_CGROUP, cgroups, numbers, processor

_NO_MEMORY = (  # torch's allocators, C++, oneDNN (which does not tell why), cuBLAS and cuDNN (whose last word it is)
    *("can't allocate memory", "out of memory", "std::bad_alloc", "could not create a primitive"),
    *("could not execute a primitive", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine"),
)


def available_bytes(device: torch.device, cgroup: Path = CGROUP, own: Path = OWN_CGROUP) -> int:
    """Memory that is left: of the GPU, or of this machine and of this process's cgroups."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    left = [available] if (available := _status(Path("/proc/meminfo"), "MemAvailable")) else []
    for controller, limit, used in (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for folder in cgroups(cgroup, own, controller):
            both = [*numbers(folder / limit), *numbers(folder / used)]
            left += [both[0] - both[1]] if len(both) == 2 else []
    return max(0, min(left, default=2**63))


def memory_limit(cgroup: Path = CGROUP, own: Path = OWN_CGROUP) -> int:
    """Memory that this process may use at most: that of this machine, or what its cgroups allow; 0 where none tells."""
    limits = [total] if (total := _status(Path("/proc/meminfo"), "MemTotal")) else []
    for controller, limit in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in cgroups(cgroup, own, controller):
            limits += numbers(folder / limit)
    return min(limits, default=0)


def held_bytes(device: torch.device) -> int:
    """Memory that torch holds of a GPU, used or kept; 0 on the CPU."""
    return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else 0


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: by the error's type, or by its words, since a program's errors lose their type."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in _NO_MEMORY)


def _status(path: Path, name: str) -> int:
    """The bytes behind a name in a file of /proc; 0 where it does not tell."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
