"""`make audit` fails if a dependency has a known advisory that is not listed with a reason.

pip-audit asks the package index's advisory service about every version in the lock files. If it
cannot be reached, the audit says so and passes; with `AUDIT_REQUIRED=1` it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LISTED = Path(__file__).with_name("advisories.toml")
LOCKS = ("requirements.lock", "requirements-dev.lock")
SECONDS = 300.0


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Args:
        audited: Number of packages that the advisory service knows.
        unknown: Names of packages that it does not know.
        found: Advisories that are not listed, one sentence each.
        listed: Advisories that are listed, with their reasons.
    """

    audited: int
    unknown: tuple[str, ...]
    found: tuple[str, ...]
    listed: tuple[str, ...]


def judge(report: Mapping[str, Any], reasons: Mapping[str, Mapping[str, str]]) -> Audit:
    """Compare a pip-audit report with the listed advisories, by id or alias."""
    packages = report["dependencies"]
    found, listed = [], []
    for package in packages:
        for advisory in package.get("vulns", ()):
            names = {advisory["id"], *advisory["aliases"]}
            fixed = ", ".join(advisory["fix_versions"]) or "nowhere yet"
            said = f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}"
            known = [reasons[name] for name in sorted(names & reasons.keys())]
            if known and known[0]["package"] == package["name"]:
                listed.append(f"{said}; {known[0]['reason']}")
            else:
                found.append(said)
    unknown = tuple(package["name"] for package in packages if "skip_reason" in package)
    return Audit(len(packages) - len(unknown), unknown, tuple(found), tuple(listed))


def main(pip_audit: Sequence[str]) -> int:
    """Run pip-audit and print the result. Return 1 for an advisory that is not listed.

    Args:
        pip_audit: The command that runs pip-audit.
    """
    asked = subprocess.run(
        [
            *pip_audit,
            "--no-deps",
            "--disable-pip",
            "--format=json",
            "--progress-spinner=off",
            *(f"--requirement={ROOT / lock}" for lock in LOCKS),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    nothing_known = int(os.environ.get("AUDIT_REQUIRED", "") == "1")
    if not asked.stdout.strip():
        last = asked.stderr.strip().splitlines()[-1:] or [f"exit code {asked.returncode}"]
        print(f"audit: SKIPPED, the advisory service cannot be reached ({last[0]})")
        return nothing_known
    audit = judge(json.loads(asked.stdout), tomllib.loads(LISTED.read_text()))
    for line in audit.listed:
        print(f"audit: listed: {line}")
    for line in audit.found:
        print(f"audit: FOUND: {line}")
    if not audit.audited:
        print(f"audit: SKIPPED, the advisory service knows none of {len(audit.unknown)} packages")
        return nothing_known
    print(f"audit: {audit.audited} packages, {len(audit.found)} advisories that are not listed")
    if audit.unknown:
        print(f"audit: not audited: {', '.join(audit.unknown)}")
    return 1 if audit.found or (audit.unknown and nothing_known) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
