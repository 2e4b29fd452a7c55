"""What clients of the service read of answers that are not what they asked for; needs httpx alone."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx


def retry_after_s(response: httpx.Response, default: float) -> float:
    """Seconds that a service wants to be left alone: a number of them, or a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return default


def error_of(response: httpx.Response) -> str:
    """What a service says of an error, in one line; the meaning of the status where something else answers."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
