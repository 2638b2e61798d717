"""The audit fails on an advisory that is not listed, and reports what it could not check."""

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
    """Return a report in the format of pip-audit 2.10."""
    return {"dependencies": list(packages), "fixes": []}


def test_report_without_advisories_finds_nothing() -> None:
    """The audit finds nothing, and names the packages that the service does not know."""
    assert judge(report(SOUND, UNKNOWN), {}) == Audit(1, ("unknown",), (), ())


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_listed_advisory_is_not_found(name: str) -> None:
    """Listing an advisory by its id or an alias accepts it, for the named package only."""
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
def test_exit_code_is_1_for_findings_and_0_without_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, code: int, said: str
) -> None:
    """A finding gives 1. Without a network, or if nothing is known, the audit reports it with 0."""
    command = tmp_path / "pip_audit.py"
    command.write_text(script)
    assert main([sys.executable, str(command)]) == code
    assert said in capsys.readouterr().out


def test_required_audit_without_network_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `AUDIT_REQUIRED=1` an audit that did not take place fails."""
    monkeypatch.setenv("AUDIT_REQUIRED", "1")
    command = tmp_path / "pip_audit.py"
    command.write_text("raise SystemExit('no network')")
    assert main([sys.executable, str(command)]) == 1
