"""What the faults share: a server, callers of it, what is random, and what is kept."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from reliability.load import Ask, Ledger, Load, Rows
from tests.test_server import server


@dataclass
class Scene:
    """A fault: the server that it befalls, its callers, and what came of it."""

    artifacts: Path  # ``tiny-table``, and ``faulty``, which is the same but for rows that tell it to go wrong
    table: Rows  # of the first
    spoilt: Rows  # of the second
    settings: dict[str, Any]  # of a server that is soon ready
    folder: Path  # for the fault's own files
    chance: random.Random
    ledger: Ledger = field(default_factory=Ledger)
    recoveries: list[float] = field(default_factory=list)  # seconds until it was well again
    rounds: int = 0  # times that it happened
    figures: dict[str, float] = field(default_factory=dict)  # further ones

    @property
    def log(self) -> Path:
        """What the servers told."""
        return self.folder / "log"

    def server(
        self,
        *arguments: object,
        models: Path | None = None,
        **options: Any,  # noqa: ANN401 (settings are texts, and there are others)
    ) -> AbstractContextManager[tuple[str, Popen[str]]]:
        """A server that is ready, with further arguments and settings, and its address."""
        return server("--models", models or self.artifacts, *arguments, **{"log": self.log, **self.settings, **options})

    def load(self, url: str, asks: list[Ask] | None = None, ledger: Ledger | None = None, **options: Any) -> Load:  # noqa: ANN401 (those of Load)
        """Callers, each request of which is entered; by default they ask for rows of ``table``."""
        asks = self.table.asks(self.chance) if asks is None else asks
        return Load(url, asks, ledger or self.ledger, self.chance, **options)

    def recovered(self, seconds: float) -> None:
        """Note that it happened, and how long it took to be well again."""
        self.recoveries.append(seconds)
        self.rounds += 1

    def kept(self, fault: str, promise: str) -> dict[str, Any]:
        """The figures of it."""
        ledger = self.ledger
        return {
            "fault": fault,
            "promise": promise,
            "requests": ledger.sent,
            "ok": ledger.ok,
            "refused": dict(sorted(ledger.refused.items())),
            "ended": ledger.ended,
            "wrong": ledger.wrong,
            "lost": ledger.lost,
            "unreached": ledger.unreached,
            "recovery_s": round(max(self.recoveries), 2) if self.recoveries else None,
            "rounds": self.rounds,
            **self.figures,
        }
