"""What a call does, step by step, without doing it: retries, deadlines and what is done side by side.

A call is a generator. It yields what is to be done, is sent what came of it, and returns what the call returns; who
does the steps, with a thread or with an event loop, knows nothing of what they are for.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

import httpx

from service import headers
from service.client.errors import (
    BY_STATUS,
    ConnectionFailed,
    DeadlineExceeded,
    GlowError,
    InvalidRequest,
    NotNow,
    ServiceFailed,
    Unavailable,
)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 60.0  # between tries; the first at most so long, twice that after each
FOREVER_S = 1e9  # what is more than that, no system waits for
TOLD_PAUSE_S = 2.0  # a wait that somebody who watches should know of
MAX_TIMEOUT_MS = 999_999_999  # that the header can say

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Send:
    """Send a request; gives an Answer, or the ConnectionFailed that came instead. ``deadline`` ends the wait for it."""

    method: str
    path: str
    deadline: Deadline
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # one may be a key


class Answer(NamedTuple):
    """An answer of any status, its body whole and writable."""

    status: int
    headers: Mapping[str, str]
    content: bytearray


@dataclass(frozen=True)
class Pause:
    """Do nothing for some seconds."""

    seconds: float


@dataclass(frozen=True)
class Together:
    """Do jobs, ``concurrency`` at a time; the next is taken when one ends, whose result ``done`` is given.

    The first that raises ends all.
    """

    jobs: Iterator[Steps[int]]
    concurrency: int
    done: Callable[[int], None]


T = TypeVar("T")
Steps = Generator[Send | Pause | Together, Any, T]


class Deadline:
    """When a call must be over, ``timeout_s`` after it began; None for never. Raises InvalidRequest."""

    def __init__(self, timeout_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequest(f"timeout must be a positive number of seconds, got {timeout_s}")
        self.timeout_s = math.inf if timeout_s is None or timeout_s > FOREVER_S else timeout_s
        self._clock = clock
        self._end = clock() + self.timeout_s

    @property
    def left_s(self) -> float:
        """Seconds that are left: inf for ever, 0 at least."""
        return max(0.0, self._end - self._clock())

    def exceeded(self, fault: GlowError | None) -> DeadlineExceeded:
        """The error that ends a call, which the last try's ``fault`` explains."""
        error = DeadlineExceeded(f"no answer within {self.timeout_s:g} s" + (f": {fault.message}" if fault else ""))
        if fault is not None:
            error.status, error.request_id, error.retry_after_s = fault.status, fault.request_id, fault.retry_after_s
        return error


@dataclass(frozen=True)
class Asking:
    """How requests are sent and sent again: ``retries`` times, for None until the deadline."""

    retries: int | None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    uniform: Callable[[float, float], float] = random.uniform

    def ask(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        content: bytes | None = None,
        headers_of_it: Mapping[str, str] | None = None,
    ) -> Steps[Answer]:
        """Ask until there is an answer that does not mean "not now". Raises GlowError for one that is not 200.

        Between tries it waits as long as the service says (Retry-After), else at random up to a bound that doubles.
        """
        fault: GlowError | None = None
        for attempt in itertools.count():
            left_s = deadline.left_s
            if not left_s:
                raise deadline.exceeded(fault) from fault
            sent = {**self.headers, **(headers_of_it or {})}
            if left_s < math.inf:
                sent[headers.TIMEOUT] = str(min(max(1, math.ceil(1000 * left_s)), MAX_TIMEOUT_MS))
            answer: Answer | ConnectionFailed = yield Send(method, path, deadline, content, sent)
            fault = error_of(answer) if isinstance(answer, Answer) else answer
            if fault is None:
                assert isinstance(answer, Answer)
                return answer
            if not isinstance(fault, NotNow):
                raise fault
            pause_s = fault.retry_after_s
            if pause_s is None:
                pause_s = self.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 16)))
            left_s = deadline.left_s
            if left_s and (attempt == self.retries or (pause_s > LONGEST_PAUSE_S and left_s == math.inf)):
                raise fault
            if pause_s >= left_s:
                raise deadline.exceeded(fault) from fault
            if pause_s >= TOLD_PAUSE_S:
                logger.warning("%s: asking again in %.0f s", fault.message, pause_s)
            yield Pause(pause_s)
        raise AssertionError


def error_of(answer: Answer) -> GlowError | None:
    """What an answer says went wrong, or its status where something else than a service answers; None for 200.

    Where that is a server error, what stands before the service has lost it: Ray's proxies say 500 of a node that died.
    """
    status = answer.status
    if status == 200:
        return None
    own, foreign = (ServiceFailed, Unavailable) if status >= 500 else (GlowError, GlowError)
    try:
        body = json.loads(answer.content)
        error = BY_STATUS.get(status, own)(str(body["error"]), body.get("code"), status, body.get("request_id"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        phrase = httpx.codes.get_reason_phrase(status)
        error = BY_STATUS.get(status, foreign)(
            phrase or f"status {status}", phrase.lower().replace(" ", "_") or None, status
        )
    error.retry_after_s = _retry_after_s(answer)
    return error


def _retry_after_s(answer: Answer) -> float | None:
    """Seconds that a service wants to be left alone: a number of them, or a date (RFC 9110, section 10.2.3)."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
