"""The audit: an advisory fails it unless it is listed, and what is not known is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.audit import Audit, judge, main

ADVISORY = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": "bad"}
SOUND = {"name": "sound", "version": "1.0", "vulns": []}
HOLED = {"name": "holed", "version": "1.0", "vulns": [ADVISORY]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}
REASON = {"package": "holed", "reason": "not called"}


def report(*packages: Any) -> dict[str, Any]:
    """A report as pip-audit 2.10 writes it."""
    return {"dependencies": list(packages), "fixes": []}


def test_sound() -> None:
    """Without an advisory nothing is found; what the service does not know is named."""
    assert judge(report(SOUND, UNKNOWN), {}) == Audit(1, ("unknown",), (), ())


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_listed(name: str) -> None:
    """An advisory is found unless it is listed by its id or an alias, for that package."""
    (found,) = judge(report(SOUND, HOLED), {}).found
    assert found == "holed 1.0: PYSEC-1, fixed in 2.0"
    audit = judge(report(HOLED), {name: REASON})
    assert (audit.found, audit.listed) == ((), (f"{found}; not called",))
    assert judge(report(HOLED), {name: REASON | {"package": "other"}}).found == (found,)


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("raise SystemExit('no network')", 0, "SKIPPED, the advisory service cannot be reached"),
        (f"print({str(report(UNKNOWN))!r}.replace(chr(39), chr(34)))", 0, "SKIPPED"),
        (f"print({str(report(SOUND))!r}.replace(chr(39), chr(34)))", 0, "1 packages, 0 advis"),
        (f"print({str(report(HOLED))!r}.replace(chr(39), chr(34)))", 1, "FOUND: holed 1.0"),
    ],
)
def test_exit_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, code: int, said: str
) -> None:
    """A finding fails; no network, or a service that knows nothing, is said and does not."""
    command = tmp_path / "pip_audit.py"
    command.write_text(script)
    assert main([sys.executable, str(command)]) == code
    assert said in capsys.readouterr().out


def test_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the audit is required, one that did not take place fails."""
    monkeypatch.setenv("AUDIT_REQUIRED", "1")
    command = tmp_path / "pip_audit.py"
    command.write_text("raise SystemExit('no network')")
    assert main([sys.executable, str(command)]) == 1
