"""`python -m docs.site` writes the pages of the site to build/docs; mkdocs.yml builds from there.

README.md is the first page, and the documents follow. The API reference comes from openapi.json,
and the notebook with its outputs becomes a page. A link to another file of the repository becomes a
link to that file's page, or to a copy of the file.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from docs.openapi import FILE
from docs.reference import page

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build" / "docs"
NOTEBOOK = "docs/seed_experiment.ipynb"
NAMED = {
    "README.md": "index.md",
    "training/README.md": "bundled-model.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    NOTEBOOK: "notebook.md",
}
"""Pages whose names differ from those of their files."""
COPIES = "files"
"""Folder of the site for other files that pages link to."""
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
CODE_WITH_PIPES = re.compile(r"`([^`]*\\\|[^`]*)`")


def assemble(folder: Path = PAGES) -> None:
    """Write all pages.

    Args:
        folder: Target folder. Its previous contents are removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    documents = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")]
    for source in [*documents, *(name for name in NAMED if name.endswith(".md"))]:
        text = (ROOT / source).read_text(encoding="utf-8")
        (folder / page_of(source)).write_text(linked(text, source, folder), encoding="utf-8")
    (folder / "api.md").write_text(page(json.loads(FILE.read_text(encoding="utf-8"))))
    for file in (FILE, FILE.with_name("site.css")):
        shutil.copy(file, folder)
    shutil.copy(ROOT / NOTEBOOK, folder)
    text = notebook(json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8")), folder)
    (folder / page_of(NOTEBOOK)).write_text(text, encoding="utf-8")


def page_of(source: str) -> str:
    """Return the name of the page for a file of the repository."""
    return NAMED.get(source, source.removeprefix("docs/"))


def linked(text: str, source: str, folder: Path) -> str:
    """Return a document with its links changed to pages, or to copies in the site's folder.

    Args:
        text: The document in Markdown.
        source: Path of the document, from the root.
        folder: Folder of the pages.
    """

    def lead(link: re.Match[str]) -> str:
        target = os.path.normpath(Path(source).parent / link[1])
        is_page = target in NAMED or re.fullmatch(r"docs/[\w-]+\.md", target)
        if not is_page and target.removeprefix("docs/") not in ("api.md", FILE.name):
            copy = folder / COPIES / target
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / target, copy)
            return f"]({COPIES}/{target})"
        return f"]({page_of(target)}{link[2] or ''})"

    return CODE_WITH_PIPES.sub(_code, LINK.sub(lead, text))


def _code(span: re.Match[str]) -> str:
    """Return code with pipes as HTML, since Markdown's dialects escape pipes in different ways."""
    text = span[1].replace("\\|", "&#124;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<code>{text}</code>"


def notebook(cells: dict[str, Any], folder: Path) -> str:
    """Return an executed notebook as Markdown, and write its figures as files.

    Args:
        cells: The notebook, format 4.
        folder: Target folder of the figures.
    """
    parts = []
    for number, cell in enumerate(cells["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                figure = f"figure-{number}.png"
                (folder / figure).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![{cell['metadata'].get('alt', 'figure')}]({figure})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join([*parts, f"[This notebook as a file]({Path(NOTEBOOK).name})\n"])


if __name__ == "__main__":
    assemble()
