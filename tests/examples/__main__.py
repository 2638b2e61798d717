"""`python -m tests.examples [--write]`: whether the documents are true, and their correction."""

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
    """Run every example; 0 where each is true, or was made so."""
    parser = argparse.ArgumentParser(prog="python -m tests.examples", description=__doc__)
    parser.add_argument("--write", action="store_true", help="correct what the documents show")
    parser.add_argument("--only", default="", help="only documents whose name holds this")
    arguments = parser.parse_args()
    chosen = [page for page in documents() if arguments.only in page.name]
    wrong = 0
    with served(model="bundled") as service:
        for document in chosen:
            text = document.read_text()
            for example in reversed(examples(document)):
                try:
                    now = answer(example, service.url, arguments.write)
                except AssertionError as error:
                    print(f"{example.name}: {error}")
                    wrong += 1
                    continue
                if now != example.shown.text:
                    start = example.shown.start
                    text = text[:start] + now + text[start + len(example.shown.text) :]
                    print(f"{example.name}: written")
            if text != document.read_text():
                document.write_text(text)
    for path in notebooks.NOTEBOOKS if notebooks.INSTALLED else ():
        if arguments.only in path.name and not notebook_is_true(path, arguments.write):
            wrong += 1
    return min(wrong, 1)


def notebook_is_true(path: Path, write: bool) -> bool:
    """Whether a notebook prints what is stored in it, or was made to."""
    try:
        if write:
            if notebooks.write(path):
                print(f"{path.name}: written")
        else:
            notebooks.assert_stored(*notebooks.executed(path))
    except NotShown as error:
        print(f"{path.name}: {error}")
        return False
    return True


def answer(example: Example, url: str, write: bool) -> str:
    """What has to be shown behind an example.

    Raises:
        NotShown: What is shown is not true, and is not to be, or cannot be, written anew.
    """
    with tempfile.TemporaryDirectory(prefix="deltaw-example-") as folder:
        lines = printed(example, url, Path(folder))
    if write:
        return rewritten(example.shown.language, example.shown.text, lines)
    assert_shown(example.shown.text, lines)
    return example.shown.text


if __name__ == "__main__":
    sys.exit(main())
