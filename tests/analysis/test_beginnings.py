"""Texts that begin with special tokens: no resource takes them for content, and none fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from schemas.attributions import AttributionsRequest
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.tokenize import TokenizeRequest
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesRequest
from service.analysis.attributions import _reversed, plan_attributions
from service.analysis.equivalence_checks import plan_equivalence_checks
from service.analysis.pairs import resolve_pair
from service.analysis.self_check import self_check
from service.analysis.spans import sentence_spans
from service.analysis.trajectories import plan_trajectories
from service.analysis.weight_updates import plan_weight_updates
from service.api.model import hook_point_info
from service.api.tokenize import resolve_texts, tokenized
from service.engine import drive, load
from service.errors import BadSpan
from tests.analysis.subjects import Subject
from tests.families import VARIANTS, save

Variants = Callable[[str], Subject]
PREPENDED = [name for name, variant in VARIANTS.items() if variant.prepended and name != "opt-bare"]


@pytest.mark.parametrize("name", PREPENDED)
def test_context_of_the_prefix_alone_has_no_other_order(variant_of: Variants, name: str) -> None:
    """A check of a context that is only the tokenizer's beginning, given as ids, is answered. Its
    control of a shuffled context is null with a reason."""
    model = variant_of(name).model
    request = EquivalenceChecksRequest(
        context=list(model.tokenizer.prefix), query=[5, 9], baseline="matched"
    )
    answer = drive(model, plan_equivalence_checks(model, request))
    for check in answer.checks:
        assert check.controls
        assert check.controls["shuffled_context"] is None
        assert check.control_reasons
        assert "other order" in check.control_reasons["shuffled_context"]


@pytest.mark.parametrize("name", PREPENDED)
def test_sentences_begin_after_the_tokenizers_beginning(variant_of: Variants, name: str) -> None:
    """In the baseline `matched` the beginning belongs to no sentence, and stays first where the
    spans are read in reverse."""
    model = variant_of(name).model
    pair = resolve_pair(model, "Ab. Cd. Ef", "xy", "matched", "last")
    begins = len(model.tokenizer.prefix)
    spans = sentence_spans(model, pair)
    assert pair.head == 0
    assert pair.beginning == begins > 0
    assert spans[0][0] == begins
    whole = ((0, spans[0][1]), *spans[1:])
    for given in (spans, whole):
        order = _reversed(pair, given)
        assert order[:begins] == list(range(begins))
        assert sorted(order) == list(range(len(pair.context)))
        assert order != sorted(order)
    request = AttributionsRequest(context="Ab. Cd. Ef", query="xy", baseline="matched")
    answer = drive(model, plan_attributions(model, request))
    assert [span.span for span in answer.layers[0].spans] == list(spans)


def test_trajectory_of_the_baseline_matched_reads_the_beginning_first(variant_of: Variants) -> None:
    """`matched` takes the beginning away, so its first step reads it."""
    model = variant_of("gemma3").model
    request = TrajectoriesRequest(context="ab", query="xy", baseline="matched", layers=[0])
    answer = drive(model, plan_trajectories(model, request))
    assert answer.tokens.context[0].special is True
    assert answer.layers[0].steps[0].span == (0, 1)


def test_span_over_the_anchor_is_refused_with_the_first_index(variant_of: Variants) -> None:
    """The problem names the first token after the anchor."""
    model = variant_of("gemma3").model
    request = TrajectoriesRequest(context="ab", query="xy", spans=[(0, 2)])
    with pytest.raises(BadSpan, match="Begin at token 1") as raised:
        plan_trajectories(model, request)
    assert (raised.value.limit, raised.value.actual) == (1, 0)


@pytest.mark.parametrize("positions", [3, 16, 17, 18])
def test_self_check_fits_into_few_positions(tmp_path: Path, positions: int) -> None:
    """The self-check of a model with an anchor leaves room for it."""
    with torch.inference_mode(False):
        folder = save("llama-tied", tmp_path, max_position_embeddings=positions)
    model = load(str(folder), revision=None, device="cpu", dtype="float32")
    found = drive(model, self_check(model))
    assert found.verdict == "holds"


def test_norms_alone_do_not_form_the_second_weights_update(variant_of: Variants) -> None:
    """Form `weights` reads mlp_act only if the answer has the carrier of Δh."""
    model = variant_of("opt").model
    for include in ([], ["bias"]):
        body = {"context": "ab", "query": "x", "form": "weights", "include": include}
        request = WeightUpdatesRequest.model_validate(body)
        runs = plan_weight_updates(model, request).runs
        points = {site.point for run in runs for site in run.reads}
        assert ("mlp_act" in points) == ("bias" in include)


def test_tokenize_shows_the_tokens_that_a_run_reads(variant_of: Variants) -> None:
    """Context, prompts and both as one text begin as the tokenizer begins a text, at no character;
    the query does not. So spans can be counted in the answer."""
    model = variant_of("gemma3").model
    body = TokenizeRequest(context="ab", query="ab")
    told = tokenized(model, body, resolve_texts(model, body))
    assert told.context
    assert told.query
    assert told.together
    pair = resolve_pair(model, "ab", "ab", "matched", "last")
    assert [token.id for token in told.context.tokens] == list(pair.context)
    assert [token.id for token in told.query.tokens] == list(pair.query)
    assert told.border_merges == pair.border_merges
    for text in (told.context, told.together):
        assert (text.tokens[0].special, text.tokens[0].offset) == (True, (0, 0))
    body = TokenizeRequest(prompts=["ab"])
    told = tokenized(model, body, resolve_texts(model, body))
    assert told.prompts
    assert [token.id for token in told.prompts[0].tokens] == list(pair.context)


def test_parallel_block_has_no_point_between_attention_and_mlp(variant_of: Variants) -> None:
    """`/v1/model` gives resid_mid of a parallel block no module and no name in TransformerLens."""
    parallel, serial = (
        hook_point_info(variant_of(name).model, "resid_mid")
        for name in ("neox-parallel", "neox-serial")
    )
    assert (parallel.module, parallel.side, parallel.transformer_lens) == (None, None, None)
    assert serial.module
    assert serial.transformer_lens
