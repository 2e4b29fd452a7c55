"""Hours of load in small: every load of a round runs, its figures are kept, and a trend is that of its values."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import pytest

from benchmarks.serving.servers import glow_with_keys
from reliability.soak import __main__ as soak
from reliability.soak import crowd
from reliability.soak.trend import relative, trend


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_round_asks_for_everything_and_keeps_what_it_saw(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, images = models_dir / "tiny-table.pt", models_dir / "tiny-images.pt"
    changes = {
        "ASKED": table,
        "OTHER": images,
        "TIMES": (0.5, 2.0),
        "SMALL_RATES": {table: 20.0, images: 20.0},
        "ASIDE_S": 0.2,
        "REST_S": 0.1,
        "PAUSE_S": 0.0,
        "glow_with_keys": partial(glow_with_keys, threads=1, plan="optimized", cache_dir=tmp_path),
    }
    for name, value in changes.items():
        monkeypatch.setattr(soak, name, value)
    for name, value in {"CLIENTS": 10, "JOINING_S": 0.1, "SETTLED_S": 0.2, "MOST_ROWS": 512}.items():
        monkeypatch.setattr(crowd, name, value)
    monkeypatch.setattr("os.nice", lambda change: change)
    with pytest.raises(SystemExit) as raised:
        soak.main(["--minutes", "0", "--seconds", "1", "--out", str(tmp_path / "soak.json")])
    figures = orjson.loads((tmp_path / "soak.json").read_bytes())
    assert raised.value.code == 0, figures
    assert figures["unexpected"] == figures["mix"]["failed_connections"] == figures["mix"]["share_off"] == 0
    assert set(figures["mix"]["beside"]) == {"hang-ups", "scrapes", "draws of images", "reloads"}
    assert min(figures["mix"]["beside"].values()) > 0
    assert [level["times"] for level in figures["levels"]] == [0.5, 2.0]
    assert {one["beside"] for one in figures["crowds"]} == {str(huge) for huge in crowd.HUGE if huge}
    assert all(one["p99_ms"] > 0 for one in (*figures["levels"], *figures["crowds"]))
    assert {name: len(of["values"]) for name, of in figures["held"].items()} == {
        "memory_mb": 2,
        "files": 2,
        "threads": 2,
    }


def test_a_trend_is_that_of_most_values_and_wide_where_they_scatter() -> None:
    seconds = np.arange(0.0, 3600.0, 60.0)
    grows = 100 + 12 * seconds / 3600
    grows[30] = 1000
    found = trend(list(seconds), list(grows))
    assert found is not None
    assert found.an_hour == pytest.approx(12, rel=0.01)
    assert found.low <= 12 <= found.high
    share = relative(list(seconds), list(grows))
    assert share is not None
    assert share.an_hour == pytest.approx(100 * 12 / 106, rel=0.02)  # per cent of the median
    scattered = trend(list(seconds), list(np.random.default_rng(0).normal(100, 5, len(seconds))))
    assert scattered is not None
    assert scattered.low < 0 < scattered.high
    assert trend([0.0, 1.0], [1.0, 2.0]) is None
