"""Callers who leave, stall and trickle, while others are served."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from reliability.chaos.scene import Scene
from reliability.load import ENCODINGS, Ask, Ledger, until_well

STAGES = ("before the head", "in the head", "after the head", "in the body", "after the body", "in the answer")
Address = tuple[str, int]


def break_off(address: Address, ask: Ask, stage: str, reset: bool, chance: random.Random) -> None:
    """Begin a request and leave at a stage of it, politely or by a reset."""
    head, body = ask.head(), ask.body
    sent = {
        "before the head": b"",
        "in the head": head[: chance.randrange(1, len(head))],
        "after the head": head,
        "in the body": head + body[: chance.randrange(1, len(body))],
        "after the body": head + body,
        "in the answer": head + body,
    }[stage]
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(address)
        connection.sendall(sent)
        if stage == "in the answer":
            connection.recv(chance.randrange(1, 4096))
        time.sleep(chance.choice([0, 0, 0.01, 0.15]))  # the last is longer than nobody looks after the caller
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def trickle(address: Address, ask: Ask, pause_s: float, ledger: Ledger) -> None:
    """Send a request in a few bits, with pauses."""
    sent, answer, began = ask.head(connection="close") + ask.body, b"", time.monotonic()
    size = max(1, len(sent) // 10)
    ledger.send()
    try:
        with socket.create_connection(address, timeout=20) as connection:
            with suppress(ConnectionError):  # it may have its answer already
                for start in range(0, len(sent), size):
                    connection.sendall(sent[start : start + size])
                    time.sleep(pause_s)
            while part := connection.recv(2**16):
                answer += part
    except TimeoutError:
        ledger.note("lost")
    except OSError:
        ledger.note("ended")
    else:
        if not answer:
            ledger.note("ended")
            return
        status, content = int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]
        ledger.note(str(status), time.monotonic() - began, ask.fault_of(status, content))


@contextmanager
def served(scene: Scene) -> Iterator[Address]:
    """A server under load, of which every request is answered whatever others do, of whom nothing is left then."""
    with scene.server(GLOW_DEADLINE_S="3") as (url, process):
        files = Path(f"/proc/{process.pid}/fd")
        before, ledger = len(os.listdir(files)), Ledger()
        with scene.load(url, ledger=ledger, callers=3) as load:
            load.wait(200)
            scene.figures["p99_ms_before"] = ledger.p99_ms
        with scene.load(url, callers=3) as load:
            load.wait(20)
            yield "127.0.0.1", int(url.rpartition(":")[2])
            load.wait(20)
            scene.figures["p99_ms"] = scene.ledger.p99_ms
        scene.recovered(until_well(url, scene.table.ask("json", [1])))
        deadline = time.monotonic() + 20
        while (
            len(os.listdir(files)) > before + 3 or "glow_requests_in_flight 0.0" not in httpx.get(f"{url}/metrics").text
        ):
            assert time.monotonic() < deadline, "connections or requests of callers who left are still there"
            time.sleep(0.1)
        assert process.poll() is None
    assert "Traceback" not in scene.log.read_text()
    scene.ledger.check()


def at_once(works: list[threading.Thread]) -> None:
    for work in works:
        work.start()
    for work in works:
        work.join()


@pytest.mark.fault("callers leave at every stage of a request")
def test_callers_who_leave_at_any_stage_cost_the_others_nothing(scene: Scene) -> None:
    with served(scene) as address:
        draws = [i % len(scene.table.rows) for i in range(2000)]  # whose answer does not fit into what the system holds

        def leave(seed: float) -> None:
            own = random.Random(seed)
            for encoding in ENCODINGS:
                few, many = scene.table.ask(encoding, [1, 2]), scene.table.ask(encoding, draws)
                for stage in STAGES:
                    for reset in (True, False):
                        break_off(address, many if stage == "in the answer" else few, stage, reset, own)

        at_once([threading.Thread(target=leave, args=(scene.chance.random(),)) for _ in range(3)])
        scene.rounds += 3 * len(ENCODINGS) * len(STAGES) * 2 - 1


@pytest.mark.fault("callers send slowly")
def test_slow_bodies_are_answered_in_time_or_given_up_at_the_deadline(scene: Scene) -> None:
    with served(scene) as address:
        slow, slower = Ledger(), Ledger()
        asks = scene.table.asks(scene.chance, 2 * len(ENCODINGS), codes=["deadline_exceeded"])
        works = [
            threading.Thread(target=trickle, args=(address, ask, pause_s, ledger))
            for ask in asks
            for pause_s, ledger in ((0.05, slow), (0.8, slower))
        ]
        at_once(works)
        scene.rounds += len(works) - 1
        slow.check(least=len(asks))
        slower.check(least=0, ended=True)  # whoever sends on what has its answer is cut off
        assert slower.refused["504"] + slower.ended == len(asks)
    for ledger in (slow, slower):
        scene.ledger.add(ledger)
