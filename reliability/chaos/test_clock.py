"""The wall clock jumps while requests are served, as after a machine's sleep or a correction by NTP."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from reliability.chaos.scene import Scene
from reliability.load import JSON
from tests.keys import entry, key
from tests.test_server import wait_until_all_listen

_LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
JUMPS = ("+1d", "-1d", "+1h", "-1h", "+30d")


@pytest.mark.fault("the wall clock jumps by hours and days")
@pytest.mark.skipif(_LIBRARY is None, reason="libfaketime is not installed (apt-get install faketime)")
def test_a_clock_that_jumps_moves_no_deadline_no_quota_and_no_figure(scene: Scene) -> None:
    clock, keys, log = scene.folder / "clock", scene.folder / "keys.toml", scene.folder / "log"
    keys.write_text(
        entry("ops", ["infer", "admin", "metrics"]) + entry("few", ["infer"], rows_per_second=0.001, burst_rows=4)
    )
    clock.write_text("+0")
    settings: dict[str, Any] = {
        "LD_PRELOAD": str(_LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "GLOW_API_KEYS_FILE": str(keys),
        "GLOW_ACCESS_LOG": "true",
        "GLOW_DEADLINE_S": "10",
    }
    began = time.monotonic()
    with scene.server(log=log, **settings) as (url, process):
        wait_until_all_listen(url, 1)
        few = {**key("few"), **JSON}
        ask = scene.table.ask("json", [0, 1, 2, 3])
        assert httpx.post(f"{url}{ask.path}", content=ask.body, headers=few).status_code == 200
        jumps = scene.chance.sample(JUMPS, 3)
        with scene.load(url, headers=key("ops")) as load:
            for jump in jumps:
                load.wait(50)
                clock.write_text(jump)
                time.sleep(1.2)  # until the library has seen it
                load.wait(50)
                refused = httpx.post(f"{url}{ask.path}", content=ask.body, headers=few)
                assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
                reloaded = httpx.post(f"{url}/admin/reload", headers=key("ops"), timeout=30)
                assert reloaded.status_code == 200, reloaded.text
                text = httpx.get(f"{url}/metrics", headers=key("ops")).text
                scene.rounds += 1
        process.terminate()
        assert process.wait(30) == 0
    seconds = time.monotonic() - began
    scene.ledger.check()
    assert scene.ledger.slowest_s < 5
    figures = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    sums = {name: value for name, value in figures.items() if "_seconds_sum" in name}
    assert any("glow_request_duration" in name for name in sums)
    assert all(0 <= value <= 10 * seconds for value in sums.values()), sums
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    asked = [line for line in lines if line["route"] and "total" in line["seconds"]]
    assert len(asked) > 300
    assert all(0 <= second < 10 for line in asked for second in line["seconds"].values())
    assert len({line["time"][:13] for line in asked}) > 1  # it did jump, an hour at least
    # No traceback would be asked too much: libfaketime itself now and then makes a sleep fail.
    assert not re.search(" (WARNING|ERROR|CRITICAL) ", log.read_text())
