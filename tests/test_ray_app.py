"""On Ray Serve: what replicas promise together, and what becomes of requests when they come and go."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.serving.callers import Caller, calling
from common.errors import UsageError
from service.client import GlowClient, GlowError
from service.ray_environment import SERVING
from service.settings import Settings, SettingsError
from tests.conftest import tiny_recipe, tiny_table, train_and_export, with_training
from tests.contract.figures import eventually
from tests.keys import entry, key, secret_of
from tests.test_server import ROOT, free_port
from tests.wire import TABLE

ray = pytest.importorskip("ray", reason="Ray is not installed")
from ray import serve  # noqa: E402 (ray may not be there)
from ray.serve.context import _get_global_client  # noqa: E402 (ray may not be there)

from service.ray_app import APPLICATION, Options, application, build, main, running  # noqa: E402 (ray may not be there)

SECRET, KEY = secret_of("ops"), key("ops")
ROWS = np.array([[0.1, 1000.0, 3], [-1.0, 950.0, 0], [2.0, 1100.0, 9]])
PATIENCE_S = 120.0  # with Ray, which has much to start
PORT = free_port()  # Ray keeps its proxies, and so their port, for as long as it runs


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine for all tests of the file; cores are counted, not taken."""
    os.environ |= SERVING
    ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=10**8)
    yield
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


@pytest.fixture
def settings(models_dir: Path, tmp_path: Path) -> Settings:
    """Of an artifact that may be exchanged, for callers with a key."""
    models, keys = tmp_path / "models", tmp_path / "keys.toml"
    models.mkdir()
    shutil.copy(models_dir / f"{TABLE}.pt", models)
    keys.write_text(entry("ops", ["admin", "infer", "metrics"]))
    return Settings(models=[models], port=PORT, device="cpu", api_keys_file=keys, cache_dir=tmp_path, deadline_s=20)


def on_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs Ray to run."""
    marked: Callable[..., None] = pytest.mark.slow(pytest.mark.usefixtures("cluster")(test))
    return marked


@contextmanager
def load(url: str, num_callers: int = 4) -> Iterator[Counter[str]]:
    """Callers who leave it to GlowClient to ask again: how many answers were right and wrong, and the errors."""
    seen: Counter[str] = Counter()

    def told(client: GlowClient) -> npt.NDArray[np.float64]:
        return client.log_likelihood(ROWS).log_likelihood

    def ask() -> Caller:
        with GlowClient(url, api_key=SECRET, timeout=60) as client:
            while True:
                yield
                try:
                    seen["right" if np.allclose(told(client), expected, atol=1e-3) else "wrong"] += 1
                except GlowError as error:
                    seen[repr(error)] += 1

    with GlowClient(url, api_key=SECRET) as client:
        expected = told(client)
    with calling(*(ask() for _ in range(num_callers))):
        yield seen


def replicas() -> list[tuple[str, int]]:
    """State of each replica, and its process if it has one yet."""
    client: Any = _get_global_client()
    details = client.get_serve_details()
    deployment = details["applications"][APPLICATION]["deployments"][APPLICATION]
    return [(replica["state"], replica.get("pid", 0)) for replica in deployment["replicas"]]


def all_run(there: list[tuple[str, int]], num: int) -> bool:
    """Whether there are so many replicas, and none comes or goes."""
    return [state for state, _ in there] == ["RUNNING"] * num


def test_replicas_are_rays_and_not_workers(settings: Settings) -> None:
    with pytest.raises(SettingsError, match=r"GLOW_WORKERS: replicas are processes of Ray; must be 1, got 2"):
        application(Options(), settings.model_copy(update={"workers": 2}))


def test_who_does_not_say_where_ray_listens_says_who_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"public address: set GLOW_API_KEYS_FILE .* or GLOW_ALLOW_ANONYMOUS"):
        build(Options())
    for name, value in (("GLOW_ALLOW_ANONYMOUS", "true"), ("GLOW_HOST", "127.0.0.1")):
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            build(Options())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--min-replicas", "3", "--max-replicas", "2"], r"max_replicas \(2\) must be at least min_replicas \(3\)"),
        (["--num-cpus", "0"], "--num-cpus: .* greater than 0, got 0"),
        (["--models", "nothing.pt"], "nothing.pt: No such file or directory"),
    ],
)
def test_what_cannot_be_served_is_told_before_ray_starts(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        main(arguments)
    assert not ray.is_initialized()


@on_ray
def test_replicas_reload_together_before_the_answer(settings: Settings, tmp_path: Path) -> None:
    (models,) = settings.models
    with running(Options(min_replicas=2, max_replicas=2), settings) as url, httpx.Client(headers=KEY) as client:
        train_and_export(with_training(tiny_recipe(TABLE), steps=15), tiny_table(), tmp_path / "new.pt")
        (tmp_path / "new.pt").replace(models / f"{TABLE}.pt")
        answer = client.post(f"{url}/admin/reload", timeout=60).json()
        (new,) = {reference.partition("@")[2] for reference in answer["models"]}
        assert answer["workers"] == 2
        for _ in range(20):
            assert client.get(f"{url}/models").json()["models"][0]["version"] == new
        (models / f"{TABLE}.pt").write_bytes(b"broken")
        refused = client.post(f"{url}/admin/reload", timeout=60)
        assert (refused.status_code, refused.json()["code"]) == (409, "reload_refused")


@on_ray
def test_a_replica_that_is_killed_fails_no_call_and_comes_back(settings: Settings) -> None:
    with running(Options(min_replicas=2, max_replicas=2), settings) as url, load(url) as seen:
        time.sleep(1)
        killed = replicas()[0]
        os.kill(killed[1], signal.SIGKILL)
        eventually(replicas, lambda there: killed not in there and all_run(there, 2), PATIENCE_S)
        time.sleep(1)
    assert set(seen) == {"right"}, seen


@on_ray
def test_replicas_come_with_the_load_and_go_without_losing_a_request(settings: Settings) -> None:
    options = Options(max_replicas=2, target_ongoing_requests=1, upscale_delay_s=0, downscale_delay_s=1)
    with running(options, settings) as url:
        with load(url) as seen:
            eventually(replicas, lambda there: all_run(there, 2), PATIENCE_S)
        lost = Counter[str]()
        with GlowClient(url, api_key=SECRET, retries=0) as client:  # some load goes on, and nobody asks again
            limit = time.monotonic() + 90
            while not all_run(replicas(), 1):
                assert time.monotonic() < limit
                try:
                    client.log_likelihood(ROWS)
                except GlowError as error:
                    lost[repr(error)] += 1
                time.sleep(0.05)
    assert set(seen) == {"right"}, seen
    assert not lost


@on_ray
def test_a_replica_that_is_stuck_is_replaced(settings: Settings) -> None:
    changed = settings.model_copy(update={"stall_s": 1.0})
    with running(Options(), changed) as url:
        ((_, stuck),) = replicas()
        os.kill(stuck, signal.SIGSTOP)
        try:
            eventually(replicas, lambda there: all_run(there, 1) and stuck not in dict(there).values(), PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                os.kill(stuck, signal.SIGCONT)
        eventually(lambda: httpx.get(f"{url}/readyz", timeout=5).status_code, lambda status: status == 200, PATIENCE_S)


@on_ray
def test_figures_reach_rays_own(settings: Settings) -> None:
    with running(Options(), settings) as url, GlowClient(url, api_key=SECRET) as client:
        for _ in range(3):
            client.log_likelihood(ROWS)
        (port,) = {node["MetricsExportPort"] for node in ray.nodes()}
        text = eventually(
            lambda: httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text,
            lambda text: bool(re.search(r"^ray_glow_rows_total\{.*\} 9", text, re.MULTILINE)),
            PATIENCE_S,
        )
        for line in (
            rf'ray_glow_requests_total\{{.*model="{TABLE}".*status="200".*\}} 3',
            r'ray_glow_request_duration_seconds_bucket\{.*le="\+Inf".*\} 3',
            r"ray_glow_ready\{.*\} 1",
            rf'ray_glow_model_info\{{.*model="{TABLE}".*\}} 1',
            rf'ray_glow_drift_rows\{{.*model="{TABLE}".*\}} 9',
        ):
            assert re.search(f"^{line}", text, re.MULTILINE), line


@on_ray
def test_an_answer_has_one_id_that_of_the_caller(settings: Settings) -> None:
    with running(Options(), settings) as url:
        answer = httpx.get(f"{url}/nothing", headers={**KEY, "x-request-id": "its-own"})
        assert answer.headers.get_list("x-request-id") == ["its-own"]
        assert answer.json()["request_id"] == "its-own"


@pytest.mark.slow
def test_the_command_serves_until_a_signal(models_dir: Path, tmp_path: Path) -> None:
    port = free_port()
    models = str(models_dir / f"{TABLE}.pt")
    command = [sys.executable, "-m", "service.ray_app", "--models", models, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOW_CACHE_DIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    try:
        while not (line := process.stderr.readline()).startswith("Glow service on Ray"):
            assert line
        with GlowClient(f"http://127.0.0.1:{port}") as client:
            assert client.log_likelihood(ROWS).log_likelihood.shape == (3,)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
