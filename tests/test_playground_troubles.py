"""The playground in trouble, and as someone finds it who knows its labels alone."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser import browser as browser
from tests.browser import opened
from tests.test_playground import url as url
from tests.test_playground import wait_for_result


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, f"{url}/?model=tiny-mixed") as page:
        wait_for_result(page)
        yield page


LABELS = ["Model", "Temperature", "Seed", "Number"]
OF_IMAGES = ["Scored image", "Brush size", "Brush brightness", "Choose an image file", "From", "To", "Position", "Map"]
OF_TABLES = ["color", "size", "count", "Choose a CSV file", "Flag by", "Level", "Sampled rows"]


@pytest.mark.parametrize(("model", "labels"), [("tiny-images", OF_IMAGES), ("tiny-mixed", OF_TABLES)])
def test_a_label_finds_one_control(browser: Browser, url: str, model: str, labels: list[str]) -> None:
    with opened(browser, f"{url}/?model={model}") as page:
        wait_for_result(page)
        expect(page.get_by_label("Sampled rows" if model == "tiny-mixed" else "Image 3")).to_be_visible()
        assert {label: page.get_by_label(label).count() for label in LABELS + labels} == dict.fromkeys(
            LABELS + labels, 1
        )
        for name in ("Sample", "New seed"):
            expect(page.get_by_role("button", name=name)).to_have_count(1)
        expect(page.get_by_role("link", name="API")).to_have_count(1)
        expect(page.get_by_role("region", name="Score a").first.get_by_role("status")).to_have_count(1)


def test_a_part_that_waits_says_so(page: Page) -> None:
    held: list[Route] = []
    page.route("**/sample", lambda route: held.append(route))
    page.get_by_role("button", name="Sample", exact=True).click()
    sampled = page.get_by_role("region", name="Samples").locator("[aria-busy]")
    expect(sampled).to_have_attribute("aria-busy", "true")
    held[0].continue_()
    expect(sampled).to_have_attribute("aria-busy", "false")


def test_what_is_said_of_a_wait_goes_when_nobody_waits_any_more(page: Page) -> None:
    busy = {"status": 429, "headers": {"retry-after": "30"}, "json": {"error": "full"}}
    page.route("**/log-likelihood", lambda route: route.fulfill(**busy))
    page.get_by_label("count").fill("3")
    expect(page.get_by_role("alert")).to_contain_text("Asking again in 30 s")
    page.unroute_all()
    page.get_by_label("count").fill("4")
    expect(page.get_by_role("alert")).to_be_empty()
    wait_for_result(page)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": 502, "body": "<html>"}, "The service answers 502 Bad Gateway"),
        ({"status": 200, "body": "<html>"}, "What answers is not the service"),
        (
            {"status": 504, "json": {"error": "late", "code": "deadline", "request_id": "7"}},
            "late (deadline, request 7)",
        ),
    ],
)
def test_what_failed_can_be_tried_again_and_nothing_is_lost(page: Page, answer: dict[str, object], told: str) -> None:
    page.route("**/log-likelihood", lambda route: route.fulfill(**answer))
    page.get_by_label("count").fill("3")
    expect(page.get_by_role("alert")).to_contain_text(told)
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_label("count")).to_have_value("3")


def test_an_error_of_one_model_is_not_said_of_the_next(page: Page) -> None:
    page.get_by_label("Choose a CSV file").set_input_files(
        {"name": "a.csv", "mimeType": "text/csv", "buffer": b"a\n1\n"}
    )
    expect(page.get_by_role("alert")).to_contain_text("columns are missing")
    page.get_by_label("Model").select_option("tiny-images")
    expect(page.get_by_role("heading", name="Score an image")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()


def test_samples_of_one_model_are_not_shown_as_those_of_the_next(page: Page) -> None:
    held: list[Route] = []
    page.route("**/sample", lambda route: held.append(route) if not held else route.continue_())
    page.get_by_role("button", name="Sample", exact=True).click()
    page.get_by_label("Model").select_option("tiny-images")
    wait_for_result(page)
    expect(page.get_by_role("list", name="Samples").get_by_role("button")).to_have_count(16)


def test_an_address_of_no_model_says_so_and_one_of_a_version_finds_it(browser: Browser, url: str) -> None:
    with opened(browser, f"{url}/?model=gone") as page:
        expect(page.get_by_role("alert")).to_have_text("This service has no model gone; below is tiny-images.")
        version = page.get_by_text(re.compile("^[0-9a-f]{12}$")).inner_text()
        page.goto(f"{url}/?model=tiny-images@{version}")
        wait_for_result(page)
        expect(page.get_by_role("alert")).to_be_empty()
        expect(page.get_by_label("Model")).to_have_value("tiny-images")


def test_on_a_phone_the_verdict_is_in_view_of_what_is_typed(browser: Browser, url: str) -> None:
    with opened(browser, f"{url}/?model=tiny-mixed", viewport={"width": 320, "height": 480}) as page:
        wait_for_result(page)
        page.get_by_label("copy").fill("0.5")
        expect(page.get_by_role("status").filter(has_text="of normal")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_page_of_the_routes_shows_and_asks_them_and_runs_no_other_script(browser: Browser, url: str) -> None:
    with opened(browser, f"{url}/docs") as page:
        route = page.locator("#operations-default-get_livez, [id*='livez']").first
        expect(route).to_be_visible()
        route.get_by_role("button").first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table")).to_contain_text('"status": "ok"')
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{url}/docs")
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.injected = true";
        document.body.append(script);
    }""")
    assert page.evaluate("() => window.injected") is None
    context.close()
