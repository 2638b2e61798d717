"""Settings: where they come from, which one wins, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, read_settings

ROOT = Path(__file__).parent.parent
PROMISED = {
    "model",
    "revision",
    "device",
    "dtype",
    "host",
    "port",
    "threads",
    "max_body_bytes",
    "max_response_bytes",
    "max_prompts",
    "max_tokens_per_request",
    "queue_size",
    "deadline_seconds",
    "batching",
    "api_keys",
    "api_keys_file",
    "insecure",
    "cors_origins",
    "log_format",
    "drain_seconds",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of this machine: an empty folder and no `DELTAW_` name."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("DELTAW_"):
            monkeypatch.delenv(name)


def test_promised() -> None:
    """The settings that operators were promised are all there."""
    assert set(Settings.model_fields) >= PROMISED


@pytest.mark.parametrize("name", Settings.model_fields)
def test_documented(name: str) -> None:
    """Each setting is described where it is declared, and has its row in docs/operations.md."""
    assert Settings.model_fields[name].description
    assert f"| `DELTAW_{name.upper()}` |" in (ROOT / "docs/operations.md").read_text()


def test_defaults() -> None:
    """Without any setting the bundled model is served, to this machine alone."""
    settings = read_settings()
    assert (settings.model, settings.dtype, settings.device) == ("bundled", "float32", "auto")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.max_response_bytes == 64 * 1024 * 1024
    assert settings.keys == ()
    assert settings.cors_origins == ()


def test_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line wins over the environment, that over `.env`, that over the default."""
    (tmp_path / ".env").write_text("DELTAW_PORT=1001\nDELTAW_THREADS=1\nDELTAW_QUEUE_SIZE=11\n")
    monkeypatch.setenv("DELTAW_PORT", "1002")
    monkeypatch.setenv("DELTAW_THREADS", "2")
    settings = read_settings(port="1003")
    assert (settings.port, settings.threads, settings.queue_size) == (1003, 2, 11)
    assert settings.max_prompts == Settings.model_fields["max_prompts"].default


def test_unknown_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `DELTAW_` name that is no setting is refused by name: it may be a misspelt key."""
    monkeypatch.setenv("DELTAW_API_KEY", "secret")
    with pytest.raises(ValueError, match="DELTAW_API_KEY") as caught:
        read_settings()
    assert "secret" not in str(caught.value)


def test_unknown_in_file(tmp_path: Path) -> None:
    """So is one in `.env`, where names of others are left alone."""
    (tmp_path / ".env").write_text("OTHER=1\nDELTAW_NOPE=1\n")
    with pytest.raises(ValueError, match="DELTAW_NOPE"):
        read_settings()
    (tmp_path / ".env").write_text("OTHER=1\nDELTAW_PORT=1\n")
    assert read_settings().port == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "-1"),
        ("port", "65536"),
        ("port", "http"),
        ("dtype", "int8"),
        ("deadline_seconds", "0"),
        ("deadline_seconds", "nan"),
        ("deadline_seconds", "inf"),
        ("queue_size", "-1"),
        ("max_prompts", "0"),
        ("batching", "perhaps"),
        ("log_format", "xml"),
        ("model", ""),
    ],
)
def test_refused(name: str, value: str) -> None:
    """A value out of range is refused at start, and the setting named."""
    with pytest.raises(ValidationError) as caught:
        read_settings(**{name: value})
    assert caught.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_public_needs_key(host: str, tmp_path: Path) -> None:
    """A public address needs a key, or the word that it may go without."""
    with pytest.raises(ValidationError, match="DELTAW_API_KEYS"):
        read_settings(host=host)
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    for allowed in ({"api_keys": "k"}, {"api_keys_file": str(keys)}, {"insecure": "true"}):
        assert read_settings(host=host, **allowed).host == host
    keys.write_text("\n")
    with pytest.raises(ValidationError):
        read_settings(host=host, api_keys_file=str(keys))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    """An address of this machine alone needs no key."""
    assert read_settings(host=host).host == host


def test_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and origins are separated by commas; spaces around them and empty ones do not count."""
    monkeypatch.setenv("DELTAW_API_KEYS", " a, b ,,c")
    monkeypatch.setenv("DELTAW_CORS_ORIGINS", "http://x:1,https://y")
    settings = read_settings()
    assert settings.keys == ("a", "b", "c")
    assert settings.cors_origins == ("http://x:1", "https://y")


def test_keys_of_both(tmp_path: Path) -> None:
    """Keys come from the setting and from the file."""
    (tmp_path / "keys").write_text("x\n\n y \n")
    settings = read_settings(api_keys="a", api_keys_file=str(tmp_path / "keys"))
    assert settings.keys == ("a", "x", "y")


def test_secrets_are_masked() -> None:
    """A key is in no printed form of the settings."""
    settings = read_settings(api_keys="open-sesame")
    assert "open-sesame" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_frozen() -> None:
    """Settings do not change once they are read."""
    with pytest.raises(ValidationError):
        read_settings().port = 1  # type: ignore[misc]
