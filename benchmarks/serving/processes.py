"""Processes: what one and its descendants use, from /proc (Linux); ending them all; how many files they may open."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
_STAT = Path("/proc/stat")
ORPHANS_S = 1.0  # in which those whose parent has ended may end by themselves


@dataclass(frozen=True)
class Process:
    """One line of /proc: who it is, and its seconds of CPU with those of its children that have ended."""

    pid: int
    state: str
    parent: int
    session: int
    started: int  # in ticks since the machine started; with pid, it names a process for good
    cpu_s: float
    threads: int
    rss: int


@dataclass(frozen=True)
class Usage:
    """Seconds of CPU, bytes of memory, and the like of a tree of processes; pages that they share count in each."""

    cpu_s: float
    rss: int
    peak_rss: int  # sum of the largest that each living one ever had
    threads: int
    files: int  # that are open


def all_processes() -> list[Process]:
    """Every process that can be read now."""
    found = (_read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [process for process in found if process is not None]


def tree(root: int) -> list[Process]:
    """A process, its descendants, and what else lives in its session, as orphans of its descendants do."""
    processes = all_processes()
    members = {process.pid for process in processes if process.pid == root or process.session == root}
    while more := {process.pid for process in processes if process.parent in members} - members:
        members |= more
    return [process for process in processes if process.pid in members]


def usage(root: int) -> Usage:
    """What the tree uses now, and its CPU time so far."""
    members = tree(root)
    return Usage(
        cpu_s=sum(process.cpu_s for process in members),
        rss=sum(process.rss for process in members),
        peak_rss=sum(_peak_rss(process.pid) for process in members),
        threads=sum(process.threads for process in members),
        files=sum(_open_files(process.pid) for process in members),
    )


def busy_s() -> float:
    """Seconds of CPU that the whole machine has spent on anything so far, all CPUs together."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, _STAT.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def waited_for_s() -> float:
    """Seconds of CPU of this process and of its children that have ended."""
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in own)


class Meter:
    """CPU time from now on."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._start = self._now()

    def read(self) -> tuple[float, float]:
        """Seconds of CPU of a tree; CPUs kept busy by what is neither that tree nor this process and its children."""
        seconds, busy, ours, used = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return used, max(0.0, busy - ours - used) / seconds

    def _now(self) -> tuple[float, float, float, float]:
        return time.monotonic(), busy_s(), waited_for_s(), usage(self._root).cpu_s


def stop(process: subprocess.Popen[bytes], patience_s: float = 20) -> None:
    """End a process that leads its session: a signal to it, then by force whatever of its tree is left."""
    members = tree(process.pid)
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        members += tree(process.pid)
        process.kill()
        process.wait()
    for member in _left(members, ORPHANS_S):
        with suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    _left(members, ORPHANS_S)


def allow_files(num: int) -> None:
    """Let this process, and those that it starts, open so many files. Raises UsageError where that is too many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < num:
        raise UsageError(f"a process may open {hard} files here (ulimit -Hn), but {num} are needed")
    if resource.RLIM_INFINITY != soft < num:
        resource.setrlimit(resource.RLIMIT_NOFILE, (num, hard))


def _left(members: list[Process], patience_s: float) -> list[Process]:
    """Those that have not ended by themselves after a while."""
    deadline = time.monotonic() + patience_s
    while True:
        now = {(process.pid, process.started) for process in all_processes() if process.state != "Z"}
        left = [member for member in members if (member.pid, member.started) in now]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _read(pid: int) -> Process | None:
    """Parse /proc/PID/stat, whose second field may hold anything but ends with the last parenthesis; None if gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # proc(5) numbers them from 1; the first one here is the third
    return Process(
        pid=pid,
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        cpu_s=sum(map(int, fields[11:15])) / TICKS,
        threads=int(fields[17]),
        rss=int(fields[21]) * PAGE,
    )


def _peak_rss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0
