"""Artifacts are exchanged for what is none, at random under load, and read anew."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from reliability.chaos.scene import Scene
from tests.keys import entry, key
from tests.test_server import wait_until_all_listen

CORRUPT: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "cut": lambda data, chance: data[: chance.randrange(1, len(data))],
    "with a flipped bit": lambda data, chance: _flipped(data, chance.randrange(8 * len(data))),
    "empty": lambda data, chance: b"",
    "of another format": lambda data, chance: (
        chance.choice([b"\x89PNG\r\n\x1a\n", b"PK\x05\x06" + bytes(18)]) + data[:99]
    ),
    "a folder": lambda data, chance: None,
}


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.fault("an artifact is exchanged for a corrupt one and read anew under load")
@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_served_is_served_on_until_the_file_is_right_again(scene: Scene, workers: int) -> None:
    folder, keys = scene.folder / "models", scene.folder / "keys.toml"
    folder.mkdir()
    keys.write_text(entry("ops", ["infer", "admin"]))
    for name in ("tiny-table.pt", "faulty.pt"):
        shutil.copy(scene.artifacts / name, folder)
    path, sound = folder / "faulty.pt", (scene.artifacts / "faulty.pt").read_bytes()
    settings = {"GLOW_API_KEYS_FILE": str(keys), "GLOW_DEADLINE_S": "3"}
    with scene.server("--workers", workers, models=folder, **settings) as (url, process):
        wait_until_all_listen(url, workers)

        def reload() -> httpx.Response:
            return httpx.post(f"{url}/admin/reload", headers=key("ops"), timeout=30)

        with scene.load(url, headers=key("ops")) as load:
            for spoil in CORRUPT.values():
                load.wait(20)
                put(path, spoil(sound, scene.chance))
                refused = reload()
                assert (refused.status_code, refused.json()["code"]) == (409, "reload_refused"), refused.text
                assert "faulty.pt: " in refused.json()["error"]
                process.send_signal(signal.SIGHUP)  # which is refused as well, and tells the log alone
                load.wait(20)
                began = time.monotonic()
                put(path, sound)
                for _ in range(20):
                    answer = reload()
                    if answer.status_code == 200:  # a reload for the signal may have been under way
                        break
                    assert "under way" in answer.text, answer.text
                    time.sleep(0.1)
                assert answer.json()["models"] == [f"faulty@{_version(answer, 0)}", f"tiny-table@{_version(answer, 1)}"]
                scene.recovered(time.monotonic() - began)
            with vanishing(path, sound):
                for _ in range(4):
                    assert reload().status_code in (200, 409)
            scene.rounds += 4
        assert process.poll() is None
    assert "Traceback" not in scene.log.read_text()
    scene.ledger.check(least=100)


def _version(answer: httpx.Response, index: int) -> str:
    return str(answer.json()["models"][index].partition("@")[2])


def put(path: Path, data: bytes | None) -> None:
    """Have something at a path, at once: a file, or for None a folder."""
    if path.is_dir():
        path.rmdir()
    if data is None:
        path.unlink()
        path.mkdir()
        return
    beside = path.with_suffix(".part")
    beside.write_bytes(data)
    beside.replace(path)


@contextmanager
def vanishing(path: Path, data: bytes) -> Iterator[None]:
    """A file that comes and goes all the time."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            path.unlink(missing_ok=True)
            put(path, data)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
