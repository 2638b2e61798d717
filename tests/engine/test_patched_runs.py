"""Runs with patched weights: exact at the followed row, the oracle's elsewhere, alike in any
pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from schemas.activations import HookPoint
from schemas.equivalence_checks import Apply
from schemas.pairs import Form
from service.analysis.factors import layer_update
from service.engine import (
    Activations,
    Fixed,
    Follow,
    Model,
    Plan,
    Question,
    Run,
    Site,
)
from service.engine.pack import Filling
from service.engine.prefixes import Prefixes
from service.engine.question import distinct_rows
from service.engine.scheduler import Scheduler, Ticket
from service.engine.walk import forward
from service.theory import LowRank, StaticUpdate, static_updates
from tests import oracle
from tests.analysis.subjects import Subject
from tests.engine.made import every_site, logits_of, relative, resident, unchanged, worst
from tests.oracle import GPT2

FLOAT32, FLOAT64 = 5e-6, 1e-12
CONTEXT = (17, 230, 5, 88, 140, 61, 199, 9)
QUERY = (44, 120, 7)
BASELINES: dict[str, oracle.Baseline] = {
    "matched": "matched",
    "alone": "alone",
    "anchored": "anchored",
    "without": oracle.Without(((1, 3), (5, 6))),
    "another": oracle.Another((3, 77, 200, 31, 8)),
}
SHARED: tuple[HookPoint, ...] = ("mlp_pre", "mlp_act", "mlp_out", "resid_post")
"""Hook points at which a following row equals the row that it follows."""
FORMS: tuple[Form, ...] = ("bias", "weights")
APPLIES: tuple[Apply, ...] = ("factored", "materialized")


def question(model: GPT2, baseline: str) -> oracle.Question:
    """The context and the query against this baseline, in the oracle."""
    return oracle.ask(model, CONTEXT, QUERY, BASELINES[baseline], anchor=0)


def whole(model: Model, prompt: oracle.Prompt, dtype: torch.dtype | None = torch.float64) -> Run:
    """A run that reads every site at the query's rows."""
    rows = range(len(prompt.ids) - len(QUERY), len(prompt.ids))
    return Run(prompt.ids, prompt.positions, every_site(model, rows), dtype)


def following(
    model: Model, asked: oracle.Question, position: int, apply: Apply = "factored"
) -> Run:
    """The baseline run that follows the run with context at a query position."""
    source, base = whole(model, asked.full_prompt), whole(model, asked.baseline_prompt)
    ahead = len(source.tokens) - len(QUERY) + position
    behind = len(base.tokens) - len(QUERY) + position
    return replace(base, patch=Follow(source, ahead, behind, apply))


def gaps(model: Model, found: Activations, expected: Activations, position: int) -> list[float]:
    """Relative errors of every block's MLP and output, and of the logits, at a query position."""
    sites = [Site(layer, p) for layer in range(model.n_layers) for p in SHARED]
    logits = (logits_of(model, read)[position] for read in (found, expected))
    return [
        *(relative(found[site][position], expected[site][position]) for site in sites),
        relative(*logits),
    ]


@pytest.mark.parametrize("apply", ["factored", "materialized"])
@pytest.mark.parametrize("position", range(len(QUERY)))
@pytest.mark.parametrize("baseline", BASELINES)
def test_followed_row_equals_the_row_with_context(
    tiny: Model, tiny_oracle: GPT2, baseline: str, position: int, apply: Apply
) -> None:
    """At the followed row every block's output and the logits equal those with context to 1e-12."""
    asked = question(tiny_oracle, baseline)
    run = following(tiny, asked, position, apply)
    assert isinstance(run.patch, Follow)
    other = replace(run.patch, source_row=run.patch.source_row - 1)
    context, plain, patched, astray = forward(
        tiny,
        [
            whole(tiny, asked.full_prompt),
            whole(tiny, asked.baseline_prompt),
            run,
            replace(run, patch=other),
        ],
    )
    assert max(gaps(tiny, patched, context, position)) <= FLOAT64
    assert min(gaps(tiny, plain, context, position)) > 1e-3
    assert min(gaps(tiny, astray, context, position)) > 1e-3


@pytest.mark.parametrize("baseline", BASELINES)
def test_rows_of_a_following_run_equal_the_oracles(
    tiny: Model, tiny_oracle: GPT2, baseline: str
) -> None:
    """The patched weights act on every row, so all rows equal those of the oracle's patched run."""
    asked = question(tiny_oracle, baseline)
    for position in (0, len(QUERY) - 1):
        theirs = oracle.sequential(asked, position).patched
        (found,) = forward(tiny, [following(tiny, asked, position)])
        for site, values in found.items():
            truth = theirs[site.layer, site.point]
            assert relative(values, torch.from_numpy(truth)) <= 1e-10, (position, site)
        assert relative(logits_of(tiny, found), torch.from_numpy(theirs.logits)) <= 1e-10


@pytest.mark.parametrize("name", ["qwen3", "qwen2-windows", "gemma3", "neox-parallel"])
def test_runs_that_follow_in_each_form_share_a_pack(
    name: str, variant_of: Callable[[str], Subject]
) -> None:
    """Runs of both forms, both ways of applying and all positions, with fixed patches and a cached
    context in one pack, equal the oracle's patched runs in every row."""
    subject = variant_of(name)
    model, prefixes = subject.model, Prefixes(1 << 22, torch.float64)
    asked = question(subject.oracle, "without")
    runs, truths = [whole(model, asked.full_prompt)], [asked.full]
    for position, form, apply in product((0, 2), FORMS, APPLIES):
        run = following(model, asked, position, apply)
        assert isinstance(run.patch, Follow)
        runs.append(replace(run, patch=replace(run.patch, form=form)))
        truths.append(oracle.sequential(asked, position, form).patched)
    context, baseline = (
        whole(model, prompt) for prompt in (asked.full_prompt, asked.baseline_prompt)
    )
    read, plain = forward(model, [context, baseline], prefixes=prefixes)
    for form, apply in product(FORMS, APPLIES):
        updates = {
            layer: static_updates(layer_update(layer, read, plain, block.to(torch.float64), form))[
                2
            ]
            for layer, block in enumerate(model.blocks)
        }
        runs.append(replace(baseline, patch=Fixed(updates, apply)))
        truths.append(oracle.sequential(asked, 2, form).free_stream)
    for run, theirs, found in zip(
        runs, truths, forward(model, runs, prefixes=prefixes), strict=True
    ):
        for site, values in found.items():
            truth = torch.from_numpy(theirs[site.layer, site.point])
            assert relative(values, truth) <= 1e-10, (run.patch, site)
    assert prefixes.hits > 0


def unrelated(model: Model) -> list[Run]:
    """Runs of other depths and lengths; one of them is a prefix of the context."""
    return [
        Run(CONTEXT[:5], range(5), {Site(0, "mlp_in"): [4]}, torch.float64),
        Run((9, 9, 9), (3, 4, 60), {Site(1, "resid_post"): [0, 2]}, torch.float64),
        Run((1,), (0,), {Site(model.n_layers - 1, "resid_post"): [0]}, torch.float64),
        Run(CONTEXT, range(len(CONTEXT)), {Site(2, "attn_out"): [7]}, torch.float64),
    ]


@pytest.mark.parametrize("apply", ["factored", "materialized"])
def test_patched_run_is_the_same_in_any_pack(tiny: Model, tiny_oracle: GPT2, apply: Apply) -> None:
    """Patched runs of all positions and two baselines read the same in one pack as alone."""
    runs = [
        following(tiny, question(tiny_oracle, baseline), position, apply)
        for baseline in ("alone", "anchored")
        for position in range(len(QUERY))
    ]
    shallow = replace(runs[0], reads={Site(1, "mlp_in"): [1]})
    others = unrelated(tiny)
    mixed = [others[0], *runs[:3], others[1], shallow, *runs[3:], *others[2:]]
    for run, read in zip(mixed, forward(tiny, mixed), strict=True):
        assert worst(read, forward(tiny, [run])[0]) <= FLOAT64


def asking(runs: Sequence[Run]) -> Question[Sequence[Activations]]:
    """A question that returns the activations it received."""
    return (yield runs)


@pytest.mark.parametrize(
    ("budget", "count", "again"), [(1, 4, 1 + 2 + 3), (14, 2, 3), (17, 2, 3), (20, 1, 0)]
)
def test_source_is_computed_once_over_several_packs(
    tiny: Model, tiny_oracle: GPT2, budget: int, count: int, again: int
) -> None:
    """With any row budget the source's context is computed once; only its rows from the first read
    to the followed one are computed again in each later pack."""
    asked = question(tiny_oracle, "matched")
    runs = [
        whole(tiny, asked.full_prompt),
        *(following(tiny, asked, position) for position in range(len(QUERY))),
    ]
    packs: list[int] = []
    answers: list[Any] = []

    def settle(answer: Any, error: BaseException | None) -> None:
        assert error is None
        answers.append(answer)

    scheduler = Scheduler(
        tiny,
        row_budget=budget,
        batching=True,
        prefixes=(tree := Prefixes()),
        observe=lambda _seconds, count: packs.append(count),
    )
    scheduler.admit(Ticket(Plan(asking(runs)), deadline=float("inf"), settle=settle))
    while scheduler.active:
        scheduler.turn()
    context, *patched = answers[0]
    assert sum(packs) == len(runs)
    assert len(packs) == count
    assert tree.misses == distinct_rows(runs) + again
    assert tree.bytes == 0
    for position, read in enumerate(patched):
        assert max(gaps(tiny, read, context, position)) <= FLOAT64


def fixed(updates: Mapping[int, oracle.Update], apply: Apply) -> Fixed:
    """The oracle's updates as a patch that is known in advance."""
    return Fixed(
        {
            layer: StaticUpdate(
                LowRank(
                    torch.from_numpy(one.input_factor)[None],
                    torch.from_numpy(one.output_factor)[None],
                ),
                bias=torch.from_numpy(one.delta_h),
            )
            for layer, one in updates.items()
        },
        apply,
    )


@pytest.mark.parametrize("apply", ["factored", "materialized"])
@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("baseline", ["matched", "another"])
def test_fixed_patches_equal_the_oracles(
    tiny: Model, tiny_oracle: GPT2, baseline: str, layers: tuple[int, ...], apply: Apply
) -> None:
    """Free-stream updates of some layers, as W + ΔW on every row, give the oracle's run."""
    asked = question(tiny_oracle, baseline)
    updates = {layer: oracle.update(asked, layer, 1) for layer in layers}
    run = replace(whole(tiny, asked.baseline_prompt), patch=fixed(updates, apply))
    theirs = asked.patched({layer: one.patch for layer, one in updates.items()})
    (found,) = forward(tiny, [run])
    for site, values in found.items():
        assert relative(values, torch.from_numpy(theirs[site.layer, site.point])) <= 1e-10, site
    assert relative(logits_of(tiny, found), torch.from_numpy(theirs.logits)) <= 1e-10
    last = np.asarray(found[Site(2, "resid_post")])
    assert np.linalg.norm(last - asked.base[2, "resid_post"]) > 1e-3 * np.linalg.norm(last)


def test_patched_rows_are_not_shared(tiny: Model, tiny_oracle: GPT2) -> None:
    """One prompt, plain and under three patches, has separate rows for each."""
    asked = question(tiny_oracle, "matched")
    plain = whole(tiny, asked.baseline_prompt)
    one, two = (
        {layer: oracle.update(asked, layer, position)} for layer, position in [(0, 1), (1, 0)]
    )
    runs = [
        replace(plain, patch=fixed(one, "factored")),
        plain,
        replace(plain, patch=fixed(two, "factored")),
        following(tiny, asked, 2),
        whole(tiny, asked.full_prompt),
        plain,
    ]
    filling = Filling()
    for placed in Prefixes(dtype=tiny.dtype).place(runs):
        filling.add(placed)
    assert filling.rows == 4 * len(QUERY) + len(CONTEXT) + len(QUERY)
    together = forward(tiny, runs)
    for run, read in zip(runs, together, strict=True):
        assert worst(read, forward(tiny, [run])[0]) <= FLOAT64
    last = Site(tiny.n_layers - 1, "resid_post")
    assert len({round(float(read[last].norm()), 6) for read in together[:5]}) == 5
    assert torch.equal(together[1][last], together[5][last])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_patched_runs_do_not_change_resident_weights(
    tiny: Model, tiny_oracle: GPT2, dtype: torch.dtype
) -> None:
    """Patched runs of both kinds leave every resident weight bit-equal."""
    before = resident(tiny)
    asked = question(tiny_oracle, "without")
    updates = {layer: oracle.update(asked, layer) for layer in range(tiny.n_layers)}
    source = whole(tiny, asked.full_prompt, dtype)
    base = whole(tiny, asked.baseline_prompt, dtype)
    runs = [source, base]
    for apply in ("factored", "materialized"):
        follow = Follow(source, len(source.tokens) - 1, len(base.tokens) - 1, apply)
        runs += [replace(base, patch=follow), replace(base, patch=fixed(updates, apply))]
    context, _, *patched = forward(tiny, runs)
    assert unchanged(tiny, before)
    bound = FLOAT32 if dtype == torch.float32 else FLOAT64
    for read in patched[::2]:
        assert max(gaps(tiny, read, context, -1)) <= bound
        assert read[Site(0, "mlp_in")].dtype == dtype


def test_patched_rows_do_not_use_the_prefix_cache(tiny: Model) -> None:
    """Patched rows are neither cached nor read from the cache; those of the source are."""
    context = tuple(1 + (37 * i) % 250 for i in range(40))
    rows, sites = [len(context)], {Site(1, "resid_post"), Site(2, "resid_post")}
    source = Run((*context, 9), range(41), dict.fromkeys(sites, rows))
    base = Run((*context[::-1], 9), range(41), dict.fromkeys(sites, rows))
    runs = [source, base, replace(base, patch=Follow(source, 40, 40, "materialized"))]
    cold = forward(tiny, runs)
    prefixes = Prefixes(1 << 24, tiny.dtype)
    for hits, misses in ((0, 41 + 41), (40, 41 + 1)):
        before = prefixes.hits, prefixes.misses
        (patched,) = forward(tiny, [runs[2]], prefixes=prefixes)
        assert worst(patched, cold[2]) <= FLOAT32
        assert (prefixes.hits - before[0], prefixes.misses - before[1]) == (hits, misses)
    for hits, misses in ((40, 1 + 41 + 41), (80, 1 + 1 + 41)):
        before = prefixes.hits, prefixes.misses
        warm = forward(tiny, runs, prefixes=prefixes)
        assert (prefixes.hits - before[0], prefixes.misses - before[1]) == (hits, misses)
        for read, truth in zip(warm, cold, strict=True):
            assert worst(read, truth) <= FLOAT32
    assert worst(cold[2], cold[0]) <= FLOAT32
    assert worst(cold[1], cold[0]) > 1e-2
