"""Lose a host of a Ray cluster under load, and count what callers notice: ``python -m benchmarks.serving.node_loss``.

Two hosts in network namespaces of this machine, a replica on each, and callers of GlowClient on a third, who ask the
first. Then the second one's processes are killed at once, or its cable is cut, and it never comes back. Needs root, for
the namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.arguments import at_least, some_of
from benchmarks.serving.bodies import table_rows
from benchmarks.serving.callers import Caller, calling
from benchmarks.serving.servers import CACHE, ROOT, START_S
from common.cli import FAILED, Parser, run_command
from common.errors import UsageError
from service.client import GlowClient, GlowError
from service.ray_environment import SERVING
from service.score.targets import EngineTarget
from service.settings import EMBEDDED_ARTIFACTS

ARTIFACT = EMBEDDED_ARTIFACTS / "breast-cancer.pt"
HOSTS, OUTSIDE = ("glow-loss-1", "glow-loss-2"), "glow-loss"
CALLERS_IP, SERVICE_IP = "10.213.7.1", "10.213.7.2"
HOST_IPS = "10.213.8.1", "10.213.8.2"
PORT, GCS_PORT = 8000, 6379
LOSSES = ("killed", "cut off")
INGRESSES = ("python", "haproxy")
CALLERS, ROWS = 4, 8  # of each call
TOLERANCE = 1e-3, 1e-6  # nats, and relative: that of the service
SLOW_S = 1.0  # a call of longer is one that the loss was noticed by
RECOVERY_S = 30.0  # in which no call may be slow any more
BEFORE_S, SETTLED_S = 5.0, 3.0  # of load before the loss, and of rest before that
# A host that does not answer is given up within some 18 s; by default it takes a minute.
HEAD_SETTINGS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "5000",
}


@dataclass
class Seen:
    """What callers saw, who score rows over and over and compare what they get with what is right."""

    calls: list[tuple[float, float]] = field(default_factory=list)  # when each began and ended
    failures: list[str] = field(default_factory=list)
    wrong: int = 0


@contextmanager
def load(url: str, rows: np.ndarray, expected: np.ndarray) -> Iterator[Seen]:
    """Callers until the end, and what they saw."""
    seen = Seen()

    def ask(seed: int) -> Caller:
        random = np.random.default_rng(seed)
        with GlowClient(url, timeout=60) as client:
            while True:
                yield
                chosen = random.integers(0, len(rows), ROWS)
                began = time.monotonic()
                try:
                    told = client.log_likelihood(rows[chosen]).log_likelihood
                except GlowError as error:
                    seen.failures.append(f"{type(error).__name__}: {error}")
                    continue
                seen.calls.append((began, time.monotonic()))
                absolute, relative = TOLERANCE
                seen.wrong += int(not np.allclose(told, expected[chosen], rtol=relative, atol=absolute))

    with calling(*map(ask, range(CALLERS))):
        yield seen


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them, and one from the first to this machine."""
    remove()  # what a run that was killed has left
    try:
        for host in HOSTS:
            run("ip", "netns", "add", host)
            run("ip", "-n", host, "link", "set", "lo", "up")
        run("ip", "link", "add", OUTSIDE, "type", "veth", "peer", "name", "outside", "netns", HOSTS[0])
        run("ip", "-n", HOSTS[0], "link", "add", "inside", "type", "veth", "peer", "name", "inside", "netns", HOSTS[1])
        run("ip", "address", "add", f"{CALLERS_IP}/30", "dev", OUTSIDE)
        run("ip", "link", "set", OUTSIDE, "up")
        for host, device, address in (
            (HOSTS[0], "outside", SERVICE_IP),
            (HOSTS[0], "inside", HOST_IPS[0]),
            (HOSTS[1], "inside", HOST_IPS[1]),
        ):
            run("ip", "-n", host, "address", "add", f"{address}/30", "dev", device)
            run("ip", "-n", host, "link", "set", device, "up")
        yield
    finally:
        remove()


def remove() -> None:
    """Take hosts and their cables away, as far as they are there."""
    for host in HOSTS:
        kill_all(host)
        subprocess.run(["ip", "netns", "delete", host], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", OUTSIDE], capture_output=True, check=False)


def kill_all(host: str) -> None:
    """End all processes of a host at once."""
    listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False).stdout
    for pid in listed.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def service(ingress: str, folder: Path) -> Iterator[str]:
    """The service on a cluster of both hosts, a replica on each; its address, on the first."""
    address, log = f"{HOST_IPS[0]}:{GCS_PORT}", folder / "log"
    environment = {
        **os.environ,
        **HEAD_SETTINGS,
        "PYTHONPATH": str(ROOT),
        **SERVING,
        "RAY_AUTH_MODE": "disabled",  # in a network that nobody else sees
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # or the host that is lost would have had nothing to do
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(ingress == "haproxy")),
        # HAProxy waits for a host that is gone as for one that computes: a little longer than the service's deadline.
        "GLOW_DEADLINE_S": "15",
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "20",
        "GLOW_CACHE_DIR": str(CACHE),
        "GLOW_ALLOW_ANONYMOUS": "true",
    }
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--num-cpus", "1", "--object-store-memory", "100000000", "--block"]
    with ExitStack() as stack, log.open("ab") as out:
        processes: list[subprocess.Popen[bytes]] = []

        def start(host: str, *command: str) -> None:
            whole = ["ip", "netns", "exec", host, *command]
            process = subprocess.Popen(whole, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
            stack.enter_context(process)  # which is waited for
            stack.callback(kill_all, host)  # before that
            processes.append(process)

        head = ["--head", "--port", str(GCS_PORT), "--temp-dir", str(folder), "--include-dashboard", "false"]
        for host, ip, role in zip(HOSTS, HOST_IPS, (head, ["--address", address]), strict=True):
            start(host, ray, "start", *role, "--node-ip-address", ip, *common)
            time.sleep(5)  # a node gives up where there is no head
        served = [sys.executable, "-W", "ignore", "-m", "service.ray_app", "--models", str(ARTIFACT)]
        options = ["--host", "0.0.0.0", "--min-replicas", "2", "--max-replicas", "2"]  # noqa: S104 (in a network of its own)
        start(HOSTS[0], *served, *options, "--address", address)
        limit = time.monotonic() + START_S
        while "Glow service on Ray" not in log.read_text():  # which it says when all replicas run
            if any(process.poll() is not None for process in processes) or time.monotonic() > limit:
                raise RuntimeError(f"the service has not started: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        time.sleep(SETTLED_S)
        yield f"http://{SERVICE_IP}:{PORT}"


def lose(how: str, host: str) -> None:
    """Take a host away, as if it were switched off or as if nobody reached it any more."""
    if how == "killed":
        kill_all(host)
    else:
        run("ip", "-n", host, "link", "set", "inside", "down")


def line(how: str, ingress: str, seen: Seen, lost_at: float) -> str:
    """A row of the table."""
    before = [end - begin for begin, end in seen.calls if end < lost_at]
    after = [(begin, end) for begin, end in seen.calls if end >= lost_at]
    slow = [end for begin, end in after if end - begin > SLOW_S]
    recovered = max(slow, default=lost_at) - lost_at
    longest = max(end - begin for begin, end in after)
    settled = [end - begin for begin, end in after if begin > lost_at + recovered]
    p50s = [1000 * float(np.median(times)) for times in (before, settled)]
    figures = f"{len(seen.calls)} | {seen.wrong} | {len(seen.failures)} | {longest:.1f} | {recovered:.1f}"
    return f"| {how} | {ingress} | {figures} | {p50s[0]:.1f} | {p50s[1]:.1f} |"


def main(argv: list[str]) -> None:
    """Print the table; ends with exit code 1 where an answer was wrong, a call failed, or recovery took too long."""
    parser = Parser(prog="python -m benchmarks.serving.node_loss", description=__doc__)
    parser.add_argument("--losses", type=some_of(LOSSES), default=LOSSES, metavar="HOW,...")
    parser.add_argument("--ingresses", type=some_of(INGRESSES), default=INGRESSES, metavar="NAME,...")
    parser.add_argument("--seconds", type=at_least(float, 20), default=45.0, help="of load after the loss")
    args = parser.parse_args(argv)
    if os.getuid() or shutil.which("ip") is None:
        raise UsageError("network namespaces need root and the command ip")
    rows = table_rows(ARTIFACT, 256)
    target = EngineTarget(ARTIFACT, CACHE)
    target.prepare()
    expected = target.score(rows)["log_likelihood"]
    fell_short = False
    print("| host | ingress | calls | wrong | failed | longest call s | slow until s | p50 ms before | p50 ms after |")
    print("|---|---|---|---|---|---|---|---|---|")
    for ingress in args.ingresses:
        for how in args.losses:
            with tempfile.TemporaryDirectory() as folder, hosts():
                with service(ingress, Path(folder)) as url, load(url, rows, expected) as seen:
                    time.sleep(BEFORE_S)
                    lost_at = time.monotonic()
                    lose(how, HOSTS[1])
                    time.sleep(args.seconds)
                print(line(how, ingress, seen, lost_at), flush=True)
                for failure in seen.failures[:3]:
                    print("  ", failure)
                late = any(begin > lost_at + RECOVERY_S and end - begin > SLOW_S for begin, end in seen.calls)
                fell_short |= bool(seen.wrong or seen.failures or late)
    if fell_short:
        raise SystemExit(FAILED)


if __name__ == "__main__":
    run_command(main)
