"""Measure every family on every device of this machine, and write docs/conformance.md.

`python -m docs.conformance --models smollm2 gemma3` also measures these pretrained models. A model
that is not in the cache is fetched. All models together take about three minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# The oracle's last digits depend on the number of threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from transformers.utils.logging import disable_progress_bar

from docs.conformance.activations import measure
from docs.conformance.checks import check
from docs.conformance.page import Entry, page
from docs.conformance.subjects import TRAINED, Subject, random_subjects, trained_subjects
from service.engine import load
from tests.real.weights import Unavailable

FILE = Path(__file__).parent.parent / "conformance.md"


def measured(subject: Subject, device: str) -> Entry:
    """Measure one checkpoint on one device."""
    with tempfile.TemporaryDirectory() as work:
        activations = measure(subject, device, Path(work))
    checks = {}
    if "float32" in activations.columns:
        model = load(str(subject.folder), revision=None, device=device, dtype="float32")
        checks = check(subject, model)
    return Entry(activations, checks)


def subjects(models: Sequence[str], home: Path) -> Iterator[Subject]:
    """All random and trained checkpoints."""
    yield from random_subjects(home)
    yield from trained_subjects(models)


def main() -> None:
    """Measure, and write the document."""
    parser = argparse.ArgumentParser(prog="python -m docs.conformance")
    parser.add_argument("--models", nargs="*", default=[], choices=TRAINED, metavar="MODEL")
    models: list[str] = parser.parse_args().models
    torch.set_num_threads(1)
    disable_progress_bar()
    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    entries = []
    with tempfile.TemporaryDirectory() as home:
        try:
            for subject in subjects(models, Path(home)):
                print(f"{subject.name}, {subject.kind} weights", file=sys.stderr)
                entries += [measured(subject, device) for device in devices]
        except Unavailable as reason:
            sys.exit(f"a pretrained model is unavailable: {reason}")
    FILE.write_text(page(entries, models), encoding="utf-8")


if __name__ == "__main__":
    main()
