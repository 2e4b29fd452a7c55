"""The playground in a real browser: what it shows is what the service answers, for everyone, whatever happens."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from service.api import PLAYGROUND
from tests.browser import browser as browser
from tests.browser import canvas, drop, figure, opened
from tests.test_server import server

SCORED = re.compile("of normal .* score at least as high")
IMAGE, MAP, DRAWN = "Scored image", "Map of what", "Reconstruction"

RULES = ["wcag2a", "wcag2aa", "wcag2aaa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice", "experimental"]


@pytest.fixture(scope="module")
def url(models_dir: Path) -> Iterator[str]:
    with server("--models", models_dir, GLOW_DEFAULT_MODEL="tiny-images") as (url, _):
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, f"{url}/?model=tiny-images") as page:
        wait_for_result(page)
        yield page


def wait_for_result(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text=SCORED)).to_be_visible()


def score_of(url: str, inputs: object) -> float:
    answer = httpx.post(f"{url}/log-likelihood", json={"model": "tiny-images", "inputs": inputs}).json()
    return float(answer["score"][0])


def score_shown(page: Page) -> float:
    return float(figure(page, "Score ("))


def wait_for_score(page: Page, score: float) -> None:
    for _ in range(200):
        if score_shown(page) == pytest.approx(score, rel=1e-3):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"the page shows {score_shown(page)}, not {score}")


def as_inputs(pixels: np.ndarray) -> list[object]:
    """What the page shows of a grey image of four bits, as the body of a request: one image."""
    return [np.round(pixels[..., 0] / 17).astype(int).ravel().tolist()]


def test_the_page_is_small_and_may_run_and_ask_nothing_else(url: str) -> None:
    policy = httpx.get(url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert sum(path.stat().st_size for path in PLAYGROUND.glob("*.js")) < 150_000
    assert "http" not in (PLAYGROUND / "index.html").read_text().replace("http-equiv", "")
    assert httpx.get(f"{url}/playground/../api.py").status_code == 404
    assert httpx.get(f"{url}/playground/%2e%2e/api.py").status_code == 404


def test_samples_follow_their_seed_and_one_can_be_scored(page: Page, url: str) -> None:
    samples = page.get_by_role("list", name="Samples").get_by_role("button")
    expect(samples).to_have_count(16)
    page.get_by_label("Number").select_option("4")
    page.get_by_label("Seed").fill("11")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_role("button", name="Sample", exact=True).click()
    expect(samples).to_have_count(4)
    options = {"model": "tiny-images", "n": 4, "seed": 11, "temperature": 0.5}
    answer = httpx.post(f"{url}/sample", json=options).json()
    expected = np.round(np.clip(answer["samples"][2], 0, 15)).astype(int).ravel().tolist()
    page.get_by_role("button", name="Image 3", exact=True).click()
    wait_for_score(page, score_of(url, [expected]))
    assert as_inputs(canvas(page, IMAGE)) == [expected]


def test_figures_of_an_example_are_the_services(page: Page, url: str) -> None:
    example = httpx.get(f"{url}/models/tiny-images/example", params={"n": 2}).json()["inputs"][1]
    page.get_by_role("button", name="Example 2").click()
    options = {"model": "tiny-images", "inputs": [example], "explain": True}
    answer = httpx.post(f"{url}/log-likelihood", json=options).json()
    wait_for_score(page, answer["score"][0])
    assert figure(page, "Log-likelihood").startswith(f"{answer['log_likelihood'][0]:.4g}")
    assert float(figure(page, "Bits per")) == pytest.approx(answer["bits_per_dim"][0], rel=1e-3)
    assert float(figure(page, "p-value")) == pytest.approx(answer["p_value"][0], rel=1e-3)
    verdict = "Anomaly" if answer["is_anomaly"][0] else "Normal"
    expect(page.get_by_role("status").filter(has_text=SCORED)).to_contain_text(verdict)
    histogram = page.get_by_role("img", name="Histogram of the scores of 100 held-out normal inputs")
    expect(histogram).to_be_visible()
    expect(page.get_by_text("no pixel is off by more than")).to_be_visible()
    assert np.array_equal(canvas(page, DRAWN), canvas(page, IMAGE))  # the reconstruction is exact
    darkest, brightest = np.argmin(answer["contributions"]), np.argmax(answer["contributions"])
    shown = canvas(page, MAP).reshape(-1, 3)
    assert tuple(shown[darkest]) == (68, 1, 84)
    assert tuple(shown[brightest]) == (253, 231, 37)


def test_drawing_by_pointer_and_by_keyboard_changes_the_score(page: Page, url: str) -> None:
    page.get_by_role("button", name="Clear").click()
    wait_for_score(page, score_of(url, as_inputs(np.zeros((8, 8, 3), np.uint8))))
    drawing = page.get_by_role("img", name=IMAGE)
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    drawn = canvas(page, IMAGE)
    assert drawn[4, 2:6].min() > 100
    assert drawn[0].max() == 0
    wait_for_score(page, score_of(url, as_inputs(drawn)))
    page.get_by_role("button", name="Clear").click()
    drawing.focus()
    for key in ("ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    page.get_by_role("button", name="Invert").focus()
    drawn = canvas(page, IMAGE)
    assert drawn[1, 1, 0] == 255
    assert drawn[5:].max() == 0
    wait_for_score(page, score_of(url, as_inputs(drawn)))


def test_a_file_is_scored_as_the_service_scores_it(page: Page, url: str, x: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray((x[3, 0] * 17).astype(np.uint8)).save(buffer, "png")
    page.get_by_label("Choose an image file").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    )
    wait_for_score(page, score_of(url, [x[3].ravel().tolist()]))
    page.get_by_role("button", name="Clear").click()
    drop(page, page.get_by_role("img", name=IMAGE), "a.png", buffer.getvalue())
    wait_for_score(page, score_of(url, [x[3].ravel().tolist()]))
    page.get_by_label("Choose an image file").set_input_files(
        {"name": "b.png", "mimeType": "image/png", "buffer": b"no image"}
    )
    expect(page.get_by_role("alert")).to_contain_text("b.png is not an image")


def test_an_interpolation_begins_and_ends_with_its_images(page: Page, x: np.ndarray) -> None:
    frames = page.get_by_role("list", name="Interpolation steps").get_by_role("button")
    expect(frames).to_have_count(9)
    page.get_by_label("From").select_option("Example 3")
    page.get_by_label("To", exact=True).select_option("Example 1")
    page.wait_for_timeout(1000)
    ends = []
    for name in ("Example 3", "Example 1"):
        page.get_by_role("button", name=name).click()
        page.wait_for_timeout(300)
        ends.append(canvas(page, IMAGE).astype(int))
    position = page.get_by_label("Position")
    for value, end in (("0", ends[0]), ("32", ends[1])):
        position.fill(value)
        assert np.abs(canvas(page, "Interpolated image").astype(int) - end).max() <= 2
    position.fill("16")
    middle = canvas(page, "Interpolated image")
    assert np.abs(middle.astype(int) - ends[0]).max() > 20
    page.get_by_role("button", name="Score this image").click()
    page.wait_for_timeout(300)
    assert np.abs(canvas(page, IMAGE).astype(int) - middle).max() <= 9  # rounded to four bits


def test_a_fast_stroke_has_no_gaps(page: Page) -> None:
    page.get_by_role("button", name="Clear").click()
    drawing = page.get_by_role("img", name=IMAGE)
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)  # one event, over all pixels of a row
    page.mouse.up()
    assert canvas(page, IMAGE)[4].min() > 100


def test_directions_belong_to_their_image(page: Page) -> None:
    page.get_by_role("button", name="Find directions").click()
    first = page.get_by_label("Direction 1")
    first.fill("2")
    page.get_by_role("button", name="Example 2").click()
    expect(first).to_be_hidden()
    page.get_by_role("button", name="Find directions").click()
    page.get_by_role("button", name="Example 3").click()  # while they are sought
    page.wait_for_timeout(1000)
    expect(first).to_be_hidden()
    assert np.array_equal(canvas(page, "Image moved"), canvas(page, IMAGE))


def test_directions_move_the_image_and_back(page: Page) -> None:
    page.get_by_role("button", name="Find directions").click()
    first = page.get_by_label("Direction 1")
    expect(first).to_be_visible()
    page.wait_for_timeout(500)
    before = canvas(page, "Image moved").astype(int)
    assert np.abs(before - canvas(page, IMAGE)).max() <= 2
    changes = []
    for number in (1, 6):
        page.get_by_label(f"Direction {number}").fill("0.5")
        page.wait_for_timeout(500)
        changes.append(np.abs(canvas(page, "Image moved").astype(int) - before).sum())
        page.get_by_role("button", name="Reset").click()
        page.wait_for_timeout(500)
        assert np.abs(canvas(page, "Image moved").astype(int) - before).max() <= 1
    assert changes[0] > changes[1] > 0  # the first changes most


def test_a_model_can_be_picked_and_the_address_names_it(page: Page) -> None:
    page.get_by_label("Model").select_option("tiny-table")
    expect(page.get_by_label("count")).to_be_visible()
    expect(page.get_by_role("heading", name="Score an image")).to_have_count(0)
    assert page.url.endswith("?model=tiny-table")
    page.reload()
    expect(page.get_by_label("count")).to_be_visible()


def test_a_busy_service_is_asked_again_and_one_that_is_gone_is_told(page: Page, url: str) -> None:
    refusals = [429, 503]

    def refuse(route: Route) -> None:
        if refusals:
            body = {"error": "wait", "code": "queue_full", "request_id": "a"}
            route.fulfill(status=refusals.pop(), json=body, headers={"retry-after": "1"})
        else:
            route.continue_()

    page.route("**/log-likelihood", refuse)
    page.get_by_role("button", name="Example 3").click()
    expect(page.get_by_role("alert")).to_contain_text("not ready")
    expect(page.get_by_role("alert")).to_contain_text("is busy: wait. Asking again in 1 s")
    expect(page.get_by_role("alert")).to_be_empty()
    assert not refusals
    example = httpx.get(f"{url}/models/tiny-images/example", params={"n": 3}).json()["inputs"][2]
    wait_for_score(page, score_of(url, [example]))
    page.route("**/log-likelihood", lambda route: route.abort())
    page.get_by_role("button", name="Example 1").click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    wait_for_result(page)
    expect(page.get_by_role("alert")).to_be_empty()


def test_where_keys_are_needed_the_page_asks_for_one(browser: Browser, models_dir: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        '[[keys]]\nid = "page"\nscopes = ["infer"]\n'
        'sha256 = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"\n'  # of "key"
    )
    with (
        server("--models", models_dir / "tiny-images.pt", GLOW_API_KEYS_FILE=str(keys)) as (url, _),
        opened(browser, url) as page,
    ):
        expect(page.get_by_role("alert")).to_contain_text("a key is needed")
        page.get_by_label("API key").fill("another")
        page.get_by_role("button", name="Use key").click()
        expect(page.get_by_role("alert")).to_contain_text("the key is not one of this service")
        page.get_by_label("API key").fill("key")
        page.get_by_label("API key").press("Enter")
        wait_for_result(page)
        expect(page.get_by_role("alert")).to_be_empty()
        assert httpx.get(f"{url}/models").status_code == 401


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("model", ["tiny-images", "tiny-mixed"])
def test_it_is_accessible(browser: Browser, url: str, model: str, scheme: str) -> None:
    with opened(browser, f"{url}/?model={model}", color_scheme=scheme) as page:
        wait_for_result(page)
        if model == "tiny-images":
            page.get_by_role("button", name="Find directions").click()
            expect(page.get_by_label("Direction 1")).to_be_visible()
        rules = {"runOnly": {"type": "tag", "values": RULES}}
        found = Axe().run(page, options=rules).response["violations"]
        assert [(one["id"], one["impact"], [node["html"] for node in one["nodes"]]) for one in found] == []


@pytest.mark.parametrize("model", ["tiny-images", "tiny-mixed"])
def test_it_fits_a_phone(browser: Browser, url: str, model: str) -> None:
    with opened(browser, f"{url}/?model={model}", viewport={"width": 360, "height": 740}, has_touch=True) as page:
        wait_for_result(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_everything_can_be_reached_by_keyboard(page: Page) -> None:
    reached = set()
    page.locator("body").press("Tab")
    for _ in range(80):
        reached.add(page.evaluate("(e => e.ariaLabel || e.id || e.innerText)(document.activeElement)"))
        page.keyboard.press("Tab")
    controls = {"model", IMAGE, "file", "from", "to", "position", "find-directions", "clear", "invert", "new-seed"}
    assert controls <= reached
    assert {"Example 1", "Sample"} <= reached
