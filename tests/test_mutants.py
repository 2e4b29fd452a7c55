"""Mutants: which there are, and what is told of them."""

from pathlib import Path

import pytest

from reliability import mutants
from reliability.mutants import CONFIG, KILLED, ROOT, SURVIVED, TIMEOUT, Mutant, Result, figures, wilson

SOURCE = '''
def f(*, a: int | None, b):
    """One."""
    try:
        return a + 1 < b
    except ValueError:
        return not b
'''


def test_every_file_and_test_that_makes_a_group_is_there_and_no_file_is_left_out() -> None:
    files = {path for entries in CONFIG["groups"].values() for entry in entries for path in named(entry["files"])}
    for entries in CONFIG["groups"].values():
        for entry in entries:
            assert all((ROOT / path).is_file() for path in entry["tests"])
    folders = ("model/bijections", "service/codecs", "service/scores")
    alone = [ROOT / "service" / name for name in ("batcher.py", "row_queue.py", "oip/codec.py")]
    assert files == {*alone, *(path for folder in folders for path in (ROOT / folder).glob("*.py"))}


def named(patterns: list[str]) -> list[Path]:
    found = [list(ROOT.glob(pattern)) for pattern in patterns]
    assert all(found)
    return [path for paths in found for path in paths]


def test_a_file_is_changed_in_one_place_at_a_time_and_every_change_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.py").write_text(SOURCE)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    found = [change for operator in CONFIG["operators"] for change in mutants.changes("file.py", operator)]
    new = {(line, " ".join(code.splitlines()[line - 1].split())) for line, code in found}
    lines = {5: ["a - 1 < b", "a + 1 <= b", "a + 1 >= b", "a + 2 < b", "a + 0 < b"], 7: ["b"]}
    expected = {(line, f"return {text}") for line, texts in lines.items() for text in texts}
    assert new == expected | {(6, "except CosmicRayTestingException:")}


def test_the_share_is_of_those_that_were_run_and_a_sample_has_an_interval() -> None:
    made = [Mutant("a", "file.py", "AddNot", 1, str(i), (), 1) for i in range(8)]
    outcomes = [KILLED] * 4 + [TIMEOUT, SURVIVED]
    results = {
        mutant.id: Result(mutant.id, "a", "file.py", 1, "AddNot", outcome, 1.0, "")
        for mutant, outcome in zip(made, outcomes, strict=False)
    }
    told = figures(made, results)["a"]
    assert (told["mutants"], told["run"], told["killed"], told["timeout"], told["survived"]) == (8, 6, 4, 1, 1)
    assert told["share"] == pytest.approx(5 / 6, abs=1e-4)
    assert told["interval_95"] == wilson(5, 6)
    assert figures(made[:6], results)["a"]["interval_95"] is None
    assert wilson(85, 100) == pytest.approx([0.7672, 0.9069], abs=1e-4)
