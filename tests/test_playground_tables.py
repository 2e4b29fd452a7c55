"""The playground with tables: a row scored while it is typed, and files scored whole, worst rows first."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from service.scores import benjamini_hochberg
from tests.browser import browser as browser
from tests.browser import drop, figure, opened
from tests.test_playground import SCORED, score_shown, wait_for_result, wait_for_score
from tests.test_server import server

HEADER = ["count", "id", "color", "size", "fixed", "copy"]  # another order than the model's, and a column beside


@pytest.fixture(scope="module")
def url(models_dir: Path) -> Iterator[str]:
    with server("--models", models_dir) as (url, _):
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, f"{url}/?model=tiny-mixed", accept_downloads=True) as page:
        wait_for_result(page)
        yield page


def ask(url: str, records: list[dict[str, object]], **options: object) -> dict[str, list[float]]:
    answer = httpx.post(f"{url}/log-likelihood", json={"model": "tiny-mixed", "inputs": records, **options})
    assert answer.status_code == 200, answer.text
    found: dict[str, list[float]] = answer.json()
    return found


def record(number: int) -> dict[str, object]:
    size = (number % 7) / 3 - 1
    color = ["blue", "green", "red"][number % 3]
    return {"color": color, "size": size, "count": number % 10, "fixed": 7, "copy": size}


def as_csv(records: list[dict[str, object]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({"id": f'row "{i}", new', **one} for i, one in enumerate(records))
    return text.getvalue()


def give(page: Page, text: str | bytes, name: str = "rows.csv") -> None:
    content = text.encode() if isinstance(text, str) else text
    page.get_by_label("Choose a CSV file").set_input_files({"name": name, "mimeType": "text/csv", "buffer": content})


def table(page: Page) -> list[list[str]]:
    """Cells of the rows that were scored, as they are shown."""
    rows = page.get_by_role("region", name="Scored rows").locator("tbody tr")
    cells: list[list[str]] = rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.innerText))")
    return cells


def test_a_row_is_scored_while_it_is_typed(page: Page, url: str) -> None:
    example = httpx.get(f"{url}/models/tiny-mixed/example").json()["inputs"]
    assert page.get_by_label("color").input_value() == str(int(example[0][0]))
    wait_for_score(page, ask(url, example)["score"][0])
    page.get_by_label("color").select_option("green")
    page.get_by_label("count").fill("4")
    for name in ("size", "copy"):
        page.get_by_label(name).fill("1.25")
    row = {"color": "green", "size": 1.25, "count": 4, "fixed": 7, "copy": 1.25}
    answer = ask(url, [row], explain=True)
    wait_for_score(page, answer["score"][0])
    assert float(figure(page, "p-value")) == pytest.approx(answer["p_value"][0], rel=1e-3)
    shown = page.locator(".contribution").all_inner_texts()
    found = [float(text.removesuffix("nats")) for text in shown]
    assert found == pytest.approx(answer["contributions"][0], rel=1e-3)


def test_a_value_that_is_missing_or_none_is_told_and_the_score_comes_back(page: Page, url: str) -> None:
    page.get_by_label("count").fill("")
    verdict = page.locator("#row-verdict")
    expect(verdict).to_contain_text("count: ")
    page.get_by_label("count").fill("2.5")
    expect(verdict).to_contain_text("count: ")
    page.get_by_label("count").fill("2")
    expect(verdict).to_contain_text(SCORED)


def test_examples_and_random_rows_fill_the_form(page: Page) -> None:
    seen = []
    for name in ("Another example", "Random row", "Random row"):
        page.get_by_role("button", name=name).click()
        page.wait_for_timeout(700)
        expect(page.get_by_role("status").filter(has_text=SCORED)).to_be_visible()
        seen.append(score_shown(page))
    assert len(set(seen)) == 3


def test_sampled_rows_are_the_services_and_can_be_looked_into(page: Page, url: str) -> None:
    page.get_by_label("Number").select_option("4")
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Sample", exact=True).click()
    rows = page.get_by_role("region", name="Sampled rows").locator("tbody tr")
    expect(rows).to_have_count(4)
    sample = httpx.get(f"{url}/sample", params={"model": "tiny-mixed", "n": 4, "seed": 3}).json()["samples"][1]
    assert rows.nth(1).locator("td").nth(2).inner_text() in ("blue", "green", "red")
    rows.nth(1).get_by_role("button").click()
    expect(page.get_by_label("count")).to_have_value(str(round(sample[2])))
    assert float(page.get_by_label("size").input_value()) == pytest.approx(sample[1], rel=1e-5)


def test_a_file_comes_back_scored_worst_rows_first(page: Page, url: str) -> None:
    records = [record(i) for i in range(150)]
    records[37] |= {"size": 30.0, "copy": 30.0}
    records[80] |= {"count": 60}
    give(page, as_csv(records))
    expect(page.get_by_role("status").filter(has_text="150 rows scored")).to_be_visible()
    drop(page, page.get_by_text("Or drop it here"), "dropped.csv", as_csv(records[:20]).encode())
    expect(page.get_by_role("status").filter(has_text="dropped.csv: 20 rows scored")).to_be_visible()
    give(page, as_csv(records))
    expect(page.get_by_role("status").filter(has_text="150 rows scored")).to_be_visible()
    answer = ask(url, records)
    worst = np.argsort(-np.array(answer["score"]), kind="stable")[:100]
    shown = table(page)
    assert len(shown) == 100
    assert {shown[0][0], shown[1][0]} == {"38", "81"}
    scores = [float(row[2]) for row in shown]
    assert scores == pytest.approx([answer["score"][i] for i in worst], rel=1e-3)
    assert scores == sorted(scores, reverse=True)
    assert shown[0][6] == f'row "{int(shown[0][0]) - 1}", new'
    page.get_by_role("region", name="Scored rows").get_by_role("button").first.click()
    wait_for_score(page, max(answer["score"]))  # the row is in the form


def test_flags_keep_to_alpha_or_to_a_false_discovery_rate_as_the_services_do(page: Page, url: str) -> None:
    records = [record(i) for i in range(40)]
    for i in range(10):
        records[i] |= {"size": 20.0 + i, "copy": 20.0 + i}
    p_values = np.array(ask(url, records)["p_value"])
    give(page, as_csv(records))
    flagged = page.locator("tr.flagged")
    for kind, level, expected in (
        ("share of false alarms (alpha)", 0.1, (p_values <= 0.1).sum()),
        ("false discovery rate", 0.2, benjamini_hochberg(p_values, 0.2).sum()),
        ("false discovery rate", 0.001, 0),
    ):
        page.get_by_label("Flag by").select_option(kind)
        page.get_by_label("Level").fill(str(level))
        expect(flagged).to_have_count(int(expected))
        expect(page.get_by_role("status").filter(has_text=f"{expected} flagged")).to_be_visible()


def test_rows_that_the_model_does_not_take_are_named_and_all_rows_can_be_saved(page: Page, url: str) -> None:
    records = [record(i) for i in range(30)]
    bad: dict[int, tuple[dict[str, object], str | None]] = {
        3: ({"color": "mauve"}, '"mauve" is none of blue, green, red'),
        11: ({"size": ""}, "size is missing"),
        12: ({"count": "many"}, '"many" is not a number'),
        20: ({"size": 1e300, "copy": 1e300}, None),  # which the service takes
    }
    for i, (change, _) in bad.items():
        records[i] |= change
    give(page, as_csv(records, ";").replace("0.3333333333333333", "0,3333333333333333"), "mine.csv")
    expect(page.locator("#csv-summary")).to_contain_text("refused")
    page.locator("#csv-rejected summary").click()
    told = page.locator("#csv-rejected li").all_inner_texts()
    for i in (3, 11, 12):
        assert any(text.startswith(f"Row {i + 1}: ") and str(bad[i][1]) in text for text in told)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all rows").click()
    assert download.value.suggested_filename == "mine-scored.csv"
    saved = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [row["id"] for row in saved] == [f'row "{i}", new' for i in range(30)]
    good = [i for i in range(30) if i not in bad]
    answer = ask(url, [records[i] for i in good])
    for name, column in (("p_value", "p_value"), ("score", "score"), ("log_likelihood", "log_likelihood")):
        assert [float(saved[i][name]) for i in good] == pytest.approx(answer[column], rel=1e-6)
    assert [saved[i]["is_anomaly"] == "true" for i in good] == answer["is_anomaly"]
    assert [bool(saved[i]["error"]) for i in (3, 11, 12, 20)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("color,size\nred,1\n", "columns are missing that the model needs: count, fixed, copy"),
        ("color,size,count,fixed,copy,size\nred,1,2,7,1,3\n", "columns that the model needs are there twice: size"),
        ('count,color,size,fixed,copy,note\n1,red,1,7,1,"open\n', "A quote is opened in row 1 and not closed"),
        ("", "has no rows"),
        ("count,color,size,fixed,copy\n", "has no rows"),
    ],
)
def test_a_file_that_is_no_table_of_the_model_is_refused_with_the_reason(page: Page, text: str, why: str) -> None:
    give(page, text)
    expect(page.get_by_role("alert")).to_contain_text(why)
    give(page, as_csv([record(1)]))
    expect(page.get_by_role("status").filter(has_text="1 rows scored")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()


def test_the_example_file_can_be_scored_as_it_is(page: Page, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download an example").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    page.get_by_label("Choose a CSV file").set_input_files(path)
    expect(page.get_by_role("status").filter(has_text="rows scored")).to_contain_text("54 rows scored")


def test_a_file_may_be_of_any_spreadsheet(page: Page, url: str) -> None:
    records = [record(i) | {"size": 1.5 + i, "copy": 1.5 + i} for i in range(3)]
    expected = sorted(ask(url, records)["score"], reverse=True)
    text = as_csv(records, "\t").replace('row ""', 'r\u00f6w ""')
    for content in (
        text.encode("utf-16"),
        text.encode("latin-1"),
        b"\xef\xbb\xbf" + text.encode(),
        text.replace("\r\n", "\r").encode(),
        re.sub(r"(\d)\.(\d)", r"\1,\2", text).encode(),
    ):
        give(page, content)
        expect(page.get_by_role("status").filter(has_text="3 rows scored")).to_be_visible()
        shown = table(page)
        assert [float(row[2]) for row in shown] == pytest.approx(expected, rel=1e-3)
        assert {row[6] for row in shown} == {f'r\u00f6w "{i}", new' for i in range(3)}


def test_columns_that_are_none_of_the_model_stay_as_they_are(page: Page) -> None:
    give(page, '"id, of a kind";color;size;count;fixed;copy\n1,5;red;1,5;2;7;1,5\n')
    expect(page.get_by_role("status").filter(has_text="1 rows scored")).to_be_visible()
    (row,) = table(page)
    assert "1,5" in row  # an identity, and no number with a decimal comma
    assert "id, of a kind" in page.get_by_role("region", name="Scored rows").locator("thead").inner_text()


def test_a_row_of_more_cells_than_the_header_is_not_scored_as_another(page: Page) -> None:
    give(page, "color,size,count,fixed,copy\nred,1,5,2,7,1,5\nred,1,2,7,1,,\n")
    expect(page.get_by_role("status").filter(has_text="1 rows scored, 0 flagged, 1 refused")).to_be_visible()
    page.get_by_text("Rows that the model does not take").click()
    expect(page.get_by_text("Row 1: has 7 cells, the header 5")).to_be_visible()


def test_only_the_last_file_counts_and_none_after_stop_or_another_model(page: Page) -> None:
    def begin(num: int) -> None:
        page.route(
            "**/log-likelihood", lambda route: route.continue_() if "explain" in str(route.request.post_data) else None
        )
        give(page, as_csv([record(i) for i in range(num)]), "slow.csv")
        expect(page.get_by_role("progressbar", name="Scoring rows")).to_be_visible()

    summary = page.get_by_role("region", name="Score a file").get_by_role("status")
    begin(9)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("progressbar")).to_be_hidden()
    expect(summary).to_have_text("Stopped. No row was kept.")
    begin(9)
    page.unroute_all()
    give(page, as_csv([record(i) for i in range(4)]), "quick.csv")
    expect(summary).to_contain_text("quick.csv: 4 rows scored")
    begin(9)
    page.get_by_label("Model").select_option("tiny-table")
    expect(page.get_by_label("color")).to_have_count(0)
    expect(page.get_by_role("progressbar")).to_be_hidden()
    page.unroute_all()
    wait_for_result(page)
    expect(summary).to_be_empty()
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_row_that_is_not_whole_has_no_result(page: Page) -> None:
    page.get_by_label("count").fill("")
    for shown in (page.get_by_text("p-value"), page.get_by_role("img", name="Histogram")):
        expect(shown).to_be_hidden()
    page.get_by_label("count").fill("3")
    expect(page.get_by_text("p-value")).to_be_visible()
