"""The notebook runs from its first cell to its last and prints the stored outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.examples import notebooks


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Jupyter warns about its own event loops and sockets
@pytest.mark.skipif(
    not notebooks.INSTALLED,
    reason="nbclient, ipykernel or matplotlib is missing: pip install -r requirements-docs.lock",
)
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: str(path.name))
def test_notebook_prints_the_stored_outputs(path: Path) -> None:
    """*Run all* ends without an error and gives the stored text, up to rounding, and figures."""
    notebooks.assert_stored(*notebooks.executed(path))


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: str(path.name))
def test_notebook_is_stored_executed(path: Path) -> None:
    """The stored notebook has every code cell executed in order, without an error."""
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for c in cells for output in c["outputs"])
    figures = [output for c in cells for output in c["outputs"] if "image/png" in str(output)]
    assert len(figures) >= 4
