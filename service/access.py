"""Who may ask for what: API keys, hashed at rest, their scopes, and which scope each route needs.

The keys file is TOML, a table for each key, as ``python -m service.keys`` writes them:

    [[keys]]
    id = "pipeline"                 # for the log and for errors; not secret
    sha256 = "9f86d081884c7d65..."  # of the key itself, which is stored nowhere
    scopes = ["infer", "metrics"]
    rows_per_second = 5000          # optional: a token bucket in rows ...
    burst_rows = 20000              # ... that holds so many; four seconds' worth if absent
"""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import line_of, unquoted
from service.errors import Forbidden, Unauthorized
from service.quota import TokenBucket
from service.settings import SettingsError
from service.shared import shared_folder

Scope = Literal["infer", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
ANONYMOUS: frozenset[Scope] = frozenset({"infer", "metrics"})  # where there are no keys
OPEN = frozenset({"/", "/docs", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})  # to everyone
PLAYGROUND = "/playground/"  # so are the pages at / and /docs, which ask for a key themselves; what they show is not:
DOCS_FILES = "/static-offline-docs/"  # /openapi.json has names, shapes and a row of each model
BURST_S = 4  # of a key's rate that its bucket holds where the file does not say

_READING = ("GET", "HEAD", "OPTIONS")


class KeyEntry(BaseModel):
    """A key as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: Annotated[list[Scope], Field(min_length=1)]
    rows_per_second: float | None = Field(None, ge=1e-6, le=1e12, allow_inf_nan=False)
    burst_rows: int | None = Field(None, ge=1, le=10**15)

    @model_validator(mode="after")
    def _consistent(self) -> KeyEntry:
        if self.burst_rows is not None and self.rows_per_second is None:
            raise ValueError("burst_rows is of no use without rows_per_second")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: Annotated[list[KeyEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _unique(self) -> _File:
        for what in ("id", "sha256"):
            value, times = Counter(getattr(key, what) for key in self.keys).most_common(1)[0]
            if times > 1:
                raise ValueError(f"two keys have the {what} {value}")
        return self


@dataclass(frozen=True)
class Caller:
    """Who asks: a key, or anyone where there are none."""

    id: str = ""
    scopes: frozenset[Scope] = ANONYMOUS
    bucket: TokenBucket | None = None


@dataclass(frozen=True)
class Access:
    """The keys that are accepted; without any, ``anyone`` is, who may not administer."""

    keys: tuple[tuple[bytes, Caller], ...] = ()
    anyone: Caller = Caller()
    fingerprint: str = ""  # equal for files that say the same

    def check(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Find who asks, and whether they may. Raises Unauthorized, Forbidden, and QuotaExceeded where none is left."""
        scope = scope_of(method, path)
        if scope is None:
            return self.anyone
        if not self.keys:
            if scope not in self.anyone.scopes:
                raise Forbidden(f"{path[:100]} needs a key with the scope {scope}, and GLOW_API_KEYS_FILE names none")
            return self.anyone
        caller = self._identify(headers)
        if scope not in caller.scopes:
            raise Forbidden(
                f"{path[:100]} needs the scope {scope}; key {caller.id} has {', '.join(sorted(caller.scopes))}"
            )
        if caller.bucket is not None and scope == "infer" and method not in _READING:
            caller.bucket.check()  # before the body is read
        return caller

    def _identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Compare a key with all there are, in a time that tells nothing of them."""
        given = _key_of(headers)
        if given is None:
            raise Unauthorized("a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        digest, found = hashlib.sha256(given).digest(), None
        for expected, caller in self.keys:
            if hmac.compare_digest(digest, expected):
                found = caller
        if found is None:
            raise Unauthorized("the key is not one of this service")
        return found


def scope_of(method: str, path: str) -> Scope | None:
    """The scope that a route needs; None: it is open. What changes something needs admin."""
    if method in _READING and (path in OPEN or path.startswith((PLAYGROUND, DOCS_FILES))):
        return None
    if path.startswith("/admin/") or path.endswith("/drift/reset"):
        return "admin"
    return "metrics" if path == "/metrics" else "infer"


def _key_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    own = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip()
        elif name == b"x-api-key" and own is None:
            own = value.strip()
    return own


def read_access(path: Path | None, before: Access | None = None) -> Access:
    """Read the keys file; None: no keys. Buckets of keys that were there ``before`` stay as full as they are.

    Raises SettingsError, which never quotes what could be a key.
    """
    if path is None:
        return Access()
    try:
        text = path.read_text(encoding="utf-8")
        file = _File.model_validate(tomllib.loads(text), strict=True)
    except OSError as error:
        raise SettingsError(f"GLOW_API_KEYS_FILE: {path}: {error.strerror}") from error
    except ValidationError as error:
        raise SettingsError(f"GLOW_API_KEYS_FILE: {path}: {line_of(error.errors()[0], quote=unquoted)}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"GLOW_API_KEYS_FILE: {path}: is not TOML: {error}") from error
    known = [caller.bucket for _, caller in before.keys if caller.bucket] if before else []
    buckets = {bucket.name: bucket for bucket in known}
    keys = tuple((bytes.fromhex(key.sha256), _caller(key, buckets)) for key in file.keys)
    return Access(keys, fingerprint=hashlib.sha256(text.encode()).hexdigest())


def _caller(key: KeyEntry, buckets: dict[str, TokenBucket]) -> Caller:
    bucket = None
    if key.rows_per_second is not None:
        burst = key.burst_rows or max(1, round(BURST_S * key.rows_per_second))
        bucket = TokenBucket(key.id, key.rows_per_second, burst, shared_folder())
        bucket = buckets.get(bucket.name, bucket)
    return Caller(key.id, frozenset(key.scopes), bucket)
