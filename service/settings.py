"""Settings: one frozen object, read once.

The command line overrides the environment, which overrides `.env`, which overrides the default. A
value that would have no effect, or another than it says, is refused or normalised here.
"""

from __future__ import annotations

import ipaddress
import os
import re
from difflib import get_close_matches
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
Origin = Annotated[str, AfterValidator(addresses.read_origin)]
AllowedHost = Annotated[str, AfterValidator(addresses.read_allowed_host)]


def _device(value: str) -> str:
    """A device that a model can be served on."""
    if not DEVICE.fullmatch(value):
        raise ValueError("give `auto`, `cpu`, `cuda`, or `cuda:` with a number")
    return value


class Settings(BaseSettings):
    """Settings of the service. A field's docstring is its help.

    The field `queue_size` is read from `DELTAW_QUEUE_SIZE` and from `deltaw serve --queue-size`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    model: Annotated[str, Field(min_length=1)] = "bundled"
    """Model: `bundled`, a hub id such as `gpt2`, or a folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, or `cuda:1`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the resident weights: `float32`, `bfloat16` or `float16`."""
    host: Annotated[str, AfterValidator(addresses.read_host)] = "127.0.0.1"
    """Name or IP address to listen on, without scheme and port."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on. 0 takes a free one."""
    root_path: Annotated[str, AfterValidator(addresses.read_root_path)] = ""
    """Path prefix in front of everything that is served, such as `/deltaw`. A proxy may strip it or
    pass it on."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of the computation, at most 1024. 0 takes one for each core that this process may
    use."""
    row_budget: Annotated[int, Field(ge=0)] = 0
    """Maximum rows of one forward. Longer work takes several. 0 is 512 on a CPU and 4096 on a
    GPU."""
    batching: bool = True
    """Whether runs of different requests share a forward."""
    prefix_cache_bytes: Annotated[int, Field(ge=0)] = 128 * MiB
    """Maximum bytes of the prefix cache. 0 turns the cache off."""
    graph_memory_bytes: Annotated[int, Field(ge=0)] = 512 * MiB
    """Maximum bytes of GPU memory for CUDA graphs. 0 turns CUDA graphs off. On a CPU there are
    none."""
    max_body_bytes: Count = MiB
    """Maximum bytes of a request body, or of one line of it (NDJSON)."""
    max_lines: Count = 4096
    """Maximum lines of an NDJSON request. Each asks one question."""
    max_ndjson_bytes: Count = 64 * MiB
    """Maximum bytes of all lines of an NDJSON request."""
    header_seconds: Seconds = 10.0
    """Seconds to receive the request line and the headers."""
    body_seconds: Seconds = 30.0
    """Seconds to receive the request body; of an NDJSON request, seconds without a byte of it."""
    idle_seconds: Count = 75
    """Whole seconds until a connection that sends no request, or does not read its answer, is
    closed."""
    max_connections: Count = 512
    """Maximum open connections. Above it, the longest-idle connection is closed."""
    max_response_bytes: Count = 64 * MiB
    """Maximum bytes of an answer, predicted before any work."""
    max_prompts: Count = 64
    """Maximum prompts in one request."""
    max_tokens_per_request: Count = 16384
    """Maximum rows that one request computes, over all its runs."""
    queue_size: Annotated[int, Field(ge=0)] = 64
    """Maximum requests that wait. Above it, the service answers 429."""
    deadline_seconds: Seconds = 60.0
    """Seconds for a request to wait and to be computed."""
    adapters: Path | None = None
    """Folder of adapters. By default `deltaw/adapters` in the user's data folder."""
    adapter_bytes: Count = 1024 * MiB
    """Maximum bytes of all adapters' files."""
    adapter_seconds: Seconds = 300.0
    """Seconds to make an adapter."""
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds after SIGTERM to finish the requests already accepted."""
    stuck_seconds: Seconds = 120.0
    """Seconds without progress of the computation until the process exits."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """API keys, separated by commas. Without any, no request needs one."""
    api_keys_file: Path | None = None
    """File of further API keys, one per line."""
    insecure: bool = False
    """Whether to listen on a public address without an API key."""
    cors_origins: Annotated[tuple[Origin, ...], NoDecode] = ()
    """Origins of web pages that may call, separated by commas, such as `https://a.example`. `*`
    allows any."""
    allowed_hosts: Annotated[tuple[AllowedHost, ...], NoDecode] = ()
    """Further hosts to accept in the `Host` header, separated by commas, without scheme and port.
    `*` accepts any."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """`json` (one line a request), `console`, or `auto` (`console` on a terminal, else `json`)."""

    @field_validator("api_keys", "cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        entries = tuple(part for piece in value.split(",") if (part := piece.strip()))
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
    def adapters_folder(self) -> Path:
        """Folder of adapters: the setting, or its default by the XDG base directories."""
        data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        return self.adapters or Path(data, "deltaw", "adapters")

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
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted({*os.environ, *dotenv_values(ENV_FILE)}):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            meant = ", ".join(get_close_matches(name.upper(), known, 1, 0.85))
            raise ValueError(
                f"{name} is not a setting: `deltaw serve --help` lists them"
                + (f"; did you mean {meant}?" if meant else "")
            )
    return Settings(**flags)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
