"""Runs that share rows, known rows, packs and a cache read what each of them reads alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.activations import HookPoint
from service.engine import Activations, Follow, Model, Plan, Question, Run, Site
from service.engine.prefixes import Prefixes
from service.engine.scheduler import Scheduler, Ticket
from service.engine.segments import Segment
from service.engine.walk import forward

FLOAT64 = 1e-12
ROW_BYTES = 2 * 32 * 8
"""Bytes of a row's keys and values in a layer of the tiny model, in float64."""
POINTS = tuple(point for point in get_args(HookPoint) if point != "mlp_pre_linear")
CONTEXT = (1, 2, 2, 1, 2, 1, 1, 2)
few = settings(derandomize=True, deadline=None, max_examples=30)


class Case(NamedTuple):
    """Questions, each with its rounds of runs, and the limits of the scheduler."""

    questions: list[list[list[Run]]]
    budget: int
    least: int
    row_budget: int


@st.composite
def plain_runs(draw: st.DrawFn) -> Run:
    """A run that leaves a context at some row, and reads rows from there on, or any rows."""
    branch = draw(st.integers(0, len(CONTEXT)))
    ids = [*CONTEXT[:branch], *draw(st.lists(st.integers(1, 2), max_size=3))] or [1]
    gap = draw(st.sampled_from([0, 0, 0, 3]))
    positions = [i + (gap if i > 5 else 0) for i in range(len(ids))]
    rows = st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=2)
    last = st.just([len(ids) - 1])
    sites = st.builds(Site, st.integers(0, 2), st.sampled_from(POINTS))
    reads = draw(st.dictionaries(sites, last | last | rows, min_size=1, max_size=2))
    trunk = draw(st.none() | st.none() | st.integers(0, len(ids)))
    return Run(ids, positions, reads, torch.float64, trunk=trunk)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A plain run, or one that follows a row of another."""
    run = draw(plain_runs())
    if draw(st.integers(0, 4)):
        return run
    source = draw(plain_runs())
    ahead = draw(st.integers(0, len(source.tokens) - 1))
    behind = draw(st.integers(0, len(run.tokens) - 1))
    return replace(run, patch=Follow(source, ahead, behind))


cases = st.builds(
    Case,
    st.lists(
        st.lists(st.lists(runs(), min_size=1, max_size=4), min_size=2, max_size=3),
        min_size=1,
        max_size=2,
    ),
    st.sampled_from([1000, 20, 8, 0]).map(lambda rows: rows * ROW_BYTES),
    st.sampled_from([1, 1, 3]),
    st.sampled_from([1000, 12, 6, 1]),
)


def asking(rounds: Sequence[Sequence[Run]]) -> Question[list[Activations]]:
    """A question that returns everything it received."""
    received: list[Activations] = []
    for one in rounds:
        received += yield one
    return received


def segments(tree: Prefixes) -> Iterator[Segment]:
    """Every segment of a tree."""
    levels = [level for level in tree._roots.values() if level]
    while levels:
        for segment in levels.pop().values():
            yield segment
            if segment.children:
                levels.append(segment.children)


def sound(tree: Prefixes) -> bool:
    """Whether the tree knows what it holds, and holds nothing that no run needs."""
    every = list(segments(tree))
    holding = [one for one in every if one.layers is not None]
    assert set(holding) == set(tree._kept)
    assert tree.bytes == sum(one.size for one in holding)
    assert sum(one.size for one in holding if not one.waiting) <= tree.budget
    assert all(one.waiting or one.children or one.layers is not None for one in every)
    return all((one.known > 0) == (one.layers is not None) for one in every)


def answers(model: Model, case: Case) -> tuple[list[Any], Prefixes]:
    """The activations of each question, asked of one scheduler together."""
    tree = Prefixes(case.budget, torch.float64, case.least)
    scheduler = Scheduler(model, row_budget=case.row_budget, batching=True, prefixes=tree)
    found: dict[int, Any] = {}
    for i, question in enumerate(case.questions):

        def settle(answer: Any, error: BaseException | None, i: int = i) -> None:
            found[i] = answer if error is None else error

        scheduler.admit(Ticket(Plan(asking(question)), time.monotonic() + 60, settle))
    while scheduler.active:
        scheduler.turn()
        assert sound(tree)
    return [found[i] for i in range(len(case.questions))], tree


@few
@given(cases)
def test_shared_rows_are_as_if_alone(tiny: Model, case: Case) -> None:
    """Any runs of any questions, in any packs and with any cache, read what each reads alone, and
    leave nothing behind but the cache."""
    found, tree = answers(tiny, case)
    for question, answer in zip(case.questions, found, strict=True):
        for run, read in zip((run for one in question for run in one), answer, strict=True):
            (alone,) = forward(tiny, [run])
            assert read.keys() == run.reads.keys()
            for site, value in alone.items():
                assert value.shape == read[site].shape
                assert torch.allclose(read[site], value, rtol=1e-11, atol=1e-12), site
    assert not any(one.waiting for one in segments(tree))
    tree.clear()
    assert not list(segments(tree))
    assert tree.bytes == 0
