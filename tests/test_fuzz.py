"""Whatever bytes come from outside, their reader takes them or refuses them by errors of its own."""

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability import record
from reliability.fuzz import __main__ as command
from reliability.fuzz import cover, trees, wire
from reliability.fuzz.__main__ import Campaign
from reliability.fuzz.code import digest_of
from reliability.fuzz.limits import MAX_BYTES
from reliability.fuzz.table import CORPUS, kept, module_of, targets
from reliability.fuzz.target import Budget, Finding, Target
from reliability.fuzz.wire import Connections
from service.errors import BadRequest, Unavailable
from tests.wire import mutated

pytestmark = pytest.mark.filterwarnings("default")  # as the service runs
READERS = [name for name in targets() if name != "http"]


def spoiled(target: Target) -> st.SearchStrategy[bytes]:
    """Inputs near those that a reader takes, in its format still or not."""
    seeds = list(target.seeds())
    changed = mutated(st.sampled_from(seeds))
    if target.holds_json:
        changed |= st.builds(trees.mutate, st.sampled_from(seeds), st.randoms(use_true_random=False))
    return changed if target.repair is None else changed | changed.map(target.repair)


@pytest.mark.parametrize("name", READERS)
def test_what_fuzzing_kept_is_taken_or_refused_and_takes_little_memory(name: str) -> None:
    target, budget = targets()[name], Budget(max_seconds=math.inf)
    assert any(target.check(seed) for seed in target.seeds()) or name == "client"
    budget.begin()
    for path in kept(name):
        target.check(path.read_bytes())
        budget.end()


@pytest.mark.parametrize("name", READERS)
def test_what_is_nearly_of_a_format_is_taken_or_refused(name: str) -> None:
    @settings(max_examples=40)
    @given(spoiled(targets()[name]))
    def check(data: bytes) -> None:
        targets()[name].check(data)

    check()


async def test_no_bytes_of_a_connection_are_answered_by_a_server_error(app: FastAPI) -> None:
    connections, random = Connections(app), Random(0)
    seeds = list(targets()["http"].seeds())
    for data in (*seeds, *(path.read_bytes() for path in kept("http"))):
        await connections.take(data)
    for seed in random.choices(seeds, k=150):
        at = random.randrange(len(seed))
        spoilt = seed[:at] + random.randbytes(random.randrange(4)) + seed[at + random.randrange(4) :]
        for data in (spoilt, wire.repair(spoilt), wire.repair(trees.mutate(seed, random))):
            await connections.take(data)


def test_kept_inputs_are_small_and_of_targets_that_there_are() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} <= targets().keys()
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert max(sizes) <= MAX_BYTES
    assert sum(sizes) < 2**19


def test_what_is_neither_taken_nor_refused_is_found() -> None:
    def fail(data: bytes) -> None:
        raise {b"400": BadRequest, b"503": Unavailable, b"key": KeyError}[data]("no")

    target = Target("any", fail, lambda: ())
    assert not target.check(b"400")
    with pytest.raises(Finding, match="503"):
        target.check(b"503")
    with pytest.raises(KeyError):
        target.check(b"key")
    assert Target("any", len, lambda: ()).check(b"")


def test_an_input_that_takes_too_much_is_found() -> None:
    for budget, message in ((Budget(max_seconds=-1), "of the processor"), (Budget(max_growth_mb=-1), "MB of memory")):
        budget.begin()
        with pytest.raises(Finding, match=message):
            budget.end()


async def test_an_application_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_WAIT_S", 0.01)

    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError

    async def answers_500(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def never_answers(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)

    for app, message in ((raises, "the log has errors"), (answers_500, "status 500"), (never_answers, "no answer in")):
        with pytest.raises(Finding, match=message):
            await Connections(app).take(b"GET / HTTP/1.1\r\n\r\n")
    await asyncio.sleep(0.1)


async def test_what_a_request_leaves_behind_is_found(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    await Connections(app).take(b"GET /livez HTTP/1.1\r\n\r\n")
    monkeypatch.setattr(app.state.service.room, "taken", 7)
    with pytest.raises(Finding, match=r"still holds .*7"):
        await Connections(app).take(b"GET /livez HTTP/1.1\r\n\r\n")


@given(st.randoms(use_true_random=False))
def test_changed_json_is_json_where_it_stood(random: Random) -> None:
    data = b"{ab" + json.dumps({"a": [1, {"b": None}], "c": "d"}).encode() + b"\xff"
    changed = trees.mutate(data, random)
    assert changed.startswith(b"{ab")
    assert changed.endswith(b"\xff")
    json.loads(changed[3:-1])
    assert trees.mutate(b"{no}", random) == b"{no}"


def test_figures_add_up_as_long_as_the_code_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FIGURES", tmp_path)
    command.keep(Campaign("json", 1000, 2.0, 500, 0, 300, 1.5, "a"), add=True)
    command.keep(Campaign("npy", 10, 1.0, 10, 1, 300, 1.0, "a"), add=True)
    command.keep(Campaign("json", 500, 1.0, 500, 0, 200, 2.5, "a"), add=True)
    figures = record.read("fuzz")
    assert (figures["inputs"], figures["findings"]) == (1510, 1)
    together = Campaign("json", 1500, 3.0, 500, 0, 300, 2.5, "a")
    assert {"target": "json", **figures["targets"]["json"]} == {**asdict(together), "corpus": len(kept("json"))}
    command.keep(Campaign("json", 7, 1.0, 7, 0, 200, 2.5, "b"), add=True)
    assert record.read("fuzz")["inputs"] == 17
    command.keep(Campaign("npy", 5, 1.0, 10, 1, 300, 1.0, "a"), add=False)
    assert record.read("fuzz")["inputs"] == 12


def test_the_digest_of_code_is_that_of_what_a_target_reaches() -> None:
    digests = [digest_of(module_of(name)) for name in ("json", "npy", "client", "http")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_corpus_has_the_smallest_inputs_that_lead_everywhere() -> None:
    target, inputs = targets()["digests"], [b"no", b"no digest", b"# comment", b"\n", b"\n\n", b"\xff"]
    chosen = cover.smallest(target, inputs)
    assert chosen == [b"\n", b"\xff", b"no"]
    everywhere = set().union(*(cover.steps_of(target, data) for data in inputs))
    assert set().union(*(cover.steps_of(target, data) for data in chosen)) == everywhere
