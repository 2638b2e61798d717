"""README.md and docs/ are true: each example is run as printed, and prints what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.found import ROOT, Example, documents, examples, not_run
from tests.examples.running import printed
from tests.examples.shown import NotShown, alike, assert_shown, rewritten
from tests.service_process import Served

EXAMPLES = [example for document in documents() for example in examples(document)]
ELSEWHERE = {
    "make run": "test_makefile runs it",
    "make test": "runs this test",
    "DELTAW_MODEL=gpt2 make run": "needs the hub; test_makefile runs it with a folder",
    "docker compose up --build": "needs a container engine",
}
"""What stands in the documents and is not run here, and why."""
ANSWER = """{
  "updates": [
    {
      "layer": 0,
      "norm": 1.2345678
    },
    {
      "layer": 1,
      "norm": 0.25,
      "text": " Berlin"
    }
  ]
}
""".splitlines()
ELIDED = """      …
      "layer": 1,
      "norm": 0.7,
      "text": " Paris"
…
"""


def test_there_are_examples() -> None:
    """The documents hold requests by a shell and scripts, each with its answer."""
    languages = [(each.script.language, each.shown.language) for each in EXAMPLES]
    assert languages.count(("sh", "json")) >= 5
    assert languages.count(("python", "text")) >= 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.name))
def test_example(bundled_service: Served, tmp_path: Path, example: Example) -> None:
    """An example, run as printed in an empty folder, prints what is shown."""
    assert example.shown.text.strip()
    assert_shown(example.shown.text, printed(example, bundled_service.url, tmp_path))


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_out(document: Path) -> None:
    """A command that is not run here is run elsewhere, and it is written down where."""
    assert [line for line in not_run(document) if line not in ELSEWHERE] == []


def test_numbers_are_held_to_what_is_shown() -> None:
    """Whole numbers are held exactly, others within two per cent, rounding errors by magnitude."""
    assert alike('"norm": 1.23,', '  "norm": 1.2345678')
    assert not alike('"norm": 1.23,', '"norm": 1.3')
    assert not alike('"layer": 1', '"layer": 2')
    assert alike('"error": 3e-07', '"error": 1.1e-06')
    assert not alike('"error": 3e-07', '"error": 4e-05')
    assert not alike('"norm": 1.23', '"step_norm": 1.23')
    assert alike("share 0.26", "share 0.27")
    assert not alike("share 0.26", "share 0.28")


def test_a_line_that_is_not_in_the_answer_fails() -> None:
    """Lines are found in their order alone."""
    assert_shown('"layer": 0,\n…\n"norm": 0.25,\n', ANSWER)
    with pytest.raises(NotShown):
        assert_shown('"norm": 0.25,\n…\n"layer": 0,\n', ANSWER)


def test_writing_anew_keeps_the_lines_that_are_shown() -> None:
    """Values are replaced under their key and in their entry, to three digits; elisions stay."""
    written = rewritten("json", ELIDED, ANSWER)
    assert written == ELIDED.replace("0.7", "0.25").replace("Paris", "Berlin")
    assert rewritten("json", written, ANSWER) == written
    assert '"norm": 1.23\n' in rewritten("json", '      "layer": 0,\n      "norm": 9.5\n', ANSWER)


def test_writing_anew_does_not_guess() -> None:
    """A line whose key is gone is not replaced by another."""
    with pytest.raises(NotShown):
        rewritten("json", '      "layer": 2,\n', ANSWER)


def test_text_is_written_anew_where_it_changed() -> None:
    """Lines that still hold stay as they are, others are what was printed."""
    shown = "norm 1.638, from the factors 1.638\nholds\n"
    assert rewritten("text", shown, ["norm 1.638001, from the factors 1.638", "holds"]) == shown
    assert rewritten("text", shown, ["norm 2.0, from", "holds"]) == "norm 2.0, from\nholds\n"
    assert rewritten("text", shown, ["fails"]) == "fails\n"


def test_a_block_is_of_one_answer() -> None:
    """Where one line has changed, rounding errors beside it are those of the same answer."""
    assert rewritten("text", "a 1.0\nb 2e-07\n", ["a 1.5 ", "b 9e-07"]) == "a 1.5\nb 9e-07\n"
    shown = '"norm": 9.5,\n"error": 2e-07\n'
    told = ['"norm": 1.5,', '"error": 9e-07']
    assert rewritten("json", shown, told) == '"norm": 1.5,\n"error": 9e-07\n'
    assert rewritten("json", shown.replace("9.5", "1.5"), told) == shown.replace("9.5", "1.5")
