"""The engine goes wrong: it raises, answers nonsense, takes all memory, hangs, or its thread ends."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from reliability.chaos.conftest import Told
from reliability.chaos.flows import HANGS, IS_NAN, RAISES, TAKES_ALL_MEMORY
from reliability.load import ENCODINGS, Ask, Load, Rows, is_well, until_well
from tests.test_server import server


def poisoned(spoilt: Rows, chance: random.Random, number: float, code: str) -> list[Ask]:
    return [spoilt.ask(encoding, chance.sample(range(50), 3), [code], number) for encoding in ENCODINGS]


@pytest.mark.fault("the engine raises")
def test_rows_that_make_the_engine_raise_are_refused_and_all_others_answered(
    artifacts: Path, table: Rows, spoilt: Rows, quick: dict[str, str], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    _answers_all_but(RAISES, "internal_error", artifacts, table, spoilt, quick, tmp_path, chance, told)


@pytest.mark.fault("the engine answers NaN")
def test_numbers_that_are_none_reach_nobody_and_all_others_are_answered(
    artifacts: Path, table: Rows, spoilt: Rows, quick: dict[str, str], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    _answers_all_but(IS_NAN, "internal_error", artifacts, table, spoilt, quick, tmp_path, chance, told)


@pytest.mark.fault("a pass needs more memory than there is")
def test_rows_without_memory_for_them_are_refused_and_all_others_answered(
    artifacts: Path, table: Rows, spoilt: Rows, quick: dict[str, str], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    _answers_all_but(TAKES_ALL_MEMORY, "out_of_memory", artifacts, table, spoilt, quick, tmp_path, chance, told)


def _answers_all_but(
    number: float,
    code: str,
    artifacts: Path,
    table: Rows,
    spoilt: Rows,
    quick: dict[str, str],
    tmp_path: Path,
    chance: random.Random,
    told: Told,
) -> None:
    asks = table.asks(chance) + spoilt.asks(chance) + 5 * poisoned(spoilt, chance, number, code)
    with server("--models", artifacts, log=tmp_path / "log", **quick) as (url, process):
        with Load(url, asks, told.ledger, chance) as load:
            load.wait(800)
            assert is_well(url, table.ask("json", [1]))
        told.recovered(until_well(url, spoilt.ask("json", [1])))
        assert process.poll() is None
    told.ledger.check(least=400)
    assert told.ledger.refused.total() > 20
