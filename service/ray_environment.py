"""What Ray reads in the environment and is told by us, where nothing else was said. Imports no Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping

AT_HOME = {"RAY_USAGE_STATS_ENABLED": "0"}  # no statistics leave the machine
FAIR = {"RAY_worker_niceness": "0"}  # 15 by default: its processes starve beside any others
SERVING = AT_HOME | FAIR | {"RAY_SERVE_LOG_TO_STDERR": "0"}  # what Serve tells stands in files of its own
QUIET = AT_HOME | {  # Ray's own words on standard error; what it has to say stands in the logs of its session
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def tell(said: Mapping[str, str]) -> None:
    """Put it into the environment, before Ray is imported."""
    for name, value in said.items():
        os.environ.setdefault(name, value)
