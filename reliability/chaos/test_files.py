"""No file may be opened any more: connections wait or are refused, and all goes on once others have ended."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from reliability.chaos.conftest import Told
from reliability.load import Load, Rows, until_well
from tests.test_server import COMMAND, server

LIMIT = 96


@pytest.mark.fault("file descriptors run out")
def test_who_is_connected_is_served_while_nobody_else_can_be_and_then_all_are(
    artifacts: Path, table: Rows, quick: dict[str, Any], tmp_path: Path, chance: random.Random, told: Told
) -> None:
    command = ("prlimit", f"--nofile={LIMIT}:{LIMIT}", *COMMAND)
    with server("--models", artifacts, command=command, log=tmp_path / "log", **quick) as (url, process):
        address = "127.0.0.1", int(url.rpartition(":")[2])
        with Load(url, table.asks(chance), told.ledger, chance) as load, ExitStack() as stack:
            load.wait(50)
            for _ in range(200):
                connection = socket.socket()
                stack.callback(connection.close)
                connection.setblocking(False)
                with suppress(BlockingIOError):
                    connection.connect(address)
            load.wait(300)
            assert len(os.listdir(f"/proc/{process.pid}/fd")) > LIMIT - 4
        told.recovered(until_well(url, table.ask("json", [1])))
        assert process.poll() is None
    told.ledger.check()
