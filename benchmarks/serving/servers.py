"""The servers: how each is installed, started as its user would start it, and stopped."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from benchmarks.serving import processes
from service.access import SCOPES
from service.keys import Outcome as Entry

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
PEERS = Path(__file__).parent / "peers"
BASE = ["torch>=2.13,<2.14", "numpy"]
REQUIREMENTS = {
    "fastapi": ["fastapi", "uvicorn[standard]"],
    "litserve": ["litserve==0.2.19"],
    "bentoml": ["bentoml==1.4.40"],
}
START_S = 180.0
KEY = "benchmark"


@dataclass(frozen=True)
class Server:
    """A way to serve an artifact; ``{port}`` in the command stands for the port."""

    name: str
    path: str  # of the route that answers log-likelihoods
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    key: str = ""  # that callers need


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    pid: int
    url: str  # of its route
    base: str  # without the route


def glow(artifact: Path, **settings: object) -> Server:
    """This service, its plans cached; ``settings`` are its environment variables without the prefix."""
    given = {f"GLOW_{name.upper()}": str(value) for name, value in {"cache_dir": CACHE, **settings}.items()}
    command = [sys.executable, "-W", "ignore", "-m", "service", "--models", str(artifact.resolve()), "--port", "{port}"]
    return Server("glow", "/log-likelihood", command, {**given, "PYTHONPATH": str(ROOT)})


def glow_with_keys(models: Path, keys: Path, **settings: object) -> Server:
    """The same, for callers with KEY alone, who may do everything; writes the file of keys."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(str(Entry("benchmark", digest, [*SCOPES], None, None, KEY)))
    return replace(glow(models, api_keys_file=keys, **settings), key=KEY)


def peer(name: str, artifact: Path) -> Server:
    """One of the peers around the same artifact; installs it where that was not done yet."""
    folder = install(name)
    command = {
        "fastapi": [str(folder / "bin/python"), "-W", "ignore", "fastapi_server.py"],
        "litserve": [str(folder / "bin/python"), "-W", "ignore", "litserve_server.py"],
        "bentoml": [str(folder / "bin/bentoml"), "serve", "bentoml_server:Flow", "--port", "{port}"],
    }[name]
    environment = {
        "PEER_MODEL": str(artifact.resolve()),
        "BENTOML_HOST": "127.0.0.1",
        "BENTOML_HOME": str(folder / "home"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    return Server(name, "/predict", command, environment)


def install(name: str) -> Path:
    """The environment of a peer, made on first use; a stamp with its requirements marks it as finished."""
    folder, wanted = CACHE / "peers" / name, [*BASE, *REQUIREMENTS[name]]
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text().split("\n") != wanted:
        print(f"installing {name} in {folder}", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True, stdout=sys.stderr)
        stamp.write_text("\n".join(wanted))
    return folder


@contextmanager
def running(server: Server, body: Path, media_type: str = "application/json") -> Iterator[Running]:
    """Start a server on a free port, wait until it answers a body, and stop all of it in the end."""
    port = free_port()
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GLOW_") and name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [argument.format(port=port) for argument in server.command],
            cwd=PEERS if server.name in REQUIREMENTS else ROOT,
            env={**inherited, "PORT": str(port), **server.environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        base = f"http://127.0.0.1:{port}"
        try:
            if not _answers(process, base + server.path, body.read_bytes(), media_type, server.key):
                log.seek(0)
                text = log.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"{server.name} does not answer; the end of its log:\n{text}")
            yield Running(process.pid, base + server.path, base)
        finally:
            processes.stop(process)


def _answers(process: subprocess.Popen[bytes], url: str, body: bytes, media_type: str, key: str) -> bool:
    """Wait for the first answer of status 200; False where the process ends or takes too long."""
    deadline = time.monotonic() + START_S
    headers = {"content-type": media_type, "x-api-key": key}
    with httpx.Client(trust_env=False, timeout=5, headers=headers) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.post(url, content=body).status_code == 200:
                    return True
            except httpx.TransportError:
                pass
            time.sleep(0.02)
    return False


def log_likelihoods(server: Running, body: Path) -> list[float]:
    """What a server answers to a JSON body."""
    headers = {"content-type": "application/json"}
    answer = httpx.post(server.url, content=body.read_bytes(), headers=headers, trust_env=False).raise_for_status()
    values: list[float] | dict[str, list[float]] = answer.json()
    return values["log_likelihood"] if isinstance(values, dict) else values


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
