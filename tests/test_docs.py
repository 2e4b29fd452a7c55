"""The documentation is true: what its pages say to type works, and what they show comes out."""

import re
import tomllib
from codeop import compile_command
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from model import detector
from service.settings import Settings
from tests.pages import ABSENT, PAGES, ROOT, RUN, SHELL, VALIDATORS, Block, blocks, fewer_steps, reader
from tests.test_server import server

ALL = [block for page in PAGES for block in blocks(page)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server(GLOW_PLAN="frozen") as (url, _):
        yield url


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_in_its_order(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / ".table.toml"
    recipe.write_text(fewer_steps(detector.RECIPE.read_text()))
    monkeypatch.setattr(detector, "RECIPE", recipe)
    with reader(tmp_path, lambda: str(request.getfixturevalue("url"))) as one:
        for block in blocks(page):
            if block.language in RUN | VALIDATORS.keys():
                one.read(block)


@pytest.mark.parametrize("block", ALL, ids=str)
def test_a_block_is_run_or_validated_or_excused_and_not_both(block: Block) -> None:
    if block.language in VALIDATORS:
        assert block.excuse is None, f"{block}: it can be validated"
    elif block.language not in RUN:
        assert block.excuse, f"{block}: nothing runs {block.language or 'a block without a language'}"
    elif block.language == SHELL and block.excuse:
        assert ABSENT.search(block.code), f"{block}: it could be run"


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "python"], ids=str)
def test_python_can_be_pasted_into_the_interpreter(block: Block) -> None:
    """Which, before 3.13, ends a statement at an empty line and nowhere else."""
    lines: list[str] = []
    for line in [*block.code.splitlines(), ""]:
        lines.append(line)
        if compile_command("\n".join(lines)):
            lines.clear()
    assert not any(lines)


def test_commands_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts.keys() == {"glow-score"}
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"(?:^|`|\w=\S+ )make ([a-z][\w-]*)", text, re.MULTILINE):
            assert name in targets, f"{page.name}: make {name}"
        for module in re.findall(r"\bpython -m ([a-z]\w*(?:\.\w+)*)", text):
            assert find_spec(module), f"{page.name}: python -m {module}"


def test_settings_in_the_pages_exist() -> None:
    """Those of the service, and what its commands read by themselves."""
    name = re.compile(r"\bGLOW_[A-Z_]*[A-Z]\b")
    known = {f"GLOW_{field.upper()}" for field in Settings.model_fields}
    for path in (ROOT / "service").rglob("*.py"):
        known |= set(name.findall(path.read_text()))
    for page in PAGES:
        assert set(name.findall(page.read_text())) <= known, page.name


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.stem)
def test_links_outside_the_site_lead_somewhere(page: Path) -> None:
    """Those inside are checked where it is built (``make docs``)."""
    for name in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (ROOT / name).exists(), name
