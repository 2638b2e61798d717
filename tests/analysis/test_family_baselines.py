"""Baselines where positions are relative, windows end and texts begin with a special token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schemas.activations import ActivationsRequest
from schemas.common import UNSET
from schemas.pairs import AnotherContext, Baseline, WithoutSpans
from schemas.weight_updates import WeightUpdatesAnswer, WeightUpdatesRequest
from service.analysis.pairs import resolve_pair
from service.engine import Model, drive
from service.errors import NoAnchorToken
from tests.analysis.subjects import Subject, agree, plan_of
from tests.families import VARIANTS

Variants = Callable[[str], Subject]
TEXT, MORE = "abcdab", "the"
PREPENDED = tuple(
    name for name, about in VARIANTS.items() if about.prepended and name != "opt-bare"
)


def answered(model: Model, **request: Any) -> WeightUpdatesAnswer[Any]:
    """The answer to a request for weight updates."""
    answer: WeightUpdatesAnswer[Any] = drive(model, plan_of(model, WeightUpdatesRequest(**request)))
    return answer


def test_default_baseline_is_that_of_the_family(variant: Subject, variant_name: str) -> None:
    """Without a baseline it is `matched` where positions are absolute or there is no anchor, and
    `anchored` elsewhere; the answer says so."""
    about = VARIANTS[variant_name]
    anchored = about.positions == "relative" and about.token is not None
    assert variant.model.anchor == about.token
    answer = answered(variant.model, context=TEXT, query=MORE, include=[])
    assert answer.baseline == ("anchored" if anchored else "matched")


def test_alone_is_matched_where_positions_are_relative(variant: Subject, variant_name: str) -> None:
    """It is answered as `matched` with a shift of 0, and the position's part of its split is 0;
    where positions are absolute it is itself, with all parts."""
    relative = VARIANTS[variant_name].positions == "relative"
    asked = {"context": TEXT, "query": MORE, "layers": [1], "include": ["factors", "split"]}
    alone = answered(variant.model, **asked, baseline="alone")
    length = len(alone.tokens.context)
    assert alone.baseline == ("matched" if relative else "alone")
    assert alone.position_shift == (0 if relative else length)
    (one,) = alone.updates
    assert one.split
    assert (one.split.position.norm == 0.0) == relative
    if relative:
        (matched,) = answered(variant.model, **{**asked, "include": []}, baseline="matched").updates
        assert one.norm == one.split.content.norm == pytest.approx(matched.norm, rel=1e-9)


def test_anchored_is_refused_without_an_anchor(variant_of: Variants) -> None:
    """A tokenizer without a special token has no anchor, which the error names."""
    model = variant_of("llama-wide-heads").model
    assert model.anchor is None
    with pytest.raises(NoAnchorToken) as refused:
        answered(model, context=TEXT, query=MORE, baseline="anchored")
    assert refused.value.at == ("baseline",)


@pytest.mark.parametrize(
    ("name", "same"), [("mistral", True), ("qwen2-windows", False), ("llama", False)]
)
def test_anchored_reads_as_matched_beyond_every_window(
    variant_of: Variants, name: str, same: bool
) -> None:
    """Where all layers have windows and the context is longer than them together, the anchor is
    out of sight in both runs; one layer without a window still sees it."""
    model = variant_of(name).model
    context, query = [3 + 7 * i for i in range(16)], [9, 200]
    asked = {"context": context, "query": query, "include": ["factors"], "positions": "all"}
    found, other = (
        answered(model, **asked, baseline=baseline).updates for baseline in ("anchored", "matched")
    )
    for one, two in zip(found, other, strict=True):
        if same:
            assert two.input is not UNSET
            agree(one.input, two.input, 1e-5)
            agree(one.norm, two.norm, 1e-5)
        elif one.layer == 1 or name == "llama":
            assert abs(one.norm - two.norm) > 1e-3 * two.norm


@pytest.mark.parametrize("name", PREPENDED)
def test_a_text_begins_as_the_tokenizer_begins_it(variant_of: Variants, name: str) -> None:
    """The prefix is echoed as special. `matched` takes it away again; `anchored`, `without` and
    another context keep it."""
    model = variant_of(name).model
    prefix, token = model.tokenizer.prefix, VARIANTS[name].token
    assert prefix == model.tokenizer.anchor == (0,)
    text, query = model.tokenizer.encode(TEXT), model.tokenizer.encode(MORE)
    start = 1 + len(text)
    cases: list[tuple[Baseline, tuple[int, ...], tuple[int, ...]]] = [
        ("matched", (), ()),
        ("anchored", prefix, (0,)),
        (WithoutSpans(without=[(1, 2)]), prefix + text[1:], (0, *range(2, start))),
        (WithoutSpans(without=[(0, 2)]), text[1:], tuple(range(2, start))),
        (AnotherContext(context="ab"), prefix + model.tokenizer.encode("ab"), (0, 1)),
        (AnotherContext(context=[5, 6, 7]), (5, 6, 7), (0, 1, 2)),
    ]
    for baseline, ids, positions in cases:
        pair = resolve_pair(model, TEXT, MORE, baseline, "last")
        assert pair.context == prefix + text
        assert pair.baseline.ids == ids + query
        assert pair.baseline.positions[: len(ids)] == positions
        shown = pair.relation(model)[3].context
        assert (shown[0].text, shown[0].special) == (token, True)
        assert not any(one.special for one in shown[1:])
    (prompt,) = drive(
        model, plan_of(model, ActivationsRequest(prompts=[TEXT], hook_points=["mlp_in"]))
    ).prompts
    assert [one.id for one in prompt.tokens] == [*prefix, *text]


@pytest.mark.parametrize("name", PREPENDED)
def test_ids_are_taken_as_they_are(variant_of: Variants, name: str) -> None:
    """Nothing is put before ids, except the anchor of `anchored`, once."""
    model = variant_of(name).model
    ids = (5, 6, 7)
    for baseline in ("matched", WithoutSpans(without=[(0, 1)])):
        assert resolve_pair(model, ids, [8], baseline, "last").context == ids
    for given in (ids, (0, *ids)):
        assert resolve_pair(model, given, [8], "anchored", "last").context == (0, *ids)
    (prompt,) = drive(
        model, plan_of(model, ActivationsRequest(prompts=[list(ids)], hook_points=["mlp_in"]))
    ).prompts
    assert tuple(one.id for one in prompt.tokens) == ids
