"""Execute notebooks as *Run all* does, and compare with the outputs stored in them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from tests.examples.found import ROOT
from tests.examples.shown import DRIFT, TOLERANCE, NotShown, alike

NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
INSTALLED = all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel", "matplotlib"))
SECONDS = 300


def executed(path: Path) -> tuple[Any, Any]:
    """Return a notebook as stored, and after executing all its cells.

    Raises:
        CellExecutionError: A cell failed.
    """
    import nbclient
    import nbformat

    stored, run = (nbformat.read(path, as_version=4) for _ in range(2))
    os.environ["PYTHONPATH"] = str(ROOT)
    client = nbclient.NotebookClient(
        run,
        timeout=SECONDS,
        startup_timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    run.metadata = stored.metadata
    return stored, run


def assert_stored(stored: Any, run: Any, tolerance: float = TOLERANCE) -> None:
    """Check that each cell prints the stored text, up to rounding, and draws the stored figures.

    Raises:
        NotShown: A cell does not.
    """
    for number, (old, new) in enumerate(zip(_outputs(stored), _outputs(run), strict=True)):
        lines = len(old) == len(new) and all(
            alike(a, b, tolerance) for a, b in zip(old, new, strict=True)
        )
        if not lines:
            raise NotShown(f"cell {number} stores {old}, and prints {new}")


def write(path: Path) -> bool:
    """Execute a notebook, and store its outputs if the stored ones are no longer right."""
    import nbformat

    stored, run = executed(path)
    try:
        assert_stored(stored, run, DRIFT)
    except NotShown:
        nbformat.write(run, path)
        return True
    return False


def _outputs(notebook: Any) -> list[list[str]]:
    """Return the printed lines of each cell; a figure counts as one line."""
    return [
        [
            line
            for output in cell.get("outputs", ())
            for line in (
                ["figure"] if "image/png" in output.get("data", {}) else _text(output).splitlines()
            )
        ]
        for cell in notebook.cells
    ]


def _text(output: Any) -> str:
    """Return the text of an output."""
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))
