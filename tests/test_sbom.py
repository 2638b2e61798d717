"""`make sbom` writes a software bill of materials of the packages that the image installs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service import __version__

ROOT = Path(__file__).parent.parent
WRITTEN = ROOT / "build/sbom.json"


@pytest.fixture(scope="module")
def sbom() -> Any:
    """The document that `make sbom` writes. The tool itself validates it against the schema."""
    if not Path(sys.prefix, ".sbom").exists():
        pytest.skip("`make test-slow` makes the environment of cyclonedx")
    WRITTEN.unlink(missing_ok=True)
    command = ["make", "sbom", f"VENV={sys.prefix}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return json.loads(WRITTEN.read_text())


@pytest.mark.slow
def test_sbom_lists_every_package_of_the_lock(sbom: Any) -> None:
    """The components are the packages of requirements.lock, each with its version."""
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    found = {f"{one['name']}=={one['version']}" for one in sbom["components"]}
    assert found == {line for line in lock if not line.startswith("#")}


@pytest.mark.slow
def test_sbom_describes_deltaw(sbom: Any) -> None:
    """The root component is deltaw, with its version and its licence."""
    root = sbom["metadata"]["component"]
    assert (sbom["bomFormat"], root["name"], root["version"]) == (
        "CycloneDX",
        "deltaw",
        __version__,
    )
    assert [one["license"]["id"] for one in root["licenses"]] == ["Apache-2.0"]
