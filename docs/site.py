"""`python -m docs.site` puts the site's pages into build/docs, from which mkdocs.yml makes it.

README.md is the first page, the documents follow, the API reference is made from openapi.json and
the notebook's outputs become a page. A link to another file of the repository leads to that file's
page, or to a copy of it.
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
"""Pages that are not called as their file in docs/ is."""
COPIES = "files"
"""The site's folder of other files that a page links to."""
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
CODE_WITH_PIPES = re.compile(r"`([^`]*\\\|[^`]*)`")


def assemble(folder: Path = PAGES) -> None:
    """Write all pages.

    Args:
        folder: Where to; it is emptied.
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
    """The page that a file of the repository becomes."""
    return NAMED.get(source, source.removeprefix("docs/"))


def linked(text: str, source: str, folder: Path) -> str:
    """A document whose links lead to pages, or to copies in the site's folder.

    Args:
        text: In Markdown.
        source: Its file, from the root.
        folder: The pages' folder.
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
    """Code with pipes in a table, as HTML: Markdown's dialects differ on how to escape one."""
    text = span[1].replace("\\|", "&#124;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<code>{text}</code>"


def notebook(cells: dict[str, Any], folder: Path) -> str:
    """An executed notebook as Markdown; its figures become files.

    Args:
        cells: The notebook, format 4.
        folder: Where the figures go.
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
