"""No file may be opened any more: connections wait or are refused, and all goes on once others have ended."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, suppress

import pytest

from reliability.chaos.scene import Scene
from reliability.load import until_well
from tests.test_server import COMMAND

LIMIT = 96


@pytest.mark.fault("file descriptors run out")
def test_who_is_connected_is_served_while_nobody_else_can_be_and_then_all_are(scene: Scene) -> None:
    command = ("prlimit", f"--nofile={LIMIT}:{LIMIT}", *COMMAND)
    with scene.server(command=command) as (url, process):
        address = "127.0.0.1", int(url.rpartition(":")[2])
        with scene.load(url) as load, ExitStack() as stack:
            load.wait(50)
            for _ in range(200):
                connection = socket.socket()
                stack.callback(connection.close)
                connection.setblocking(False)
                with suppress(BlockingIOError):
                    connection.connect(address)
            load.wait(300)
            assert len(os.listdir(f"/proc/{process.pid}/fd")) > LIMIT - 4
        scene.recovered(until_well(url, scene.table.ask("json", [1])))
        assert process.poll() is None
    scene.ledger.check()
