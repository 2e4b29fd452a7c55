"""The page of promises tells what was kept, and names what there is."""

import re
from pathlib import Path

import pytest

from docs import tables
from reliability import record, report
from tests.pages import ROOT


@pytest.mark.parametrize("name", report.TABLES)
def test_a_table_says_what_was_kept(name: str) -> None:
    page, kept = report.PAGE.read_text(), {part: record.read(part) for part in report.PARTS}
    assert page[tables.place_of(page, name)] == report.TABLES[name](kept), "python -m reliability.report writes it"


def test_tests_and_commands_that_hold_promises_exist() -> None:
    page = report.PAGE.read_text()
    told = page[tables.place_of(page, "promises")]
    commands = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", page)) <= commands
    files = re.findall(r"`(tests/\S+)`", told)
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_figures_are_kept_whole_with_their_day_and_machine(tmp_path: Path) -> None:
    path = record.keep("chaos", {"rounds": 3}, tmp_path / "figures.json")
    assert re.fullmatch(r'\{\n  "date": "\d{4}-\d\d-\d\d",\n  "machine": ".+",\n  "rounds": 3\n\}\n', path.read_text())
    assert [each.name for each in path.parent.iterdir()] == [path.name]
