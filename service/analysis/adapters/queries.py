"""The prompts of a static adapter: its queries and texts, with context and where it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from schemas.adapters import FitOn, StaticAdapterRequest
from schemas.pairs import Baseline
from service.analysis.adapters.keep import COLLATERAL, KEEP
from service.analysis.inputs import Text, check_length, refuse, resolve_ids
from service.analysis.pairs import Prompt, resolve_pair
from service.engine import Model
from service.errors import EmptyQuery, LayerOutOfRange, Path, PromptTooLong, TooFewQueries

LEAST_QUERIES = 2
EVERY_HELD_OUT = 3
"""Every third query is held out unless the request names others."""
FIT_ROWS: Mapping[FitOn, Callable[[int, int], range]] = {
    "query+answer": lambda query, answer: range(min(1, query - 1), query + answer - 1),
    "answer": lambda query, answer: range(query - 1, query + answer - 1),
    "last": lambda query, _answer: range(query - 1, query),
}
"""The rows to fit, as indices into the query with its answer, from the numbers of their tokens. A
query's last token predicts the answer's first token, and no row reads the answer's last one."""


@dataclass(frozen=True)
class Both:
    """A query or a text in two prompts that end in it.

    Args:
        with_context: The prompt with context.
        baseline: The prompt in which the adapter is used.
    """

    with_context: Prompt
    baseline: Prompt


@dataclass(frozen=True)
class Task:
    """What a static adapter is fitted to and measured on.

    Args:
        baseline: The baseline that the request names, or what it resolves to.
        position_shift: Position of a query with context minus its position in use.
        layers: The patched layers, up to the last.
        fitted: Queries to fit to.
        held_out: Queries to measure on.
        keep: Texts to leave unchanged.
        collateral: Texts on which damage is measured, none of which is kept.
    """

    baseline: Baseline
    position_shift: int
    layers: range
    fitted: Sequence[Both]
    held_out: Sequence[Both]
    keep: Sequence[Prompt]
    collateral: Sequence[Both]

    @property
    def queries(self) -> list[Both]:
        """The fitted queries, then the held-out ones."""
        return [*self.fitted, *self.held_out]


def resolve_task(model: Model, body: StaticAdapterRequest) -> Task:
    """Resolve a request against the model.

    Raises:
        TooFewQueries: Fewer than two queries differ.
        NotSupported: A norm follows the model's MLP, or a held-out query is fitted.
        LayerOutOfRange: There is no such first layer.
        Refused: A text does not fit, as `resolve_pair` says.
    """
    refuse(
        model.post_norms,
        "Static adapters are not defined for this model, because a norm follows its MLP.",
        "kind",
    )
    _require_enough(len(body.queries))
    begun = resolve_pair(
        model, body.context, body.queries[0], body.baseline, "last", query_at=("queries", 0)
    )
    behind = body.answer_tokens - 1

    def both(query: Text, *at: str | int) -> Both:
        # The context's ids are given, so that it is tokenised once.
        pair = resolve_pair(model, begun.context, query, begun.kind, "last", query_at=at)
        check_length(model, len(pair.with_context.ids) + behind, at)
        return Both(pair.with_context, pair.baseline)

    queries = _distinct([both(query, "queries", i) for i, query in enumerate(body.queries)])
    _require_enough(len(queries))
    if body.held_out is None:
        held_out = queries[EVERY_HELD_OUT - 1 :: EVERY_HELD_OUT]
        fitted = [one for i, one in enumerate(queries) if (i + 1) % EVERY_HELD_OUT]
    else:
        named = [both(query, "held_out", i) for i, query in enumerate(body.held_out)]
        seen = {tuple(one.with_context.ids) for one in queries}
        for i, one in enumerate(named):
            refuse(
                tuple(one.with_context.ids) in seen,
                "The query is also in `queries`. Hold out queries that are not fitted.",
                "held_out",
                i,
            )
        held_out, fitted = _distinct(named), queries
    head, room = begun.context[: begun.head], model.n_positions - len(begun.context)
    longest = model.n_positions - len(head)
    if isinstance(body.keep, str):
        texts = KEEP if body.keep == "default" else ()
        kept = [resolve_ids(model, text, ("keep",))[:longest] for text in texts]
    else:
        kept = [_kept(model, text, longest, ("keep", i)) for i, text in enumerate(body.keep)]
    # Beside a long context, only the beginning of a text has positions left.
    unrelated = [resolve_ids(model, text, ())[:room] for text in COLLATERAL]
    # A kept text would show no damage: the adapter is fitted to leave it unchanged.
    measured = [ids for ids in unrelated if not any(one[: len(ids)] == ids for one in kept)]
    return Task(
        baseline=begun.kind,
        position_shift=int(begun.with_context.positions[-1]) - int(begun.baseline.positions[-1]),
        layers=range(_first_layer(model, body.from_layer), model.n_layers),
        fitted=fitted,
        held_out=held_out,
        keep=[_behind(head, ids) for ids in kept],
        collateral=[Both(_behind(begun.context, ids), _behind(head, ids)) for ids in measured],
    )


def _require_enough(queries: int) -> None:
    if queries < LEAST_QUERIES:
        raise TooFewQueries(
            f"The request has {queries} distinct queries to fit to; a static adapter needs "
            f"{LEAST_QUERIES}.",
            at=("queries",),
            limit=LEAST_QUERIES,
            actual=queries,
        )


def _distinct(queries: Sequence[Both]) -> list[Both]:
    """The queries without those whose token ids an earlier one has."""
    # The same context precedes all of them.
    return list({tuple(one.with_context.ids): one for one in queries}.values())


def _kept(model: Model, text: Text, longest: int, at: Path) -> tuple[int, ...]:
    ids = resolve_ids(model, text, at)
    if not ids:
        raise EmptyQuery("The text has no tokens.", at=at)
    if len(ids) > longest:
        raise PromptTooLong(
            f"The text has {len(ids):,} tokens; {longest:,} fit. Shorten it.",
            at=at,
            limit=longest,
            actual=len(ids),
        )
    return ids


def _behind(before: tuple[int, ...], text: tuple[int, ...]) -> Prompt:
    return Prompt(before + text, tuple(range(len(before) + len(text))), len(text))


def _first_layer(model: Model, layer: int | None) -> int:
    count = model.n_layers
    if layer is None:
        return count // 3
    if not -count <= layer < count:
        raise LayerOutOfRange(
            f"Layers go from {-count} to {count - 1}.",
            at=("from_layer",),
            limit=count - 1,
            actual=layer,
        )
    return layer % count
