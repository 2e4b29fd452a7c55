"""The ways to deploy the service, started as they are used. Each yields the address where it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.ray_environment import AT_HOME
from service.settings import Settings
from tests.test_server import ROOT, free_port, server

MAX_ROWS, MAX_BODY_BYTES = 4096, 8 * 2**20  # of a request
ORIGIN = "https://good.example"  # whose pages may call


def variables(settings: Settings) -> dict[str, Any]:
    """What sets these settings in the environment of another process."""

    def text(value: object) -> str:
        if isinstance(value, list):
            return (":" if isinstance(value[0], Path) else ",").join(map(str, value))
        return json.dumps(value) if isinstance(value, dict) else str(value)

    return {f"GLOW_{name.upper()}": text(getattr(settings, name)) for name in settings.model_fields_set}


@contextmanager
def uvicorn(settings: Settings, workers: int) -> Iterator[str]:
    """A process, or a supervisor and its workers."""
    with server("--workers", workers, **variables(settings)) as (url, _):
        yield url


@contextmanager
def ray_serve(settings: Settings, replicas: int) -> Iterator[str]:
    """A cluster of this machine, and replicas on it behind Ray's proxy."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **AT_HOME}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.contract.ray_server", str(replicas)],
        env={**os.environ, **environment, **variables(settings), "GLOW_PORT": str(free_port())},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        if not (url := process.stdout.readline().strip()):
            raise AssertionError(process.communicate()[1])
        yield url
    finally:
        process.communicate()  # which ends its input
