"""The figures of docs/theory.md are those of the stored measurements."""

from __future__ import annotations

from docs.figures import DOCUMENT, NAMES, PICTURE, digest, stored, written


def test_tables_show_the_stored_measurements() -> None:
    """Each table of the document is the one that the command makes from figures.json."""
    document = DOCUMENT.read_text(encoding="utf-8")
    assert written(document, stored()) == document
    assert list(stored()) == list(NAMES)


def test_picture_shows_the_stored_measurements() -> None:
    """The picture was drawn from figures.json as it is."""
    assert digest(stored()).encode() in PICTURE.read_bytes()


def test_sequential_updates_of_the_shown_queries_hold() -> None:
    """The document says that the sequential updates of each query pass their check."""
    verdicts = [query["sequential"] for found in stored().values() for query in found["together"]]
    assert set(verdicts) == {"holds"}
