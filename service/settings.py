"""Settings: one frozen object, read once.

The command line overrides the environment, which overrides `.env`, which overrides the default. A
value that would have no effect, or another than it says, is refused or normalised here.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service import addresses

PREFIX = "DELTAW_"
ENV_FILE = Path(".env")

MiB = 1024 * 1024

KEY = re.compile(r"[!-~]+")
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _device(value: str) -> str:
    """A device that a model can be served on."""
    if not DEVICE.fullmatch(value):
        raise ValueError("give `auto`, `cpu`, `cuda`, or `cuda:` with a number")
    return value


class Settings(BaseSettings):
    """Settings of the service.

    The field `queue_size` is read from `DELTAW_QUEUE_SIZE` and from `deltaw serve --queue-size`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, extra="ignore", frozen=True, env_ignore_empty=True
    )

    model: Annotated[
        str,
        Field(min_length=1, description="Model: `bundled`, a hub id such as `gpt2`, or a folder."),
    ] = "bundled"
    revision: Annotated[str | None, Field(description="Branch, tag or commit of a hub id.")] = None
    device: Annotated[
        str,
        AfterValidator(_device),
        Field(description="`auto` (the first GPU, else the CPU), `cpu`, `cuda`, or `cuda:1`."),
    ] = "auto"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Field(description="Data type of the resident weights: `float32`, `bfloat16` or `float16`."),
    ] = "float32"
    host: Annotated[
        str,
        AfterValidator(addresses.read_host),
        Field(description="Name or IP address to listen on, without scheme and port."),
    ] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="Port to listen on. 0 takes a free one.")
    ] = 8000
    root_path: Annotated[
        str,
        AfterValidator(addresses.read_root_path),
        Field(
            description="Path prefix in front of everything that is served, such as `/deltaw`. A "
            "proxy may strip it or pass it on."
        ),
    ] = ""
    threads: Annotated[
        int,
        Field(
            ge=0,
            le=1024,
            description="CPU threads of the computation, at most 1024. 0 takes one for each core "
            "that this process may use.",
        ),
    ] = 0
    row_budget: Annotated[
        Count, Field(description="Maximum rows of one forward. Longer work takes several.")
    ] = 512
    batching: Annotated[
        bool, Field(description="Whether runs of different requests share a forward.")
    ] = True
    prefix_cache_bytes: Annotated[
        int,
        Field(ge=0, description="Maximum bytes of the prefix cache. 0 turns the cache off."),
    ] = 128 * MiB
    max_body_bytes: Annotated[Count, Field(description="Maximum bytes of a request body.")] = MiB
    header_seconds: Annotated[
        Seconds, Field(description="Seconds to receive the request line and the headers.")
    ] = 10.0
    body_seconds: Annotated[Seconds, Field(description="Seconds to receive the request body.")] = (
        30.0
    )
    idle_seconds: Annotated[
        Count,
        Field(
            description="Whole seconds until a connection that sends no request, or does not read "
            "its answer, is closed."
        ),
    ] = 75
    max_connections: Annotated[
        Count,
        Field(
            description="Maximum open connections. Above it, the longest-idle connection is closed."
        ),
    ] = 512
    max_response_bytes: Annotated[
        Count, Field(description="Maximum bytes of an answer, predicted before any work.")
    ] = 64 * MiB
    max_prompts: Annotated[Count, Field(description="Maximum prompts in one request.")] = 64
    max_tokens_per_request: Annotated[
        Count, Field(description="Maximum rows that one request computes, over all its runs.")
    ] = 16384
    queue_size: Annotated[
        int,
        Field(ge=0, description="Maximum requests that wait. Above it, the service answers 429."),
    ] = 64
    deadline_seconds: Annotated[
        Seconds, Field(description="Seconds for a request to wait and to be computed.")
    ] = 60.0
    drain_seconds: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Seconds after SIGTERM to finish the requests already accepted.",
        ),
    ] = 30.0
    stuck_seconds: Annotated[
        Seconds,
        Field(description="Seconds without progress of the computation until the process exits."),
    ] = 120.0
    api_keys: Annotated[
        tuple[SecretStr, ...],
        NoDecode,
        Field(description="API keys, separated by commas. Without any, no request needs one."),
    ] = ()
    api_keys_file: Annotated[
        Path | None, Field(description="File of further API keys, one a line.")
    ] = None
    insecure: Annotated[
        bool, Field(description="Whether to listen on a public address without an API key.")
    ] = False
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(addresses.read_origin)], ...],
        NoDecode,
        Field(
            description="Origins of web pages that may call, separated by commas, such as "
            "`https://a.example`. `*` allows any."
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(addresses.read_allowed_host)], ...],
        NoDecode,
        Field(
            description="Further hosts to accept in the `Host` header, separated by commas, "
            "without scheme and port. `*` accepts any."
        ),
    ] = ()
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Field(
            description="`json` (one line a request), `console`, or `auto` (`console` on a "
            "terminal, else `json`)."
        ),
    ] = "auto"

    @field_validator("api_keys", "cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        entries = tuple(part for part in (piece.strip() for piece in value.split(",")) if part)
        if value and not entries:
            raise ValueError("the list is empty: give an entry, or leave the setting out")
        return entries

    @model_validator(mode="after")
    def _keys_are_usable(self) -> Settings:
        keys = self.keys
        if self.api_keys_file is not None and not keys:
            raise ValueError(f"{PREFIX}API_KEYS_FILE holds no key")
        if not all(KEY.fullmatch(key) for key in keys):
            raise ValueError("an API key holds a space, or a character that is not printable ASCII")
        if not keys and not self.insecure and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host} is public and there is no key: set {PREFIX}API_KEYS, or "
                f"{PREFIX}INSECURE=true"
            )
        return self

    @property
    def url(self) -> str:
        """URL at which this machine reaches the service, with the path prefix."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.port}{self.root_path}"

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names and addresses to accept in `Host`. None accepts any.

        A web page can let its own name resolve to this machine and so reach a service that listens
        on the loopback only. Its requests then carry that name in `Host`. A key keeps them out as
        well.
        """
        guarded = bool(self.allowed_hosts) or (not self.keys and _is_loopback(self.host))
        if not guarded or addresses.ANY in self.allowed_hosts:
            return None
        return frozenset(("localhost", "127.0.0.1", "::1", self.host, *self.allowed_hosts))

    @property
    def keys(self) -> tuple[str, ...]:
        """API keys of the setting and of the file."""
        named = [key.get_secret_value() for key in self.api_keys]
        if self.api_keys_file is not None:
            lines = self.api_keys_file.read_text("utf-8-sig").splitlines()
            named += [line.strip() for line in lines if line.strip()]
        return tuple(named)


def read_settings(**flags: Any) -> Settings:
    """Read the settings of this process.

    Args:
        flags: Values of the command line, which override all others.

    Raises:
        ValueError: A value is refused, or a `DELTAW_` name is unknown.
        OSError: The file of API keys cannot be read.
    """
    unknown = sorted({*_unknown(os.environ), *_unknown(dotenv_values(ENV_FILE))})
    if unknown:
        raise ValueError(f"{unknown[0]} is not a setting: `deltaw serve --help` lists them")
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
