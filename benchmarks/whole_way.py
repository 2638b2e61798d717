"""W4: a trajectory in one question, against a forward for each prefix of the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.agreement import agree_captured
from benchmarks.asking import apart, together
from benchmarks.bench import Bench
from benchmarks.table import Bar, Row
from benchmarks.timing import in_turn
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.trajectories import LayerTrajectory, trajectories
from service.engine import Activations, Model, Question

TOKENS = 128
ROUNDS = 3
AGAINST_SEPARATE = Bar(">=", 30.0)


def rows(bench: Bench) -> Iterator[Row]:
    """One row."""
    model = bench.model
    tokens = min(TOKENS, model.n_positions - 1)
    *context, query = bench.ids(tokens + 1)
    pair = resolve_pair(model, context, [query], "matched", "last")
    agree(model, pair)
    times = in_turn(
        {
            "one question": lambda: together(model, way(model, pair)),
            "separate runs": lambda: apart(model, way(model, pair)),
        },
        model.device,
        bench.seconds,
        ROUNDS,
        warm=True,
    )
    case = f"all {model.n_layers} layers, {tokens} tokens, {tokens + 1} runs"
    yield Row.of_times(
        "W4", case, times, "separate runs", "one question", "times", AGAINST_SEPARATE
    )


def way(model: Model, pair: Pair) -> Question[tuple[LayerTrajectory, ...]]:
    """The trajectory of every layer, token by token."""
    spans = [(i, i + 1) for i in range(len(pair.context))]
    return trajectories(model, pair, range(model.n_layers), spans)


def agree(model: Model, pair: Pair) -> None:
    """Every vector that a prefix's run reads is the same in the pack and by itself.

    Raises:
        Disagreement: One is not.
    """
    packed: list[Activations] = []
    separate: list[Activations] = []
    together(model, _noting(way(model, pair), packed))
    apart(model, _noting(way(model, pair), separate))
    for i, (one, other) in enumerate(zip(packed, separate, strict=True)):
        for site, vector in other.items():
            agree_captured(f"mlp_in of layer {site.layer} in run {i}", one[site], vector)


def _noting(
    question: Question[tuple[LayerTrajectory, ...]], notes: list[Activations]
) -> Question[tuple[LayerTrajectory, ...]]:
    """The same question; what it receives is noted."""
    try:
        runs = next(question)
        while True:
            received: Sequence[Activations] = yield runs
            notes.extend(received)
            runs = question.send(received)
    except StopIteration as stop:
        answer: tuple[LayerTrajectory, ...] = stop.value
        return answer
