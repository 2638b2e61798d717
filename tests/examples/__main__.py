"""`python -m tests.examples [--write]` checks the examples of the documents, or updates them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.examples import notebooks
from tests.examples.found import Example, documents, examples
from tests.examples.running import printed
from tests.examples.shown import NotShown, assert_shown, rewritten
from tests.service_process import served


def main() -> int:
    """Run every example. Return 0 if all shown output is right or was updated."""
    parser = argparse.ArgumentParser(prog="python -m tests.examples", description=__doc__)
    parser.add_argument("--write", action="store_true", help="update the shown output")
    parser.add_argument("--only", default="", help="only documents whose name contains this text")
    arguments = parser.parse_args()
    pages = [page for page in documents() if arguments.only in page.name]
    wrong = 0
    if pages:
        with served(model="bundled") as service:
            wrong += sum(document_is_wrong(page, service.url, arguments.write) for page in pages)
    if not notebooks.INSTALLED:
        print("notebooks are skipped: pip install -r requirements-docs.lock")
        return min(wrong, 1)
    for path in notebooks.NOTEBOOKS:
        if arguments.only in path.name:
            wrong += notebook_is_wrong(path, arguments.write)
    return min(wrong, 1)


def document_is_wrong(document: Path, url: str, write: bool) -> bool:
    """Check or update one document. Return whether an example is still wrong."""
    text = document.read_text()
    wrong = False
    for example in reversed(examples(document)):
        try:
            now = answer(example, url, write)
        except AssertionError as error:
            print(f"{example.name}: {error}", flush=True)
            wrong = True
            continue
        if now != example.shown.text:
            start = example.shown.start
            text = text[:start] + now + text[start + len(example.shown.text) :]
            print(f"{example.name}: written", flush=True)
    if text != document.read_text():
        document.write_text(text)
    return wrong


def notebook_is_wrong(path: Path, write: bool) -> bool:
    """Check or update one notebook. Return whether it is still wrong."""
    try:
        if not write:
            notebooks.assert_stored(*notebooks.executed(path))
        elif notebooks.write(path):
            print(f"{path.name}: written", flush=True)
    except NotShown as error:
        print(f"{path.name}: {error}", flush=True)
        return True
    return False


def answer(example: Example, url: str, write: bool) -> str:
    """Return the text that the document must show after an example.

    Raises:
        NotShown: The shown output is wrong, and `write` is false or it cannot be updated.
    """
    with tempfile.TemporaryDirectory(prefix="deltaw-example-") as folder:
        lines = printed(example, url, Path(folder))
    if write:
        return rewritten(example.shown.language, example.shown.text, lines)
    assert_shown(example.shown.text, lines)
    return example.shown.text


if __name__ == "__main__":
    sys.exit(main())
