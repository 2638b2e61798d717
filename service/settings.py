"""Settings: one frozen object, read once. Command line before environment before `.env` before
default."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "DELTAW_"
ENV_FILE = Path(".env")

MiB = 1024 * 1024


class Settings(BaseSettings):
    """How the service runs. Each field is `DELTAW_` and its name in capitals, and a flag of `deltaw
    serve`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, extra="ignore", frozen=True, env_ignore_empty=True
    )

    model: Annotated[
        str, Field(description="`bundled`, a hub id such as `gpt2`, or a folder", min_length=1)
    ] = "bundled"
    revision: Annotated[str | None, Field(description="branch, tag or commit of a hub id")] = None
    device: Annotated[
        str, Field(description="`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`")
    ] = "auto"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], Field(description="of the resident weights")
    ] = "float32"
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")
    ] = 8000
    threads: Annotated[
        int,
        Field(ge=0, le=1024, description="CPU threads; 0: one for each core that is really ours"),
    ] = 0
    row_budget: Annotated[
        int, Field(ge=1, description="rows of one forward; longer work is cut into several")
    ] = 512
    batching: Annotated[
        bool, Field(description="whether runs of different requests share a forward")
    ] = True
    prefix_cache_bytes: Annotated[
        int, Field(ge=0, description="what keys and values of known contexts may take; 0: none")
    ] = 128 * MiB
    max_body_bytes: Annotated[int, Field(ge=1, description="of a request's body")] = MiB
    header_seconds: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="in which a request's head arrives")
    ] = 10.0
    body_seconds: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="in which its body does")
    ] = 30.0
    idle_seconds: Annotated[
        int, Field(ge=1, description="a connection is kept between requests, or while unread")
    ] = 75
    max_connections: Annotated[
        int, Field(ge=1, description="open at once; one more closes the longest idle one")
    ] = 512
    max_response_bytes: Annotated[
        int, Field(ge=1, description="of an answer, predicted before any work")
    ] = 64 * MiB
    max_prompts: Annotated[int, Field(ge=1, description="prompts in one request")] = 64
    max_tokens_per_request: Annotated[
        int, Field(ge=1, description="rows of all runs that one request asks for")
    ] = 16384
    queue_size: Annotated[int, Field(ge=0, description="requests that may wait")] = 64
    deadline_seconds: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="of waiting and computing")
    ] = 60.0
    drain_seconds: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="after SIGTERM, for work already accepted"),
    ] = 30.0
    stuck_seconds: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="without a sign of life from the computation, after which the process ends",
        ),
    ] = 120.0
    api_keys: Annotated[
        tuple[SecretStr, ...],
        NoDecode,
        Field(description="comma-separated Bearer keys; none: open"),
    ] = ()
    api_keys_file: Annotated[
        Path | None, Field(description="a file of further keys, one a line")
    ] = None
    insecure: Annotated[bool, Field(description="allow a public address without a key")] = False
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="comma-separated origins of pages that may call"),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="comma-separated further names in `Host`; `*`: any"),
    ] = ()
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Field(description="`auto`: console on a terminal, else one JSON line a request"),
    ] = "auto"

    @field_validator("api_keys", "cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part for part in (piece.strip() for piece in value.split(",")) if part)
        return value

    @model_validator(mode="after")
    def _public_needs_key(self) -> Settings:
        if (self.api_keys_file is not None or self.api_keys) and not self.keys:
            raise ValueError(f"{PREFIX}API_KEYS_FILE holds no key")
        if not all(key.isascii() for key in self.keys):
            raise ValueError("a key is of ASCII characters")
        if not self.keys and not self.insecure and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host} is public and there is no key: set {PREFIX}API_KEYS, or "
                f"{PREFIX}INSECURE=true"
            )
        return self

    @property
    def url(self) -> str:
        """Where the service is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names and addresses that a request's `Host` may be; None: any.

        A page on any site can have its own name resolve to this machine and so reach what listens
        here alone, but not without that name in `Host`. A key keeps it out as well.
        """
        guarded = bool(self.allowed_hosts) or (not self.keys and _is_loopback(self.host))
        if not guarded or "*" in self.allowed_hosts:
            return None
        named = ("localhost", "127.0.0.1", "::1", self.host, *self.allowed_hosts)
        return frozenset(name.lower().strip("[]") for name in named)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that opens the service, from the setting and from the file."""
        named = [key.get_secret_value() for key in self.api_keys]
        if self.api_keys_file is not None:
            lines = self.api_keys_file.read_text().splitlines()
            named += [line.strip() for line in lines if line.strip()]
        return tuple(named)


def read_settings(**flags: Any) -> Settings:
    """The settings of this process.

    Args:
        flags: What the command line says; it comes first.

    Raises:
        ValueError: A value is refused, or a `DELTAW_` name is unknown.
        OSError: The file of keys cannot be read.
    """
    unknown = sorted({*_unknown(os.environ), *_unknown(dotenv_values(ENV_FILE))})
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]}")
    return Settings(**flags)


def _unknown(environment: Mapping[str, Any]) -> Iterator[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = (name for name in environment if name.upper().startswith(PREFIX))
    return (name for name in named if name.upper() not in known)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
