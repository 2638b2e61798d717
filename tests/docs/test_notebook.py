"""The notebook runs from its first cell to its last, and prints what is stored in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.examples import notebooks


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Jupyter's own, of its event loops and sockets
@pytest.mark.skipif(
    not notebooks.INSTALLED,
    reason="nbclient, ipykernel or matplotlib is missing: pip install -r requirements-docs.lock",
)
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: str(path.name))
def test_a_notebook_prints_what_is_stored(path: Path) -> None:
    """Run all ends without an error, with the stored text up to rounding and a figure each."""
    notebooks.assert_stored(*notebooks.executed(path))


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: str(path.name))
def test_a_notebook_is_stored_executed(path: Path) -> None:
    """Every code cell was run, in order, and none of them ended in an error."""
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for c in cells for output in c["outputs"])
    figures = [output for c in cells for output in c["outputs"] if "image/png" in str(output)]
    assert len(figures) >= 4
