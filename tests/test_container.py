"""The container's files name only what there is: settings and packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service.settings import Settings

ROOT = Path(__file__).parent.parent
NAMES = {f"DELTAW_{name.upper()}" for name in Settings.model_fields}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def compose(name: str) -> dict[str, Any]:
    """The one service of a compose file."""
    services = yaml.safe_load((ROOT / name).read_text())["services"]
    assert set(services) == {"deltaw"}
    service: dict[str, Any] = services["deltaw"]
    return service


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_environment(name: str) -> None:
    """Each setting in a compose file is one that the service has: it would refuse to start."""
    named = {key for key in compose(name)["environment"] if key.startswith("DELTAW_")}
    assert named
    assert named <= NAMES


def test_image_environment() -> None:
    """So is each in the Dockerfile."""
    assert set(re.findall(r"\b(DELTAW_\w+)=", DOCKERFILE)) <= NAMES


def test_hardened() -> None:
    """The compose file runs the image with a read-only root, no capabilities, a limit of memory,
    and a grace longer than the drain; it publishes on the loopback alone."""
    service = compose("docker-compose.yml")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["mem_limit"]
    drain = Settings.model_fields["drain_seconds"].default
    assert int(service["stop_grace_period"].removesuffix("s")) > drain
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_known_hosts() -> None:
    """Where compose starts it without a key, it answers to its own names alone: no page gets at it
    through a name that resolves to the loopback."""
    given = compose("docker-compose.yml")["environment"]
    defaults: dict[str, Any] = {
        name.removeprefix("DELTAW_").lower(): re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
        for name, value in given.items()
        if name.startswith("DELTAW_")
    }
    settings = Settings(host="0.0.0.0", **defaults)
    assert not settings.keys
    assert settings.hosts is not None
    assert settings.hosts >= {"deltaw", "localhost", "127.0.0.1"}


def test_the_build_sees_the_packages() -> None:
    """Every package of the wheel is among what the image's build may see."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    seen = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{package.partition('.')[0]}" for package in packages} <= set(seen)


def test_not_root() -> None:
    """The image's last user is a number that is not root's, which an orchestrator can check."""
    user = re.findall(r"^USER (\d+)", DOCKERFILE, re.M)[-1]
    assert int(user) > 0
