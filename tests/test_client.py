"""The Python clients as they are imported."""

import inspect
import subprocess
import sys

from service.client import AsyncGlowClient, GlowClient


async def test_both_clients_have_the_same_documented_methods() -> None:
    for name in vars(AsyncGlowClient).keys() - {"aclose"}:
        if name.startswith("_"):
            continue
        method, twin = getattr(GlowClient, name), getattr(AsyncGlowClient, name)
        assert inspect.signature(method) == inspect.signature(twin)
        assert method.__doc__ == twin.__doc__ != None  # noqa: E711 (a chain)
        assert "Steps" not in str(inspect.signature(method))


BLOCKED = """
import sys

class Blocked:
    known = {*sys.stdlib_module_names, "common", "service", "numpy", "httpx", "httpcore", "h11", "anyio", "idna",
             "certifi", "sniffio", "typing_extensions"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.known:
            raise ModuleNotFoundError(f"{name} is not in the base install", name=name)

sys.meta_path.insert(0, Blocked())
from service.client import AsyncGlowClient, GlowClient, ConnectionFailed
from service.detector_client import RemoteDetector
try:
    GlowClient("http://127.0.0.1:9", retries=0).log_likelihood([[1.0]], model="m")
except ConnectionFailed:
    print("as far as the network")
"""


def test_the_base_install_is_enough() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "as far as the network", done.stderr
