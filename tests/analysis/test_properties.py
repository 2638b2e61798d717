"""Properties that hold on any model, over random small GPT-2s, contexts and queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.activations import HookPoint
from schemas.pairs import AnotherContext, Baseline, Span, Stream, WithoutSpans
from schemas.weight_updates import Update
from service.analysis.block_checks import Procedure
from service.analysis.model_checks import model_checks
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.trajectories import trajectories
from service.analysis.weight_updates import weight_updates
from service.engine import Model, Run, Site, drive, load, patched_block
from service.engine.walk import forward
from service.theory import implicit_update, joint_update
from tests.analysis.subjects import factors_of
from tests.checkpoints import save_tiny
from tests.engine.made import relative, worst

few = settings(derandomize=True, max_examples=15, deadline=None)
ROUNDING = 1e-5
FLOAT64 = 1e-12
SHAPES = [(11, 1, 16, 2), (12, 2, 24, 3), (13, 3, 32, 4), (14, 4, 16, 1)]
"""Seed, layers, width and heads of each model."""

which = st.integers(0, len(SHAPES) - 1)
ids = st.integers(1, 262)
contexts = st.lists(ids, min_size=2, max_size=9)
queries = st.lists(ids, min_size=2, max_size=4)
baselines: st.SearchStrategy[Baseline] = st.one_of(
    st.sampled_from(["matched", "alone", "anchored"]),
    st.just(WithoutSpans(without=[(0, 1)])),
    st.builds(AnotherContext, context=contexts),
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


def updates(model: Model, pair: Pair, stream: Stream = "free") -> Sequence[Update[Tensor]]:
    """The norms of every layer at every requested position."""
    return drive(model, weight_updates(model, [pair], range(model.n_layers), (), stream))[0].updates


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
    """σ_min(W)·‖Δn‖/‖n‖ ≤ ‖ΔW‖ ≤ ‖W‖₂·‖Δn‖/‖n‖, in both streams and every baseline."""
    model = models[index]
    pair = resolve_pair(model, context, query, baseline, "all")
    for one in updates(model, pair, stream):
        w = model.blocks[one.layer].w_in.weight.double().numpy()
        values = np.linalg.svd(w, compute_uv=False)
        moved = one.mlp_in.norm_difference / one.mlp_in.norm_baseline
        assert one.norm <= values[0] * moved * (1 + ROUNDING)
        assert one.norm >= values[-1] * moved * (1 - ROUNDING)
        assert one.weights[0].spectral_share == pytest.approx(one.norm / values[0], rel=1e-6)


@few
@given(which, contexts, queries)
def test_equal_contexts_have_a_zero_update(
    models: list[Model], index: int, context: list[int], query: list[int]
) -> None:
    """In the free stream every number is zero. In the sequential stream, whose runs are separate,
    each update is flagged as rounding."""
    model = models[index]
    pair = resolve_pair(model, context, query, AnotherContext(context=context), "all")
    question = weight_updates(model, [pair], range(model.n_layers), ("factors", "bias"))
    for one in drive(model, question)[0].updates:
        assert (one.norm, one.rank, one.below_noise) == (0.0, 0, True)
        assert one.mlp_in.norm_difference == one.resid_mid.norm_difference == 0.0
        a, b = factors_of(one)
        assert one.bias
        assert not bool(one.bias.values.any())
        assert not bool(b.any())
        assert bool(a.any())
    for one in updates(model, pair, "sequential"):
        assert one.below_noise
        assert one.mlp_in.norm_difference <= ROUNDING * one.mlp_in.norm_baseline


@few
@given(which, contexts, queries)
def test_content_and_position_add_up_to_the_update(
    models: list[Model], index: int, context: list[int], query: list[int]
) -> None:
    """The output factors of content and position add up to that of `alone`, and the norms obey the
    triangle inequality."""
    model = models[index]
    pair = resolve_pair(model, context, query, "alone", "all")
    question = weight_updates(model, [pair], range(model.n_layers), ("factors", "split"))
    for one in drive(model, question)[0].updates:
        assert one.split
        content, position = one.split.content, one.split.position
        output = torch.cat(list(content.outputs)).double()
        total = output + torch.cat(list(position.outputs)).double()
        gap = (total - factors_of(one)[1].double()).norm()
        assert float(gap) <= ROUNDING * float(total.norm() + output.norm())
        slack = ROUNDING * (content.norm + position.norm)
        assert abs(content.norm - position.norm) - slack <= one.norm
        assert one.norm <= content.norm + position.norm + slack


def cut(edges: Sequence[int], first: int, count: int) -> list[Span]:
    """Spans that cover the tokens from `first` to `count`, cut at the edges between them."""
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
    """The steps add up to the update, and ΔW at an edge does not depend on the other edges."""
    model = models[index]
    pair = resolve_pair(model, context, query, baseline, "all")
    first, count = int(pair.head), len(pair.context)
    layers = range(model.n_layers)
    spans = cut(edges, first, count)
    coarse = drive(model, trajectories(model, pair, layers, spans)).layers
    tokens = cut(range(count), first, count)
    every = drive(model, trajectories(model, pair, layers, tokens)).layers
    for found, fine, one in zip(coarse, every, updates(model, pair), strict=True):
        assert found.telescoping_error is not None
        longest = max(step.step_norm for step in found.steps)
        assert found.telescoping_error <= ROUNDING * len(found.steps) * (longest / one.norm)
        scale = one.norm + max(step.norm for step in fine.steps)
        assert found.steps[-1].norm == pytest.approx(one.norm, abs=ROUNDING * scale)
        after = {step.span[1]: step.norm for step in fine.steps}
        for step in found.steps:
            assert step.norm == pytest.approx(after[step.span[1]], abs=ROUNDING * scale)
        assert one.norm <= sum(step.step_norm for step in found.steps) + ROUNDING * scale


@few
@given(which, contexts, queries, baselines)
def test_joint_patch_acts_like_each_positions_own_patch(
    models: list[Model],
    index: int,
    context: list[int],
    query: list[int],
    baseline: Baseline,
) -> None:
    """The joint patch gives the mlp_pre and block output of each position's own patch, which are
    those with context."""
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
        w_in = block.w_in
        joint = joint_update(base[n], full[n], base[h], full[h], full[act], w_in)
        single = implicit_update(base[n], full[n], base[h], full[h], w_in)
        bound = FLOAT64 * max(joint.conditions)
        jointly = patched_block(block, base[h], base[n], joint, "materialized")
        apart = patched_block(block, base[h], base[n], single, "factored")
        for found, alone, expected in zip(jointly, apart, (full[pre], full[post]), strict=True):
            for row in range(len(query)):
                assert relative(found[row], alone[row]) <= bound
                assert relative(found[row], expected[row]) <= bound


@few
@given(which, contexts, queries, baselines, st.lists(st.lists(ids, min_size=1), max_size=4))
def test_activations_do_not_depend_on_the_pack(
    models: list[Model],
    index: int,
    context: list[int],
    query: list[int],
    baseline: Baseline,
    others: list[list[int]],
) -> None:
    """All runs of a model check, in float64 with other runs between them, have the activations of
    each run alone to 1e-12, and no check fails."""
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
