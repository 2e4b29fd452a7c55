"""Closed-loop load by wrk: so many connections, each asking again as soon as it has its answer."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UsageError

SCRIPT = Path(__file__).with_name("post.lua")
MARK = "RESULT "


@dataclass(frozen=True)
class Result:
    """What wrk saw: answers of status 2xx a second, latencies of all answers, and what went wrong."""

    rps: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    requests: int  # answered, whatever the status
    refused: int  # of them, with a status other than 2xx
    connect: int  # connections that failed, by what was tried
    read: int
    write: int
    timeout: int  # answers that came too late
    statuses: dict[str, int] = field(default_factory=dict)  # of a mix

    @property
    def errors(self) -> int:
        """Connections that failed, answers that came too late."""
        return self.connect + self.read + self.write + self.timeout


def require_wrk() -> None:
    """Raise UsageError where wrk is not installed."""
    if shutil.which("wrk") is None:
        raise UsageError("wrk is not installed: apt-get install wrk")


def parse(output: str) -> Result:
    """Read the one line that the script prints."""
    (line,) = (line for line in output.splitlines() if line.startswith(MARK))
    return Result(**json.loads(line.removeprefix(MARK)))


def drive(url: str, body: Path, media_type: str, connections: int, seconds: float, key: str | None = None) -> Result:
    """Post a body over and over for so many seconds, rounded to whole ones."""
    return _run(url, [str(body), media_type, *([key] if key else [])], connections, seconds)


def drive_mix(url: str, requests: Sequence[Path], connections: int, seconds: float) -> Result:
    """Send whole requests, heads and all, in turn, and count the statuses of their answers."""
    return _run(url, ["mix", *map(str, requests)], connections, seconds)


def _run(url: str, arguments: Sequence[str], connections: int, seconds: float) -> Result:
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout=30s", "--latency"]
    command = ["wrk", *options, "-s", str(SCRIPT), url, "--", *arguments]
    return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
