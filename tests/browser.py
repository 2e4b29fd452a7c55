"""A real browser for tests of the playground: headless Chromium, and what they look at in a page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: object) -> Iterator[Page]:
    """The page at an address. It must ask nobody else, and not complain to the console of what no test expects."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    origin = "/".join(url.split("/")[:3])
    page.route(
        lambda address: not address.startswith((origin, "data:", "blob:")), lambda route: foreign(route, complaints)
    )
    page.goto(url)
    yield page
    context.close()
    defects = [text for text in complaints if "Failed to load resource" not in text]  # which refusals are, too
    assert not defects, defects


def foreign(route: Route, complaints: list[str]) -> None:
    complaints.append(f"asks {route.request.url}")
    route.abort()


def canvas(page: Page, name: str) -> npt.NDArray[np.uint8]:
    """Pixels of the canvas with this accessible name: (H, W, 3)."""
    values = page.get_by_role("img", name=name).evaluate(
        "c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    return np.array(values[2:], np.uint8).reshape(*values[:2], 4)[..., :3]


def drop(page: Page, target: Locator, name: str, content: bytes) -> None:
    """Drop a file on an element."""
    files = "([name, bytes]) => { const t = new DataTransfer(); t.items.add(new File([Uint8Array.from(bytes)], name)); "
    transfer = page.evaluate_handle(f"{files} return t; }}", [name, list(content)])
    target.dispatch_event("drop", {"dataTransfer": transfer})


def figure(page: Page, term: str) -> str:
    """The text beside a term of the list of figures that is shown."""
    definition = page.locator("dt:visible", has_text=term).locator("xpath=following-sibling::dd")
    return definition.inner_text()
