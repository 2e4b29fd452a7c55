"""What comes from others: each with its reason, its licence accepted, and pinned by hash or said not to be."""

import re
import subprocess

import pytest

from docs.tables import place_of
from reliability import supply
from reliability.supply import ROOT, declared, faults, licences, locked

PAGE = supply.PAGE.read_text()


def test_every_dependency_has_a_row_of_its_own_and_every_row_is_one() -> None:
    """And names the extras that have it, and the release that is locked: make supply writes both."""
    rows = [line.split(" | ") for line in PAGE[place_of(PAGE, "dependencies")].splitlines()[2:]]
    names = [cells[0].strip("| `") for cells in rows]
    assert sorted(names) == sorted(declared())
    for name, cells in zip(names, rows, strict=True):
        assert len(cells) == supply.HEADING.count(" | ") + 1
        assert all(cells[1:3]), name
        assert re.findall(r"\w+", cells[3]) == declared()[name]
        if name in locked("test"):
            assert cells[4] == locked("test")[name]


@pytest.mark.parametrize(
    ("licence", "is_accepted"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("MIT AND (GPL-3.0-only OR AGPL-3.0-only)", False),
        ("LGPL-2.1-or-later", False),
        ("none", False),
        ("Copyright (c) 2019 Somebody", False),
    ],
)
def test_a_licence_is_accepted_only_if_all_its_parts_leave_a_choice_that_is(licence: str, is_accepted: bool) -> None:
    assert faults({"library": licence}) == ([] if is_accepted else [f"library: {licence}"])
    assert faults(dict.fromkeys(supply.OF_WHOLES, licence)) == []


def test_all_that_ships_has_an_accepted_licence_and_copyleft_is_named() -> None:
    found = licences()
    assert faults(found) == []
    assert found.keys() >= {"torch", "ray", "uvicorn", "matplotlib"}
    for name in supply.OF_WHOLES:
        assert "GPL" in found[name]
        assert f"| `{name}` | {found[name]} |" in PAGE


def test_files_of_others_in_the_tree_have_a_licence() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    foreign = [file for file in files if re.search(r"\.(woff2?|ttf|otf|eot|wasm|min\.(js|css)|whl|so)$", file)]
    assert set(foreign) <= supply.VENDORED.keys()
    assert "docs/_static/stix-two-math.LICENSE" in files


def test_what_the_images_install_without_hashes_is_torch_alone() -> None:
    lines = "\n".join(
        (ROOT / name).read_text() for name in ("Dockerfile", "deploy/image/locked.sh", "deploy/image/own.sh")
    )
    commands = [
        one for one in re.split(r"&&|\n(?! )", lines.replace("\\\n", " ")) if re.search(r"pip .*\binstall\b", one)
    ]
    assert len(commands) == 4
    unhashed = [one for one in commands if "--require-hashes" not in one]
    assert ['"$TORCH"' in one or "--no-index" in one for one in unhashed] == [True, True]
