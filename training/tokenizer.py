"""The byte-level BPE of the bundled model, like GPT-2's but with its own small vocabulary."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from training.corpus import DOCUMENT_END
from training.facts import FAMOUS, Facts
from training.formats import HELD_OUT_SEPARATORS, SEPARATORS, SYMBOLS
from training.model import POSITIONS
from training.words import CATEGORIES, SENTENCE_WORDS

VOCABULARY = 5120
FACT_REPEATS = 2000
WORD_REPEATS = 1000


def train_tokenizer(corpus: Path, facts: Facts) -> ByteLevelBPETokenizer:
    """Train on the corpus, and on repeated famous names and words of the tasks."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        _texts(corpus, facts),
        vocab_size=VOCABULARY,
        special_tokens=[DOCUMENT_END],
        show_progress=False,
    )
    return tokenizer


def save_tokenizer(tokenizer: ByteLevelBPETokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` in transformers' format."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = GPT2TokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        bos_token=DOCUMENT_END,
        eos_token=DOCUMENT_END,
        unk_token=DOCUMENT_END,
        model_max_length=POSITIONS,
    )
    fast.save_pretrained(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a checkpoint folder, without access to the hub."""
    tokenizer: PreTrainedTokenizerFast = GPT2TokenizerFast.from_pretrained(
        folder, local_files_only=True
    )
    return tokenizer


def _texts(corpus: Path, facts: Facts) -> Iterator[str]:
    for path in sorted(corpus.glob("*.txt")):
        yield from path.read_text("utf-8").split(DOCUMENT_END)
    names = set(FAMOUS)
    for relation in ("capital", "language", "adjective", "continent"):
        names |= {value for name, value in facts[relation].items() if name in FAMOUS}
    for name in sorted(names):
        yield f" {name}" * FACT_REPEATS
    for words in (*CATEGORIES.values(), SENTENCE_WORDS):
        for word in words:
            yield f" {word}\n{word}" * WORD_REPEATS
    for separator in sorted(
        {text.strip() for text in (*SEPARATORS, *HELD_OUT_SEPARATORS, *SYMBOLS)}
    ):
        yield f" {separator} x{separator}x" * WORD_REPEATS
