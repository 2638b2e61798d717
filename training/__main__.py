"""`python -m training [step]`: fetch → corpus → tokenizer → train → curve → export → evaluate.

Without a step, all steps run in this order. Every path is an option; git ignores the default work
folder.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from training.bars import evaluate
from training.corpus import DOCUMENT_END, write_corpus
from training.curve import curve
from training.export import export
from training.facts import Facts, read_facts
from training.rows import Sampler
from training.samples import samples
from training.sources import fetch
from training.tasks import World
from training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from training.trainer import Trainer
from training.words import vocabulary_texts, vocabulary_words

SEED = 20251216


def fetch_step(options: argparse.Namespace) -> None:
    """Download, verify and unpack the packages."""
    fetch(options.work / "packages")


def corpus_step(options: argparse.Namespace) -> None:
    """Write the natural text and the facts."""
    sizes = write_corpus(options.work / "packages", options.work / "corpus")
    facts = read_facts(options.work / "packages")
    (options.work / "facts.json").write_text(json.dumps(facts, indent=1), "utf-8")
    print({name: f"{size / 1e6:.1f} MB" for name, size in sizes.items()})


def tokenizer_step(options: argparse.Namespace) -> None:
    """Train the tokenizer and encode the corpus with it."""
    tokenizer = train_tokenizer(options.work / "corpus", _facts(options))
    save_tokenizer(tokenizer, options.work / "tokenizer")
    texts = [path.read_text("utf-8") for path in sorted((options.work / "corpus").glob("*.txt"))]
    ids = tokenizer.encode(DOCUMENT_END.join(texts)).ids
    np.save(options.work / "tokens.npy", np.array(ids, np.int64))
    print(f"{len(ids) / 1e6:.1f} M tokens of natural text")


def train_step(options: argparse.Namespace) -> None:
    """Train a new model, or resume from the last state."""
    torch.set_num_threads(1)  # the trainer starts two threads itself
    tokenizer = load_tokenizer(options.work / "tokenizer")
    world = World(_facts(options), vocabulary_words(tokenizer), vocabulary_texts(tokenizer))
    sampler = Sampler(np.load(options.work / "tokens.npy"), tokenizer, world, SEED)
    Trainer(sampler, options.work / "run").run()


def export_step(options: argparse.Namespace) -> None:
    """Write the checkpoint folder."""
    state = None if options.random else options.work / "run" / "state.pt"
    export(state, options.work / "tokenizer", options.checkpoint)


def evaluate_step(options: argparse.Namespace) -> None:
    """Print every bar of a checkpoint folder, then its samples."""
    print(evaluate(options.checkpoint, _facts(options)))
    print(samples(options.checkpoint))


def curve_step(options: argparse.Namespace) -> None:
    """Draw the losses of the training as an SVG."""
    (options.work / "curve.svg").write_text(curve(options.work / "run" / "log.jsonl"), "utf-8")


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fetch": fetch_step,
    "corpus": corpus_step,
    "tokenizer": tokenizer_step,
    "train": train_step,
    "curve": curve_step,
    "export": export_step,
    "evaluate": evaluate_step,
}


def main() -> None:
    """Run the step named on the command line, or all steps."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("step", nargs="?", choices=STEPS, help="one step (default: all)")
    parser.add_argument("--work", type=Path, default=Path("training/.work"), help="work folder")
    parser.add_argument("--random", action="store_true", help="export a random model instead")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("service/checkpoints/bundled"),
        help="checkpoint folder",
    )
    options = parser.parse_args()
    for step in [options.step] if options.step else STEPS:
        STEPS[step](options)


def _facts(options: argparse.Namespace) -> Facts:
    facts: Facts = json.loads((options.work / "facts.json").read_text("utf-8"))
    return facts


if __name__ == "__main__":
    main()
