"""Properties that hold for any model, over random small GPT-2s, contexts and queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.analysis.block_checks import Procedure
from service.analysis.model_checks import model_checks
from service.analysis.pairs import Another, Baseline, Pair, Span, Stream, Without, resolve_pair
from service.analysis.trajectories import trajectories
from service.analysis.weight_updates import Update, weight_updates
from service.engine import HookPoint, Model, Run, Site, drive, load, patched_block
from service.engine.walk import forward
from service.theory import implicit_update, joint_update
from tests.checkpoints import save_tiny
from tests.engine.made import relative, worst

few = settings(derandomize=True, max_examples=15, deadline=None)
ROUNDING = 1e-5
FLOAT64 = 1e-12
SHAPES = [(11, 1, 16, 2), (12, 2, 24, 3), (13, 3, 32, 4), (14, 4, 16, 1)]
"""Seed, layers, d_model and heads of each model."""

which = st.integers(0, len(SHAPES) - 1)
ids = st.integers(1, 262)
contexts = st.lists(ids, min_size=2, max_size=9)
queries = st.lists(ids, min_size=2, max_size=4)
baselines: st.SearchStrategy[Baseline] = st.one_of(
    st.sampled_from(["matched", "alone", "anchored"]),
    st.just(Without(((0, 1),))),
    st.builds(Another, contexts),
)
streams: st.SearchStrategy[Stream] = st.sampled_from(["free", "sequential"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """Four random GPT-2s."""
    found = []
    for seed, n_layer, n_embd, n_head in SHAPES:
        with torch.inference_mode(False):
            folder = save_tiny(
                tmp_path_factory.mktemp("random"),
                seed=seed,
                n_layer=n_layer,
                n_embd=n_embd,
                n_head=n_head,
            )
        found.append(load(str(folder), revision=None, device="cpu", dtype="float32"))
    return found


def updates(model: Model, pair: Pair, stream: Stream = "free") -> tuple[Update, ...]:
    """Updates of every layer at every requested position, without factors."""
    return drive(model, weight_updates(model, pair, range(model.n_layers), (), stream)).updates


@few
@given(which, contexts, queries, baselines, streams)
def test_norm_lies_between_its_bounds(
    models: list[Model],
    index: int,
    context: list[int],
    query: list[int],
    baseline: Baseline,
    stream: Stream,
) -> None:
    """σ_min(W)·‖Δn‖/‖n‖ ≤ ‖ΔW‖ ≤ ‖W‖₂·‖Δn‖/‖n‖ in both streams and every baseline."""
    model = models[index]
    pair = resolve_pair(model, context, query, baseline, "all")
    for one in updates(model, pair, stream):
        w = model.blocks[one.layer].w_in.weight.double().numpy()
        values = np.linalg.svd(w, compute_uv=False)
        moved = one.mlp_in.norm_difference / one.mlp_in.norm_baseline
        assert one.norm <= values[0] * moved * (1 + ROUNDING)
        assert one.norm >= values[-1] * moved * (1 - ROUNDING)
        assert one.spectral_share == pytest.approx(one.norm / values[0], rel=1e-6)


@few
@given(which, contexts, queries)
def test_equal_contexts_have_a_zero_update(
    models: list[Model], index: int, context: list[int], query: list[int]
) -> None:
    """For equal contexts every number of the free stream is zero, and the sequential stream is
    below noise."""
    model = models[index]
    pair = resolve_pair(model, context, query, Another(context), "all")
    question = weight_updates(model, pair, range(model.n_layers), ("factors", "bias"))
    for one in drive(model, question).updates:
        assert (one.norm, one.rank, one.below_noise) == (0.0, 0, True)
        assert one.mlp_in.norm_difference == one.resid_mid.norm_difference == 0.0
        assert one.bias is not None
        assert one.factors is not None
        assert not bool(one.bias.any())
        assert not bool(one.factors.output.any())
        assert bool(one.factors.input.any())
    for one in updates(model, pair, "sequential"):
        assert one.below_noise
        assert one.mlp_in.norm_difference <= ROUNDING * one.mlp_in.norm_baseline


@few
@given(which, contexts, queries)
def test_content_and_position_sum_to_the_update(
    models: list[Model], index: int, context: list[int], query: list[int]
) -> None:
    """Content and position add up to the `alone` update, and their norms obey the triangle
    inequality."""
    model = models[index]
    pair = resolve_pair(model, context, query, "alone", "all")
    question = weight_updates(model, pair, range(model.n_layers), ("factors", "split"))
    for one in drive(model, question).updates:
        assert one.split is not None
        assert one.factors is not None
        content, position = one.split.content, one.split.position
        total = content.factors.output.double() + position.factors.output.double()
        gap = (total - one.factors.output.double()).norm()
        assert float(gap) <= ROUNDING * float(total.norm() + content.factors.output.norm())
        slack = ROUNDING * (content.norm + position.norm)
        assert abs(content.norm - position.norm) - slack <= one.norm
        assert one.norm <= content.norm + position.norm + slack


def cut(edges: Sequence[int], first: int, count: int) -> list[Span]:
    """Spans that cover the context from `first` to `count`, cut at the edges in between."""
    inner = sorted({edge for edge in edges if first < edge < count})
    return list(zip([first, *inner], [*inner, count], strict=True))


@few
@given(
    which, contexts, queries, st.sampled_from(["matched", "anchored"]), st.lists(st.integers(1, 9))
)
def test_trajectory_telescopes_for_any_spans(
    models: list[Model],
    index: int,
    context: list[int],
    query: list[int],
    baseline: Baseline,
    edges: list[int],
) -> None:
    """The steps add up to the whole update, and ΔW at an edge does not depend on the other
    edges."""
    model = models[index]
    pair = resolve_pair(model, context, query, baseline, "all")
    first, count = int(pair.anchored), len(pair.context)
    layers = range(model.n_layers)
    spans = cut(edges, first, count)
    ways = drive(model, trajectories(model, pair, layers, spans))
    tokens = drive(model, trajectories(model, pair, layers, cut(range(count), first, count)))
    for way, fine, one in zip(ways, tokens, updates(model, pair), strict=True):
        assert way.telescoping_error is not None
        assert way.telescoping_error <= ROUNDING * len(way.steps) * (
            max(step.step_norm for step in way.steps) / one.norm
        )
        scale = one.norm + max(step.norm for step in fine.steps)
        assert way.steps[-1].norm == pytest.approx(one.norm, abs=ROUNDING * scale)
        after = {step.span[1]: step.norm for step in fine.steps}
        for step in way.steps:
            assert step.norm == pytest.approx(after[step.span[1]], abs=ROUNDING * scale)
        assert one.norm <= sum(step.step_norm for step in way.steps) + ROUNDING * scale


@few
@given(which, contexts, queries, baselines)
def test_joint_patch_equals_the_patch_of_each_position(
    models: list[Model],
    index: int,
    context: list[int],
    query: list[int],
    baseline: Baseline,
) -> None:
    """A joint patch gives the same mlp_pre and block output as each position's own patch."""
    model = models[index]
    pair = resolve_pair(model, context, query, baseline, "all")
    points: tuple[HookPoint, ...] = ("mlp_in", "resid_mid", "mlp_act", "mlp_pre", "resid_post")
    reads = pair.reads(range(model.n_layers), points)
    full, base = forward(
        model,
        [pair.with_context.run(reads, torch.float64), pair.baseline.run(reads, torch.float64)],
    )
    for layer in range(model.n_layers):
        block = model.blocks[layer].to(torch.float64)
        n, h, act, pre, post = (Site(layer, point) for point in points)
        w_in = block.w_in.weight
        joint = joint_update(base[n], full[n], base[h], full[h], full[act], w_in)
        single = implicit_update(base[n], full[n], base[h], full[h], w_in)
        bound = FLOAT64 * max(joint.w_in.condition, joint.w_out.condition)
        jointly = patched_block(block, base[h], joint, "materialized")
        apart = patched_block(block, base[h], single, "factored")
        for found, alone, expected in zip(jointly, apart, (full[pre], full[post]), strict=True):
            for row in range(len(query)):
                assert relative(found[row], alone[row]) <= bound
                assert relative(found[row], expected[row]) <= bound


@few
@given(which, contexts, queries, baselines, st.lists(st.lists(ids, min_size=1), max_size=4))
def test_runs_are_the_same_in_any_pack(
    models: list[Model],
    index: int,
    context: list[int],
    query: list[int],
    baseline: Baseline,
    others: list[list[int]],
) -> None:
    """The runs of a model check read the same to 1e-12 in a mixed pack as alone, and the check does
    not fail."""
    model = models[index]
    pair = resolve_pair(model, context, query, baseline, "all")
    layers = range(model.n_layers)
    procedure = Procedure(dtype=torch.float64)
    runs = list(next(model_checks(model, pair, layers, procedure)))
    strangers = [
        Run(
            tokens,
            range(len(tokens)),
            {Site(i % model.n_layers, "resid_post"): [-1]},
            torch.float64,
        )
        for i, tokens in enumerate([*others, context[:-1]])
    ]
    mixed = [run for both in zip(runs, strangers, strict=False) for run in both]
    mixed += runs[len(strangers) :] + strangers[len(runs) :]
    for run, read in zip(mixed, forward(model, mixed), strict=True):
        assert worst(read, forward(model, [run])[0]) <= FLOAT64
    checks, logits = drive(model, model_checks(model, pair, layers, procedure))
    assert "fails" not in {check.verdict for check in checks}
    assert "fails" not in {check.verdict for check in logits}
