"""Locust's environment: a venv in the cache, made from pins, made again when they change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).with_name("locust.txt")
MADE = "made-from.txt"
SECONDS = 600.0


def locust_python(cache: Path) -> Path:
    """The interpreter of locust's environment, which is made where it is not there yet.

    Raises:
        subprocess.CalledProcessError: It cannot be made.
    """
    folder = (cache / "locust").absolute()
    python, made, pins = folder / "bin" / "python", folder / MADE, PINS.read_text()
    if made.is_file() and made.read_text() == pins:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"load: making locust's environment in {folder}", file=sys.stderr)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*install, "--requirement", str(PINS)],
    ):
        subprocess.run(command, check=True, timeout=SECONDS)
    made.write_text(pins)
    return python
