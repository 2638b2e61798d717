"""The command: its flags, its exit codes, and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from service.settings import Settings
from tests.api.conftest import poison
from tests.checkpoints import save_tiny
from tests.service_process import Served, free_port


def deltaw(
    *arguments: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in a folder of its own."""
    root = str(Path(__file__).parent.parent)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")}
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
        cwd=folder,
        env=clean | {"PYTHONPATH": root, "COLUMNS": "200", "NO_COLOR": "1"} | environment,
    )


def test_a_flag_for_every_setting(tmp_path: Path) -> None:
    """`deltaw serve --help` has a flag for each setting, and says what it is."""
    said = deltaw("serve", "--help", folder=tmp_path).stdout
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in said
        assert field.description
        assert field.description.split()[0] in said
    assert "print the resolved settings and stop" in said


def test_check_config(tmp_path: Path) -> None:
    """`--check-config` prints what the settings come to, secrets masked, and loads nothing."""
    (tmp_path / ".env").write_text("DELTAW_PORT=1001\nDELTAW_THREADS=1\nDELTAW_QUEUE_SIZE=11\n")
    ended = deltaw(
        "serve",
        "--check-config",
        "--port",
        "1003",
        folder=tmp_path,
        DELTAW_PORT="1002",
        DELTAW_THREADS="2",
        DELTAW_API_KEYS="open-sesame",
        DELTAW_MODEL="/no/such/folder",
    )
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout)
    assert (printed["port"], printed["threads"], printed["queue_size"]) == (1003, 2, 11)
    assert set(printed) == set(Settings.model_fields)
    assert len(printed["api_keys"]) == 1
    assert "open-sesame" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"DELTAW_API_KEY": "open-sesame"}, "DELTAW_API_KEY"),
        ({"DELTAW_HOST": "0.0.0.0"}, "DELTAW_API_KEYS"),
        ({"DELTAW_PORT": "open-sesame"}, "port"),
        ({"DELTAW_API_KEYS_FILE": "/no/such/file"}, "/no/such/file"),
        ({"DELTAW_API_KEYS": "open-sesame now"}, "API key"),
        ({"DELTAW_ALLOWED_HOSTS": "https://a.example:8000"}, "allowed_hosts: 'https://a.ex"),
        ({"DELTAW_CORS_ORIGINS": "a.example"}, "cors_origins: 'a.example' is not an origin"),
        ({"DELTAW_ROOT_PATH": "/v1"}, "root_path"),
        ({"DELTAW_DEVICE": "gpu"}, "device"),
    ],
)
def test_wrong_settings(tmp_path: Path, environment: dict[str, str], said: str) -> None:
    """A wrong setting ends the command with one sentence that names it and not its value."""
    ended = deltaw("serve", folder=tmp_path, **environment)
    assert ended.returncode not in (0, 1)
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("deltaw: ")
    assert said in sentence
    assert "open-sesame" not in sentence
    assert "Value error" not in sentence
    assert ended.stdout == ""


def test_unknown_flag(tmp_path: Path) -> None:
    """A flag that is no setting is refused."""
    ended = deltaw("serve", "--nope", "1", folder=tmp_path)
    assert ended.returncode == 2
    assert "--nope" in ended.stderr


def test_check(tiny_folder: Path) -> None:
    """`deltaw check` runs the equivalence check here and now, and ends with 0 where it holds."""
    ended = deltaw("check", "--json", "--model", str(tiny_folder))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["verdict"], found["layers"]) == ("holds", 3)
    assert found["worst_relative_error"] < 2e-5 < found["least_unpatched_relative_error"]


@pytest.mark.slow
def test_check_fails(tmp_path: Path) -> None:
    """Where the check does not hold, `deltaw check` says so and ends with 1."""
    with torch.inference_mode(False):
        poison(save_tiny(tmp_path), slice(None))
    ended = deltaw("check", "--model", str(tmp_path))
    assert ended.returncode == 1
    assert "fails" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_check_without_model() -> None:
    """`deltaw check` of a model that cannot be had ends with a sentence, not a traceback, and not
    with the code of a check that does not hold."""
    ended = deltaw("check", "--model", "/no/such/folder")
    assert ended.returncode == 3
    assert ended.stderr.startswith("deltaw: ")
    assert "Traceback" not in ended.stderr


def test_healthcheck(tiny_service: Served) -> None:
    """`deltaw healthcheck` ends with 0 where the configured service is ready, else with 1, and
    needs no key."""
    port = tiny_service.url.rpartition(":")[2]
    assert deltaw("healthcheck", DELTAW_PORT=port).returncode == 0
    assert deltaw("healthcheck", "--url", tiny_service.url).returncode == 0
    absent = deltaw("healthcheck", DELTAW_PORT=str(free_port()))
    assert absent.returncode == 1
    assert absent.stderr.startswith("deltaw: ")
    assert "Traceback" not in absent.stderr


def test_healthcheck_of_public_service(tiny_service: Served) -> None:
    """A service that listens on every address is asked at this machine's."""
    port = tiny_service.url.rpartition(":")[2]
    ended = deltaw("healthcheck", DELTAW_PORT=port, DELTAW_HOST="0.0.0.0", DELTAW_API_KEYS="k")
    assert ended.returncode == 0, ended.stderr


def test_healthcheck_of_ipv6(tmp_path: Path) -> None:
    """An IPv6 address is put into brackets: where nobody listens that is said, without a
    traceback."""
    ended = deltaw("healthcheck", folder=tmp_path, DELTAW_HOST="::1", DELTAW_PORT=str(free_port()))
    assert ended.returncode == 1
    assert ended.stderr.startswith("deltaw: ")
    assert "Traceback" not in ended.stderr
