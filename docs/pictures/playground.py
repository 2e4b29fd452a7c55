"""The playground as people see it: a real browser in front of a real service. Needs Chromium and playwright."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

IMAGE = "playground.png"
DATA = ()
START_S = 300  # that a service may take


@contextmanager
def _service() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "service", "--port", str(port)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/readyz").is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def draw(path: Path, data_dir: Path) -> None:
    """A shirt that the model has not seen, with its score, among samples."""
    with _service() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1120, "height": 1040}, color_scheme="light")
        page.goto(url)
        page.get_by_role("button", name="Example 2").click()
        page.get_by_text("no pixel is off by more than").wait_for()
        page.get_by_role("list", name="Interpolation steps").get_by_role("button").first.wait_for()
        page.evaluate("scrollTo(0, 0)")
        page.mouse.move(0, 0)
        page.screenshot(path=path)
        browser.close()
