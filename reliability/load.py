"""Callers whose every request is accounted for: answered rightly, refused as documented, or ended by its connection."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch

from service.artifact import open_artifact, within_tolerance
from service.errors import ServiceError

Array = npt.NDArray[Any]
Encoding = Literal["json", "gzip", "npy", "oip", "encode"]
ENCODINGS: tuple[Encoding, ...] = ("json", "gzip", "npy", "oip", "encode")
JSON = {"content-type": "application/json"}
_SHOWN = 5  # faults that are told in words


@dataclass(frozen=True)
class Ask:
    """A request for log-likelihoods, and what may come of it: ``expected`` nats, or an error of one of ``codes``."""

    path: str
    body: bytes
    headers: dict[str, str]
    expected: Array | None  # (B,); None where it must be refused
    codes: Collection[str] = ()

    def head(self, **headers: str) -> bytes:
        """The head of this request, in bytes."""
        given = {"host": "x", **self.headers, "content-length": str(len(self.body)), **headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name.replace('_', '-')}: {text}" for name, text in given.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    def fault_of(self, status: int, content: bytes) -> str | None:
        """What is wrong with an answer; None where nothing is."""
        try:
            answer = json.loads(content)
            if status != 200:
                known = _CODES.get(answer["code"]) == status and answer["request_id"] and answer["error"]
                return None if known and answer["code"] in self.codes else f"{status} {content[:300]!r}"
            values = answer["log_likelihood"] if "log_likelihood" in answer else answer["outputs"][0]["data"]
            found = np.array(values, np.float64)
        except (ValueError, KeyError, TypeError) as error:
            return f"{status} {content[:300]!r}: {error!r}"
        if self.expected is None:
            return f"answered {content[:300]!r}"
        right = found.shape == self.expected.shape and within_tolerance(found, self.expected)
        return None if right else f"answered {found}, not {self.expected}"


def _codes_of(kind: type[ServiceError]) -> dict[str, int]:
    found = {kind.code: kind.status} if "code" in vars(kind) else {}
    for below in kind.__subclasses__():
        found |= _codes_of(below) | ({below.code: below.status} if hasattr(below, "code") else {})
    return found


_CODES = {"internal_error": 500, **_codes_of(ServiceError)}


class Rows:
    """Rows of a table, and their log-likelihoods by the artifact's own program."""

    def __init__(self, artifact: Path, rows: Array) -> None:
        read = open_artifact(artifact)
        self.model, self.rows = read.manifest.name, rows
        with torch.inference_mode():
            self.expected: Array = read.program.log_prob(torch.from_numpy(rows)).numpy()

    def ask(
        self, encoding: Encoding, which: Sequence[int], codes: Collection[str] = (), spoilt: float | None = None
    ) -> Ask:
        """A request for some of the rows; ``spoilt`` stands in the first column of the last one, which is refused."""
        rows, expected = self.rows[list(which)].copy(), self.expected[list(which)]
        if spoilt is not None:
            rows[-1, 0] = spoilt
        path, headers = f"/log-likelihood?model={self.model}", JSON
        if encoding == "npy":
            buffer = io.BytesIO()
            np.save(buffer, rows)
            body, headers = buffer.getvalue(), {"content-type": "application/x-npy"}
        elif encoding == "oip":
            path = f"/v2/models/{self.model}/infer"
            x = {"name": "x", "shape": rows.shape, "datatype": "FP64", "data": rows.ravel().tolist()}
            body = json.dumps({"inputs": [x], "outputs": [{"name": "log_likelihood"}]}).encode()
        else:
            path = "/encode" if encoding == "encode" else "/log-likelihood"
            body = json.dumps({"model": self.model, "inputs": rows.tolist()}).encode()
            if encoding == "gzip":
                body, headers = gzip.compress(body), {**JSON, "content-encoding": "gzip"}
        return Ask(path, body, headers, None if spoilt is not None else expected, codes)

    def asks(self, chance: random.Random, num: int = 40, codes: Collection[str] = (), most: int = 8) -> list[Ask]:
        """Requests for some random rows each, in all encodings."""
        draw = range(len(self.rows))
        return [
            self.ask(ENCODINGS[i % len(ENCODINGS)], chance.sample(draw, chance.randint(1, most)), codes)
            for i in range(num)
        ]


@dataclass
class Ledger:
    """What became of requests: each that was sent is one of ``ok``, ``wrong``, ``refused``, ``ended`` and ``lost``."""

    sent: int = 0
    ok: int = 0  # answered, with the right rows
    wrong: int = 0  # answered with other rows, or with an error that was not to be
    refused: Counter[str] = field(default_factory=Counter)  # by status, with a code that was to be
    ended: int = 0  # the connection broke off
    lost: int = 0  # nothing came in the caller's patience
    unreached: int = 0  # nobody listened, so that nothing was sent
    seconds: list[float] = field(default_factory=list, repr=False)  # of each that was sent
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def answered(self) -> int:
        """Requests that came to an answer of either kind."""
        return self.ok + self.wrong + self.refused.total()

    @property
    def slowest_s(self) -> float:
        """Seconds of the slowest request."""
        return max(self.seconds, default=0.0)

    @property
    def p99_ms(self) -> float:
        """Milliseconds within which 99 % of the requests were over."""
        return round(1e3 * float(np.quantile(self.seconds, 0.99)), 1)

    def add(self, other: Ledger) -> None:
        """Enter what another one holds."""
        for name in ("sent", "ok", "wrong", "ended", "lost", "unreached"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused += other.refused
        self.seconds += other.seconds

    def send(self) -> None:
        """Enter a request that is about to be sent."""
        with self._lock:
            self.sent += 1

    def note(self, outcome: str, seconds: float = 0.0, fault: str | None = None) -> None:
        """Enter a request that is over: its status, or what became of it instead."""
        with self._lock:
            if outcome != "unreached":
                self.seconds.append(seconds)
            if fault is not None:
                self.wrong += outcome.isdecimal()
                if len(self.faults) < _SHOWN:
                    self.faults.append(fault)
            if not outcome.isdecimal():
                setattr(self, outcome, getattr(self, outcome) + 1)
            elif fault is None and outcome == "200":
                self.ok += 1
            elif fault is None:
                self.refused[outcome] += 1

    def check(self, ended: bool = False, least: int = 20) -> None:
        """Assert that all is accounted for and right; ``ended``: connections may have broken off."""
        assert self.sent == self.answered + self.ended + self.lost
        assert (self.wrong, self.lost) == (0, 0), self.faults
        assert ended or not self.ended, self.faults
        assert self.ok >= least, self


class Caller:
    """Asks one request after the other, on a connection that it keeps."""

    def __init__(self, url: str, ledger: Ledger, patience_s: float = 30.0) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=patience_s)
        self._ledger = ledger

    def ask(self, ask: Ask, **headers: str) -> bool:
        """Send a request and enter what becomes of it; tells whether it was answered rightly."""
        connection = self._connection
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            connection.close()
            self._ledger.note("unreached")
            return False
        self._ledger.send()
        began = time.monotonic()
        try:
            connection.request("POST", ask.path, ask.body, {**ask.headers, **headers})
            response = connection.getresponse()
            content = response.read()
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            what = "lost" if isinstance(error, TimeoutError) else "ended"
            self._ledger.note(what, time.monotonic() - began, f"{error!r}")
            return False
        fault = ask.fault_of(response.status, content)
        self._ledger.note(str(response.status), time.monotonic() - began, fault)
        return fault is None and response.status == 200

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class Load:
    """Callers on threads, each of which asks for one thing after the other until the end of the ``with``."""

    def __init__(
        self,
        url: str,
        asks: Sequence[Ask],
        ledger: Ledger,
        chance: random.Random,
        callers: int = 6,
        pause_s: float = 0.002,
        patience_s: float = 30.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.ledger = ledger
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._work, args=(url, asks, random.Random(chance.random()), pause_s, patience_s, headers or {})
            )
            for _ in range(callers)
        ]

    def _work(
        self,
        url: str,
        asks: Sequence[Ask],
        chance: random.Random,
        pause_s: float,
        patience_s: float,
        headers: dict[str, str],
    ) -> None:
        with Caller(url, self.ledger, patience_s) as caller:
            while not self._ended.is_set():
                right = caller.ask(chance.choice(asks), **headers)
                time.sleep(pause_s if right else max(pause_s, 0.01))

    def wait(self, answers: int, within_s: float = 60.0) -> None:
        """Until so many more are answered."""
        wanted, deadline = self.ledger.answered + answers, time.monotonic() + within_s
        while self.ledger.answered < wanted:
            assert time.monotonic() < deadline, f"{answers} answers did not come in {within_s:g} s: {self.ledger}"
            time.sleep(0.02)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def status(url: str, path: str, within_s: float = 10.0) -> int:
    """What a path is answered with; 0 where nobody answers."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=within_s)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status
    return 0


def is_well(url: str, ask: Ask) -> bool:
    """Whether it says that it lives and is ready, and is."""
    with Caller(url, Ledger()) as caller:
        return (status(url, "/livez"), status(url, "/readyz")) == (200, 200) and caller.ask(ask)


def until_well(url: str, ask: Ask, within_s: float = 60.0) -> float:
    """Seconds until it is; AssertionError where that takes longer than ``within_s``."""
    began = time.monotonic()
    while not is_well(url, ask):
        assert time.monotonic() < began + within_s, f"not well after {within_s:g} s"
        time.sleep(0.05)
    return time.monotonic() - began
