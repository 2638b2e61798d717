"""API keys: where there are any, only probes and documentation are open without one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from service.api.keys import fingerprint
from tests.api.conftest import KEY, Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import problem


@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/model", "/metrics"])
@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_key"),
        ("Basic b3Blbjpz", "missing_key"),
        ("Bearer zqcanaryqz", "wrong_key"),
        (f"Bearer {KEY}x", "wrong_key"),
    ],
)
def test_missing_or_wrong_key_is_refused(
    narrow: Heard, path: str, header: str | None, code: str
) -> None:
    """Without a valid key the service reads no body, not even a malformed one."""
    method = "POST" if path in PATHS.values() else "GET"
    headers = {"Authorization": header} if header else {}
    response = httpx.request(method, narrow.served.url + path, content=b"{", headers=headers)
    problem(response, code)
    if code == "missing_key":
        assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("key", [KEY, "another"])
def test_each_key_is_accepted(narrow: Heard, key: str) -> None:
    """Each of the configured keys is accepted."""
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{narrow.served.url}/v1/model", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/openapi.json", "/docs"])
def test_probes_and_documentation_need_no_key(narrow: Heard, path: str) -> None:
    """Probes and documentation are never authenticated."""
    assert httpx.get(narrow.served.url + path).status_code == 200


def logged(narrow: Heard, mark: str, header: str | None) -> dict[str, object]:
    """Send a request with this `Authorization`, and return its log line."""
    headers = {"X-Request-ID": mark} | ({"Authorization": header} if header else {})
    httpx.get(f"{narrow.served.url}/v1/model", headers=headers)
    return narrow.log.await_request(mark)


@pytest.mark.parametrize("key", [KEY, "another"])
def test_log_names_a_valid_key_by_its_fingerprint(narrow: Heard, key: str) -> None:
    """The log line of a request has the key's fingerprint; the log does not contain the key."""
    mark = f"fingerprint.{len(key)}"
    assert logged(narrow, mark, f"Bearer {key}")["key"] == fingerprint(key)
    assert key not in narrow.log.text


@pytest.mark.parametrize("header", [None, "Bearer zqcanaryqz", f"Bearer {KEY}x"])
def test_log_names_no_missing_or_wrong_key(narrow: Heard, header: str | None) -> None:
    """A missing or wrong key has no fingerprint."""
    assert "key" not in logged(narrow, f"nameless.{len(header or '')}", header)


def test_fingerprints_differ_and_are_8_digits() -> None:
    """A fingerprint has 8 hexadecimal digits, and 1000 keys have different ones."""
    assert re.fullmatch("[0-9a-f]{8}", fingerprint(KEY))
    assert len({fingerprint(f"key-{i}") for i in range(1000)}) == 1000


@pytest.mark.parametrize("key", [KEY, "a'b$c%d\\n"])
def test_documented_command_prints_the_fingerprint(key: str) -> None:
    """The command in docs/operations.md prints the fingerprint that is in the log."""
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    (command,) = re.findall(r"^```sh\n(.*openssl dgst.*)\n```$", text, re.M)
    shell = ["sh", "-c", command]
    ran = subprocess.run(
        shell, env={"DELTAW_API_KEY": key, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert ran.stdout.strip() == fingerprint(key)
