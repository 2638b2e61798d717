"""Plans: the announced work of each question, compared with a count of the rows of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.activations import ActivationsRequest
from schemas.attributions import AttributionsRequest
from schemas.common import DType, Request, Text
from schemas.completions import CompletionRequest, Recompute, RecomputedPatch
from schemas.equivalence_checks import EquivalenceChecksRequest, Scope
from schemas.pairs import AnotherContext, Baseline, Span, Stream, WithoutSpans
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import Include, WeightUpdatesRequest
from service.engine import Activations, Follow, Model, Plan, Run, drive, load
from service.engine.pack import Filling
from service.engine.prefixes import Prefixes
from service.engine.walk import forward
from tests.analysis.subjects import plan_of
from tests.checkpoints import save_tiny

CONTEXT, QUERY = [5, 6, 7, 8, 9, 10], [11, 12, 13]
PAIR: dict[str, Any] = {"context": CONTEXT, "query": QUERY}
BEGINS_WITH_QUERY: dict[str, Any] = {"context": [*QUERY, 7], "query": QUERY}
"""A pair whose baseline `alone` shares the context's first rows."""
EARLY, LATE = WithoutSpans(without=[(0, 3)]), WithoutSpans(without=[(1, 2), (4, 6)])
OTHER, ALIKE = AnotherContext(context=[20, 21]), AnotherContext(context=[5, 6, 20])
BASELINES: dict[str, Baseline] = {
    "matched": "matched",
    "alone": "alone",
    "anchored": "anchored",
    "without the first tokens": EARLY,
    "without later tokens": LATE,
    "another context": OTHER,
    "another context with an equal beginning": ALIKE,
}
INCLUDES: list[list[Include]] = [[], ["factors", "bias"], ["next_tokens"]]
PROBES: list[Text] = [[30], [11, 12], [11, 40, 41], [30]]
SPANS: list[list[Span]] = [[(0, 2), (2, 6)], [(0, 1), (1, 5), (5, 6)]]
SCOPES: list[Scope] = ["projection", "block", "model"]
STREAMS: list[Stream] = ["free", "sequential"]


def weight_updates() -> Iterable[Request]:
    """Requests with every baseline, stream, include and kind of probe."""
    for baseline, stream, include in product(BASELINES.values(), STREAMS, INCLUDES):
        yield WeightUpdatesRequest(
            **PAIR, baseline=baseline, stream=stream, include=include, layers=[1], positions="all"
        )
    for baseline, include in product(BASELINES.values(), INCLUDES):
        yield WeightUpdatesRequest(**PAIR, baseline=baseline, include=include, probe_queries=PROBES)
    for pair in (PAIR, BEGINS_WITH_QUERY):
        yield WeightUpdatesRequest(
            **pair, baseline="alone", include=["split", "next_tokens"], probe_queries=PROBES
        )


def equivalence_checks() -> Iterable[Request]:
    """Requests of every scope, baseline and stream, with and without controls."""
    for baseline, controls in product(BASELINES.values(), (True, False)):
        shared: dict[str, Any] = {**PAIR, "baseline": baseline, "controls": controls}
        for scope in SCOPES:
            yield EquivalenceChecksRequest(**shared, scope=scope, layers=[0], positions=[2, 0])
        yield EquivalenceChecksRequest(**shared, stream="sequential", positions=[0, 1])
    yield EquivalenceChecksRequest(context=[5, 5, 5], query=QUERY)


def readings_in_parts() -> Iterable[Request]:
    """Trajectories and attributions by default and by given spans, in both baselines."""
    for kind, pair in product((TrajectoriesRequest, AttributionsRequest), (PAIR, EQUAL)):
        yield kind(**pair)
        yield kind(**pair, baseline="anchored", positions="all", layers=[0])
        for spans in SPANS:
            moved = [(start + 1, stop + 1) for start, stop in spans]
            yield kind(**pair, spans=spans, layers=[-2])
            yield kind(**pair, baseline="anchored", spans=moved)
    yield AttributionsRequest(**PAIR, spans=[(1, 2), (4, 5)])
    yield AttributionsRequest(context="Rome. The. a", query=" b")


EQUAL: dict[str, Any] = {"context": [5, 6, 5, 6, 5, 6], "query": [5, 6]}
"""A pair whose spans have equal tokens."""


def activations() -> Iterable[Request]:
    """Prompts that are equal, begin alike, and differ."""
    mixed: list[Text] = [CONTEXT, CONTEXT[:3], [5, 9], QUERY, [5]]
    groups: list[list[Text]] = [[CONTEXT], [CONTEXT, CONTEXT], mixed]
    for prompts in groups:
        yield ActivationsRequest(prompts=prompts)
        yield ActivationsRequest(prompts=prompts, layers=[0], positions="all", reduce="norm")


def completions() -> Iterable[Request]:
    """Completions of one token, plain and under recomputed patches from every baseline."""
    yield CompletionRequest(prompt=CONTEXT, max_tokens=1)
    yield CompletionRequest(prompt=CONTEXT, max_tokens=1, echo=True, logprobs=1)
    for baseline, agreement in product(BASELINES.values(), (True, False)):
        patch = RecomputedPatch(context=CONTEXT, baseline=baseline)
        yield CompletionRequest(prompt=QUERY, patch=patch, agreement=agreement, max_tokens=1)


REQUESTS = [
    *weight_updates(),
    *equivalence_checks(),
    *readings_in_parts(),
    *activations(),
    *completions(),
]


def yielded(model: Model, plan: Plan[Any]) -> list[Sequence[Run]]:
    """The runs that the planned question yields in each round, until it ends."""
    rounds: list[Sequence[Run]] = []

    def compute(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        rounds.append(runs)
        return forward(model, runs)

    drive(model, plan, compute)
    return rounds


def rows_of(runs: Iterable[Run]) -> int:
    """Number of rows that runs compute: distinct beginnings of plain runs and of sources, and every
    row of a patched run."""
    beginnings: set[tuple[tuple[int, int], ...]] = set()
    patched = 0
    for run in runs:
        if run.patch is not None:
            patched += len(run.tokens)
        plain = run.patch.source if isinstance(run.patch, Follow) else run
        if plain.patch is None:
            path = tuple(zip(plain.tokens, plain.positions, strict=True))
            beginnings |= {path[:stop] for stop in range(1, len(path) + 1)}
    return len(beginnings) + patched


def packed_rows(runs: Sequence[Run]) -> int:
    """Number of rows of a pack of the runs."""
    filling = Filling()
    for placed in Prefixes().place(runs):
        filling.add(placed)
    return filling.rows


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
def test_plan_announces_the_rows_and_layers_that_its_runs_compute(
    tiny: Model, request_: Request
) -> None:
    """The rows of a plan are the distinct rows of all runs that its question yields, which is what
    their packs hold, and its layers are those up to the deepest read."""
    made = plan_of(tiny, request_)
    rounds = yielded(tiny, made)
    runs = [run for round_ in rounds for run in round_]
    assert made.work.rows == rows_of(runs)
    assert made.work.rows == sum(map(packed_rows, rounds))
    assert made.work.layers == 1 + max(site.layer for run in runs for site in run.reads)
    assert made.work.number_bytes == 4


def updates(**options: Any) -> Request:
    """A request for the updates of the first layer."""
    return WeightUpdatesRequest(**{**PAIR, "layers": [0], "include": [], **options})


def checks(**options: Any) -> Request:
    """A request for checks of the first layer without controls."""
    return EquivalenceChecksRequest(**{**PAIR, "layers": [0], "controls": False, **options})


def completion(recompute: Recompute, agreement: bool) -> Request:
    """A request for five tokens under a recomputed patch."""
    patch = RecomputedPatch(context=CONTEXT, recompute=recompute)
    return CompletionRequest(prompt=QUERY, patch=patch, agreement=agreement, max_tokens=5)


@pytest.mark.parametrize(
    ("request_", "rows", "layers"),
    [
        (updates(), 9 + 3, 1),
        (updates(layers=[1, 0]), 9 + 3, 2),
        (updates(layers=[-1]), 9 + 3, 3),
        (updates(baseline="alone"), 9 + 3, 1),
        (updates(**BEGINS_WITH_QUERY, baseline="alone"), 7, 1),
        (updates(baseline="anchored"), 10 + 3, 1),
        (updates(baseline=EARLY), 9 + 6, 1),
        (updates(baseline=LATE), 9 + 5, 1),
        (updates(baseline=OTHER), 9 + 5, 1),
        (updates(baseline=ALIKE), 9 + 4, 1),
        (updates(stream="sequential"), 9 + 3, 1),
        (updates(stream="sequential", positions="all"), 9 + 3 * 3, 1),
        (updates(stream="sequential", positions="all", baseline="anchored"), 10 + 3 * 4, 1),
        (updates(include=["next_tokens"]), 9 + 3, 3),
        (updates(include=["next_tokens"], stream="sequential"), 9 + 3 + 3, 3),
        (updates(include=["split"], baseline="alone"), 9 + 3 + 3, 1),
        (updates(probe_queries=[[30], [31, 32]]), 12 + 2 * 1 + 2 * 2, 1),
        (updates(probe_queries=[[11], [11, 12, 13]]), 12, 1),
        (updates(probe_queries=[[11, 40]]), 12 + 2, 1),
        (checks(scope="projection"), 9 + 3, 1),
        (checks(stream="sequential", positions="all"), 9 + 9, 1),
        (checks(scope="model"), 9 + 3 + 3, 3),
        (checks(scope="model", positions="all"), 9 + 3 + 9, 3),
        (checks(scope="model", positions="all", controls=True), 9 + 3 + 9 + 9, 3),
        (checks(context=[5, 6], controls=True), 5 + 3 + 5, 1),
        (checks(context=[5, 5], controls=True), 5 + 3, 1),
        (TrajectoriesRequest(**PAIR), 6 + 7 * 3, 3),
        (TrajectoriesRequest(**PAIR, baseline="anchored"), 7 + 7 * 3, 3),
        (TrajectoriesRequest(**PAIR, spans=SPANS[0], layers=[0]), 6 + 3 * 3, 1),
        (AttributionsRequest(**PAIR, spans=SPANS[0], layers=[0]), 9 + 3 + 9 + 3 + 7, 1),
        (ActivationsRequest(prompts=[CONTEXT, CONTEXT, [5, 6, 20], [20]]), 6 + 1 + 1, 3),
        (CompletionRequest(prompt=CONTEXT, max_tokens=5), 6 + 4, 3),
        (completion("new", agreement=True), 9 + 3 + 2 * 4, 3),
        (completion("new", agreement=False), 9 + 3 + 2 * 4, 3),
        (completion("all", agreement=True), 9 + 3 + 4 + (4 + 5 + 6 + 7), 3),
    ],
)
def test_plan_announces_the_rows_counted_by_hand(
    tiny: Model, request_: Request, rows: int, layers: int
) -> None:
    """A context of 6 tokens and a query of 3 need these rows and layers."""
    work = plan_of(tiny, request_).work
    assert (work.rows, work.layers) == (rows, layers)


DTYPES: list[tuple[DType, int]] = [("float32", 4), ("bfloat16", 2), ("float16", 2)]


@pytest.mark.parametrize(("dtype", "number_bytes"), DTYPES)
def test_plan_announces_the_bytes_of_its_dtype(
    tiny_folder: Path, dtype: DType, number_bytes: int
) -> None:
    """Runs take the model's dtype. Checks take float32 or float64, whatever the model's dtype."""
    model = load(str(tiny_folder), revision=None, device="cpu", dtype=dtype)
    requests = (
        WeightUpdatesRequest(**PAIR, include=["next_tokens"]),
        WeightUpdatesRequest(**PAIR, stream="sequential"),
        TrajectoriesRequest(**PAIR),
        AttributionsRequest(**PAIR),
        ActivationsRequest(prompts=[CONTEXT]),
    )
    for request in requests:
        assert plan_of(model, request).work.number_bytes == number_bytes
    for scope, stream in (("projection", "free"), ("block", "sequential"), ("model", "sequential")):
        pair = {**PAIR, "scope": scope, "stream": stream}
        for precision, expected in (("model", 4), ("float32", 4), ("float64", 8)):
            request_ = EquivalenceChecksRequest(**{**pair, "precision": precision})
            assert plan_of(model, request_).work.number_bytes == expected


@pytest.mark.parametrize(
    ("baseline", "rows"), [("matched", 694), ("anchored", 695), ("alone", 694)]
)
def test_probe_queries_share_the_rows_of_a_long_context(
    tmp_path: Path, baseline: Baseline, rows: int
) -> None:
    """64 probe queries after a context of 500 tokens need 694 rows, not 33,000: the context once,
    and each query in both runs."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path / "long", n_positions=1024, n_layer=1)
    model = load(str(folder), revision=None, device="cpu", dtype="float32")
    probes: list[Text] = [[i, 200][: 1 + i % 2] for i in range(2, 66)]
    request = WeightUpdatesRequest(
        context=[1 + i % 250 for i in range(500)],
        query=[100],
        baseline=baseline,
        probe_queries=probes,
        include=["next_tokens"],
    )
    made = plan_of(model, request)
    assert sum(map(len, probes)) == 96
    assert made.work.rows == rows == rows_of(run for runs in yielded(model, made) for run in runs)
