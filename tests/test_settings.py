"""Settings: their sources, which one wins, what is normalised and what is refused."""

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
    "root_path",
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
    "allowed_hosts",
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


def test_promised_settings_exist() -> None:
    """The settings that operators were promised are all there."""
    assert set(Settings.model_fields) >= PROMISED


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_is_documented(name: str) -> None:
    """Each setting is described where it is declared, and has its row in docs/operations.md."""
    assert Settings.model_fields[name].description
    assert f"| `DELTAW_{name.upper()}` |" in (ROOT / "docs/operations.md").read_text()


def test_defaults_serve_the_bundled_model_on_the_loopback() -> None:
    """Without any setting the bundled model is served, to this machine alone."""
    settings = read_settings()
    assert (settings.model, settings.dtype, settings.device) == ("bundled", "float32", "auto")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.max_response_bytes == 64 * 1024 * 1024
    assert settings.keys == ()
    assert settings.cors_origins == ()


def test_flag_overrides_environment_overrides_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command line wins over the environment, that over `.env`, that over the default."""
    (tmp_path / ".env").write_text("DELTAW_PORT=1001\nDELTAW_THREADS=1\nDELTAW_QUEUE_SIZE=11\n")
    monkeypatch.setenv("DELTAW_PORT", "1002")
    monkeypatch.setenv("DELTAW_THREADS", "2")
    settings = read_settings(port="1003")
    assert (settings.port, settings.threads, settings.queue_size) == (1003, 2, 11)
    assert settings.max_prompts == Settings.model_fields["max_prompts"].default


def test_unknown_name_in_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `DELTAW_` name that is no setting is refused by name: it may be a misspelt key."""
    monkeypatch.setenv("DELTAW_API_KEY", "secret")
    with pytest.raises(ValueError, match="DELTAW_API_KEY") as caught:
        read_settings()
    assert "secret" not in str(caught.value)


def test_unknown_name_in_env_file_is_refused(tmp_path: Path) -> None:
    """A `DELTAW_` name in `.env` is refused too; names of other programs are ignored."""
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
        ("device", "gpu"),
        ("device", "CPU"),
        ("device", "cuda:x"),
        ("host", ""),
        ("host", "http://127.0.0.1"),
        ("host", "127.0.0.1:8000"),
        ("api_keys", ","),
        ("cors_origins", " "),
        ("allowed_hosts", ",,"),
    ],
)
def test_value_out_of_range_is_refused(name: str, value: str) -> None:
    """A value out of range is refused at start, and the setting named."""
    with pytest.raises(ValidationError) as caught:
        read_settings(**{name: value})
    assert caught.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_public_address_needs_a_key(host: str, tmp_path: Path) -> None:
    """A public address needs a key, or `insecure`."""
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
def test_loopback_needs_no_key(host: str) -> None:
    """An address of this machine alone needs no key."""
    assert read_settings(host=host).host == host


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are separated by commas; spaces around entries and empty entries are dropped."""
    monkeypatch.setenv("DELTAW_API_KEYS", " a, b ,,c")
    monkeypatch.setenv("DELTAW_CORS_ORIGINS", "http://x:1,https://y")
    settings = read_settings()
    assert settings.keys == ("a", "b", "c")
    assert settings.cors_origins == ("http://x:1", "https://y")


def test_keys_come_from_setting_and_file(tmp_path: Path) -> None:
    """Keys come from the setting and from the file, whichever editor wrote it."""
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfx\r\n\r\n y \r\n")
    settings = read_settings(api_keys="a", api_keys_file=str(tmp_path / "keys"))
    assert settings.keys == ("a", "x", "y")


def test_adapters_are_in_the_users_data_folder_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The setting wins over `XDG_DATA_HOME`, and that over `~/.local/share`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert Settings().adapters_folder == tmp_path / "home" / ".local/share/deltaw/adapters"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Settings().adapters_folder == tmp_path / "data" / "deltaw/adapters"
    monkeypatch.setenv("DELTAW_ADAPTERS", str(tmp_path / "own"))
    assert Settings().adapters_folder == tmp_path / "own"


def test_secrets_are_masked() -> None:
    """A key is in no printed form of the settings."""
    settings = read_settings(api_keys="open-sesame")
    assert "open-sesame" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_settings_are_frozen() -> None:
    """Settings do not change once they are read."""
    with pytest.raises(ValidationError):
        read_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("key", ["a b", "a\tb", "k\u00e9", "a\x00b"])
def test_key_that_no_header_can_carry_is_refused(key: str, tmp_path: Path) -> None:
    """A key is printable ASCII without spaces, in the setting and in the file."""
    (tmp_path / "keys").write_text(f"good\n{key}\n", "utf-8")
    for given in ({"api_keys": key}, {"api_keys_file": str(tmp_path / "keys")}):
        with pytest.raises(ValidationError, match="an API key") as caught:
            read_settings(**given)
        assert key not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("value", "origin"),
    [
        ("https://a.example/", "https://a.example"),
        ("HTTPS://A.Example:443", "https://a.example"),
        ("https://a.example:0443", "https://a.example"),
        ("https://a.example:08443", "https://a.example:8443"),
        ("http://a.example:80/", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[0:0::1]:8", "http://[::1]:8"),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
        ("*", "*"),
    ],
)
def test_origin_is_normalised(value: str, origin: str) -> None:
    """An origin is kept as browsers send it: lower case, no slash, no default port."""
    assert read_settings(cors_origins=value).cors_origins == (origin,)


@pytest.mark.parametrize(
    "value",
    [
        "a.example",
        "null",
        "https://",
        "https://a.example/page",
        "https://a.example?x",
        "https://user@a.example",
        "https://*.a.example",
        "https://a.example:99999",
        "https://m\u00fcnchen.example",
    ],
)
def test_origin_that_no_browser_sends_is_refused(value: str) -> None:
    """An origin that could never match is refused, and the sentence names it."""
    with pytest.raises(ValidationError) as caught:
        read_settings(cors_origins=f"https://b.example,{value}")
    (mistake,) = caught.value.errors()
    assert mistake["loc"] == ("cors_origins", 1)
    assert "is not a" in mistake["msg"]


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("A.Example.", "a.example"),
        ("deltaw_1", "deltaw_1"),
        ("[::1]", "::1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("10.0.0.1", "10.0.0.1"),
        ("*", "*"),
    ],
)
def test_host_is_normalised(value: str, host: str) -> None:
    """A host is kept as browsers send it, without brackets."""
    assert read_settings(allowed_hosts=value).allowed_hosts == (host,)
    if value != "*":
        assert read_settings(host=value, insecure="true").host == host


@pytest.mark.parametrize(
    "value",
    [
        "https://a.example:8000",
        "https://a.example",
        "a.example:8000",
        "[::1]:8000",
        "a.example/",
        "*.a.example",
        "a..example",
        "-a",
        "1.2.3.4.5",
    ],
)
def test_host_that_no_header_equals_is_refused(value: str) -> None:
    """A host with a scheme, a port, a path or a wildcard would match nothing and is refused."""
    for name in ("allowed_hosts", "host"):
        with pytest.raises(ValidationError, match="is not a host"):
            read_settings(**{name: value}, insecure="true")


def test_each_mistake_has_its_sentence() -> None:
    """Two wrong entries of one list are two mistakes."""
    with pytest.raises(ValidationError) as caught:
        read_settings(allowed_hosts="a:1,b,c:2", cors_origins="x")
    assert len(caught.value.errors()) == 3


@pytest.mark.parametrize(
    ("value", "prefix"),
    [("/deltaw", "/deltaw"), ("deltaw/", "/deltaw"), ("/", ""), ("", ""), ("/a/b-c.d", "/a/b-c.d")],
)
def test_root_path_is_normalised(value: str, prefix: str) -> None:
    """A path prefix has a slash at its start and none at its end."""
    assert read_settings(root_path=value).root_path == prefix


@pytest.mark.parametrize(
    "value", ["https://a.example/x", "/a//b", "/a/../b", "/a b", "/%41", "/a?b", "/v1", "/docs/x"]
)
def test_root_path_that_cannot_be_served_is_refused(value: str) -> None:
    """A prefix that is no path, or hides one of the service's own, is refused."""
    with pytest.raises(ValidationError) as caught:
        read_settings(root_path=value)
    assert caught.value.errors()[0]["loc"] == ("root_path",)
