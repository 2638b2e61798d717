"""The container files name only existing settings and packages, and harden the container."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service import __version__
from service.settings import Settings

ROOT = Path(__file__).parent.parent
NAMES = {f"DELTAW_{name.upper()}" for name in Settings.model_fields}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def services(name: str) -> dict[str, dict[str, Any]]:
    """Return the services of a compose file by name."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / name).read_text())["services"]
    return found


def compose(name: str) -> dict[str, Any]:
    """Return the service of a compose file that starts without a profile."""
    (service,) = (one for one in services(name).values() if "profiles" not in one)
    return service


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_compose_files_set_only_existing_settings(name: str) -> None:
    """Each `DELTAW_` name of a compose file is a setting; the service refuses unknown names."""
    named = {key for key in compose(name)["environment"] if key.startswith("DELTAW_")}
    assert named
    assert named <= NAMES


def test_dockerfile_sets_only_existing_settings() -> None:
    """Each `DELTAW_` name of the Dockerfile is a setting."""
    assert set(re.findall(r"\b(DELTAW_\w+)=", DOCKERFILE)) <= NAMES


def test_compose_hardens_the_container() -> None:
    """The root is read-only, capabilities are dropped, memory is limited, the grace period is
    longer than the drain, and the port is published on the loopback only."""
    service = compose("docker-compose.yml")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["mem_limit"]
    drain = Settings.model_fields["drain_seconds"].default
    assert int(service["stop_grace_period"].removesuffix("s")) > drain
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_without_a_key_allows_only_own_hosts() -> None:
    """Without a key the service checks `Host`, so a web page whose name resolves to the loopback
    cannot reach it."""
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


def test_profile_fleet_adds_replicas_and_a_proxy() -> None:
    """The profile adds a replica with the settings of the first and no published port, and HAProxy.

    HAProxy is hardened, is published on the loopback only, and finds all replicas by one name.
    """
    found = services("docker-compose.yml")
    first, other, front = found["deltaw"], found["replica"], found["haproxy"]
    own = {"ports", "profiles", "deploy"}
    assert {key: first[key] for key in first.keys() - own} == {
        key: other[key] for key in other.keys() - own
    }
    assert other["profiles"] == front["profiles"] == ["fleet"]
    assert "ports" not in other
    name, _, port = front["environment"]["FRONT_REPLICAS"].partition(":")
    assert [name] == first["networks"]["default"]["aliases"]
    assert port == re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.M)[0]
    assert all(port.startswith("127.0.0.1:") for port in front["ports"])
    assert front["read_only"] is True
    assert front["cap_drop"] == ["ALL"]
    assert front["mem_limit"]


def test_proxy_uses_only_variables_of_its_configuration() -> None:
    """haproxy.cfg reads each `FRONT_` variable of compose and of Kubernetes."""
    config = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    (container,) = (
        one
        for document in yaml.safe_load_all((ROOT / "deploy/kubernetes/base/proxy.yaml").read_text())
        if document["kind"] == "Deployment"
        for one in document["spec"]["template"]["spec"]["containers"]
    )
    given = {*services("docker-compose.yml")["haproxy"]["environment"]}
    given |= {variable["name"] for variable in container["env"]} - {"NAMESPACE"}
    assert given >= {"FRONT_REPLICAS", "FRONT_BIND"}
    for variable in given:
        assert f'"${{{variable}}}"' in config


def test_dockerignore_admits_every_package() -> None:
    """`.dockerignore` lets the build see every package of the wheel."""
    seen = (ROOT / ".dockerignore").read_text().splitlines()
    packages = SETUPTOOLS["packages"]["find"]["include"]
    assert {f"!{package.removesuffix('*')}" for package in packages} <= set(seen)


def test_volumes_are_the_folders_that_the_service_writes() -> None:
    """The image makes both folders for its user, and compose keeps both in named volumes."""
    folders = {"/var/cache/deltaw", "/var/lib/deltaw"}
    assert set(re.findall(r"^VOLUME (.*)$", DOCKERFILE, re.M)[0].split()) == folders
    assert set(re.findall(r"install -d -o deltaw -g deltaw.* (/var/\S+)", DOCKERFILE)) == folders
    assert "DELTAW_ADAPTERS=/var/lib/deltaw " in DOCKERFILE
    mounted = compose("docker-compose.yml")["volumes"]
    assert {volume.partition(":")[2] for volume in mounted} == folders


def test_image_runs_as_a_numeric_user_other_than_root() -> None:
    """The last `USER` is a number above 0, so an orchestrator can check that it is not root."""
    user = re.findall(r"^USER (\d+)", DOCKERFILE, re.M)[-1]
    assert int(user) > 0


def test_labels_name_the_project_the_version_and_the_revision() -> None:
    """The OCI labels agree with pyproject.toml. A build argument gives the revision, and the
    default version is that of the code."""
    project, prefix = PYPROJECT["project"], r"org\.opencontainers\.image\."
    labels = dict(re.findall(prefix + r'(\w+)="(.*?)"', DOCKERFILE))
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
        "licenses": project["license"],
    }
    assert dict(re.findall(r"^ARG (VERSION|REVISION)=(.*)$", DOCKERFILE, re.M)) == {
        "VERSION": __version__,
        "REVISION": "unknown",
    }
    assert "REVISION" in compose("docker-compose.yml")["build"]["args"]
    checked = (ROOT / "deploy/check-image.sh").read_text()
    assert set(re.findall(r"^labelled (\w+) ", checked, re.M)) == labels.keys() - {"description"}


def test_labels_follow_every_layer() -> None:
    """No layer follows the labels, so a new revision rebuilds no layer."""
    instructions = re.findall(r"^(RUN|COPY|ARG REVISION|LABEL)\b", DOCKERFILE, re.M)
    assert instructions[-2:] == ["ARG REVISION", "LABEL"]
