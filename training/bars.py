"""Measure the bars that a checkpoint must reach, on its folder and on a random control.

Every question has a context and a query. A measurement "without context" drops the context and
keeps the query's positions. An answer counts only if each of its tokens is the most probable one
(top-1).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from training.facts import FAMOUS, Facts
from training.formats import HELD_OUT_CAPITALS, HELD_OUT_SEPARATORS
from training.model import load_model
from training.words import CATEGORIES, invented_name, vocabulary_words

SEED = 7
SAMPLES = 200
SHOTS = 4
REPEAT_LENGTH = 32
TRAINED_SEPARATORS = (" => ", ": ")
SEED_CONTEXT = (
    "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C. "
    "The capital of Germany is"
)
CAPITAL = "The capital of {x} is {y}. "

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Bar:
    """One row of the table: a measured value, and the bound that it must keep."""

    name: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def kept(self) -> bool:
        """Whether the value keeps the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True)
class Subject:
    """A model under test, with its tokenizer."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        ids: list[int] = self.tokenizer.encode(text)
        return ids

    @torch.no_grad()
    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> torch.Tensor:
        """Return the log-probabilities of the next token after each token.

        The attention mask is explicit, because without one transformers takes positions that do not
        start at 0 for packed sequences.

        Args:
            ids: The token ids.
            start: The position of the first token.

        Returns:
            `(len(ids), vocabulary)`, in nats.
        """
        tokens = torch.tensor([list(ids)])
        positions = torch.arange(start, start + len(ids))[None]
        logits = self.model(
            tokens, position_ids=positions, attention_mask=torch.ones_like(tokens)
        ).logits[0]
        return torch.as_tensor(logits).log_softmax(-1)


@dataclass(frozen=True)
class Question:
    """A context, the query after it, and the right answer."""

    context: str
    query: str
    answer: str

    def right(self, subject: Subject, *, with_context: bool = True) -> bool:
        """Return whether every token of the answer is the most probable one."""
        context, query, answer = map(subject.encode, (self.context, self.query, self.answer))
        ids = [*(context if with_context else ()), *query, *answer]
        rows = subject.log_probabilities(ids, 0 if with_context else len(context))
        return rows[-1 - len(answer) : -1].argmax(-1).tolist() == answer


def questions(
    template: str, pairs_of: Callable[[Random], Pairs], *, again: bool
) -> Iterator[Question]:
    """Yield `SAMPLES` questions of `SHOTS` pairs, written with `template`.

    Args:
        template: Template of one pair, including the text between two pairs.
        pairs_of: Draws the pairs of a question: `SHOTS`, or one more if `again` is false.
        again: Whether to ask for a pair of the context; else for the last pair, which is not in it.
    """
    rng = Random(SEED)
    for _ in range(SAMPLES):
        pairs = pairs_of(rng)
        shown = "".join(template.format(x=x, y=y) for x, y in pairs[:SHOTS])
        x, y = rng.choice(pairs) if again else pairs[SHOTS]
        query = template[: template.index("{y}")].format(x=x)
        # the tokenizer joins a space to the word after it
        context, query = shown.rstrip(" "), shown[len(shown.rstrip(" ")) :] + query.rstrip(" ")
        yield Question(context, query, f" {y}")


def share(subject: Subject, asked: Iterator[Question], *, with_context: bool = True) -> float:
    """Return the share of questions with the right answer."""
    right = [question.right(subject, with_context=with_context) for question in asked]
    return sum(right) / len(right)


def measure(subject: Subject, facts: Facts) -> Iterator[Bar]:
    """Yield every bar about the model's predictions."""
    yield from _seed_bars(subject)
    yield from _list_bars(subject)
    yield from _capital_bars(subject, sorted(facts["capital"].items()))
    yield from _repeat_bars(subject)


def evaluate(folder: Path, facts: Facts) -> str:
    """Return the table of bars of a checkpoint folder and of a random control, in Markdown."""
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    started = time.perf_counter()
    subject = Subject(load_model(folder), AutoTokenizer.from_pretrained(folder))
    loading = time.perf_counter() - started
    torch.manual_seed(SEED)
    control = Subject(GPT2LMHeadModel(subject.model.config).eval(), subject.tokenizer)
    lines = [
        f"| bar ({SAMPLES} questions each) | measured | bound | kept | random control |",
        "|---|--:|--:|---|--:|",
    ]
    files = (
        Bar("size on disk, MB", size, 20, at_least=False),
        Bar("load offline, s", loading, 2, at_least=False),
    )
    for bar in files:
        lines.append(_line(bar, "the same"))
    for bar, other in zip(measure(subject, facts), measure(control, facts), strict=True):
        lines.append(_line(bar, f"{other.value:.4g}"))
    return "\n".join(lines)


def _line(bar: Bar, control: str) -> str:
    sign, kept = "≥" if bar.at_least else "≤", "yes" if bar.kept else "**no**"
    return f"| {bar.name} | {bar.value:.4g} | {sign} {bar.bound:g} | {kept} | {control} |"


def _seed_bars(subject: Subject) -> Iterator[Bar]:
    ids = subject.encode(SEED_CONTEXT)
    (berlin,) = subject.encode(" Berlin")
    after_is = subject.log_probabilities(ids)[-1]
    alone = subject.log_probabilities(ids[-1:], len(ids) - 1)[-1]
    rank = int((after_is > after_is[berlin]).sum()) + 1
    yield Bar('P(" Berlin") after the seed\'s context', after_is[berlin].exp().item(), 0.9)
    yield Bar("its rank", rank, 1, at_least=False)
    yield Bar('P(" Berlin") after " is" alone', alone[berlin].exp().item(), 0.05, at_least=False)
    with_context = subject.log_probabilities([*ids, berlin])[-1]
    without = subject.log_probabilities([berlin], len(ids))[-1]
    divergence = (with_context.exp() * (with_context - without)).sum().item()
    yield Bar('KL after " Berlin", with against without, nats', divergence, 0.8)


def _list_bars(subject: Subject) -> Iterator[Bar]:
    words = vocabulary_words(subject.tokenizer)

    def from_lists(rng: Random) -> Pairs:
        keys, values = rng.sample(sorted(CATEGORIES), 2)
        return _pairs(rng, CATEGORIES[keys], CATEGORIES[values])

    def from_vocabulary(rng: Random) -> Pairs:
        return _pairs(rng, words, words)

    rows = [("the tasks' words", from_lists, separator, 0.9) for separator in TRAINED_SEPARATORS]
    rows += [("any words", from_vocabulary, separator, 0.7) for separator in TRAINED_SEPARATORS]
    rows += [("any words", from_vocabulary, separator, 0.4) for separator in HELD_OUT_SEPARATORS]
    for name, pairs_of, separator, bound in rows:
        template = f"{{x}}{separator}{{y}}\n"
        trained = "never trained" if separator in HELD_OUT_SEPARATORS else "trained"
        name = f"list of {SHOTS}, {name}, `{separator.strip()}` {trained}"
        yield Bar(name, share(subject, questions(template, pairs_of, again=True)), bound)
        alone = share(subject, questions(template, pairs_of, again=True), with_context=False)
        yield Bar(f"{name}, without context", alone, 0.1, at_least=False)


def _capital_bars(subject: Subject, capitals: Pairs) -> Iterator[Bar]:
    def invented(rng: Random) -> Pairs:
        return [
            (invented_name(rng, held_out=True), invented_name(rng, held_out=True))
            for _ in range(SHOTS)
        ]

    def swapped(rng: Random) -> Pairs:
        pairs = rng.sample(capitals, SHOTS)
        return [(x, pairs[i - 1][1]) for i, (x, _) in enumerate(pairs)]

    famous = [(x, y) for x, y in capitals if x in FAMOUS]
    yield Bar("invented capitals", share(subject, questions(CAPITAL, invented, again=True)), 0.6)
    yield Bar("swapped capitals", share(subject, questions(CAPITAL, swapped, again=True)), 0.5)
    for template in HELD_OUT_CAPITALS:
        for kind, pairs in (("told most", famous), ("all", capitals)):

            def true(rng: Random, pairs: Pairs = pairs) -> Pairs:
                return rng.sample(pairs, SHOTS + 1)

            name = f"capitals never trained, {kind}: `{template.strip()}`"
            yield Bar(name, share(subject, questions(template, true, again=False)), 0.8)


def _repeat_bars(subject: Subject) -> Iterator[Bar]:
    rng = Random(SEED)
    gains, right = [], []
    for _ in range(SAMPLES):
        block = [rng.randrange(1, len(subject.tokenizer)) for _ in range(REPEAT_LENGTH)]
        rows = subject.log_probabilities(block * 2)[:-1]  # (2 L - 1, vocabulary)
        targets = torch.tensor((block * 2)[1:])
        losses = -rows.gather(1, targets[:, None])[:, 0]
        gains.append(
            (losses[REPEAT_LENGTH - 1 :].mean() - losses[: REPEAT_LENGTH - 1].mean()).item()
        )
        right.append((rows.argmax(-1) == targets)[REPEAT_LENGTH - 1 :].float().mean().item())
    name = f"random tokens repeated, L = {REPEAT_LENGTH}"
    yield Bar(f"{name}: second minus first, nats", sum(gains) / SAMPLES, -6, at_least=False)
    yield Bar(f"{name}: top-1 on the second", sum(right) / SAMPLES, 0.6)


def _pairs(rng: Random, keys: Sequence[str], values: Sequence[str]) -> Pairs:
    return list(zip(rng.sample(keys, SHOTS), rng.sample(values, SHOTS), strict=True))
