"""A context, a query and a baseline: the tokens and positions of each run.

The baselines are those of docs/theory.md, "Baselines". The run with the context reads the context
at positions 0, 1, … and then the query. The baseline run reads:

    matched           the query alone, at its positions of the full run
    alone             the query alone, at 0, 1, …; matched where positions are relative
    anchored          the special token at 0 in both runs, the query as in the full run
    Without(spans)    the context less the spans, positions kept, the query as in the full run
    Another(context)  that context at 0, 1, … followed by the query

Every trace that a ``Question`` returns holds the query's rows only: row = query position.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from .decoder import Decoder, Patch, Trace

Span = tuple[int, int]  # half-open, indices into the listed context


@dataclass(frozen=True)
class Without:
    """The baseline without these spans of context tokens."""

    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Another:
    """The baseline with another context."""

    context: tuple[int, ...]


Baseline = Literal["matched", "alone", "anchored"] | Without | Another


@dataclass(frozen=True)
class Prompt:
    """The tokens of one run and their positions, with the query's at the end."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """One context and query against one baseline; made by ``ask``.

    ``context`` is the listed one (``tokens.context`` of an answer): with the baseline
    ``anchored`` it begins with the special token, and indices into it count that token.
    """

    model: Decoder
    context: tuple[int, ...]
    query: tuple[int, ...]
    baseline: Baseline
    traces: dict[Prompt, Trace] = field(default_factory=dict, compare=False, repr=False)

    def keeping(self, kept: Iterable[int]) -> Prompt:
        """The context tokens at indices ``kept`` and the query, each at its own position."""
        indices = sorted(set(kept))
        ids = (*(self.context[i] for i in indices), *self.query)
        return Prompt(ids, (*indices, *self.positions_with_context))

    def reordered(self, order: Sequence[int]) -> Prompt:
        """The context in another order (a permutation of its indices), positions 0, 1, …"""
        if sorted(order) != list(range(len(self.context))):
            raise ValueError("order is a permutation of the context's indices")
        ids = (*(self.context[i] for i in order), *self.query)
        return Prompt(ids, tuple(range(len(ids))))

    @property
    def positions_with_context(self) -> tuple[int, ...]:
        """The query's positions in the run with the context."""
        start = len(self.context)
        return tuple(range(start, start + len(self.query)))

    @property
    def positions_baseline(self) -> tuple[int, ...]:
        """The query's positions in the baseline run."""
        return self.baseline_prompt.positions[-len(self.query) :]

    @property
    def position_shift(self) -> int:
        """The query's first position with context minus that in the baseline."""
        return self.positions_with_context[0] - self.positions_baseline[0]

    @property
    def always_kept(self) -> tuple[int, ...]:
        """Context indices that every run of this question reads: the anchor, or none."""
        return (0,) if self.baseline == "anchored" else ()

    @property
    def full_prompt(self) -> Prompt:
        """The run with the context."""
        return self.keeping(range(len(self.context)))

    @property
    def baseline_prompt(self) -> Prompt:
        """The run with the reduced context."""
        if self.baseline == "alone":
            return Prompt(self.query, tuple(range(len(self.query))))
        if isinstance(self.baseline, Another):
            ids = (*self.baseline.context, *self.query)
            return Prompt(ids, tuple(range(len(ids))))
        if isinstance(self.baseline, Without):
            lost = {i for begin, end in self.baseline.spans for i in range(begin, end)}
            return self.keeping(i for i in range(len(self.context)) if i not in lost)
        return self.keeping(self.always_kept)

    def trace(self, prompt: Prompt) -> Trace:
        """The trace of a separate run of this prompt, cached for other layers and positions."""
        if prompt not in self.traces:
            run = self.model.run(prompt.ids, prompt.positions)
            self.traces[prompt] = run.last_rows(len(self.query))
        return self.traces[prompt]

    @cached_property
    def full(self) -> Trace:
        """The query's rows with the context."""
        return self.trace(self.full_prompt)

    @cached_property
    def base(self) -> Trace:
        """The query's rows of the baseline run, without a patch."""
        return self.trace(self.baseline_prompt)

    def patched(self, patches: Mapping[int, Patch], depth: int | None = None) -> Trace:
        """The query's rows of the baseline run under patched weights (on every row)."""
        prompt = self.baseline_prompt
        run = self.model.run(prompt.ids, prompt.positions, patches=patches, depth=depth)
        return run.last_rows(len(self.query))

    def row(self, position: int) -> int:
        """A query position as an index from the start; negative ones count from the end."""
        return range(len(self.query))[position]


def ask(
    model: Decoder,
    context: Sequence[int],
    query: Sequence[int],
    baseline: Baseline = "matched",
    anchor: int | None = None,
) -> Question:
    """A question; ``anchored`` puts ``anchor`` before a context that does not begin with it."""
    listed = tuple(context)
    if baseline == "alone" and model.rotary is not None:
        baseline = "matched"
    if baseline == "anchored":
        if anchor is None:
            raise ValueError("the baseline anchored needs the id of the special token")
        if listed[:1] != (anchor,):
            listed = (anchor, *listed)
    return Question(model, listed, tuple(query), baseline)
