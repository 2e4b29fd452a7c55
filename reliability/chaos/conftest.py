"""What the faults share: seeds, models, and the figures that each leaves."""

from __future__ import annotations

import os
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from reliability.chaos.flows import faulty
from reliability.load import Ledger, Rows
from tests.conftest import models_dir as models_dir
from tests.conftest import plain_environment as plain_environment
from tests.conftest import tiny_table

_FIGURES = pytest.StashKey[list[dict[str, Any]]]()


@dataclass
class Told:
    """What a fault was and did."""

    ledger: Ledger = field(default_factory=Ledger)
    recoveries: list[float] = field(default_factory=list)  # seconds until it was well again
    rounds: int = 0  # times that it happened
    figures: dict[str, float] = field(default_factory=dict)  # further ones

    def recovered(self, seconds: float) -> None:
        """Note that it happened, and how long it took to be well again."""
        self.recoveries.append(seconds)
        self.rounds += 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="of all that is random (default: a random one)")
    parser.addoption("--totals", type=Path, default=None, help="file of figures that those of this run are added to")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): what is broken")
    if config.option.seed is None:
        config.option.seed = random.randrange(2**32)
    config.stash[_FIGURES] = []


def pytest_report_header(config: pytest.Config) -> str:
    return f"--seed {config.option.seed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for report in terminalreporter.stats.get("failed", []):
        terminalreporter.line(f"again: python -m pytest {report.nodeid} --seed {config.option.seed}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.option.totals
    if path is not None:
        before = orjson.loads(path.read_bytes()) if path.exists() else []
        path.write_bytes(orjson.dumps(added(before, session.config.stash[_FIGURES])))


def added(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures of faults that happened in several runs."""
    totals = {one["promise"]: one for one in before}
    for one in now:
        if (old := totals.get(one["promise"])) is None:
            totals[one["promise"]] = one
            continue
        recoveries = [value for value in (old["recovery_s"], one["recovery_s"]) if value is not None]
        sums = {
            name: old[name] + one[name] for name in ("requests", "ok", "ended", "wrong", "lost", "unreached", "rounds")
        }
        refused = dict(sorted((Counter(old["refused"]) + Counter(one["refused"])).items()))
        totals[one["promise"]] = {**one, **sums, "refused": refused, "recovery_s": max(recoveries, default=None)}
    return list(totals.values())


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    """What is kept of a fault, whose promise is the name of its test."""
    told = Told()
    yield told
    ledger = told.ledger
    request.config.stash[_FIGURES].append(
        {
            "fault": request.node.get_closest_marker("fault").args[0],
            "promise": request.node.name.removeprefix("test_").replace("_", " "),
            "requests": ledger.sent,
            "ok": ledger.ok,
            "refused": dict(sorted(ledger.refused.items())),
            "ended": ledger.ended,
            "wrong": ledger.wrong,
            "lost": ledger.lost,
            "unreached": ledger.unreached,
            "recovery_s": round(max(told.recoveries), 2) if told.recoveries else None,
            "rounds": told.rounds,
            **told.figures,
        }
    )


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """What is random in a test, the same for the same seed whatever other tests run."""
    return random.Random(zlib.crc32(f"{request.config.option.seed} {request.node.name}".encode()))


@pytest.fixture(scope="session")
def artifacts(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny-table``, and ``faulty``, which is the same but for rows that tell it to go wrong."""
    folder = tmp_path_factory.mktemp("artifacts")
    os.link(models_dir / "tiny-table.pt", folder / "tiny-table.pt")
    faulty(folder / "tiny-table.pt", folder / "faulty.pt")
    return folder


@pytest.fixture(scope="session")
def table(artifacts: Path) -> Rows:
    """Rows of ``tiny-table``, and what they are to be answered with."""
    splits = tiny_table()
    return Rows(artifacts / "tiny-table.pt", splits.calibration.x)


@pytest.fixture(scope="session")
def spoilt(artifacts: Path) -> Rows:
    """The same of ``faulty``."""
    splits = tiny_table()
    return Rows(artifacts / "faulty.pt", splits.calibration.x)


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a server that is soon ready."""
    cache = tmp_path_factory.mktemp("plans")
    return {"GLOW_PLAN": "frozen", "GLOW_MAX_BATCH_ROWS": "64", "GLOW_CACHE_DIR": str(cache), "GLOW_DEVICE": "cpu"}
