"""The images as users run them: ``make docker-test``, with a Docker engine on this machine.

Builds the images, starts docker-compose.yml under a name of its own, and leaves nothing behind but the build cache.
"""

import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.ipc
import pyarrow.parquet
import pytest

from service.settings import EMBEDDED_ARTIFACTS
from tests.pages import ROOT, blocks, reader
from tests.test_server import free_port

SBOM = "/opt/venv/share/glow-service/sbom.cdx.json"
MAX_ADDED_BYTES = 800e6  # of the layers above the base image, on the CPU
TABLE = "/opt/venv/lib/python3.11/site-packages/service/artifacts/breast-cancer.pt"
TRAINER = 12345  # a user of no machine, where the test runs as root
RECIPE = """
name = "tiny"
[data]
train = "rows.csv"
validation = 50
calibration = 100
[model]
num_steps = 1
width = 8
[training]
steps = 20
"""


def run(*command: str, stdin: bytes | None = None, environment: dict[str, str] | None = None) -> str:
    """Standard output of a command that succeeds."""
    variables = {**os.environ, **(environment or {})}
    result = subprocess.run(command, cwd=ROOT, env=variables, input=stdin, capture_output=True, timeout=3600)
    assert result.returncode == 0, f"{' '.join(command)}: {(result.stdout + result.stderr).decode()[-3000:]}"
    return result.stdout.decode()


def answers(*command: str) -> bool:
    return shutil.which(command[0]) is not None and not subprocess.run(command, capture_output=True).returncode


@dataclass
class Stack:
    """The project's docker-compose.yml, as one project of the engine."""

    command: tuple[str, ...]
    environment: dict[str, str]
    folder: Path

    def compose(self, *arguments: str, **environment: str) -> str:
        return run(*self.command, *arguments, environment={**self.environment, **environment})

    @property
    def image(self) -> str:
        return self.environment["IMAGE"]

    @property
    def url(self) -> str:
        return f"http://localhost:{self.environment['PORT']}"

    @property
    def container(self) -> str:
        return self.compose("ps", "-q", "cpu").strip()

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("docker", "inspect", self.container))[0]
        return found

    def python(self, code: str) -> str:
        """Standard output of Python in the container."""
        return run("docker", "exec", "-i", self.container, "python", "-", stdin=code.encode())

    def wait_until_healthy(self) -> None:
        for _ in range(600):
            if self.inspect()["State"].get("Health", {}).get("Status") == "healthy":
                return
            time.sleep(0.2)
        raise AssertionError(f"not healthy: {self.inspect()['State']} {self.compose('logs', 'cpu')[-3000:]}")


def compose_command(folder: Path) -> tuple[str, ...]:
    """Compose of the engine, or an old docker-compose, which does not know the part that includes monitoring."""
    if answers("docker", "compose", "version"):
        return ("docker", "compose")
    known = re.sub(r"^include:\n(?:[ #-].*\n)*", "", (ROOT / "docker-compose.yml").read_text(), flags=re.MULTILINE)
    (folder / "docker-compose.yml").write_text(known)
    return "docker-compose", "--project-directory", str(ROOT), "--file", str(folder / "docker-compose.yml")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if not answers("docker", "info"):
        pytest.exit("no Docker engine answers to 'docker info'", returncode=2)
    user = os.getuid() or TRAINER
    with tempfile.TemporaryDirectory(prefix="glow-docker-test-") as name:
        folders = {part.upper(): Path(name, part) for part in ("data", "runs", "models")}
        for folder in folders.values():
            folder.mkdir()
            os.chown(folder, user, -1)
        environment = {
            "COMPOSE_PROJECT_NAME": f"glow-docker-test-{os.getpid()}",
            "IMAGE": f"glow-docker-test-{os.getpid()}",
            "PORT": str(free_port()),
            "GLOW_THREADS": "1",  # the machine may be busy with other things
            "USER_ID": str(user),
            "GROUP_ID": str(user),
            **{part: str(folder) for part, folder in folders.items()},
        }
        stack = Stack(compose_command(Path(name)), environment, Path(name))
        try:
            began = time.monotonic()
            stack.compose("--profile", "train", "build", "cpu", "train")
            print(f"\nbuilt in {time.monotonic() - began:.0f} s")
            began = time.monotonic()
            stack.compose("up", "-d", "cpu")
            wait_for(f"{stack.url}/readyz", 200)
            print(f"ready {time.monotonic() - began:.1f} s after compose up")
            yield stack
        finally:
            stack.compose("--profile", "train", "down", "--volumes", "--remove-orphans", "--timeout", "10")
            for tag in ("latest", "train"):
                subprocess.run(["docker", "image", "rm", "--force", f"{stack.image}:{tag}"], capture_output=True)


def status(url: str) -> int | None:
    """Status of an answer, None where there is none."""
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.TransportError:
        return None


def wait_for(url: str, expected: int, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while (last := status(url)) != expected:
        assert time.monotonic() < until, f"{url} said {last} and never {expected} in {seconds} s"
        time.sleep(0.1)


def size(image: str) -> int:
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image))


def test_the_cpu_image_adds_at_most_800_mb_to_its_base(stack: Stack) -> None:
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    if not answers("docker", "image", "inspect", base):
        run("docker", "pull", base)
    added = size(stack.image) - size(base)
    of_trainer = size(f"{stack.image}:train") - size(base)
    print(f"layers above {base}: {added / 1e6:.0f} MB; of the trainer: {of_trainer / 1e6:.0f} MB")
    assert added <= MAX_ADDED_BYTES


def test_it_runs_unprivileged_on_a_root_that_cannot_be_written(stack: Stack) -> None:
    stack.wait_until_healthy()
    host = stack.inspect()["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["Memory"] == 4 * 2**30
    assert host["PidsLimit"] == 512
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    ports = [binding["HostIp"] for bindings in host["PortBindings"].values() for binding in bindings]
    assert ports == ["127.0.0.1"]
    found = json.loads(
        stack.python(
            "import errno, json, os, pathlib\n"
            "def outcome(path):\n"
            "    try:\n"
            "        pathlib.Path(path).write_text('x')\n"
            "    except OSError as error:\n"
            "        return errno.errorcode[error.errno]\n"
            "    return 'written'\n"
            "status = dict(line.split(':\\t', 1) for line in open('/proc/1/status').read().splitlines())\n"
            "places = {place: outcome(f'{place}/x') for place in ('/opt/venv', '/models', '/tmp', '/cache')}\n"
            "print(json.dumps({'uid': os.getuid(), 'gid': os.getgid(), 'places': places, **status}))\n"
        )
    )
    assert (found["uid"], found["gid"]) == (10001, 10001)
    assert found["places"] == {"/opt/venv": "EROFS", "/models": "EROFS", "/tmp": "written", "/cache": "written"}
    assert [int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert found["NoNewPrivs"] == "1"


def test_it_holds_the_service_alone_and_a_list_of_all_that_it_holds(stack: Stack) -> None:
    code = (
        "import json; from importlib import metadata, util\n"
        "installed = {found.name.lower().replace('_', '-'): found.version for found in metadata.distributions()}\n"
        "others = [name for name in ('model', 'pip', 'setuptools', 'sympy', 'pytest') if util.find_spec(name)]\n"
        "print(json.dumps([installed, others]))\n"
    )
    installed, others = json.loads(stack.python(code))
    sbom = json.loads(run("docker", "run", "--rm", "--entrypoint", "cat", stack.image, SBOM))
    assert others == []
    assert sbom["bomFormat"] == "CycloneDX"
    components = [*sbom["components"], sbom["metadata"]["component"]]
    assert {part["name"].lower().replace("_", "-"): part["version"] for part in components} == installed
    assert "torch" in installed
    assert [part["name"] for part in components if not part.get("licenses")] == []


def test_the_examples_of_the_readme_work(stack: Stack, tmp_path: Path) -> None:
    with reader(tmp_path, lambda: stack.url) as one:
        for block in blocks(ROOT / "README.md"):
            one.read(block)


def test_arrow_drift_documentation_bulk_scoring_and_calibration_work_in_it(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        answer = client.get("/sample", params={"model": "breast-cancer", "n": 300, "format": "arrow"})
        table = pyarrow.ipc.open_stream(answer.content).read_all()
        answer = client.post(
            "/log-likelihood",
            params={"model": "breast-cancer", "scores": "all"},
            content=answer.content,
            headers={"content-type": "application/vnd.apache.arrow.stream"},
        )
        assert answer.status_code == 200, answer.text
        for path in ("/models/breast-cancer/drift", "/docs", "/openapi.json", "/metrics"):
            assert client.get(path).status_code == 200
    names = [column["name"] for column in httpx.get(f"{stack.url}/models/breast-cancer").json()["columns"]]
    rows = io.BytesIO()
    pyarrow.parquet.write_table(table.select(names), rows)
    inside = ("docker", "exec", "-i", stack.container)
    run(*inside, "sh", "-c", "cat > /tmp/rows.parquet", stdin=rows.getvalue())
    run(*inside, "glow-score", TABLE, "/tmp/rows.parquet", "/tmp/scores.parquet", "--fdr", "0.1")
    run(*inside, "python", "-m", "service.calibrate", TABLE, "/tmp/rows.parquet", "/tmp/mine.pt")
    run(*inside, "sh", "-c", "test -s /tmp/scores.parquet && test -s /tmp/mine.pt && rm /tmp/*.p*")


def test_it_comes_back_when_its_process_is_killed(stack: Stack) -> None:
    before = stack.inspect()
    kill = f"import os; os.kill({before['State']['Pid']}, 9)"  # as the same user: docker kill would not restart it
    run("docker", "run", "--rm", "--pid=host", "--entrypoint", "python", stack.image, "-c", kill)
    began = time.monotonic()
    while stack.inspect()["RestartCount"] == before["RestartCount"]:
        assert time.monotonic() < began + 60, "not started again"
        time.sleep(0.1)
    wait_for(f"{stack.url}/readyz", 200)
    print(f"ready {time.monotonic() - began:.1f} s after a kill")
    stack.wait_until_healthy()


def test_a_stop_under_load_loses_no_request(stack: Stack) -> None:
    """As behind a balancer that acts 2 s after the service says that it is not ready."""
    container = stack.container
    networks = stack.inspect()["NetworkSettings"]["Networks"]
    (address,) = [network["IPAddress"] for network in networks.values()]
    url = f"http://{address}:8000"  # itself: the engine's own proxy takes connections for a service that is gone
    moved, not_ready = False, float("inf")

    def send(path: str) -> list[tuple[float, float, str]]:
        """Begin, end and outcome of requests, each on a connection of its own."""
        outcomes = []
        while not moved:
            began = time.monotonic()
            try:
                outcome = str(httpx.get(url + path, timeout=60).status_code)
            except httpx.TransportError as error:
                outcome = repr(error)
            outcomes.append((began, time.monotonic(), outcome))
        return outcomes

    with ThreadPoolExecutor(9) as pool:
        quick = [pool.submit(send, "/sample?model=breast-cancer&n=1&seed=1") for _ in range(6)]
        slow = [pool.submit(send, "/sample?n=512&seed=1&format=npy") for _ in range(2)]
        time.sleep(2)
        stopped = pool.submit(stack.compose, "stop", "cpu")
        try:
            while (ready := status(f"{url}/readyz")) == 200:
                time.sleep(0.05)
            not_ready = time.monotonic()
            assert ready == 503, "the service ended before /readyz said 503: it does not drain"
            time.sleep(2)
            moved = True
            time.sleep(2)  # and one that is still at work when connections are no longer taken
            assert httpx.get(f"{url}/sample?n=4096&seed=1&format=npy", timeout=60).status_code == 200
            assert time.monotonic() > not_ready + 5
        finally:
            moved = True
        outcomes = [outcome for future in (*quick, *slow) for outcome in future.result()]
        stopped.result()
    lost = [f"{outcome} after {end - began:.1f} s" for began, end, outcome in outcomes if outcome != "200"]
    assert lost == []
    late = sum(began > not_ready for began, _, _ in outcomes)
    last_s = max(end for _, end, _ in outcomes) - not_ready
    print(f"{len(outcomes)} requests, {late} begun while not ready, the last answered {last_s:.1f} s after")
    assert late > 0
    exit_code = run("docker", "inspect", "--format", "{{.State.ExitCode}}", container).strip()
    assert exit_code in ("0", "143")


def test_the_trainer_leaves_an_artifact_that_a_reload_serves(stack: Stack) -> None:
    data, models = stack.folder / "data", stack.folder / "models"
    numbers = "".join(f"{i % 17},{(i * 7919) % 1000 / 100},{(i * 104729) % 997 / 10}\n" for i in range(400))
    (data / "rows.csv").write_text("a,b,c\n" + numbers)
    (data / "tiny.toml").write_text(RECIPE)
    shutil.copy(EMBEDDED_ARTIFACTS / "breast-cancer.pt", models)
    stack.compose("up", "-d", "cpu", GLOW_MODELS="/models")
    wait_for(f"{stack.url}/readyz", 200)
    began = time.monotonic()
    stack.compose("run", "--rm", "train", "tiny.toml")
    print(f"trained and exported in {time.monotonic() - began:.1f} s")
    first = (models / "tiny.pt").stat()
    assert first.st_uid == int(stack.environment["USER_ID"])
    stack.compose("run", "--rm", "train", "tiny.toml", "--set=training.steps=30")  # goes on where it was
    assert (models / "tiny.pt").stat().st_mtime > first.st_mtime
    assert "20" in (stack.folder / "runs" / "tiny" / "report.md").read_text()
    stack.compose("kill", "-s", "SIGHUP", "cpu")
    wait_for(f"{stack.url}/models/tiny", 200, seconds=30)
