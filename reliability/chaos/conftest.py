"""What the faults share: seeds, models, and the figures that each leaves."""

from __future__ import annotations

import os
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from reliability.chaos.flows import faulty
from reliability.chaos.scene import Scene
from reliability.load import Rows
from tests.conftest import models_dir as models_dir
from tests.conftest import plain_environment as plain_environment
from tests.conftest import tiny_table

_FIGURES = pytest.StashKey[list[dict[str, Any]]]()


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
    totals = {one["fault"]: one for one in before}
    for one in now:
        if (old := totals.get(one["fault"])) is None:
            totals[one["fault"]] = one
            continue
        recoveries = [value for value in (old["recovery_s"], one["recovery_s"]) if value is not None]
        sums = {
            name: old[name] + one[name] for name in ("requests", "ok", "ended", "wrong", "lost", "unreached", "rounds")
        }
        refused = dict(sorted((Counter(old["refused"]) + Counter(one["refused"])).items()))
        totals[one["fault"]] = {**one, **sums, "refused": refused, "recovery_s": max(recoveries, default=None)}
    return list(totals.values())


@pytest.fixture(scope="session")
def artifacts(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny-table``, and ``faulty``, which is the same but for rows that tell it to go wrong."""
    folder = tmp_path_factory.mktemp("artifacts")
    os.link(models_dir / "tiny-table.pt", folder / "tiny-table.pt")
    faulty(folder / "tiny-table.pt", folder / "faulty.pt")
    return folder


@pytest.fixture(scope="session")
def rows(artifacts: Path) -> list[Rows]:
    """Rows of both, and what they are to be answered with."""
    x = tiny_table().calibration.x
    return [Rows(artifacts / f"{name}.pt", x) for name in ("tiny-table", "faulty")]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a server that is soon ready."""
    cache = str(tmp_path_factory.mktemp("plans"))
    return {"GLOW_PLAN": "frozen", "GLOW_MAX_BATCH_ROWS": "64", "GLOW_CACHE_DIR": cache, "GLOW_DEVICE": "cpu"}


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, artifacts: Path, rows: list[Rows], settings: dict[str, Any], tmp_path: Path
) -> Iterator[Scene]:
    """What a fault needs, and what is kept of it: its promise is the name of its test.

    What is random is the same for the same seed, whatever other tests run.
    """
    node = request.node
    params = getattr(node, "callspec", None)
    further = "" if params is None else f" ({', '.join(f'{name} {value}' for name, value in params.params.items())})"
    chance = random.Random(zlib.crc32(f"{request.config.option.seed} {node.name}".encode()))
    table, spoilt = rows
    scene = Scene(artifacts, table, spoilt, settings, tmp_path, chance)
    yield scene
    if not scene.rounds:  # it was skipped, or failed before anything was broken
        return
    promise = node.originalname.removeprefix("test_").replace("_", " ")
    request.config.stash[_FIGURES].append(scene.kept(f"{node.get_closest_marker('fault').args[0]}{further}", promise))
