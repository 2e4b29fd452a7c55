"""The pictures of the documentation: each has a script that draws it and a page that shows it."""

import re
from pathlib import Path

import numpy as np
import pytest

from common.errors import UsageError
from docs.pictures.__main__ import IMAGES, main, pictures
from docs.pictures.interpolation import on_the_arc
from docs.pictures.throughput import published

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LARGEST = 150_000  # bytes


def test_every_picture_has_a_script_and_every_script_its_picture() -> None:
    assert {picture.IMAGE for picture in pictures().values()} == {path.name for path in IMAGES.iterdir()}
    assert {name: Path(picture.IMAGE).stem for name, picture in pictures().items()} == {n: n for n in pictures()}


def test_every_picture_is_small_and_shown_on_a_page_with_words_for_who_cannot_see_it() -> None:
    shown = dict[Path, str]()
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]*images/[^)]+)\)", page.read_text()):
            path = (page.parent / target).resolve()
            assert path.is_file(), (page.name, target)
            shown[path] = words
    for path in IMAGES.iterdir():
        assert path.stat().st_size <= LARGEST, path.name
        assert len(shown[path].split()) >= 5, path.name


@pytest.mark.parametrize("name", ["architecture", "flow"])
def test_diagrams_are_as_their_scripts_and_the_artifact_have_them(name: str, tmp_path: Path) -> None:
    picture = pictures()[name]
    picture.draw(tmp_path / picture.IMAGE, tmp_path)
    assert (tmp_path / picture.IMAGE).read_text() == (IMAGES / picture.IMAGE).read_text()


def test_the_chart_of_throughput_has_the_figures_of_the_page() -> None:
    servers, loads = published()
    words = set(re.findall(r">([^<>]+)</", (IMAGES / "throughput.svg").read_text()))
    assert words >= {*servers, *(f"{rate:,}" for rates in loads.values() for rate in rates)}
    assert {len(rates) for rates in loads.values()} == {len(servers)}


def test_a_picture_whose_data_are_absent_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (IMAGES / "scores.svg").stat()
    main(["scores", "--data", str(tmp_path)])
    assert "scores.svg: kept as it is" in capsys.readouterr().out
    assert (IMAGES / "scores.svg").stat() == before
    with pytest.raises(UsageError, match="photograph: must be one of architecture, "):
        main(["photograph"])


def test_the_arc_between_two_codes_keeps_their_norm() -> None:
    start, end = np.random.default_rng(0).normal(size=(2, 784))
    end *= np.linalg.norm(start) / np.linalg.norm(end)
    arc = on_the_arc(start, end, np.linspace(0, 1, 5))
    np.testing.assert_allclose(arc[[0, -1]], [start, end])
    np.testing.assert_allclose(np.linalg.norm(arc, axis=1), np.linalg.norm(start))
    angle = np.arccos(start @ end / np.linalg.norm(start) ** 2)
    half = (np.sin(angle / 2) * (start + end)) / np.sin(angle)
    np.testing.assert_allclose(arc[2], half)
