"""The site builds in strict mode, and its pages load nothing from other hosts."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from docs.site import ROOT, assemble, linked, notebook, page_of

NAVIGATION = re.findall(r":\s+([\w.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)


def test_navigation_lists_every_page(tmp_path: Path) -> None:
    """The navigation lists every page that the site has, and no others."""
    assemble(tmp_path)
    assert sorted(NAVIGATION) == sorted(page.name for page in tmp_path.glob("*.md"))


def test_links_lead_to_pages_or_copies(tmp_path: Path) -> None:
    """A link to a document leads to its page, a link to another file to a copy; anchors stay."""
    text = (
        "[a](../README.md#settings) [b](theory.md) ![c](../pyproject.toml) [d](https://e.f) [g](#h)"
    )
    assert linked(text, "docs/client.md", tmp_path) == (
        "[a](index.md#settings) [b](theory.md) ![c](files/pyproject.toml) [d](https://e.f) [g](#h)"
    )
    assert (tmp_path / "files/pyproject.toml").read_bytes() == (
        ROOT / "pyproject.toml"
    ).read_bytes()
    with pytest.raises(FileNotFoundError):
        linked("[a](nowhere.txt)", "docs/client.md", tmp_path)


def test_code_with_pipes_in_a_table_becomes_html(tmp_path: Path) -> None:
    """Code with escaped pipes becomes HTML, so that every dialect of Markdown shows the pipes."""
    shown = linked("| `<\\|endoftext\\|>` |", "docs/theory.md", tmp_path)
    assert shown == "| <code>&lt;&#124;endoftext&#124;&gt;</code> |"


def test_notebook_becomes_a_page(tmp_path: Path) -> None:
    """The page has text, code, output and figures in order; figures are files."""
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "b"]},
        {
            "cell_type": "code",
            "metadata": {},
            "source": ["print(1)"],
            "outputs": [{"text": ["1\n"]}, {"data": {"image/png": "aGk=", "text/plain": ["<F>"]}}],
        },
    ]
    text = notebook({"cells": cells}, tmp_path)
    assert text.startswith("# A\nb\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n![figure](")
    assert (tmp_path / "figure-1.png").read_bytes() == b"hi"


def test_pages_have_the_names_of_their_files() -> None:
    """A document of docs/ keeps its name; a document of another folder has its own page name."""
    assert page_of("docs/theory.md") == "theory.md"
    assert page_of("training/README.md") == "bundled-model.md"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None,
    reason="zensical is not installed: pip install -r requirements-docs.lock",
)
def test_site_builds_in_strict_mode(tmp_path: Path) -> None:
    """No link or anchor is broken, and the pages load nothing from other hosts."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assemble(tmp_path / settings["docs_dir"])
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    site = tmp_path / settings["site_dir"]
    for page in (site / name.replace(".md", ".html") for name in NAVIGATION):
        fetched = re.findall(
            r"<(?:link|script|img|iframe)\b[^>]*(?:href|src)=\"?(\w+:)?//", page.read_text()
        )
        assert fetched == [], page.name
