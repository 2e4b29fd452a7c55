"""What the loss of a host costs a training: ``python -m benchmarks.hosts`` (Linux with ip netns, as root).

Two network namespaces that share a folder stand for two hosts. torchrun trains on both; then all processes of the
second are killed. With ``--nnodes 1:2`` the first goes on alone, with ``--nnodes 2`` the same line is started again on
the second. Prints the step of the newest checkpoint, the step that training went on from, and the seconds until then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.cli import FAILED, Parser, run_command
from common.errors import UsageError
from model.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
HOSTS = {"glow-first": "10.211.77.1", "glow-second": "10.211.77.2"}
FIRST, SECOND = HOSTS
RECIPE = """
name = "hosts"
[data]
train = "rows.npy"
validation = 100
calibration = 100
[training]
steps = 1000000
evaluate_every = 1000
checkpoint_every = 50
"""
# How soon torchrun takes a silent host for dead, and how long it waits for more than the fewest.
RENDEZVOUS = "keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=5"
LIMIT_S = 180


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Make both namespaces, joined by a cable."""
    try:
        for name in HOSTS:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", FIRST, "type", "veth", "peer", "name", "cable", "netns", SECOND)
        for name, address in HOSTS.items():
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "cable", "up")
        yield
    finally:
        for name in HOSTS:
            kill(name)
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def kill(host: str) -> None:
    """End all processes of a host without a word."""
    for pid in map(int, subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(host: str, nodes: str, folder: Path) -> None:
    """Start torchrun on a host; what it tells goes to a file of the host's name."""
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes", nodes, "--max-restarts", "3"]
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS[FIRST]}:29400", "--rdzv-id", "hosts"]
    keeps_store = int(host == FIRST)  # which a namespace cannot tell by its name
    here = [
        "--rdzv-conf",
        f"{RENDEZVOUS},is_host={keeps_store}",
        "--local-addr",
        HOSTS[host],
        "-m",
        "model.train",
        "hosts.toml",
    ]
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "cable",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # torch 2.13 otherwise loses its store with the host of rank 0
    }
    with (folder / host).open("a") as told:
        subprocess.Popen(
            ["ip", "netns", "exec", host, *torchrun, *where, *here],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=told,
            stderr=told,
        )


def wait(folder: Path, done: str, times: int = 1) -> float:
    """Wait until the hosts have told something so often; returns the seconds. Raises UsageError where they do not."""
    started = time.monotonic()
    while time.monotonic() - started < LIMIT_S:
        told = "".join((folder / host).read_text() for host in HOSTS)
        if told.count(done) >= times:
            return time.monotonic() - started
        time.sleep(0.05)
    raise UsageError(f"no {done!r} within {LIMIT_S} s; the hosts told: {told}")


def lose_a_host(nodes: str) -> tuple[int, int, float]:
    """Train, kill the second host; the step of the newest checkpoint, that gone on from, and the seconds until then."""
    with tempfile.TemporaryDirectory() as name, network():
        folder = Path(name)
        np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(4000, 8)))
        (folder / "hosts.toml").write_text(RECIPE)
        for host in HOSTS:
            start(host, nodes, folder)
        wait(folder, "trained 1000 of")
        time.sleep(np.random.default_rng().random())
        reached = load_checkpoint(folder / "runs" / "hosts" / "last.pt").step
        kill(SECOND)
        if nodes == "2":
            start(SECOND, nodes, folder)
        seconds = wait(folder, "going on from step")
        told = "".join((folder / host).read_text() for host in HOSTS)
        from_step = int(told.partition("going on from step ")[2].split()[0])
        wait(folder, f"trained {1000 * (from_step // 1000 + 1)} of")  # it does go on
        return reached, from_step, seconds


def main(argv: list[str]) -> None:
    """Print a table; end with 1 where training lost more than a checkpoint interval."""
    Parser("python -m benchmarks.hosts", __doc__).parse_args(argv)
    if os.getuid():
        raise UsageError("network namespaces need root")
    lost = False
    print("| --nnodes | newest checkpoint | gone on from step | seconds until then |\n|---|---|---|---|")
    for nodes in ("1:2", "2"):
        reached, from_step, seconds = lose_a_host(nodes)
        lost |= from_step < reached
        print(f"| {nodes} | {reached} | {from_step} | {seconds:.1f} |", flush=True)
    if lost:
        raise SystemExit(FAILED)


if __name__ == "__main__":
    run_command(main)
