"""Settings: environment variables with the prefix ``GLOW_``."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from common.cli import did_you_mean
from common.errors import UsageError, line_of
from service.runner import Form

EMBEDDED_ARTIFACTS = Path(__file__).parent / "artifacts"


class SettingsError(UsageError):
    """A setting with a wrong value; the message names its variable, the rule and the value."""


class Limits(BaseModel):
    """Limits of one model, below those of the service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_request_rows: int | None = Field(None, ge=1)
    max_queue_rows: int | None = Field(None, ge=1)


class Settings(BaseSettings):
    """Every setting of the service. The command line of ``python -m service`` sets some of them."""

    model_config = SettingsConfigDict(env_prefix="GLOW_", frozen=True, extra="forbid")

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. A public one also needs GLOW_API_KEYS_FILE or GLOW_ALLOW_ANONYMOUS.",
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 picks a free one.")
    allow_anonymous: bool = Field(
        False, description="Serve everyone on a public address, where there are no keys; where there are, they decide."
    )
    api_keys_file: Path | None = Field(
        None, description="Keys that callers need, hashed, with scopes and quotas (docs/security.md); unset: none."
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        [], description="Origins whose web pages may call the service, separated by commas; unset: none."
    )
    models: Annotated[list[Path], NoDecode] = Field(
        [EMBEDDED_ARTIFACTS], min_length=1, description="Artifacts, or folders of them; paths separated by a colon."
    )
    default_model: str | None = Field(
        None,
        description="Model that answers requests that name none, NAME or NAME@VERSION; unset: fashion-mnist if "
        "served, else the first.",
    )
    digests_file: Path | None = Field(
        None, description="SHA-256 of the artifacts that may be loaded, as sha256sum writes them; unset: all."
    )
    model_limits: dict[str, Limits] = Field(
        {},
        description='Limits of single models, as JSON: `{"NAME": {"max_request_rows": 64, "max_queue_rows": 512}}`.',
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the model runs; auto takes a GPU if there is one."
    )
    workers: int = Field(
        1, ge=1, le=256, description="Processes that share the port, each with its own copy of the models."
    )
    threads: int = Field(
        0, ge=0, le=1024, description="Threads of one forward pass on the CPU; 0: a worker's share of the cores."
    )
    plan: Literal["auto", Form] = Field(
        "auto", description="How models run: the way measured to be fastest for each number of rows, or always one."
    )
    cache_dir: Path | None = Field(None, description="Folder that keeps what was measured at start; unset: none.")
    alpha: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Rows with a p-value of at most this are anomalies, where a request does not say; unset: the "
        "artifact's own.",
    )
    max_batch_rows: int = Field(
        4096,
        ge=1,
        le=65536,
        description="Rows of one forward pass, at most; reproducible ones have 16 images or 256 vectors.",
    )
    max_request_rows: int = Field(4096, ge=1, description="Rows of one request, dequantization samples counted.")
    max_explanation_rows: int = Field(
        65536,
        ge=1,
        description="Rows that explaining one request runs through the model: 1 an image, 12 D a row of D columns.",
    )
    max_queue_rows: int = Field(32768, ge=1, description="Rows waiting for the engine before requests get 429.")
    max_wait_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds of work, at the engine's pace, that may wait before requests get 429.",
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Bytes of one request body, decompressed.")
    max_bodies_bytes: int = Field(
        2**29, ge=1024, description="Bytes that the bodies of all requests under way in a process may have, else 429."
    )
    gzip_min_bytes: int = Field(
        2**16,
        ge=0,
        description="Bytes from which answers are compressed, for callers that accept gzip or deflate; binary ones for "
        "those that name one of them alone.",
    )
    deadline_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds from a request's arrival to its answer, else 504; callers may ask for fewer.",
    )
    drain_delay_s: float = Field(
        5.0,
        ge=0,
        le=600,
        description="Seconds from SIGTERM until no connection is accepted: /readyz answers 503, all else as before.",
    )
    stall_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds of one forward pass after which the engine is stuck: /livez answers 503, and a process "
        "that stays so ends.",
    )
    keep_alive_s: int = Field(75, ge=1, le=3600, description="Seconds that a connection may be idle.")
    drift_delta: float = Field(
        0.01, gt=0, lt=1, description="Probability that a model's drift watch ever raises a false alarm."
    )
    drift_window: int = Field(
        1000, ge=1, le=100_000, description="Last rows of a model that are compared with its calibration rows."
    )
    access_log: bool = Field(False, description="Write a line of JSON for each request to standard output.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log record written."
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [path for path in value.split(os.pathsep) if path] if isinstance(value, str) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return [origin.strip() for origin in value.split(",") if origin.strip()] if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(f"{origin!r} is no origin, such as https://example.org")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if not (self.allow_anonymous or self.api_keys_file is not None or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host!r} is a public address: set GLOW_API_KEYS_FILE to the keys that callers need, or "
                "GLOW_ALLOW_ANONYMOUS=true to serve callers without keys"
            )
        if self.max_queue_rows < self.max_request_rows:
            raise ValueError(
                f"max_queue_rows ({self.max_queue_rows}) must be at least max_request_rows ({self.max_request_rows}), "
                "or the largest request never fits"
            )
        if self.max_bodies_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_bodies_bytes ({self.max_bodies_bytes}) must be at least max_body_bytes ({self.max_body_bytes}), "
                "or the largest body never fits"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def settings_for(artifact: Path, **overrides: object) -> Settings:
    """Settings of a command that runs one artifact: what the environment says of a server does not stand in its way."""
    return read_settings(models=[artifact], default_model=None, host="127.0.0.1", workers=1, **overrides)


def read_settings(**overrides: object) -> Settings:
    """Read the environment; ``overrides`` win. Raises SettingsError."""
    unknown = [
        name for name in os.environ if name.startswith("GLOW_") and name[5:].lower() not in Settings.model_fields
    ]
    if unknown:
        known = [f"GLOW_{name.upper()}" for name in Settings.model_fields]
        raise SettingsError(f"{unknown[0]}: no such setting{did_you_mean(unknown[0], known)}")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(line_of(error.errors()[0], lambda name: f"GLOW_{name.split('.')[0].upper()}")) from error
