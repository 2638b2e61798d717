"""`deltaw serve`, `check` and `healthcheck`: flags, exit codes, output."""

from __future__ import annotations

import json
import os
import re
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
    """Run the command in a process of its own, in a folder of its own."""
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


def test_help_shows_type_and_default_of_every_setting(tmp_path: Path) -> None:
    """`deltaw serve --help` describes each setting, with its type and its default."""
    said = deltaw("serve", "--help", folder=tmp_path, DELTAW_PORT="1001").stdout
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())
    kinds = {int: "<int>", float: "<float>", bool: "<bool>", str: "<str>"}
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        kind = kinds.get(field.annotation, "<") if isinstance(field.annotation, type) else "<"
        no = f" --no{flag[1:]}" if field.annotation is bool else ""
        assert f"{flag}{no} {kind}" in said
        assert field.description
        assert " ".join(field.description.split()) in said
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"[default: {field.default}]" in said
    assert "--port <int>" in said
    assert "--dtype <float32|bfloat16|float16>" in said


def test_flags_take_the_types_of_their_settings(tmp_path: Path) -> None:
    """Booleans are switches, and a flag equal to the default comes before the environment."""
    flags = ("--no-batching", "--insecure", "--body-seconds", "1.5", "--dtype", "bfloat16")
    keys = ("--api-keys", "a,b", "--port", "8000")
    ended = deltaw("serve", "--check-config", *flags, *keys, folder=tmp_path, DELTAW_PORT="1001")
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout)
    assert (printed["batching"], printed["insecure"]) == (False, True)
    assert (printed["body_seconds"], printed["dtype"]) == (1.5, "bfloat16")
    assert (len(printed["api_keys"]), printed["port"]) == (2, 8000)


@pytest.mark.parametrize(
    "flags",
    [("--port", "http"), ("--port", "70000"), ("--dtype", "int8"), ("--queue-size", "-1")],
)
def test_wrong_flag_exits_with_2(tmp_path: Path, flags: tuple[str, str]) -> None:
    """A flag with a wrong value is named, and the exit code is 2."""
    ended = deltaw("serve", "--check-config", *flags, folder=tmp_path)
    assert ended.returncode == 2
    assert flags[0].strip("-").replace("-", "_") in ended.stderr.replace("-", "_")
    assert "Traceback" not in ended.stderr


def test_check_config_prints_settings(tmp_path: Path) -> None:
    """`--check-config` prints the resolved settings with masked keys, and loads nothing."""
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
def test_wrong_setting_exits_with_one_sentence(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    """A wrong setting is one sentence, which has its name and not its value."""
    ended = deltaw("serve", folder=tmp_path, **environment)
    assert ended.returncode == 2
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("deltaw: ")
    assert said in sentence
    assert "open-sesame" not in sentence
    assert "Value error" not in sentence
    assert ended.stdout == ""


def test_unknown_flag_exits_with_2(tmp_path: Path) -> None:
    """A flag that is no setting is refused by name."""
    ended = deltaw("serve", "--nope", "1", folder=tmp_path)
    assert ended.returncode == 2
    assert "--nope" in ended.stderr


@pytest.mark.slow
def test_check_of_a_model_that_holds_exits_with_0(tiny_folder: Path) -> None:
    """`deltaw check` loads the model, runs the self-check, and exits with 0 if it holds."""
    ended = deltaw("check", "--json", "--model", str(tiny_folder))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["verdict"], found["layers"]) == ("holds", 3)
    assert found["worst_relative_error"] < 2e-5 < found["least_unpatched_relative_error"]


@pytest.mark.slow
def test_check_of_a_broken_model_exits_with_1(tmp_path: Path) -> None:
    """A model with NaN fails the self-check, without a traceback."""
    with torch.inference_mode(False):
        poison(save_tiny(tmp_path), slice(None))
    ended = deltaw("check", "--model", str(tmp_path))
    assert ended.returncode == 1
    assert "fails" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_check_without_model_exits_with_3() -> None:
    """A model that cannot be loaded is one sentence, and not the code of a failed check."""
    ended = deltaw("check", "--model", "/no/such/folder")
    assert ended.returncode == 3
    assert ended.stderr.startswith("deltaw: ")
    assert "Traceback" not in ended.stderr


def test_healthcheck_exits_with_0_if_ready(tiny_service: Served) -> None:
    """The exit code is 0 if the configured service is ready, otherwise 1; no key is needed."""
    port = tiny_service.url.rpartition(":")[2]
    assert deltaw("healthcheck", DELTAW_PORT=port).returncode == 0
    assert deltaw("healthcheck", "--url", tiny_service.url).returncode == 0
    absent = deltaw("healthcheck", DELTAW_PORT=str(free_port()))
    assert absent.returncode == 1
    assert absent.stderr.startswith("deltaw: ")
    assert "Traceback" not in absent.stderr


def test_healthcheck_of_public_address_asks_loopback(tiny_service: Served) -> None:
    """A service that listens on 0.0.0.0 is asked at 127.0.0.1."""
    port = tiny_service.url.rpartition(":")[2]
    ended = deltaw("healthcheck", DELTAW_PORT=port, DELTAW_HOST="0.0.0.0", DELTAW_API_KEYS="k")
    assert ended.returncode == 0, ended.stderr


def test_healthcheck_of_ipv6_address(tmp_path: Path) -> None:
    """An IPv6 address is put into brackets; a refused connection is one sentence."""
    ended = deltaw("healthcheck", folder=tmp_path, DELTAW_HOST="::1", DELTAW_PORT=str(free_port()))
    assert ended.returncode == 1
    assert ended.stderr.startswith("deltaw: ")
    assert "Traceback" not in ended.stderr
